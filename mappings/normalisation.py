"""Normalisation. Keras' defaults for epsilon and momentum are not PyTorch's: both are always given."""

import torch
from keras import layers

from converter.plan import Constant, Unsupported
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
