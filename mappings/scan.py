"""Running sums, products and extremes along a dimension, and others that compare its elements with each other."""

import torch

from converter.ir.lazy_tensor import LazyTensor
from converter.plan.lazy_keras import ops
from converter.plan.precision import dtype_name
from converter.plan.registry import maps
from converter.plan.steps import Constant, Unsupported, Value
from mappings.elementwise import arithmetic
from mappings.sort import is_used

aten = torch.ops.aten


def running(plan, x, dim, function):
    target = plan.dtype
    if not x.shape:
        return arithmetic(plan, lambda a: a, x)
    x, axis = plan.isolate_axis(x, dim % len(x.shape), "a running sum")
    return plan.call(
        lambda a: ops.cast(function(ops.cast(a, dtype_name(target)), axis=axis), dtype_name(target)), x, layout=x.layout
    )


@maps(aten.cumsum.default)
def running_sum(plan, x, dim, *, dtype=None):
    return running(plan, x, dim, ops.cumsum)


@maps(aten.cumprod.default)
def running_product(plan, x, dim, *, dtype=None):
    return running(plan, x, dim, ops.cumprod)


def prefixes(plan, x, dim):
    """Return `x` with `dim` as one axis, that axis, and a mask (size, size, 1, ...) of the elements up to each one."""
    dim %= len(x.shape)
    size = x.shape[dim]
    if not isinstance(size, int):
        raise Unsupported("a cumulative maximum or minimum along a dynamic size")
    x, axis = plan.isolate_axis(x, dim, "a running extreme")
    behind = (1,) * (len(x.layout.axes) - axis - 1)
    mask = torch.ones(size, size, dtype=torch.bool).tril().reshape(size, size, *behind)
    held = Constant(LazyTensor.of(mask), torch.bool, (), False, False, ("before", size, len(behind)))
    return x, axis, plan.as_value(held, x)


def lowest(a):
    """Return the lower bound of all elements of that type."""
    name = str(a.dtype).removeprefix("<dtype: '").removesuffix("'>")
    if name.startswith("float"):
        return float("-inf")
    return torch.iinfo(getattr(torch, name)).min


@maps(aten.logcumsumexp.default)
def running_logsumexp(plan, x, dim):
    if not x.shape:
        return x
    x, axis, before = prefixes(plan, x, dim)

    def function(a, mask):
        pairs = ops.where(mask, ops.expand_dims(a, axis), float("-inf"))
        top = ops.max(pairs, axis=axis + 1, keepdims=True)
        top = ops.where(ops.isfinite(top), top, ops.zeros_like(top))
        return ops.log(ops.sum(ops.exp(pairs - top), axis=axis + 1)) + ops.squeeze(top, axis + 1)

    return plan.call(function, x, before, layout=x.layout)


def running_extreme(plan, x, dim, turned):
    """Return the largest so far (of `turned` elements) and its last position."""
    if not x.shape:
        first = plan.elementwise(lambda a: ops.zeros_like(a, dtype="int64"), x)
        return [x, Value(first.layout, torch.int64, first.step)]
    x, axis, before = prefixes(plan, x, dim)
    size = x.shape[dim]
    places = torch.arange(size).reshape(size, *(1,) * (len(x.layout.axes) - axis - 1))
    held = plan.as_value(
        Constant(LazyTensor.of(places), torch.int64, (), False, False, ("places", tuple(places.shape))), x
    )
    boolean = x.dtype == torch.bool

    def raised(a):
        return turned(ops.cast(a, "int32") if boolean else a)

    def best(a, mask):
        pairs = ops.expand_dims(raised(a), axis)
        unknown = ops.logical_and(mask, ops.not_equal(pairs, pairs))
        largest = ops.max(ops.where(mask, pairs, lowest(pairs)), axis=axis + 1)
        return ops.where(
            ops.any(unknown, axis=axis + 1),
            ops.sum(ops.where(mask, pairs, ops.zeros_like(pairs)), axis=axis + 1),
            largest,
        )

    def value(a, mask):
        return ops.cast(turned(best(a, mask)), "bool") if boolean else turned(best(a, mask))

    def position(a, mask, places):
        pairs, found = ops.expand_dims(raised(a), axis), ops.expand_dims(best(a, mask), axis + 1)
        same = ops.logical_or(
            ops.equal(pairs, found), ops.logical_and(ops.not_equal(pairs, pairs), ops.not_equal(found, found))
        )
        return ops.max(ops.where(ops.logical_and(mask, same), places, -1), axis=axis + 1)

    return [
        plan.call(value, x, before, layout=x.layout) if is_used(plan, 0) else None,
        plan.call(position, x, before, held, layout=x.layout, dtype=torch.int64) if is_used(plan, 1) else None,
    ]


@maps(aten.cummax.default)
def running_maximum(plan, x, dim):
    return running_extreme(plan, x, dim, lambda a: a)


@maps(aten.cummin.default)
def running_minimum(plan, x, dim):
    """Compute a running minimum as a maximum of elements negated without overflow: -a, and for integers -1 - a."""
    floating = x.dtype.is_floating_point
    return running_extreme(plan, x, dim, lambda a: -a if floating else -1 - a)
