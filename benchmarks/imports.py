"""Measure what starting a command costs: processor seconds beyond Python's own, and what was imported.

    python benchmarks/imports.py [--runs 5] [OTHER_TREE...]

Each tree is a checkout of this repository, this one first; runs of all trees and commands take turns, and medians are
shown. A command's child processes count too.
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "tensorflow", "keras", "onnx", "sympy")
RUN = """
import sys
try:
    if sys.argv[1:] == ["import converter"]:
        import converter
    else:
        from converter.__main__ import main
        main()
except SystemExit as status:
    assert status.code in (0, None), status
finally:
    print("IMPORTED", *(name for name in {heavy} if name in sys.modules), file=sys.stderr)
"""
MODEL = ("net.pt", "--input-shape", "1,1,4,4")
COMMANDS = {
    "convert --help": ("--help",),
    "import converter": ("import converter",),
    "inspect": ("inspect", *MODEL),
    "--to onnx": (*MODEL, "--to", "onnx", "--force"),
    "verify, ONNX": ("verify", "net.pt", "net.onnx"),
}
SAVE = """
import torch
from torch import nn
torch.save(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)), "net.pt")
"""


def seconds(folder: Path, tree: Path, code: str, *arguments: str) -> tuple[float, str]:
    """Return the processor seconds of a Python process with its children, and the last line that it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"PYTHONPATH": str(tree)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, *arguments], cwd=folder, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{arguments}: {done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return spent, (done.stderr.splitlines() or [""])[-1].removeprefix("IMPORTED").strip()


@click.command()
@click.argument("others", nargs=-1, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--runs", default=5)
def main(others: tuple[Path, ...], runs: int) -> None:
    trees = (ROOT, *others)
    spent: dict[tuple[str, Path], list[float]] = {}
    imported: dict[tuple[str, Path], str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        seconds(folder, ROOT, SAVE)
        for run in range(runs + 1):
            for name, arguments in COMMANDS.items():
                for tree in trees:
                    bare, _ = seconds(folder, tree, "pass")
                    taken, imported[name, tree] = seconds(folder, tree, RUN.format(heavy=HEAVY), *arguments)
                    if run:  # the first fills caches of the disk, and writes what the last one reads
                        spent.setdefault((name, tree), []).append(taken - bare)
    for name in COMMANDS:
        for tree in trees:
            click.echo(f"{name:18} {statistics.median(spent[name, tree]):6.2f} s  {imported[name, tree]:38} {tree}")


if __name__ == "__main__":
    main()
