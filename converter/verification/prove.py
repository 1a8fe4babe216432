"""Prove that a rewritten program computes what was captured, and that an artifact holds the checkpoint's weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from converter.artifacts import torch_writer
from converter.artifacts.runtime.formats import Format
from converter.artifacts.runtime.protocol import Tensors
from converter.artifacts.torch_source import ModuleSource
from converter.capture.random_inputs import Round
from converter.ir.program import Program, tensor_name
from converter.memory import reusing_blocks
from converter.plan.interface import to_artifact, to_torch
from converter.plan.text import rearranging_steps
from converter.progress import counted
from converter.report.results import Proof, TraceRow
from converter.verification.divergence import first_divergence, known_values, program_values, trace_plan, trace_values
from converter.verification.onnx_weights import expected_initializers, is_exporters
from converter.verification.output_proofs import Outputs, compare_function
from converter.verification.reference import Reference
from converter.verification.tflite_weights import expected_constants, is_of_graph
from converter.verification.weight_proof import Expected, compare_weights

if TYPE_CHECKING:
    from converter.artifacts.folded_constants import FoldedConstants
    from converter.lowering.executor import PlanExecutor
    from converter.lowering.frozen_constants import FrozenConstant
    from converter.plan.builder import PlanBuilder
    from converter.plan.steps import Constant


KEPT = 1 << 28  # bytes of an artifact's tensors that are fetched once
_MANY = 24  # rounds from which tracing the plan costs less than running it operator by operator


class Rewritten(Protocol):
    """A captured program, what the rewrites made of it, and what an artifact is written from.

    Attributes:
        tensor_names: every tensor of the checkpoint.
        plan: None for ONNX, which PyTorch's exporter writes from the rewritten program, and for PyTorch modules.
    """

    format: Format
    program: Program
    plan: PlanBuilder | None

    @property
    def captured(self) -> Program: ...
    @property
    def tensor_names(self) -> set[str]: ...

    def executor(self, precision: str) -> PlanExecutor:
        """Return the plan's layers and variables."""

    def constants(self) -> Mapping[str, Constant]:
        """Return the constant that each variable of the plan holds, by the variable's name."""

    def module_source(self, dtype: torch.dtype = torch.float32) -> ModuleSource:
        """Return the program as Python source."""

    def frozen_constants(self) -> Sequence[FrozenConstant] | None:
        """Return what the artifact's graph computes of weights alone; None where it holds them as variables."""

    def tensors_written_anew(self) -> dict[str, np.ndarray]:
        """Return the constants of a `.tflite` file that is written for this alone."""

    def folded_constants(self) -> FoldedConstants:
        """Return what PyTorch's exporter evaluates of the program."""


@reusing_blocks()
def prove_function(reference: Reference, rewritten: Rewritten) -> Proof:
    """Prove that what is written computes what was captured, in float64 (proof 1).

    That is the plan, the source of a PyTorch module, or for ONNX the rewritten program.
    """
    if rewritten.format == "torch":
        run = _run_source(rewritten.module_source(torch.float64), reference)
    elif rewritten.plan is None:
        run = _run_program(rewritten.program, reference)
    else:
        run = _run_plan(rewritten, reference)
    return compare_function(
        reference.float64,
        list(run),
        constant=reference.constant,
        perturbed_runs=reference.perturbed_runs_in_float64,
    )


def _run_program(program: Program, reference: Reference) -> Iterator[Outputs]:
    raised = program.with_dtype(torch.float64)
    for each in counted(reference.rounds):
        results = raised.run(*(torch.from_numpy(_in_float64(each.arrays[name])) for name in program.inputs))
        yield dict(zip(raised.outputs, [r.numpy() for r in results], strict=True))


def _run_source(source: ModuleSource, reference: Reference) -> Iterator[Outputs]:
    run = torch_writer.runner(source)
    for each in counted(reference.rounds):
        results = run(*(torch.from_numpy(_in_float64(each.arrays[i.name])) for i in source.inputs))
        yield {o.name: result.numpy() for o, result in zip(source.outputs, results, strict=True)}


def _run_plan(rewritten: Rewritten, reference: Reference) -> Iterator[Outputs]:
    executor = rewritten.executor("float64")
    outputs = executor.plan.outputs
    for results in _results_in_float64(executor, reference.rounds):
        yield {o.name: to_torch(np.asarray(r), o) for o, r in zip(outputs, results, strict=True)}


def _results_in_float64(executor: PlanExecutor, rounds: Sequence[Round]) -> Iterator[list]:
    def given(each: Round) -> list[Any]:
        return [_eager(to_artifact(_in_float64(each.arrays[i.name]), i)) for i in executor.plan.inputs]

    if len(rounds) > _MANY:
        executor.prepare()
    if not executor.prepared:
        for together in counted(list(groups(rounds))):
            yield from executor.run_once([given(each) for each in together])
        return
    for each in counted(rounds):
        results = executor.traced(*given(each))
        yield [results[output.name] for output in executor.plan.outputs]


def trace(reference: Reference, rewritten: Rewritten) -> list[TraceRow]:
    """Compare values along the graph on the first round, in float64.

    The plan is compared with the rewritten program; where these agree (ONNX has no plan), the rewritten program with
    the captured one.
    """
    arrays, program = reference.rounds[0].arrays, rewritten.program
    inputs = [torch.from_numpy(np.ascontiguousarray(arrays[name])) for name in program.inputs]
    rows: list[TraceRow] = []
    if rewritten.plan is not None:
        given = [_eager(to_artifact(_in_float64(arrays[i.name]), i)) for i in rewritten.plan.inputs]
        rows = trace_plan(program, rewritten.executor("float64"), inputs, given)
    if first_divergence(rows) is None:
        known = known_values(rewritten.captured, inputs, exact=True)
        before = trace_values(known, program_values(program, inputs))
        if not rows or first_divergence(before) is not None:
            return before
    return rows


@reusing_blocks()
def prove_weights(
    rewritten: Rewritten,
    tensors: Mapping[str, np.ndarray],
    graph_as_written: bool | None = None,
    just_written: bool = False,
) -> Proof:
    """Prove that the artifact holds the checkpoint's tensors, rearranged or folded (proof 3).

    LiteRT's converter renames tensors. Content alone does not tell two of one shape that are swapped, so a file is
    written anew to learn which is where.

    Args:
        tensors: of the artifact, by name.
        graph_as_written: whether the rest of its graph is as it was built; None if unknown.
        just_written: it was written by this process, so that another file would tell nothing.
    """
    frozen = rewritten.frozen_constants() is not None
    if rewritten.format == "onnx" or frozen:
        tensors = Tensors(tensors, tensors.__getitem__, KEPT)  # they are read several times
    known = tensors
    if frozen and not just_written:
        anew = rewritten.tensors_written_anew()
        if _shapes(anew) == _shapes(tensors):
            known = anew
    expected = expected_tensors(rewritten, known)
    used = {s for e in expected.values() for s in e.sources}
    if frozen:
        tensors = _selected(tensors, lambda name: name in expected or not is_of_graph(tensors[name]))
    elif rewritten.format == "onnx":  # drop the exporter's own tensors: shapes, axes, operators' arguments
        tensors = _selected(tensors, lambda name: name in expected or not is_exporters(tensors[name]))
    return compare_weights(expected, tensors, rewritten.tensor_names | used, _unused(rewritten, used), graph_as_written)


def _shapes(tensors: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _selected(tensors: Mapping[str, np.ndarray], wanted: Callable[[str], bool]) -> Mapping[str, np.ndarray]:
    return Tensors(filter(wanted, tensors), tensors.__getitem__)


def expected_tensors(rewritten: Rewritten, tensors: Mapping[str, np.ndarray]) -> dict[str, Expected]:
    """Return what the artifact's `tensors` must be, by name; only for ONNX do they decide which are expected."""
    if rewritten.format == "onnx":
        return expected_initializers(rewritten.program, tensors, rewritten.folded_constants)
    if rewritten.format == "torch":
        program, names = rewritten.program, rewritten.module_source().names
        nodes = {tensor_name(node): node for node in program.graph.find_nodes(op="get_attr")}
        return {
            name: Expected(
                program.values(nodes[target]), program.origins[target].sources, program.origins[target].exact
            )
            for target, name in names.items()
        }
    origins = rewritten.program.origins
    if (constants := rewritten.frozen_constants()) is not None:
        described = partial(rearranging_steps, program=rewritten.program)
        return expected_constants(constants, tensors, origins, described)
    return {
        name: Expected(
            c,
            tuple(dict.fromkeys(s for t in c.sources for s in origins[t].sources)),
            c.exact,
            how=", ".join(rearranging_steps(c, rewritten.program)),
        )
        for name, c in rewritten.constants().items()
    }


def _unused(rewritten: Rewritten, used: set[str]) -> dict[str, str]:
    """Return why tensors of the checkpoint are in no tensor of the artifact."""
    captured, program = rewritten.captured, rewritten.program
    exported, frozen = rewritten.format == "onnx", rewritten.frozen_constants() is not None
    exporter = "TensorFlow's converter" if frozen else "PyTorch's exporter"
    in_graph, live = tensors_read(captured), tensors_read(program)
    nodes = list(captured.graph.find_nodes(op="get_attr"))
    reasons = {}
    for name in rewritten.tensor_names - used:
        own = [node for node in nodes if node.target == name]
        held = [captured.tensor(node) for node in own if exported or frozen]
        if name not in in_graph:
            reasons[name] = "not used by forward"
        elif name in live and not any(map(captured.trainable, own)):  # weights are never small constants of the graph
            reasons[name] = "a constant of the graph"
        elif name in program.inlined_sources:
            reasons[name] = program.inlined_sources[name]
        elif name.endswith("num_batches_tracked"):
            reasons[name] = "used in training only"
        elif any(not tensor.any() for tensor in held):
            reasons[name] = f"zeros that {exporter} leaves out"
        elif any(bool((tensor == 1).all()) and (frozen or not tensor.ndim) for tensor in held):
            reasons[name] = f"a factor of one that {exporter} leaves out"
    return reasons


def tensors_read(program: Program) -> set[str]:
    """Return the checkpoint's tensors that some operator of the program reads."""
    nodes = [node for node in program.graph.find_nodes(op="get_attr") if node.users]
    return {s for node in nodes for s in program.origins[node.target].sources}


def _in_float64(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64) if array.dtype == np.float32 else array


def _eager(array: np.ndarray) -> Any:
    import tensorflow as tf

    return tf.constant(array)


def groups(rounds: Sequence[Round]) -> Iterator[list[Round]]:
    """Group rounds to run side by side, with no more samples together than the largest round has."""
    samples = [each.samples for each in rounds]
    most = max(samples, default=1)
    group: list[Round] = []
    held = 0
    for each, count in zip(rounds, samples, strict=True):
        if group and held + count > most:
            yield group
            group, held = [], 0
        group.append(each)
        held += count
    if group:
        yield group
