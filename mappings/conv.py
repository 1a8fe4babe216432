"""Convolutions.

PyTorch stores a kernel as (out, in / groups, height, width), Keras as (height, width, in / groups, out). The input
channels are taken in any order: the kernel follows.
"""

import numpy as np
import torch
from keras import layers, ops

from converter.layout import channels_last_result
from converter.plan import Constant, Unsupported
from converter.registry import maps
from mappings.padding import is_same, pad_spatial, same_padding

aten = torch.ops.aten
CONV = {1: layers.Conv1D, 2: layers.Conv2D, 3: layers.Conv3D}


def each(value, rank):
    """One number for every spatial axis."""
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
    if padding == "same":  # strides are 1 then
        pads = [same_padding(None, k, 1, d) for k, d in zip(weight.shape[2:], dilation, strict=True)]
    return padded_convolution(plan, x, weight, bias, each(stride, rank), pads, dilation, groups)


def padded_convolution(plan, x, weight, bias, stride, pads, dilation, groups):
    if not isinstance(weight, Constant):
        raise Unsupported("a kernel that is computed from the input")
    if len(x.shape) != len(weight.shape):
        raise Unsupported("an input without a batch dimension")
    out, in_per_group, *size = weight.shape
    rank = len(size)
    depthwise = in_per_group == 1 and groups > 1 and rank < 3 and len(set(stride)) == 1
    x, order = plan.channels_last(x) if groups == 1 or depthwise else (plan.channels_in_order(x), None)

    subsample = None
    if max(stride) > 1 and max(dilation) > 1:  # Keras takes one of them only
        subsample, stride = stride, (1,) * rank
    same = is_same(x.shape[2:], size, stride, dilation, pads) and subsample is None
    if not same:
        x = pad_spatial(plan, x, pads)
    shape = plan.shape()
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
        kernel = weight.reshape(groups, multiplier, *size).take(0, order).permute(*range(2, rank + 2), 0, 1)
        if bias is not None:
            bias = bias.reshape(groups, multiplier).take(0, order).reshape(out)
        kind = layers.DepthwiseConv1D if rank == 1 else layers.DepthwiseConv2D
        y = plan.layer(kind, config | {"depth_multiplier": multiplier}, x, weights=(kernel, bias), layout=layout)
    else:
        if groups == 1:
            weight = weight.take(1, order)
        elif rank == 3:
            raise Unsupported("a grouped 3-D convolution")
        layout = channels_last_result(x.layout, shape)
        if groups == 1:
            layout, emitted = plan.produced(layout, 1)
            weight, bias = weight.take(0, emitted), None if bias is None else bias.take(0, emitted)
        kernel = weight.permute(*range(2, rank + 2), 1, 0)
        config |= {"filters": out, "groups": groups}
        y = plan.layer(CONV[rank], config, x, weights=(kernel, bias), layout=layout)
    return strided(plan, y, subsample) if subsample else y


def strided(plan, y, stride):
    """Every stride-th position of the spatial axes."""
    steps = (slice(None), *(slice(None, None, s) for s in stride))
    layout = channels_last_result(y.layout, plan.shape(), channels=1)
    return plan.call(lambda a: a[steps], y, layout=layout)


@maps(torch.ops.converter.separable_conv2d.default, channels_last=True)
def separable_conv2d(plan, x, depthwise, pointwise, bias, stride, padding, dilation):
    channels_out, _, *size = depthwise.shape
    channels = x.shape[1]
    multiplier = channels_out // channels
    x, order = plan.channels_last(x)
    pads = [(p, p) for p in padding]
    same = is_same(x.shape[2:], size, stride, dilation, pads)
    if not same:
        x = pad_spatial(plan, x, pads)
    kernel = depthwise.reshape(channels, multiplier, *size).take(0, order).permute(2, 3, 0, 1)
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
        layers.SeparableConv2D,
        config,
        x,
        weights=(kernel, pointwise.take(1, columns).permute(2, 3, 1, 0), bias),
        layout=channels_last_result(x.layout, plan.shape()),
    )


@maps(torch.ops.converter.space_to_depth.default, channels_last=True)
def space_to_depth(plan, x, block):
    x, _ = plan.channels_last(x)
    layout = x.layout.space_to_depth(block)
    return plan.call(lambda a: ops.space_to_depth(a, block), x, layout=layout)


@maps(torch.ops.converter.reorder_channels.default)
def reorder_channels(plan, x, order):
    x, axis = plan.together(x, 1, "an order of channels that no weights could take")
    x = plan.one_atom(x, 1, "an order of channels that no weights could take")
    plan.gathers(x, "an order of channels that no weights could take")
    indices = np.asarray(order, dtype="int32")
    return plan.call(lambda a: ops.take(a, indices, axis=axis), x, layout=x.layout)
