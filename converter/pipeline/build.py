"""Build one format of a model: its rewritten program, the artifact to write, and its expected content."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from converter.artifacts.onnx_writer import refuse_projections, refuse_untranslated
from converter.artifacts.runtime.formats import Format
from converter.capture.input_domains import export_shapes
from converter.errors import UnsupportedOperatorsError
from converter.ir.lazy_tensor import ValueQueries, recording_queries
from converter.ir.program import Program
from converter.ir.sizes import symbolic_shape
from converter.lowering.planner import make_plan
from converter.memory import reusing_blocks, swept
from converter.options import ArtifactOptions
from converter.pipeline.clock import Clock
from converter.pipeline.load_model import LoadedModel
from converter.plan.builder import PlanBuilder
from converter.plan.interface import TensorInterface, to_artifact, to_torch
from converter.plan.steps import Constant
from converter.report.results import Movement, Proof, Rewrite, TraceRow
from converter.rewrites.base import Change
from converter.rewrites.pipelines import EXACT_SHIFTS, KEEP_BATCHNORM, REWRITES
from converter.verification.checked_rewrite import rewrite
from converter.verification.divergence import first_divergence, known_values, program_values, trace_plan, trace_values
from converter.verification.onnx_weights import expected_initializers, is_exporters, refillable
from converter.verification.output_proofs import Outputs, compare_function
from converter.verification.prove import _eager, _raised, groups, tensors_read
from converter.verification.reference import Reference
from converter.verification.weight_proof import Expected, compare_weights

if TYPE_CHECKING:
    from converter.artifacts.folded_constants import FoldedConstants
    from converter.artifacts.onnx_writer import Exported
    from converter.lowering.executor import PlanExecutor

MOST_KEPT = 30_000_000  # parameters up to which a model's layers and variables are kept for later models
MOVING = {"Transpose": ("Transpose",), "Gather": ("Gather", "GatherV2", "GatherNd", "GatherND", "GatherElements")}


@dataclass
class RewrittenModel:
    """A rewritten program that can be written as an artifact of one format."""

    source: LoadedModel
    format: Format
    options: ArtifactOptions
    program: Program
    changes: list[Change]
    inputs: list[TensorInterface]
    outputs: list[TensorInterface]
    plan: PlanBuilder | None = None
    _constants: dict[str, Constant] | None = None
    _kept: dict[str, PlanExecutor] | None = None
    _exported: list[tuple[Exported, Mapping[str, Expected]]] | None = None
    _folded: FoldedConstants | None = None

    def movements(self, operators: Mapping[str, int]) -> tuple[Movement, ...]:
        """Return the movements of the plan, and others that the artifact's operator counts reveal."""
        planned = self.plan.movements if self.plan else []
        found = [Movement(m.kind, m.module, m.reason, m.elements) for m in planned]
        by = "PyTorch's exporter" if self.format == "onnx" else "Keras"
        for kind, names in MOVING.items():
            more = sum(operators.get(name, 0) for name in names) - sum(m.kind == kind for m in planned)
            if more > 0:
                found.append(Movement(kind, "", f"{more} more in the graph, put there by {by}", "unknown"))
        return tuple(found)

    def stamp(self) -> dict[str, Any]:
        return {
            "schema": 1,
            "converter": own_version(),
            "format": self.format,
            "source_sha256": self.source.sha256,
            "options": vars(self.options),
            "batch": self.source.program.fixed_batch or "dynamic",
            "input_shapes": self.source.shape_texts(),
            "part": {
                **vars(self.source.part),
                "freeze_control_flow": self.source.freeze_control_flow,
                "strict": self.source.strict,
                **({"drop_keys": list(self.source.drop_keys)} if self.source.drop_keys else {}),
            },
            "inputs": [_describe_interface(i) for i in self.inputs],
            "outputs": [_describe_interface(o) for o in self.outputs],
            "choices": self.plan.choices.by_name() if self.plan else None,
            "rewrites": [[c.name, c.module, c.description] for c in self.changes if not c.routine],
        }

    def write(self, path: Path) -> None:
        if self.format == "onnx":
            self._write_onnx(path)
            return
        with swept():
            self._write_lowered(path)

    def prepare(self) -> None:
        """Do everything that comes before writing; raise what writing would raise."""
        if self.format == "onnx":
            self._in_onnx()
        else:
            self._lowered("float32")

    def _write_onnx(self, path: Path) -> None:
        from converter.artifacts import onnx_writer

        self._in_onnx().save(path, self.stamp())
        onnx_writer.name_by_content(path)

    def _in_onnx(self) -> Exported:
        if self._exported:
            ((exported, expected),) = self._exported
            exported.reload_weights({name: one.array for name, one in expected.items()})
        else:
            exported = self._export()
            self._folded = exported.folded
            if self._exported is not None:
                found = refillable(self.program, exported.initializers())
                self._exported += [(exported, found)] if found else []
        return exported

    def _export(self) -> Exported:
        from converter.artifacts import onnx_writer
        from converter.artifacts.onnx_rnn_translations import leave_whole

        dynamic = self.source.program.fixed_batch is None
        return onnx_writer.export(
            leave_whole(self.program.with_dtype(torch.float32).graph_module),
            [_for_dynamic(x) if dynamic else x for x in self.source.examples],
            self.program.inputs,
            self.program.outputs,
            export_shapes(self.source.program),
            self.options.opset,
            self.source.mappings.having("translation"),
        )

    def _folded_constants(self) -> FoldedConstants:
        """Return what the exporter folds of this program; to learn it again takes an export."""
        if self._folded is None:
            self._folded = self._export().folded
        return self._folded

    def _write_lowered(self, path: Path) -> None:
        from converter.artifacts import keras_writer, saved_model_writer

        lowered = self._lowered("float32")
        if self.format == "keras":
            keras_writer.write(lowered.model, path, self.stamp() | {"layers": lowered.paths})
        else:
            variables = {name: variable for name, (variable, _) in lowered.tensors.items()}
            if lowered.saved is None:
                lowered.saved = saved_model_writer.save(lowered.traced, variables, path, self.stamp())
            else:
                saved_model_writer.save_again(lowered.saved, variables, path, self.stamp())

    @reusing_blocks()
    def prove_function(self, reference: Reference) -> Proof:
        """Prove that the lowered graph (ONNX: the rewritten program) equals the captured one in float64 (proof 1)."""
        actual: list[Outputs] = []
        if self.plan is None:
            raised = self.program.with_dtype(torch.float64)
            for each in reference.rounds:
                tensors = [torch.from_numpy(_raised(each.arrays[name])) for name in self.program.inputs]
                actual.append(dict(zip(raised.outputs, [r.numpy() for r in raised.run(*tensors)], strict=True)))
        else:
            rounds = [[to_artifact(_raised(each.arrays[i.name]), i) for i in self.inputs] for each in reference.rounds]
            actual = [
                {o.name: to_torch(np.asarray(r), o) for o, r in zip(self.outputs, results, strict=True)}
                for results in self._results_in_float64(rounds)
            ]
        return compare_function(
            reference.float64, actual, constant=reference.constant, perturbed_runs=reference.perturbed_runs_in_float64
        )

    def _results_in_float64(self, rounds: Sequence[list[np.ndarray]]) -> Iterator[list]:
        lowered = self._lowered("float64")
        if self._kept is None:
            for together in groups(rounds):
                yield from lowered.run_once([[_eager(array) for array in arrays] for arrays in together])
            return
        for arrays in rounds:
            results = lowered.traced(*map(_eager, arrays))
            yield [results[output.name] for output in self.outputs]

    def trace(self, reference: Reference) -> list[TraceRow]:
        """Compare values along the graph on the first round, in float64.

        The plan is compared with the rewritten program; where these agree (ONNX has no plan), the rewritten program
        with the captured one.
        """
        arrays = reference.rounds[0].arrays
        inputs = [torch.from_numpy(np.ascontiguousarray(arrays[name])) for name in self.program.inputs]
        rows: list[TraceRow] = []
        if self.plan is not None:
            given = [_eager(to_artifact(_raised(arrays[i.name]), i)) for i in self.inputs]
            rows = trace_plan(self.program, self._lowered("float64"), inputs, given)
        if first_divergence(rows) is None:
            known = known_values(self.source.program, inputs, exact=True)
            before = trace_values(known, program_values(self.program, inputs))
            if not rows or first_divergence(before) is not None:
                return before
        return rows

    @reusing_blocks()
    def prove_weights(self, tensors: Mapping[str, np.ndarray], graph_as_written: bool | None = None) -> Proof:
        """Prove that the artifact holds the checkpoint's tensors, rearranged or folded (proof 3)."""
        if self.plan is None:
            tensors = dict(tensors)  # they are read several times
        expected = self.expected(tensors)
        used = {s for e in expected.values() for s in e.sources}
        if self.plan is None:  # drop the exporter's own tensors: shapes, axes, operators' arguments
            tensors = {n: t for n, t in tensors.items() if n in expected or not is_exporters(t)}
        return compare_weights(expected, tensors, self.source.tensor_names | used, self._unused(used), graph_as_written)

    def expected(self, tensors: Mapping[str, np.ndarray]) -> dict[str, Expected]:
        if self.plan is None:
            return expected_initializers(self.program, tensors, self._folded_constants)
        if self._constants is None:
            self._lowered("float32")
        origins = self.program.origins
        return {
            name: Expected(c, tuple(dict.fromkeys(s for t in c.sources for s in origins[t].sources)), c.exact)
            for name, c in (self._constants or {}).items()
        }

    def _unused(self, used: set[str]) -> dict[str, str]:
        """Return why tensors of the checkpoint are in no tensor of the artifact."""
        in_graph, live = tensors_read(self.source.program), tensors_read(self.program)
        reasons = {}
        for name in self.source.tensor_names - used:
            if name not in in_graph:
                reasons[name] = "not read by forward"
            elif name in live and self._inlined(name):
                reasons[name] = "a constant of the graph"
            elif name in self.program.inlined_sources:
                reasons[name] = self.program.inlined_sources[name]
            elif name.endswith("num_batches_tracked"):
                reasons[name] = "read in training only"
            elif self.plan is None and self._all_zeros(name):
                reasons[name] = "zeros, which PyTorch's exporter leaves out where they change nothing"
            elif self.plan is None and self._is_one(name):
                reasons[name] = "a factor of one, which PyTorch's exporter leaves out"
        return reasons

    def _all_zeros(self, name: str) -> bool:
        return any(not tensor.any() for tensor in self._captured(name))

    def _is_one(self, name: str) -> bool:
        return any(not tensor.ndim and bool(tensor == 1) for tensor in self._captured(name))

    def _captured(self, name: str) -> list[Tensor]:
        program = self.source.program
        return [program.tensor(node) for node in program.graph.find_nodes(op="get_attr") if node.target == name]

    def _inlined(self, name: str) -> bool:
        """Tell whether a tensor is a small constant in the graph itself; weights never are."""
        return not any(
            self.source.program.trainable(node)
            for node in self.source.program.graph.find_nodes(op="get_attr")
            if node.target == name
        )

    def _lowered(self, precision: str) -> PlanExecutor:
        """Lower the plan with variables of its own, which are freed with it unless kept for later models."""
        from converter.lowering.executor import PlanExecutor

        if self.plan is None:
            raise AssertionError("ONNX is not lowered")
        kept = self._kept or {}
        lowered = kept.get(precision)
        if lowered is None or not refilled(lowered):
            stock = self.format == "keras" and precision == "float32"
            lowered = PlanExecutor(self.plan, precision, stock)
            if precision == "float32" or self._kept is not None:
                lowered.prepare()
            if self._kept is not None:
                self._kept[precision] = lowered
        if precision == "float32":
            self._constants = {name: constant for name, (_, constant) in lowered.tensors.items()}
        return lowered


def build(
    source: LoadedModel, format: Format, options: ArtifactOptions, clock: Clock, known: Mapping[str, Any] | None = None
) -> RewrittenModel:
    """Rewrite and plan a model for one format, or reuse the build of an earlier model of the same architecture.

    Args:
        known: the choices of an artifact's plan, from its stamp, so that they are not searched for again.
    """
    try:
        built = _build(source, format, options, clock, known)
    except UnsupportedOperatorsError as error:
        for broken in source.mappings.broken:
            error.fix = f"{broken.fix} ({broken.what}); or {error.fix}"
        raise
    if source.debug and built.plan is not None:
        print(built.plan, file=sys.stderr)
    return built


def _build(
    source: LoadedModel, format: Format, options: ArtifactOptions, clock: Clock, known: Mapping[str, Any] | None
) -> RewrittenModel:
    if source.captured is None or known is not None:
        return _build_uncached(source, format, options, clock, known)
    kept = source.captured.built
    if (format, options) in kept:
        built, answers = kept[format, options]
        with clock("rewrite"):
            if answers.hold() and built.source.mappings.records == source.mappings.records:
                return replace(built, source=source, _constants=None)
    answers = ValueQueries()
    with recording_queries(answers):
        built = _build_uncached(source, format, options, clock, None)
    if source.parameters <= MOST_KEPT:
        built._kept, built._exported = {}, []
    kept[format, options] = replace(built, _constants=None), answers
    return built


def _build_uncached(
    source: LoadedModel, format: Format, options: ArtifactOptions, clock: Clock, known: Mapping[str, Any] | None
) -> RewrittenModel:
    chosen = [r for r in REWRITES[format] if not (options.keep_batchnorm and r in KEEP_BATCHNORM)]
    if options.exact_shifts:
        chosen = [EXACT_SHIFTS.get(r, r) for r in chosen]
    with clock("rewrite"):
        inputs, expected = source.probe or (source.examples, None)
        program, changes = rewrite(source.program, chosen, inputs, expected)
    if format == "onnx":
        refuse_untranslated(program, source.mappings)
        refuse_projections(program)
        nodes = zip(program.inputs, program.placeholders, strict=True)
        results = zip(program.outputs, program.results, strict=True)
        return RewrittenModel(
            source, format, options, program, changes,
            [_as_torch(name, node) for name, node in nodes],
            [_as_torch(name, node) for name, node in results],
        )  # fmt: skip
    with clock("plan"):
        plan = make_plan(program, options.layout, known, source.mappings)
    return RewrittenModel(source, format, options, program, changes, plan.inputs, plan.outputs, plan)


@reusing_blocks()
def refilled(lowered: PlanExecutor) -> bool:
    return lowered.reload_weights()


def own_version() -> str:
    try:
        return version("pt-convert")
    except PackageNotFoundError:
        return "0"


def _as_torch(name: str, node: torch.fx.Node) -> TensorInterface:
    shape = symbolic_shape(node.meta["val"])
    return TensorInterface(name, shape, node.meta["val"].dtype, tuple(range(len(shape))))


def _describe_interface(interface: TensorInterface) -> dict[str, Any]:
    return {
        "name": interface.name,
        "shape": [n if isinstance(n, int) else None for n in interface.shape],
        "dtype": str(interface.dtype).removeprefix("torch."),
        "order": list(interface.order),
    }


def _for_dynamic(x: Tensor) -> Tensor:
    return x if x.ndim == 0 or x.shape[0] > 1 else torch.cat([x, x])


def summarize_changes(changes: Sequence[Change]) -> list[Rewrite]:
    """Return every change of interest, and one line for each kind of routine one."""
    major = [Rewrite(c.name, c.module, c.description) for c in changes if not c.routine]
    routine: dict[str, int] = {}
    for change in changes:
        if change.routine:
            routine[change.name] = routine.get(change.name, 0) + 1
    return major + [Rewrite(name, "", f"{count} times" if count > 1 else "once") for name, count in routine.items()]
