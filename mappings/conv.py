"""Convolutions.

PyTorch stores a kernel as (out, in / groups, height, width), Keras as (height, width, in / groups, out). The input
channels may come in any order: the kernel follows.
"""

import numpy as np
import torch

from converter.ir.windows import same_padding
from converter.plan.layout import channels_last_result
from converter.plan.lazy_keras import layers, ops
from converter.plan.registry import maps
from converter.plan.steps import Constant, Unsupported, Value
from mappings.padding import is_same, pad_spatial

aten = torch.ops.aten
CONV = {1: layers.Conv1D, 2: layers.Conv2D, 3: layers.Conv3D}
SEPARABLE = {1: layers.SeparableConv1D, 2: layers.SeparableConv2D}


def each(value, rank):
    """Return one number per spatial axis."""
    return tuple(value) * (rank if len(value) == 1 else 1)


@maps(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, channels_last=True, produces=1)
def convolution(plan, x, weight, bias=None, stride=(1,), padding=(0,), dilation=(1,), groups=1):
    rank = len(weight.shape) - 2
    pads = [(p, p) for p in each(padding, rank)]
    return padded_convolution(plan, x, weight, bias, each(stride, rank), pads, each(dilation, rank), groups)


@maps(aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding, channels_last=True, produces=1)
def named_padding(plan, x, weight, bias=None, stride=(1,), padding="valid", dilation=(1,), groups=1):
    rank = len(weight.shape) - 2
    dilation = each(dilation, rank)
    pads = [(0, 0)] * rank
    if padding == "same":  # strides are 1 in this case
        pads = [same_padding(0, k, 1, d) or (0, 0) for k, d in zip(weight.shape[2:], dilation, strict=True)]
    return padded_convolution(plan, x, weight, bias, each(stride, rank), pads, dilation, groups)


@maps(torch.ops.converter.padded_conv.default, channels_last=True, produces=1)
def padded_conv(plan, x, weight, bias, stride, pads, dilation, groups):
    rank = len(pads) // 2
    widths = list(zip(pads[:rank], pads[rank:], strict=True))
    return padded_convolution(plan, x, weight, bias, tuple(stride), widths, tuple(dilation), groups)


def padded_convolution(plan, x, weight, bias, stride, pads, dilation, groups, shape=None):
    """Convolve `x`; the result has logical `shape` (by default the operator's own)."""
    if not isinstance(weight, Constant):
        raise Unsupported("a kernel that depends on the input")
    if len(x.shape) < len(weight.shape):
        return without_batch(
            plan, x, lambda x, shape: padded_convolution(plan, x, weight, bias, stride, pads, dilation, groups, shape)
        )
    shape = shape or plan.shape()
    out, in_per_group, *size = weight.shape
    rank = len(size)
    if rank == 3 and groups > 1:
        return grouped_volume(plan, x, weight, bias, stride, pads, dilation, groups, shape)
    depthwise = in_per_group == 1 and groups > 1 and rank < 3 and len(set(stride)) == 1
    x, order = plan.channels_last(x) if groups == 1 or depthwise else (plan.channels_in_order(x), np.arange(x.shape[1]))

    subsample = None
    if max(stride) > 1 and max(dilation) > 1:  # Keras supports only one of them
        subsample, stride = stride, (1,) * rank
    same = is_same(x.shape[2:], size, stride, dilation, pads) and subsample is None
    if not same:
        x = pad_spatial(plan, x, pads)
    asked = shape
    if subsample:
        reach = [d * (k - 1) for k, d in zip(size, dilation, strict=True)]
        shape = (*shape[:2], *(n - r for n, r in zip(x.shape[2:], reach, strict=True)))
    config = {
        "kernel_size": tuple(size),
        "strides": stride,
        "padding": "same" if same else "valid",
        "dilation_rate": dilation,
        "use_bias": bias is not None,
    }
    if depthwise:
        multiplier = out // groups
        layout = channels_last_result(x.layout, shape, channels=multiplier)
        kernel = weight.reshape(groups, multiplier, *size).index_select(0, order).permute(*range(2, rank + 2), 0, 1)
        if bias is not None:
            bias = bias.reshape(groups, multiplier).index_select(0, order).reshape(out)
        kind = layers.DepthwiseConv1D if rank == 1 else layers.DepthwiseConv2D
        y = plan.layer(kind, config | {"depth_multiplier": multiplier}, x, weights=(kernel, bias), layout=layout)
    else:
        if groups == 1:
            weight = weight.index_select(1, order)
        layout = channels_last_result(x.layout, shape)
        if groups == 1:
            layout, emitted = plan.choose_channel_order(layout, 1)
            weight, bias = weight.index_select(0, emitted), None if bias is None else bias.index_select(0, emitted)
        kernel = weight.permute(*range(2, rank + 2), 1, 0)
        config |= {"filters": out, "groups": groups}
        y = plan.layer(CONV[rank], config, x, weights=(kernel, bias), layout=layout)
    return strided(plan, y, subsample, asked) if subsample else y


def without_batch(plan, x, operator):
    """Call `operator(x, shape)`, which needs a batch, on an `x` without one; `shape` is the result's."""
    y = operator(plan.reshape(x, (1, *x.shape)), (1, *plan.shape()))
    return plan.reshape(y, plan.shape())


def grouped_volume(plan, x, weight, bias, stride, pads, dilation, groups, shape):
    """Sum one 2-D convolution per plane of the kernel, because a CPU has no grouped 3-D convolution."""
    x = pad_spatial(plan, plan.channels_last(x)[0], pads)
    x, axis = plan.isolate_axis(x, 2, "planes of a volume")
    out, _, depth, *_ = weight.shape
    batch, _, planes, *sizes = shape
    total = None
    for k in range(depth):
        first = k * dilation[0]
        cut = (*(slice(None),) * axis, slice(first, first + (planes - 1) * stride[0] + 1, stride[0]))
        part = plan.call(lambda a, cut=cut: a[cut], x, layout=x.layout.resize_dim(2, planes)[0])
        image = Value(part.layout.permute((0, 2, 1, 3, 4)), part.dtype, part.step)
        image = plan.reshape(image, (batch * planes, x.shape[1], *x.shape[3:]))
        kernel = weight.rearranged(lambda tensor, k=k: tensor[:, :, k], "plane", k)
        y = padded_convolution(
            plan, image, kernel, bias if k == 0 else None, stride[1:], [(0, 0)] * 2, dilation[1:], groups,
            (batch * planes, out, *sizes),
        )  # fmt: skip
        total = y if total is None else plan.elementwise(lambda a, b: a + b, total, y)
    y = plan.reshape(total, (batch, planes, out, *sizes))
    return plan.channels_last(Value(y.layout.permute((0, 2, 1, 3, 4)), y.dtype, y.step))[0]


def strided(plan, y, stride, shape):
    """Take every stride-th position of the spatial axes."""
    steps = (slice(None), *(slice(None, None, s) for s in stride))
    layout = channels_last_result(y.layout, shape, channels=1)
    return plan.call(lambda a: a[steps], y, layout=layout)


@maps(torch.ops.converter.separable_conv1d.default, torch.ops.converter.separable_conv2d.default, channels_last=True)
def separable_conv(plan, x, depthwise, pointwise, bias, stride, padding, dilation):
    channels_out, _, *size = depthwise.shape
    channels = x.shape[1]
    multiplier = channels_out // channels
    x, order = plan.channels_last(x)
    rank = len(size)
    pads = list(zip(padding[:rank], padding[-rank:], strict=True))
    same = is_same(x.shape[2:], size, stride, dilation, pads)
    if not same:
        x = pad_spatial(plan, x, pads)
    in_order = depthwise.reshape(channels, multiplier, *size).index_select(0, order)
    kernel = in_order.permute(*range(2, rank + 2), 0, 1)
    columns = (order[:, None] * multiplier + np.arange(multiplier)).ravel()
    config = {
        "filters": pointwise.shape[0],
        "kernel_size": tuple(size),
        "strides": tuple(stride),
        "padding": "same" if same else "valid",
        "dilation_rate": tuple(dilation),
        "depth_multiplier": multiplier,
        "use_bias": bias is not None,
    }
    return plan.layer(
        SEPARABLE[rank],
        config,
        x,
        weights=(kernel, pointwise.index_select(1, columns).permute(*range(2, rank + 2), 1, 0), bias),
        layout=channels_last_result(x.layout, plan.shape()),
    )


@maps(torch.ops.converter.space_to_depth.default, channels_last=True)
def space_to_depth(plan, x, block):
    x, _ = plan.channels_last(x)
    layout = x.layout.space_to_depth(block)
    return plan.call(lambda a: ops.space_to_depth(a, block), x, layout=layout)


@maps(torch.ops.converter.reorder_channels.default)
def reorder_channels(plan, x, order):
    x, axis = plan.dim_on_one_axis(x, 1, "an order of channels that no weights could take")
    x = plan.one_atom(x, 1, "an order of channels that no weights could take")
    plan.count_gather(x, "an order of channels that no weights could take")
    indices = np.asarray(order, dtype="int32")
    return plan.call(lambda a: ops.take(a, indices, axis=axis), x, layout=x.layout)
