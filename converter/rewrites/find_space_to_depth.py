"""Recognize space to depth and its inverse in any form.

    join x[..., r::b, c::b] over channels, for all b * b offsets (r, c); nested slices; slices stacked
    -> reorder_channels(space_to_depth(x, b))
    view, permute, view; unfold in tiles; pixel_unshuffle
    -> reorder_channels(space_to_depth(x, b))
    y[..., r::b, c::b] = part; view, permute, view; fold of tiles; a fixed 0/1 kernel
    -> depth_to_space(reorder_channels(x), b)

    slices that are joined of other images: blocks of unequal sides, sequences, volumes, channels last (Swin)
    -> view, permute, view, reorder_channels

YOLOv5's Focus lists the four quadrants column by column, space_to_depth row by row. Any order works: it is read from
where the elements come from. `fold_channel_order` moves the permutation into the weights around it. What covers only a
part of the image is a slice of it first.

Parts that are joined become the operator in all formats. Views do in ONNX, where an order that no weights take is
gathered: ONNX Runtime takes 1.1 ms for the transpose of 96 channels of 56x56, 0.23 for the operator and the gather. In
Keras and TensorFlow artifacts views are free, and the remaining move has a name. What no operator names becomes views
if weights take the order. ONNX Runtime transposes blocks of a map with its channels first slower than it slices them
(96x96: 0.51 ms against 0.17): there only sequences and channels last become views. It runs a transposed kernel of a few
channels faster than DepthToSpace (16 channels, 56x56: 0.37 ms against 0.57): that one stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import fx

from converter.ir import custom_ops
from converter.ir.aten import bound_arguments, first_input
from converter.ir.program import Program, module_path
from converter.rewrites.analysis.finiteness import may_be_infinite
from converter.rewrites.analysis.provenance import moved_regions, shape_of_examples, trace
from converter.rewrites.analysis.selection_ops import TRANSPOSED, assumes_finite, is_kernel, tensors_behind
from converter.rewrites.base import Change
from converter.rewrites.fold_channel_order import taken_by_weights

aten, ours = torch.ops.aten, torch.ops.converter
JOINS = {
    aten.cat.default, aten.stack.default, aten.slice_scatter.default, aten.select_scatter.default,
    aten.as_strided.default, aten.col2im.default,
}  # fmt: skip
ENDS = JOINS | {
    aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.im2col.default, aten.pixel_unshuffle.default,
    aten.permute.default, aten.unflatten.int,
}  # fmt: skip
MOST_KERNEL_CHANNELS = 64  # for each group: 1 to 64 of blocks of 2 take 0.3 to 0.9 of DepthToSpace's time, 256 take 1.5
MOST_SOURCES = 6  # values to try as the source of the move
DYNAMIC = (12, 24)  # what is tried in place of dynamic heights and widths
assert custom_ops  # registers torch.ops.converter


@dataclass(frozen=True)
class Packing:
    """Space to depth of a window of an image, or its inverse.

    Attributes:
        blocks: a number for each spatial dimension.
        axis: dimension of the channels, 1 or the last.
        order: which channel of the operator's result (of its input, for the inverse) each channel is.
        window: for each spatial dimension the first position and how many; None for the whole image.
    """

    name: str
    blocks: tuple[int, ...]
    axis: int
    order: tuple[int, ...]
    window: tuple[tuple[int, int], ...] | None

    @property
    def has_operator(self) -> bool:
        """Whether an operator does this."""
        return self.axis == 1 and len(self.blocks) == 2 and len(set(self.blocks)) == 1


def find_space_to_depth(program: Program) -> list[Change]:
    return _found(program)


def find_fast_space_to_depth(program: Program) -> list[Change]:
    return _found(program, allowed=lambda found: len(found.blocks) == 1 or found.axis != 1, keeps=is_fast_kernel)


def find_space_to_depth_in_views(program: Program) -> list[Change]:
    return _found(program, views=True, allowed=lambda found: False)


def find_space_to_depth_or_gather(program: Program) -> list[Change]:
    """Replace views, also where channels must then be gathered: that is five times as fast with ONNX Runtime."""
    return _found(program, views=True, allowed=lambda found: False, keeps=is_fast_kernel, gathers=True)


def _found(
    program: Program,
    views: bool = False,
    allowed: Callable[[Packing], bool] = lambda found: True,
    keeps: Callable[[Sequence[fx.Node]], bool] = lambda region: False,
    gathers: bool = False,
) -> list[Change]:
    """Replace what is found.

    Args:
        allowed: whether what no operator does may become views.
        keeps: whether a region stays as it is, because the operator is slower.
        gathers: whether an order that no weights take may be a gather, though views are replaced.
    """
    changes: list[Change] = []
    done: set[fx.Node] = set()
    for end in reversed(list(program.graph.nodes)):
        if (
            not (end.target in ENDS or is_kernel(end))
            or end in done
            or not end.users
            or end.meta["val"].dim() not in (3, 4, 5)
        ):
            continue
        found = match(program, end, views)
        if found is None or not (found[2].has_operator or allowed(found[2])):
            continue
        source, region, packing = found
        if keeps(region):
            continue
        needs_weights = not (gathers and packing.has_operator and packing.name == "space_to_depth")
        change = replaced(program, source, end, packing, region, needs_weights)
        if change is not None:
            done.update(region)
            changes.append(change)
    return changes[::-1]


def is_fast_kernel(region: Sequence[fx.Node]) -> bool:
    """Return whether a region is one transposed kernel that ONNX Runtime runs faster than DepthToSpace."""
    if len(region) != 1 or region[0].target not in TRANSPOSED:
        return False
    arguments = bound_arguments(region[0])
    channels = arguments.node("input").meta["val"].shape[1]
    return channels // arguments.integer("groups") <= MOST_KERNEL_CHANNELS


def match(program: Program, end: fx.Node, views: bool) -> tuple[fx.Node, list[fx.Node], Packing] | None:
    """Return the value moved to give `end`, the operators between, and what they do, or None."""
    candidates = []
    for source, region in moved_regions(program, end):
        joined = is_joined(region)
        if (joined or views) and may_pack(source, end, joined):
            candidates.append((source, region))
        if len(candidates) == MOST_SOURCES:
            break
    for source, region in reversed(candidates):
        if any(node.target in (ours.space_to_depth.default, ours.shift.default) for node in region):
            continue
        kernels = any(assumes_finite(node) for node in region)
        if kernels and may_be_infinite(program, source, inputs=program.exact_infinities):
            continue
        dynamic = not all(isinstance(n, int) for n in source.meta["val"].shape[1:])
        tried = [packing_of(program, source, region, end, size) for size in (DYNAMIC if dynamic else DYNAMIC[:1])]
        found = tried[0]
        if found is None or tried.count(found) < len(tried) or (dynamic and (found.window or not found.has_operator)):
            continue
        if found.has_operator or is_joined(region):
            return source, region, found
    return None


def is_joined(region: Sequence[fx.Node]) -> bool:
    """Return whether parts are joined, or a kernel places them."""
    return any(node.target in JOINS or is_kernel(node) for node in region)


def may_pack(source: fx.Node, end: fx.Node, joined: bool) -> bool:
    """Return whether the shapes allow it. Only what is `joined` may be more than an operator's work."""
    rank = source.meta["val"].dim()
    if source.op == "get_attr" or rank not in (3, 4, 5) or (rank != 4 and not joined):
        return False
    before, after = shape_of_examples(source, source, DYNAMIC[0])[1:], shape_of_examples(end, source, DYNAMIC[0])[1:]
    flat = (len(before), len(after)) == (3, 2)
    if (not flat and len(before) != len(after)) or math.prod(after) > math.prod(before):
        return False
    for axis in (1, rank - 1) if joined and not flat else (1,):
        if not isinstance(source.meta["val"].shape[axis], int):
            continue
        (c, *sizes), (d, *made) = ((n.pop(axis - 1), *n) for n in (list(before), list(after)))
        if not c or not d:
            continue
        inner = blocks_of(d / c, sizes, None if flat else made)
        if inner is not None or (not flat and blocks_of(c / d, made, sizes) is not None):
            return True
    return False


def packing_of(program: Program, source: fx.Node, region: list[fx.Node], end: fx.Node, size: int) -> Packing | None:
    positions = trace(program, source, region, end, size)
    if positions is None or positions.min() < 0:
        return None
    shape = shape_of_examples(source, source, size)[1:]
    for axis in (1, len(shape)):
        found = as_space_to_depth(positions, shape, axis, "space_to_depth")
        if found is None and positions.ndim == len(shape) and positions.size == np.prod(shape):
            back = np.argsort(positions.ravel())
            if np.array_equal(positions.ravel()[back], np.arange(positions.size)):
                found = as_space_to_depth(back.reshape(shape), positions.shape, axis, "depth_to_space")
        if found is not None:
            return found
    return None


def as_space_to_depth(positions: np.ndarray, shape: tuple[int, ...], axis: int, name: str) -> Packing | None:
    """Return how `positions` in an image of `shape` are its space to depth, or that of a window, or None.

    Neither has a batch. The rows and columns of the result may be one dimension.

    Args:
        axis: dimension of the channels, counted with the batch.
    """
    image = np.moveaxis(np.arange(math.prod(shape)).reshape(shape), axis - 1, 0)
    flat = positions.ndim != len(shape)
    given = positions if flat else np.moveaxis(positions, axis - 1, 0)
    channels, *sizes = image.shape
    blocks = blocks_of(len(given) / channels, sizes, None if flat else given.shape[1:])
    if blocks is None or (flat and axis != 1):
        return None
    counts = sizes if flat else [n * block for n, block in zip(given.shape[1:], blocks, strict=True)]
    place = np.argwhere(image == positions.min())[0][1:].tolist()
    if any(at + n > size or n % b for at, n, size, b in zip(place, counts, sizes, blocks, strict=True)):
        return None
    window = tuple(zip(place, counts, strict=True))
    part = image[(slice(None), *(slice(at, at + n) for at, n in window))]
    expected = packed(part, blocks).reshape(len(given), -1)
    given = given.reshape(len(given), -1)
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
    return Packing(name, blocks, axis, tuple(order), None if counts == sizes else window)


def blocks_of(count: float, sizes: Sequence[int], packed: Sequence[int] | None) -> tuple[int, ...] | None:
    """Return the block along each of `sizes` if there are `count` elements in one, or None.

    Args:
        packed: the sizes after it, of the whole or of a window; None if they are not known.
    """
    rank = len(sizes)
    if packed is not None and all(n and size % n == 0 for n, size in zip(packed, sizes, strict=True)):
        blocks = tuple(size // n for n, size in zip(packed, sizes, strict=True))
        if math.prod(blocks) == count:
            return blocks if count > 1 else None
    block = round(count ** (1 / rank))
    return (block,) * rank if block > 1 and block**rank == count else None


def packed(image: np.ndarray, blocks: Sequence[int]) -> np.ndarray:
    """Return the space to depth of (C, ...): the blocks before the channels."""
    rank = len(blocks)
    split = [n for size, block in zip(image.shape[1:], blocks, strict=True) for n in (size // block, block)]
    apart = image.reshape(-1, *split)
    return apart.transpose(*range(2, 2 * rank + 1, 2), 0, *range(1, 2 * rank, 2))


def replaced(
    program: Program, source: fx.Node, end: fx.Node, packing: Packing, region: list[fx.Node], needs_weights: bool
) -> Change | None:
    """Replace `end` by the operator or by views.

    Args:
        needs_weights: views are replaced, and added, only if weights take the order.
    """
    value, order = end.meta["val"], list(packing.order)
    joined = is_joined(region)
    ordered = order == sorted(order)
    spatial = [d for d in range(1, source.meta["val"].dim()) if d != packing.axis]
    with program.graph.inserting_before(end):
        made = source
        for dim, (first, count) in zip(spatial, packing.window or (), strict=False):
            if count != source.meta["val"].shape[dim]:
                made = program.insert_call(aten.slice.Tensor, (made, dim, first, first + count), like=end)
        if packing.name == "space_to_depth":
            made = moved(program, made, packing, end)
        reordering: fx.Node | None = None
        if not ordered:
            made = reordering = in_order(program, made, packing.axis, order, end)
        if packing.name == "depth_to_space":
            made = moved(program, made, packing, end)
        if made.meta["val"].dim() != value.dim():
            made = program.insert_call(aten.reshape.default, (made, [-1, *value.shape[1:]]), like=end)
    kernels = [node for node in region if assumes_finite(node)]
    assumed = "; for finite inputs" if kernels and may_be_infinite(program, source) else ""
    end.replace_all_uses_with(made)
    if reordering is not None and needs_weights and not (joined and packing.has_operator):
        reorder = reordering if packing.axis == 1 else first_input(reordering)
        unneeded: set[fx.Node] = set()
        for node in reversed(region):
            if unneeded.issuperset(node.users):
                unneeded.add(node)
        if not taken_by_weights(program, reorder, unneeded):
            made.replace_all_uses_with(end)
            erase_unused(program, made, source)
            return None
    for tensor in (tensor for node in kernels for tensor in tensors_behind(program, node)):
        program.inline_sources(tensor, "became an order of elements")
    label = "SpaceToDepth" if packing.name == "space_to_depth" else "DepthToSpace"
    text = f"block {packing.blocks[0]}" if packing.has_operator else f"block {'x'.join(map(str, packing.blocks))}"
    channels = len(order) // math.prod(packing.blocks)
    firsts = order[::channels]
    if joined and label == "SpaceToDepth" and order == [b + i for b in firsts for i in range(channels)]:
        listed = " ".join(f"({','.join(map(str, place))})" for place in places(firsts, channels, packing.blocks))
        name = "Focus -> SpaceToDepth" if packing.has_operator else "slices -> views"
        return Change(name, module_path(end), f"{text}, slices joined in the order {listed}{assumed}")
    name = f"{'parts' if joined else 'views'} -> {label if packing.has_operator else 'views'}"
    return Change(name, module_path(end), f"{text}{assumed}")


def places(firsts: Sequence[int], channels: int, blocks: Sequence[int]) -> list[tuple[int, ...]]:
    """Return the place within a block that each first channel is from."""
    found = np.unravel_index(np.array(firsts) // channels, blocks)
    return list(zip(*(axis.tolist() for axis in found), strict=True))


def moved(program: Program, x: fx.Node, packing: Packing, like: fx.Node) -> fx.Node:
    """Insert space to depth of all of `x`, or its inverse: the operator if there is one, else views."""
    if packing.has_operator:
        operator = getattr(ours, packing.name).default
        return program.insert_call(operator, (x, packing.blocks[0]), like=like)
    rank, blocks = len(packing.blocks), packing.blocks
    shape = list(x.meta["val"].shape)
    channels = shape.pop(packing.axis)
    sizes = shape[1:]
    last = packing.axis != 1
    if packing.name == "space_to_depth":
        split = [n for size, block in zip(sizes, blocks, strict=True) for n in (size // block, block)]
        counts, within = (list(range(first, first + 2 * rank, 2)) for first in ((1, 2) if last else (2, 3)))
        apart = [*split, channels] if last else [channels, *split]
        order = [0, *counts, *within, 2 * rank + 1] if last else [0, *within, 1, *counts]
        channels *= math.prod(blocks)
        together = [size // block for size, block in zip(sizes, blocks, strict=True)]
    else:
        channels //= math.prod(blocks)
        apart = [*sizes, *blocks, channels] if last else [*blocks, channels, *sizes]
        first = 1 if last else rank + 2
        pairs = [d for i in range(rank) for d in (first + i, (rank + 1 if last else 1) + i)]
        order = [0, *pairs, 2 * rank + 1] if last else [0, rank + 1, *pairs]
        together = [size * block for size, block in zip(sizes, blocks, strict=True)]
    y = program.insert_call(aten.reshape.default, (x, [-1, *apart]), like=like)
    y = program.insert_call(aten.permute.default, (y, order), like=like)
    shape = [-1, *together, channels] if last else [-1, channels, *together]
    return program.insert_call(aten.reshape.default, (y, shape), like=like)


def in_order(program: Program, x: fx.Node, axis: int, order: list[int], like: fx.Node) -> fx.Node:
    """Insert an order of the channels, which `reorder_channels` takes in dimension 1."""
    if axis == 1:
        return program.insert_call(ours.reorder_channels.default, (x, order), like=like)
    rank = x.meta["val"].dim()
    x = program.insert_call(aten.permute.default, (x, [0, rank - 1, *range(1, rank - 1)]), like=like)
    x = program.insert_call(ours.reorder_channels.default, (x, order), like=like)
    return program.insert_call(aten.permute.default, (x, [0, *range(2, rank), 1]), like=like)


def erase_unused(program: Program, node: fx.Node, source: fx.Node) -> None:
    """Remove operators that were added after `source`."""
    while node is not source and not node.users:
        before = first_input(node)
        program.graph.erase_node(node)
        node = before
