"""Deformable convolution: a convolution that reads each pixel of its window at an offset.

Offsets are added in pixels, so (0, 0) everywhere gives an ordinary convolution. The taps of the window are sampled
one after another and multiplied by their part of the kernel, so memory does not grow with the window.
"""

import itertools

import numpy as np

from converter.ir.sizes import product
from converter.plan.layout import channels_last_result
from converter.plan.lazy_keras import ops
from converter.plan.registry import maps
from converter.plan.steps import Constant, Unsupported, Value
from mappings.elementwise import sum_of
from mappings.grid_sample import ZEROS, batch_index, combined, linear, padded, total, weighted


@maps("torchvision::deform_conv2d", channels_last=True, produces=1)
def deform_conv2d(
    plan, x, weight, offset, mask, bias, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w,
    groups, offset_groups, use_mask,
):  # fmt: skip
    if not isinstance(weight, Constant):
        raise Unsupported("a kernel that depends on the input")
    if not all(isinstance(n, int) for n in x.shape[1:]):
        raise Unsupported("an image of dynamic size")
    out, _, height, width = weight.shape
    channels, *sizes = x.shape[1:]
    _, _, *made = plan.shape()
    if groups == offset_groups == 1:
        x, order = plan.channels_last(x)
        weight = weight.index_select(1, order)
    else:
        x = plan.channels_in_order(x)
    layout, emitted = channels_last_result(x.layout, plan.shape()), np.arange(out)
    if groups == 1:
        layout, emitted = plan.choose_channel_order(layout, 1)
    kernel = plan.as_value(weight.index_select(0, emitted).permute(2, 3, 1, 0), x)
    operands = [x, plan.channels_in_order(plan.as_value(offset, x)), kernel]
    if use_mask:
        operands.append(plan.channels_in_order(plan.as_value(mask, x)))
    if isinstance(bias, Constant) and not bias.query(lambda held: bool((held == 0).all())):
        operands.append(plan.as_value(bias.index_select(0, emitted), x))
    elif not isinstance(bias, Constant):
        raise Unsupported("a bias that depends on the input")
    window = list(itertools.product(range(height), range(width)))
    read = channels_last_result(x.layout, (*x.shape[:2], *made), channels=1)
    for _ in range(4 * len(window)):
        plan.count_gather(Value(read, x.dtype, x.step), "offsets of a deformable convolution")
    held = [n + 2 for n in sizes]

    def apply(image, offsets, kernel, *others):
        left = list(others)
        masks = left.pop(0) if use_mask else None
        pixels = ops.reshape(padded(image, (1, 1)), (-1, channels // offset_groups))
        by_tap = ops.reshape(offsets, (-1, *made, offset_groups, len(window), 2))
        strengths = None if masks is None else ops.reshape(masks, (-1, *made, offset_groups, len(window)))
        first = batch_index(by_tap, 4) * product(held)
        groups_apart = ops.cast(list(range(offset_groups)), "int32")
        parts = []
        for tap, (row, column) in enumerate(window):
            starts = ((row * dilation_h - pad_h, stride_h), (column * dilation_w - pad_w, stride_w))
            along = []
            for axis, ((start, stride), size) in enumerate(zip(starts, sizes, strict=True)):
                at = (start + stride * np.arange(made[axis])).reshape(-1, *(1,) * (2 - axis))
                p = sum_of(by_tap[..., tap, axis], ops.cast(at.tolist(), by_tap.dtype))
                along.append(linear(ops.clip(p, -1, size), size, ZEROS))
            sampled = total(
                weighted(ops.take(pixels, sum_of(sum_of(index, first) * offset_groups, groups_apart), axis=0), w)
                for index, w in combined(along, held)
            )
            if strengths is not None:
                sampled = weighted(sampled, strengths[..., tap])
            parts.append(multiplied(ops.reshape(sampled, (-1, channels)), kernel[row, column], groups))
        y = ops.reshape(total(parts), (-1, *made, out))
        return y + left[0] if left else y

    return plan.call(apply, *operands, layout=layout)


def multiplied(rows, matrix, groups):
    """Multiply rows by a matrix (in / groups, out), group by group."""
    if groups == 1:
        return ops.matmul(rows, matrix)
    inputs, outputs = rows.shape[-1] // groups, matrix.shape[-1] // groups
    return ops.concatenate(
        [
            ops.matmul(rows[:, g * inputs : (g + 1) * inputs], matrix[:, g * outputs : (g + 1) * outputs])
            for g in range(groups)
        ],
        -1,
    )
