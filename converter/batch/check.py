"""Whether each of many models can be converted, without writing anything."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from ..artifacts.paths import ENDINGS
from ..report.failures import Report, worst_status
from .executors import Step, Task
from .jobs import Job
from .run import Watcher, absolute_options, executor_of, jobs_of

CheckState = Literal["converts", "failed"]


@dataclass(frozen=True)
class Answer:
    """Of one model.

    Attributes:
        reason: what is in the way, the formats named; "" if it can be converted to all of them.
        checks: of each format, as `FormatCheck`; none where the model cannot be read or captured.
    """

    before: ClassVar[bool] = False  # as of a journal's entry
    log: ClassVar[str] = ""

    name: str
    path: str
    state: CheckState
    exit_status: int
    reason: str
    checks: tuple[Mapping[str, Any], ...]
    seconds: float


@dataclass(frozen=True)
class Answers(Report):
    """Of all models, in the order of the work list.

    Attributes:
        left: names of those that were not begun.
    """

    entries: tuple[Answer, ...]
    left: tuple[str, ...]
    seconds: float

    @property
    def counts(self) -> dict[str, int]:
        found = Counter(entry.state for entry in self.entries)
        return {"converts": found["converts"], "failed": found["failed"]}

    @property
    def exit_status(self) -> int:  # type: ignore[override]
        return worst_status(entry.exit_status for entry in self.entries)

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"counts": self.counts, "exit_status": self.exit_status}


def check_many(
    models: str | Path | Iterable[str | Path | Job],
    *,
    to: Sequence[str] = tuple(ENDINGS),
    slots: int | None = None,
    timeout: float = 3600,
    memory: int | None = None,
    fail_fast: bool = False,
    scheduler: str | None = None,
    watcher: Watcher | None = None,
    **options: Any,
) -> Answers:
    """Ask of many checkpoints whether they can be converted; arguments as of `convert_many`.

    Raises:
        UsageError: the work list cannot be.
    """
    jobs = jobs_of(models, to, options)
    under_way: dict[str, Job] = {}
    ended: dict[str, Answer] = {}
    waiting, started = list(reversed(jobs)), time.perf_counter()
    with executor_of(scheduler, slots, timeout, memory) as executor:
        if watcher is not None:
            watcher.begin(len(jobs), executor.slots)
        while waiting or under_way:
            while waiting and len(under_way) < executor.slots:
                job = waiting.pop()
                under_way[job.name] = job
                executor.submit(_task(job))
            event = executor.next_event(1)
            if isinstance(event, Step):
                if watcher is not None:
                    watcher.step(event.slot, event.name, event.step)
            elif event is not None:
                answer = _answer(under_way.pop(event.name), event.outcome, event.seconds)
                ended[event.name] = answer
                if watcher is not None:
                    watcher.ended(answer, event.slot)
                if fail_fast and answer.exit_status:
                    waiting.clear()
    entries = tuple(ended[job.name] for job in jobs if job.name in ended)
    left = tuple(job.name for job in jobs if job.name not in ended)
    return Answers(entries, left, time.perf_counter() - started)


def _task(job: Job) -> Task:
    nowhere = dict.fromkeys(job.to, os.devnull)
    return Task(job.name, str(job.path.absolute()), nowhere, os.devnull, absolute_options(job), check=True)


def _answer(job: Job, outcome: Mapping[str, Any], seconds: float) -> Answer:
    status, checks = outcome["exit_status"], tuple(outcome.get("checks", ()))
    failures = [f"{check['format']}: {check['failure']['what']}" for check in checks if check["failure"]]
    reason = "; ".join(failures) if checks else outcome["what"]
    state: CheckState = "failed" if status else "converts"
    return Answer(job.name, str(job.path), state, status, reason, checks, seconds)
