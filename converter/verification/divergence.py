"""Find where two sides of a model diverge: compare values along the graph, with one forward pass of each side.

Values of PyTorch and of the planned graph correspond one to one and are compared element by element in float64. Within
an artifact, or after rewrites, operators are fused and channels reordered: there a value is identified by statistics
that do not depend on the order of its elements. No value is held for long.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from converter.artifacts.runner import Runner, Traced
from converter.artifacts.runtime.protocol import FIGURES, fingerprint, slices
from converter.errors import ConversionError
from converter.ir.program import Program, module_path
from converter.plan.layout import Layout
from converter.plan.steps import Value
from converter.report.results import Proof, Statistics, TraceRow
from converter.verification.coarse_kernels import Kernel, coarse_kernels
from converter.verification.output_proofs import FUNCTION_BOUND, ROUNDING_FACTOR, Outputs
from converter.verification.perturbation import move_kernels
from converter.verification.reference import Reference
from converter.verification.tolerance import FLOOR_ULP

if TYPE_CHECKING:
    from converter.lowering.executor import PlanExecutor

aten = torch.ops.aten
NEAR = 0.05  # of the scale: statistics this close mean the same value with a fault
SURELY = 4  # times the effect of rounding
ENOUGH_SLICES = 8  # slices: among so many, the largest rounding is representative
CANCELLED = 1e-5  # of an operator's inputs: a result this small may be their rounding


def in_float64(inputs: Sequence[Tensor]) -> list[Tensor]:
    return [x.double() if x.dtype == torch.float32 else x for x in inputs]


# -- the planned graph, element by element


def trace_plan(
    program: Program, lowered: PlanExecutor, inputs: Sequence[Tensor], arrays: Sequence[Any]
) -> list[TraceRow]:
    """Compare each operator's value in a rewritten program with its value in the plan, both in float64.

    Args:
        lowered: the plan, lowered in float64.
        inputs: the program's inputs in PyTorch's layout.
        arrays: the same inputs in the plan's layout.
    """
    from converter.plan.steps import topological_order

    values = {node.name: value for node, value in lowered.plan.values.items() if isinstance(value, Value)}
    built = {id(step) for step in topological_order(lowered.plan.results)}
    names = [
        node.name
        for node in program.graph.nodes
        if node.op == "call_function" and node.name in values and id(values[node.name].step) in built
    ]
    made = lowered.iter_steps(arrays, [values[name].step for name in names])
    scales: dict[str, float] = {}
    rows = []
    wanted = set(names)
    originals = {node.name: node for node in program.graph.nodes}
    for node, result in program.with_dtype(torch.float64).walk(in_float64(inputs)):
        if isinstance(result, Tensor):
            scales[node.name] = scale_of(result.numpy())
        if node.name not in wanted:
            continue
        expected = result.numpy()
        actual = in_torch_dims(np.asarray(next(made)), values[node.name].layout, expected.shape)
        before = max((scales.get(n.name, 0.0) for n in node.all_input_nodes), default=0.0)
        error, diverges = compare_values(expected, actual, max(scales[node.name], CANCELLED * before))
        rows.append(
            TraceRow(
                module_path(node), operator_name(node), folded_into(program, originals[node.name]),
                statistics(expected), statistics(actual), error, diverges,
            )
        )  # fmt: skip
    return rows


def in_torch_dims(array: np.ndarray, layout: Layout, shape: tuple[int, ...]) -> np.ndarray:
    """Return an array of this layout with PyTorch's dimensions."""
    from converter.plan.dynamic_reshape import runtime_shape

    move = layout.to(layout.dims)[1]
    if move.order is not None:
        split = array if move.split == layout.physical_shape else array.reshape(runtime_shape(move.split))
        array = split.transpose(move.order)
    return array.reshape(shape)


def compare_values(expected: np.ndarray, actual: np.ndarray, scale: float) -> tuple[float, bool]:
    """Return the largest error, and whether it exceeds rounding; NaN and infinities must be in the same places."""
    if expected.dtype.kind in "iub" or actual.dtype.kind in "iub":
        different = expected != actual
        return float(np.abs(expected[different].astype(float) - actual[different]).max(initial=0.0)), bool(
            different.any()
        )
    finite = np.isfinite(expected)
    if not np.array_equal(expected[~finite], actual[~finite], equal_nan=True):
        return float("inf"), True
    error = float(np.abs(expected[finite] - actual[finite]).max(initial=0.0))
    return error, not error <= FUNCTION_BOUND * scale


# -- within an artifact, or after rewrites: by statistics


@dataclass(frozen=True)
class ReferenceValue:
    """A value of the captured program.

    Attributes:
        node: the node that computes it.
        fingerprint: its fingerprint in float64.
        allowed: how far rounding may move each number of it.
        scale: its largest magnitude.
    """

    node: fx.Node
    shape: tuple[int, ...]
    fingerprint: np.ndarray
    allowed: np.ndarray
    scale: float


def known_values(
    program: Program,
    inputs: Sequence[Tensor],
    *,
    exact: bool,
    kernels: Mapping[OpOverload, Kernel] | None = None,
) -> list[ReferenceValue]:
    """Return all values of the program that depend on its inputs.

    Args:
        exact: the other side computes in float64; otherwise 16 times PyTorch's own float32 rounding is allowed.
        kernels: coarse kernels of the other side's runtime, whose effect is allowed too.
    """
    behind = input_dependent(program)
    found = []
    coarse, moved = _coarse(program, inputs, kernels) if kernels and not exact else (None, {})
    single = program.with_dtype(torch.float32).walk(inputs) if not exact else None
    for node, result in program.with_dtype(torch.float64).walk(in_float64(inputs)):
        if node not in behind:
            continue
        own = result
        if single is not None:
            own = next(value for other, value in single if other.name == node.name)
        off = own
        if coarse is not None:
            off = next(value for other, value in coarse if other.name == moved.get(node.name, node.name))
        if not isinstance(result, Tensor) or node.op != "call_function":
            continue
        wide = result.numpy()
        scale, shape = scale_of(wide), tuple(wide.shape)
        allowed = FUNCTION_BOUND * scale if single is None else _rounding(wide, own.numpy(), scale)
        if coarse is not None:
            allowed = np.maximum(allowed, _rounding(wide, off.numpy(), scale))
        found.append(
            ReferenceValue(node, shape, fingerprint(wide), np.broadcast_to(allowed, fingerprint(wide).shape), scale)
        )
    originals = {node.name: node for node in program.graph.nodes}
    return [replace(one, node=originals[one.node.name]) for one in found]


def _coarse(
    program: Program, inputs: Sequence[Tensor], kernels: Mapping[OpOverload, Kernel]
) -> tuple[Iterator[tuple[fx.Node, Any]], dict[str, str]]:
    """Return the program's values with each kernel's error added, and the names of the nodes with the moved values."""
    program = program.copy()
    moved = move_kernels(program, kernels, np.random.default_rng(0), 1)
    return program.with_dtype(torch.float32).walk(inputs), moved


def _rounding(wide: np.ndarray, own: np.ndarray, scale: float) -> np.ndarray:
    """Return 16 times PyTorch's own rounding: of an element for the figures, of all slices of an axis for its means."""
    exact, single = fingerprint(wide), fingerprint(own)
    with np.errstate(invalid="ignore"):
        numbers = wide if wide.dtype.kind in "fc" else wide.astype(np.float64)
        element = float(np.abs(np.nan_to_num(numbers - own.astype(numbers.dtype))).max(initial=0.0))
        apart = np.nan_to_num(np.abs(exact - single))
    allowed = np.full(exact.shape, max(element, FLOOR_ULP * _ulp(scale)))
    for _, start, stop in slices(wide.shape):
        middle = (start + stop) // 2
        for first, last in ((start, middle), (middle, stop)):
            if last - first >= ENOUGH_SLICES:
                most = float(np.abs(np.nan_to_num(exact[first:last])).max())
                allowed[first:last] = max(float(apart[first:last].max()), FLOOR_ULP * _ulp(most))
    return np.asarray(ROUNDING_FACTOR * allowed)


def _ulp(scale: float) -> float:
    return float(np.spacing(np.float32(scale)))


def input_dependent(program: Program) -> Names:
    """Return the names of the nodes that depend on an input's values."""
    behind = Names()
    for node in program.graph.nodes:
        if node.op == "placeholder" or (
            node.target is not aten.sym_size.int and any(n in behind for n in node.all_input_nodes)
        ):
            behind.add(node)
    return behind


class Names(set):
    """Nodes by name, which a program's copies in other precisions share."""

    def add(self, node: fx.Node) -> None:
        super().add(node.name)

    def __contains__(self, node: object) -> bool:
        return isinstance(node, fx.Node) and super().__contains__(node.name)


def trace_values(known: Sequence[ReferenceValue], values: Iterable[Traced]) -> list[TraceRow]:
    """Match each value of the program with the value of the other side that has its statistics.

    A value that is missing diverges, unless a value that depends on it is there: then the operator was fused, and is
    right. But if the other side has an unmatched value that is nearly the same, fusion hides a small fault.
    """
    by_size: dict[int, list[Traced]] = {}
    for value in values:
        by_size.setdefault(math.prod(value.shape), []).append(value)
    same = {one.node.name: _nearest(one, by_size.get(math.prod(one.shape), [])) for one in known}
    there = {one.node.name: match.value for one in known if (match := same[one.node.name]) and match.multiple <= 1}
    claimed = {value.name for value in there.values()}
    right = Names()
    for node in reversed(known[0].node.graph.nodes) if known else ():  # including nodes whose result is several tensors
        if node.name in there or any(user in right for user in node.users):
            right.add(node)
    rows = []
    for one in known:
        found = same[one.node.name] if one.node.name in there else None
        diverges = False
        if found is None:
            left = [v for v in by_size.get(math.prod(one.shape), []) if v.name not in claimed and _alike(v, one)]
            found = _nearest(one, left)
            near = found is not None and found.multiple > SURELY and found.error <= NEAR * one.scale
            diverges = near or one.node not in right
            found = found if diverges else None
        held = found.value if found else None
        rows.append(
            TraceRow(
                module_path(one.node), operator_name(one.node), folded_with(one.node, there),
                _statistics(one.shape, one.fingerprint), _statistics(held.shape, held.fingerprint) if held else None,
                found.error if found else None, diverges, held.name if held else "",
            )
        )  # fmt: skip
    return rows


@dataclass(frozen=True)
class _Match:
    """How far a value's fingerprint is from another's: the largest error, and its largest multiple of the bound."""

    value: Traced
    error: float
    multiple: float


def _nearest(one: ReferenceValue, candidates: Sequence[Traced]) -> _Match | None:
    return min((_match(one, value) for value in candidates), key=lambda match: match.multiple, default=None)


def _match(one: ReferenceValue, value: Traced) -> _Match:
    """Compare a value's figures, then each axis with the axes of the same size, in any position."""
    pairs = [(slice(0, len(FIGURES)), slice(0, len(FIGURES)))]
    theirs = list(slices(value.shape))
    best = [_apart(one, value, *pairs[0])]
    for axis, start, stop in slices(one.shape):
        fitting = [slice(a, b) for other, a, b in theirs if value.shape[other] == one.shape[axis]]
        if fitting:
            best.append(min((_apart(one, value, slice(start, stop), other) for other in fitting), key=lambda e: e[1]))
    return _Match(value, max(error for error, _ in best), max(multiple for _, multiple in best))


def _apart(one: ReferenceValue, value: Traced, ours: slice, theirs: slice) -> tuple[float, float]:
    a, b, allowed = one.fingerprint[ours], value.fingerprint[theirs], one.allowed[ours]
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(all="ignore"):
        errors = np.where(same, 0.0, np.abs(a - b))
        errors = np.where(np.isnan(errors), np.inf, errors)
        multiples = np.where(errors > 0, errors / allowed, 0.0)
    return float(errors.max(initial=0.0)), float(multiples.max(initial=0.0))


def _alike(value: Traced, one: ReferenceValue) -> bool:
    """Tell whether both have the same sizes, in any order."""
    return sorted(n for n in value.shape if n > 1) == sorted(n for n in one.shape if n > 1)


def program_values(program: Program, inputs: Sequence[Tensor]) -> Iterator[Traced]:
    """Yield the values of a rewritten program, in float64."""
    for node, result in program.with_dtype(torch.float64).walk(in_float64(inputs)):
        if node.op == "call_function" and isinstance(result, Tensor):
            yield Traced(node.name, operator_name(node), tuple(result.shape), fingerprint(result.numpy()))


def trace_artifact(
    program: Program, arrays: Mapping[str, np.ndarray], runner: Runner, given: Mapping[str, np.ndarray]
) -> list[TraceRow]:
    """Compare the captured program's values with those within an opened artifact.

    Args:
        arrays: inputs by name, in PyTorch's layout.
        given: the same inputs in the artifact's layout.
    """
    inputs = [torch.from_numpy(np.ascontiguousarray(arrays[name])) for name in program.inputs]
    kernels = coarse_kernels(runner)
    return trace_values(known_values(program, inputs, exact=False, kernels=kernels), runner.trace(given))


def worst_round(reference: Reference, results: Sequence[Outputs]) -> Mapping[str, np.ndarray]:
    """Return the inputs on which an artifact's results are furthest from PyTorch's, by PyTorch's own rounding."""

    def badness(number: int) -> float:
        worst = 0.0
        for name, found in results[number].items():
            wide, own = (np.asarray(outputs[number][name]) for outputs in (reference.float64, reference.float32))
            if found.shape != wide.shape:
                return float("inf")
            with np.errstate(all="ignore"):
                error = float(np.abs(found.astype(np.float64) - wide.astype(np.float64)).max(initial=0.0))
                rounding = float(np.abs(own.astype(np.float64) - wide.astype(np.float64)).max(initial=0.0))
            multiple = error / max(rounding, FLOOR_ULP * _ulp(scale_of(wide)), 1e-30)
            worst = max(worst, float("inf") if np.isnan(multiple) else multiple)
        return worst

    return reference.rounds[max(range(len(results)), key=badness)].arrays


# -- shared by both


def disagrees(proof: Proof) -> bool:
    return not proof.holds and not proof.proves_nothing


def locate_divergence(proof: Proof, trace: Callable[[], list[TraceRow]]) -> tuple[Proof, list[TraceRow]]:
    """Add the place of the divergence to a proof that does not hold, and return it with all compared values."""
    try:
        rows = trace()
    except ConversionError as error:
        reason = f"where the values part could not be found: {error.what}"
        return (replace(proof, failures=(*proof.failures, reason)) if disagrees(proof) else proof), []
    row = first_divergence(rows)
    if row is None or not disagrees(proof):
        return proof, rows
    return replace(proof, divergence=row, first_difference=row.module or "the model itself"), rows


def first_divergence(rows: Sequence[TraceRow]) -> TraceRow | None:
    """Return the first value that differs, or None."""
    return next((row for row in rows if row.diverges), None)


def by_module(rows: Sequence[TraceRow]) -> tuple[TraceRow, ...]:
    """Reduce the rows to one per module: its first value that differs, else its last value.

    Modules are in the order of these rows.
    """
    kept: dict[str, TraceRow] = {}
    for row in rows:
        before = kept.get(row.module)
        if before is None or not before.diverges:
            kept.pop(row.module, None)
            kept[row.module] = row
    return tuple(kept.values())


def folded_into(program: Program, node: fx.Node) -> tuple[str, ...]:
    """Return the modules whose tensors were folded into this operator's."""
    own = module_path(node)
    sources = [
        source.rpartition(".")[0]
        for n in node.all_input_nodes
        if n.op == "get_attr"
        for source in program.origins[str(n.target)].sources
    ]
    return tuple(path for path in dict.fromkeys(sources) if path not in (own, ""))


def folded_with(node: fx.Node, there: Collection[str]) -> tuple[str, ...]:
    """Return the other one of a batch norm and the operator before it, if the artifact may only hold their result."""
    norm, users = aten.batch_norm.default, list(node.users)
    if node.target is norm:
        before = node.all_input_nodes[0]
        return (module_path(before),) if before.op == "call_function" and before.name not in there else ()
    return (module_path(users[0]),) if len(users) == 1 and users[0].target is norm and node.name not in there else ()


def operator_name(node: fx.Node) -> str:
    return str(node.target).rpartition(".")[0] if "." in str(node.target) else str(node.target)


def scale_of(array: np.ndarray) -> float:
    if array.dtype.kind not in "fc":
        return 0.0
    return float(np.abs(array[np.isfinite(array)]).max(initial=0.0))


def statistics(array: np.ndarray) -> Statistics:
    return _statistics(array.shape, fingerprint(array))


def _statistics(shape: Sequence[int], found: np.ndarray) -> Statistics:
    mean, deviation, least, greatest = (float(figure) for figure in found[:4])
    return Statistics(tuple(shape), mean, deviation, least, greatest)
