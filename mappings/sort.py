"""Positions of extremes, and sorting. Among equal elements the first comes first, as in PyTorch's stable sort."""

import math

import numpy as np
import torch

from converter.ir.sizes import product
from converter.plan.lazy_keras import backend, ops, tf
from converter.plan.precision import dtype_name
from converter.plan.registry import maps
from converter.plan.steps import Constant, Unsupported, Value
from mappings.comparison import as_array
from mappings.elementwise import arithmetic
from mappings.reductions import reduced

aten = torch.ops.aten


def is_used(plan, position):
    """Return whether that result of the operator is used."""
    return any(user.args[1] == position for user in plan.node.users)


def whole(plan, x):
    return plan.reshape(x, (product(x.shape),))


def first_of(a, name, axis):
    """Return the first position of an extreme along an axis, by argmax or argmin."""
    if not backend.is_keras_tensor(a):
        return ops.expand_dims(getattr(tf, name)(a, axis, "int32"), axis)
    if "float" in a.dtype:  # Keras considers -0.0 less than 0.0
        a = ops.where(ops.equal(a, 0), ops.zeros_like(a), a)
    return getattr(ops, name)(a, axis=axis, keepdims=True)


def position_of(plan, x, dim, shape, name):
    """Find a position by `name`, which is argmax or argmin."""
    if dim is None or not x.shape:
        x, dim = whole(plan, x), 0
    x, axis = plan.isolate_axis(x, dim % len(x.shape), "a position")
    floating = x.dtype.is_floating_point

    def apply(a):
        if not floating:
            return ops.cast(first_of(a, name, axis), "int64")
        unknown = ops.isnan(a)  # the first NaN, if there is any
        first = first_of(ops.cast(unknown, "int32"), "argmax", axis)
        found = ops.any(unknown, axis=axis, keepdims=True)
        return ops.cast(ops.where(found, first, first_of(a, name, axis)), "int64")

    layout, _ = x.layout.resize_dim(dim % len(x.shape), 1)
    return plan.reshape(plan.call(apply, x, layout=layout, dtype=torch.int64), shape)


@maps(aten.argmax.default)
def argmax(plan, x, dim=None, keepdim=False):
    return position_of(plan, x, dim, plan.shape(), "argmax")


@maps(aten.argmin.default)
def argmin(plan, x, dim=None, keepdim=False):
    return position_of(plan, x, dim, plan.shape(), "argmin")


def with_position(plan, x, dim, keepdim, extreme, position):
    values = reduced(plan, x, [dim], keepdim, lambda a, axes: extreme(a, axis=axes)) if is_used(plan, 0) else None
    return [values, position_of(plan, x, dim, plan.shape(1), position) if is_used(plan, 1) else None]


@maps(aten.max.dim)
def largest(plan, x, dim, keepdim=False):
    return with_position(plan, x, dim, keepdim, ops.max, "argmax")


@maps(aten.min.dim)
def smallest(plan, x, dim, keepdim=False):
    return with_position(plan, x, dim, keepdim, ops.min, "argmin")


def ranked(plan, x, dim, count, descending):
    """Return `x` with `dim` last, its layout with `count` elements there, and a function for values and positions."""
    if not x.shape:
        x = plan.reshape(x, (1,))
    dim %= len(x.shape)
    x, _ = plan.isolate_axis(x, dim, "sorting")
    x = plan.relayout(x, x.layout.dim_last(dim), "sorting needs the last axis")
    floating = x.dtype.is_floating_point
    greatest = 255 if x.dtype == torch.uint8 else -1  # minus a, it reverses the order of integers without overflow
    turned = ops.negative if floating else lambda a: greatest - a
    boolean = x.dtype == torch.bool
    size = x.shape[dim]

    def function(a):
        a = ops.cast(a, "int32") if boolean else a
        unknown = ops.isnan(a) if floating else None  # PyTorch puts NaN after infinity, TensorFlow anywhere
        a = a if unknown is None else ops.where(unknown, ops.full_like(a, math.inf), a)
        if isinstance(count, int):
            values, positions = ops.top_k(a if descending else turned(a), count)
            values = values if descending else turned(values)
        else:
            positions = ops.argsort(turned(a) if descending else a, axis=-1)
            values = ops.take_along_axis(a, positions, axis=-1)
        if unknown is not None:
            number = ops.sum(ops.cast(unknown, "int32"), axis=-1, keepdims=True)
            ranks = np.arange(count, dtype="int32") if isinstance(count, int) else ranks_of(values)
            if descending:
                lost = ops.less(ranks, number)
            elif isinstance(size, int):
                lost = ops.greater_equal(ranks, size - number)
            else:
                lost = ops.greater_equal(ranks, ops.sum(1 - ops.cast(unknown, "int32"), axis=-1, keepdims=True))
            values = ops.where(lost, ops.full_like(values, math.nan), values)
        return ops.cast(values, "bool") if boolean else values, ops.cast(positions, "int64")

    return x, x.layout.resize_dim(dim, count)[0], function


def ranks_of(array):
    """Return the positions along the last axis, whose size is unknown."""
    return ops.cumsum(ops.ones_like(array, dtype="int32"), axis=-1) - 1


@maps(aten.topk.default)
def top_k(plan, x, k, dim=-1, largest=True, sorted=True):
    x, layout, function = ranked(plan, x, dim, k, largest)
    both = plan.calls(function, x, layouts=[layout.without_ones()] * 2)
    return [plan.reshape(v, plan.shape(i)) for i, v in enumerate(both)]


@maps(aten.sort.default)
def sort(plan, x, dim=-1, descending=False):
    return top_k(plan, x, x.shape[dim] if x.shape else 1, dim, descending)


@maps(aten.sort.stable)
def stable_sort(plan, x, *, stable, dim=-1, descending=False):
    return sort(plan, x, dim, descending)


@maps(aten.argsort.default)
def argsort(plan, x, dim=-1, descending=False):
    x, layout, function = ranked(plan, x, dim, x.shape[dim] if x.shape else 1, descending)
    return plan.reshape(plan.call(lambda a: function(a)[1], x, layout=layout), plan.shape())


@maps(aten.argsort.stable)
def stable_argsort(plan, x, *, stable, dim=-1, descending=False):
    return argsort(plan, x, dim, descending)


def smallest_but(plan, x, dim, k):
    """Return a function for the k-th smallest of `dim` (from 1) and its position, kept as one element."""
    x, layout, function = ranked(plan, x, dim, k, False)
    one, _ = layout.resize_dim(dim % len(x.shape), 1)
    return lambda item: plan.call(
        lambda a: function(a)[item][..., k - 1 :], x, layout=one, dtype=torch.int64 if item else x.dtype
    )


@maps(aten.kthvalue.default)
def kth_value(plan, x, k, dim=-1, keepdim=False):
    part = smallest_but(plan, x, dim, k)
    return [plan.reshape(part(i), plan.shape(i)) for i in (0, 1)]


@maps(aten.median.dim)
def median(plan, x, dim, keepdim=False):
    """Return the median, of an even number the lower of the two in the middle; NaN if there is any, as in PyTorch."""
    part = middle_of(plan, x if x.shape else plan.reshape(x, (1,)), dim)
    return [plan.reshape(part(i), plan.shape(i)) for i in (0, 1)]


def middle_of(plan, x, dim):
    """Return a function for the median of `dim` (0) and its position (1), kept as one element."""
    if not isinstance(x.shape[dim], int):
        raise Unsupported("a median along a dynamic size")
    x, _ = plan.isolate_axis(x, dim % len(x.shape), "a median")
    x = plan.relayout(x, x.layout.dim_last(dim % len(x.shape)), "a median needs the last axis")
    part = smallest_but(plan, x, dim, (x.shape[dim] + 1) // 2)
    if not x.dtype.is_floating_point:
        return part

    def known(item):
        def apply(a, middle):
            unknown = ops.isnan(a)
            if item:
                instead = ops.cast(ops.argmax(ops.cast(unknown, "int32"), axis=-1, keepdims=True), "int64")
            else:
                instead = ops.full_like(middle, math.nan)
            return ops.where(ops.any(unknown, axis=-1, keepdims=True), instead, middle)

        middle = part(item)
        return plan.call(apply, x, middle, layout=middle.layout, dtype=middle.dtype)

    return known


@maps(aten.median.default)
def median_of_all(plan, x):
    if not isinstance(product(x.shape), int):
        raise Unsupported("a median along a dynamic size")
    flat = whole(plan, x)
    return plan.reshape(middle_of(plan, flat, 0)(0), ())


@maps(aten.nanmedian.dim)
def known_median(plan, x, dim, keepdim=False):
    """Return the median of all elements except NaN; if all are NaN, return NaN and its position."""
    if not x.dtype.is_floating_point:
        return median(plan, x, dim, keepdim)
    if not x.shape:
        x = plan.reshape(x, (1,))
    dim %= len(x.shape)
    if not isinstance(x.shape[dim], int):
        raise Unsupported("a median along a dynamic size")
    x, axis = plan.isolate_axis(x, dim, "a median")
    one, _ = x.layout.resize_dim(dim, 1)

    def value(a):
        unknown = ops.isnan(a)
        count = ops.sum(ops.cast(ops.logical_not(unknown), "int32"), axis=axis, keepdims=True)
        ranks = ops.sort(ops.where(unknown, ops.full_like(a, math.inf), a), axis=axis)
        middle = ops.take_along_axis(ranks, ops.maximum(count - 1, 0) // 2, axis=axis)
        return ops.where(ops.equal(count, 0), ops.full_like(middle, math.nan), middle)

    def position(a):
        return ops.cast(ops.argmax(ops.cast(ops.equal(a, value(a)), "int32"), axis=axis, keepdims=True), "int64")

    return [
        plan.reshape(plan.call(function, x, layout=one, dtype=kind), plan.shape(i)) if is_used(plan, i) else None
        for i, (function, kind) in enumerate(((value, x.dtype), (position, torch.int64)))
    ]


# -- counts of smaller elements


def counted_below(plan, sequence, values, right):
    """Count, for each of `values`, the elements before it in the sorted last dimension of `sequence`.

    With `right`, equal elements count too. NaN comes after everything.
    """

    def before(s, v):
        return ops.cast(ops.logical_not(ops.greater(s, v) if right else ops.greater_equal(s, v)), "int64")

    dtype = torch.promote_types(sequence.dtype, values.dtype)
    flags = arithmetic(plan, lambda s, v: before(as_array(s, dtype), as_array(v, dtype)), sequence, values, dtype=dtype)
    flags = Value(flags.layout, torch.int64, flags.step)
    target = plan.dtype
    return reduced(plan, flags, [-1], False, lambda a, axes: ops.cast(ops.sum(a, axis=axes), dtype_name(target)))


def with_one(plan, x, shape):
    return x.reshape(*shape) if isinstance(x, Constant) else plan.reshape(x, shape)


@maps(aten.bucketize.Tensor)
def bucketize(plan, x, boundaries, *, out_int32=False, right=False):
    return counted_below(plan, boundaries, with_one(plan, x, (*x.shape, 1)), right)


@maps(aten.searchsorted.Tensor)
def search_sorted(plan, sequence, values, *, out_int32=False, right=False, side=None, sorter=None):
    if sorter is not None:
        raise Unsupported("a sequence that is not sorted: apply the sorter with torch.take_along_dim")
    right = side == "right" if side is not None else right
    values = with_one(plan, values, (*values.shape, 1))
    if len(sequence.shape) > 1:
        sequence = with_one(plan, sequence, (*sequence.shape[:-1], 1, sequence.shape[-1]))
    return counted_below(plan, sequence, values, right)


@maps(aten.mode.default)
def mode(plan, x, dim=-1, keepdim=False):
    """Return the most frequent element, the smallest if there are several."""
    if not x.shape:
        x = plan.reshape(x, (1,))
    dim %= len(x.shape)
    if not isinstance(x.shape[dim], int):
        raise Unsupported("a mode along a dynamic size")
    size = x.shape[dim]
    x, axis = plan.isolate_axis(x, dim, "a mode")
    one, _ = x.layout.resize_dim(dim, 1)
    boolean, dtype = x.dtype == torch.bool, x.dtype

    def chosen(a):
        a = ops.cast(a, "int32") if boolean else a
        same = ops.cast(ops.equal(ops.expand_dims(a, axis), ops.expand_dims(a, axis + 1)), "int32")
        counts = ops.sum(same, axis=axis + 1)
        frequent = ops.equal(counts, ops.max(counts, axis=axis, keepdims=True))
        least = ops.min(ops.where(frequent, a, ops.max(a, axis=axis, keepdims=True)), axis=axis, keepdims=True)
        return a, least

    def value(a):
        return ops.cast(chosen(a)[1], dtype_name(dtype))

    def position(a):  # PyTorch returns the last position
        a, least = chosen(a)
        same = ops.cast(ops.flip(ops.equal(a, least), axis), "int32")
        return size - 1 - ops.cast(ops.argmax(same, axis=axis, keepdims=True), "int64")

    return [
        plan.reshape(plan.call(function, x, layout=one, dtype=kind), plan.shape(i))
        for i, (function, kind) in enumerate(((value, dtype), (position, torch.int64)))
    ]
