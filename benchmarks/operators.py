"""PyTorch's own sample inputs of its operators against what they become: right, refused or wrong.

    python benchmarks/operators.py [NAME ...] [--record] [--most 8] [--state FILE] [--workers 1]

Every operator goes through a worker process, which a crash ends without the rest. With `--state` an interrupted run
goes on where it stood. `--record` puts the counts into docs/operators.json, from which docs/generate/measurements.py
writes docs/OPERATORS.md. tests/support/operator_conformance.py says what is in scope and how samples are compared.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import click

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 1200  # for one operator


def work(most: int | None, artifacts: int) -> None:
    """Read operators' numbers in op_db, one a line, and answer each with a line of JSON."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    sys.path[:0] = [str(ROOT), str(ROOT / "tests/support")]
    import torch
    from torch.testing._internal.common_methods_invocations import op_db

    torch.set_num_threads(1)
    from operator_conformance import conformance

    for line in sys.stdin:
        row = conformance(op_db[int(line)], most, artifacts)
        print(json.dumps(row), file=answers, flush=True)


class Worker:
    """A process that measures operators one at a time; it is started anew after a crash."""

    def __init__(self, options: list[str]):
        self.options = options
        self.process: subprocess.Popen | None = None
        self.lines: Queue[str] = Queue()

    def _start(self) -> subprocess.Popen:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TF_NUM_INTRAOP_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        process = subprocess.Popen(
            [sys.executable, __file__, "--work", *self.options],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment,
        )  # fmt: skip
        self.lines = lines = Queue()

        def read() -> None:
            for line in process.stdout or ():
                lines.put(line)
            lines.put("")

        threading.Thread(target=read, daemon=True).start()
        return process

    def measure(self, number: int) -> dict[str, Any] | None:
        """The operator's row; None if the process died or took too long."""
        if self.process is None or self.process.poll() is not None:
            self.process = self._start()
        if self.process.stdin is None:
            raise RuntimeError("the worker has no input")
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()
        try:
            line = self.lines.get(timeout=SECONDS)
        except Empty:
            line = ""
        if line:
            return json.loads(line)
        self.process.kill()
        self.process = None
        return None


def names_of_operators() -> list[str]:
    from torch.testing._internal.common_methods_invocations import op_db

    return [".".join(filter(None, (info.name, info.variant_test_name))) for info in op_db]


@click.command()
@click.argument("names", nargs=-1)
@click.option("--record", "recording", is_flag=True, help="put the counts into docs/operators.json")
@click.option("--state", type=click.Path(path_type=Path), help="rows so far, one a line; those are not measured again")
@click.option("--most", type=int, help="samples of each type, evenly spread (default: all)")
@click.option("--artifacts", default=2, help="samples of each type that go through written artifacts, too")
@click.option("--workers", default=1)
@click.option("--work", "is_worker", is_flag=True, hidden=True)
def main(
    names: tuple[str, ...], recording: bool, state: Path | None, most: int | None, artifacts: int, workers: int,
    is_worker: bool,
) -> None:  # fmt: skip
    if is_worker:
        work(most, artifacts)
        return
    every = names_of_operators()
    rows: dict[str, dict] = {}
    if state and state.exists():
        rows = {row["name"]: row for row in map(json.loads, state.read_text().splitlines())}
    wanted = [n for n in every if (not names or n in names) and n not in rows]
    left: Queue[str] = Queue()
    for name in wanted:
        left.put(name)
    options = ["--artifacts", str(artifacts), *(["--most", str(most)] if most else [])]
    lock = threading.Lock()

    def run() -> None:
        worker = Worker(options)
        while True:
            try:
                name = left.get_nowait()
            except Empty:
                return
            started = time.monotonic()
            row = worker.measure(every.index(name))
            row = row or {"name": name, "counts": {"failed": 1}, "reasons": [["failed", "the process died", 1, ""]]}
            with lock:
                rows[name] = row
                if state:
                    with state.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                counts = ", ".join(f"{n} {status}" for status, n in row["counts"].items())
                click.echo(f"{name}: {counts or row.get('scope')}  {time.monotonic() - started:.1f} s", err=True)

    threads = [threading.Thread(target=run) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    measured = [rows[name] for name in every if name in rows]
    for row in measured:
        for status, reason, count, sample in row["reasons"]:
            if status != "refused":
                click.echo(f"{row['name']}: {count} {status}: {reason} (as {sample})")
    if recording:
        sys.path.append(str(ROOT / "docs/generate"))
        from tables import record

        record("operators", summary(measured, most, artifacts))
    click.echo(dict(total(measured)))


def total(rows: list[dict]) -> Counter:
    counts: Counter = Counter()
    for row in rows:
        counts.update(row["counts"])
    return counts


def summary(rows: list[dict], most: int | None, artifacts: int) -> dict[str, Any]:
    """The content of docs/operators.json."""
    import torch

    core = {
        str(getattr(packet, overload))
        for packet in (getattr(torch.ops.aten, name) for name in dir(torch.ops.aten) if not name.startswith("__"))
        if hasattr(packet, "overloads")
        for overload in packet.overloads()
        if torch.Tag.core in getattr(packet, overload).tags
    }
    zoo = set((ROOT / "benchmarks" / "zoo_operators.txt").read_text().split())
    inside = [row for row in rows if row["counts"]]
    groups = {
        "all in scope": inside,
        "core ATen": [row for row in inside if core & set(row["targets"])],
        "used by a model of the zoo": [row for row in inside if zoo & set(row["targets"])],
    }
    statuses = ("right", "refused", "wrong", "failed")
    outside: dict[str, list[str]] = {}
    for row in rows:
        if not row["counts"]:
            outside.setdefault(row["scope"], []).append(row["name"])
    functions, lines = size_of_mappings()
    return {
        "torch": torch.__version__.split("+")[0],
        "most": most,
        "artifacts": artifacts,
        "groups": [
            {"name": name, "operators": len(group), **{status: total(group)[status] for status in statuses}}
            for name, group in groups.items()
        ],
        "rows": [
            {
                "name": row["name"],
                "right": row["counts"].get("right", 0),
                "of": sum(row["counts"].values()),
                "reasons": {
                    f"{'' if status == 'refused' else status + ': '}{shown(reason)}": count
                    for status, reason, count, _ in row["reasons"]
                },
            }
            for row in inside
        ],
        "left_out": dict(sorted(outside.items())),
        "mapped": functions[0],
        "functions": functions[1],
        "lines": lines,
    }


def shown(reason: str) -> str:
    """A reason that fits into a cell, without the numbers of symbols, which differ from run to run."""
    short = reason.replace("|", "/").split(" not in returned outputs")[0]
    return re.sub(r"\bu\d+", "u", short)[:160]


def size_of_mappings() -> tuple[tuple[int, int], int]:
    """How many operators are mapped, by how many functions, in how many lines."""
    sys.path.insert(0, str(ROOT))
    import mappings

    lowerings = mappings.load().having("lowering")
    lines = sum(len(path.read_text().splitlines()) for path in (ROOT / "mappings").glob("*.py"))
    return (len(lowerings), len({f.__code__ for f in lowerings.values()})), lines


if __name__ == "__main__":
    main()
