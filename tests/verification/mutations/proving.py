"""Runs the three proofs over conversions into which a fault was planted, and says which of them caught it."""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch

from converter.artifacts.runner import Runner
from converter.artifacts.runtime.formats import Format
from converter.capture.input_domains import input_specs
from converter.capture.random_inputs import Round, draw
from converter.errors import ConversionError
from converter.ir.program import Program
from converter.lowering.planner import make_plan
from converter.options import ArtifactOptions, LoadOptions
from converter.pipeline.build import RewrittenModel, build
from converter.pipeline.clock import Clock
from converter.pipeline.load_model import LoadedModel, load_model
from converter.report.results import Proof
from converter.rewrites.pipelines import REWRITES
from converter.verification.output_proofs import compare_artifact
from converter.verification.prove import prove_function, prove_weights
from converter.verification.reference import Reference, take_reference
from converter.verification.run_artifact import run_artifact
from mutations.artifact_faults import Edit, keras_edits, tensor_edits, write_keras_tensors
from mutations.edges import EDGES
from mutations.faults import PROGRAM_FAULTS
from mutations.graph_faults import onnx_edits, saved_model_edits, write_initializers, write_variables
from mutations.module_faults import lite_edits, normalized, torch_edits, write_lite_tensors, write_torch_tensors
from mutations.planting import planted
from mutations.sequences import ARCHITECTURES

ENDINGS: dict[Format, str] = {"tf": "", "keras": ".keras", "onnx": ".onnx", "tflite": ".tflite", "torch": ""}
PROOFS = ("function", "artifact", "weights")
UNCHANGED = 1e-12  # of the output's scale: float64 that was added up in another order departs by less
PROBES = (("normal", 1.0), ("normal", 30.0), ("uniform", 1.0), ("large", 1.0), ("normal", 1e-3))
PROBE_SEED = 977  # the proofs' own inputs are drawn with 0


@dataclass(frozen=True)
class Mutant:
    """One fault at one place.

    Attributes:
        place: "mapping", "rewrite", "plan", or the artifact in which it was planted.
        change: the largest change of a float64 output on inputs that the proofs do not see, of its scale; for an
            artifact, of its own float32 outputs.
        caught: by each proof, None where the proof was not asked; what raised instead of running counts as caught.
        refused: what was raised.
    """

    architecture: str
    place: str
    fault: str
    site: str
    change: float
    caught: Mapping[str, bool | None]
    refused: str | None = None
    details: tuple[str, ...] = ()

    @property
    def equivalent(self) -> bool:
        return self.change <= UNCHANGED and not any(self.caught.values())

    @property
    def missed(self) -> bool:
        return not self.equivalent and not any(self.caught.values())


@dataclass
class Bench:
    """One architecture, captured, with PyTorch's results; runners are shared: their imports take long.

    Args:
        batch: the only one; LiteRT files are for batch 1.
    """

    name: str
    runners: Runners
    seed: int = 0
    batch: int | None = None
    source: LoadedModel = field(init=False)
    reference: Reference = field(init=False)
    probes: list[Round] = field(init=False)
    expected: list[dict[str, np.ndarray]] = field(init=False)

    def __post_init__(self) -> None:
        architecture = (ARCHITECTURES | EDGES)[self.name]
        self.source = load_model(
            architecture.model(),
            LoadOptions.of(input_shapes=architecture.shapes, seed=self.seed),
            fixed_batch=self.batch,
            clock=Clock(None),
        )
        program = self.source.program
        self.reference = take_reference(
            program, self.source.module, seed=self.seed, inputs=None, running=self.source.running
        )
        self.source.probe = self.reference.probe(program)
        self.probes = list(probes(program))
        self.expected = results(program, self.probes)

    def built(self, format: Format, program: Program) -> RewrittenModel:
        if format in ("onnx", "torch"):
            right = build(self.source, format, ArtifactOptions(), Clock(None))
            return RewrittenModel(
                self.source, format, ArtifactOptions(), program, right.changes, right.inputs, right.outputs
            )
        plan = make_plan(program)
        return RewrittenModel(self.source, format, ArtifactOptions(), program, [], plan.inputs, plan.outputs, plan)

    def rewritten(self, format: Format, program: Program) -> Program:
        """By the rewrites of `format`, without the check that each of them leaves the function as it is."""
        copied = program.copy()
        for rewrite in REWRITES[format]:
            if rewrite(copied):
                copied.cleanup()
        return copied

    def prove(self, built: RewrittenModel, with_artifact: bool, spoil: Callable[[Path], None] | None = None) -> Caught:
        """The three proofs of `built`, written, and changed by `spoil` if there is one (then without the first)."""
        caught = Caught()
        if spoil is None:
            caught.ask("function", lambda: prove_function(self.reference, built))
        if with_artifact and caught.refused is None:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "model" + ENDINGS[built.format])
                caught.ask("artifact", lambda: self._second(built, path, spoil))
                if caught.refused is None:
                    caught.ask("weights", lambda: self.weights(built))
        return caught

    def _second(self, built: RewrittenModel, path: Path, spoil: Callable[[Path], None] | None) -> Proof:
        built.write(path)
        if spoil:
            spoil(path)
        return self.compared(built, path)

    def run(self, built: RewrittenModel) -> list[Mapping[str, np.ndarray]]:
        """The opened artifact's results on the probes."""
        return list(
            run_artifact(
                self.runners[built.format], built.inputs, built.outputs, replace(self.reference, rounds=self.probes)
            )
        )

    def changed(self, built: RewrittenModel, expected: Sequence[Mapping[str, np.ndarray]]) -> float:
        """How much a spoilt artifact's results on the probes depart, which it may also refuse."""
        try:
            return change(expected, self.run(built))
        except ConversionError:
            return float("inf")

    def weights(self, built: RewrittenModel) -> Proof:
        runner = self.runners[built.format]
        return prove_weights(built, runner.tensors(), runner.graph_as_written())

    def compared(self, built: RewrittenModel, path: Path) -> Proof:
        runner = self.runners[built.format]
        runner.open(path, trusted=built.format == "torch")  # a changed source would not run
        actual = run_artifact(runner, built.inputs, built.outputs, self.reference)
        reference = self.reference
        return compare_artifact(
            reference.float64,
            reference.float32,
            actual,
            constant=reference.constant,
            perturbed_runs=reference.perturbed_runs_in(runner),
        )


@dataclass
class Caught:
    by: dict[str, bool | None] = field(default_factory=lambda: dict.fromkeys(PROOFS))
    refused: str | None = None
    details: list[str] = field(default_factory=list)

    def ask(self, proof: str, make: Callable[[], Proof]) -> None:
        try:
            found = make()
            self.by[proof] = not found.holds and not found.proves_nothing
            self.details.append(f"{proof}: {found.summary}; {'; '.join(found.failures[:2])}")
        except Exception as error:
            self.by[proof] = True
            self.refused = f"{proof}: {type(error).__name__}: {str(error)[:200]}"


class Runners:
    """One process for each format, started when it is first asked for, and again where a fault has crashed it."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._started: dict[Format, Runner] = {}

    def __getitem__(self, format: Format) -> Runner:
        if format not in self._started or not self._started[format].alive:
            self._started[format] = self._stack.enter_context(Runner(format))
        return self._started[format]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def probes(program: Program) -> Iterator[Round]:
    """Inputs on which to see whether a fault changes anything: more, wilder, and others than the proofs have."""
    specs = input_specs(program)
    for number, (kind, factor) in enumerate(PROBES):
        arrays = draw(specs, 12, (PROBE_SEED, number), kind=kind)
        scaled = {name: a * np.float32(factor) if a.dtype.kind == "f" else a for name, a in arrays.items()}
        yield Round(f"{kind} x {factor:g}", scaled)


def results(program: Program, rounds: Sequence[Round]) -> list[dict[str, np.ndarray]]:
    """In float64."""
    raised = program.with_dtype(torch.float64)
    found = []
    for each in rounds:
        inputs = [torch.from_numpy(each.arrays[name]) for name in program.inputs]
        outputs = raised.run(*(x.double() if x.dtype == torch.float32 else x for x in inputs))
        found.append(dict(zip(program.outputs, [r.detach().numpy() for r in outputs], strict=True)))
    return found


def change(expected: Sequence[Mapping[str, np.ndarray]], actual: Sequence[Mapping[str, np.ndarray]]) -> float:
    """The largest difference of an output over its scale; infinite where shapes or NaNs differ."""
    largest = 0.0
    for right, found in zip(expected, actual, strict=True):
        for name, array in right.items():
            wide, other = array.astype(np.float64), np.asarray(found[name]).astype(np.float64)
            if wide.shape != other.shape:
                return float("inf")
            finite = np.isfinite(wide) & np.isfinite(other)
            if not np.array_equal(wide[~finite], other[~finite], equal_nan=True):
                return float("inf")
            scale = np.abs(wide[finite]).max(initial=0.0) or 1.0
            largest = max(largest, float(np.abs(wide[finite] - other[finite]).max(initial=0.0) / scale))
    return largest


def chosen(sites: Iterable[Any], most: int, seed: str) -> list[Any]:
    """At most `most` of the sites, always the same ones."""
    listed = list(sites)
    if len(listed) <= most:
        return listed
    rng = np.random.default_rng(list(seed.encode()))
    return [listed[i] for i in sorted(rng.choice(len(listed), most, replace=False))]


def program_mutants(bench: Bench, place: str, most: int, with_artifact: bool, only: Any = None) -> Iterator[Mutant]:
    """Plant faults in mappings or rewrites; `PROGRAMS` says which format is written from each."""
    format = PROGRAMS[place]
    lowered = place.startswith("mapping")
    captured = bench.source.program
    start = bench.rewritten(format, captured) if lowered else captured
    right = bench.prove(bench.built(format, bench.rewritten(format, captured)), with_artifact)
    if any(right.by.values()):
        raise AssertionError(f"{bench.name}: a false alarm on what is right: {right.refused} {right.details}")
    for name, kind in PROGRAM_FAULTS.items():
        if only and name not in only:
            continue
        for node, plant in chosen(kind.sites(start), most, f"{bench.name}{place}{name}"):
            caught = Caught()
            largest = float("inf")
            try:
                wrong = planted(start, node, plant)
                if not lowered:
                    wrong = bench.rewritten(format, wrong)
                largest = change(bench.expected, results(wrong, bench.probes))
                built = bench.built(format, wrong)
            except Exception as error:
                caught.by["function"], caught.refused = True, f"{type(error).__name__}: {str(error)[:200]}"
            else:
                caught = bench.prove(built, with_artifact)
            yield Mutant(bench.name, place, name, node.name, largest, caught.by, caught.refused, tuple(caught.details))


EDITS: dict[Format, tuple[Callable[[Path], Iterator[Edit]], Callable[[Path, Mapping[str, np.ndarray]], None]]] = {
    "keras": (keras_edits, write_keras_tensors),
    "onnx": (onnx_edits, write_initializers),
    "tf": (saved_model_edits, write_variables),
    "tflite": (lite_edits, write_lite_tensors),
    "torch": (torch_edits, write_torch_tensors),
}
PLACES: dict[Format, str] = {
    "keras": "Keras file", "onnx": "ONNX file", "tf": "SavedModel", "tflite": "LiteRT file", "torch": "PyTorch module",
}  # fmt: skip
# What is lowered from a program with a fault, and what that fault is called.
PROGRAMS: dict[str, Format] = {
    "mapping": "keras", "rewrite": "onnx", "mapping, SavedModel": "tf", "mapping, LiteRT": "tflite",
    "rewrite, PyTorch": "torch",
}  # fmt: skip


def artifact_mutants(bench: Bench, format: Format, most: int, only: Any = None) -> Iterator[Mutant]:
    """Faults planted in an artifact that was written right. The first proof does not see artifacts."""
    edits, write = EDITS[format]
    with tempfile.TemporaryDirectory() as folder:
        built = build(bench.source, format, ArtifactOptions(), Clock(None))
        right = Path(folder, "right" + ENDINGS[format])
        built.write(right)
        if format == "tflite":
            normalized(right)
            built.tensors_written_anew = functools.cache(built.tensors_written_anew)  # type: ignore[method-assign]
        proof = bench.compared(built, right)
        tensors = dict(bench.runners[format].tensors())
        for one in (proof, bench.weights(built)):
            if not one.holds:
                raise AssertionError(f"{bench.name}: a false alarm on what is right: {one.summary}")
        expected = bench.run(built)
        by_fault: dict[str, list[Edit]] = {}
        for edit in (*tensor_edits(tensors, write), *edits(right)):
            by_fault.setdefault(edit.fault, []).append(edit)
        for fault, several in by_fault.items():
            if only and fault not in only:
                continue
            for edit in chosen(several, most, f"{bench.name}{format}{fault}"):
                wrong = Path(folder, "wrong" + ENDINGS[format])
                copy = shutil.copytree if right.is_dir() else shutil.copyfile
                copy(right, wrong)
                edit.spoil(wrong)
                caught, largest = Caught(), float("inf")
                caught.ask("artifact", lambda path=wrong: bench.compared(built, path))
                if caught.refused is None:
                    caught.ask("weights", lambda: bench.weights(built))
                    largest = bench.changed(built, expected)
                yield Mutant(
                    bench.name, PLACES[format], fault, edit.site, largest, caught.by, caught.refused,
                    tuple(caught.details),
                )  # fmt: skip
                if wrong.is_dir():
                    shutil.rmtree(wrong)
                else:
                    wrong.unlink()
