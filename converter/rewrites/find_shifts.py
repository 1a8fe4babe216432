"""Recognize a spatial shift in any form.

    d[:, :2, :, 1:] = d[:, :2, :, :-1]; ...          slices assigned in place
    cat([roll(pad(x)[:, :2], 1, 3), ...])[..., 1:-1]   padded, rolled, cropped
    conv2d(pad(x), one_hot, groups=channels)           a fixed depthwise convolution
    deform_conv2d(pad(x), whole_offsets, identity)     constant offsets of whole pixels
    grid_sample(x, grid)                               a constant grid (nearest; others with --exact-shifts)
    -> shift(x, dim, sizes, dims, distances, border)

The match depends only on where every element comes from, so any grouping, direction, distance, border and layout
works. A roll of everything stays a roll. If infinities may occur, kernels stay kernels: their zeros turn infinities
into NaN, a shift does not. Inputs are taken to be finite, unless the program's `exact_infinities` is set. A convolution
of an input that needs no more than a pad, if its kernel is small, stays one too: slices take up to 1.2 times as long.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import fx

from converter.ir.aten import bound_arguments, first_input
from converter.ir.program import Program, module_path
from converter.ir.sizes import symbolic_shape
from converter.rewrites.analysis.finiteness import ZERO_WEIGHTS, may_be_infinite
from converter.rewrites.analysis.provenance import CHOOSING, moved_regions, trace
from converter.rewrites.analysis.selection_ops import (
    CONVOLUTIONS,
    FIXED_ONLY,
    Allowed,
    assumes_finite,
    is_deformable,
    is_kernel,
    is_sampling,
    tensors_behind,
)
from converter.rewrites.base import Change
from converter.rewrites.shift_to_depthwise import LARGEST_KERNEL

aten, ours = torch.ops.aten, torch.ops.converter

ENDS = {
    aten.cat.default, aten.slice_scatter.default, aten.slice.Tensor, aten.stack.default, aten.roll.default,
    aten.select_scatter.default, aten.mul.Tensor, *CHOOSING,
}  # fmt: skip
# As ends, only of a shift of channels first that is written channels last.
PERMUTES = {aten.permute.default, aten.transpose.int}
SAME_PLACE = {aten.clone.default, aten.alias.default, aten.slice.Tensor, aten.contiguous.default}
PADS = {
    aten.pad.default, aten.constant_pad_nd.default, aten.replication_pad1d.default, aten.replication_pad2d.default,
    aten.replication_pad3d.default,
}  # fmt: skip
BORDERS = ("zeros", "replicate", "reflect", "keep", "circular")
MOST_SOURCES = 6  # values to try as the source of the shift
PADDED_RANKS = (3, 4, 5)  # that PyTorch's pads other than by zeros take


@dataclass(frozen=True)
class Shift:
    """The arguments of `shift`; `distances` holds a tuple for each group."""

    dim: int
    sizes: tuple[int, ...]
    dims: tuple[int, ...]
    distances: tuple[tuple[int, ...], ...]
    border: str

    def __str__(self) -> str:
        moves = ", ".join(
            f"{size} by {' '.join(f'{n:+d}' for n in by)}" for size, by in zip(self.sizes, self.distances, strict=True)
        )
        axes = ", ".join(map(str, self.dims))
        return f"groups of dimension {self.dim} along {axes}: {shortened(moves)}; border: {self.border}"


def shortened(text: str, most: int = 60) -> str:
    return text if len(text) <= most else f"{text[:most].rpartition(', ')[0]}, ..."


def find_shifts(program: Program) -> list[Change]:
    """Replace shifts that no parameter determines."""
    return replace_shifts(program, FIXED_ONLY)


def find_trained_shifts(program: Program) -> list[Change]:
    """Replace shifts for inference: a parameter that says where to shift becomes part of the graph."""
    return replace_shifts(program, Allowed(trainable=True))


def find_sampled_shifts(program: Program) -> list[Change]:
    """Replace shifts, also those by an interpolating grid that differs from a shift only by rounding."""
    return replace_shifts(program, Allowed(interpolated=True))


def find_trained_and_sampled_shifts(program: Program) -> list[Change]:
    """Replace the shifts of `find_sampled_shifts` for inference."""
    return replace_shifts(program, Allowed(trainable=True, interpolated=True))


def find_deformable_shifts(program: Program) -> list[Change]:
    """Replace the shifts by a deformable convolution that pads of each group can write."""
    return replace_shifts(program, FIXED_ONLY, is_deformable)


def find_deformable_and_sampled_shifts(program: Program) -> list[Change]:
    """Replace the shifts of `find_deformable_shifts`, and those by a grid."""
    return replace_shifts(program, Allowed(interpolated=True), lambda node: is_deformable(node) or is_sampling(node))


def replace_shifts(
    program: Program, allowed: Allowed, replaced: Callable[[fx.Node], bool] | None = None
) -> list[Change]:
    """Replace shifts.

    Args:
        replaced: if given, only shifts with such an operator, and only those that pads of each group can write.
    """
    changes: list[Change] = []
    done: set[fx.Node] = set()
    for end in reversed(list(program.graph.nodes)):
        if end in done or not end.users or not (end.target in ENDS | PERMUTES or is_kernel(end)):
            continue
        found = match_shift(program, end, allowed, replaced)
        if found is None:
            continue
        source, region, shift = found
        assumed = any(assumes_finite(node) for node in region) and may_be_infinite(program, source)
        done.update(region)
        absorb(program, region)
        with program.graph.inserting_before(end):
            distances = list(itertools.chain(*shift.distances))
            arguments = (source, shift.dim, list(shift.sizes), list(shift.dims), distances, shift.border)
            moved = program.insert_call(ours.shift.default, arguments, like=end)
        if assumed:
            moved.meta[ZERO_WEIGHTS] = True
        end.replace_all_uses_with(moved)
        description = f"{shift}; for finite inputs" if assumed else str(shift)
        changes.append(Change("spatial shift", module_path(end), description))
    return changes[::-1]


def match_shift(
    program: Program, end: fx.Node, allowed: Allowed, replaced: Callable[[fx.Node], bool] | None = None
) -> tuple[fx.Node, list[fx.Node], Shift] | None:
    """Return the value that is shifted to give `end`, the operators between, and the shift; None if there is none."""
    shape = symbolic_shape(end.meta["val"])
    candidates = []
    for source, region in moved_regions(program, end, allowed):
        if source.target in SAME_PLACE and symbolic_shape(first_input(source).meta["val"]) == shape:
            continue  # the value before it is as good
        if symbolic_shape(source.meta["val"]) == shape and source.op != "get_attr":
            candidates.append((source, region))
        if len(candidates) == MOST_SOURCES:
            break
    for source, region in reversed(candidates):  # the longest region first
        if replaced is not None and not any(map(replaced, region)):
            continue
        if end.target in PERMUTES and not any(node.target in ENDS or is_kernel(node) for node in region):
            continue
        kernels = any(assumes_finite(node) for node in region)
        chooses = any(node.target in CHOOSING for node in region)
        if not kernels and not chooses and sum(node.target not in SAME_PLACE for node in region) < 2:
            continue
        if kernels and may_be_infinite(program, source, inputs=program.exact_infinities or is_convolution(region)):
            continue
        positions = trace(program, source, region, end)
        if positions is None:
            continue
        shift = read_shift(positions)
        if kernels and shift is not None and shift.border == "reflect":
            continue  # a pad and a convolution are faster than slices
        if end.target in PERMUTES and shift is not None and shift.dim != 1:
            continue  # of channels last, which operators with names do not take
        if shift is not None and shift.dims == (1,) and np.unique(positions).size == positions.size:
            continue  # an order of channels, which weights may take
        if replaced is not None and shift is not None and not is_padding(shift, len(shape)):
            continue
        whole_roll = shift is not None and shift.border == "circular" and len(shift.sizes) == 1
        if shift is not None and any(map(any, shift.distances)) and not whole_roll:
            return source, region, shift
    return None


def is_padding(shift: Shift, rank: int) -> bool:
    """Return whether PyTorch's pads, of negative widths too, can write a shift of a value of this rank."""
    return shift.border == "zeros" or (shift.border == "replicate" and min(shift.dims) >= 2 and rank in PADDED_RANKS)


def is_convolution(region: list[fx.Node]) -> bool:
    """Return whether it is one convolution and nothing else, or a small one behind a pad."""
    called = [node for node in region if node.op == "call_function"]
    convolutions = [node for node in called if node.target in CONVOLUTIONS]
    if len(convolutions) != 1 or not all(node.target in CONVOLUTIONS | PADS for node in called):
        return False
    kernel = bound_arguments(convolutions[0]).node("weight").meta["val"].shape[2:]
    return len(called) == 1 or math.prod(kernel) <= LARGEST_KERNEL


def absorb(program: Program, region: list[fx.Node]) -> None:
    """Note the tensors that determined the shift."""
    for node in region:
        if assumes_finite(node):
            for tensor in tensors_behind(program, node):
                program.inline_sources(tensor, "became a shift")


def read_shift(positions: np.ndarray) -> Shift | None:
    """Return the shift of one example that `positions` describes, or None; its dimensions count the batch."""
    rank = positions.ndim
    if rank < 2:
        return None
    where = np.stack(np.unravel_index(np.maximum(positions, 0), positions.shape))
    by = np.where(positions >= 0, np.indices(positions.shape) - where, 0)
    moved = [d for d in range(rank) if by[d].any()]
    if not moved:
        return None
    for dim in (d for d in range(rank) if d not in moved):
        found = groups(positions, np.moveaxis(by, dim + 1, 1), dim, moved)
        if found is not None:
            sizes, distances, border = found
            return Shift(dim + 1, sizes, tuple(d + 1 for d in moved), distances, border)
    return None


def groups(positions: np.ndarray, by: np.ndarray, dim: int, moved: list[int]) -> tuple | None:
    """Return the sizes of groups of neighbors along `dim` that move alike, their distances, and the common border."""
    size = positions.shape[dim]
    shape = tuple(n for d, n in enumerate(positions.shape) if d != dim)
    stride = int(np.prod(positions.shape[dim + 1 :]))
    outer = int(np.prod(positions.shape[:dim]))
    # positions within one element of `dim`: the same for elements that move alike
    flat = positions.reshape(outer, size, stride)
    inside = np.where(flat >= 0, flat // (size * stride) * stride + flat % stride, -1)
    held = np.where(flat >= 0, flat // stride % size, np.arange(size)[None, :, None])
    if not (held == np.arange(size)[None, :, None]).all():
        return None
    patterns = [inside[:, i].reshape(shape) for i in range(size)]
    axes = [d - (d > dim) for d in moved]
    known: dict[bytes, dict[tuple[int, ...], set[str]]] = {}
    options = []
    for i, pattern in enumerate(patterns):
        key = pattern.tobytes()
        if key not in known:
            known[key] = explanations(pattern, by[:, i][moved], axes)
        if not known[key]:
            return None
        options.append(known[key])
    for border in BORDERS:
        if all(any(border in borders for borders in option.values()) for option in options):
            chosen = [next(by for by, borders in option.items() if border in borders) for option in options]
            runs = [(key, len(list(run))) for key, run in itertools.groupby(chosen)]
            return tuple(n for _, n in runs), tuple(key for key, _ in runs), border
    return None


def explanations(pattern: np.ndarray, by: np.ndarray, axes: list[int]) -> dict[tuple[int, ...], set[str]]:
    """Return the distances along `axes` that give `pattern` (positions in its shape), each with its borders."""
    present = by.reshape(len(axes), -1)[:, pattern.reshape(-1) >= 0]
    if not present.shape[1]:
        return {}
    found: dict[tuple[int, ...], set[str]] = {}
    seen, counts = np.unique(present, axis=1, return_counts=True)
    for column in np.argsort(-counts)[:16]:
        distances = tuple(int(n) for n in seen[:, column])
        borders = {b for b in BORDERS if np.array_equal(shifted(pattern.shape, axes, distances, b), pattern)}
        if borders:
            found[distances] = borders
    return found


def shifted(shape: tuple[int, ...], axes: list[int], distances: tuple[int, ...], border: str) -> np.ndarray:
    """Shift the positions of an array of `shape` as `shift` does."""
    index = np.indices(shape)
    inside = np.ones(shape, bool)
    for axis, distance in zip(axes, distances, strict=True):
        n = shape[axis]
        source = index[axis] - distance
        inside &= (source >= 0) & (source < n)
        if border == "reflect" and abs(distance) < n:
            source = n - 1 - abs(n - 1 - abs(source))
        index[axis] = source % n if border == "circular" else np.clip(source, 0, n - 1)
    positions = np.ravel_multi_index(tuple(index), shape)
    if border == "zeros":
        return np.where(inside, positions, -1)
    return np.where(inside, positions, np.arange(positions.size).reshape(shape)) if border == "keep" else positions
