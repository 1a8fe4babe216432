"""Normalization. Keras' defaults for epsilon and momentum differ from PyTorch's, so both are always given."""

from itertools import chain

import numpy as np
import torch

from converter.ir.program import module_class
from converter.plan.layout import Layout
from converter.plan.lazy_keras import layers, ops
from converter.plan.precision import dtype_name
from converter.plan.registry import maps
from converter.plan.steps import Unsupported, Value, arrange
from mappings.elementwise import sum_of
from mappings.reductions import reduced

aten = torch.ops.aten
# Keras multiplies by 1 / sqrt(variance + epsilon) before it subtracts the mean: for so small an epsilon the rounding of
# a constant row would become a value of order 1, where PyTorch gives 0.
CENTERED_BELOW = 1e-9


@maps(aten.batch_norm.default, channels_last=True)
def batch_norm(plan, x, weight, bias, mean, variance, training, momentum, eps, cudnn_enabled=False):
    if any(isinstance(t, Value) for t in (weight, bias, mean, variance)):
        raise Unsupported("a scale or statistics that depend on the input")
    if mean is None or training:
        return of_the_batch(plan, x, weight, bias, eps)
    x, axis, order = plan.channel_axis(x)
    tensors = [t.index_select(0, order) if t is not None else None for t in (weight, bias, mean, variance)]
    config = {
        "axis": axis,
        "epsilon": eps,
        "momentum": 1 - momentum,
        "scale": weight is not None,
        "center": bias is not None,
    }
    in_module = module_class(plan.node).startswith("torch.nn.modules.batchnorm")
    statistics = weight is None and bias is None and in_module
    return plan.layer(layers.BatchNormalization, config, x, weights=tensors, layout=x.layout, statistics=statistics)


def of_the_batch(plan, x, weight, bias, eps):
    """Normalize with the mean and (biased) variance of the input, for which Keras has a layer only in training.

    One dimension is averaged after another: TensorFlow adds all elements one by one, and rounds as often.
    """
    shape = (x.shape[1], *(1,) * (len(x.shape) - 2))

    def averaged(y):
        for dim in (d for d in reversed(range(len(x.shape))) if d != 1):
            y = reduced(plan, y, [dim], True, lambda a, axes: ops.mean(a, axis=axes))
        return y

    centered = plan.elementwise(lambda a, m: a - m, x, averaged(x))
    variance = averaged(plan.elementwise(lambda a: a * a, centered))
    y = plan.elementwise(lambda a, v: a * ops.rsqrt(v + eps), centered, variance)
    if weight is not None:
        y = plan.elementwise(lambda a, w: a * w, y, weight.reshape(*shape))
    return y if bias is None else plan.elementwise(sum_of, y, bias.reshape(*shape))


@maps(torch.ops.converter.dropout.default)
def dropout(plan, x, rate):
    return plan.layer(layers.Dropout, {"rate": rate}, x, layout=x.layout)


@maps(aten.layer_norm.default)
def layer_norm(plan, x, normalized_shape, weight=None, bias=None, eps=1e-5, *_):
    """Map layer norm; the normalized dimensions may have any order, scale and offset are arranged like them."""
    rank = len(x.shape)
    dims = list(range(rank - len(normalized_shape), rank))
    if eps < CENTERED_BELOW:
        x = plan.elementwise(
            lambda a, m: a - m, x, reduced(plan, x, dims, True, lambda a, axes: ops.mean(a, axis=axes))
        )
    x = plan.relayout(x, x.layout.axes_within(dims).axes, "layer norm")
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


@maps(aten.group_norm.default, channels_last=True)
def group_norm(plan, x, num_groups, weight=None, bias=None, eps=1e-5, cudnn_enabled=True):
    """Map group norm; Keras needs the groups one after another, channels within a group may have any order."""
    channels = x.shape[1]
    if not isinstance(channels, int):
        raise Unsupported("a dynamic number of channels")
    split = plan.reshape(x, (x.shape[0], num_groups, channels // num_groups, *x.shape[2:]))
    group, within = (split.layout.dims[d] for d in (1, 2))
    held = tuple(a for a in split.layout.atoms if a in group or a in within)
    if held[: len(group)] != group:
        held = (*group, *(a for a in held if a in within))
    batch, *_ = split.layout.dims
    spatial = split.layout.dims[3:]
    layout = Layout((batch, (*group, *within), *spatial), split.layout.axes, split.layout.size)
    if met_at_several_ranks(plan, 2):
        spatial = (tuple(chain(*spatial)),)
    y = plan.relayout(Value(layout, split.dtype, split.step), (batch, *spatial, held), "channels last, group by group")
    order = layout.index((*group, *within), held)
    tensors = [t.index_select(0, order) if t is not None else None for t in (weight, bias)]
    config = {
        "groups": num_groups,
        "axis": len(y.layout.axes) - 1,
        "epsilon": eps,
        "scale": weight is not None,
        "center": bias is not None,
    }
    return plan.layer(layers.GroupNormalization, config, y, weights=tensors, layout=y.layout)


def met_at_several_ranks(plan, position):
    """Return whether operators on values of different ranks share the argument as weight.

    A Keras layer takes one rank, so all are then held as one.
    """
    weight = plan.node.args[position] if len(plan.node.args) > position else None
    if weight is None or not plan.program.is_tensor(weight):
        return False
    twins = [n for n in plan.program.graph.find_nodes(op="get_attr") if n.target == weight.target]
    users = {user for twin in twins for user in twin.users if user.target == plan.node.target}
    return len({user.args[0].meta["val"].dim() for user in users}) > 1


@maps(aten.instance_norm.default, channels_last=True)
def instance_norm(plan, x, weight, bias, mean, variance, use_input_stats, momentum, eps, cudnn_enabled=False):
    if not use_input_stats:
        return batch_norm(plan, x, weight, bias, mean, variance, False, momentum, eps)
    return group_norm(plan, x, x.shape[1], weight, bias, eps)


@maps(aten.rms_norm.default)
def rms_norm(plan, x, normalized_shape, weight=None, eps=None):
    """Normalize over dimensions in any order; without `eps`, PyTorch uses the type's epsilon."""
    rank = len(x.shape)
    dims = list(range(rank - len(normalized_shape), rank))
    x = plan.relayout(x, x.layout.axes_within(dims).axes, "RMS norm")
    inside = {a for d in dims for a in x.layout.dims[d]}
    axes = tuple(i for i, axis in enumerate(x.layout.axes) if axis and axis[0] in inside)

    def normalized(a):
        least = float(np.finfo(dtype_name(torch.float32)).eps) if eps is None else eps
        return a * ops.rsqrt(ops.mean(a * a, axis=axes, keepdims=True) + least)

    y = plan.call(normalized, x, layout=x.layout)
    return y if weight is None else plan.elementwise(lambda a, scale: a * scale, y, weight)
