"""Replace a deformable convolution by plain ones if its offsets are constant and the same everywhere in the image.

deform_conv2d(x, W, offsets), W of 1x1, offsets of whole pixels
-> conv2d(shift(x), W)                                            CycleFC
deform_conv2d(x, W, offsets), W of 1x1, learned offsets (inference artifacts)
-> conv2d(conv2d(x, four weights a channel, groups=channels), W)  Active Shift
deform_conv2d(x, W, offsets), a larger W, offsets of whole pixels
-> conv2d(cat([x moved as each place of W reads it]), W as 1x1)
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, fx

from converter.ir import custom_ops
from converter.ir.aten import bound_arguments
from converter.ir.program import Origin, Program, module_path, tensor_name
from converter.rewrites.analysis.finiteness import ZERO_WEIGHTS, may_be_infinite
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


def remaining_offsets(program: Program) -> list[Change]:
    """Replace convolutions as `constant_offsets` does, also those that only select channels."""
    return replace_deformable(program, trainable=False, pure=True)


def replace_deformable(program: Program, trainable: bool, pure: bool = False) -> list[Change]:
    changes = []
    for node in [n for n in program.graph.nodes if n.op == "call_function" and is_deformable(n)]:
        by = offsets_by_channel(program, node)
        if by is None:
            changes += stacked(program, node, trainable)
            continue
        arguments = bound_arguments(node)
        source = constant_behind(arguments.node("offset"))
        is_whole = bool((by == by.round()).all())
        if (program.trainable(source) and not trainable) or (not is_whole and not trainable):
            continue
        x, inputs = arguments.node("input"), program.exact_infinities
        if is_whole and (may_be_infinite(program, x, inputs=inputs) or (is_pure(program, node) and not pure)):
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
        assumed = is_whole and may_be_infinite(program, x)
        if assumed:
            moved.meta[ZERO_WEIGHTS] = True
        if is_whole:
            program.inline_sources(source, "became a shift")
        whole = f"of whole pixels: a shift{'; for finite inputs' if assumed else ''}"
        what = whole if is_whole else "learned: a depthwise convolution of four weights a channel"
        changes.append(Change("constant offsets", module_path(node), what))
    return changes


def stacked(program: Program, node: fx.Node, trainable: bool) -> list[Change]:
    """Replace a convolution of several places that each read at a whole offset."""
    arguments = bound_arguments(node)
    x, weight, bias = arguments.node("input"), arguments.node("weight"), arguments.node("bias")
    source, example = constant_behind(arguments.node("offset")), fixed_example(program, arguments.node("offset"))
    sizes = x.meta["val"].shape[1:]
    known = program.is_tensor(weight) and all(isinstance(n, int) for n in sizes)
    if example is None or not known or arguments.flag("use_mask") or arguments.value("groups") != 1:
        return []
    if (program.trainable(source) and not trainable) or may_be_infinite(program, x, inputs=program.exact_infinities):
        return []
    axes = "h", "w"
    channels, *image = sizes
    stride, pad, dilation = ([arguments.integer(f"{kind}_{d}") for d in axes] for kind in ("stride", "pad", "dilation"))
    kernel, out = list(weight.meta["val"].shape[2:]), node.meta["val"].shape[2:]
    by = example[0].reshape(arguments.integer("offset_groups"), kernel[0] * kernel[1], 2, -1)
    if not bool((by == by.round()).all()) or not bool((by == by[..., :1]).all()):
        return []
    place = torch.cartesian_prod(*(torch.arange(k) * d - p for k, d, p in zip(kernel, dilation, pad, strict=True)))
    first = (by[..., 0] + place).long()  # group, place of the kernel, axis: where the first window reads
    ends = [(n - 1) * s for n, s in zip(out, stride, strict=True)]
    before = [max(0, -int(first[..., i].min())) for i in range(2)]
    behind = [max(0, int(first[..., i].max()) + ends[i] + 1 - image[i]) for i in range(2)]
    if any(reach > size for reach, size in zip((*before, *behind), (*image, *image), strict=True)):
        return []
    program.replace_tensor(weight, program.values(weight).map(as_pointwise), program.origin(weight), [node])
    weight = bound_arguments(node).node("weight")
    held = None if vanishes(program, bias) else bias
    each = channels // len(first)
    with program.graph.inserting_before(node):
        padded = program.insert_call(aten.pad.default, (x, [before[1], behind[1], before[0], behind[0]]), like=node)
        parts = []
        for tap, group in itertools.product(range(first.shape[1]), range(len(first))):
            part = padded
            if each != channels:
                part = program.insert_call(aten.slice.Tensor, (part, 1, group * each, (group + 1) * each), like=node)
            for i in range(2):
                start = before[i] + int(first[group, tap, i])
                part = program.insert_call(aten.slice.Tensor, (part, 2 + i, start, start + ends[i] + 1), like=node)
            parts.append(part)
        moved = program.insert_call(aten.cat.default, (parts, 1), like=node)
        y = program.insert_call(aten.conv2d.default, (moved, weight, held, stride, [0, 0], [1, 1], 1), like=node)
    node.replace_all_uses_with(y)
    program.inline_sources(source, "became slices")
    return [Change("constant offsets", module_path(node), "of whole pixels: slices and a convolution")]


def as_pointwise(weight: Tensor) -> Tensor:
    """Return a kernel (out, in, height, width) as a 1x1 one for the places of the kernel one after another."""
    return weight.permute(0, 2, 3, 1).reshape(len(weight), -1, 1, 1)


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
