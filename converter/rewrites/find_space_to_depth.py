"""Recognize space to depth and its inverse in any form (ONNX).

    view, permute, view; unfold in tiles; pixel_unshuffle; nested slices, joined
    -> reorder_channels(space_to_depth(x, block))
    view, permute, view; fold of tiles
    -> depth_to_space(reorder_channels(x), block)

Applies only if weights take the order: an order that must be gathered is no better than the original. Keras and
TensorFlow artifacts do not need this, because views are free there and the remaining move has a name.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import fx

from converter.ir import custom_ops
from converter.ir.program import Program, module_path
from converter.rewrites.analysis.provenance import moved_regions, trace
from converter.rewrites.base import Change
from converter.rewrites.fold_channel_order import taken_by_weights

aten, ours = torch.ops.aten, torch.ops.converter
ENDS = {
    aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.cat.default, aten.im2col.default,
    aten.pixel_unshuffle.default, aten.permute.default,
}  # fmt: skip
MOST_SOURCES = 6  # values to try as the source of the move
assert custom_ops  # registers torch.ops.converter


def find_space_to_depth(program: Program) -> list[Change]:
    changes: list[Change] = []
    done: set[fx.Node] = set()
    for end in reversed(list(program.graph.nodes)):
        if end.target not in ENDS or end in done or not end.users or end.meta["val"].dim() not in (3, 4):
            continue
        found = match(program, end)
        if found is None:
            continue
        source, region, name, block, order = found
        change = replaced(program, source, end, name, block, order)
        if change is not None:
            done.update(region)
            changes.append(change)
    return changes[::-1]


def match(program: Program, end: fx.Node) -> tuple[fx.Node, list[fx.Node], str, int, list[int]] | None:
    """Return the value moved to give `end`, the operators between, their name, block and channel order, or None."""
    candidates = []
    for source, region in moved_regions(program, end):
        value = source.meta["val"]
        if value.dim() == 4 and source.op != "get_attr" and all(isinstance(n, int) for n in value.shape[1:]):
            candidates.append((source, region))
        if len(candidates) == MOST_SOURCES:
            break
    for source, region in reversed(candidates):
        if any(node.target in (ours.space_to_depth.default, ours.shift.default) for node in region):
            continue
        positions = trace(program, source, region, end)
        if positions is None or positions.min() < 0 or positions.size != np.unique(positions).size:
            continue
        shape = tuple(source.meta["val"].shape[1:])
        if int(np.prod(shape)) != positions.size:
            continue
        found = as_space_to_depth(positions, shape)
        if found is not None:
            return source, region, "space_to_depth", *found
        if positions.ndim == 3:
            found = as_space_to_depth(np.argsort(positions.ravel()).reshape(shape), positions.shape)
            if found is not None:
                block, order = found
                return source, region, "depth_to_space", block, list(np.argsort(order))
    return None


def as_space_to_depth(positions: np.ndarray, shape: tuple[int, ...]) -> tuple[int, list[int]] | None:
    """Return the block and the channel of `space_to_depth` at each position, for an image of `shape`, or None.

    The result's rows and columns may be one dimension.
    """
    channels, height, width = shape
    block = round((positions.shape[0] / channels) ** 0.5)
    if block < 2 or positions.shape[0] != channels * block * block or height % block or width % block:
        return None
    packed = np.arange(positions.size).reshape(channels, height // block, block, width // block, block)
    expected = packed.transpose(2, 4, 0, 1, 3).reshape(positions.shape[0], -1)
    given = positions.reshape(positions.shape[0], -1)
    at = {first: i for i, first in enumerate(expected[:, 0].tolist())}
    order = [at.get(first, -1) for first in given[:, 0].tolist()]
    return (block, order) if min(order) >= 0 and np.array_equal(expected[order], given) else None


def replaced(program: Program, source: fx.Node, end: fx.Node, name: str, block: int, order: list[int]) -> Change | None:
    """Replace `end` by the operator if weights take the order of channels."""
    value = end.meta["val"]
    ordered = order == sorted(order)
    with program.graph.inserting_before(end):
        if name == "space_to_depth":
            made = packed = program.insert_call(ours.space_to_depth.default, (source, block), like=end)
            if not ordered:
                made = program.insert_call(ours.reorder_channels.default, (packed, order), like=end)
            reordering = made
        else:
            reordering = source
            if not ordered:
                reordering = program.insert_call(ours.reorder_channels.default, (source, order), like=end)
            made = program.insert_call(ours.depth_to_space.default, (reordering, block), like=end)
        if made.meta["val"].dim() != value.dim():
            made = program.insert_call(aten.reshape.default, (made, [-1, *value.shape[1:]]), like=end)
    end.replace_all_uses_with(made)
    if not ordered and not taken_by_weights(program, reordering):
        made.replace_all_uses_with(end)
        erase_unused(program, made, source)
        return None
    label = "SpaceToDepth" if name == "space_to_depth" else "DepthToSpace"
    return Change(f"views -> {label}", module_path(end), f"block {block}")


def erase_unused(program: Program, node: fx.Node, source: fx.Node) -> None:
    """Remove operators that were added after `source`."""
    while node is not source and not node.users:
        before = node.args[0]
        program.graph.erase_node(node)
        node = before
