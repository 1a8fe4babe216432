"""The process that converts one model after another, with torch and TensorFlow imported once.

Run as a script, `python -P worker.py PIPE`. It reads one JSON object a line from standard input, and answers with JSON
lines on its original standard output: {"step": ...} while it works, then {"outcome": ...}. All else that libraries and
child processes print goes to the model's log.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from converter.pipeline.convert import ConversionSession
    from converter.report.results import CheckReport, ConversionReport


def main(pipe: int) -> None:
    from converter.artifacts.runtime.lifeline import end_with_parent
    from converter.compat.keras_extras import hide_keras_extras

    hide_keras_extras()
    end_with_parent(pipe, group=True)  # the batch has gone away: end this process and its children
    for number in (signal.SIGINT, signal.SIGTERM):  # the batch handles them and ends this process
        signal.signal(number, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    null = os.open(os.devnull, os.O_RDWR)
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    os.dup2(null, 0)
    os.dup2(null, 1)
    waiting: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(requests, waiting), daemon=True).start()
    from converter.pipeline.convert import ConversionSession  # slow imports finish before the first model

    session = ConversionSession(lasting=True)
    while True:
        _serve(session, waiting.get(), answers)


def _read(requests: IO[str], waiting: queue.SimpleQueue[dict[str, Any]]) -> None:
    for line in requests:
        waiting.put(json.loads(line))


def _serve(session: ConversionSession, request: dict[str, Any], answers: IO[str]) -> None:
    from converter.report.failures import Failure, failure_of, open_own

    def tell(**said: Any) -> None:
        answers.write(json.dumps(said) + "\n")

    log = Path(request["log"])
    started = time.perf_counter()
    report: ConversionReport | CheckReport | Failure
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with open_own(log) as file, _printing_into(file):
            try:
                report = _converted(session, request, tell, file)
            except (Exception, SystemExit) as error:
                traceback.print_exc(file=file)
                report = failure_of(error, request["path"])
            file.write(f"{time.perf_counter() - started:.1f} s in all\n")
    except OSError as error:  # the log cannot be written
        report = failure_of(error, request["path"])
    tell(outcome=report.to_dict() | {"exit_status": report.exit_status})


def _converted(
    session: ConversionSession, request: dict[str, Any], tell: Any, log: IO[str]
) -> ConversionReport | CheckReport:
    from converter.options import InspectOptions, options_of
    from converter.pipeline.check import check

    @contextlib.contextmanager
    def step(name: str) -> Iterator[None]:
        tell(step=name)
        started = time.perf_counter()
        yield
        log.write(f"{name}: {time.perf_counter() - started:.2f} s\n")

    if request["check"]:
        known = {name for name, *_ in options_of(InspectOptions)}  # the others concern writing and comparing
        options = {name: value for name, value in request["options"].items() if name in known}
        return check(request["path"], to=list(request["outputs"]), progress=step, **options)
    options = request["options"]
    outputs = {format: Path(path) for format, path in request["outputs"].items()}
    return session.convert(request["path"], to=list(outputs), output=outputs, progress=step, **options)


@contextlib.contextmanager
def _printing_into(file: IO[str]) -> Iterator[None]:
    sys.stdout.flush()
    sys.stderr.flush()
    kept = {descriptor: os.dup(descriptor) for descriptor in (1, 2)}
    for descriptor in kept:
        os.dup2(file.fileno(), descriptor)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, before in kept.items():
            os.dup2(before, descriptor)
            os.close(before)


if __name__ == "__main__":
    root = str(Path(__file__).resolve().parents[2])
    if root not in sys.path:  # not installed
        sys.path.append(root)
    main(int(sys.argv[1]))
