"""Fold a reordering of channels into the weights behind it.

    conv(relu(batch_norm(reorder_channels(x, order)))), weights in the reordered order
    -> conv(relu(batch_norm(x))), weights in x's order

The reordering is carried forward over whatever treats every channel alike (its parameters per channel are reordered)
until every path has ended in an operator whose weights can take it. If one path has not, nothing is changed.
"""

import torch
from torch import Tensor, fx

from converter.program import Origin, Program, module_path
from converter.rewrites.change import Change

aten, ours = torch.ops.aten, torch.ops.converter

CHANNELWISE = {
    aten.relu.default, aten.relu6.default, aten.silu.default, aten.sigmoid.default, aten.tanh.default,
    aten.hardswish.default, aten.hardsigmoid.default, aten.hardtanh.default, aten.leaky_relu.default,
    aten.gelu.default, aten.elu.default, aten.mish.default, aten.softplus.default, aten.abs.default,
    aten.max_pool2d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default,
    aten.upsample_nearest2d.vec, aten.upsample_bilinear2d.vec, ours.dropout.default,
}  # fmt: skip
PER_CHANNEL = {aten.batch_norm.default: (1, 2, 3, 4), aten.prelu.default: (1,)}
CONVOLUTIONS = {aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.conv2d.padding}


def fold_channel_order(program: Program) -> list[Change]:
    changes = []
    for node in program.graph.find_nodes(op="call_function", target=ours.reorder_channels.default):
        takers = weights_behind(program, node)
        if takers is None:
            continue
        source, order = node.args
        inverse = [order.index(i) for i in range(len(order))]
        for user, position, dim in takers:
            attribute = user.args[position]
            index = torch.tensor(inverse)
            reordered = program.tensor(attribute).detach().index_select(dim, index)
            origin = program.origins[attribute.target]
            program.replace_tensor(attribute, reordered, Origin(origin.sources, origin.exact), [user])
        node.replace_all_uses_with(source)
        names = dict.fromkeys(module_path(user) for user, _, dim in takers if dim == 1)
        changes.append(
            Change("channel order folded", module_path(node), f"input channels permuted: {', '.join(map(repr, names))}")
        )
    return changes


def weights_behind(program: Program, start: fx.Node) -> list[tuple[fx.Node, int, int]] | None:
    """(operator, argument, dimension) of every weight to reorder, or None where some consumer cannot take the order."""
    takers: list[tuple[fx.Node, int, int]] = []
    region, seen = [start], {start}
    channels = start.meta["val"].shape[1]
    while region:
        node = region.pop()
        for user in node.users:
            if user in seen:
                continue
            seen.add(user)
            if user.target in CONVOLUTIONS and user.args[0] is node and program.is_tensor(user.args[1]):
                groups = user.args[6] if len(user.args) > 6 else 1
                if groups == 1:
                    takers.append((user, 1, 1))
                    continue
                out = user.args[1].meta["val"].shape[0]
                if groups != channels or out != channels:
                    return None
                takers.append((user, 1, 0))
                if len(user.args) > 2 and user.args[2] is not None:
                    takers.append((user, 2, 0))
                region.append(user)
            elif user.target in PER_CHANNEL and user.args[0] is node:
                positions = [p for p in PER_CHANNEL[user.target] if isinstance(user.args[p], fx.Node)]
                if not all(program.is_tensor(user.args[p]) for p in positions):
                    return None
                takers += [(user, p, 0) for p in positions if _per_channel(program.tensor(user.args[p]), channels)]
                region.append(user)
            elif user.target in CHANNELWISE and user.args[0] is node:
                region.append(user)
            else:
                return None
    return takers


def _per_channel(tensor: Tensor, channels: int) -> bool:
    return tensor.numel() == channels
