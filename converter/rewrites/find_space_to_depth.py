"""Recognize space to depth and its inverse in any form.

    join x[..., r::b, c::b] over channels, for all b * b offsets (r, c); nested slices; slices stacked
    -> reorder_channels(space_to_depth(x, b))
    view, permute, view; unfold in tiles; pixel_unshuffle
    -> reorder_channels(space_to_depth(x, b))
    y[..., r::b, c::b] = part; view, permute, view; fold of tiles
    -> depth_to_space(reorder_channels(x), b)

YOLOv5's Focus lists the four quadrants column by column, space_to_depth row by row. Any order works: it is read from
where the elements come from. `fold_channel_order` moves the permutation into the weights around it. What covers only a
part of the image is a slice of it first.

Parts that are joined become the operator in all formats. Views do in ONNX, and only if weights take the order: an
order that must be gathered is no better than the original. In Keras and TensorFlow artifacts views are free, and the
remaining move has a name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import fx

from converter.ir import custom_ops
from converter.ir.aten import first_input
from converter.ir.program import Program, module_path
from converter.rewrites.analysis.provenance import moved_regions, shape_of_examples, trace
from converter.rewrites.base import Change
from converter.rewrites.fold_channel_order import taken_by_weights

aten, ours = torch.ops.aten, torch.ops.converter
JOINS = {aten.cat.default, aten.stack.default, aten.slice_scatter.default, aten.select_scatter.default}
ENDS = JOINS | {
    aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.im2col.default, aten.pixel_unshuffle.default,
    aten.permute.default,
}  # fmt: skip
MOST_SOURCES = 6  # values to try as the source of the move
DYNAMIC = (12, 24)  # what is tried in place of dynamic heights and widths
assert custom_ops  # registers torch.ops.converter


@dataclass(frozen=True)
class Packing:
    """Space to depth of a window of an image, or its inverse.

    Attributes:
        order: which channel of the operator's result (of its input, for the inverse) each channel is.
        window: first row and column, height and width; None for the whole image.
    """

    name: str
    block: int
    order: tuple[int, ...]
    window: tuple[int, int, int, int] | None


def find_space_to_depth(program: Program) -> list[Change]:
    return _found(program, views=False)


def find_space_to_depth_in_views(program: Program) -> list[Change]:
    return _found(program, views=True)


def _found(program: Program, views: bool) -> list[Change]:
    changes: list[Change] = []
    done: set[fx.Node] = set()
    for end in reversed(list(program.graph.nodes)):
        if end.target not in ENDS or end in done or not end.users or end.meta["val"].dim() not in (3, 4):
            continue
        found = match(program, end, views)
        if found is None:
            continue
        source, region, packing = found
        change = replaced(program, source, end, packing, any(node.target in JOINS for node in region))
        if change is not None:
            done.update(region)
            changes.append(change)
    return changes[::-1]


def match(program: Program, end: fx.Node, views: bool) -> tuple[fx.Node, list[fx.Node], Packing] | None:
    """Return the value moved to give `end`, the operators between, and what they do, or None."""
    candidates = []
    for source, region in moved_regions(program, end):
        if (views or any(node.target in JOINS for node in region)) and may_pack(source, end):
            candidates.append((source, region))
        if len(candidates) == MOST_SOURCES:
            break
    for source, region in reversed(candidates):
        if any(node.target in (ours.space_to_depth.default, ours.shift.default) for node in region):
            continue
        dynamic = not all(isinstance(n, int) for n in source.meta["val"].shape[1:])
        tried = [packing_of(program, source, region, end, size) for size in (DYNAMIC if dynamic else DYNAMIC[:1])]
        found = tried[0]
        if found is not None and tried.count(found) == len(tried) and not (dynamic and found.window):
            return source, region, found
    return None


def may_pack(source: fx.Node, end: fx.Node) -> bool:
    """Return whether the shapes allow it."""
    if source.op == "get_attr" or source.meta["val"].dim() != 4 or not isinstance(source.meta["val"].shape[1], int):
        return False
    channels, height, width = shape_of_examples(source, source, DYNAMIC[0])[1:]
    packed, *spatial = shape_of_examples(end, source, DYNAMIC[0])[1:]
    inverse = len(spatial) == 2 and block_of(channels, packed) is not None
    fits = packed * math.prod(spatial) <= channels * height * width
    return inverse or (fits and block_of(packed, channels) is not None)


def block_of(packed: int, channels: int) -> int | None:
    block = round((packed / channels) ** 0.5) if channels else 0
    return block if block > 1 and packed == channels * block * block else None


def packing_of(program: Program, source: fx.Node, region: list[fx.Node], end: fx.Node, size: int) -> Packing | None:
    positions = trace(program, source, region, end, size)
    if positions is None or positions.min() < 0:
        return None
    shape = shape_of_examples(source, source, size)[1:]
    found = as_space_to_depth(positions, shape, "space_to_depth")
    if found is None and positions.ndim == 3 and positions.size == np.prod(shape):
        back = np.argsort(positions.ravel())
        if np.array_equal(positions.ravel()[back], np.arange(positions.size)):
            found = as_space_to_depth(back.reshape(shape), positions.shape, "depth_to_space")
    return found


def as_space_to_depth(positions: np.ndarray, shape: tuple[int, ...], name: str) -> Packing | None:
    """Return how `positions` in an image of `shape` are its space to depth, or that of a window, or None.

    The result's rows and columns may be one dimension.
    """
    channels, height, width = shape
    block = block_of(positions.shape[0], channels)
    if block is None:
        return None
    row, column = divmod(int(positions.min()) % (height * width), width)
    if positions.ndim == 3:
        rows, columns = positions.shape[1] * block, positions.shape[2] * block
    else:
        rows, columns = height, width
    if row + rows > height or column + columns > width or rows % block or columns % block:
        return None
    image = np.arange(channels * height * width).reshape(shape)[:, row : row + rows, column : column + columns]
    packed = image.reshape(channels, rows // block, block, columns // block, block).transpose(2, 4, 0, 1, 3)
    expected, given = (x.reshape(positions.shape[0], -1) for x in (packed, positions))
    at = {first: i for i, first in enumerate(expected[:, 0].tolist())}
    order = [at.get(first, -1) for first in given[:, 0].tolist()]
    if (
        sorted(order) != list(range(len(order)))
        or given.shape != expected.shape
        or not np.array_equal(expected[order], given)
    ):
        return None
    if name == "depth_to_space":
        order = np.argsort(order).tolist()
    window = None if (rows, columns) == (height, width) else (row, column, rows, columns)
    return Packing(name, block, tuple(order), window)


def replaced(program: Program, source: fx.Node, end: fx.Node, packing: Packing, joined: bool) -> Change | None:
    """Replace `end` by the operator; in place of views only if weights take the order of channels."""
    value, block, order = end.meta["val"], packing.block, list(packing.order)
    ordered = order == sorted(order)
    with program.graph.inserting_before(end):
        made = source
        if packing.window is not None:
            row, column, rows, columns = packing.window
            for dim, first, count in ((2, row, rows), (3, column, columns)):
                if count != source.meta["val"].shape[dim]:
                    made = program.insert_call(aten.slice.Tensor, (made, dim, first, first + count), like=end)
        if packing.name == "space_to_depth":
            made = program.insert_call(ours.space_to_depth.default, (made, block), like=end)
        reordering = made
        if not ordered:
            made = reordering = program.insert_call(ours.reorder_channels.default, (made, order), like=end)
        if packing.name == "depth_to_space":
            made = program.insert_call(ours.depth_to_space.default, (made, block), like=end)
        if made.meta["val"].dim() != value.dim():
            made = program.insert_call(aten.reshape.default, (made, [-1, *value.shape[1:]]), like=end)
    end.replace_all_uses_with(made)
    if not ordered and not joined and not taken_by_weights(program, reordering):
        made.replace_all_uses_with(end)
        erase_unused(program, made, source)
        return None
    label = "SpaceToDepth" if packing.name == "space_to_depth" else "DepthToSpace"
    channels = len(order) // block**2
    blocks = order[::channels]
    if joined and label == "SpaceToDepth" and order == [b + i for b in blocks for i in range(channels)]:
        listed = " ".join(f"({b // channels // block},{b // channels % block})" for b in blocks)
        text = f"block {block}, slices joined in the order {listed}"
        return Change("Focus -> SpaceToDepth", module_path(end), text)
    return Change(f"{'parts' if joined else 'views'} -> {label}", module_path(end), f"block {block}")


def erase_unused(program: Program, node: fx.Node, source: fx.Node) -> None:
    """Remove operators that were added after `source`."""
    while node is not source and not node.users:
        before = first_input(node)
        program.graph.erase_node(node)
        node = before
