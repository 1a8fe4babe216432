"""Activations with a parameter, a threshold or a special formula."""

from itertools import chain

import torch

from converter.plan.lazy_keras import layers, ops
from converter.plan.registry import maps
from converter.plan.steps import Constant, Unsupported
from mappings.elementwise import elu
from mappings.normalization import met_at_several_ranks

aten = torch.ops.aten


@maps(aten.prelu.default)
def prelu(plan, x, weight):
    """Map PReLU to Keras' layer, whose slopes vary along all axes that are not shared: here only the channels."""
    if not isinstance(weight, Constant):
        return plan.elementwise(leaky, x, plan.reshape(weight, per_channel(weight, x)))
    if weight.values.numel() > 1:
        if x.layout.dim_gathered(1)[0] != x.layout.axes and len(x.shape) == 4:
            x, _ = plan.channels_last(x)  # behind a pixel shuffle: one move with a name
        x, axis, order = plan.channel_axis(x)
        weight = weight.index_select(0, order)
    else:
        axis = None
    rank = len(x.layout.axes)
    if axis == 0 or rank < 2:
        return plan.elementwise(leaky, x, weight if axis is not None else weight.reshape())
    if met_at_several_ranks(plan, 1):
        first, *rest = x.layout.axes
        before, channels, behind = (rest[: axis - 1], rest[axis - 1], rest[axis:]) if axis else ([], (), rest)
        x = plan.relayout(x, (first, tuple(chain(*before)), channels, tuple(chain(*behind))), "a slope")
        rank, axis = 4, 2
    shared = [i for i in range(1, rank) if i != axis]
    alpha = weight.reshape(*(weight.shape[0] if i == axis else 1 for i in range(1, rank)))
    if any(i not in shared and not isinstance(x.layout.physical_shape[i], int) for i in range(1, rank)):
        raise Unsupported("a dynamic number of channels")
    return plan.layer(layers.PReLU, {"shared_axes": shared}, x, weights=(alpha,), layout=x.layout)


def per_channel(weight, x):
    """Return the shape in which one number per channel broadcasts."""
    return (weight.shape[0], *(1,) * max(len(x.shape) - 2, 0))


def leaky(a, slope):
    return ops.where(a > 0, a, a * slope)


@maps(aten.selu.default)
def selu(plan, x):
    return elu(plan, x, 1.6732632423543772848170429916717, 1.0507009873554804934193349852946)


@maps(aten.celu.default)
def celu(plan, x, alpha=1.0):
    return elu(plan, x, alpha, 1, 1 / alpha)


@maps(aten.softplus.default)
def softplus(plan, x, beta=1, threshold=20):
    """Compute PyTorch's softplus, which is the identity above its threshold; the difference there is 2e-9."""
    return plan.elementwise(
        lambda a: ops.where(a * beta > threshold, a, ops.softplus(ops.minimum(a * beta, threshold)) / beta), x
    )


@maps(aten.mish.default)
def mish(plan, x):
    """Compute x tanh(log(1 + e^x)): tanh(log(1 + e)) is n / (n + 2) with n = e (e + 2), which does not cancel."""

    def apply(a):
        e = ops.exp(ops.minimum(a, 20))  # beyond 20 the quotient is 1
        n = e * (e + 2)
        return a * (n / (n + 2))

    return plan.elementwise(apply, x)


@maps(aten.hardshrink.default)
def hardshrink(plan, x, lambd=0.5):
    return plan.elementwise(lambda a: ops.where(ops.abs(a) <= lambd, a * 0, a), x)


@maps(aten.softshrink.default)
def softshrink(plan, x, lambd=0.5):
    return plan.elementwise(lambda a: ops.where(ops.abs(a) > lambd, a - ops.sign(a) * lambd, a * 0), x)


@maps(aten.threshold.default)
def threshold(plan, x, threshold, value):
    return plan.elementwise(lambda a: ops.where(a <= threshold, ops.full_like(a, value), a), x)


@maps(aten.rrelu.default)
def randomised_leaky_relu(plan, x, lower=0.125, upper=1 / 3, training=False, generator=None):
    if training:
        raise Unsupported("random slopes")
    return plan.elementwise(lambda a: leaky(a, (lower + upper) / 2), x)


@maps(aten.glu.default)
def glu(plan, x, dim=-1):
    dim %= len(x.shape)
    half = plan.shape()[dim]
    x, axis = plan.isolate_axis(x, dim, "a gated linear unit")
    layout, _ = x.layout.resize_dim(dim, half)

    def gated(a):
        value, gate = ops.split(a, 2, axis)
        return value * ops.sigmoid(gate)

    return plan.call(gated, x, layout=layout)
