"""The plan: every value of the program with its layout, every movement with its reason, before anything is built.

Mappings talk to `PlanBuilder`. They see layouts, not arrays, and answer with steps. The executor carries these out
later, in any precision and as often as needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import fx

from converter.ir.program import Program, module_path
from converter.ir.sizes import Size, per_example, product, symbolic_shape
from converter.plan.broadcast import align_axes, join_axes
from converter.plan.dynamic_reshape import is_possible
from converter.plan.interface import TensorInterface
from converter.plan.layout import Layout, Move, NeedsMerge, Run, Runs, refine
from converter.plan.lazy_keras import LazyMember
from converter.plan.registry import Registry
from converter.plan.steps import (
    CallStep,
    Constant,
    ConstantStep,
    InputStep,
    ItemStep,
    LayerStep,
    Movement,
    MoveStep,
    Step,
    Unsupported,
    Value,
    arrange,
)
from converter.plan.text import plan_text

Cost: TypeAlias = tuple[int, int, float]  # compared in this order: see `PlanBuilder.cost`


@dataclass(frozen=True)
class Choices:
    """The free choices of a plan, made to save movements elsewhere.

    Attributes:
        eager_moves: operators whose result is brought into PyTorch's order at once.
        channels_last_inputs: graph inputs to hold channels last, besides those for which a nearby operator asks it.
        channel_orders: for producers of channels, the factors of their number, and the order in which to emit them.
    """

    eager_moves: frozenset[fx.Node] = frozenset()
    channels_last_inputs: frozenset[fx.Node] = frozenset()
    channel_orders: Mapping[fx.Node, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)

    def by_name(self) -> dict[str, Any]:
        """Return the choices for an artifact's stamp, from which `from_names` restores them without a search."""
        return {
            "eager_moves": sorted(node.name for node in self.eager_moves),
            "channels_last_inputs": sorted(node.name for node in self.channels_last_inputs),
            "channel_orders": {
                node.name: [list(factors), list(order)] for node, (factors, order) in self.channel_orders.items()
            },
        }

    @classmethod
    def from_names(cls, program: Program, names: Mapping[str, Any]) -> Choices | None:
        """Restore choices, or return None if the program lacks these nodes or another version made them."""
        nodes = {node.name: node for node in program.graph.nodes}
        if names.keys() != cls().by_name().keys():
            return None
        if not nodes.keys() >= {*names["eager_moves"], *names["channels_last_inputs"], *names["channel_orders"]}:
            return None
        return cls(
            frozenset(nodes[name] for name in names["eager_moves"]),
            frozenset(nodes[name] for name in names["channels_last_inputs"]),
            {nodes[name]: (tuple(factors), tuple(order)) for name, (factors, order) in names["channel_orders"].items()},
        )


@dataclass
class PlanBuilder:
    """The plan to build, and the interface through which mappings describe it.

    Attributes:
        open_axes: returns a value with an axis for each factor that dynamic sizes share, by gathers.
        registry: the mappings that it is made with.
        stock: for a Keras file, whose layers are those that its reader expects. Otherwise a layer may take several axes
            as one.
    """

    program: Program
    layout: str
    choices: Choices
    open_axes: Callable[[PlanBuilder, Value], Value]
    registry: Registry
    stock: bool = True
    inputs: list[TensorInterface] = field(default_factory=list)
    outputs: list[TensorInterface] = field(default_factory=list)
    input_steps: list[InputStep] = field(default_factory=list)
    results: list[Step] = field(default_factory=list)
    movements: list[Movement] = field(default_factory=list)
    values: dict[fx.Node, Any] = field(default_factory=dict)
    impossible: list[fx.Node] = field(default_factory=list)
    node: fx.Node = field(init=False)  # the operator being mapped
    _moved: dict[tuple[Step, Move], Step] = field(default_factory=dict)
    _counted: tuple[int, int, float] = (0, 0, 0.0)  # movements so far, their elements and their cost

    def __str__(self) -> str:
        return plan_text(self)

    # -- what a mapping asks about its operator

    def shape(self, result: int | None = None) -> tuple[Size, ...]:
        """Return the operator's result shape (of result `result` if there are several)."""
        value = self.node.meta["val"]
        return symbolic_shape(value if result is None else value[result])

    @property
    def cost(self) -> Cost:
        """Return the number of impossible operators, then the moved elements and their cost over all movements."""
        count, elements, cost = self._counted
        for movement in self.movements[count:]:
            elements, cost = elements + movement.elements, cost + movement.cost
        self._counted = len(self.movements), elements, cost
        return len(self.impossible), elements, cost

    @property
    def dtype(self) -> torch.dtype:
        value = self.node.meta["val"]
        return (value if isinstance(value, torch.Tensor) else value[0]).dtype

    @property
    def name(self) -> str:
        """Return the name for a layer made here: the module's path."""
        return module_path(self.node) or self.node.name

    # -- what a mapping answers with

    def call(self, function: Callable, *values: Value, layout: Layout, dtype: torch.dtype | None = None) -> Value:
        """Call `function`, which may use `keras.ops` only, on the values' arrays."""
        step = CallStep(tuple(v.step for v in values), self.node, function)
        return Value(layout.without_ones(), dtype or self.dtype, step)

    def calls(self, function: Callable, *values: Value, layouts: Sequence[Layout]) -> list[Value]:
        """Call `function`, which returns one array for each of `layouts`."""
        whole = CallStep(tuple(v.step for v in values), self.node, function)
        dtypes = [v.dtype for v in self.node.meta["val"]]
        return [
            Value(layout, dtype, ItemStep((whole,), self.node, i))
            for i, (layout, dtype) in enumerate(zip(layouts, dtypes, strict=True))
        ]

    def layer(
        self,
        kind: type | LazyMember,
        config: dict[str, Any],
        value: Value,
        *,
        layout: Layout,
        weights: Iterable[Constant | None] = (),
        name: str | None = None,
        states: Sequence[Value] = (),
        statistics: bool = False,
        arguments: dict[str, Any] | None = None,
        extra_inputs: dict[str, Value] | None = None,
    ) -> Value:
        """Apply a Keras layer to one value; `weights` come in the order in which the layer creates them, None omitted.

        Args:
            states: the initial states of a recurrent layer, if they are not zero.
            statistics: the layer has no parameter and still learns from the data that it sees in training.
            arguments: of this call of the layer, besides its inputs.
            extra_inputs: its inputs besides the first, by the names that its `call` and `build` use.
        """
        if not value.dtype.is_floating_point and not kind.__name__.endswith("Embedding"):
            raise Unsupported("integers, which the Keras layer does not compute with")
        held = tuple(w for w in weights if w is not None)
        trainable = not held or statistics or any(w.learns for w in held)
        others = extra_inputs or {}
        inputs = (value.step, *(other.step for other in (*states, *others.values())))
        step = LayerStep(
            inputs, self.node, kind, config, held, name or self._owner(held), value.layout.physical_shape, trainable,
            arguments or {}, {name: other.layout.physical_shape for name, other in others.items()},
        )  # fmt: skip
        return Value(layout, self.dtype, step)

    def _owner(self, weights: Sequence[Constant]) -> str:
        """Return the name for a layer: the module of its first weight if that is within the caller, else the caller.

        The projections of an attention are within it, for example.
        """
        caller = module_path(self.node)
        for source in weights[0].sources[:1] if weights else ():
            owner = source.rpartition(".")[0]
            if self.program.origins[source].sources == (source,) and owner.startswith(f"{caller}." if caller else ""):
                return owner or self.name
        return self.name

    def elementwise(self, function: Callable, *operands: Value | Constant | float | int | bool) -> Value:
        """Call `function`, with one argument per operand, on arrays that broadcast as PyTorch's operands do.

        Operands take any layout that they agree on; if they disagree, the one with fewer elements moves. Scalars are
        passed on as Python numbers, other constants are arranged to fit.
        """
        if not any(isinstance(o, Value) for o in operands):
            raise Unsupported("numbers computed from sizes")
        rank = max(len(o.shape) for o in operands if isinstance(o, Value))
        scalars = [isinstance(o, Constant) and o.is_scalar and len(o.shape) <= rank for o in operands]
        tensors = [
            o for o, scalar in zip(operands, scalars, strict=True) if isinstance(o, Value | Constant) and not scalar
        ]
        arranged, layout = self._align(tensors)
        fixed = [
            o.scalar() if isinstance(o, Constant) and scalar else o for o, scalar in zip(operands, scalars, strict=True)
        ]
        holes = [any(o is t for t in tensors) for o in operands]

        def apply(*arrays: Any) -> Any:
            left = iter(arrays)
            return function(*(next(left) if hole else o for hole, o in zip(holes, fixed, strict=True)))

        return self.call(apply, *arranged, layout=layout)

    def choose_channel_order(self, layout: Layout, dim: int) -> tuple[Layout, np.ndarray]:
        """Choose the order in which a producer emits its channels, which are new and held as one atom in `layout`.

        Returns the layout of the result, and the channel to put at each position: permute the kernel's output axis and
        the bias by it.
        """
        channels = int(layout.extent(layout.dims[dim]))
        factors, order = self.choices.channel_orders.get(self.node, ((), ()))
        if math.prod(factors) != channels or not factors:  # none, or those of another model's stamp
            return layout, np.arange(channels)
        axis = layout.axes.index(layout.dims[dim])
        for factor in factors[:0:-1]:  # split the minor factors off, last first
            major = layout.dims[dim][0]
            layout, _ = layout.factor(major, int(layout.size[major]) // factor)
        run = layout.dims[dim]
        held = tuple(run[i] for i in order)
        axes = (*layout.axes[:axis], held, *layout.axes[axis + 1 :])
        return Layout(layout.dims, axes, layout.size), layout.index(run, held)

    # -- requests

    def relayout(self, value: Value, axes: Runs, reason: str) -> Value:
        """Return `value` with its array brought into `axes`."""
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
                joined = replace(before.move, merge=move.merge)
                if is_possible(joined):
                    return MoveStep(before.inputs, self.node, joined)
            if not is_possible(move):
                return self._opened(value, layout, reason)
            return MoveStep((value.step,), self.node, move)
        if not is_possible(move):
            return self._opened(value, layout, reason)
        self.movements.append(
            Movement(move.kind, module_path(self.node), reason, per_example(move.elements), move.cost, self.node)
        )
        source = value.step
        shape_is_free = sum(not isinstance(n, int) for n in move.split) <= 1
        if isinstance(source, MoveStep) and source.move.order is None and shape_is_free:
            source = source.inputs[0]
        return MoveStep((source,), self.node, move)

    def _opened(self, value: Value, layout: Layout, reason: str) -> Step:
        """Move from axes that share no dynamic sizes, as the move from the current axes cannot be made."""
        apart = self.open_axes(self, value)
        _, move = apart.layout.to(layout.axes)
        if not is_possible(move, interleaved=True):
            self.impossible.append(self.node)
            move = replace(move, order=move.order or (0,))  # so that the search tries another plan
        self.movements.append(
            Movement("Transpose", module_path(self.node), reason, per_example(move.elements), move.cost, self.node)
        )
        return MoveStep((apart.step,), self.node, move)

    def channels_last(self, value: Value) -> tuple[Value, np.ndarray]:
        """Return `value` with one axis per dimension, channels last, their atoms in any order.

        Also returns the logical channel that each physical channel holds.
        """
        layout = value.layout
        axes = layout.channels_last()
        return self.relayout(value, axes, "channels last"), self._channels(layout, axes[-1])

    def channels_in_order(self, value: Value) -> Value:
        """Return `value` with one axis per dimension, channels last in PyTorch's order."""
        layout = value.layout
        return self.relayout(
            value, (*(r for d, r in enumerate(layout.dims) if d != 1), layout.dims[1]), "channels last"
        )

    def dim_on_one_axis(self, value: Value, dim: int, reason: str) -> tuple[Value, int]:
        """Return `value` with `dim` as one axis in PyTorch's order, and that axis."""
        axes, position = value.layout.dim_on_one_axis(dim)
        return self.relayout(value, axes, reason), position

    def isolate_axis(self, value: Value, dim: int, reason: str) -> tuple[Value, int]:
        """Return `value` with `dim` held as one atom and as one axis, and that axis."""
        if not value.layout.dims[dim]:
            layout, axis = value.layout.insert_axis(dim, 1)
            bare = self.relayout(value, tuple(run for run in value.layout.axes if run), reason)
            move = replace(layout.to(layout.axes)[1], given=bare.layout.physical_shape)
            return Value(layout, value.dtype, self._move_step(bare, layout, move, reason)), axis
        if len(value.layout.dims[dim]) > 1:
            value = self.one_atom(value, dim, reason)
        return self.dim_on_one_axis(value, dim, reason)

    def channel_axis(self, value: Value) -> tuple[Value, int, np.ndarray]:
        """Return `value` with its channels as one axis in any order, that axis, and the channel at each position."""
        axes, axis = value.layout.dim_gathered(1)
        moved = self.relayout(value, axes, "channels on one axis")
        return moved, axis, self._channels(value.layout, axes[axis])

    def _channels(self, layout: Layout, axis: Run) -> np.ndarray:
        """Return the logical channel at each position of a physical axis."""
        if not all(isinstance(layout.size[atom], int) for atom in axis):
            raise Unsupported("a dynamic number of channels")
        return layout.index(layout.dims[1], axis)

    def count_gather(self, value: Value, reason: str) -> None:
        """Record a gather from `value`."""
        count = per_example(product(value.shape))
        self.movements.append(Movement("Gather", module_path(self.node), reason, count, 1.5 * count, self.node))

    def in_torch_order(self, value: Value, reason: str) -> Value:
        """Return `value` with its axes in the order of PyTorch's dimensions."""
        return self.relayout(value, value.layout.dims, reason)

    def one_atom(self, value: Value, dim: int, reason: str) -> Value:
        """Return `value` with `dim` held as one atom."""
        return self._fused(value, (dim,), reason)

    def reshape(self, value: Value, shape: Sequence[Size]) -> Value:
        """View as `shape`; data moves only if the view cuts across atoms."""
        while True:
            try:
                return Value(value.layout.reshape(shape), value.dtype, value.step)
            except NeedsMerge as cut:
                value = self._fused(value, tuple(range(cut.dims[0], cut.dims[-1] + 1)), "a view across dimensions")

    def _fused(self, value: Value, dims: tuple[int, ...], reason: str) -> Value:
        layout = value.layout
        run: Run = tuple(a for d in dims for a in layout.dims[d])
        joined = Layout((*layout.dims[: dims[0]], run, *layout.dims[dims[-1] + 1 :]), layout.axes, layout.size)
        moved = self.relayout(Value(joined, value.dtype, value.step), joined.dim_on_one_axis(dims[0])[0], reason)
        fresh = max(layout.size) + 1
        size = {a: n for a, n in layout.size.items() if a not in run} | {fresh: layout.extent(run)}
        dims_now = tuple((fresh,) if r == run and r else r for r in moved.layout.dims)
        axes_now = tuple((fresh,) if r == run and r else r for r in moved.layout.axes)
        return Value(Layout(dims_now, axes_now, size), value.dtype, moved.step)

    def as_value(self, operand: Value | Constant, like: Value, axes: Runs | None = None) -> Value:
        """Return `operand`, a constant converted to an array; `like` is any value of the graph."""
        if isinstance(operand, Value):
            return operand
        layout = Layout.of(operand.shape)
        if axes is not None and axes != layout.axes:
            operand, layout = arrange(operand, layout, axes)
        return Value(layout, operand.dtype, ConstantStep((like.step,), self.node, operand, self.name))

    def join(self, values: Sequence[Value], dim: int) -> tuple[list[Value], int, Layout]:
        """Bring values that differ only in the size of `dim` into one arrangement.

        Returns them, the physical axis to concatenate along, and the result's layout.
        """
        dim %= len(values[0].shape)
        values = [v if len(v.layout.dims[dim]) <= 1 else self.one_atom(v, dim, "concatenation") for v in values]
        refined, values = self._refined(values, ignore=dim)
        wanted, axis, layout = join_axes(refined, dim)
        parts = [
            self.relayout(Value(r, v.dtype, v.step), w, "concatenation")
            for r, v, w in zip(refined, values, wanted, strict=True)
        ]
        return parts, axis, layout

    def common_atoms(self, values: Sequence[Value | Constant]) -> tuple[list[Layout], list[Any]]:
        """Return layouts in common atoms for values of one rank that broadcast against each other, and the values."""
        return self._refined(list(values))

    def _refined(self, values: list[Any], ignore: int | None = None) -> tuple[list[Layout], list[Any]]:
        """Find atoms common to all; a value (not a constant) whose atoms do not fit gets one atom per dimension."""
        while True:
            layouts = [v.layout if isinstance(v, Value) else Layout.of(v.shape) for v in values]
            try:
                return refine(layouts, ignore), values
            except NeedsMerge as cut:
                rank = max(len(layout.dims) for layout in layouts)
                changed = []
                for v in values:
                    dim = cut.dims[0] - rank + len(v.shape)
                    if isinstance(v, Value) and dim >= 0 and len(v.layout.dims[dim]) > 1:
                        v = self.one_atom(v, dim, "operands factored differently")
                    changed.append(v)
                if all(after is before for after, before in zip(changed, values, strict=True)):
                    raise Unsupported("sizes that depend on values and may not agree") from None
                values = changed

    def _align(self, operands: Sequence[Value | Constant]) -> tuple[list[Value], Layout]:
        refined, held = self._refined(list(operands))
        values = [i for i, v in enumerate(held) if isinstance(v, Value)]
        wanted, result = align_axes(refined, values)
        arranged = []
        for layout, operand, target in zip(refined, held, wanted, strict=True):
            if isinstance(operand, Value):
                relabeled = Value(layout, operand.dtype, operand.step)
                arranged.append(self.relayout(relabeled, target, "operands in one layout"))
            else:
                constant, _ = arrange(operand, layout, target)
                like = held[values[0]].step
                arranged.append(Value(layout, operand.dtype, ConstantStep((like,), self.node, constant, self.name)))
        return arranged, result
