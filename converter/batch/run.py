"""A batch from its work list to its summary."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..artifacts.paths import refuse_links
from ..errors import CheckpointError
from ..report.failures import REPORTS, failure_of, write_report
from .executors import Executor, Finished, Task
from .jobs import Job
from .journal import LEASE, Entry, Journal, State
from .results import BatchReport
from .schedule import Watcher, absolute_options, list_jobs, open_executor, run_tasks

JOURNAL, SUMMARY, LOGS = "journal.sqlite", "summary.json", "logs"


def convert_many(
    models: str | Path | Iterable[str | Path | Job],
    *,
    to: Sequence[str] = (),
    output: str | Path,
    slots: int | None = None,
    timeout: float = 3600,
    memory: int | None = None,
    retry_failed: bool = False,
    fail_fast: bool = False,
    scheduler: str | None = None,
    watcher: Watcher | None = None,
    **options: Any,
) -> BatchReport:
    """Convert many checkpoints, each in its own process, and continue where an earlier batch ended.

    Args:
        models: files, folders, globs, manifests; or jobs (`Job`).
        to: formats.
        output: the folder for all artifacts, the journal, logs, reports and the summary.
        slots: models at once; if None, as many as cores and memory allow.
        timeout: time limit per model, in seconds.
        memory: memory limit per model, in bytes; if None, its share of the free memory.
        retry_failed: restart models that did not end verified.
        fail_fast: stop at the first model that is not verified.
        scheduler: address of a Dask scheduler, whose workers convert instead of this machine.
        options: those of `converter.convert`, as plain values.

    Returns:
        The report. It includes the failures of single models. `summary.json` holds it together with all other models of
        the folder's journal.

    Raises:
        UsageError: the work list is invalid.
        OutputError: the folder cannot be written.

    Examples:
        With the file of `pull`'s example:

        >>> report = converter.convert_many(["net.pt"], to=["onnx"], output="converted", input_shapes=["1,3,8,8"])
        >>> report
        <BatchReport 1 verified>
        >>> [(entry.name, entry.state) for entry in report.entries]
        [('net', 'verified')]
    """
    jobs = list_jobs(models, to, options)
    folder = Path(output)
    started = time.perf_counter()
    with Journal(folder / JOURNAL) as journal, open_executor(scheduler, slots, timeout, memory) as executor:
        batch = _Batch(jobs, folder, journal, executor, watcher, retry_failed, fail_fast)
        try:
            batch.run()
        finally:
            report = batch.report(started)
            with journal.results() as (ended, elsewhere):  # of other batches into this folder too
                write_report(folder / SUMMARY, report.with_others(ended, elsewhere).to_dict())
    return report


class _Batch:
    """Claims models, hands them to the executor, and records the results."""

    def __init__(
        self,
        jobs: Sequence[Job],
        folder: Path,
        journal: Journal,
        executor: Executor,
        watcher: Watcher | None,
        retry_failed: bool,
        fail_fast: bool,
    ):
        self._jobs, self._folder, self._journal, self._executor = jobs, folder, journal, executor
        self._watcher, self._retry_failed, self._fail_fast = watcher, retry_failed, fail_fast
        self._renewed = time.monotonic()
        self._ended: dict[str, Entry] = {}
        self._elsewhere: list[str] = []

    def run(self) -> None:
        for entry in run_tasks(
            self._jobs, self._executor, self._watcher,
            begin=self._begin, end=self._end, fail_fast=self._fail_fast, idle=self._renew,
        ):  # fmt: skip
            self._ended[entry.name] = entry

    def _begin(self, job: Job) -> Task | Entry | None:
        outputs = job.outputs(self._folder)
        for path in (self._log(job), self._report(job), *outputs.values()):
            refuse_links(path, self._folder)
        unreadable: CheckpointError | None = None
        fingerprint = ""
        try:
            fingerprint = self._journal.fingerprint(job)
        except OSError as error:
            unreadable = CheckpointError(
                f"The checkpoint cannot be read: {error.strerror}.",
                code="PTC6037",
                fix="Check that the file exists and that you may read it.",
            )
        retry = self._retry_failed or unreadable is not None
        claim, entry = self._journal.claim(job, fingerprint, retry_failed=retry)
        if claim == "elsewhere":
            self._elsewhere.append(job.name)
        if claim != "begin":
            return entry
        if unreadable is not None:
            outcome = failure_of(unreadable, str(job.path))
            write_report(self._report(job), outcome.to_dict() | {"exit_status": outcome.exit_status})
            codes = [outcome.code]
            return self._journal.end(
                job, "failed", outcome.exit_status, outcome.what, (), 0.0, codes=codes, report=self._report(job)
            )
        resolved = {format: str(path.resolve()) for format, path in outputs.items()}
        return Task(job.name, str(job.path.resolve()), resolved, str(self._log(job).resolve()), absolute_options(job))

    def _end(self, job: Job, event: Finished) -> Entry:
        write_report(self._report(job), event.outcome)
        state, reason, codes = _verdict(event.outcome)
        artifacts = [Path(a["path"]) for a in event.outcome.get("artifacts", ()) if a["path"]]
        return self._journal.end(
            job, state, event.outcome["exit_status"], reason, artifacts, event.seconds, str(self._log(job)), codes,
            self._report(job),
        )  # fmt: skip

    def _report(self, job: Job) -> Path:
        return self._folder / REPORTS / f"{job.name}.json"

    def _log(self, job: Job) -> Path:
        return self._folder / LOGS / f"{job.name}.log"

    def _renew(self) -> None:
        if time.monotonic() - self._renewed > LEASE / 10:
            self._journal.renew()
            self._renewed = time.monotonic()

    def report(self, started: float) -> BatchReport:
        entries = [self._ended[job.name] for job in self._jobs if job.name in self._ended]
        left = [job.name for job in self._jobs if job.name not in self._ended and job.name not in self._elsewhere]
        return BatchReport(tuple(entries), tuple(self._elsewhere), tuple(left), time.perf_counter() - started)


def _verdict(outcome: Mapping[str, Any]) -> tuple[State, str, list[str]]:
    """Return the state of a report, why it is not verified, and the codes of its errors."""
    if "status" not in outcome:
        return "failed", outcome["what"], [outcome["code"]]
    artifacts = outcome["artifacts"]
    failed = [a for a in artifacts if a["failure"]]
    codes = [a["failure"]["code"] for a in failed]
    failures = [f"{a['format']}: {a['failure']['what']}" for a in failed]
    broken = [f"{a['format']}: {p['summary']}" for a in artifacts for p in a["proofs"] if not p["holds"]]
    if outcome["status"] == "disagrees":
        short = [text for a in artifacts if a.get("quantization") for text in a["quantization"]["failures"]]
        return "disagrees", "; ".join([*broken, *short, *failures]), codes
    if failures:
        return "failed", "; ".join(failures), codes
    if outcome["status"] == "quantized":
        return "quantized", _decibels(artifacts), codes
    unproven = "" if outcome["status"] == "verified" else "written without proof"
    return outcome["status"], "; ".join(broken) or unproven, codes


def _decibels(artifacts: Sequence[Mapping[str, Any]]) -> str:
    outputs = [one for a in artifacts if a.get("quantization") for one in a["quantization"]["outputs"]]
    noise = [part["sqnr_db"] for one in outputs for part in (one, one["lost"]) if part is not None]
    least = min((decibels for decibels in noise if decibels is not None), default=None)
    return f"float twin verified, {'no noise' if least is None else f'{least:.1f} dB'}"
