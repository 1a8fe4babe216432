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
from converter.ir.aten import bound_arguments
from converter.ir.program import Origin, Program, module_path, tensor_name
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
        arguments = bound_arguments(node)
        source = constant_behind(arguments.node("offset"))
        is_whole = bool((by == by.round()).all())
        if (program.trainable(source) and not trainable) or (not is_whole and not trainable):
            continue
        if is_whole and (may_be_infinite(program, arguments.node("input")) or is_pure(program, node)):
            continue
        if not is_whole and bool((by.abs() > FARTHEST).any()):
            continue
        weight, bias = arguments.node("weight"), arguments.node("bias")
        stride, groups = [arguments.value("stride_h"), arguments.value("stride_w")], arguments.value("groups")
        with program.graph.inserting_before(node):
            moved = shifted(program, node, by) if is_whole else interpolated(program, node, by, source)
            held = None if vanishes(program, bias) else bias
            y = program.insert_call(aten.conv2d.default, (moved, weight, held, stride, [0, 0], [1, 1], groups), node)
        node.replace_all_uses_with(y)
        if is_whole:
            program.inline_sources(source, "became a shift")
        what = "of whole pixels: a shift" if is_whole else "learned: a depthwise convolution of four weights a channel"
        changes.append(Change("constant offsets", module_path(node), what))
    return changes


def offsets_by_channel(program: Program, node: fx.Node) -> Tensor | None:
    """Return one offset per channel, (C, 2), or None unless it is an unpadded 1x1 convolution with constant offsets."""
    arguments = bound_arguments(node)
    weight, offset_groups = arguments.node("weight"), arguments.integer("offset_groups")
    channels = arguments.node("input").meta["val"].shape[1]
    plain = program.is_tensor(weight) and tuple(weight.meta["val"].shape[2:]) == (1, 1)
    unpadded = arguments.value("pad_h") == arguments.value("pad_w") == 0
    if not plain or not unpadded or arguments.flag("use_mask"):
        return None
    example = fixed_example(program, arguments.node("offset"))
    if example is None:
        return None
    by = example[0].reshape(offset_groups, 2, -1)
    if not bool((by == by[..., :1]).all()) or not bool(torch.isfinite(by).all()):
        return None
    return by[..., 0].repeat_interleave(channels // offset_groups, 0)


def is_pure(program: Program, node: fx.Node) -> bool:
    """Return whether the kernel only selects channels; `find_shifts` then matches it with its surroundings."""
    weight, bias = bound_arguments(node).node("weight"), bound_arguments(node).node("bias")
    return is_one_hot(program, weight) and vanishes(program, bias) and not program.trainable(weight)


def shifted(program: Program, node: fx.Node, by: Tensor) -> fx.Node:
    runs = [(key, len(list(run))) for key, run in itertools.groupby(tuple(int(-n) for n in row) for row in by)]
    sizes, distances = [n for _, n in runs], [n for key, _ in runs for n in key]
    x = bound_arguments(node).node("input")
    return program.insert_call(ours.shift.default, (x, 1, sizes, [2, 3], distances, "zeros"), like=node)


def interpolated(program: Program, node: fx.Node, by: Tensor, source: fx.Node) -> fx.Node:
    """Convolve each channel with its own kernel of the four bilinear weights around its offset."""
    first = by.floor()
    reach = int(max(first.abs().max(), (first + 1).abs().max()))
    kernel = torch.zeros(len(by), 1, 2 * reach + 1, 2 * reach + 1, dtype=torch.float64)
    for channel, ((row, column), part) in enumerate(zip(first.long().tolist(), (by - first).tolist(), strict=True)):
        for (i, u), (j, v) in itertools.product(*[((0, 1 - p), (1, p)) for p in part]):
            if u * v:
                kernel[channel, 0, reach + row + i, reach + column + j] = u * v
    origin = Origin(program.origin(source).sources, exact=False)
    weight = program.new_tensor(f"{tensor_name(source)}_kernel", kernel, node, origin, trainable=True)
    arguments = (bound_arguments(node).node("input"), weight, None, [1, 1], [reach, reach], [1, 1], len(by))
    return program.insert_call(aten.conv2d.default, arguments, like=node)
