"""Small networks of every kind, each written as an artifact together with what PyTorch gives for it.

Another process, without `converter`, opens all of them at once; `outcomes` runs it.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from equivalence import assert_float32_rounds_alike, examples, in_float64, to_artifact, to_torch, with_random_tensors
from random_modules import network
from systems_in_formats import program_of, rewritten
from torch import Tensor, nn

from converter.artifacts import keras_writer, saved_model_writer
from converter.capture.export import capture
from converter.ir.program import Program
from converter.lowering.executor import PlanExecutor
from converter.lowering.planner import make_plan
from converter.options import CaptureOptions
from converter.plan.builder import PlanBuilder
from sample_models.calibration import calibrate
from sample_models.kinds import KINDS, Kind
from sample_models.systems import SYSTEMS, System

BATCHES = (3, 1)
FIRST_SEED = 200_000
Captured = tuple[Program, tuple[tuple[int, ...], ...]]


@dataclass(frozen=True)
class Network:
    """A network, captured by a call of `build` together with the shapes of its inputs."""

    title: str
    build: Callable[[], Captured]
    exact_shifts: bool = False


def of_system(system: System) -> Network:
    return Network(
        system.title,
        lambda: (program_of(system.build(), system.shapes, how=CaptureOptions(accept=system.accept)), system.shapes),
        system.exact_shifts,
    )


def of_module(title: str, build: Callable[[], nn.Module], shape: tuple[int, ...]) -> Network:
    def captured() -> Captured:
        torch.manual_seed(0)
        module = with_random_tensors(build())
        return capture(module, examples([(2, *shape[1:])])), (shape,)

    return Network(title, captured)


def of_kind(kind: Kind) -> Network:
    def captured() -> Captured:
        torch.manual_seed(0)
        example = torch.randn(2, *kind.shape[1:])
        return capture(calibrate(kind.build(), example), [example]), (kind.shape,)

    return Network(kind.title, captured)


def of_seed(seed: int) -> Network:
    def captured() -> Captured:
        module = network(seed)
        return capture(module, examples([(2, *module.shape[1:])])), (module.shape,)

    return Network(f"random network {seed}", captured)


SYSTEM_NETWORKS = [of_system(system) for system in SYSTEMS]
KIND_NETWORKS = [of_kind(kind) for kind in KINDS]
RANDOM_NETWORKS = [of_seed(seed) for seed in range(FIRST_SEED, FIRST_SEED + 24)]


@functools.cache
def captured(row: Network) -> Captured:
    return row.build()


@dataclass(frozen=True)
class Case:
    """An artifact, and per batch size its inputs and PyTorch's results in float32 and float64."""

    path: Path
    plan: PlanBuilder
    inputs: dict[int, list[Tensor]]
    expected: dict[int, tuple[list[Tensor], list[Tensor]]]

    def assert_agrees(self, results: Mapping[int, Mapping[str, np.ndarray]]) -> None:
        for batch, arrays in results.items():
            names = (
                [output.name for output in self.plan.outputs] if len(arrays) > 1 else list(arrays)
            )  # Keras names one
            made = to_torch([arrays[name] for name in names], self.plan.outputs)
            assert_float32_rounds_alike(made, *self.expected[batch], f"batch {batch}")


def written(row: Network, format: str, folder: Path) -> Case:
    program, shapes = captured(row)
    folder.mkdir()
    inputs = {batch: examples([(batch, *shape[1:]) for shape in shapes], batch) for batch in BATCHES}
    plan = make_plan(rewritten(program, format, inputs[3], row.exact_shifts), stock=format == "keras")
    lowered = PlanExecutor(plan, stock=format == "keras")
    path = folder / ("network.keras" if format == "keras" else "network")
    if format == "keras":
        keras_writer.write(lowered.model, path, {})
    else:
        saved_model_writer.save(lowered.traced, {name: v for name, (v, _) in lowered.tensors.items()}, path, {})
    raised = program.with_dtype(torch.float64)
    expected = {batch: (program.run(*x), raised.run(*in_float64(x))) for batch, x in inputs.items()}
    for batch, x in inputs.items():
        names = [interface.name for interface in plan.inputs]
        np.savez(folder / f"inputs_{batch}.npz", **dict(zip(names, to_artifact(x, plan.inputs), strict=True)))
    return Case(path, plan, inputs, expected)


@dataclass(frozen=True)
class Outcome:
    """What another process made of a case: results by batch size, or the step that failed and its error."""

    case: Case
    results: dict[int, dict[str, np.ndarray]]
    failed: str | None
    error: str


def outcomes(
    rows: Iterable[Network], format: str, script: str, folder: Path, environment: Mapping[str, str]
) -> dict[str, Outcome]:
    """Write all `rows` and have one process run them: `python SCRIPT FOLDER...`."""
    cases = {row.title: written(row, format, folder / f"{i:03d}") for i, row in enumerate(rows)}
    folders = [str(case.path.parent) for case in cases.values()]
    child = subprocess.run(
        [sys.executable, "-P", str(Path(__file__).with_name(script)), *folders],
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, f"exit status {child.returncode}\n{child.stderr[-4000:]}"
    return {title: _outcome(case) for title, case in cases.items()}


def _outcome(case: Case) -> Outcome:
    answer = json.loads((case.path.parent / "answer.json").read_text())
    results = {}
    if answer["failed"] is None:
        for batch in BATCHES:
            with np.load(case.path.parent / f"results_{batch}.npz") as archive:
                results[batch] = dict(archive)
    return Outcome(case, results, answer["failed"], answer["error"])


def selected(request: pytest.FixtureRequest, test: Callable) -> list[Network]:
    """The rows for which `test` is about to run."""
    chosen: Sequence[pytest.Item] = request.session.items
    return list(
        {
            item.callspec.params["row"].title: item.callspec.params["row"]
            for item in chosen
            if isinstance(item, pytest.Function) and item.function is test
        }.values()
    )
