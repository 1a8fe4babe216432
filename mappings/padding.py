"""Padding, and whether PyTorch's padding equals Keras' SAME."""

from collections.abc import Sequence

import numpy as np
import torch

from converter.ir.sizes import Size
from converter.ir.windows import overhang, same_padding
from converter.plan import dynamic_reshape
from converter.plan.builder import PlanBuilder
from converter.plan.layout import channels_last_result
from converter.plan.lazy_keras import layers, ops
from converter.plan.registry import maps
from converter.plan.steps import Unsupported, Value
from mappings import dynamic_resize
from mappings.indexing import picked

aten = torch.ops.aten
Pads = Sequence[tuple[int, int]]
MOST_MIRRORED_AXES = 5  # of TensorFlow's MirrorPad
ZERO_PADDING = {1: layers.ZeroPadding1D, 2: layers.ZeroPadding2D, 3: layers.ZeroPadding3D}


def is_same(shape: Sequence[Size], kernel, stride, dilation, pads: Pads) -> bool:
    """Return whether `pads`, not all 0, are what SAME pads for spatial sizes `shape`.

    Returns False if windows end before an axis does: conv3d of TensorFlow 2.21 in float64 then begins after its start.
    """
    axes = list(zip(shape, kernel, stride, dilation, strict=True))
    return (
        any(any(pad) for pad in pads)
        and [same_padding(*axis) for axis in axes] == [tuple(pad) for pad in pads]
        and all((beyond := overhang(*axis)) is not None and beyond >= 0 for axis in axes)
    )


def pad_spatial(plan: PlanBuilder, x: Value, pads: Pads, value: float = 0.0) -> Value:
    """Pad the spatial axes of a channels-last value with a constant; negative pads crop."""
    if not any(any(pad) for pad in pads):
        return x
    if any(n < 0 for pad in pads for n in pad):
        x = cropped(plan, x, [(max(-before, 0), max(-after, 0)) for before, after in pads])
        pads = [(max(before, 0), max(after, 0)) for before, after in pads]
        return pad_spatial(plan, x, pads, value)
    sizes = [n + before + after for n, (before, after) in zip(x.shape[2:], pads, strict=True)]
    layout = channels_last_result(x.layout, (*x.shape[:2], *sizes), channels=1)
    if value == 0:
        config = {"padding": tuple(pads) if len(pads) > 1 else pads[0]}
        return plan.layer(ZERO_PADDING[len(pads)], config, x, layout=layout, name=f"{plan.name}.padding")
    widths = [(0, 0), *pads, (0, 0)]
    return plan.call(lambda a: ops.pad(a, widths, constant_values=value), x, layout=layout)


def cropped(plan: PlanBuilder, x: Value, crops: Pads) -> Value:
    """Remove `crops` elements before and after each spatial axis of a channels-last value."""
    sizes = [n - before - after for n, (before, after) in zip(x.shape[2:], crops, strict=True)]
    layout = channels_last_result(x.layout, (*x.shape[:2], *sizes), channels=1)
    cut = (slice(None), *(slice(before, -after or None) for before, after in crops))
    return plan.call(lambda a: a[cut], x, layout=layout)


@maps(aten.constant_pad_nd.default)
def constant_pad_nd(plan, x, pad, value=0):
    value = value if x.dtype.is_floating_point else int(value)

    def with_value(a, widths):
        return ops.pad(a, widths, constant_values=value)

    def with_truth(a, widths):  # TensorFlow cannot pad booleans
        return ops.cast(with_value(ops.cast(a, "int32"), widths), "bool")

    by = with_truth if x.dtype == torch.bool else with_value
    x, pad = padded_by_sizes(plan, x, pad, "constant", by)
    return padded(plan, x, pad, by)


@maps(aten.pad.default)
def pad(plan, x, pad, mode="constant", value=None):
    if mode == "constant":
        return constant_pad_nd(plan, x, pad, value or 0)
    x, pad = padded_by_sizes(plan, x, pad, mode)
    if mode == "reflect":
        return padded(plan, x, pad, lambda a, widths: mirrored(a, widths, "reflect"))
    if mode == "replicate" and min(pad) >= 0 and max(pad) == 1:  # the outermost elements, mirrored
        return padded(plan, x, pad, lambda a, widths: mirrored(a, widths, "symmetric"))
    if mode == "replicate" and min(pad) < 0:
        return repeated_ends(plan, x, pad)
    return padded(plan, x, pad, lambda a, widths: extended(a, widths, replicate if mode == "replicate" else wrap))


@maps(aten.reflection_pad1d.default, aten.reflection_pad2d.default, aten.reflection_pad3d.default)
def reflection_pad(plan, x, padding):
    return pad(plan, x, padding, "reflect")


@maps(aten.replication_pad1d.default, aten.replication_pad2d.default, aten.replication_pad3d.default)
def replication_pad(plan, x, padding):
    return pad(plan, x, padding, "replicate")


# The element of an axis of `n` that a mode has at a position before, within or after it.
SOURCES = {
    "constant": lambda position, n: ops.minimum(ops.maximum(position, -1), n) + 1,  # of the axis padded by one
    "replicate": lambda position, n: ops.minimum(ops.maximum(position, 0), n - 1),
    "reflect": lambda position, n: n - 1 - ops.abs(n - 1 - ops.abs(position)),
}


def padded_by_sizes(plan: PlanBuilder, x: Value, pad: Sequence[Size], mode: str, by_one=None):
    """Pad the dimensions whose pads depend on dynamic sizes; return the result, and `pad` with zeros for them.

    Args:
        by_one: pads an array by the constant, given its axes' widths.
    """
    left = list(pad)
    for i in range(0, len(pad), 2):
        before, after = pad[i : i + 2]
        if isinstance(before, int) and isinstance(after, int):
            continue
        if mode not in SOURCES:
            raise Unsupported(f"padding ({mode}) that depends on the input's size")
        left[i : i + 2] = 0, 0
        dim = len(x.shape) - 1 - i // 2
        x, axis = plan.isolate_axis(x, dim, "padding")
        length = plan.shape()[dim]
        layout, _ = x.layout.resize_dim(dim, length)
        lines, positions = dynamic_resize.computed_positions(plan, x, dim, -before, length)

        def run(array, *arrays, axis=axis, positions=positions):
            _, size = dynamic_reshape.counted(dynamic_reshape.along(array, axis), "int32")
            chosen = SOURCES[mode](positions(arrays), size)
            if by_one is not None:
                array = by_one(array, [(int(a == axis),) * 2 for a in range(len(array.shape))])
            return ops.take(array, chosen, axis)

        plan.count_gather(x, "a pad that depends on a size")
        x = plan.call(run, x, *lines, layout=layout, dtype=x.dtype)
    return x, left


def padded(plan: PlanBuilder, x: Value, pad: Sequence[int], function) -> Value:
    """Apply `function` to the array and its axes' widths; `pad` is PyTorch's: last dimension first, before, after."""
    widths = [(0, 0)] * (len(x.shape) - len(pad) // 2) + list(zip(pad[::2], pad[1::2], strict=True))[::-1]
    for d, (before, after) in enumerate(widths):
        if min(before, after) < 0:
            before, after = max(-before, 0), max(-after, 0)
            x, axis = plan.isolate_axis(x, d, "padding")
            cut = (*(slice(None),) * axis, slice(before, -after or None))
            layout, _ = x.layout.resize_dim(d, x.shape[d] - before - after)
            x = plan.call(lambda a, cut=cut: a[cut], x, layout=layout)
    widths = [(max(before, 0), max(after, 0)) for before, after in widths]
    dims = [d for d, width in enumerate(widths) if any(width)]
    for d in dims:
        x, _ = plan.isolate_axis(x, d, "padding")
    by_axis = [(0, 0)] * len(x.layout.axes)
    layout = x.layout
    for d in dims:
        layout, axis = layout.resize_dim(d, layout.shape[d] + sum(widths[d]))
        by_axis[axis] = widths[d]
    return plan.call(lambda a: function(a, by_axis), x, layout=layout) if dims else x


def repeated_ends(plan: PlanBuilder, x: Value, pad: Sequence[int]) -> Value:
    """Repeat the tensor's own last element at each end, even if the other end crops all of it."""
    for i, (before, after) in enumerate(zip(pad[::2], pad[1::2], strict=True)):
        size = x.shape[len(x.shape) - 1 - i]
        if not isinstance(size, int):
            raise Unsupported("padding of a dynamic size")
        chosen = np.clip(np.arange(size + before + after) - before, 0, size - 1)
        x = picked(plan, x, len(x.shape) - 1 - i, chosen, "padding")
    return x


def mirrored(array, widths: Pads, mode: str):
    """Pad by reflection, or symmetrically by one element, which repeats it."""
    if len(array.shape) <= MOST_MIRRORED_AXES:
        return ops.pad(array, widths, mode=mode)
    return extended(array, widths, reflect if mode == "reflect" else replicate)


def extended(array, widths: Pads, border):
    """Join `border`'s two arrays to `array` along every axis that grows."""
    for axis, (before, after) in enumerate(widths):
        if before or after:
            first, last = border(array, axis, before, after)
            array = ops.concatenate([*([first] if before else []), array, *([last] if after else [])], axis)
    return array


def replicate(array, axis: int, before: int, after: int):
    first, last = (along(array, axis, cut) for cut in (slice(0, 1), slice(-1, None)))
    return ops.repeat(first, before, axis), ops.repeat(last, after, axis)


def reflect(array, axis: int, before: int, after: int):
    cuts = slice(1, before + 1), slice(-after - 1, -1)
    return [ops.flip(along(array, axis, cut), axis) for cut in cuts]


def wrap(array, axis: int, before: int, after: int):
    return along(array, axis, slice(-before or None, None)), along(array, axis, slice(0, after))


def along(array, axis: int, cut: slice):
    return array[(*(slice(None),) * axis, cut)]
