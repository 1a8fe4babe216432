"""Fold a reordering of channels into the weights around it.

    conv(relu(batch_norm(reorder_channels(x, order)))), weights in the reordered order
    -> conv(relu(batch_norm(x))), weights in x's order

The reordering is taken back on every value that it reaches over operators that treat all channels alike, forwards and,
at a residual add, backwards; what is per channel there is reordered with it. Where all ends of that region are weights
that can take the order, they do. Else the same is tried with the values before the reordering, whose producers then
emit the new order. If neither goes, nothing is changed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, fx

from converter import ops
from converter.program import Origin, Program, module_path
from converter.rewrites.change import Change

aten, ours = torch.ops.aten, torch.ops.converter
REORDER = ops.reorder_channels._opoverload

CHANNELWISE = {
    aten.relu.default, aten.relu6.default, aten.silu.default, aten.sigmoid.default, aten.tanh.default,
    aten.hardswish.default, aten.hardsigmoid.default, aten.hardtanh.default, aten.leaky_relu.default,
    aten.gelu.default, aten.elu.default, aten.mish.default, aten.softplus.default, aten.abs.default,
    aten.max_pool2d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default, aten.clone.default,
    aten.upsample_nearest2d.vec, aten.upsample_bilinear2d.vec, aten.mean.dim, ours.dropout.default,
}  # fmt: skip
PADS = {aten.pad.default, aten.constant_pad_nd.default}
CHANNELWISE |= PADS
RESHAPES = {
    aten.reshape.default, aten.view.default, aten.flatten.using_ints, aten.squeeze.dim, aten.squeeze.dims,
    aten.unsqueeze.default,
}  # fmt: skip
PER_CHANNEL = {aten.batch_norm.default: (1, 2, 3, 4), aten.prelu.default: (1,)}
BINARY = {
    aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.maximum.default, aten.minimum.default,
}  # fmt: skip
CONVOLUTIONS = {aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.conv1d.padding, aten.conv2d.padding}
GROUPS = 6  # position among a convolution's arguments


def fold_channel_order(program: Program) -> list[Change]:
    changes = []
    for node in program.graph.find_nodes(op="call_function", target=REORDER):
        source, order = node.args
        inverse = [order.index(i) for i in range(len(order))]
        for start, index in ((node, inverse), (source, order)):
            region = Region(program, node)
            if start.op == "call_function" and region.grow(start):
                names = region.reorder(index)
                node.replace_all_uses_with(source)
                changes.append(Change("channel order folded", module_path(node), names))
                break
    return changes


@dataclass
class Region:
    """Values that share one order of channels (dimension 1), and the weights at its ends.

    Attributes:
        weights: (operator, argument, dimension) of every tensor to reorder.
    """

    program: Program
    reordering: fx.Node
    values: dict[fx.Node, None] = field(default_factory=dict)
    weights: list[tuple[fx.Node, int, int]] = field(default_factory=list)

    def grow(self, start: fx.Node) -> bool:
        """Take in all that must change with `start`; False if something cannot."""
        self.channels = start.meta["val"].shape[1]
        other = self.reordering.args[0] if start is self.reordering else self.reordering
        waiting = [start]
        while waiting:
            value = waiting.pop()
            if value in self.values:
                continue
            if value is other or not self._has_channels(value):
                return False
            self.values[value] = None
            for found in (self._producer(value), self._consumers(value)):
                if found is None:
                    return False
                waiting += found
        return True

    def reorder(self, index: list[int]) -> str:
        chosen = torch.tensor(index)
        for user, position, dim in dict.fromkeys(self.weights):
            attribute = user.args[position]
            origin = self.program.origins[attribute.target]
            reordered = self.program.values(attribute).then(partial(taken, dim=dim, chosen=chosen))
            self.program.replace_tensor(attribute, reordered, Origin(origin.sources, origin.exact), [user])
        told = {1: "input channels permuted", 0: "output channels permuted"}
        ends: dict[str, list[str]] = {}
        for user, position, dim in self.weights:
            if (user.target in CONVOLUTIONS and position == 1) or user.target is aten.linear.default:
                ends.setdefault(told[dim], []).append(f"`{module_path(user)}`")
        return "; ".join(f"{', '.join(dict.fromkeys(names))} {what}" for what, names in ends.items())

    def _producer(self, value: fx.Node) -> list[fx.Node] | None:
        """The values that must change with this one for it to be made in the new order."""
        if value is self.reordering:
            return []
        target, args = value.target, value.args
        if target in CONVOLUTIONS and self.program.is_tensor(args[1]):
            groups = args[GROUPS] if len(args) > GROUPS else 1
            out = args[1].meta["val"].shape[0]
            if groups != 1 and not (groups == out == args[0].meta["val"].shape[1]):
                return None
            return self._taken(
                value, (1, *((2,) if len(args) > 2 and args[2] is not None else ())), args[:1] * (groups > 1)
            )
        if target in PER_CHANNEL:
            held = [p for p in PER_CHANNEL[target] if isinstance(args[p], fx.Node)]
            return self._taken(value, [p for p in held if self._per_channel(args[p])], args[:1])
        if target in CHANNELWISE:
            return [args[0]] if self._keeps_channels(value) else None
        if target in BINARY:
            return self._operands(value)
        if target in RESHAPES and self._drops_ones(value):
            return [args[0]]
        return None

    def _consumers(self, value: fx.Node) -> list[fx.Node] | None:
        """The values that change because this one does."""
        found: list[fx.Node] = []
        for user in value.users:
            if user is self.reordering:
                continue
            target = user.target
            if target in CONVOLUTIONS and user.args[0] is value and self.program.is_tensor(user.args[1]):
                if (user.args[GROUPS] if len(user.args) > GROUPS else 1) == 1:
                    self.weights.append((user, 1, 1))
                else:
                    found.append(user)
            elif target is aten.linear.default and user.args[0] is value and value.meta["val"].dim() == 2:
                if not self.program.is_tensor(user.args[1]):
                    return None
                self.weights.append((user, 1, 1))
            elif (
                target in PER_CHANNEL
                or target in CHANNELWISE
                or target in BINARY
                or (target in RESHAPES and self._drops_ones(user))
            ):
                found.append(user)
            else:
                return None
        return found

    def _taken(self, value: fx.Node, positions: Sequence[int], inputs: Sequence[fx.Node]) -> list[fx.Node] | None:
        if not all(self.program.is_tensor(value.args[p]) for p in positions):
            return None
        self.weights += [(value, p, 0) for p in positions]
        return list(inputs)

    def _operands(self, value: fx.Node) -> list[fx.Node] | None:
        found: list[fx.Node] = []
        rank = value.meta["val"].dim()
        for position in (0, 1):
            operand = value.args[position]
            if not isinstance(operand, fx.Node):
                continue
            shape = operand.meta["val"].shape
            dim = 1 - rank + len(shape)
            if dim < 0 or shape[dim] == 1:
                continue  # the same for all channels
            if self.program.is_tensor(operand):
                self.weights.append((value, position, dim))
            elif dim == 1:
                found.append(operand)
            else:
                return None
        return found

    def _keeps_channels(self, value: fx.Node) -> bool:
        if value.target is aten.mean.dim:
            rank = value.args[0].meta["val"].dim()
            return all(d % rank > 1 for d in value.args[1])
        if value.target in PADS:
            return len(value.args[1]) // 2 <= value.meta["val"].dim() - 2
        return value.meta["val"].shape[1] == self.channels

    def _has_channels(self, value: fx.Node) -> bool:
        shape = value.meta["val"].shape
        return len(shape) > 1 and isinstance(shape[1], int) and shape[1] == self.channels

    def _drops_ones(self, node: fx.Node) -> bool:
        before, after = node.args[0].meta["val"].shape, node.meta["val"].shape
        return all(n == 1 for n in (*before[2:], *after[2:])) and len(after) >= 2 and before[1] == after[1]

    def _per_channel(self, attribute: fx.Node) -> bool:
        return not self.program.is_tensor(attribute) or attribute.meta["val"].numel() == self.channels


def taken(tensor: Tensor, dim: int, chosen: Tensor) -> Tensor:
    return tensor.index_select(dim, chosen.to(tensor.device))
