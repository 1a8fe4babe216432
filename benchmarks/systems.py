"""Writes docs/SYSTEMS.md: every system of sample_models/systems.py in each format, measured in one run.

    PYTHONPATH=tests python -m benchmarks.systems

The naive lowering is the same program without our recognitions: constants are computed and norms folded, nothing else.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from equivalence import examples
from systems_in_formats import NAIVE, in_format, movement_alone, program_of, rewritten
from torchvision_for_tests import load_torchvision

from converter.errors import ConversionError
from converter.rewrites import rewrite
from sample_models.systems import SYSTEMS, System

TARGET = Path(__file__).parents[1] / "docs" / "SYSTEMS.md"
FORMATS = ("tf", "keras", "onnx")
ROUNDS = 40  # timed calls of each, in turn
HEAD = """# The systems of the source documents

Written by `PYTHONPATH=tests python -m benchmarks.systems` ({machine}). Each row is a sample model of ours
(`sample_models/systems.py`) that uses the operator between layers with weights, as its paper's code does, at batch 2
in float32.

- **movement**: the largest difference of the movement alone, which has no weights, from PyTorch. 0 is bit for bit.
- **network**: the largest difference of the whole network from PyTorch in float64, in units of PyTorch's own rounding
  (its distance from float64 in float32; the bound is 16).
- **operators**: what may move elements in the network, and how often; depthwise convolutions, as they may be shifts.
- **ms**, **naive ms**: time of the network, and of the same program without our recognitions; the fastest tenth of
  {rounds} calls taken in turn.

| system | spelling | target | movement | network | operators | ms | naive ms |
|---|---|---|---|---|---|---|---|
"""


def main() -> None:
    load_torchvision()
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for system in SYSTEMS:
            for format in FORMATS:
                print(f"{system.title}, {format}", file=sys.stderr, flush=True)
                lines.append(row(system, format, Path(folder)))
    machine = f"{os.cpu_count()} cores, torch {torch.__version__.partition('+')[0]}"
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(HEAD.format(machine=machine, rounds=ROUNDS) + "\n".join(lines) + "\n")


def row(system: System, format: str, folder: Path) -> str:
    program = program_of(system.build(), system.shapes)
    inputs = examples([(2, *shape[1:]) for shape in system.shapes])
    single = program.at(torch.float32).run(*inputs)
    double = program.at(torch.float64).run(*[x.double() for x in inputs])
    run, moves = in_format(rewritten(program, format, inputs, system.exact_shifts), format, inputs, folder / "a.onnx")
    try:
        naive, _ = in_format(rewrite(program, NAIVE, inputs)[0], format, inputs, folder / "b.onnx")
    except ConversionError:
        naive = None
    worst = 0.0
    for actual, one, exact in zip(run(inputs), single, double, strict=True):
        own = max(float((one - exact).abs().max()), 4 * np.finfo(np.float32).eps * float(exact.abs().max()))
        worst = max(worst, float(np.abs(actual - exact.numpy()).max()) / own)
    times = timed([run, naive] if naive else [run], inputs)
    operators = ", ".join(f"{name} {n}" for name, n in moves.items()) or "none"
    took = [f"{t:.2f}" for t in times] + ["cannot be lowered"] * (naive is None)
    cells = (
        system.name,
        system.spelling,
        f"`{format}`",
        moved(system, format, folder),
        f"{worst:.1f}",
        operators,
        *took,
    )
    return "| " + " | ".join(cells) + " |"


def moved(system: System, format: str, folder: Path) -> str:
    if system.movement is None:
        return "with weights"
    program, module, x = movement_alone(system)
    run, _ = in_format(rewritten(program, format, [x], system.exact_shifts), format, [x], folder / "c.onnx")
    with torch.no_grad():
        difference = float(np.abs(run([x])[0] - module(x).numpy()).max())
    return f"{difference:.1e}" if difference else "0"


def timed(runs: list[Any], inputs: list[torch.Tensor]) -> list[float]:
    """Milliseconds of each, called in turn so that a busy machine slows all alike."""
    given = [run.given(inputs) for run in runs]
    taken: list[list[float]] = [[] for _ in runs]
    for turn in range(ROUNDS + 3):
        for i, run in enumerate(runs):
            start = time.perf_counter()
            run.alone(given[i])
            if turn >= 3:
                taken[i].append(1e3 * (time.perf_counter() - start))
    return [float(np.quantile(t, 0.1)) for t in taken]


if __name__ == "__main__":
    main()
