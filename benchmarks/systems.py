"""What every system of sample_models/systems.py costs in each format: measures it and writes a table.

    PYTHONPATH=tests/support:. python -m benchmarks.systems [PART_OF_TITLE ...] [--results systems.jsonl]
        [--write docs/SYSTEMS.md]

The naive lowering is the same program without our recognitions: constants are computed and norms folded, nothing else.
With --results what is there already is not measured again. What a file has from its first section on, written by hand,
is kept.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from equivalence import examples
from systems_in_formats import NAIVE, in_format, movement_alone, program_of, rewritten
from torchvision_for_tests import load_torchvision

from converter.errors import ConversionError
from converter.options import CaptureOptions
from converter.verification.checked_rewrite import rewrite
from sample_models.systems import SYSTEMS, System

FORMATS = ("tf", "keras", "onnx")
ROUNDS = 40  # timed calls of each, in turn
SLOWER = 1.15  # times the naive lowering; below, it is noise
HEAD = """# The systems of the source documents

Written by `PYTHONPATH=tests/support:. python -m benchmarks.systems --write docs/SYSTEMS.md` ({machine}).
Each row is a sample model of ours (`sample_models/systems.py`) that uses the operator between layers with weights, as
its paper's code does, at batch 2 in float32. The maps are small: times are mostly those of starting operators.

- **movement**: the largest difference of the movement alone, which has no weights, from PyTorch in float64, rounded.
  0 is bit for bit.
- **network**: the largest difference of the whole network from PyTorch in float64, in units of PyTorch's own rounding
  (its distance from float64 in float32; the bound is 16).
- **operators**: what may move elements in the network, and how often; depthwise convolutions, as they may be shifts.
- **ms**, **naive ms**: time of the network, and of the same program without our recognitions; the fastest tenth of
  {rounds} calls taken in turn. A row that is slower so by more than 15 % is timed twice more; the median ratio of the
  three stands here. The machine had other work: the ratio of a row's two times says more than either.

"""
COLUMNS = """
| system | spelling | target | movement | network | operators | ms | naive ms |
|---|---|---|---|---|---|---|---|
"""


def measure(system: System, format: str, folder: Path) -> dict[str, Any]:
    """A row; `movement` is None where it cannot be had alone, `naive_ms` where it cannot be lowered."""
    program = program_of(system.build(), system.shapes, how=CaptureOptions(accept=system.accept))
    inputs = examples([(2, *shape[1:]) for shape in system.shapes])
    single = program.with_dtype(torch.float32).run(*inputs)
    double = program.with_dtype(torch.float64).run(*[x.double() for x in inputs])
    run, moves = in_format(rewritten(program, format, inputs, system.exact_shifts), format, inputs, folder / "a.onnx")
    try:
        naive, _ = in_format(rewrite(program, NAIVE, inputs)[0], format, inputs, folder / "b.onnx")
    except ConversionError:
        naive = None
    worst = 0.0
    for actual, one, exact in zip(run(inputs), single, double, strict=True):
        own = max(float((one - exact).abs().max()), 4 * 2.0**-23 * float(exact.abs().max()))
        worst = max(worst, float(np.abs(actual - exact.numpy()).max() / own))
    times = timed([run, naive] if naive else [run], inputs)
    if naive and times[0] > SLOWER * times[1]:
        again = [times, *(timed([run, naive], inputs) for _ in range(2))]
        times = sorted(again, key=lambda pair: pair[0] / pair[1])[1]
    return {
        "system": system.name,
        "spelling": system.spelling,
        "format": format,
        "movement": moved(system, format, folder),
        "network": worst,
        "operators": moves,
        "ms": times[0],
        "naive_ms": times[1] if naive else None,
    }


def table(rows: list[dict[str, Any]]) -> str:
    machine = f"{os.cpu_count()} cores, torch {torch.__version__.partition('+')[0]}"
    lines = [line(row) for row in rows]
    return HEAD.format(machine=machine, rounds=ROUNDS) + summary(rows) + COLUMNS + "\n".join(lines) + "\n"


def line(row: dict[str, Any]) -> str:
    movement, naive = row["movement"], row["naive_ms"]
    cells = (
        row["system"],
        row["spelling"],
        f"`{row['format']}`",
        "with weights" if movement is None else f"{movement:.1e}" if movement else "0",
        f"{row['network']:.1f}",
        ", ".join(f"{name} {n}" for name, n in row["operators"].items()) or "none",
        f"{row['ms']:.2f}",
        "cannot be lowered" if naive is None else f"{naive:.2f}",
    )
    return "| " + " | ".join(cells) + " |"


def summary(rows: list[dict[str, Any]]) -> str:
    alone = [row for row in rows if row["movement"] is not None]
    rounded = {f"{row['system']}: {row['spelling']}" for row in alone if row["movement"]}
    compared = [(row["ms"] / row["naive_ms"], row) for row in rows if row["naive_ms"]]
    ratios = [ratio for ratio, _ in compared]
    slower = [
        f"{row['system']}: {row['spelling']}, `{row['format']}` ({ratio:.2f})"
        for ratio, row in sorted(compared, key=lambda pair: -pair[0])
        if ratio > SLOWER
    ]
    exact = sum(not row["movement"] for row in alone)
    listed = [
        f"{len(rows)} rows. Of {len(alone)} movements that can be had alone {exact} are exact",
        f"those that are not: {'; '.join(sorted(rounded)) or 'none'}",
        f"largest difference of a network: {max(row['network'] for row in rows):.1f} times PyTorch's own rounding",
        f"time over naive time: median {np.median(ratios):.2f}, least {min(ratios):.2f}, most {max(ratios):.2f}",
        f"more than {SLOWER} times the naive: {'; '.join(slower) or 'none'}",
    ]
    return "".join(f"- {line}\n" for line in listed)


def moved(system: System, format: str, folder: Path) -> float | None:
    if system.movement is None:
        return None
    program, x, expected = movement_alone(system)
    run, _ = in_format(rewritten(program, format, [x], system.exact_shifts), format, [x], folder / "c.onnx")
    return float(np.abs(run([x])[0] - expected).max())


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


@click.command()
@click.argument("titles", nargs=-1)
@click.option("--write", type=click.Path(path_type=Path))
@click.option("--results", type=click.Path(path_type=Path), help="JSON lines, a row each, to go on from.")
def main(titles: tuple[str, ...], write: Path | None, results: Path | None) -> None:
    load_torchvision()
    held = [json.loads(text) for text in results.read_text().splitlines()] if results and results.exists() else []
    measured = {(row["system"], row["spelling"], row["format"]): row for row in held}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for system in SYSTEMS:
            if titles and not any(part in system.title for part in titles):
                continue
            for format in FORMATS:
                row = measured.get((system.name, system.spelling, format))
                if row is None:
                    row = measure(system, format, Path(folder))
                    if results:
                        with results.open("a") as file:
                            file.write(json.dumps(row) + "\n")
                rows.append(row)
                click.echo(line(row), err=True)
    text = table(rows)
    if write:
        write.parent.mkdir(exist_ok=True)
        _, section, by_hand = write.read_text().partition("\n## ") if write.exists() else ("", "", "")
        write.write_text(text + section + by_hand)
    else:
        click.echo(text)


if __name__ == "__main__":
    main()
