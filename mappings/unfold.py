"""Windows along a dimension, and of an image as columns and back. Windows that tile the image are views of it.

Others are decomposed if the image's size is known. If it is dynamic, the elements at one place of all windows are a
strided slice of the image.
"""

import numpy as np
import torch
from torch.utils._sympy.functions import FloorDiv

from converter.ir.sizes import as_size, product
from converter.plan.layout import Layout
from converter.plan.lazy_keras import ops
from converter.plan.registry import maps
from converter.plan.steps import Unsupported, Value
from mappings import dynamic_resize
from mappings.elementwise import sum_of
from mappings.indexing import picked, viewed
from mappings.pooling import taps_along

aten = torch.ops.aten


@maps(aten.unfold.default)
def unfold(plan, x, dimension, size, step):
    """Cut windows along a dimension; they become the last one."""
    if not x.shape:
        return plan.reshape(x, plan.shape())
    dim = dimension % len(x.shape)
    if not isinstance(x.shape[dim], int):
        x, axis = plan.isolate_axis(x, dim, "windows")
        layout, _ = x.layout.resize_dim(dim, plan.shape()[dim])
        last = max(layout.size) + 1
        sizes = {**layout.size, last: size}
        plan.count_gather(x, "windows of a dynamic size")
        return plan.call(
            lambda a: ops.stack(taps_along(a, axis, size, step, 1, None), -1), x,
            layout=Layout((*layout.dims, (last,)), (*layout.axes, (last,)), sizes),
        )  # fmt: skip
    count = (x.shape[dim] - size) // step + 1
    chosen = step * np.arange(count)[:, None] + np.arange(size)
    windows = picked(plan, x, dim, chosen.ravel(), "windows")
    apart = plan.reshape(windows, (*x.shape[:dim], count, size, *x.shape[dim + 1 :]))
    order = [d for d in range(len(x.shape) + 1) if d != dim + 1]
    return Value(apart.layout.permute([*order, dim + 1]), apart.dtype, apart.step)


@maps(aten.im2col.default, channels_last=True)
def im2col(plan, x, kernel_size, dilation, padding, stride):
    """Rearrange (B, C, H, W) to (B, C * kh * kw, windows)."""
    *batch, channels, height, width = x.shape
    if not tiles((height, width), kernel_size, dilation, padding, stride):
        return slices(plan, x, kernel_size, dilation, padding, stride)
    kh, kw = kernel_size
    n = len(batch)
    split = (*batch, channels, height // kh, kh, width // kw, kw)
    shape = (*batch, channels * kh * kw, product((height // kh, width // kw)))
    return viewed(plan, x, split, (*range(n), n, n + 2, n + 4, n + 1, n + 3), shape)


@maps(aten.col2im.default, channels_last=True)
def col2im(plan, x, output_size, kernel_size, dilation, padding, stride):
    """Rearrange (B, C * kh * kw, windows) to (B, C, H, W), overlapping windows summed."""
    if not tiles(output_size, kernel_size, dilation, padding, stride):
        return summed(plan, x, plan.shape()[-2:], kernel_size, dilation, padding, stride)
    *batch, columns, _ = x.shape
    (height, width), (kh, kw) = output_size, kernel_size
    n = len(batch)
    split = (*batch, columns // (kh * kw), kh, kw, height // kh, width // kw)
    return viewed(plan, x, split, (*range(n), n, n + 3, n + 1, n + 4, n + 2), plan.shape())


def tiles(size, kernel_size, dilation, padding, stride):
    """Return whether the windows are a partition of an image of that size."""
    return (
        list(kernel_size) == list(stride)
        and set(padding) == {0}
        and all(d == 1 or k == 1 for k, d in zip(kernel_size, dilation, strict=True))
        and all(as_size(n % k) == 0 for n, k in zip(size, kernel_size, strict=True))
    )


def counts(image, kernel_size, dilation, padding, stride):
    """Return how many windows there are along each axis; some size must be dynamic, and there must be a batch."""
    if all(isinstance(n, int) for n in image):
        raise Unsupported("windows that overlap or leave gaps")
    return [
        as_size(FloorDiv(n + 2 * p - d * (k - 1) - 1, s) + 1)
        for n, k, d, p, s in zip(image, kernel_size, dilation, padding, stride, strict=True)
    ]


def slices(plan, x, kernel_size, dilation, padding, stride):
    rows, columns = counts(x.shape[-2:], kernel_size, dilation, padding, stride)
    if len(x.shape) == 3:
        x = plan.reshape(x, (1, *x.shape))
    batch, channels, taps = x.shape[0], x.shape[1], product(kernel_size)
    x = plan.channels_in_order(x)

    def apply(a):
        a = ops.pad(a, [(0, 0), *((p, p) for p in padding), (0, 0)]) if any(padding) else a
        parts = [
            part
            for line in taps_along(a, 1, kernel_size[0], stride[0], dilation[0], None)
            for part in taps_along(line, 2, kernel_size[1], stride[1], dilation[1], None)
        ]
        return ops.stack(parts, -1)

    plan.count_gather(x, "windows of a dynamic size")
    size = dict(enumerate((batch, channels, taps, rows, columns)))
    layout = Layout(tuple((i,) for i in range(5)), ((0,), (3,), (4,), (1,), (2,)), size)
    return plan.reshape(plan.call(apply, x, layout=layout), (*plan.shape()[:-2], channels * taps, rows * columns))


def summed(plan, x, image, kernel_size, dilation, padding, stride):
    windows = counts(image, kernel_size, dilation, padding, stride)
    taps, reach = product(kernel_size), [d * (k - 1) for k, d in zip(kernel_size, dilation, strict=True)]
    batch, channels = (1, *x.shape)[-3], x.shape[-2] // taps
    x = plan.reshape(x, (batch, channels, taps, *windows))
    x = Value(x.layout.permute([0, 3, 4, 1, 2]), x.dtype, x.step)
    x = plan.in_torch_order(x, "windows of a dynamic size")
    places = [(i, j) for i in range(0, reach[0] + 1, dilation[0]) for j in range(0, reach[1] + 1, dilation[1])]

    def apply(a):
        total = None
        for tap, place in enumerate(places):
            part = a[..., tap]
            for axis, step in enumerate(stride, start=1):
                part = spread(part, axis, step)
            part = ops.pad(part, [(0, 0), *((at, r - at) for at, r in zip(place, reach, strict=True)), (0, 0)])
            total = part if total is None else sum_of(total, part)
        return total

    sizes = [n * s + r for n, s, r in zip(windows, stride, reach, strict=True)]
    layout = Layout.of((batch, *sizes, channels)).permute([0, 3, 1, 2])
    y = plan.call(apply, x, layout=layout)
    for dim, (n, p) in enumerate(zip(image, padding, strict=True), start=2):
        y = dynamic_resize.part(plan, y, dim, p, n)
    return plan.reshape(y, plan.shape())


def spread(array, axis, step):
    """Put `step` - 1 zeros behind every element along an axis."""
    if step == 1:
        return array
    repeated = ops.repeat(array, step, axis)
    places = ops.cumsum(ops.ones_like(repeated, dtype="int32"), axis) - 1
    return ops.where(ops.equal(ops.mod(places, step), 0), repeated, 0)
