"""What every system of sample_models/systems.py costs in each format.

    PYTHONPATH=tests/support:. python -m benchmarks.systems [PART_OF_TITLE ...] [--results systems.jsonl] [--record]

The naive lowering is the same program without our recognitions: constants are computed and norms folded, nothing else.
With --results what is there already is not measured again. --record puts the rows into docs/systems.json, from which
docs/generate/measurements.py writes docs/SYSTEMS.md.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from operator import itemgetter
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

sys.path.append(str(Path(__file__).resolve().parents[1] / "docs/generate"))
from tables import record, recorded  # found by the line above

FORMATS = ("tf", "keras", "onnx")
ROUNDS = 40  # timed calls of each, in turn
SLOWER = 1.15  # times the naive lowering; below, it is noise


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
@click.option("--record", "recording", is_flag=True, help="Put the rows into docs/systems.json.")
@click.option("--results", type=click.Path(path_type=Path), help="JSON lines, a row each, to go on from.")
def main(titles: tuple[str, ...], recording: bool, results: Path | None) -> None:
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
                click.echo(json.dumps(row), err=True)
    if recording:
        machine = f"{os.cpu_count()} cores, torch {torch.__version__.partition('+')[0]}"
        key = itemgetter("system", "spelling", "format")
        every = {key(row): row for row in recorded("systems")["rows"]} | {key(row): row for row in rows}
        order = [(system.name, system.spelling, format) for system in SYSTEMS for format in FORMATS]
        record("systems", {"machine": machine, "rows": [every[one] for one in order if one in every]})


if __name__ == "__main__":
    main()
