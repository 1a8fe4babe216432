"""Choose the jobs, workers and options of a batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .executors import Executor, LocalProcesses, memory_for, slots_for
from .jobs import Job, checked, work_list
from .journal import Entry

if TYPE_CHECKING:
    from .results import CheckResult


class Watcher(Protocol):
    """An observer of a batch's progress."""

    def begin(self, total: int, slots: int) -> None: ...
    def step(self, slot: int, name: str, step: str) -> None: ...
    def ended(self, entry: Entry | CheckResult, slot: int | None) -> None: ...


def list_jobs(
    models: str | Path | Iterable[str | Path | Job], to: str | Sequence[str], options: Mapping[str, Any]
) -> list[Job]:
    """Build the work list from `models`. Raises UsageError."""
    given = [models] if isinstance(models, str | Path) else list(models)
    formats = (to,) if isinstance(to, str) else to
    places = [str(one) for one in given if not isinstance(one, Job)]
    jobs = [one for one in given if isinstance(one, Job)]
    return checked([*jobs, *work_list(places, formats, options)] if places else jobs)


@contextmanager
def open_executor(scheduler: str | None, slots: int | None, timeout: float, memory: int | None) -> Iterator[Executor]:
    """Open the executor for this batch. Raises UsageError if the cluster does not answer."""
    executor: Executor
    if scheduler is not None:
        from .cluster import DaskWorkers

        executor = DaskWorkers(scheduler, seconds=timeout, memory=memory)
    else:
        count = slots_for(slots)
        executor = LocalProcesses(count, seconds=timeout, memory=memory or memory_for(count))
    try:
        yield executor
    finally:
        executor.close()


def absolute_options(job: Job) -> dict[str, Any]:
    return {name: _absolute(value) for name, value in job.options.items()}


def _absolute(value: Any) -> Any:
    """Return an option's value with file names made absolute: a worker may have another current folder."""
    if isinstance(value, list | tuple):
        return [_absolute(item) for item in value]
    if not isinstance(value, str):
        return value
    file, colon, rest = value.partition(":")
    return str(Path(file).resolve()) + colon + rest if Path(file).is_file() else value
