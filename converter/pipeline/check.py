"""Check whether a model can be converted, without writing anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from converter.artifacts.paths import parse_formats
from converter.artifacts.runtime.formats import Format
from converter.errors import ConversionError, wrap_unexpected
from converter.options import ArtifactOptions, InspectKeywords, InspectOptions
from converter.pipeline.build import build
from converter.pipeline.clock import Clock, Progress
from converter.pipeline.load_model import LoadedModel, Source, for_format, load_with_mappings
from converter.report.failures import failure_of
from converter.report.results import CheckReport, FormatCheck
from converter.verification.reference import take_reference


def check(
    model: Source,
    *,
    to: str | Sequence[str],
    progress: Progress | None = None,
    **keywords: Unpack[InspectKeywords],
) -> CheckReport:
    """Check whether a model can be converted to each of some formats; nothing is written.

    Args:
        keywords: those of `converter.options.InspectOptions`.

    Raises:
        ConversionError: the model cannot be read, or does not run on the given inputs.
    """
    options = InspectOptions.of(**keywords)
    clock = Clock(progress)
    source, artifact_options = load_with_mappings(model, options, clock)
    checks = check_formats(source, to, artifact_options, options.capture.seed, clock)
    return CheckReport(source.name, checks, options.report.shown((*source.notes, *source.program.notes)))


def check_formats(
    source: LoadedModel, to: str | Sequence[str], options: ArtifactOptions, seed: int, clock: Clock
) -> tuple[FormatCheck, ...]:
    formats: list[Format] = parse_formats(to)  # type: ignore[assignment]
    if formats:  # a conversion does this before it builds anything
        take_reference(source.program, source.module, seed=seed, inputs=None, running=source.running)
    return tuple(check_format(source, format, options, clock) for format in formats)


def check_format(source: LoadedModel, format: Format, options: ArtifactOptions, clock: Clock) -> FormatCheck:
    """Check whether every step before the writing of an artifact succeeds."""
    try:
        notes = build(for_format(source, format, options), format, options, clock).prepare()
    except Exception as error:
        if not isinstance(error, ConversionError):
            error = wrap_unexpected(error, f"--to {format}")
        return FormatCheck(format, failure_of(error, source.name))
    return FormatCheck(format, notes=tuple(notes))
