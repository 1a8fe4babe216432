"""Where the largest are, and sorting. Of equal elements the first comes first, as in a stable sort of PyTorch's."""

import torch
from keras import ops

from converter.layout import product
from converter.plan import Unsupported
from converter.registry import maps
from mappings.reductions import reduced

aten = torch.ops.aten


def is_used(plan, position):
    """Whether anybody takes that of the operator's results."""
    return any(user.args[1] == position for user in plan.node.users)


def whole(plan, x):
    return plan.reshape(x, (product(x.shape),))


def position_of(plan, x, dim, shape, function):
    """`function` is argmax or argmin."""
    if dim is None or not x.shape:
        x, dim = whole(plan, x), 0
    x, axis = plan.one_axis(x, dim % len(x.shape), "a position")
    floating = x.dtype.is_floating_point

    def apply(a):
        if floating:  # Keras takes -0.0 for less than 0.0
            a = ops.where(ops.equal(a, 0), ops.zeros_like(a), a)
        return ops.cast(function(a, axis=axis, keepdims=True), "int64")

    layout, _ = x.layout.resized(dim % len(x.shape), 1)
    return plan.reshape(plan.call(apply, x, layout=layout, dtype=torch.int64), shape)


@maps(aten.argmax.default)
def argmax(plan, x, dim=None, keepdim=False):
    return position_of(plan, x, dim, plan.shape(), ops.argmax)


@maps(aten.argmin.default)
def argmin(plan, x, dim=None, keepdim=False):
    return position_of(plan, x, dim, plan.shape(), ops.argmin)


def with_position(plan, x, dim, keepdim, extreme, position):
    values = reduced(plan, x, [dim], keepdim, lambda a, axes: extreme(a, axis=axes)) if is_used(plan, 0) else None
    return [values, position_of(plan, x, dim, plan.shape(1), position) if is_used(plan, 1) else None]


@maps(aten.max.dim)
def largest(plan, x, dim, keepdim=False):
    return with_position(plan, x, dim, keepdim, ops.max, ops.argmax)


@maps(aten.min.dim)
def smallest(plan, x, dim, keepdim=False):
    return with_position(plan, x, dim, keepdim, ops.min, ops.argmin)


def ranked(plan, x, dim, count, descending):
    """`x` with `dim` last, its layout with `count` elements there, and the function that gives values and positions."""
    dim %= len(x.shape)
    if not isinstance(x.shape[dim], int) or not isinstance(count, int):
        raise Unsupported("sorting an unknown size")
    x, _ = plan.one_axis(x, dim, "sorting")
    x = plan.request(x, x.layout.last(dim), "sorting needs the last axis")
    # an order turned round that has no overflow: -a, and for integers -1 - a
    turned = ops.negative if x.dtype.is_floating_point else ops.bitwise_not

    def function(a):
        values, positions = ops.top_k(a if descending else turned(a), count)
        return values if descending else turned(values), ops.cast(positions, "int64")

    return x, x.layout.resized(dim, count)[0], function


@maps(aten.topk.default)
def top_k(plan, x, k, dim=-1, largest=True, sorted=True):
    x, layout, function = ranked(plan, x, dim, k, largest)
    return plan.calls(function, x, layouts=[layout.without_ones()] * 2)


@maps(aten.sort.default)
def sort(plan, x, dim=-1, descending=False):
    return top_k(plan, x, x.shape[dim], dim, descending)


@maps(aten.sort.stable)
def stable_sort(plan, x, *, stable, dim=-1, descending=False):
    return sort(plan, x, dim, descending)


@maps(aten.argsort.default)
def argsort(plan, x, dim=-1, descending=False):
    x, layout, function = ranked(plan, x, dim, x.shape[dim], descending)
    return plan.call(lambda a: function(a)[1], x, layout=layout)


@maps(aten.argsort.stable)
def stable_argsort(plan, x, *, stable, dim=-1, descending=False):
    return argsort(plan, x, dim, descending)


def smallest_but(plan, x, dim, k):
    """The k-th smallest of `dim` (from 1) and its position, kept as one element."""
    x, layout, function = ranked(plan, x, dim, k, False)
    one, _ = layout.resized(dim % len(x.shape), 1)
    return lambda item: plan.call(
        lambda a: function(a)[item][..., k - 1 :], x, layout=one, dtype=torch.int64 if item else x.dtype
    )


@maps(aten.kthvalue.default)
def kth_value(plan, x, k, dim=-1, keepdim=False):
    part = smallest_but(plan, x, dim, k)
    return [plan.reshape(part(i), plan.shape(i)) for i in (0, 1)]


@maps(aten.median.dim)
def median(plan, x, dim, keepdim=False):
    """Of an even number PyTorch takes the lower of the two in the middle."""
    return kth_value(plan, x, (x.shape[dim] + 1) // 2, dim, keepdim)


@maps(aten.median.default)
def median_of_all(plan, x):
    if not isinstance(product(x.shape), int):
        raise Unsupported("the median of an unknown number")
    flat = whole(plan, x)
    return plan.reshape(smallest_but(plan, flat, 0, (flat.shape[0] + 1) // 2)(0), ())
