"""Replace a deformable convolution by plain ones if its offsets are constant and the same everywhere in the image.

deform_conv2d(x, W, offsets), W of 1x1, offsets of whole pixels
-> conv2d(shift(x), W)                                            CycleFC
deform_conv2d(x, W, offsets), W of 1x1, learned offsets (inference artifacts)
-> conv2d(conv2d(x, four weights a channel, groups=channels), W)  Active Shift
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, fx

from converter.ir import custom_ops
from converter.ir.program import Origin, Program, module_path
from converter.rewrites.analysis.finiteness import may_be_infinite
from converter.rewrites.analysis.selection_ops import (
    constant_behind,
    fixed_example,
    is_deformable,
    is_one_hot,
    vanishes,
)
from converter.rewrites.base import Change

aten, ours = torch.ops.aten, torch.ops.converter
assert custom_ops  # registers torch.ops.converter
FARTHEST = 3  # pixels that a depthwise kernel may reach for a fractional offset


def constant_offsets(program: Program) -> list[Change]:
    """Replace convolutions whose offsets are whole pixels and not trainable."""
    return replace_deformable(program, trainable=False)


def learned_offsets(program: Program) -> list[Change]:
    """Replace convolutions with any constant offsets, for inference."""
    return replace_deformable(program, trainable=True)


def replace_deformable(program: Program, trainable: bool) -> list[Change]:
    changes = []
    for node in [n for n in program.graph.nodes if n.op == "call_function" and is_deformable(n)]:
        by = offsets_by_channel(program, node)
        if by is None:
            continue
        source = constant_behind(node.args[2])
        is_whole = bool((by == by.round()).all())
        if (program.trainable(source) and not trainable) or (not is_whole and not trainable):
            continue
        if is_whole and (may_be_infinite(program, node.args[0]) or is_pure(program, node)):
            continue
        if not is_whole and bool((by.abs() > FARTHEST).any()):
            continue
        _, weight, _, _, bias, *geometry = node.args
        with program.graph.inserting_before(node):
            moved = shifted(program, node, by) if is_whole else interpolated(program, node, by, source)
            held = None if vanishes(program, bias) else bias
            y = program.insert_call(
                aten.conv2d.default, (moved, weight, held, geometry[:2], [0, 0], [1, 1], geometry[6]), node
            )
        node.replace_all_uses_with(y)
        if is_whole:
            for name in program.origins[source.target].sources:
                program.inlined_sources[name] = "became a shift"
        what = "of whole pixels: a shift" if is_whole else "learned: a depthwise convolution of four weights a channel"
        changes.append(Change("constant offsets", module_path(node), what))
    return changes


def offsets_by_channel(program: Program, node: fx.Node) -> Tensor | None:
    """Return one offset per channel, (C, 2), or None unless it is an unpadded 1x1 convolution with constant offsets."""
    x, weight, offset, _, _, _, _, pad_h, pad_w, _, _, _, offset_groups, use_mask = node.args
    channels = x.meta["val"].shape[1]
    plain = program.is_tensor(weight) and tuple(weight.meta["val"].shape[2:]) == (1, 1)
    example = fixed_example(program, offset) if plain and not use_mask and pad_h == pad_w == 0 else None
    if example is None:
        return None
    by = example[0].reshape(offset_groups, 2, -1)
    if not bool((by == by[..., :1]).all()) or not bool(torch.isfinite(by).all()):
        return None
    return by[..., 0].repeat_interleave(channels // offset_groups, 0)


def is_pure(program: Program, node: fx.Node) -> bool:
    """Return whether the kernel only selects channels; `find_shifts` then matches it with its surroundings."""
    return is_one_hot(program, node.args[1]) and vanishes(program, node.args[4]) and not program.trainable(node.args[1])


def shifted(program: Program, node: fx.Node, by: Tensor) -> fx.Node:
    runs = [(key, len(list(run))) for key, run in itertools.groupby(tuple(int(-n) for n in row) for row in by)]
    sizes, distances = [n for _, n in runs], [n for key, _ in runs for n in key]
    return program.insert_call(ours.shift.default, (node.args[0], 1, sizes, [2, 3], distances, "zeros"), like=node)


def interpolated(program: Program, node: fx.Node, by: Tensor, source: fx.Node) -> fx.Node:
    """Convolve each channel with its own kernel of the four bilinear weights around its offset."""
    first = by.floor()
    reach = int(max(first.abs().max(), (first + 1).abs().max()))
    kernel = torch.zeros(len(by), 1, 2 * reach + 1, 2 * reach + 1, dtype=torch.float64)
    for channel, ((row, column), part) in enumerate(zip(first.long().tolist(), (by - first).tolist(), strict=True)):
        for (i, u), (j, v) in itertools.product(*[((0, 1 - p), (1, p)) for p in part]):
            if u * v:
                kernel[channel, 0, reach + row + i, reach + column + j] = u * v
    origin = Origin(program.origins[source.target].sources, exact=False)
    weight = program.new_tensor(f"{source.target}_kernel", kernel, node, origin, trainable=True)
    arguments = (node.args[0], weight, None, [1, 1], [reach, reach], [1, 1], len(by))
    return program.insert_call(aten.conv2d.default, arguments, like=node)
