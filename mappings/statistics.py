"""Variances, norms and other reductions over dimensions at any place and in any order."""

import math

import numpy as np
import torch

from converter.ir.aten import bound_arguments
from converter.ir.sizes import product
from converter.plan.lazy_keras import ops
from converter.plan.precision import dtype_name
from converter.plan.registry import maps
from converter.plan.steps import Constant, Unsupported
from mappings.elementwise import arithmetic
from mappings.indexing import picked
from mappings.reductions import reduced

aten = torch.ops.aten
SPREADS = ("var", "std", "var_mean", "std_mean")


def elements_of(x, dims):
    """Return how many elements a reduction of `x` over `dims` (all if None) combines."""
    return product(x.shape[d] for d in (dims if dims else range(len(x.shape))))


def variance(plan, x, dims, correction, keepdim, root):
    """Sum the squares around the mean, and divide by the number of elements minus `correction`."""
    count = elements_of(x, dims)

    def function(a, axes):
        squares = ops.square(a - ops.mean(a, axis=axes, keepdims=True))
        if isinstance(count, int):
            result = ops.sum(squares, axis=axes) / max(count - correction, 0)
        else:
            number = ops.sum(ops.ones_like(a), axis=axes)
            result = ops.sum(squares, axis=axes) / ops.maximum(number - correction, 0)
        return ops.sqrt(result) if root else result

    return reduced(plan, x, dims, keepdim, function)


@maps(*(getattr(getattr(aten, name), kind) for name in SPREADS for kind in ("default", "dim", "correction")))
def spread(plan, x, *_, **__):
    """Compute a variance or a standard deviation, and the mean if the operator returns that too."""
    given = bound_arguments(plan.node).values
    dims, keepdim = given.get("dim"), given.get("keepdim", False)
    correction = given["correction"] if "correction" in given else int(given["unbiased"])
    packet = plan.node.target.overloadpacket
    root = packet in (aten.std, aten.std_mean)
    result = variance(plan, x, dims, 1 if correction is None else correction, keepdim, root)
    if packet in (aten.var, aten.std):
        return result
    return [result, reduced(plan, x, dims, keepdim, lambda a, axes: ops.mean(a, axis=axes))]


# -- norms


def norm_of(order):
    """Return the vector norm of that order, as a function of an array and its axes."""

    def norm(a, axes):
        size = ops.abs(a)
        if order == math.inf:
            return ops.max(size, axis=axes)
        if order == -math.inf:
            return ops.min(size, axis=axes)
        if order == 0:
            return ops.sum(ops.cast(ops.not_equal(a, 0), a.dtype), axis=axes)
        if order == 1:
            return ops.sum(size, axis=axes)
        if order == 2:
            return ops.sqrt(ops.sum(a * a, axis=axes))
        return ops.power(ops.sum(ops.power(size, order), axis=axes), 1 / order)

    return norm


@maps(aten.linalg_vector_norm.default)
def vector_norm(plan, x, ord=2, dim=None, keepdim=False, *, dtype=None):
    return reduced(plan, x, dim, keepdim, norm_of(ord))


@maps(aten.linalg_norm.default)
def norm(plan, x, ord=None, dim=None, keepdim=False, *, dtype=None):
    if ord is not None and (len(x.shape) if dim is None else len(dim)) > 1:
        raise Unsupported("a matrix norm")
    return vector_norm(plan, x, 2 if ord is None else ord, dim, keepdim)


@maps(aten.cosine_similarity.default)
def cosine_similarity(plan, a, b, dim=1, eps=1e-8):
    def length(x):
        return plan.elementwise(lambda n: ops.maximum(n, eps), reduced(plan, x, [dim], False, norm_of(2)))

    products = arithmetic(plan, lambda x, y: x * y, a, b)
    dot = reduced(plan, products, [dim], False, lambda x, axes: ops.sum(x, axis=axes))
    return plan.elementwise(lambda x, m, n: x / m / n, dot, length(a), length(b))


def distances(plan, a, b, order):
    """Compute the norms of the differences of two arrays that broadcast, over their last dimension."""
    differences = arithmetic(plan, lambda x, y: x - y, a, b)
    return reduced(plan, differences, [-1], False, norm_of(order))


@maps(aten._cdist_forward.default)
def pairwise_distances(plan, a, b, p, compute_mode=None):
    """Compute the distances between each of (..., P, M) and each of (..., R, M)."""
    rows, columns = ((*a.shape[:-1], 1, a.shape[-1]), (*b.shape[:-2], 1, *b.shape[-2:]))
    a, b = (
        x.reshape(*shape) if isinstance(x, Constant) else plan.reshape(x, shape)
        for x, shape in ((a, rows), (b, columns))
    )
    return distances(plan, a, b, p)


@maps(aten._pdist_forward.default)
def distances_within(plan, x, p=2):
    """Compute the distances between every two rows, lower indices first."""
    if not isinstance(x.shape[0], int):
        raise Unsupported("distances between a dynamic number of rows")
    first, second = np.triu_indices(x.shape[0], 1)
    return distances(plan, picked(plan, x, 0, first, "pairs"), picked(plan, x, 0, second, "pairs"), p)


# -- other reductions


@maps(aten.aminmax.default)
def extremes(plan, x, *, dim=None, keepdim=False):
    dims = None if dim is None else [dim]
    return [
        reduced(plan, x, dims, keepdim, lambda a, axes: ops.min(a, axis=axes)),
        reduced(plan, x, dims, keepdim, lambda a, axes: ops.max(a, axis=axes)),
    ]


@maps(aten.log_softmax.int, aten._log_softmax.default)
def log_softmax(plan, x, dim, *_):
    """Compute the log softmax; Keras' own would transpose a dimension that is not last."""
    if not x.shape:
        return plan.reshape(log_softmax(plan, plan.reshape(x, (1,)), 0), ())
    dim %= len(x.shape)
    target = plan.dtype
    x = plan.relayout(x, x.layout.axes_within([dim]).axes, "a softmax")
    inside = set(x.layout.dims[dim])
    axes = tuple(i for i, axis in enumerate(x.layout.axes) if inside.intersection(axis))

    def function(a):
        a = ops.cast(a, dtype_name(target))
        below = a - ops.max(a, axis=axes, keepdims=True)
        return below - ops.log(ops.sum(ops.exp(below), axis=axes, keepdims=True))

    if not axes:
        return plan.elementwise(lambda a: ops.cast(a * 0, dtype_name(target)), x)
    return plan.call(function, x, layout=x.layout)
