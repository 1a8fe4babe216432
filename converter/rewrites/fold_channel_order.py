"""Fold a permutation of channels into the weights around it.

    conv(relu(batch_norm(reorder_channels(x, order)))), weights in the permuted order
    -> conv(relu(batch_norm(x))), weights in x's order

The permutation is undone on every value that it reaches through operators that treat all channels alike, forwards and,
at a residual add, backwards; per-channel tensors there are permuted too. A concatenation and a split pass on the
order of each part. If all ends of that region are weights that can take the order, they do. Otherwise the same is tried
with the values before the permutation, whose producers then emit the new order. If neither works, each consumer that
can take the order alone does, and the others read the permuted value. Groups of a grouped convolution or of a group
norm can change places, and so can the channels within a group. Channels are in dimension 1, or where permutes take
them: a Linear and a layer norm have them last.

A channel shuffle, also as view, transpose, view, is such a permutation too; if it cannot be folded, it stays.
"""

import math
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor, fx

from converter.ir import custom_ops
from converter.ir.aten import bound_arguments, first_input, is_pointwise, read_item
from converter.ir.program import Program, module_path
from converter.ir.sizes import symbolic_shape
from converter.rewrites.analysis.channel_index import index_text
from converter.rewrites.base import Change

aten, ours = torch.ops.aten, torch.ops.converter
REORDER = custom_ops.reorder_channels._opoverload

# These treat all channels alike, as pointwise operators of one tensor do.
CHANNELWISE = {
    aten.max_pool2d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default, aten.clone.default,
    aten.upsample_nearest2d.vec, aten.upsample_bilinear2d.vec, aten.mean.dim, ours.dropout.default,
}  # fmt: skip
ALIKE_ANYWHERE = {aten.clone.default, ours.dropout.default}
PADS = {aten.pad.default, aten.constant_pad_nd.default}
CHANNELWISE |= PADS
RESHAPES = {
    aten.reshape.default, aten.view.default, aten.flatten.using_ints, aten.squeeze.dim, aten.squeeze.dims,
    aten.unsqueeze.default, aten.unflatten.int,
}  # fmt: skip
PERMUTING = {aten.permute.default, aten.transpose.int}
SPLITS = {aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default}
PER_CHANNEL: dict[object, tuple[str, ...]] = {
    aten.batch_norm.default: ("weight", "bias", "running_mean", "running_var"),
    aten.instance_norm.default: ("weight", "bias", "running_mean", "running_var"),
    aten.group_norm.default: ("weight", "bias"),
    aten.prelu.default: ("weight",),
}
BINARY = {
    aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.maximum.default, aten.minimum.default,
}  # fmt: skip
CONVOLUTIONS = {aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.conv1d.padding, aten.conv2d.padding}
TRANSPOSED = {aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input}

LONGEST_SELECTION = 60  # characters of a line of code that a report shows


Index = tuple[int, ...]
# A value, the dimension of its channels, and its index, None if the parts of a concatenation determine it.
Demand = tuple[fx.Node, int, Index | None]


def fold_channel_order(program: Program) -> list[Change]:
    changes = []
    for node in list(program.graph.nodes):
        found = reordering(node)
        if found is None:
            continue
        source, order, first = found
        inverse = tuple(order.index(i) for i in range(len(order)))
        for start, other, index in ((node, source, inverse), (source, node, order)):
            region = Region(program, node, first, other)
            if start.op == "call_function" and region.grow(start, index):
                names = region.reorder()
                node.replace_all_uses_with(source)
                changes.append(Change("channel order folded", module_path(node), names))
                break
        else:
            if node.target is REORDER and len(node.users) > 1:
                changes += folded_for_some(program, node, inverse)
    return changes


def folded_for_some(program: Program, node: fx.Node, inverse: Index) -> list[Change]:
    """Fold a `reorder_channels` into the weights of those consumers that can take it alone."""
    changes = []
    for user in list(node.users):
        with program.graph.inserting_before(user):
            alone = program.insert_call(REORDER, node.args, like=node)
        user.replace_input_with(node, alone)
        region = Region(program, alone, alone, first_input(node))
        if region.grow(alone, inverse):
            changes.append(Change("channel order folded", module_path(node), region.reorder()))
            alone.replace_all_uses_with(first_input(node))
        else:
            user.replace_input_with(alone, node)
        program.graph.erase_node(alone)
    return changes


def taken_by_weights(program: Program, node: fx.Node, without: Collection[fx.Node] = ()) -> bool:
    """Return whether there are weights that can take the order of a `reorder_channels`.

    Args:
        without: operators that no result needs any more.
    """
    source, order = first_input(node), tuple(bound_arguments(node).integers("order"))
    inverse = tuple(order.index(i) for i in range(len(order)))
    return any(
        start.op == "call_function" and Region(program, node, node, other, without).grow(start, index)
        for start, other, index in ((node, source, inverse), (source, node, order))
    )


def reordering(node: fx.Node) -> tuple[fx.Node, Index, fx.Node] | None:
    """Return the permuted value, the channel at each position of the result, and the first operator, or None."""
    if node.target is REORDER:
        return first_input(node), tuple(bound_arguments(node).integers("order")), node
    if node.target is aten.channel_shuffle.default and isinstance(node.meta["val"].shape[1], int):
        groups = bound_arguments(node).integer("groups")
        size = node.meta["val"].shape[1] // groups
        return first_input(node), tuple(g * size + i for i in range(size) for g in range(groups)), node
    return shuffle(node)


def shuffle(node: fx.Node) -> tuple[fx.Node, Index, fx.Node] | None:
    """Match a channel shuffle: (B, C, ...) viewed as (B, G, C / G, ...), the two exchanged, viewed as (B, C, ...)."""
    if node.target not in RESHAPES:
        return None
    exchange = first_input(node)
    while exchange.target is aten.clone.default and len(exchange.users) == 1:
        exchange = first_input(exchange)
    if exchange.target not in PERMUTING:
        return None
    apart = first_input(exchange)
    if apart.target not in RESHAPES:
        return None
    source = first_input(apart)
    if len(apart.users) > 1 or len(exchange.users) > 1:
        return None
    before, split, after = (n.meta["val"].shape for n in (source, apart, node))
    rank = len(split)
    plain = permuted_axes(exchange) == [0, 2, 1, *range(3, rank)] and before == after and len(before) == rank - 1
    if not plain or split[0] != before[0] or split[3:] != before[2:] or not isinstance(before[1], int):
        return None
    groups, size = int(split[1]), int(split[2])
    return source, tuple(g * size + i for i in range(size) for g in range(groups)), apart


@dataclass
class Region:
    """A region of values whose channels need another order, and the weights at its ends.

    Attributes:
        reordering, first: the operator to remove; the first of its parts.
        other: the other side of the permutation, which must not be reached.
        without: operators that no result needs any more.
        values: for each value, the index that selects its channels.
        axes: for each value, the dimension of its channels.
        weights: the same for each (operator, name of an argument, dimension) of a tensor to permute.
    """

    program: Program
    reordering: fx.Node
    first: fx.Node
    other: fx.Node
    without: Collection[fx.Node] = ()
    values: dict[fx.Node, Index] = field(default_factory=dict)
    axes: dict[fx.Node, int] = field(default_factory=dict)
    weights: dict[tuple[fx.Node, str, int], Index] = field(default_factory=dict)

    def grow(self, start: fx.Node, index: Index) -> bool:
        """Collect everything that must change with `start`; return False if something cannot."""
        try:
            waiting: deque[Demand] = deque([(start, 1, index)])
            while waiting:
                value, axis, wanted = waiting.popleft()
                index = self._joined(value) if wanted is None else wanted
                if index == self.values.get(value, tuple(range(len(index)))) and self.axes.get(value, axis) == axis:
                    continue
                if value in self.values or value is self.other or not has_channels(value, axis, len(index)):
                    return False
                self.values[value], self.axes[value] = index, axis
                found = self._producers(value, axis, index)
                for user in value.users:
                    if user is not self.first and user not in self.without:
                        found += self._consumer(value, axis, index, user)
                waiting.extendleft(demand for demand in found if demand[2] is not None)
                waiting.extend(demand for demand in found if demand[2] is None)
        except CannotFollow:
            return False
        return True

    def reorder(self) -> str:
        by_dimension = sorted(self.weights.items(), key=lambda item: item[0][2])  # groups first, then within each
        for (user, name, dim), index in by_dimension:
            attribute = bound_arguments(user).node(name)
            reordered = self.program.values(attribute).map(partial(taken, dim=dim, chosen=torch.tensor(index)))
            self.program.replace_tensor(attribute, reordered, self.program.origin(attribute), [user])
        permuted = {1: "input channels permuted", 0: "output channels permuted"}
        ends: dict[str, list[str]] = {}
        for (user, name, dim), index in self.weights.items():
            side = 1 - dim if user.target in TRANSPOSED else dim
            if (user.target in CONVOLUTIONS | TRANSPOSED and name == "weight") or user.target is aten.linear.default:
                selection = f"weight[{':, ' * dim}{index_text(index)}]"
                whole = len(index) == bound_arguments(user).node(name).meta["val"].shape[dim]
                how = f": {selection}" if whole and len(selection) <= LONGEST_SELECTION else ""
                ends.setdefault(f"{permuted[side]}{how}", []).append(f"`{module_path(user)}`")
        return "; ".join(f"{', '.join(dict.fromkeys(names))} {what}" for what, names in ends.items())

    # -- what must change with a value

    def _producers(self, value: fx.Node, axis: int, index: Index) -> list[Demand]:
        """Return what must change so that `value` is produced in the new order."""
        if value is self.reordering:
            return []
        target, rank = value.target, value.meta["val"].dim()
        if target in PERMUTING:
            return [(first_input(value), permuted_axes(value)[axis], index)]
        if target is aten.linear.default and axis == rank - 1:
            bias = bound_arguments(value).optional_node("bias")
            self._take(value, ["weight"] if bias is None else ["weight", "bias"], 0, index)
            return []
        if target is aten.layer_norm.default:
            self._normalized(value, axis, index)
            return [(first_input(value), axis, index)]
        if target in BINARY:
            return self._operands(value, axis, index)
        if treats_channels_alike(value) and keeps_channels(value, axis):
            return [(value.all_input_nodes[0], axis, index)]
        if target in RESHAPES:
            return [unflattened(index, axis, first_input(value), value)]
        if axis != 1:
            raise CannotFollow
        if target in CONVOLUTIONS | TRANSPOSED:
            arguments = bound_arguments(value)
            x, groups = arguments.node("input"), known_groups(value)
            if not self.program.is_tensor(arguments.node("weight")):
                raise CannotFollow
            self._take(value, ["weight"], 1 if target in TRANSPOSED else 0, index)
            if arguments.optional_node("bias") is not None:
                self._take(value, ["bias"], 0, index)
            if groups == 1:
                return []
            blocks = order_of_groups(index, groups)
            before = self.values.get(x)
            if before is not None and order_of_groups(before, groups) == blocks:
                return []
            return [(x, 1, spread(blocks, x.meta["val"].shape[1] // groups))]
        if target in PER_CHANNEL:
            arguments = bound_arguments(value)
            if target is aten.group_norm.default:
                order_of_groups(index, arguments.integer("num_groups"))
            held = {name: arguments.optional_node(name) for name in PER_CHANNEL[target]}
            names = [name for name, n in held.items() if n is not None and self._per_channel(n, len(index))]
            self._take(value, names, 0, index)
            return [(first_input(value), 1, index)]
        if is_concatenation(value):
            joined_parts = bound_arguments(value).nodes("tensors")
            widths = [part.meta["val"].shape[1] for part in joined_parts]
            return [(part, 1, held) for part, held in zip(joined_parts, cut(index, widths), strict=True)]
        item = read_item(value)
        if item is not None and is_split(item[0]):
            split, position = item
            source, widths = first_input(split), [part.shape[1] for part in split.meta["val"]]
            if source in self.values:
                return [(value, 1, cut(self.values[source], widths)[position])]
            parts = [whole(part) for part in split.meta["val"]]
            parts[position] = index
            return [(source, 1, joined(parts))]
        raise CannotFollow

    def _consumer(self, value: fx.Node, axis: int, index: Index, user: fx.Node) -> list[Demand]:
        """Return what must change because `user` reads `value` in the new order."""
        target, rank = user.target, value.meta["val"].dim()
        if target in PERMUTING:
            return [(user, permuted_axes(user).index(axis), index)]
        if target is aten.linear.default:
            if axis != rank - 1 or first_input(user) is not value:
                raise CannotFollow
            self._take(user, ["weight"], 1, index)
            return []
        if target is aten.layer_norm.default:
            self._normalized(user, axis, index)
            return [(user, axis, index)]
        if target in BINARY or (treats_channels_alike(user) and keeps_channels(user, axis)):
            return [(user, axis, index)]
        if target in RESHAPES:
            return [flattened(index, axis, value, user)]
        if axis != 1:
            raise CannotFollow
        if target in CONVOLUTIONS | TRANSPOSED:
            arguments = bound_arguments(user)
            if arguments.node("input") is not value or not self.program.is_tensor(arguments.node("weight")):
                raise CannotFollow
            groups = known_groups(user)
            if groups == 1:
                self._take(user, ["weight"], 0 if target in TRANSPOSED else 1, index)
                return []
            blocks = order_of_groups(index, groups)
            if target in TRANSPOSED or index != spread(blocks, len(index) // groups):
                self._take(user, ["weight"], 0 if target in TRANSPOSED else 1, index)
            after = self.values.get(user)
            if after is not None and order_of_groups(after, groups) == blocks:
                return []
            return [(user, 1, spread(blocks, user.meta["val"].shape[1] // groups))]
        if target in PER_CHANNEL:
            return [(user, 1, index)]
        if is_concatenation(user):
            if user not in self.values:
                return [(user, 1, None)]
            operands = bound_arguments(user).nodes("tensors")
            parts = cut(self.values[user], [p.meta["val"].shape[1] for p in operands])
            return [(p, 1, part) for p, part in zip(operands, parts, strict=True) if p is value]
        if is_split(user):
            parts = cut(index, [part.shape[1] for part in user.meta["val"]])
            items = [(part, item[1]) for part in user.users if (item := read_item(part)) is not None]
            if len(items) < len(user.users):
                raise CannotFollow
            return [(part, 1, parts[position]) for part, position in items]
        raise CannotFollow

    def _joined(self, value: fx.Node) -> Index:
        """Return the index of a concatenation, once nothing else can determine its parts."""
        return joined(
            [self.values.get(part, whole(part.meta["val"])) for part in bound_arguments(value).nodes("tensors")]
        )

    def _take(self, user: fx.Node, names: Sequence[str], dim: int, index: Index) -> None:
        for name in names:
            if not self.program.is_tensor(bound_arguments(user).value(name)):
                raise CannotFollow
            if self.weights.setdefault((user, name, dim), index) != index:
                raise CannotFollow

    def _normalized(self, norm: fx.Node, axis: int, index: Index) -> None:
        """Permute the scale and offset of a layer norm, if they extend over the channels."""
        arguments = bound_arguments(norm)
        dim = axis - norm.meta["val"].dim() + len(arguments.value("normalized_shape"))
        if dim >= 0:
            held = [name for name in ("weight", "bias") if arguments.optional_node(name) is not None]
            self._take(norm, held, dim, index)

    def _operands(self, value: fx.Node, axis: int, index: Index) -> list[Demand]:
        found: list[Demand] = []
        rank = value.meta["val"].dim()
        for name in ("self", "other"):
            operand = bound_arguments(value).value(name)
            if not isinstance(operand, fx.Node):
                continue
            shape = operand.meta["val"].shape
            dim = axis - rank + len(shape)
            if dim < 0 or shape[dim] == 1:
                continue  # the same for all channels
            if self.program.is_tensor(operand):
                self._take(value, [name], dim, index)
            elif dim == axis:
                found.append((operand, axis, index))
            else:
                raise CannotFollow
        return found

    def _per_channel(self, attribute: fx.Node, channels: int) -> bool:
        return not self.program.is_tensor(attribute) or attribute.meta["val"].numel() == channels


def known_groups(convolution: fx.Node) -> int:
    groups = bound_arguments(convolution).value("groups")
    if not isinstance(groups, int):
        raise CannotFollow
    return groups


def order_of_groups(index: Index, groups: int) -> Index:
    """Return the order of groups if `index` keeps the channels of each together; raise CannotFollow if not."""
    size = len(index) // groups
    parts = [{i // size for i in index[first : first + size]} for first in range(0, len(index), size)]
    if any(len(part) > 1 for part in parts):
        raise CannotFollow
    return tuple(part.pop() for part in parts)


def spread(blocks: Index, size: int) -> Index:
    """Return the channels of blocks of `size`, in the order of the blocks."""
    return tuple(block * size + i for block in blocks for i in range(size))


class CannotFollow(Exception):
    """An operator that cannot take or pass on another order of channels."""


def has_channels(value: fx.Node, axis: int, channels: int) -> bool:
    fake = value.meta.get("val")
    if not isinstance(fake, Tensor) or value.op != "call_function" or fake.dim() <= axis:
        return False
    return isinstance(fake.shape[axis], int) and fake.shape[axis] == channels


def permuted_axes(node: fx.Node) -> list[int]:
    """Return for each dimension of a permuted value that of the value before."""
    arguments, rank = bound_arguments(node), node.meta["val"].dim()
    if node.target is aten.permute.default:
        return [d % rank for d in arguments.integers("dims")]
    axes, i, j = list(range(rank)), arguments.integer("dim0") % rank, arguments.integer("dim1") % rank
    axes[i], axes[j] = j, i
    return axes


def treats_channels_alike(node: fx.Node) -> bool:
    return node.target in CHANNELWISE or (is_pointwise(node.target) and len(node.all_input_nodes) == 1)


def keeps_channels(value: fx.Node, axis: int) -> bool:
    """Return whether an operator that treats all channels alike leaves them in their dimension."""
    if axis != 1:
        return value.target in ALIKE_ANYWHERE or value.target not in CHANNELWISE
    arguments, before = bound_arguments(value), value.all_input_nodes[0].meta["val"]
    if value.target is aten.mean.dim:
        return all(d % before.dim() > 1 for d in arguments.value("dim"))
    if value.target in PADS:
        return len(arguments.value("pad")) // 2 <= before.dim() - 2
    return bool(value.meta["val"].shape[1] == before.shape[1])


def is_concatenation(node: fx.Node) -> bool:
    if node.target is not aten.cat.default:
        return False
    return bound_arguments(node).integer("dim") % node.meta["val"].dim() == 1


def is_split(node: fx.Node) -> bool:
    if node.target not in SPLITS:
        return False
    arguments = bound_arguments(node)
    return arguments.integer("dim") % arguments.node("self").meta["val"].dim() == 1


def whole(value: Tensor) -> Index:
    """Return all channels in their order."""
    if value.dim() < 2 or not isinstance(value.shape[1], int):
        raise CannotFollow
    return tuple(range(value.shape[1]))


def joined(parts: Sequence[Index]) -> Index:
    offsets = accumulate((len(part) for part in parts), initial=0)
    return tuple(offset + i for offset, part in zip(offsets, parts, strict=False) for i in part)


def cut(index: Index, widths: Sequence[int]) -> list[Index]:
    """Split `index` into parts of these widths; raise CannotFollow if a channel moves to another part."""
    parts, start = [], 0
    for width in widths:
        part = tuple(i - start for i in index[start : start + width])
        if sorted(part) != list(range(width)):
            raise CannotFollow
        parts.append(part)
        start += width
    return parts


def flattened(index: Index, axis: int, before: fx.Node, after: fx.Node) -> tuple[fx.Node, int, Index]:
    """Return what a view makes of `index`.

    It may keep batch and channels, merge all later dimensions into the channels, or keep the channels last.
    """
    old, new = symbolic_shape(before.meta["val"]), symbolic_shape(after.meta["val"])
    if axis == len(old) - 1 and axis != 1 and old[-1] == new[-1]:
        return after, len(new) - 1, index
    if axis != 1 or old[0] != new[0] or len(new) < 2:
        raise CannotFollow
    if old[1] == new[1]:
        return after, 1, index
    inner = math.prod(old[2:])
    if new[1] != old[1] * inner or not isinstance(inner, int):
        raise CannotFollow
    return after, 1, tuple(i * inner + j for i in index for j in range(inner))


def unflattened(index: Index, axis: int, before: fx.Node, after: fx.Node) -> tuple[fx.Node, int, Index]:
    """Return what must be before such a view that gives `index` after it."""
    old, new = before.meta["val"].shape, after.meta["val"].shape
    if axis == len(new) - 1 and axis != 1 and old[-1] == new[-1]:
        return before, len(old) - 1, index
    if axis != 1 or len(old) < 2 or not isinstance(old[1], int):
        raise CannotFollow
    inner = len(index) // old[1]
    if not inner:
        raise CannotFollow
    result = tuple(i // inner for i in index[::inner])
    if flattened(result, 1, before, after) != (after, 1, index):
        raise CannotFollow
    return before, 1, result


def taken(tensor: Tensor, dim: int, chosen: Tensor) -> Tensor:
    """Return `tensor` with dimension `dim` in the chosen order, which lists those of all groups if there are any."""
    chosen, size = chosen.to(tensor.device), tensor.shape[dim]
    if len(chosen) == size:
        return tensor.index_select(dim, chosen)
    groups = tensor.chunk(len(chosen) // size)
    orders = [order % size for order in chosen.split(size)]
    return torch.cat([part.index_select(dim, order) for part, order in zip(groups, orders, strict=True)])
