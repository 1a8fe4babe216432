"""Executors of conversions: an interface, and local processes.

An executor runs up to `slots` models at once and reports their progress as events.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import psutil

from ..artifacts.runner import start_bound
from ..report.failures import Failure
from ..report.printed import escape_file

GIB = 2**30
# -P: keep the current directory from shadowing a module that a worker imports.
COMMAND = (sys.executable, "-P", str(Path(__file__).with_name("worker.py")))
NEEDED = 4 * GIB  # memory for one worker and the process that opens its artifacts
_POLL = 0.2  # seconds between two checks of a worker's memory


@dataclass(frozen=True)
class Task:
    """A model to convert, as sent to a worker.

    Attributes:
        outputs: where the artifact of each format goes.
        check: only report for each format whether the model can be converted, and write nothing.
    """

    name: str
    path: str
    outputs: Mapping[str, str]
    log: str
    options: Mapping[str, Any]
    check: bool = False


@dataclass(frozen=True)
class Step:
    """An event: a model has reached a step of its conversion."""

    name: str
    slot: int
    step: str


@dataclass(frozen=True)
class Finished:
    """An event: a model is done. `outcome` is the report as JSON values, with its exit status."""

    name: str
    slot: int
    outcome: Mapping[str, Any]
    seconds: float


Event = Step | Finished


class Executor(Protocol):
    @property
    def slots(self) -> int: ...

    def submit(self, task: Task) -> None:
        """Start a model; at most `slots` models may run at once."""

    def next_event(self, seconds: float) -> Event | None:
        """Return the next event, or None if none arrives within `seconds`."""

    def close(self) -> None:
        """Stop all running models immediately."""


def slots_for(wanted: int | None) -> int:
    """Return how many models to run at once: `wanted`, or what cores and free memory allow."""
    if wanted is not None:
        return wanted
    cores = len(os.sched_getaffinity(0))
    return max(1, min(cores, psutil.virtual_memory().available // NEEDED))


def threads_for(slots: int) -> int:
    """Return the number of cores for each of `slots` models."""
    return max(1, len(os.sched_getaffinity(0)) // slots)


def memory_for(slots: int) -> int:
    """Return the bytes that each of `slots` models may take from the free memory."""
    return max(NEEDED, int(psutil.virtual_memory().available * 0.9) // slots)


class LocalProcesses:
    """Warm worker processes on this machine, one for each slot.

    Args:
        slots: models at once.
        seconds: time limit per model; then its worker is killed, and another takes the next model.
        memory: bytes that a worker and its child processes may have resident together. A worker that still holds more
            than half of that after a model is replaced.
    """

    def __init__(self, slots: int, *, seconds: float, memory: int, command: Sequence[str] = COMMAND):
        self.slots = slots
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._workers = [Worker(slot, threads_for(slots), seconds, memory, command) for slot in range(slots)]
        self._threads = [threading.Thread(target=self._serve, args=(worker,), daemon=True) for worker in self._workers]
        for thread in self._threads:
            thread.start()

    def submit(self, task: Task) -> None:
        self._tasks.put(task)

    def next_event(self, seconds: float) -> Event | None:
        try:
            return self._events.get(timeout=seconds)
        except queue.Empty:
            return None

    def close(self) -> None:
        self._closing.set()
        for _ in self._threads:
            self._tasks.put(None)
        for worker in self._workers:
            worker.kill()
        for thread in self._threads:
            thread.join()

    def _serve(self, worker: Worker) -> None:
        while (task := self._tasks.get()) is not None and not self._closing.is_set():
            started = time.perf_counter()
            outcome = worker.convert(task, lambda step, name=task.name: self._events.put(Step(name, worker.slot, step)))
            if not self._closing.is_set():
                self._events.put(Finished(task.name, worker.slot, outcome, time.perf_counter() - started))
        worker.kill()


class Worker:
    """One worker process after another, in one slot.

    A process is reused while it holds little memory, and while models import their code from the same folders.
    """

    def __init__(self, slot: int, threads: int, seconds: float, memory: int, command: Sequence[str] = COMMAND):
        self.slot, self._seconds, self._memory, self._command = slot, seconds, memory, command
        self._environment = os.environ | {
            name: os.environ.get(name, str(threads))
            for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
        }
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._held: IO[bytes] | None = None
        self._code: tuple[Path, ...] = ()

    def convert(self, task: Task, on_step: Any) -> Mapping[str, Any]:
        """Return the report of one model, or the failure of its worker; escape what was printed into its log."""
        try:
            return self._convert(task, on_step)
        finally:
            if not task.check:
                with contextlib.suppress(OSError):  # there is none, or the disk is full
                    escape_file(Path(task.log))

    def _convert(self, task: Task, on_step: Any) -> Mapping[str, Any]:
        """Return the report of one model, or the failure of its worker."""
        code = code_beside(task)
        if code != self._code:  # a module name such as `nets` may now mean another file
            self._end()
            self._code = code
        process = self._started()
        if process is None:
            return failure(task, "The batch was closed.", "Run the same command again to resume.", code="PTC6004")
        deadline = time.monotonic() + self._seconds
        asked = {name: value for name, value in asdict(task).items() if name != "name"}
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps(asked) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            return self._died(task, process)
        while True:
            try:
                line = self._lines.get(timeout=_POLL)
            except queue.Empty:
                line = ""
            if line is None:
                return self._died(task, process)
            said = json.loads(line) if line else {}
            if "outcome" in said:
                if _resident(process.pid) > self._memory / 2:
                    self._end()
                return dict(said["outcome"])
            if "step" in said:
                on_step(said["step"])
            if time.monotonic() > deadline:
                self._end()
                return failure(
                    task,
                    f"The conversion took longer than {self._seconds:g} s.",
                    "Allow more time with --timeout.",
                    code="PTC6005",
                )
            if (held := _resident(process.pid)) > self._memory:
                self._end()
                return failure(
                    task,
                    f"The conversion used {held / GIB:.1f} GiB of memory; {self._memory / GIB:.1f} GiB are allowed.",
                    "Allow more memory with --memory, or run fewer models at once with -j.",
                    code="PTC6006",
                )

    def kill(self) -> None:
        """End the process for good."""
        with self._lock:
            self._closed = True
        self._end()
        with self._lock:
            self._release()

    def _release(self) -> None:
        """Close the pipe that keeps the worker alive; call this with the lock."""
        if self._held is not None:
            self._held.close()
            self._held = None

    def _started(self) -> subprocess.Popen[str] | None:
        with self._lock:
            if self._closed:
                return None
            if self._process is None or self._process.poll() is not None:
                self._release()
                self._process, self._held = start_bound(
                    self._command,
                    stderr=subprocess.DEVNULL,  # the worker writes it to each model's log
                    text=True,
                    encoding="utf-8",
                    env=self._environment,
                    start_new_session=True,  # it is killed with its children, and Ctrl-C reaches only the batch
                )
                self._lines = queue.SimpleQueue()
                threading.Thread(target=_forward, args=(self._process, self._lines), daemon=True).start()
            return self._process

    def _died(self, task: Task, process: subprocess.Popen[str]) -> Mapping[str, Any]:
        status = process.wait()
        self._end()
        how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
        killed = " (the system kills processes that use too much memory)" if status == -signal.SIGKILL else ""
        log = "what inspect --check -v prints" if task.check else task.log
        return failure(task, f"The conversion process ended {how}.", f"See {log}{killed}.", code="PTC6007")

    def _end(self) -> None:
        process = self._process
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):  # it has exited, and so have its children
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def code_beside(task: Task) -> tuple[Path, ...]:
    """Return the folders with Python code, other than the current one, that a model may import from."""
    scripts = [task.options.get("factory", "").partition(":")[0], *task.options.get("trust", ())]
    scripts += task.options.get("mappings", ())
    path = Path(os.path.realpath(task.path))  # realpath raises for no link, whatever it points to
    folders = {path, path.parent, *(Path(s).resolve().parent for s in scripts if s.endswith(".py"))}
    own = [f for f in folders - {Path.cwd()} if any(f.glob("*.py")) or any(f.glob("*/__init__.py"))]
    return tuple(sorted(own))


def _forward(process: subprocess.Popen[str], lines: queue.SimpleQueue[str | None]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    lines.put(None)


def _resident(process: int) -> int:
    """Return the bytes that a process and its children hold in memory."""
    try:
        parent = psutil.Process(process)
        family = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    total = 0
    for one in family:
        try:
            total += one.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def failure(task: Task, what: str, fix: str, *, code: str) -> dict[str, Any]:
    return Failure(task.path, "WorkerError", code, what, None, fix, 1).to_dict()
