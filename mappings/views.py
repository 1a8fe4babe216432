"""Views, joins and cuts. Most only relabel; data moves only when a consumer asks for it."""

from functools import partial
from math import prod

import torch

from converter.ir.sizes import Size, product
from converter.plan.layout import Layout
from converter.plan.lazy_keras import ops
from converter.plan.registry import maps
from converter.plan.steps import Constant, Unsupported, Value
from mappings import dynamic_resize

aten = torch.ops.aten
INT32 = 2**31 - 1


def relabeled(value, layout):
    return Value(layout, value.dtype, value.step)


@maps(
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
)
def view(plan, x, *_):
    return plan.reshape(x, plan.shape())


@maps(aten.permute.default)
def permute(plan, x, dims):
    return relabeled(x, x.layout.permute([d % len(dims) for d in dims]))


@maps(aten.transpose.int)
def transpose(plan, x, dim0, dim1):
    order = list(range(len(x.shape)))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return relabeled(x, x.layout.permute(order))


@maps(aten.t.default)
def matrix_transpose(plan, x):
    return relabeled(x, x.layout.permute(range(len(x.shape))[::-1]))


@maps(aten.cat.default)
def concatenate(plan, tensors, dim=0):
    tensors = [t for t in tensors if product(t.shape) != 0]
    like = next(t for t in tensors if isinstance(t, Value))
    values, axis, layout = plan.join([plan.as_value(t, like) for t in tensors], dim)
    return plan.call(lambda *arrays: ops.concatenate(arrays, axis), *values, layout=layout)


@maps(aten.stack.default)
def stack(plan, tensors, dim=0):
    shape = plan.shape()
    one = (*shape[: dim % len(shape)], 1, *shape[dim % len(shape) + 1 :])
    like = next(t for t in tensors if isinstance(t, Value))
    parts = [plan.reshape(plan.as_value(t, like), one) for t in tensors]
    values, axis, layout = plan.join(parts, dim % len(shape))
    return plan.call(lambda *arrays: ops.concatenate(arrays, axis), *values, layout=layout)


@maps(aten.slice.Tensor)
def slice_(plan, x, dim=0, start=None, end=None, step=1):
    dim %= len(x.shape)
    if x.shape == plan.shape():
        return x
    start, end = start or 0, x.shape[dim] if end is None else end
    if not all(isinstance(n, int) for n in (start, end, step)):
        if step != 1:
            raise Unsupported("a slice with steps between bounds that depend on the input")
        return dynamic_resize.part(plan, x, dim, start, plan.shape()[dim])
    x, axis = plan.isolate_axis(x, dim, "a slice")
    layout, _ = x.layout.resize_dim(dim, plan.shape()[dim])
    cut = (*(slice(None),) * axis, bounded(start, end, step, x.shape[dim]))
    return plan.call(lambda a: a[cut], x, layout=layout)


def bounded(start: int, end: int, step: int, size: Size) -> slice:
    """Return a slice with its bounds within `size`, or omitted if the size is dynamic.

    PyTorch's open end is 2**63 - 1, and TensorFlow's own converter to TFLite keeps only its low 32 bits, -1.
    """
    if isinstance(size, int):
        return slice(*slice(start, end, step).indices(size))
    return slice(start if start > -INT32 else None, end if end < INT32 else None, step)


def slice_to(plan, x, shape):
    """Take the first elements along each dimension, as many as in `shape`."""
    for dim, (have, want) in enumerate(zip(x.shape, shape, strict=True)):
        if have != want:
            x, axis = plan.isolate_axis(x, dim, "a slice")
            layout, _ = x.layout.resize_dim(dim, want)
            cut = (*(slice(None),) * axis, slice(0, want))
            x = plan.call(lambda a, cut=cut: a[cut], x, layout=layout, dtype=x.dtype)
    return x


@maps(aten.select.int)
def select(plan, x, dim, index):
    if not isinstance(index, int):
        raise Unsupported("an index that depends on the input")
    dim %= len(x.shape)
    x, axis = plan.isolate_axis(x, dim, "a selection")
    layout, _ = x.layout.resize_dim(dim, 1)
    cut = (*(slice(None),) * axis, slice(index, index + 1 or None))
    return plan.reshape(plan.call(lambda a: a[cut], x, layout=layout), plan.shape())


def part(tensor: torch.Tensor, parts: list[int], dim: int, i: int) -> torch.Tensor:
    return tensor.split(parts, dim)[i]


MOST_SPLIT = 5  # axes that LiteRT's SPLIT takes


def split_along(a, cuts, axis):
    """Split an array along one axis; of more axes than LiteRT takes, those before and behind it are joined."""
    before, behind = a.shape[:axis], a.shape[axis + 1 :]
    if len(a.shape) <= MOST_SPLIT or None in behind or a.shape[axis] is None or sum(n is None for n in before) > 1:
        return ops.split(a, cuts, axis)
    parts = ops.split(ops.reshape(a, (-1, a.shape[axis], prod(behind))), cuts, 1)
    return [ops.reshape(p, (*(-1 if n is None else n for n in before), p.shape[1], *behind)) for p in parts]


@maps(aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default)
def split(plan, x, _, dim=0):
    dim %= len(x.shape)
    parts = [plan.shape(i)[dim] for i in range(len(plan.node.meta["val"]))]
    if isinstance(x, Constant):
        return [
            x.rearranged(partial(part, parts=parts, dim=dim, i=i), "split", dim, i, *parts) for i in range(len(parts))
        ]
    if len(parts) == 1:
        return [x]
    if not all(isinstance(n, int) for n in parts):
        return dynamic_parts(plan, x, dim, parts)
    x, axis = plan.isolate_axis(x, dim, "a split")
    cuts = [sum(parts[: i + 1]) for i in range(len(parts) - 1)]
    layouts: list[Layout] = [x.layout.resize_dim(dim, n)[0] for n in parts]
    return plan.calls(lambda a: split_along(a, cuts, axis), x, layouts=layouts)


def dynamic_parts(plan, x, dim, parts):
    """Split a dynamic size: into equal parts by one operator, else part by part."""
    if any(n != parts[0] for n in parts):
        starts = [sum(parts[:i]) for i in range(len(parts))]
        return [dynamic_resize.part(plan, x, dim, start, n) for start, n in zip(starts, parts, strict=True)]
    x, axis = plan.isolate_axis(x, dim, "a split")
    layout, _ = x.layout.resize_dim(dim, parts[0])
    return plan.calls(lambda a: ops.split(a, len(parts), axis), x, layouts=[layout] * len(parts))
