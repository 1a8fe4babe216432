"""Choose the jobs, workers and options of a batch, and run its tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from .executors import Executor, Finished, LocalProcesses, Step, Task, memory_for, slots_for
from .jobs import Job, checked, work_list
from .journal import Entry

if TYPE_CHECKING:
    from .results import CheckResult


Ended = TypeVar("Ended", "Entry", "CheckResult")


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


def run_tasks(
    jobs: Sequence[Job],
    executor: Executor,
    watcher: Watcher | None,
    *,
    begin: Callable[[Job], Task | Ended | None],
    end: Callable[[Job, Finished], Ended],
    fail_fast: bool,
    idle: Callable[[], None] = lambda: None,
) -> Iterator[Ended]:
    """Run every job on the executor, and yield how each ended, in that order.

    Args:
        begin: returns a job's task, or how it ended without one; None if it is left out.
        end: returns how a job ended, from its last event.
        fail_fast: begin no more after a job with an exit status other than 0.
        idle: called at least once a second.
    """
    waiting, under_way = list(reversed(jobs)), dict[str, Job]()
    if watcher is not None:
        watcher.begin(len(jobs), executor.slots)
    while waiting or under_way:
        ended, slot = None, None
        if waiting and len(under_way) < executor.slots:
            job = waiting.pop()
            begun = begin(job)
            if isinstance(begun, Task):
                under_way[job.name] = job
                executor.submit(begun)
            else:
                ended = begun
        else:
            event = executor.next_event(1)
            if isinstance(event, Finished):
                ended, slot = end(under_way.pop(event.name), event), event.slot
            elif isinstance(event, Step) and watcher is not None:
                watcher.step(event.slot, event.name, event.step)
        if ended is not None:
            yield ended
            if watcher is not None:
                watcher.ended(ended, slot)
            if fail_fast and ended.exit_status:
                waiting.clear()
        idle()


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
