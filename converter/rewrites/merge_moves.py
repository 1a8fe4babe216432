"""Move data once between two operators that compute, and not at all where they compute alike in any order (ONNX).

    permute(reshape(transpose(x)))               -> reshape, one permute, reshape
    transpose(linear(transpose(x)))              -> linear(x)
    unbind(permute(reshape(linear(x)))), each permuted again
                                                 -> split(linear(x)), each permuted once
    reverse(linear(attention(partition(x))))     -> windows that are cut and put together within attention's own moves

Views, permutations and the parts of a dimension rearrange a `Layout` and nothing else. A linear layer, a norm of the
last dimension and what is computed element by element run on the array as it lies. Only where another operator reads
the value, the array is moved into that order. What would not take fewer or smaller moves stays as it is.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, fx

from converter.ir.aten import bound_arguments, first_input, is_pointwise, read_item
from converter.ir.program import Program, module_path
from converter.ir.sizes import Size, per_example, product, symbolic_shape
from converter.plan.layout import Layout, Move, NeedsMerge, Run, Runs
from converter.rewrites.base import Change

aten = torch.ops.aten
RESHAPES = {
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints,
    aten.unflatten.int, aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims,
}  # fmt: skip
PERMUTATIONS = {aten.permute.default, aten.transpose.int, aten.t.default, aten.mT.default, aten.movedim.int}
COPIES = {aten.clone.default, aten.contiguous.default}
PARTS = {aten.select.int, aten.unbind.int}
PRODUCTS = {aten.matmul.default, aten.bmm.default}  # the runtime reads an operand whose last two dimensions are swapped
MOST_PARTS = 8
MOST_ATTEMPTS = 8
# Measured with ONNX Runtime on one thread, five shapes of attention: 1 to 2 ns for an element if one axis moves or the
# last one stays, 8 to 11 ns otherwise. It joins no axes by itself.
SLOW = 7
OVERHEAD = 2000


@dataclass(frozen=True)
class Given:
    """The result of a node, as it is."""

    node: fx.Node

    @property
    def root(self) -> fx.Node:
        return self.node

    @property
    def shape(self) -> tuple[Size, ...]:
        return symbolic_shape(self.node.meta["val"])


@dataclass(frozen=True)
class Computed:
    """The result of a node that is computed from its first tensor as that lies.

    Attributes:
        last: the size of its last axis; None where it is computed element by element.
    """

    node: fx.Node
    source: Arranged = field(compare=False)  # the node has one
    last: Size | None = field(compare=False)
    root: fx.Node = field(compare=False)

    @property
    def shape(self) -> tuple[Size, ...]:
        return self.source.merge if self.last is None else (*self.source.merge[:-1], self.last)


@dataclass(frozen=True)
class Part:
    """One of `number` equal parts along an axis, of `size` each."""

    source: Arranged
    axis: int
    size: int
    number: int
    index: int
    root: fx.Node

    @property
    def shape(self) -> tuple[Size, ...]:
        return (*self.source.merge[: self.axis], self.size, *self.source.merge[self.axis + 1 :])


@dataclass(frozen=True)
class Selected:
    """One of the parts along the first axis, each of size 1."""

    source: Arranged
    index: int
    root: fx.Node

    @property
    def shape(self) -> tuple[Size, ...]:
        return self.source.merge[1:]


@dataclass(frozen=True)
class Arranged:
    """An array after a reshape, a permutation and a reshape."""

    array: Array
    split: tuple[Size, ...]
    order: tuple[int, ...] | None
    merge: tuple[Size, ...]

    @staticmethod
    def by(array: Array, move: Move) -> Arranged:
        return Arranged(array, move.split if move.order else (), move.order, move.merge)

    @property
    def cost(self) -> int:
        return cost(self.split, self.order)

    @property
    def is_possible(self) -> bool:
        """Return whether the sizes of both reshapes are known or can be found."""
        if self.order is None:
            return known_sizes(self.array.shape, self.merge) is not None
        between = tuple(self.split[axis] for axis in self.order)
        return None not in (known_sizes(self.array.shape, self.split), known_sizes(between, self.merge))


Array: TypeAlias = Given | Computed | Part | Selected


class Axis(NamedTuple):
    """The size of an axis of the array that is reshaped."""

    number: int


def known_sizes(held: tuple[Size, ...], shape: tuple[Size, ...]) -> list[int | Axis] | None:
    """Return the sizes for a reshape, -1 for one that follows from the others, or None if several are unknown."""
    unknown = [size for size in shape if not isinstance(size, int)]
    if len(unknown) > 1 and held != shape:
        unknown = [size for size in unknown if size not in held]
        if len(unknown) > 1:
            return None
        return [n if isinstance(n, int) else Axis(held.index(n)) if n in held else -1 for n in shape]
    return [n if isinstance(n, int) else -1 for n in shape]


@dataclass(frozen=True)
class Held:
    """A value: an array and how the value lies in it."""

    array: Array
    layout: Layout


@dataclass
class Plan:
    """How each value is held, and what those that compute read.

    Attributes:
        read: by the reader and the value: the array, and whether a product reads it with its last two axes swapped.
        sizes: the value and dimension that have a size that is read.
    """

    held: dict[fx.Node, Held] = field(default_factory=dict)
    read: dict[tuple[fx.Node, fx.Node], tuple[Arranged, bool]] = field(default_factory=dict)
    sizes: dict[fx.Node, tuple[fx.Node, int]] = field(default_factory=dict)

    @cached_property
    def arranged(self) -> dict[fx.Node, set[Arranged]]:
        """The arrays that are written, by the roots that they come from."""
        found: dict[fx.Node, set[Arranged]] = {}
        for wanted, _ in self.read.values():
            arrays = found.setdefault(wanted.array.root, set())
            while wanted not in arrays:
                arrays.add(wanted)
                if isinstance(wanted.array, Given):
                    break
                wanted = wanted.array.source
        return found

    @cached_property
    def before(self) -> dict[fx.Node, int]:
        """What the program's own permutations cost, by the roots of what they permute."""
        costs: dict[fx.Node, int] = {}
        for node, held in self.held.items():
            if node.target in PERMUTATIONS:
                shape = symbolic_shape(first_input(node).meta["val"])
                root = held.array.root
                costs[root] = costs.get(root, 0) + cost(shape, order_of(node))
        return costs

    def is_better(self, root: fx.Node) -> bool:
        """Return whether the moves of all that comes from `root` cost less than those that the program has."""
        arranged = self.arranged.get(root, set())
        return all(each.is_possible for each in arranged) and sum(each.cost for each in arranged) < self.before[root]


def merge_moves(program: Program) -> list[Change]:
    apart: set[fx.Node] = set()  # these are not computed as their inputs lie
    for attempt in range(MOST_ATTEMPTS):
        plan = planned(program, apart)
        better = {root for root in plan.before if plan.is_better(root)}
        passed = {
            array.node
            for held in plan.held.values()
            if isinstance(array := held.array, Computed) and array.root in plan.before.keys() - better
            if attempt == MOST_ATTEMPTS - 2 or not isinstance(array.source.array, Computed)
        }
        if not passed:
            break
        apart |= passed
    return list(Writer(program, plan, better).write())


def cost(split: Sequence[Size], order: Sequence[int] | None) -> int:
    """Return what a permutation costs, in elements of one example that are moved quickly."""
    wide = [axis for axis in order or () if split[axis] != 1]
    if order is None or wide == sorted(wide):
        return 0
    ascending = range(len(order))
    moves_one = any([a for a in order if a != axis] == [a for a in ascending if a != axis] for axis in ascending)
    is_quick = moves_one or order[-1] == ascending[-1]
    return per_example(product(split)) * (1 if is_quick else SLOW) + OVERHEAD


# -- what lies where


def planned(program: Program, apart: set[fx.Node]) -> Plan:
    plan = Plan()
    for node in program.graph.nodes:
        held = moved(program, plan, node) if node.op == "call_function" else None
        if held is None and node.op == "call_function" and node not in apart:
            held = computed(program, plan, node)
        if held is not None:
            plan.held[node] = held
            continue
        for value in dict.fromkeys(node.all_input_nodes):
            if value in plan.held and not is_taken_apart(node, plan.held[value]):
                size = place_of_size(node, plan.held[value])
                if size is not None:
                    plan.sizes[node] = size
                else:
                    plan.read[node, value] = wanted(plan.held[value], node)
    move_parts_first(plan)
    move_parts_together(plan)
    return plan


def move_parts_first(plan: Plan) -> None:
    """Compute a function of a part behind its only move, so that all parts may move together."""
    uses = Counter(arranged.array for arranged, _ in plan.read.values())
    uses.update({held.array.source.array for held in plan.held.values() if not isinstance(held.array, Given)})
    for key, (arranged, swapped) in plan.read.items():
        array = arranged.array
        if not isinstance(array, Computed) or array.last is not None or arranged.order is None or uses[array] > 1:
            continue
        if isinstance(part := array.source.array, Part) and array.source.order is None and uses[part] == 1:
            moved = replace(arranged, array=part)
            plan.read[key] = replace(arranged, array=replace(array, source=moved), split=(), order=None), swapped


def move_parts_together(plan: Plan) -> None:
    """Move all parts of an axis at once, and take them apart after it, where each is moved alike."""
    groups: dict[Any, dict[int, list[tuple[fx.Node, fx.Node]]]] = {}
    for key, (arranged, _) in plan.read.items():
        moved = behind_function(arranged)
        if isinstance(part := moved.array, Part) and (whole := moved_at_once(part, moved)) is not None:
            groups.setdefault((whole, part.number), {}).setdefault(part.index, []).append(key)
    for (whole, number), readers in groups.items():
        apart = {behind_function(plan.read[key][0]) for keys in readers.values() for key in keys}
        if len(readers) < number or whole.cost > sum(each.cost for each in apart):
            continue
        for index, keys in readers.items():
            for key in keys:
                (arranged, swapped), function = plan.read[key], plan.read[key][0].array
                selected = Arranged(Selected(whole, index, function.root), (), None, arranged.merge)
                if isinstance(function, Computed):
                    selected = replace(arranged, array=replace(function, source=selected))
                plan.read[key] = selected, swapped


def behind_function(arranged: Arranged) -> Arranged:
    """Return what a function that `move_parts_first` put behind a move is computed from."""
    array = arranged.array
    if isinstance(array, Computed) and array.last is None and arranged.order is None:
        return array.source if array.source.order is not None else arranged
    return arranged


def moved_at_once(part: Part, arranged: Arranged) -> Arranged | None:
    """Return the move of a part, if it moves, as one of all parts, which are its first axis."""
    before = product(part.shape[: part.axis])
    at = next((i for i in range(len(arranged.split)) if product(arranged.split[:i]) == before), None)
    if at is None or arranged.order is None:
        return None
    split = (*arranged.split[:at], part.number, *arranged.split[at:])
    order = (at, *(axis + (axis >= at) for axis in arranged.order))
    return Arranged(part.source.array, split, order, (part.number, *arranged.merge))


def place_of_size(node: fx.Node, held: Held) -> tuple[fx.Node, int] | None:
    """Return a value that is written anyway and its dimension of the size that a node reads, or None."""
    if node.target is not aten.sym_size.int:
        return None
    size = held.layout.shape[bound_arguments(node).integer("dim")]
    shape = symbolic_shape(held.array.root.meta["val"])
    return (held.array.root, shape.index(size)) if size in shape else None


def is_taken_apart(node: fx.Node, held: Held) -> bool:
    """Return whether a node only takes a value apart, and each of its parts is held as a `Part`."""
    if node.target is not aten.unbind.int:
        return False
    parts = [part_of(user) for user in node.users]
    return all(part is not None and one_part(held, *part[1:]) is not None for part in parts)


def held_by(program: Program, plan: Plan, node: fx.Node) -> Held | None:
    """Return how a value is held; None for a tensor of the model and for several results."""
    if node in plan.held:
        return plan.held[node]
    value = node.meta.get("val")
    if program.is_tensor(node) or not isinstance(value, Tensor):
        return None
    return Held(Given(node), Layout.of(symbolic_shape(value)))


def moved(program: Program, plan: Plan, node: fx.Node) -> Held | None:
    """Return how the result of an operator without arithmetic is held, or None if it is none that can be merged."""
    if node.target in RESHAPES | PERMUTATIONS | COPIES:
        source = held_by(program, plan, first_input(node))
        if source is None or (node.target in PERMUTATIONS and is_swapped_operand(node)):
            return None
        try:
            return Held(source.array, rearranged(source.layout, node))
        except (NeedsMerge, ValueError):
            return None
    part = part_of(node)
    source = held_by(program, plan, part[0]) if part else None
    return None if part is None or source is None else one_part(source, *part[1:])


def rearranged(layout: Layout, node: fx.Node) -> Layout:
    if node.target in PERMUTATIONS:
        return layout.permute(order_of(node))
    return layout.reshape(symbolic_shape(node.meta["val"])) if node.target in RESHAPES else layout


def order_of(node: fx.Node) -> list[int]:
    """Return the order of dimensions that an operator of `PERMUTATIONS` makes: by strides that tell them apart."""
    x = first_input(node)
    strides = [2**i for i in range(x.meta["val"].dim())]
    example = torch.empty(1).as_strided((1,) * len(strides), strides)
    arguments = [example if argument is x else argument for argument in node.args]
    permuted = node.target(*arguments, **node.kwargs)  # type: ignore[operator]
    return [strides.index(stride) for stride in permuted.stride()]


def is_swapped_operand(node: fx.Node) -> bool:
    """Return whether products read the value with its last two dimensions swapped, which costs the runtime nothing."""
    rank = first_input(node).meta["val"].dim()
    return (
        rank >= 2
        and order_of(node) == [*range(rank - 2), rank - 1, rank - 2]
        and all(user.target in PRODUCTS for user in node.users)
    )


def part_of(node: fx.Node) -> tuple[fx.Node, int, int] | None:
    """Return the value, dimension and position that a node selects, if others are selected too."""
    item = read_item(node)
    taken = item[0] if item else node
    if taken.target not in PARTS or (taken.target is aten.unbind.int) != (item is not None):
        return None
    arguments = bound_arguments(taken)
    source = arguments.node("self") if "self" in arguments.values else arguments.node("input")
    value = source.meta.get("val")
    if not isinstance(value, Tensor):
        return None
    dim = arguments.integer("dim") % value.dim()
    index = item[1] if item else arguments.value("index")
    size = symbolic_shape(value)[dim]
    if not isinstance(size, int) or not 2 <= size <= MOST_PARTS or not isinstance(index, int):
        return None
    if item is None and len({selected(user, dim) for user in source.users} - {None}) < 2:
        return None
    return source, dim, index % size


def selected(node: fx.Node, dim: int) -> Any:
    """Return the position that a node selects along `dim`, or None."""
    if node.target is not aten.select.int:
        return None
    arguments = bound_arguments(node)
    rank = first_input(node).meta["val"].dim()
    return arguments.value("index") if arguments.integer("dim") % rank == dim else None


def one_part(held: Held, dim: int, index: int) -> Held | None:
    layout = held.layout
    if len(layout.dims[dim]) != 1:
        return None
    (atom,) = layout.dims[dim]
    place = next(i for i, axis in enumerate(layout.axes) if atom in axis)
    before, behind = cut(layout.axes[place], atom)
    joined = (*layout.axes[:place], *before, (atom, *behind), *layout.axes[place + 1 :])
    _, move = layout.to(joined)
    at = place + len(before)
    size = {a: n for a, n in layout.size.items() if a != atom}
    left = Layout((*layout.dims[:dim], *layout.dims[dim + 1 :]), (*joined[:at], behind, *joined[at + 1 :]), size)
    length = left.extent(behind)
    number = layout.shape[dim]
    if not isinstance(length, int) or not isinstance(number, int):
        return None
    return Held(Part(Arranged.by(held.array, move), at, length, number, index, held.array.root), left)


def cut(axis: Run, atom: int) -> tuple[Runs, Run]:
    """Return what is before an atom of an axis, as an axis of its own if there is anything, and what is behind it."""
    at = axis.index(atom)
    return ((axis[:at],) if at else ()), axis[at + 1 :]


# -- what is computed as it lies


def computed(program: Program, plan: Plan, node: fx.Node) -> Held | None:
    """Return how a result is held that is computed from the array as it lies, or None."""
    value = node.meta.get("val")
    moving = [n for n in node.all_input_nodes if not program.is_tensor(n)]
    if not isinstance(value, Tensor) or node.kwargs or len(moving) != 1 or moving[0] not in plan.held:
        return None
    source = plan.held[moving[0]]
    others = [n.meta["val"] for n in node.all_input_nodes if n is not moving[0]]
    same_shape = symbolic_shape(value) == source.layout.shape
    if is_pointwise(node.target) and same_shape and not any(tensor.dim() for tensor in others):
        _, move = source.layout.to(source.layout.axes)
        return Held(Computed(node, Arranged.by(source.array, move), None, source.array.root), source.layout)
    if not takes_last_dimension(node, moving[0], others, same_shape):
        return None
    last = source.layout.dims[-1]
    rest = tuple(kept for axis in source.layout.axes if (kept := tuple(a for a in axis if a not in last)))
    if not rest:
        return None
    axes = (*rest, last)
    if source.layout.to(axes)[1].order is not None:
        axes = better_order(node, source.layout, axes)
    if len(source.layout.dims) == 2:  # a Gemm stays one
        axes = (tuple(chain(*axes[:-1])), last)
    here, move = source.layout.to(axes)
    out = symbolic_shape(value)[-1]
    return Held(Computed(node, Arranged.by(source.array, move), out, source.array.root), with_last(here, out))


def takes_last_dimension(node: fx.Node, x: fx.Node, others: Sequence[Tensor], same_shape: bool) -> bool:
    """Return whether the operator does the same along the last dimension, wherever in the others it is."""
    if node.target is aten.linear.default:
        return bound_arguments(node).value("input") is x and x.meta["val"].dim() >= 2
    if node.target is aten.layer_norm.default:
        return len(bound_arguments(node).value("normalized_shape")) == 1
    return is_pointwise(node.target) and same_shape and all(tensor.dim() <= 1 for tensor in others)


def with_last(layout: Layout, size: Size) -> Layout:
    """Give the last dimension, an axis of its own, another size."""
    *dims, last = layout.dims
    fresh = max(layout.size, default=-1) + 1
    run = (fresh,) if size != 1 else ()
    sizes = {a: n for a, n in layout.size.items() if a not in last} | dict.fromkeys(run, size)
    return Layout((*dims, run), (*layout.axes[:-1], run), sizes)


def better_order(node: fx.Node, layout: Layout, axes: Runs) -> Runs:
    """Return the axes for an operator whose input must move anyway: those that other readers of it want too.

    Without others, those that the reader of its result wants.
    """
    if any(len(value.users) > 1 for value in node.all_input_nodes):
        wanted = tuple(run for run in layout.in_order(range(len(layout.dims))) if run)
        return wanted if wanted[-1:] == axes[-1:] else axes
    after = with_last(Layout(layout.dims, axes, layout.size), symbolic_shape(node.meta["val"])[-1])
    last, reader = after.dims[-1], node
    while len(reader.users) == 1:
        (reader,) = reader.users
        if reader.target not in RESHAPES | PERMUTATIONS | COPIES:
            break
        try:
            after = rearranged(after, reader)
        except (NeedsMerge, ValueError):
            break
    order = [run for run in after.dims if run]
    if not order or order[-1] != last or set(chain(*order[:-1])) != set(chain(*axes[:-1])):
        return axes
    return (*order[:-1], axes[-1])


def wanted(held: Held, reader: fx.Node) -> tuple[Arranged, bool]:
    """Return the array that a reader takes, and whether as the swapped operand of a product."""
    dims = held.layout.in_order(range(len(held.layout.dims)))
    arranged = Arranged.by(held.array, held.layout.to(dims)[1])
    if reader.target in PRODUCTS and len(dims) >= 2:
        swapped = Arranged.by(held.array, held.layout.to((*dims[:-2], dims[-1], dims[-2]))[1])
        if swapped.cost < arranged.cost:
            return swapped, True
    return arranged, False


# -- writing


@dataclass
class Writer:
    """Writes what is planned for the values that come from `roots`."""

    program: Program
    plan: Plan
    roots: set[fx.Node]
    written: dict[Any, fx.Node] = field(default_factory=dict)

    def write(self) -> Iterator[Change]:
        arrays = [each.array for root in self.roots for each in self.plan.arranged[root]]
        computed = {array.node: array for array in arrays if isinstance(array, Computed)}
        readers: dict[fx.Node, list[fx.Node]] = {}
        for reader, value in self.plan.read:
            readers.setdefault(reader, []).append(value)
        for node in list(self.program.graph.nodes):
            with self.program.graph.inserting_before(node):
                if node in computed:
                    self._array(computed[node], node)
                for value in readers.get(node, ()):
                    self._read(node, value)
                if node in self.plan.sizes and self.plan.sizes[node][0] in self.roots:
                    node.args = self.plan.sizes[node]
        yield from (Change("moves merged", module_path(root), routine=True) for root in self.roots)

    def _read(self, reader: fx.Node, value: fx.Node) -> None:
        arranged, swapped = self.plan.read[reader, value]
        if arranged.array.root in self.roots:
            node = self._arranged(arranged, value)
            if swapped:
                node = self.program.insert_call(aten.transpose.int, (node, -2, -1), like=value)
            reader.replace_input_with(value, node)

    def _array(self, array: Array, like: fx.Node) -> fx.Node:
        if isinstance(array, Given):
            return array.node
        if array in self.written:
            return self.written[array]
        source = self._arranged(array.source, like)
        if isinstance(array, Computed):
            (x,) = (n for n in array.node.all_input_nodes if not self.program.is_tensor(n))
            args = fx.map_arg(array.node.args, lambda n: source if n is x else n)
            node = self.program.insert_call(array.node.target, args, like=array.node)
        elif isinstance(array, Selected):
            node = self.program.insert_call(aten.select.int, (source, 0, array.index), like=like)
        else:
            key = array.source, array.axis, array.size
            if key not in self.written:
                self.written[key] = self.program.insert_call(
                    aten.split.Tensor, (source, array.size, array.axis), like=like
                )
            node = self.program.insert_call(operator.getitem, (self.written[key], array.index), like=like)
        self.written[array] = node
        return node

    def _arranged(self, arranged: Arranged, like: fx.Node) -> fx.Node:
        if arranged in self.written:
            return self.written[arranged]
        node = self._array(arranged.array, like)
        if arranged.order is not None:
            node = self._reshaped(node, arranged.split, like)
            node = self.program.insert_call(aten.permute.default, (node, list(arranged.order)), like=like)
        node = self.written[arranged] = self._reshaped(node, arranged.merge, like)
        return node

    def _reshaped(self, node: fx.Node, shape: tuple[Size, ...], like: fx.Node) -> fx.Node:
        held = symbolic_shape(node.meta["val"])
        if held == shape:
            return node
        sizes: list[Any] = []
        for size in known_sizes(held, shape) or ():
            if isinstance(size, Axis):
                sizes.append(self.program.insert_call(aten.sym_size.int, (node, size.number), like=like))
            else:
                sizes.append(size)
        return self.program.insert_call(aten.reshape.default, (node, sizes), like=like)
