"""Conversion on the workers of a Dask cluster. Checkpoints and outputs must be on storage that all workers share."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ..errors import UsageError
from .executors import COMMAND, Event, Finished, Task, Worker, failure, memory_for, threads_for

_PATIENCE = 60  # seconds for the scheduler to answer, and for a first worker to come
_WORKERS: dict[int, Worker] = {}  # in a worker of the cluster: one pt-convert process for each of its threads


class DaskWorkers:
    """An executor on a cluster; the scheduler retries a model elsewhere if its worker is lost.

    Each thread of a worker converts one model at a time, in its own process as `LocalProcesses` does, so that a crash
    does not take the worker down. Run the workers with as many threads as models fit at once.

    Args:
        address: of the scheduler, as tcp://host:8786.
        seconds, memory: as for `LocalProcesses`; without `memory`, each worker's share of its machine.

    Raises:
        UsageError: Dask is not installed, or no scheduler or no worker answers.
    """

    def __init__(self, address: str, *, seconds: float, memory: int | None, command: Sequence[str] = COMMAND):
        try:
            from distributed import Client
        except ImportError as error:
            raise UsageError(
                "Dask is not installed.",
                code="PTC6001",
                where="--scheduler",
                fix='Run pip install "pt-convert[cluster]".',
            ) from error
        self._settings = seconds, memory, tuple(command)
        try:
            self._client = Client(address, timeout=_PATIENCE)
            self._client.wait_for_workers(1, timeout=_PATIENCE)
        except (OSError, TimeoutError) as error:
            raise UsageError(
                f"The cluster does not answer: {error}.",
                code="PTC6002",
                fix="Check that the scheduler runs at this address and has at least one worker.",
                where=address,
            ) from error
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._futures: dict[str, Any] = {}

    @property
    def slots(self) -> int:
        return max(1, sum(self._client.nthreads().values()))

    def submit(self, task: Task) -> None:
        started = time.perf_counter()
        future = self._client.submit(_converted, asdict(task), *self._settings, pure=False)
        self._futures[task.name] = future
        future.add_done_callback(lambda done: self._done(task, done, started))

    def next_event(self, seconds: float) -> Event | None:
        try:
            return self._events.get(timeout=seconds)
        except queue.Empty:
            return None

    def close(self) -> None:
        for future in self._futures.values():
            future.cancel()
        if self._futures:
            self._client.run(_end_all)
        self._client.close()

    def _done(self, task: Task, future: Any, started: float) -> None:
        if future.cancelled():
            return
        error = future.exception()
        outcome: Mapping[str, Any]
        if error is None:
            outcome = future.result()
        else:
            outcome = failure(
                task,
                f"The cluster could not run the conversion: {error}.",
                "See the log of its workers.",
                code="PTC6003",
            )
        self._futures.pop(task.name, None)
        self._events.put(Finished(task.name, 0, outcome, time.perf_counter() - started))


def _converted(
    told: Mapping[str, Any], seconds: float, memory: int | None, command: Sequence[str]
) -> Mapping[str, Any]:
    """Convert a model in a thread of a cluster worker."""
    from distributed import get_worker

    threads = get_worker().state.nthreads
    worker = _WORKERS.get(threading.get_ident())
    if worker is None:
        worker = Worker(0, threads_for(threads), seconds, memory or memory_for(threads), command)
        _WORKERS[threading.get_ident()] = worker
    return worker.convert(Task(**told), lambda step: None)


def _end_all() -> None:
    for worker in _WORKERS.values():
        worker.kill()
    _WORKERS.clear()
