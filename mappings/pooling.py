"""Pooling. Maximum pools pad with minus infinity, average pools count the elements that PyTorch counts.

A CPU has no 3-D pools in float64, and Keras has no dilated ones: these run along one axis after another.
"""

import functools
from typing import Any

import numpy as np
import sympy
import torch
import torch.nn.functional as F

from converter.ir.aten import AVERAGE_POOLS, MAX_POOLS
from converter.ir.lazy_tensor import LazyTensor
from converter.ir.sizes import as_size
from converter.plan.layout import channels_last_result
from converter.plan.lazy_keras import backend, layers, ops
from converter.plan.registry import maps
from converter.plan.steps import Constant, Unsupported
from mappings import dynamic_resize
from mappings.axis_matmul import multiplied
from mappings.conv import each
from mappings.dynamic_resize import Resize
from mappings.max_with_indices import adaptive, bounds, maxima_and_positions, sliding
from mappings.padding import is_same, pad_spatial

aten = torch.ops.aten
MAXIMUM = {1: layers.MaxPooling1D, 2: layers.MaxPooling2D}
AVERAGE = {1: layers.AveragePooling1D, 2: layers.AveragePooling2D}
GLOBAL_MAXIMUM = {1: layers.GlobalMaxPooling1D, 2: layers.GlobalMaxPooling2D, 3: layers.GlobalMaxPooling3D}
GLOBAL_AVERAGE = {1: layers.GlobalAveragePooling1D, 2: layers.GlobalAveragePooling2D, 3: layers.GlobalAveragePooling3D}
ADAPTIVE_MAX_POOLS = {
    aten.adaptive_max_pool1d.default: 1,
    aten.adaptive_max_pool2d.default: 2,
    aten.adaptive_max_pool3d.default: 3,
}
ADAPTIVE_AVERAGE_POOLS = {
    aten.adaptive_avg_pool1d.default: 1,
    aten.adaptive_avg_pool2d.default: 2,
    aten.adaptive_avg_pool3d.default: 3,
    aten._adaptive_avg_pool2d.default: 2,
    aten._adaptive_avg_pool3d.default: 3,
}


def overhang(size, out, kernel, stride, padding):
    """Return how many elements to add after an axis so that windows without padding give `out` results (ceil_mode)."""
    beyond = as_size(sympy.simplify((out - 1) * stride + kernel - size - padding))
    if isinstance(beyond, int):
        return max(padding, beyond)
    return min(padding + stride, kernel) - 1  # a window that would begin past the end is dropped


def of_batch(plan, x, rank, pool, shape):
    """Call `pool(x, shape)`, adding a batch if `x` has none; a dynamic number of channels becomes its batch."""
    if len(x.shape) == rank + 2:
        return pool(x, shape)
    at = 0 if isinstance(x.shape[0], int) else 1
    y = pool(plan.reshape(x, (*x.shape[:at], 1, *x.shape[at:])), (*shape[:at], 1, *shape[at:]))
    return plan.reshape(y, shape)


def with_indices(plan, x, rank, pool, windows):
    """Return the maxima, and their positions if the operator returns them and they are read.

    Args:
        pool: as for `of_batch`.
        windows: function of the result's shape that returns the windows along each spatial axis.
    """
    if isinstance(plan.node.meta["val"], torch.Tensor):
        return of_batch(plan, x, rank, pool, plan.shape())
    shape = plan.shape(0)
    if any(user.args[1] == 1 and user.users for user in plan.node.users):
        return maxima_and_positions(plan, x, windows(shape[-rank:]))
    return [of_batch(plan, x, rank, pool, shape)]


@maps(*MAX_POOLS, channels_last=True)
def max_pool(plan, x, kernel_size, stride=(), padding=(0,), dilation=(1,), ceil_mode=False):
    rank = MAX_POOLS[plan.node.target]
    kernel, padding, dilation = each(kernel_size, rank), each(padding, rank), each(dilation, rank)
    stride = each(stride, rank) if stride else kernel
    reach = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))

    def pool(x, shape):
        pads = [
            (p, overhang(n, out, r, s, p) if ceil_mode else p)
            for n, out, r, s, p in zip(x.shape[2:], shape[2:], reach, stride, padding, strict=True)
        ]
        if rank == 3 or max(dilation) > 1:
            return maximum_by_axis(plan, x, kernel, stride, pads, dilation, shape)
        x, _ = plan.channels_last(x)
        same = is_same(x.shape[2:], kernel, stride, dilation, pads)
        if not same:
            x = pad_spatial(plan, x, pads, value=-np.inf)
        config = {"pool_size": kernel, "strides": stride, "padding": "same" if same else "valid"}
        return plan.layer(MAXIMUM[rank], config, x, layout=channels_last_result(x.layout, shape, channels=1))

    def windows(out):
        sizes = x.shape[-rank:]
        return [sliding(*axis) for axis in zip(sizes, out, kernel, stride, padding, dilation, strict=True)]

    return with_indices(plan, x, rank, pool, windows)


def maximum_by_axis(plan, x, kernel, stride, pads, dilation, shape):
    known = has_known_sizes(x)
    for dim, (k, s, pad, d) in enumerate(zip(kernel, stride, pads, dilation, strict=True), start=2):
        if (k, s, tuple(pad)) == (1, 1, (0, 0)):
            continue

        def pool(a, axis, k=k, s=s, pad=pad, d=d, size=shape[dim]):
            a = padded_along(a, axis, pad, -np.inf)
            if d == 1 and known:
                return windows_along(a, axis, k, s, ops.max_pool)
            return functools.reduce(ops.maximum, taps_along(a, axis, k, s, d, size))

        x = by_axis(plan, x, dim, shape[dim], pool)
    return x


def by_axis(plan, x, dim, size, function):
    """Apply `function(array, axis)`, which changes the size of dimension `dim`, on any axis."""
    x, axis = plan.isolate_axis(x, dim, "a pool")
    layout, _ = x.layout.resize_dim(dim, size)
    return plan.call(lambda a: function(a, axis), x, layout=layout)


def has_known_sizes(x):
    """Return whether all sizes besides the batch are known."""
    return all(isinstance(n, int) for n in x.shape[1:])


def taps_along(array, axis, kernel, stride, dilation, count):
    """Return the first elements of all windows along one axis, the second ones, and so on.

    Args:
        count: of the windows, if it is known.
    """
    reach, before = dilation * (kernel - 1), (slice(None),) * axis
    known = isinstance(count, int)
    return [
        array[(*before, slice(i, i + (count - 1) * stride + 1 if known else i - reach or None, stride))]
        for i in range(0, reach + 1, dilation)
    ]


def padded_along(array, axis, pad, value):
    if not any(pad):
        return array
    widths = [pad if i == axis else (0, 0) for i in range(len(array.shape))]
    return ops.pad(array, widths, constant_values=value)


def windows_along(array, axis, kernel, stride, pool):
    """Pool along one axis without padding, as an image of one column whose channels are the axes after it."""
    shape = tuple(array.shape)
    behind = shape[axis + 1 :]
    if None in behind:
        raise ValueError(f"the axes behind {axis} must be known, not {behind}")
    channels = int(np.prod(behind, dtype=int))
    if backend.is_keras_tensor(array):  # a file returns tuples as lists, which Keras on JAX rejects: numbers only
        line = ops.reshape(array, (-1, shape[axis], channels))
        pooled = pool(line, kernel, strides=stride, padding="valid", data_format="channels_last")
    else:
        image = ops.reshape(array, (-1, shape[axis], 1, channels))
        pooled = pool(image, (kernel, 1), strides=(stride, 1), padding="valid", data_format="channels_last")
    before = tuple(-1 if n is None else n for n in shape[:axis])
    return ops.reshape(pooled, (*before, pooled.shape[1], *behind))


@maps(*AVERAGE_POOLS, channels_last=True)
def average_pool(
    plan, x, kernel_size, stride=(), padding=(0,), ceil_mode=False, count_include_pad=True, divisor_override=None
):
    if not x.dtype.is_floating_point:
        raise Unsupported("an average of integers, which PyTorch truncates")
    rank = AVERAGE_POOLS[plan.node.target]
    kernel, padding = each(kernel_size, rank), each(padding, rank)
    stride = each(stride, rank) if stride else kernel

    def pool(x, shape):
        sizes = x.shape[2:]
        pads = [
            (p, overhang(n, out, k, s, p) if ceil_mode else p)
            for n, out, k, s, p in zip(sizes, shape[2:], kernel, stride, padding, strict=True)
        ]
        plain = not any(any(pad) for pad in pads)
        same = (
            rank < 3
            and not count_include_pad
            and is_same(sizes, kernel, stride, (1,) * rank, pads)
            and not divisor_override
        )
        y = averaged(plan, x, kernel, stride, pads, same, shape)
        if same or (plain and not divisor_override):
            return y
        window = float(np.prod(kernel))
        if divisor_override:
            return plan.elementwise(lambda a: a * (window / divisor_override), y)
        if not all(isinstance(n, int) for n in sizes):
            if count_include_pad and not ceil_mode:
                return y
            counted = [(p, p) if count_include_pad else (0, 0) for p in padding]
            return per_element(plan, x, y, kernel, stride, pads, counted)
        share = divisors(sizes, kernel, stride, padding, ceil_mode, count_include_pad) / window
        if bool((share == 1).all()):
            return y
        scale = Constant(LazyTensor.of(1 / share), y.dtype, (), False, False, ("divisors", plan.node.name))
        return plan.elementwise(lambda a, b: a * b, y, scale)

    return of_batch(plan, x, rank, pool, plan.shape())


def averaged(plan, x, kernel, stride, pads, same, shape):
    rank = len(kernel)
    if rank < 3:
        x, _ = plan.channels_last(x)
        if not same:
            x = pad_spatial(plan, x, pads)
        config = {"pool_size": kernel, "strides": stride, "padding": "same" if same else "valid"}
        return plan.layer(AVERAGE[rank], config, x, layout=channels_last_result(x.layout, shape, channels=1))
    known = has_known_sizes(x)
    for dim, (k, s, pad) in enumerate(zip(kernel, stride, pads, strict=True), start=2):
        if (k, s, tuple(pad)) != (1, 1, (0, 0)):

            def pool(a, axis, k=k, s=s, pad=pad):
                a = padded_along(a, axis, pad, 0.0)
                if known:
                    return windows_along(a, axis, k, s, ops.average_pool)
                return functools.reduce(ops.add, taps_along(a, axis, k, s, 1, None)) * (1 / k)

            x = by_axis(plan, x, dim, shape[dim], pool)
    return x


def per_element(plan, x, y, kernel, stride, pads, counted):
    """Convert `y`, means over all padding, to means over the elements of `x` and the padding that is `counted`."""
    x, _ = plan.channels_last(x)
    rest = [(p - c, q - d) for (p, q), (c, d) in zip(pads, counted, strict=True)]

    def run(means, array):
        ones = ops.ones_like(array[:1, ..., :1])
        for widths, value in ((counted, 1), (rest, 0)):
            ones = ops.pad(ones, [(0, 0), *widths, (0, 0)], constant_values=value)
        return means / mean_of_windows(ones, kernel, stride)

    return plan.call(run, y, x, layout=y.layout)


def mean_of_windows(image, kernel, stride):
    """Compute the mean of each window of a channels-last array of one channel, whose sizes may be dynamic."""
    if len(kernel) == 3:
        for axis, (k, s) in enumerate(zip(kernel, stride, strict=True), start=1):
            image = functools.reduce(ops.add, taps_along(image, axis, k, s, 1, None)) * (1 / k)
        return image
    if len(set(kernel)) == len(set(stride)) == 1:
        return ops.average_pool(image, kernel[0], stride[0], "valid", "channels_last")
    if not backend.is_keras_tensor(image):
        return ops.average_pool(image, kernel, stride, "valid", "channels_last")
    rows = ops.average_pool(ops.squeeze(image, -1), kernel[0], stride[0], "valid", "channels_last")
    columns = ops.average_pool(ops.transpose(rows, (0, 2, 1)), kernel[1], stride[1], "valid", "channels_last")
    return ops.expand_dims(ops.transpose(columns, (0, 2, 1)), -1)


def divisors(sizes, kernel, stride, padding, ceil_mode, count_include_pad) -> torch.Tensor:
    """Return how many elements PyTorch divides each window's sum by, (spatial sizes of the result)."""
    pool: Any = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[len(sizes)]
    ones = torch.ones(1, 1, *sizes, dtype=torch.float64)
    if len(sizes) == 1:
        total = F.avg_pool2d(
            ones[:, :, None], (1, *kernel), (1, *stride), (0, *padding), ceil_mode, True, divisor_override=1
        )[:, :, 0]
        mean = pool(ones, kernel, stride, padding, ceil_mode, count_include_pad)
    else:
        total = pool(ones, kernel, stride, padding, ceil_mode, True, divisor_override=1)
        mean = pool(ones, kernel, stride, padding, ceil_mode, count_include_pad)
    return (total / mean)[0, 0]


def adaptive_pool(plan, rank, layer, resize, known):
    """Return a pool to a shape: a layer over everything, `resize` for each dynamic dimension, else `known`."""

    def pool(x, shape):
        if x.shape == shape:
            return x
        if all(n == 1 for n in shape[2:]):
            return whole(plan, x, layer[rank], shape)
        if all(isinstance(n, int) for n in (*x.shape[2:], *shape[2:])):
            return known(plan, x, shape, evenly(x.shape[2:], shape[2:]))
        for dim in range(2, rank + 2):
            if x.shape[dim] != shape[dim]:
                x = resize(plan, x, dim, shape[dim])
        return x

    return pool


@maps(*ADAPTIVE_AVERAGE_POOLS, channels_last=True)
def adaptive_average_pool(plan, x, output_size):
    rank = ADAPTIVE_AVERAGE_POOLS[plan.node.target]

    def resize(plan, x, dim, size):
        return dynamic_resize.weighted(plan, x, dim, size, Resize(), dynamic_resize.mean, "an adaptive pool")

    def known(plan, x, shape, size):
        if size:
            return averaged(plan, x, size, size, [(0, 0)] * rank, False, shape)
        for dim in range(2, rank + 2):
            x = multiplied(plan, x, dim, averaging_matrix(x.shape[dim], shape[dim]), "an adaptive pool")
        return x

    return of_batch(plan, x, rank, adaptive_pool(plan, rank, GLOBAL_AVERAGE, resize, known), plan.shape())


def whole(plan, x, layer, shape):
    x, _ = plan.channels_last(x)
    return plan.layer(layer, {"keepdims": True}, x, layout=channels_last_result(x.layout, shape, channels=1))


def evenly(sizes, out):
    """Return the windows' size if all are alike, else None."""
    if all(n % m == 0 for n, m in zip(sizes, out, strict=True)):
        return tuple(n // m for n, m in zip(sizes, out, strict=True))
    return None


def averaging_matrix(size: int, out: int) -> np.ndarray:
    """Return a matrix (out, size) whose row i averages window i."""
    matrix = np.zeros((out, size))
    for i, (first, last) in enumerate(bounds(size, out)):
        matrix[i, first:last] = 1 / (last - first)
    return matrix


@maps(*ADAPTIVE_MAX_POOLS, channels_last=True)
def adaptive_max_pool(plan, x, output_size):
    rank = ADAPTIVE_MAX_POOLS[plan.node.target]

    def known(plan, x, shape, size):
        if size and rank < 3:
            x, _ = plan.channels_last(x)
            layout = channels_last_result(x.layout, shape, channels=1)
            return plan.layer(MAXIMUM[rank], {"pool_size": size, "strides": size}, x, layout=layout)
        if size:
            return maximum_by_axis(plan, x, size, size, [(0, 0)] * rank, (1,) * rank, shape)
        for dim in range(2, rank + 2):
            if x.shape[dim] != shape[dim]:
                windows = bounds(x.shape[dim], shape[dim])

                def parts(a, axis, windows=windows):
                    before = (slice(None),) * axis
                    held = [ops.max(a[(*before, slice(*w))], axis=axis, keepdims=True) for w in windows]
                    return ops.concatenate(held, axis)

                x = by_axis(plan, x, dim, shape[dim], parts)
        return x

    pool = adaptive_pool(plan, rank, GLOBAL_MAXIMUM, dynamic_resize.largest, known)

    def windows(out):
        return [adaptive(size, n) for size, n in zip(x.shape[-rank:], out, strict=True)]

    return with_indices(plan, x, rank, pool, windows)
