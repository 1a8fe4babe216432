"""Reductions over dimensions at any place and in any order."""

import torch

from converter.plan.layout import Layout
from converter.plan.lazy_keras import ops
from converter.plan.precision import dtype_name
from converter.plan.registry import maps
from converter.plan.steps import Unsupported, Value

aten = torch.ops.aten


def reduced(plan, x, dims, keepdim, function):
    rank = len(x.shape)
    dims = sorted({d % rank for d in dims}) if dims and rank else list(range(rank))
    x = plan.relayout(x, x.layout.axes_within(dims).axes, "a reduction")
    layout = x.layout
    gone = {a for d in dims for a in layout.dims[d]}
    axes = tuple(i for i, axis in enumerate(layout.axes) if not axis or axis[0] in gone)
    kept_axes = tuple(axis for i, axis in enumerate(layout.axes) if i not in axes)
    kept_dims = tuple(() if d in dims else run for d, run in enumerate(layout.dims) if keepdim or d not in dims)
    size = {a: n for a, n in layout.size.items() if a not in gone}
    result = Layout(kept_dims, kept_axes, size)
    target = plan.dtype
    cast = x.dtype != target

    def apply(a):
        return function(ops.cast(a, dtype_name(target)) if cast else a, axes)

    return plan.call(apply, x, layout=result)


def _reduction(function):
    def lowering(plan, x, dim=None, keepdim=False, dtype=None):
        dims = [dim] if isinstance(dim, int) else dim
        return reduced(plan, x, dims, keepdim, lambda a, axes: function(a, axis=axes))

    return lowering


for function, *targets in (
    (ops.mean, aten.mean.dim, aten.mean.default),
    (ops.sum, aten.sum.dim_IntList, aten.sum.default),
    (ops.prod, aten.prod.dim_int, aten.prod.default),
    (ops.max, aten.amax.default, aten.max.default),
    (ops.min, aten.amin.default, aten.min.default),
    (ops.any, aten.any.dim, aten.any.dims, aten.any.default),
    (ops.all, aten.all.dim, aten.all.dims, aten.all.default),
    (ops.logsumexp, aten.logsumexp.default),
):
    maps(*targets)(_reduction(function))


@maps(aten.softmax.int, aten._softmax.default)
def softmax(plan, x, dim, *_):
    if not isinstance(x, Value):
        raise Unsupported
    return softmax_over(plan, x, dim)


def softmax_over(plan, x, dim):
    """Compute the softmax over a dimension at any place; Keras' own would transpose one that is not last."""
    if not x.shape:
        return plan.reshape(softmax_over(plan, plan.reshape(x, (1,)), 0), ())
    target, dim = plan.dtype, dim % len(x.shape)
    cast = x.dtype != target
    last = x.layout.dim_last(dim)
    ends = x.layout.to(last)[1].order is None
    x = plan.relayout(x, last if ends else x.layout.axes_within([dim]).axes, "a softmax")
    atoms = x.layout.dims[dim]
    axes = tuple(i for i, axis in enumerate(x.layout.axes) if set(axis) & set(atoms))

    def apply(a):
        a = ops.cast(a, dtype_name(target)) if cast else a
        if ends:
            return ops.softmax(a, axis=-1)
        powers = ops.exp(a - ops.max(a, axis=axes, keepdims=True))
        return powers / ops.sum(powers, axis=axes, keepdims=True)

    return plan.call(apply, x, layout=x.layout)
