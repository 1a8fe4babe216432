"""Write depth to space in PyTorch's own order of channels, where no weights take another.

    depth_to_space(reorder_channels(x, order), b), order as PyTorch lists a block's channels
    -> pixel_shuffle(x, b)

A graph input is then moved once, and its channels are not gathered before.
"""

from __future__ import annotations

import torch

from converter.ir import custom_ops
from converter.ir.aten import bound_arguments, first_input
from converter.ir.program import Program, module_path
from converter.rewrites.base import Change
from converter.rewrites.fold_channel_order import REORDER
from converter.rewrites.space_to_depth_as_pixel_unshuffle import by_block

aten, ours = torch.ops.aten, torch.ops.converter
assert custom_ops  # registers torch.ops.converter


def order_in_pixel_shuffle(program: Program) -> list[Change]:
    changes = []
    for node in program.graph.find_nodes(op="call_function", target=ours.depth_to_space.default):
        reorder, block = first_input(node), bound_arguments(node).integer("block")
        if reorder.target is not REORDER:
            continue
        if bound_arguments(reorder).integers("order") != by_block(node.meta["val"].shape[1], block):
            continue
        with program.graph.inserting_before(node):
            shuffled = program.insert_call(aten.pixel_shuffle.default, (first_input(reorder), block), like=node)
        node.replace_all_uses_with(shuffled)
        changes.append(Change("DepthToSpace -> pixel_shuffle", module_path(node), f"block {block}"))
    return changes
