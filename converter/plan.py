"""The plan: every value of the program with its layout, every movement with its reason, before anything is built.

`make_plan` runs the mappings over a program. They see layouts, not arrays, and answer with steps, which `lower`
carries out later, as often and in whatever precision it likes.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import sympy
import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_map_only

from converter.errors import ConversionError, UnsupportedOperatorsError
from converter.layout import (
    Layout,
    Move,
    MustMerge,
    Run,
    Runs,
    Size,
    as_size,
    cut_axes,
    joint_order,
    product,
    refine,
)
from converter.program import Program, module_path, source_line
from converter.registry import CHANNELS_LAST, MAPPINGS

aten = torch.ops.aten
LAYOUTS = ("auto", "nhwc", "nchw")


class Unsupported(Exception):
    """Raised by a mapping that knows the operator, but not with these arguments."""


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor known at conversion: a weight, or what was computed from weights.

    Attributes:
        tensor: its values in the best precision known, dimensions in PyTorch's order.
        dtype: its type in the program.
        sources: the program's tensors it was made of.
        exact: it holds the values of its source, at most rearranged.
        trainable: it is a parameter, or a parameter rearranged.
        key: equal for equal ways of making it, so that a module called twice becomes one layer.
    """

    tensor: Tensor
    dtype: torch.dtype
    sources: tuple[str, ...]
    exact: bool
    trainable: bool
    key: Hashable

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    def rearranged(self, tensor: Tensor, *step: Hashable) -> Constant:
        return Constant(tensor, self.dtype, self.sources, self.exact, self.trainable, (self.key, *step))

    def permute(self, *order: int) -> Constant:
        return self.rearranged(self.tensor.permute(order), "permute", order)

    def reshape(self, *shape: int) -> Constant:
        return self.rearranged(self.tensor.reshape(shape), "reshape", shape)

    def take(self, dim: int, index: np.ndarray) -> Constant:
        """Reorder `dim`: position i of the result is position index[i]."""
        if np.array_equal(index, np.arange(len(index))):
            return self
        chosen = torch.from_numpy(np.ascontiguousarray(index))
        return self.rearranged(self.tensor.index_select(dim, chosen), "take", dim, tuple(index.tolist()))

    def array(self) -> np.ndarray:
        return self.tensor.detach().contiguous().numpy()

    def scalar(self) -> float | int | bool:
        return self.tensor.item()

    @property
    def is_scalar(self) -> bool:
        return self.tensor.numel() == 1 and not self.trainable


# -- steps: how arrays are made. `lower` gives each kind its meaning.


@dataclass(eq=False)
class Step:
    """One operation on arrays. `inputs` are the steps it takes its arrays from; `node` the operator it serves."""

    inputs: tuple[Step, ...]
    node: fx.Node


@dataclass(eq=False)
class InputStep(Step):
    name: str
    shape: tuple[Size, ...]
    dtype: torch.dtype


@dataclass(eq=False)
class CallStep(Step):
    function: Callable


@dataclass(eq=False)
class LayerStep(Step):
    """A Keras layer of class `kind` with `weights` in the order in which the layer creates its own."""

    kind: type
    config: dict[str, Any]
    weights: tuple[Constant, ...]
    name: str
    input_shape: tuple[Size, ...]
    trainable: bool

    @cached_property
    def key(self) -> Hashable:
        config = tuple(sorted((k, repr(v)) for k, v in self.config.items()))
        fixed = tuple(n for n in self.input_shape[1:]) if not self.weights else ()
        return self.kind, config, tuple(w.key for w in self.weights), fixed, self.name


@dataclass(eq=False)
class ConstantStep(Step):
    """A constant as an array; `inputs` holds one step whose array it may be derived from in a Keras model."""

    constant: Constant
    name: str


@dataclass(eq=False)
class MoveStep(Step):
    move: Move


@dataclass(eq=False)
class ItemStep(Step):
    position: int


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor of the program in the plan: its layout, its PyTorch type, and the step that makes its array."""

    layout: Layout
    dtype: torch.dtype
    step: Step

    @property
    def shape(self) -> tuple[Size, ...]:
        return self.layout.shape


@dataclass(frozen=True)
class Movement:
    """An activation that has to move.

    Attributes:
        kind: "Transpose" or "Gather".
        module: path of the module that asked for it.
        reason: what it asked for.
        elements: how many elements move, per example where the batch is unknown.
    """

    kind: str
    module: str
    reason: str
    elements: int


@dataclass
class Interface:
    """A graph input or output as the artefact has it: its shape in the artefact, and PyTorch's dimension per axis."""

    name: str
    shape: tuple[Size, ...]
    dtype: torch.dtype
    order: tuple[int, ...]

    @property
    def layout(self) -> str:
        if self.order == tuple(range(len(self.order))):
            return "as PyTorch"
        return "channels last"


@dataclass
class Plan:
    """What will be built, and the interface through which mappings say it."""

    program: Program
    layout: str = "auto"
    inputs: list[Interface] = field(default_factory=list)
    outputs: list[Interface] = field(default_factory=list)
    input_steps: list[InputStep] = field(default_factory=list)
    results: list[Step] = field(default_factory=list)
    movements: list[Movement] = field(default_factory=list)
    values: dict[fx.Node, Any] = field(default_factory=dict)
    node: fx.Node = None  # the operator being mapped
    _moved: dict[tuple[Step, Move], Step] = field(default_factory=dict)

    # -- what a mapping asks about its operator

    def shape(self, result: int | None = None) -> tuple[Size, ...]:
        """The operator's result shape (of result `result` where there are several)."""
        value = self.node.meta["val"]
        return sizes(value if result is None else value[result])

    @property
    def dtype(self) -> torch.dtype:
        value = self.node.meta["val"]
        return (value if isinstance(value, torch.Tensor) else value[0]).dtype

    @property
    def name(self) -> str:
        """The name for a layer made here: the module's path."""
        return module_path(self.node) or self.node.name

    # -- what a mapping answers with

    def call(self, function: Callable, *values: Value, layout: Layout, dtype: torch.dtype | None = None) -> Value:
        """A call of `function` on the values' arrays; it may use `keras.ops` only."""
        step = CallStep(tuple(v.step for v in values), self.node, function)
        return Value(layout.without_ones(), dtype or self.dtype, step)

    def calls(self, function: Callable, *values: Value, layouts: Sequence[Layout]) -> list[Value]:
        """A call that returns one array for each of `layouts`."""
        whole = CallStep(tuple(v.step for v in values), self.node, function)
        dtypes = [v.dtype for v in self.node.meta["val"]]
        return [
            Value(layout, dtype, ItemStep((whole,), self.node, i))
            for i, (layout, dtype) in enumerate(zip(layouts, dtypes, strict=True))
        ]

    def layer(
        self,
        kind: type,
        config: dict[str, Any],
        value: Value,
        *,
        layout: Layout,
        weights: Iterable[Constant | None] = (),
        name: str | None = None,
    ) -> Value:
        """A Keras layer on one value; `weights` in the order in which the layer creates them, None left out."""
        held = tuple(w for w in weights if w is not None)
        trainable = not held or any(w.trainable for w in held)
        step = LayerStep(
            (value.step,), self.node, kind, config, held, name or self.name, value.layout.physical_shape, trainable
        )
        return Value(layout, self.dtype, step)

    def elementwise(self, function: Callable, *operands: Value | Constant | float | int | bool) -> Value:
        """`function` of arrays that broadcast as PyTorch's operands do; it is called with an argument per operand.

        Operands take any layout on which they agree; where they do not, what has fewer elements moves. Scalars are
        passed on as Python numbers, other constants are arranged to fit.
        """
        rank = max(len(o.shape) for o in operands if isinstance(o, Value))
        scalars = [isinstance(o, Constant) and o.is_scalar and len(o.shape) <= rank for o in operands]
        tensors = [o for o, scalar in zip(operands, scalars, strict=True) if isinstance(o, Value | Constant) and not scalar]
        arranged, layout = self._align(tensors)
        fixed = [o.scalar() if scalar else o for o, scalar in zip(operands, scalars, strict=True)]
        holes = [any(o is t for t in tensors) for o in operands]

        def apply(*arrays: Any) -> Any:
            left = iter(arrays)
            return function(*(next(left) if hole else o for hole, o in zip(holes, fixed, strict=True)))

        return self.call(apply, *arranged, layout=layout)

    # -- requests

    def request(self, value: Value, axes: Runs, reason: str) -> Value:
        """`value` with its array brought into `axes`."""
        if axes == value.layout.axes:
            return value
        layout, move = value.layout.to(axes)
        key = (value.step, move)
        if key not in self._moved:
            self._moved[key] = self._move_step(value, layout, move, reason)
        return Value(layout, value.dtype, self._moved[key])

    def _move_step(self, value: Value, layout: Layout, move: Move, reason: str) -> Step:
        if move.order is None:
            if layout.physical_shape == value.layout.physical_shape:
                return value.step
            if isinstance(value.step, MoveStep):
                before = value.step
                joined = Move(before.move.split, before.move.order, move.merge)
                return MoveStep(before.inputs, self.node, joined)
            return MoveStep((value.step,), self.node, move)
        self.movements.append(Movement("Transpose", module_path(self.node), reason, per_example(move.elements)))
        source = value.step
        if isinstance(source, MoveStep) and source.move.order is None:
            source = source.inputs[0]
        return MoveStep((source,), self.node, move)

    def channels_last(self, value: Value) -> tuple[Value, np.ndarray]:
        """`value` with one axis a dimension, channels last in any order of their atoms.

        Returns the value, and for each physical channel the logical one it holds.
        """
        layout = value.layout
        axes = layout.channels_last()
        return self.request(value, axes, "channels last"), layout.index(layout.dims[1], axes[-1])

    def channels_in_order(self, value: Value) -> Value:
        """`value` with one axis a dimension, channels last in PyTorch's order."""
        layout = value.layout
        return self.request(value, (*(r for d, r in enumerate(layout.dims) if d != 1), layout.dims[1]), "channels last")

    def together(self, value: Value, dim: int, reason: str) -> tuple[Value, int]:
        """`value` with `dim` as one axis in PyTorch's order, and that axis."""
        axes, position = value.layout.together(dim)
        return self.request(value, axes, reason), position

    def one_axis(self, value: Value, dim: int, reason: str) -> tuple[Value, int]:
        """`value` with `dim` held as one atom and as one axis, and that axis."""
        if not value.layout.dims[dim]:
            layout, axis = value.layout.with_axis(dim, 1)
            bare = self.request(value, tuple(run for run in value.layout.axes if run), reason)
            return Value(layout, value.dtype, self._move_step(bare, layout, layout.to(layout.axes)[1], reason)), axis
        if len(value.layout.dims[dim]) > 1:
            value = self.one_atom(value, dim, reason)
        return self.together(value, dim, reason)

    def channel_axis(self, value: Value) -> tuple[Value, int, np.ndarray]:
        """`value` with its channels as one axis in any order, that axis, and the channel that each position holds."""
        axes, axis = value.layout.gathered(1)
        moved = self.request(value, axes, "channels on one axis")
        return moved, axis, value.layout.index(value.layout.dims[1], axes[axis])

    def gathers(self, value: Value, reason: str) -> None:
        """Note that `value` is gathered from."""
        self.movements.append(Movement("Gather", module_path(self.node), reason, per_example(product(value.shape))))

    def as_torch(self, value: Value, reason: str) -> Value:
        """`value` with its axes as PyTorch has its dimensions."""
        return self.request(value, value.layout.dims, reason)

    def one_atom(self, value: Value, dim: int, reason: str) -> Value:
        """`value` with `dim` held as one atom."""
        return self._fused(value, (dim,), reason)

    def reshape(self, value: Value, shape: Sequence[Size]) -> Value:
        """View as `shape`; data moves only if the view cuts across atoms."""
        while True:
            try:
                return Value(value.layout.reshape(shape), value.dtype, value.step)
            except MustMerge as cut:
                value = self._fused(value, tuple(range(cut.dims[0], cut.dims[-1] + 1)), "a view across dimensions")

    def _fused(self, value: Value, dims: tuple[int, ...], reason: str) -> Value:
        layout = value.layout
        run: Run = tuple(a for d in dims for a in layout.dims[d])
        joined = Layout(
            (*layout.dims[: dims[0]], run, *layout.dims[dims[-1] + 1 :]), layout.axes, layout.size
        )
        moved = self.request(Value(joined, value.dtype, value.step), joined.together(dims[0])[0], reason)
        fresh = max(layout.size) + 1
        size = {a: n for a, n in layout.size.items() if a not in run} | {fresh: layout.extent(run)}
        dims_now = tuple((fresh,) if r == run and r else r for r in moved.layout.dims)
        axes_now = tuple((fresh,) if r == run and r else r for r in moved.layout.axes)
        return Value(Layout(dims_now, axes_now, size), value.dtype, moved.step)

    def as_value(self, operand: Value | Constant, like: Value, axes: Runs | None = None) -> Value:
        """`operand`, a constant become an array; `like` is any value of the graph."""
        if isinstance(operand, Value):
            return operand
        layout = Layout.of(operand.shape)
        if axes is not None and axes != layout.axes:
            operand, layout = arrange(operand, layout, axes)
        return Value(layout, operand.dtype, ConstantStep((like.step,), self.node, operand, self.name))

    def join(self, values: Sequence[Value], dim: int) -> tuple[list[Value], int, Layout]:
        """Values that differ in the size of `dim` only, brought to one arrangement.

        Returns them, the physical axis to concatenate along, and the result's layout.
        """
        dim %= len(values[0].shape)
        values = [v if len(v.layout.dims[dim]) <= 1 else self.one_atom(v, dim, "concatenation") for v in values]
        refined, values = self._refined(values, ignore=dim)
        joint = next((layout.dims[dim][0] for layout in refined if layout.dims[dim]), None)
        if joint is None:
            joint = max((a for layout in refined for a in layout.size), default=-1) + 1
        total = sum((layout.extent(layout.dims[dim]) for layout in refined), start=0)

        best = None
        for base in sorted(refined, key=lambda layout: joint not in layout.size):
            order = joint_order([base.atoms, *(layout.atoms for layout in refined)])
            if joint not in order:
                following = next((a for d in range(dim + 1, len(base.dims)) for a in base.dims[d]), None)
                order = (*order, joint) if following is None else _insert_before(order, following, joint)
            axes = _own_axis(cut_axes(order, [base]), joint)
            wanted = [tuple(tuple(a for a in axis if a in r.size) for axis in axes) for r in refined]
            cost = elements(r.to(w)[1] for r, w in zip(refined, wanted, strict=True))
            if best is None or cost < best[0]:
                best = cost, axes, wanted
        _, axes, wanted = best
        parts = [
            self.request(Value(r, v.dtype, v.step), w, "concatenation")
            for r, v, w in zip(refined, values, wanted, strict=True)
        ]
        base = refined[0]
        dims = tuple((joint,) if d == dim else run for d, run in enumerate(base.dims))
        size = {a: n for layout in refined for a, n in layout.size.items()} | {joint: total}
        return parts, next(i for i, axis in enumerate(axes) if joint in axis), Layout(dims, axes, size)

    def _refined(self, values: list[Any], ignore: int | None = None) -> tuple[list[Layout], list[Any]]:
        """Common atoms for all; values (not constants) whose atoms do not fit are given one atom a dimension."""
        while True:
            layouts = [v.layout if isinstance(v, Value) else Layout.of(v.shape) for v in values]
            try:
                return refine(layouts, ignore), values
            except MustMerge as cut:
                rank = max(len(layout.dims) for layout in layouts)
                changed = []
                for v in values:
                    dim = cut.dims[0] - rank + len(v.shape)
                    if isinstance(v, Value) and dim >= 0 and len(v.layout.dims[dim]) > 1:
                        v = self.one_atom(v, dim, "operands factored differently")
                    changed.append(v)
                values = changed

    def _align(self, operands: Sequence[Value | Constant]) -> tuple[list[Value], Layout]:
        refined, held = self._refined(list(operands))
        values = [i for i, v in enumerate(held) if isinstance(v, Value)]
        best = None
        for i in sorted(values, key=lambda i: -len(refined[i].size)):
            others = [refined[j] for j in (*values, *range(len(held))) if j != i]
            order = joint_order([refined[i].atoms, *(layout.atoms for layout in others)])
            axes = cut_axes(order, [refined[i], *others])
            wanted = [_skeleton(axes, layout) for layout in refined]
            cost = elements(refined[j].to(wanted[j])[1] for j in values)
            if best is None or cost < best[0]:
                best = cost, axes, wanted
        _, axes, wanted = best
        arranged = []
        for layout, operand, target in zip(refined, held, wanted, strict=True):
            if isinstance(operand, Value):
                relabelled = Value(layout, operand.dtype, operand.step)
                arranged.append(self.request(relabelled, target, "operands in one layout"))
            else:
                constant, _ = arrange(operand, layout, target)
                like = held[values[0]].step
                arranged.append(
                    Value(layout, operand.dtype, ConstantStep((like,), self.node, constant, self.name))
                )
        rank = max(len(layout.dims) for layout in refined)
        dims = tuple(next((layout.dims[d] for layout in refined if layout.dims[d]), ()) for d in range(rank))
        size = {a: n for layout in refined for a, n in layout.size.items()}
        return arranged, Layout(dims, axes, size)


def arrange(constant: Constant, layout: Layout, axes: Runs) -> tuple[Constant, Layout]:
    """`constant`, whose dimensions are `layout.dims`, rearranged into `axes`."""
    atoms = tuple(a for run in layout.dims for a in run)
    factored = constant.reshape(*(int(layout.size[a]) for a in atoms))
    order = [atoms.index(a) for axis in axes for a in axis]
    moved = factored.permute(*order) if order != sorted(order) else factored
    return moved.reshape(*(int(layout.extent(axis)) for axis in axes)), Layout(layout.dims, axes, layout.size)


def elements(moves: Iterable[Move]) -> int:
    """Moved elements, for one example."""
    return sum(per_example(move.elements) for move in moves)


def per_example(n: Size) -> int:
    """A size with the unknown batch as one."""
    return n if isinstance(n, int) else int(n.subs(dict.fromkeys(n.free_symbols, 1)))


def sizes(tensor: Tensor) -> tuple[Size, ...]:
    """A fake tensor's shape, unknown sizes as sympy expressions."""
    return tuple(size_of(n) for n in tensor.shape)


def size_of(n: Any) -> Size:
    return as_size(sympy.sympify(n.node.expr)) if isinstance(n, torch.SymInt) else int(n)


def _insert_before(order: Run, atom: int, new: int) -> Run:
    at = order.index(atom)
    return (*order[:at], new, *order[at:])


def _own_axis(axes: Runs, atom: int) -> Runs:
    result: list[Run] = []
    for axis in axes:
        if atom in axis and len(axis) > 1:
            at = axis.index(atom)
            result += [run for run in (axis[:at], (atom,), axis[at + 1 :]) if run]
        else:
            result.append(axis)
    return tuple(result)


def _skeleton(axes: Runs, layout: Layout) -> Runs:
    """`axes` as a value holds them that broadcasts along some: leading ones it lacks are left out."""
    runs = [tuple(a for a in axis if a in layout.size) for axis in axes]
    while runs and not runs[0]:
        runs.pop(0)
    return tuple(runs)


# -- making a plan


def make_plan(program: Program, layout: str = "auto") -> Plan:
    """Map every operator of `program`.

    Args:
        layout: "auto" (inputs and outputs channels last where an operator near them asks for it), "nhwc" (all of rank
            3 to 5), "nchw" (PyTorch's own).

    Raises:
        UnsupportedOperatorsError: all operators without a mapping.
    """
    import mappings

    mappings.load()
    plan = Plan(program, layout)
    unsupported: dict[str, list[tuple[fx.Node, str]]] = {}
    for node in program.graph.nodes:
        plan.node = node
        try:
            plan.values[node] = _map_node(plan, node)
        except Unsupported as reason:
            target = f"{node.target}" + (f" ({reason})" if str(reason) else "")
            unsupported.setdefault(target, []).append((node, str(reason)))
            plan.values[node] = _placeholder_result(node)
    if unsupported:
        rows = [
            (target, len(found), ", ".join(dict.fromkeys(module_path(n) or "(model)" for n, _ in found)), source_line(found[0][0]))
            for target, found in unsupported.items()
        ]
        listed = "\n".join(f"    {target} x{count} in {paths}  {line}" for target, count, paths, line in rows)
        raise UnsupportedOperatorsError(
            f"{len(rows)} operator{'s' * (len(rows) > 1)} cannot be converted:\n{listed}", rows,
            cure="convert a part of the model without them, or add a mapping for each (a function in `mappings/`)",
        )
    return plan


def _map_node(plan: Plan, node: fx.Node) -> Any:
    if node.op == "placeholder":
        return _map_input(plan, node)
    if node.op == "get_attr":
        tensor = plan.program.tensor(node)
        origin = plan.program.origins[node.target]
        return Constant(
            tensor.detach(),
            node.meta["val"].dtype,
            (node.target,),
            origin.exact,
            plan.program.trainable(node),
            node.target,
        )
    if node.op == "output":
        return _map_outputs(plan, node)
    if isinstance(node.meta.get("val"), (torch.SymInt, torch.SymBool, torch.SymFloat, int, float, bool)):
        value = node.meta["val"]
        return size_of(value) if isinstance(value, torch.SymInt) else value
    args = tree_map_only(fx.Node, lambda n: plan.values[n], node.args)
    kwargs = tree_map_only(fx.Node, lambda n: plan.values[n], node.kwargs)
    if node.target is operator.getitem:
        return args[0][args[1]]
    if node.target not in MAPPINGS:
        raise Unsupported
    return MAPPINGS[node.target](plan, *args, **kwargs)


def _placeholder_result(node: fx.Node) -> Any:
    """Stands for the result of an operator that cannot be mapped, so that all of them are found in one go."""
    value = node.meta["val"]
    if isinstance(value, torch.Tensor):
        return Value(Layout.of(sizes(value)), value.dtype, Step((), node))
    return [Value(Layout.of(sizes(v)), v.dtype, Step((), node)) for v in value]


def _map_input(plan: Plan, node: fx.Node) -> Value:
    name = plan.program.inputs[len(plan.inputs)]
    shape = sizes(node.meta["val"])
    dtype = node.meta["val"].dtype
    rank = len(shape)
    last = 3 <= rank <= 5 and (plan.layout == "nhwc" or (plan.layout == "auto" and _feeds_channels_last(node)))
    order = (0, *range(2, rank), 1) if last else tuple(range(rank))
    layout = Layout.of(shape, order)
    step = InputStep((), node, name, layout.physical_shape, dtype)
    plan.inputs.append(Interface(name, layout.physical_shape, dtype, order))
    plan.input_steps.append(step)
    return Value(layout, dtype, step)


def _map_outputs(plan: Plan, node: fx.Node) -> list[Step]:
    source = next((v for v in plan.values.values() if isinstance(v, Value)), None)
    for name, result in zip(plan.program.outputs, node.args[0], strict=True):
        value = plan.values[result]
        if isinstance(value, Constant):
            if source is None:
                raise ConversionError("the model's outputs do not depend on any input")
            plan.program.notes.append(f"output `{name}` does not depend on the input")
            value = plan.as_value(value, source)
        rank = len(value.shape)
        last = tuple((0, *range(2, rank), 1)) if rank > 1 else (0,)
        lies = value.layout.axes == value.layout.in_order(last) and _follows_channels_last(result)
        wants_last = 3 <= rank <= 5 and (plan.layout == "nhwc" or (plan.layout == "auto" and lies))
        order = last if wants_last else tuple(range(rank))
        value = plan.request(value, value.layout.in_order(order), f"layout of output `{name}`")
        plan.outputs.append(Interface(name, value.layout.physical_shape, value.dtype, order))
        plan.results.append(value.step)
    return plan.results


PASSED_THROUGH = 64  # operators between a graph input and the one that decides its layout


def _feeds_channels_last(node: fx.Node) -> bool:
    """Whether the nearest operator that cares asks for channels last."""
    seen, ring = {node}, [node]
    for _ in range(PASSED_THROUGH):
        users = [user for n in ring for user in n.users if user not in seen]
        if any(user.target in CHANNELS_LAST for user in users):
            return True
        ring = [u for u in users if u.op == "call_function" and _keeps_dimensions(u)]
        seen.update(ring)
        if not ring:
            return False
    return False


def _follows_channels_last(node: fx.Node) -> bool:
    seen, ring = {node}, [node]
    for _ in range(PASSED_THROUGH):
        if any(n.target in CHANNELS_LAST for n in ring):
            return True
        ring = [
            m for n in ring if n.op == "call_function" and _keeps_dimensions(n) for m in n.all_input_nodes
            if m not in seen and m.op == "call_function"
        ]
        seen.update(ring)
        if not ring:
            return False
    return False


MIXING = {
    aten.view.default, aten.reshape.default, aten.permute.default, aten.transpose.int, aten.flatten.using_ints,
    aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.linear.default, aten.matmul.default,
}  # fmt: skip


def _keeps_dimensions(node: fx.Node) -> bool:
    return node.target not in MIXING
