"""Check whether each of many models can be converted, without writing anything."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..artifacts.paths import SUFFIXES
from .executors import Step, Task
from .jobs import Job
from .results import CheckResult, CheckResults, CheckState
from .schedule import Watcher, absolute_options, list_jobs, open_executor


def check_many(
    models: str | Path | Iterable[str | Path | Job],
    *,
    to: Sequence[str] = tuple(SUFFIXES),
    slots: int | None = None,
    timeout: float = 3600,
    memory: int | None = None,
    fail_fast: bool = False,
    scheduler: str | None = None,
    watcher: Watcher | None = None,
    **options: Any,
) -> CheckResults:
    """Check whether many checkpoints can be converted; arguments as for `convert_many`.

    Raises:
        UsageError: the work list is invalid.
    """
    jobs = list_jobs(models, to, options)
    under_way: dict[str, Job] = {}
    ended: dict[str, CheckResult] = {}
    waiting, started = list(reversed(jobs)), time.perf_counter()
    with open_executor(scheduler, slots, timeout, memory) as executor:
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
    return CheckResults(entries, left, time.perf_counter() - started)


def _task(job: Job) -> Task:
    nowhere = dict.fromkeys(job.to, os.devnull)
    return Task(job.name, str(job.path.absolute()), nowhere, os.devnull, absolute_options(job), check=True)


def _answer(job: Job, outcome: Mapping[str, Any], seconds: float) -> CheckResult:
    status, checks = outcome["exit_status"], tuple(outcome.get("checks", ()))
    failed = [check for check in checks if check["failure"]]
    failures = [f"{check['format']}: {check['failure']['what']}" for check in failed]
    codes = tuple(check["failure"]["code"] for check in failed) if checks else (outcome["code"],)
    reason = "; ".join(failures) if checks else outcome["what"]
    state: CheckState = "failed" if status else "converts"
    return CheckResult(job.name, str(job.path), state, status, reason, checks, seconds, codes)
