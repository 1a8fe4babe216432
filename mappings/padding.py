"""Padding, and the question when PyTorch's is what Keras calls SAME."""

from collections.abc import Sequence

import torch
from keras import layers, ops

from converter.layout import Size, channels_last_result
from converter.plan import Plan, Unsupported, Value
from converter.registry import maps

aten = torch.ops.aten
Pads = Sequence[tuple[int, int]]
ZERO_PADDING = {1: layers.ZeroPadding1D, 2: layers.ZeroPadding2D, 3: layers.ZeroPadding3D}


def same_padding(size: Size, kernel: int, stride: int, dilation: int) -> tuple[int, int] | None:
    """What SAME pads before and after an axis; None where that depends on a size unknown at conversion.

    The odd element goes behind (https://www.tensorflow.org/api_docs/python/tf/nn#notes_on_padding_2).
    """
    reach = dilation * (kernel - 1) + 1
    if stride == 1:
        total = reach - 1
    elif isinstance(size, int):
        total = max((-(-size // stride) - 1) * stride + reach - size, 0)
    else:
        return None
    return total // 2, total - total // 2


def is_same(shape: Sequence[Size], kernel, stride, dilation, pads: Pads) -> bool:
    """Whether `pads` on spatial sizes `shape` are what SAME pads."""
    return all(
        same_padding(*axis) == tuple(pad) for *axis, pad in zip(shape, kernel, stride, dilation, pads, strict=True)
    )


def pad_spatial(plan: Plan, x: Value, pads: Pads, value: float = 0.0) -> Value:
    """Pad the spatial axes of a channels-last value with a constant."""
    if not any(any(pad) for pad in pads):
        return x
    sizes = [n + before + after for n, (before, after) in zip(x.shape[2:], pads, strict=True)]
    layout = channels_last_result(x.layout, (*x.shape[:2], *sizes), channels=1)
    if value == 0 and all(n >= 0 for pad in pads for n in pad):
        config = {"padding": tuple(pads) if len(pads) > 1 else pads[0]}
        return plan.layer(ZERO_PADDING[len(pads)], config, x, layout=layout, name=f"{plan.name}.padding")
    if any(n < 0 for pad in pads for n in pad):
        raise Unsupported("negative padding")
    widths = [(0, 0), *pads, (0, 0)]
    return plan.call(lambda a: ops.pad(a, widths, constant_values=value), x, layout=layout)


@maps(aten.constant_pad_nd.default)
def constant_pad_nd(plan, x, pad, value=0):
    widths = [(0, 0)] * (len(x.shape) - len(pad) // 2) + list(zip(pad[::2], pad[1::2], strict=True))[::-1]
    if any(n < 0 for pair in widths for n in pair):
        raise Unsupported("negative padding")
    dims = [d for d, width in enumerate(widths) if any(width)]
    for d in dims:
        x, _ = plan.one_axis(x, d, "padding")
    by_axis = [(0, 0)] * len(x.layout.axes)
    layout = x.layout
    for d in dims:
        layout, axis = layout.resized(d, layout.shape[d] + sum(widths[d]))
        by_axis[axis] = widths[d]
    return plan.call(lambda a: ops.pad(a, by_axis, constant_values=value), x, layout=layout)
