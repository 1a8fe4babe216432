"""PyTorch's own sample inputs of its operators against what they become: a table of right, refused and wrong.

    python benchmarks/operators.py [NAME ...] [--write docs/OPERATORS.md] [--most 8] [--state FILE] [--workers 1]

Every operator goes through a worker process, which a crash ends without the rest. With `--state` an interrupted run
goes on where it stood. What is in scope and how samples are compared stands in tests/support/operator_conformance.py.
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
@click.option("--write", type=click.Path(path_type=Path), help="the table's file")
@click.option("--state", type=click.Path(path_type=Path), help="rows so far, one a line; those are not measured again")
@click.option("--most", type=int, help="samples of each type, evenly spread (default: all)")
@click.option("--artifacts", default=2, help="samples of each type that go through written artifacts, too")
@click.option("--workers", default=1)
@click.option("--work", "is_worker", is_flag=True, hidden=True)
def main(
    names: tuple[str, ...], write: Path | None, state: Path | None, most: int | None, artifacts: int, workers: int,
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
    if write:
        write.parent.mkdir(exist_ok=True)
        write.write_text(document(measured, len(every), most, artifacts))
    click.echo(dict(total(measured)), err=not write)


def total(rows: list[dict]) -> Counter:
    counts: Counter = Counter()
    for row in rows:
        counts.update(row["counts"])
    return counts


def document(rows: list[dict], of: int, most: int | None, artifacts: int) -> str:
    """The table, as Markdown."""
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
    how_many = f"at most {most} samples of each type, evenly spread" if most else "all samples of each type"
    options = [*(["--most", str(most)] if most else []), "--artifacts", str(artifacts)]
    lines = [
        "# Operators: PyTorch's own sample inputs",
        "",
        f"Written by `python benchmarks/operators.py {' '.join(options)} --write docs/OPERATORS.md`:",
        f"{how_many} (float32, int64, int32, bool) of PyTorch {torch.__version__.split('+')[0]}'s `op_db`, each",
        "captured, planned and compared with PyTorch in float64: within 1e-10 of the scale, whole numbers equal.",
        f"Of each operator and type up to {artifacts} also as a traced function and as a `.keras` file that",
        'Keras opened again, in float32. "Failed" is what broke the converter. What is left out, and by which rule,',
        "stands at the end.",
        "",
        *(
            [f"**Measured so far: {len(rows)} of {of} entries of `op_db`**; `--state` goes on.", ""]
            if len(rows) < of
            else []
        ),
        "| operators | samples | right | refused | wrong | failed | right of all |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, group in groups.items():
        counts = total(group)
        n = sum(counts.values())
        lines.append(
            f"| {name}: {len(group)} | {n} | {counts['right']} | {counts['refused']} | {counts['wrong'] or 'none'} "
            f"| {counts['failed'] or 'none'} | {counts['right'] / max(n, 1):.1%} |"
        )
    functions, lines_of_code = size_of_mappings()
    lines += [
        "",
        f"The mappings: {functions[0]} ATen operators by {functions[1]} functions, {lines_of_code:,} lines in",
        "`mappings/`.",
        "",
        "| operator | right | of | refused because |",
        "|---|---:|---:|---|",
    ]
    for row in inside:
        reasons = "; ".join(
            f"{'' if status == 'refused' else status + ': '}{shown(reason)} ({count})"
            for status, reason, count, _ in row["reasons"]
        )
        lines.append(f"| {row['name']} | {row['counts'].get('right', 0)} | {sum(row['counts'].values())} | {reasons} |")
    lines += ["", "## Left out", "", "| rule | operators |", "|---|---|"]
    outside: dict[str, list[str]] = {}
    for row in rows:
        if not row["counts"]:
            outside.setdefault(row["scope"], []).append(row["name"])
    lines += [f"| {rule} | {', '.join(names)} |" for rule, names in sorted(outside.items())]
    return "\n".join(lines) + "\n"


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
