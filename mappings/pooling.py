"""Pooling. Maximum pools pad with minus infinity, average pools count what PyTorch counts."""

import numpy as np
import torch
import torch.nn.functional as F
from keras import layers, ops

from converter.layout import channels_last_result
from converter.plan import Constant, Unsupported
from converter.registry import maps
from mappings.conv import each
from mappings.padding import is_same, pad_spatial

aten = torch.ops.aten
MAXIMUM = {1: layers.MaxPooling1D, 2: layers.MaxPooling2D, 3: layers.MaxPooling3D}
AVERAGE = {1: layers.AveragePooling1D, 2: layers.AveragePooling2D, 3: layers.AveragePooling3D}
GLOBAL_AVERAGE = {1: layers.GlobalAveragePooling1D, 2: layers.GlobalAveragePooling2D, 3: layers.GlobalAveragePooling3D}


def overhang(size, out, kernel, stride, padding):
    """Elements to add behind an axis, so that windows without padding give `out` results (more with ceil_mode)."""
    if not isinstance(size, int):
        return padding
    return max(padding, (out - 1) * stride + kernel - size - padding)


@maps(aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default, channels_last=True)
def max_pool(plan, x, kernel_size, stride=(), padding=(0,), dilation=(1,), ceil_mode=False):
    rank = len(x.shape) - 2
    kernel, padding, dilation = each(kernel_size, rank), each(padding, rank), each(dilation, rank)
    stride = each(stride, rank) if stride else kernel
    if max(dilation) > 1:
        raise Unsupported("a dilated pool")
    x, _ = plan.channels_last(x)
    shape = plan.shape()
    pads = [
        (p, overhang(n, out, k, s, p) if ceil_mode else p)
        for n, out, k, s, p in zip(x.shape[2:], shape[2:], kernel, stride, padding, strict=True)
    ]
    same = is_same(x.shape[2:], kernel, stride, dilation, pads)
    if not same:
        x = pad_spatial(plan, x, pads, value=-np.inf)
    config = {"pool_size": kernel, "strides": stride, "padding": "same" if same else "valid"}
    return plan.layer(MAXIMUM[rank], config, x, layout=channels_last_result(x.layout, shape, channels=1))


@maps(aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default, channels_last=True)
def average_pool(
    plan, x, kernel_size, stride=(), padding=(0,), ceil_mode=False, count_include_pad=True, divisor_override=None
):
    rank = len(x.shape) - 2
    kernel, padding = each(kernel_size, rank), each(padding, rank)
    stride = each(stride, rank) if stride else kernel
    x, _ = plan.channels_last(x)
    shape = plan.shape()
    pads = [
        (p, overhang(n, out, k, s, p) if ceil_mode else p)
        for n, out, k, s, p in zip(x.shape[2:], shape[2:], kernel, stride, padding, strict=True)
    ]
    same = not count_include_pad and is_same(x.shape[2:], kernel, stride, (1,) * rank, pads) and not divisor_override
    plain = not any(any(pad) for pad in pads)
    sizes = x.shape[2:]
    if not same:
        x = pad_spatial(plan, x, pads)
    config = {"pool_size": kernel, "strides": stride, "padding": "same" if same else "valid"}
    y = plan.layer(AVERAGE[rank], config, x, layout=channels_last_result(x.layout, shape, channels=1))
    if same or (plain and not divisor_override):
        return y
    window = float(np.prod(kernel))
    if divisor_override:
        return plan.elementwise(lambda a: a * (window / divisor_override), y)
    if not all(isinstance(n, int) for n in sizes):
        if count_include_pad and not ceil_mode:
            return y
        raise Unsupported("a divisor that depends on an unknown size")
    counted = [list(padding), [(0, 0)] * rank]
    share = divisors(sizes, kernel, stride, padding, ceil_mode, count_include_pad) / window
    del counted
    if bool((share == 1).all()):
        return y
    scale = Constant(1 / share, y.dtype, (), False, False, ("divisors", plan.node.name))
    return plan.elementwise(lambda a, b: a * b, y, scale)


def divisors(sizes, kernel, stride, padding, ceil_mode, count_include_pad) -> torch.Tensor:
    """How many elements PyTorch divides each window's sum by, (spatial sizes of the result)."""
    pool = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[len(sizes)]
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


@maps(
    aten.adaptive_avg_pool1d.default,
    aten.adaptive_avg_pool2d.default,
    aten.adaptive_avg_pool3d.default,
    channels_last=True,
)
def adaptive_average_pool(plan, x, output_size):
    rank = len(x.shape) - 2
    shape = plan.shape()
    if x.shape == shape:
        return x
    x, _ = plan.channels_last(x)
    layout = channels_last_result(x.layout, shape, channels=1)
    if all(n == 1 for n in shape[2:]):
        return plan.layer(GLOBAL_AVERAGE[rank], {"keepdims": True}, x, layout=layout)
    if not all(isinstance(n, int) for n in (*x.shape[2:], *shape[2:])):
        raise Unsupported("adaptive pooling of an unknown size")
    if all(n % m == 0 for n, m in zip(x.shape[2:], shape[2:], strict=True)):
        size = tuple(n // m for n, m in zip(x.shape[2:], shape[2:], strict=True))
        return plan.layer(AVERAGE[rank], {"pool_size": size, "strides": size}, x, layout=layout)
    for axis, (size, out) in enumerate(zip(x.shape[2:], shape[2:], strict=True), start=1):
        matrix = averaging_matrix(size, out)
        sizes = (*x.shape[: axis + 1], out, *x.shape[axis + 2 :])
        x = plan.call(
            lambda a, m=matrix, axis=axis: along(a, m, axis), x, layout=channels_last_result(x.layout, sizes, channels=1)
        )
    return x


def averaging_matrix(size: int, out: int) -> np.ndarray:
    """(out, size): row i averages elements floor(i * size / out) to ceil((i + 1) * size / out)."""
    matrix = np.zeros((out, size))
    for i in range(out):
        first, last = i * size // out, -(-(i + 1) * size // out)
        matrix[i, first:last] = 1 / (last - first)
    return matrix


def along(array, matrix: np.ndarray, axis: int):
    """Multiply `axis` of a channels-last array by a constant matrix (new size, old size)."""
    letters = "abcdefg"[: len(array.shape)]
    old = letters[axis]
    return ops.einsum(f"{letters},z{old}->{letters.replace(old, 'z')}", array, ops.cast(matrix, array.dtype))
