"""Turn a Focus stem into space_to_depth.

    join x[..., r::b, c::b] over channels, for all b * b offsets (r, c)
    -> reorder_channels(space_to_depth(x, b))

YOLOv5 lists the four quadrants column by column, space_to_depth row by row. Any order works: it is read from the
slices. `fold_channel_order` moves the permutation into the weights that follow.
"""

import math
import sys

import torch
from torch import fx

from converter.ir import custom_ops
from converter.ir.program import Program, module_path
from converter.rewrites.base import Change

aten, ours = torch.ops.aten, torch.ops.converter
HEIGHT, WIDTH = 2, 3
assert custom_ops  # registers torch.ops.converter


def focus_to_space_to_depth(program: Program) -> list[Change]:
    changes = []
    for cat in program.graph.find_nodes(op="call_function", target=aten.cat.default):
        if (found := match_focus(cat)) is None:
            continue
        x, block, offsets = found
        channels = x.meta["val"].shape[1]
        order = [(r * block + c) * channels + i for r, c in offsets for i in range(channels)]
        with program.graph.inserting_before(cat):
            packed = program.insert_call(ours.space_to_depth.default, (x, block), like=cat)
            if order != sorted(order):
                packed = program.insert_call(ours.reorder_channels.default, (packed, order), like=cat)
        cat.replace_all_uses_with(packed)
        listed = " ".join(f"({r},{c})" for r, c in offsets)
        changes.append(
            Change("Focus -> SpaceToDepth", module_path(cat), f"block {block}, slices joined in the order {listed}")
        )
    return changes


def match_focus(cat: fx.Node) -> tuple[fx.Node, int, list[tuple[int, int]]] | None:
    """Return Focus's input, its block size, and the (row, column) offsets in the order of the join, or None."""
    parts, dim = cat.args[0], cat.args[1] if len(cat.args) > 1 else 0
    block = math.isqrt(len(parts))
    if block < 2 or block * block != len(parts) or cat.meta["val"].dim() != 4 or dim not in (1, -3):
        return None
    sources, offsets = zip(*(read_offset(part, block) for part in parts), strict=True)
    if len(set(sources)) != 1 or sorted(offsets) != [(r, c) for r in range(block) for c in range(block)]:
        return None
    return sources[0], block, list(offsets)


def read_offset(node: fx.Node, block: int) -> tuple[fx.Node, tuple[int, int]]:
    """Follow x[..., r::block, c::block] up to x; an offset without such a slice stays -1."""
    offset = {HEIGHT: -1, WIDTH: -1}
    while node.target is aten.slice.Tensor:
        arguments = dict(enumerate(node.args))
        source, dim, start = arguments[0], arguments.get(1, 0), arguments.get(2)
        end, step = arguments.get(3), arguments.get(4, 1)
        size = source.meta["val"].shape[dim]
        whole = end is None or end == sys.maxsize or (isinstance(size, int) and end >= size)
        if step != block or not whole or offset.get(dim % 4) != -1 or (isinstance(size, int) and size % block):
            break
        node, offset[dim % 4] = source, start or 0
    return node, (offset[HEIGHT], offset[WIDTH])
