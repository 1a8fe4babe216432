"""Spatial shifts.

A shift becomes one depthwise convolution if its kernel is small and needs no manual padding: three times as fast as
slices on a CPU. Otherwise, and if infinities may occur, every group is sliced and joined to its border.
"""

import numpy as np
import torch

from converter.ir.lazy_tensor import LazyTensor
from converter.plan.layout import channels_last_result
from converter.plan.lazy_keras import layers, ops
from converter.plan.registry import maps
from converter.plan.steps import Constant, Value
from converter.rewrites.analysis.finiteness import ZERO_WEIGHTS, may_be_infinite
from converter.rewrites.shift_to_depthwise import LARGEST_KERNEL, one_hot_kernel
from mappings.padding import MOST_MIRRORED_AXES

ELEMENTS_A_GROUP = 2  # of a kernel that is as fast as slices: 25 groups, 56x56 pixels: 0.36 ms against 0.92


@maps(torch.ops.converter.shift.default, channels_last=True)
def shift(plan, x, dim, sizes, dims, distances, border):
    most = max(LARGEST_KERNEL, ELEMENTS_A_GROUP * len(sizes))
    kernel = one_hot_kernel(len(x.shape), dim, sizes, dims, distances, most) if border == "zeros" else None
    finite = ZERO_WEIGHTS in plan.node.meta or not may_be_infinite(plan.program, plan.node.args[0])
    if kernel is not None and finite:
        return by_convolution(plan, x, [0, dim, *(d for d in range(1, len(x.shape)) if d != dim)], kernel)
    by_group = [tuple(distances[i * len(dims) : (i + 1) * len(dims)]) for i in range(len(sizes))]
    return by_slices(plan, x, dim, sizes, dims, by_group, border)


def by_convolution(plan, x, order, ones):
    """Shift by a depthwise convolution; `order` lists the batch, the groups' dimension and the others, as in `ones`."""
    x, channels = plan.channels_last(Value(x.layout.permute(order), x.dtype, x.step))
    count, *size = ones.shape
    constant = Constant(
        LazyTensor.of(ones), torch.float32, (), True, False, ("shift", ones.shape, ones.numpy().tobytes())
    )
    kernel = constant.index_select(0, channels).permute(*range(1, len(size) + 1), 0).reshape(*size, count, 1)
    config = {
        "kernel_size": tuple(size), "strides": (1,) * len(size), "padding": "same", "dilation_rate": (1,) * len(size),
        "depth_multiplier": 1, "use_bias": False,
    }  # fmt: skip
    kind = layers.DepthwiseConv1D if len(size) == 1 else layers.DepthwiseConv2D
    layout = channels_last_result(x.layout, x.shape, channels=1)
    y = plan.layer(kind, config, x, weights=(kernel,), layout=layout, name=f"{plan.name}.shift")
    return Value(y.layout.permute(np.argsort(order).tolist()), y.dtype, y.step)


def by_slices(plan, x, dim, sizes, dims, by_group, border):
    for d in (dim, *dims):
        x, _ = plan.isolate_axis(x, d, "a shift")
    axis, *axes = (x.layout.axes.index(x.layout.dims[d]) for d in (dim, *dims))
    first = [sum(sizes[:i]) for i in range(len(sizes))]

    def apply(a):
        parts = []
        for start, size, by in zip(first, sizes, by_group, strict=True):
            part = a if size == a.shape[axis] else along(a, axis, start, start + size)
            parts.append(moved(part, [(ax, n) for ax, n in zip(axes, by, strict=True) if n], border))
        return parts[0] if len(parts) == 1 else ops.concatenate(parts, axis)

    return plan.call(apply, x, layout=x.layout)


def along(array, axis, start, stop):
    return array[(*(slice(None),) * axis, slice(start, stop))]


def moved(part, by, border):
    """Move `part` by (axis, distance) pairs."""
    if border == "circular":
        return ops.roll(part, [n for _, n in by], [axis for axis, _ in by]) if by else part
    if border == "keep":
        inner = part
        for axis, n in by:
            inner = cut(inner, axis, n)
        return placed(part, inner, by)
    for axis, n in by:
        part = with_border(cut(part, axis, n), part, axis, n, border)
    return part


def cut(part, axis, n):
    """Return the rest of `part` after a move by `n`."""
    size = part.shape[axis]
    return along(part, axis, max(-n, 0), size - max(n, 0))


def with_border(inner, part, axis, n, border):
    size = part.shape[axis]
    if border == "zeros" or (border == "reflect" and 2 * abs(n) < size and len(part.shape) <= MOST_MIRRORED_AXES):
        widths = [(0, 0)] * len(part.shape)
        widths[axis] = (max(n, 0), max(-n, 0))
        return ops.pad(inner, widths, mode="constant" if border == "zeros" else "reflect")
    if border == "reflect":
        edge = ops.flip(along(part, axis, 1, n + 1) if n > 0 else along(part, axis, size - 1 + n, size - 1), axis)
        return ops.concatenate([edge, inner] if n > 0 else [inner, edge], axis)
    edge = along(part, axis, 0, 1) if n > 0 else along(part, axis, size - 1, size)
    edges = [edge] * abs(n)
    return ops.concatenate([*edges, inner] if n > 0 else [inner, *edges], axis)


def placed(part, inner, by):
    """Put `inner` into `part` at the place that it was moved to."""
    if not by:
        return inner
    (axis, n), *rest = by
    size = part.shape[axis]
    band = placed(along(part, axis, max(n, 0), size - max(-n, 0)), inner, rest)
    kept = along(part, axis, 0, n) if n > 0 else along(part, axis, size + n, size)
    return ops.concatenate([kept, band] if n > 0 else [band, kept], axis)
