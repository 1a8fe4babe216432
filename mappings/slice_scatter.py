"""Writes to a part of a tensor, as capture records assignments: the parts are joined again."""

import numpy as np
import torch

from converter.plan import dynamic_reshape
from converter.plan.lazy_keras import ops
from converter.plan.precision import dtype_name
from converter.plan.registry import maps
from converter.plan.steps import Constant, Unsupported, Value
from mappings import dynamic_resize
from mappings.expand import expanded, filled
from mappings.indexing import in_storage, picked, plane

aten = torch.ops.aten


@maps(aten.slice_scatter.default)
def slice_scatter(plan, x, src, dim=0, start=None, end=None, step=1):
    dim %= len(plan.shape())
    size, written = x.shape[dim], src.shape[dim]
    if written == size:
        return src
    dynamic = not all(isinstance(n, int) for n in (size, written, start or 0))
    if dynamic and step != 1:
        raise Unsupported("writing to every so many elements of a dynamic size")
    first = start or 0
    if isinstance(first, int):
        first += size if first < 0 else 0
        first = first if dynamic else max(min(first, size), 0)
    like = next((v for v in (x, src) if isinstance(v, Value)), None)
    if like is None:
        raise Unsupported("writing one constant into another")
    x, src = plan.as_value(x, like), plan.as_value(src, like)
    if dynamic:
        return replaced_by_position(plan, x, src, dim, first)
    if step != 1:
        return replaced(plan, x, src, dim, np.arange(first, size, step)[:written])
    held, axis = plan.isolate_axis(x, dim, "a part that is written")
    parts = []
    for begin, stop in ((0, first), (first + written, size)):
        if stop > begin:
            cut = (*(slice(None),) * axis, slice(begin, stop))
            layout, _ = held.layout.resize_dim(dim, stop - begin)
            parts.append(plan.call(lambda a, cut=cut: a[cut], held, layout=layout))
    parts.insert(1 if first else 0, src)
    values, axis, layout = plan.join(parts, dim)
    return plan.call(lambda *arrays: ops.concatenate(arrays, axis), *values, layout=layout)


@maps(aten.select_scatter.default)
def select_scatter(plan, x, src, dim, index):
    dim %= len(plan.shape())
    one = (*x.shape[:dim], 1, *x.shape[dim + 1 :])
    src = src.reshape(*one) if isinstance(src, Constant) else plan.reshape(src, one)
    return slice_scatter(plan, x, src, dim, index, index + 1)


def replaced(plan, x, src, dim, indices):
    """Replace the elements of `dim` of `x` at `indices` by those of `src`, in the order of `src`."""
    size = x.shape[dim]
    if not isinstance(size, int):
        raise Unsupported("writing to a slice of a dynamic size")
    values, axis, layout = plan.join([x, src], dim)
    order = np.arange(size)
    order[indices] = size + np.arange(len(indices))
    joined = plan.call(lambda *arrays: ops.concatenate(arrays, axis), *values, layout=layout)
    return picked(plan, joined, dim, order, "writing here and there")


def replaced_by_position(plan, x, src, dim, first):
    """Replace the elements of `dim` of `x` from `first` on, a size, by those of `src`."""
    lines, positions = dynamic_resize.computed_positions(plan, x, dim, -first, x.shape[dim])
    x, _ = plan.isolate_axis(x, dim, "writing to a slice of a dynamic size")
    (x, src), axis, _ = plan.join([x, src], dim)

    def written(array, part, *arrays):
        places = positions(arrays)
        _, count = dynamic_reshape.counted(dynamic_reshape.along(part, axis), "int32")
        inside = ops.logical_and(places >= 0, places < count)
        shape = tuple(-1 if a == axis else 1 for a in range(len(array.shape)))
        chosen = ops.take(part, ops.minimum(ops.maximum(places, 0), count - 1), axis)
        return ops.where(ops.reshape(inside, shape), chosen, array)

    plan.count_gather(x, "writing to a slice of a dynamic size")
    return plan.call(written, x, src, *lines, layout=x.layout, dtype=x.dtype)


@maps(aten.diagonal_scatter.default)
def diagonal_scatter(plan, x, src, offset=0, dim1=0, dim2=1):
    like = next(v for v in (x, src) if isinstance(v, Value))
    x, src = plan.as_value(x, like), plan.as_value(src, like)
    merged, chosen = plane(plan, x, offset, dim1, dim2)
    written = replaced(plan, merged, src, len(merged.shape) - 1, chosen)
    rank = len(x.shape)
    order = [d for d in range(rank) if d not in (dim1 % rank, dim2 % rank)] + [dim1 % rank, dim2 % rank]
    apart = plan.reshape(written, tuple(x.shape[d] for d in order))
    return Value(apart.layout.permute(np.argsort(order).tolist()), apart.dtype, apart.step)


@maps(aten.as_strided_scatter.default)
def as_strided_scatter(plan, x, src, size, stride, storage_offset=None):
    like = next(v for v in (x, src) if isinstance(v, Value))
    flat, chosen = in_storage(plan, plan.as_value(x, like), size, stride, storage_offset)
    if len(set(chosen.tolist())) < len(chosen):
        raise Unsupported("writing to one element several times")
    line = plan.reshape(plan.as_value(src, like), (len(chosen),))
    return plan.reshape(replaced(plan, flat, line, 0, chosen), x.shape)


@maps(aten.copy.default)
def copy(plan, x, src, non_blocking=False):
    target = plan.dtype
    y = expanded(plan, src, plan.shape())
    return y if src.dtype == target else plan.elementwise(lambda a: ops.cast(a, dtype_name(target)), y)


@maps(aten.zero.default)
def zero(plan, x):
    return filled(plan, 0)


@maps(aten.fill.Scalar, aten.fill.Tensor)
def fill(plan, x, value):
    if isinstance(value, Value):
        return copy(plan, x, value)
    return filled(plan, value.scalar() if isinstance(value, Constant) else value)
