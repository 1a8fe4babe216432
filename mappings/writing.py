"""Writing into a part of a tensor, as capture leaves assignments: the parts are joined again."""

import torch
from keras import ops

from converter.plan import Constant, Unsupported, Value
from converter.precision import dtype_name
from converter.registry import maps
from mappings.expansion import expanded, filled

aten = torch.ops.aten


@maps(aten.slice_scatter.default)
def slice_scatter(plan, x, src, dim=0, start=None, end=None, step=1):
    dim %= len(plan.shape())
    size, written = x.shape[dim], src.shape[dim]
    if written == size:
        return src
    if step != 1:
        raise Unsupported("writing to every other element")
    if not isinstance(size, int) or not isinstance(start or 0, int):
        raise Unsupported("writing to a part of an unknown size")
    first = max(min((start or 0) + (size if (start or 0) < 0 else 0), size), 0)
    like = next((v for v in (x, src) if isinstance(v, Value)), None)
    if like is None:
        raise Unsupported("writing one constant into another")
    x, src = plan.as_value(x, like), plan.as_value(src, like)
    held, axis = plan.one_axis(x, dim, "a part that is written")
    parts = []
    for begin, stop in ((0, first), (first + written, size)):
        if stop > begin:
            cut = (*(slice(None),) * axis, slice(begin, stop))
            layout, _ = held.layout.resized(dim, stop - begin)
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
