"""Pack an image in the order that is asked for, where no weights can take another.

    reorder_channels(space_to_depth(x, b), order), order exchanging rows, columns and channels of the blocks
    -> view, permute, view

So nothing is gathered: all moves at once, as before a convolution in groups of columns.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch

from converter.ir import custom_ops
from converter.ir.aten import bound_arguments, first_input
from converter.ir.program import Program, module_path
from converter.rewrites.base import Change

aten, ours = torch.ops.aten, torch.ops.converter
assert custom_ops  # registers torch.ops.converter


def order_in_views(program: Program) -> list[Change]:
    changes = []
    for node in program.graph.find_nodes(op="call_function", target=ours.reorder_channels.default):
        packed = first_input(node)
        if packed.target is not ours.space_to_depth.default or len(packed.users) > 1:
            continue
        x, block = first_input(packed), bound_arguments(packed).integer("block")
        _, channels, height, width = x.meta["val"].shape
        axes = exchanged(bound_arguments(node).integers("order"), (block, block, channels))
        if axes is None or not all(isinstance(n, int) for n in (height, width)):
            continue
        split = [-1, channels, height // block, block, width // block, block]
        order = [0, *((3, 5, 1)[axis] for axis in axes), 2, 4]
        with program.graph.inserting_before(node):
            y = program.insert_call(aten.reshape.default, (x, split), like=node)
            y = program.insert_call(aten.permute.default, (y, order), like=node)
            y = program.insert_call(aten.reshape.default, (y, [-1, *node.meta["val"].shape[1:]]), like=node)
        node.replace_all_uses_with(y)
        changes.append(Change("SpaceToDepth in another order", module_path(node), "as one transpose"))
    return changes


def exchanged(order: list[int], sizes: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the axes of an array of `sizes` in the order that lists its elements in `order`, or None."""
    array = np.arange(len(order)).reshape(sizes)
    for axes in itertools.permutations(range(len(sizes))):
        if array.transpose(axes).ravel().tolist() == order:
            return axes
    return None
