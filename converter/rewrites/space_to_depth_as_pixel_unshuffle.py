"""Write space to depth and its inverse as PyTorch's own operators (PyTorch modules).

    space_to_depth(x, b) -> reorder_channels(pixel_unshuffle(x, b))
    depth_to_space(x, b) -> pixel_shuffle(reorder_channels(x), b)

PyTorch's operators order channels (channel, row, column), ours (row, column, channel). Applies only where weights take
the order, so that no gather of channels is added.
"""

from __future__ import annotations

import torch
from torch import fx

from converter.ir import custom_ops
from converter.ir.aten import bound_arguments, first_input
from converter.ir.program import Program, module_path
from converter.rewrites.base import Change
from converter.rewrites.find_space_to_depth import erase_unused
from converter.rewrites.fold_channel_order import REORDER, taken_by_weights

aten, ours = torch.ops.aten, torch.ops.converter
assert custom_ops  # registers torch.ops.converter


def space_to_depth_as_pixel_unshuffle(program: Program) -> list[Change]:
    changes = []
    for node in list(program.graph.nodes):
        if not node.users:
            continue
        if node.target is ours.space_to_depth.default and unshuffled(program, node):
            changes.append(Change("SpaceToDepth -> pixel_unshuffle", module_path(node), f"block {node.args[1]}"))
        elif node.target is ours.depth_to_space.default and shuffled(program, node):
            changes.append(Change("DepthToSpace -> pixel_shuffle", module_path(node), f"block {node.args[1]}"))
    return changes


def by_block(channels: int, block: int) -> list[int]:
    """Return the channel in PyTorch's order at each position of ours."""
    squares = block * block
    return [channel * squares + place for place in range(squares) for channel in range(channels)]


def unshuffled(program: Program, node: fx.Node) -> bool:
    x, block = first_input(node), bound_arguments(node).integer("block")
    order = by_block(x.meta["val"].shape[1], block)
    reorder = next(iter(node.users)) if len(node.users) == 1 and next(iter(node.users)).target is REORDER else None
    end = reorder or node
    if reorder is not None:
        order = [order[i] for i in bound_arguments(reorder).integers("order")]
    with program.graph.inserting_before(end):
        made = reordered = program.insert_call(aten.pixel_unshuffle.default, (x, block), like=node)
        if order != sorted(order):
            reordered = program.insert_call(REORDER, (made, order), like=node)
    return replaced(program, end, reordered, reordered, x)


def shuffled(program: Program, node: fx.Node) -> bool:
    x, block = first_input(node), bound_arguments(node).integer("block")
    ours_at = by_block(node.meta["val"].shape[1], block)
    order = sorted(range(len(ours_at)), key=ours_at.__getitem__)
    if x.target is REORDER:
        before = bound_arguments(x).integers("order")
        x, order = first_input(x), [before[i] for i in order]
    with program.graph.inserting_before(node):
        reordered = x if order == sorted(order) else program.insert_call(REORDER, (x, order), like=node)
        made = program.insert_call(aten.pixel_shuffle.default, (reordered, block), like=node)
    return replaced(program, node, made, reordered, x)


def replaced(program: Program, end: fx.Node, made: fx.Node, reordered: fx.Node, source: fx.Node) -> bool:
    """Replace `end` unless there is a new order that no weights take."""
    end.replace_all_uses_with(made)
    before = first_input(end)
    apart = [end, before] if before.target is REORDER and len(before.users) == 1 else [end]
    arguments = [node.args for node in apart]
    for node in apart:
        node.args = ()  # what goes reads nothing that an order could be folded into
    taken = reordered.target is not REORDER or taken_by_weights(program, reordered)
    for node, args in zip(apart, arguments, strict=True):
        node.args = args
    if taken:
        return True
    made.replace_all_uses_with(end)
    erase_unused(program, made, source)
    return False
