"""Put the weights of many checkpoints into the artifacts that earlier ones became."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from converter.artifacts.paths import holds, refuse_links
from converter.batch.jobs import Job, work_list
from converter.errors import ConversionError
from converter.options import SyncOptions, options_of
from converter.pipeline.sync import sync
from converter.report.failures import Failure, failure_of
from converter.report.results import VerificationReport

NO_ARTIFACT = "There is no artifact of this checkpoint to refresh."


def sync_many(
    places: str | Path | Sequence[str | Path], *, output: str | Path, to: Sequence[str], **options: Any
) -> list[VerificationReport | Failure]:
    """Put the weights of checkpoints into the artifacts in a folder that have their names; a failure stops no other.

    Args:
        places: as `convert_many` takes them.
        output: the folder.
        to: the formats to refresh.
        options: the keywords of `sync`.

    Raises:
        ConversionError: there is no checkpoint, or an entry is not valid.

    Examples:
        With the folder of `convert_many`'s example:

        >>> [report.verified for report in converter.sync_many("net.pt", output="converted", to=["onnx"])]
        [True]
    """
    listed = [places] if isinstance(places, str | Path) else places
    return list(refreshed(work_list([str(place) for place in listed], to, options), Path(output)))


def refreshed(jobs: Sequence[Job], folder: Path) -> Iterator[VerificationReport | Failure]:
    """Yield what became of each artifact."""
    known = {name for name, *_ in options_of(SyncOptions)}
    for job in jobs:
        options = {name: value for name, value in job.options.items() if name in known}
        artifacts = [path for path in job.outputs(folder).values() if holds(path.exists)]
        if not artifacts:
            missing = ConversionError(
                NO_ARTIFACT,
                code="PTC6091",
                where=f"{job.path}, {folder / job.name}",
                fix="Convert it first: convert batch without --sync.",
            )
            yield failure_of(missing, str(job.path))
        for artifact in artifacts:
            yield _result(partial(sync, job.path, refuse_links(artifact, folder), **options), str(job.path))


def _result(call: partial[VerificationReport], source: str) -> VerificationReport | Failure:
    try:
        return call()
    except ConversionError as error:
        return failure_of(error, source)
