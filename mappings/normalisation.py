"""Normalisation. Keras' defaults for epsilon and momentum are not PyTorch's: both are always given."""

import torch
from keras import layers

from converter.layout import Layout
from converter.plan import Constant, Unsupported, arrange
from converter.registry import maps

aten = torch.ops.aten


@maps(aten.batch_norm.default, channels_last=True)
def batch_norm(plan, x, weight, bias, mean, variance, training, momentum, eps, cudnn_enabled=False):
    if training or not isinstance(mean, Constant):
        raise Unsupported("batch norm with the statistics of the batch")
    x, axis, order = plan.channel_axis(x)
    tensors = [t.take(0, order) if t is not None else None for t in (weight, bias, mean, variance)]
    config = {
        "axis": axis,
        "epsilon": eps,
        "momentum": 1 - momentum,
        "scale": weight is not None,
        "center": bias is not None,
    }
    return plan.layer(layers.BatchNormalization, config, x, weights=tensors, layout=x.layout)


@maps(torch.ops.converter.dropout.default)
def dropout(plan, x, rate):
    return plan.layer(layers.Dropout, {"rate": rate}, x, layout=x.layout)


@maps(aten.layer_norm.default)
def layer_norm(plan, x, normalized_shape, weight=None, bias=None, eps=1e-5, *_):
    """The normalised dimensions may lie anywhere; scale and offset are arranged like them."""
    rank = len(x.shape)
    dims = list(range(rank - len(normalized_shape), rank))
    x = plan.request(x, x.layout.axes_within(dims).axes, "layer norm")
    inside = {a for d in dims for a in x.layout.dims[d]}
    axes = [i for i, axis in enumerate(x.layout.axes) if axis and axis[0] in inside]
    if not axes:
        raise Unsupported("one element at a time")
    held = tuple(x.layout.axes[i] for i in axes)
    within = Layout(tuple(x.layout.dims[d] for d in dims), held, {a: x.layout.size[a] for a in inside})
    tensors = [None if t is None else arrange(t, within, held)[0] for t in (weight, bias)]
    config = {
        "axis": axes if len(axes) > 1 else axes[0] if axes[0] < len(x.layout.axes) - 1 else -1,
        "epsilon": eps,
        "scale": weight is not None,
        "center": bias is not None,
    }
    return plan.layer(layers.LayerNormalization, config, x, weights=tensors, layout=x.layout)
