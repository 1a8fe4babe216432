"""Check whether each of many models can be converted, without writing anything."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..artifacts.paths import default_formats
from .executors import Finished, Task
from .jobs import Job
from .results import CheckResult, CheckResults, CheckState
from .schedule import Watcher, absolute_options, list_jobs, open_executor, run_tasks


def check_many(
    models: str | Path | Iterable[str | Path | Job],
    *,
    to: Sequence[str] | None = None,
    slots: int | None = None,
    timeout: float = 3600,
    memory: int | None = None,
    fail_fast: bool = False,
    scheduler: str | None = None,
    watcher: Watcher | None = None,
    **options: Any,
) -> CheckResults:
    """Check whether many checkpoints can be converted; arguments as for `convert_many`.

    Args:
        to: the formats; those that this installation has, if None.

    Raises:
        UsageError: the work list is invalid.

    Examples:
        With the file of `pull`'s example:

        >>> converter.check_many(["net.pt"], to=["onnx"], input_shapes=["1,3,8,8"])
        <CheckResults 1 converts>
    """
    jobs = list_jobs(models, default_formats() if to is None else to, options)
    started = time.perf_counter()
    with open_executor(scheduler, slots, timeout, memory) as executor:
        results = run_tasks(jobs, executor, watcher, begin=_task, end=_result, fail_fast=fail_fast)
        ended = {result.name: result for result in results}
    entries = tuple(ended[job.name] for job in jobs if job.name in ended)
    left = tuple(job.name for job in jobs if job.name not in ended)
    return CheckResults(entries, left, time.perf_counter() - started)


def _task(job: Job) -> Task:
    nowhere = dict.fromkeys(job.to, os.devnull)
    return Task(job.name, str(job.path.absolute()), nowhere, os.devnull, absolute_options(job), check=True)


def _result(job: Job, event: Finished) -> CheckResult:
    status, checks = event.outcome["exit_status"], tuple(event.outcome.get("checks", ()))
    failed = [check for check in checks if check["failure"]]
    failures = [f"{check['format']}: {check['failure']['what']}" for check in failed]
    codes = tuple(check["failure"]["code"] for check in failed) if checks else (event.outcome["code"],)
    reason = "; ".join(failures) if checks else event.outcome["what"]
    state: CheckState = "failed" if status else "converts"
    return CheckResult(job.name, str(job.path), state, status, reason, checks, event.seconds, codes)
