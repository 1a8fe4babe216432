"""Reading and writing at positions that are known only at run time: gather, scatter, indices of several dimensions.

A tensor is flattened in its physical order. An element's position is the sum of its indices, each times its dimension's
stride in that array. So nothing is transposed in any layout; a gather or a scatter is itself movement and is counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from converter.ir.lazy_tensor import LazyTensor
from converter.ir.sizes import product
from converter.plan.builder import PlanBuilder
from converter.plan.layout import Layout
from converter.plan.lazy_keras import ops
from converter.plan.precision import dtype_name
from converter.plan.registry import maps
from converter.plan.steps import Constant, Unsupported, Value
from mappings.elementwise import arithmetic, sum_of
from mappings.expand import expanded, zeros_along
from mappings.views import slice_to

aten = torch.ops.aten


@dataclass(frozen=True)
class Flat:
    """A tensor flattened to one axis in its physical order.

    Attributes:
        strides: distance in elements between neighbors along each of its dimensions.
        order: its dimensions in physical order.
        shape: their sizes, in PyTorch's order.
    """

    value: Value
    strides: tuple[int, ...]
    order: tuple[int, ...]
    shape: tuple[int, ...]


def flattened(plan: PlanBuilder, x: Value, reason: str) -> Flat:
    for d, run in enumerate(x.layout.dims):
        if len(run) > 1:
            x = plan.one_atom(x, d, reason)
    held = strides_of(x.layout)
    if held is None:
        x = plan.in_torch_order(x, reason)
        held = strides_of(x.layout)
    if held is None:
        raise Unsupported("an index along dimensions of dynamic size")
    atoms = x.layout.atoms
    order = sorted(range(len(x.shape)), key=lambda d: atoms.index(x.layout.dims[d][0]) if x.layout.dims[d] else -1)
    one_dimension = Value(Layout((atoms,), x.layout.axes, x.layout.size), x.dtype, x.step)
    flat, _ = plan.isolate_axis(one_dimension, 0, reason)
    return Flat(flat, held, tuple(order), x.shape)


def strides_of(layout: Layout) -> tuple[int, ...] | None:
    """Return the stride of each dimension in the physical array, or None if one is dynamic."""
    atoms = layout.atoms
    found = [product(layout.size[a] for a in atoms[atoms.index(run[0]) + 1 :]) if run else 0 for run in layout.dims]
    return tuple(found) if all(isinstance(n, int) for n in found) else None


def positions(
    plan: PlanBuilder, flat: Flat, indices: dict[int, Value | Constant], places: dict[int, int], shape
) -> Value | Constant:
    """Return the positions of the elements of a result of `shape`.

    Args:
        indices: for some dimensions of the tensor, an index that broadcasts to `shape`.
        places: for all others, the dimension of `shape` that runs along it.
    """
    parts: list[Value | Constant] = []
    strides: list[int] = []
    for d, index in indices.items():
        size = flat.shape[d]
        if not isinstance(size, int):
            raise Unsupported("an index into a dynamic size")
        parts.append(index if isinstance(index, Value) else computed(index.tensor % max(size, 1)))
        strides.append(flat.strides[d])
    for d, place in places.items():
        parts.append(counted(plan, shape, place))
        strides.append(flat.strides[d])
    sizes = [flat.shape[d] for d in indices] + [0] * len(places)

    def total(*arrays):
        result = 0
        for array, stride, size in zip(arrays, strides, sizes, strict=True):
            if hasattr(array, "shape"):
                array = ops.cast(array, "int64")
                array = ops.where(array < 0, array + size, array) if size else array
            result = sum_of(result, array * stride) if hasattr(result, "shape") else sum_of(array * stride, result)
        return result

    if any(isinstance(part, Value) for part in parts):
        where = arithmetic(plan, total, *parts, dtype=torch.int64)
        return expanded(plan, where, tuple(shape))
    tables = [p for p in parts if isinstance(p, Constant)]
    sums = sum((p.tensor * n for p, n in zip(tables, strides, strict=True)), start=torch.zeros((), dtype=torch.int64))
    return computed(sums.expand(tuple(shape)))


def computed(tensor: torch.Tensor) -> Constant:
    """Make a table of positions."""
    held = tensor.to(torch.int64)
    key = ("indices", tuple(held.shape), tuple(held.ravel().tolist()))
    return Constant(LazyTensor.of(held), torch.int64, (), False, False, key)


def counted(plan: PlanBuilder, shape: Sequence, place: int) -> Value | Constant:
    """Count 0, 1, 2, ... along dimension `place` of `shape`."""
    if isinstance(shape[place], int):
        return computed(torch.arange(shape[place]).reshape([-1 if d == place else 1 for d in range(len(shape))]))
    zeros = zeros_along(plan, place, tuple(shape))
    return plan.call(
        lambda z: ops.cumsum(ops.ones_like(z, dtype="int64")) - 1, zeros, layout=zeros.layout, dtype=torch.int64
    )


def read(plan: PlanBuilder, flat: Flat, where: Value | Constant, reason: str) -> Value:
    """Read the elements of `flat` at positions `where`."""
    plan.count_gather(flat.value, reason)
    held = plan.as_value(where, flat.value)
    return plan.call(lambda a, p: ops.take(a, p, axis=0), flat.value, held, layout=held.layout, dtype=flat.value.dtype)


def written(
    plan: PlanBuilder, flat: Flat, where: Value | Constant, values: Value | Constant, reduction: str | None = None
) -> Value:
    """Write `values` at positions `where`, or combine them with the existing elements ("add", "mul", "max", "min")."""
    like = flat.value
    plan.count_gather(like, "a scatter")
    count = product(where.shape)
    values = plan.as_value(expanded(plan, values, where.shape), like)
    line = [
        plan.isolate_axis(plan.reshape(plan.as_value(v, like), (count,)), 0, "a scatter")[0] for v in (where, values)
    ]
    held = torch.int32 if like.dtype == torch.bool else like.dtype

    def write(a, p, v):
        a, v = (ops.cast(n, dtype_name(held)) for n in (a, v))
        return ops.cast(ops.scatter_update(a, ops.expand_dims(p, -1), v, reduction=reduction), dtype_name(like.dtype))

    result = plan.call(write, like, *line, layout=like.layout, dtype=like.dtype)
    lying = plan.reshape(result, tuple(flat.shape[d] for d in flat.order))
    return Value(lying.layout.permute(np.argsort(flat.order).tolist()), lying.dtype, lying.step)


def along(plan: PlanBuilder, x: Value, dim: int, index: Value | Constant, reason: str) -> tuple[Flat, Value | Constant]:
    """Flatten `x`, and return the positions that an index of its rank along `dim` selects."""
    flat = flattened(plan, x, reason)
    places = {d: d for d in range(len(x.shape)) if d != dim and x.shape[d] != 1}
    return flat, positions(plan, flat, {dim: index}, places, index.shape)


def ranked_alike(plan: PlanBuilder, *tensors):
    """Reshape scalars to tensors of one element."""
    return [t.reshape(1) if isinstance(t, Constant) else plan.reshape(t, (1,)) for t in tensors]


@maps(aten.gather.default)
def gather(plan, x, dim, index, *, sparse_grad=False):
    if not index.shape:
        (index,) = ranked_alike(plan, index)
    if not x.shape:
        (x,) = ranked_alike(plan, x)
    like = x if isinstance(x, Value) else index
    x, dim = plan.as_value(x, like), dim % len(x.shape)
    if not all(isinstance(n, int) for n in x.shape[1:]) and others_alike(x.shape, index.shape, dim):
        in_order = [plan.in_torch_order(plan.as_value(v, like), "a gather") for v in (x, index)]
        plan.count_gather(x, "a gather")
        return plan.call(lambda a, i: ops.take_along_axis(a, i, axis=dim), *in_order, layout=Layout.of(plan.shape()))
    flat, where = along(plan, x, dim, index, "a gather")
    return plan.reshape(read(plan, flat, where, "a gather"), plan.shape())


def others_alike(shape, other, dim):
    """Return whether two shapes agree but for one dimension."""
    return all(n == m for d, (n, m) in enumerate(zip(shape, other, strict=True)) if d != dim)


REDUCTIONS = {
    None: None, "add": "add", "sum": "add", "mean": "add", "prod": "mul", "multiply": "mul", "amax": "max",
    "amin": "min",
}  # fmt: skip


def scattered(plan, x, dim, index, source, reduce=None, include_self=True):
    """Write `source`, of the index's shape, into `x`, or combine it with the existing elements."""
    shape = plan.shape()
    if not x.shape:
        (x,) = ranked_alike(plan, x)
    if not index.shape:
        (index,) = ranked_alike(plan, index)
    if isinstance(source, Value | Constant) and not source.shape:
        (source,) = ranked_alike(plan, source)
    if product(index.shape) == 0:
        return plan.reshape(x, shape) if isinstance(x, Value) else x
    like = next(v for v in (x, index, source) if isinstance(v, Value))
    if isinstance(source, Value | Constant):
        source = slice_to(plan, plan.as_value(source, like), index.shape)
    else:
        source = number(source, plan.dtype)
    flat, where = along(plan, plan.as_value(x, like), dim % len(x.shape), index, "a scatter")
    return plan.reshape(joined(plan, flat, where, source, reduce, include_self), shape)


def joined(plan, flat, where, source, reduce, include_self):
    dtype = flat.value.dtype
    if dtype == torch.bool:
        reduce = {"add": "amax", "sum": "amax", "mean": "amin", "prod": "amin", "multiply": "amin"}.get(reduce, reduce)
    if not include_self:
        blank = written(plan, flat, where, number(neutral(reduce, dtype), dtype))
        flat = flattened(plan, blank, "a scatter")
    result = written(plan, flat, where, source, REDUCTIONS[reduce])
    if reduce != "mean":
        return result
    initial = plan.elementwise(
        lambda a: ops.full_like(a, 1 if include_self else 0), Value(flat.value.layout, dtype, flat.value.step)
    )
    counts = written(plan, Flat(initial, flat.strides, flat.order, flat.shape), where, number(1, dtype), "add")

    def share(total, count):
        count = ops.maximum(count, ops.ones_like(count))
        return total / count if dtype.is_floating_point else ops.floor_divide(total, count)

    return plan.elementwise(share, result, counts)


def neutral(reduce, dtype):
    """Return the neutral element of a reduction."""
    if reduce in ("amax", "amin"):
        if dtype == torch.bool:
            return reduce == "amin"
        if dtype.is_floating_point:
            return float("-inf") if reduce == "amax" else float("inf")
        return torch.iinfo(dtype).min if reduce == "amax" else torch.iinfo(dtype).max
    return 1 if reduce in ("prod", "multiply") else 0


def number(n, dtype):
    holds = torch.float64 if dtype == torch.float32 else dtype
    return Constant(LazyTensor.of(torch.full((), n, dtype=holds)), dtype, (), True, False, ("full", n, dtype))


@maps(aten.scatter.src, aten.scatter.value)
def scatter(plan, x, dim, index, src):
    return scattered(plan, x, dim, index, src)


@maps(aten.scatter.reduce, aten.scatter.value_reduce)
def scatter_with(plan, x, dim, index, src, *, reduce):
    return scattered(plan, x, dim, index, src, reduce)


@maps(aten.scatter_add.default)
def scatter_add(plan, x, dim, index, src):
    return scattered(plan, x, dim, index, src, "add")


@maps(aten.scatter_reduce.two)
def scatter_reduce(plan, x, dim, index, src, reduce, *, include_self=True):
    return scattered(plan, x, dim, index, src, reduce, include_self)


@maps(aten.take.default)
def take(plan, x, index):
    like = x if isinstance(x, Value) else index
    flat = plan.reshape(plan.as_value(x, like), (product(x.shape),))
    return gather(plan, flat, 0, as_line(plan, index))


def as_line(plan, index):
    count = product(index.shape)
    return index.reshape(count) if isinstance(index, Constant) else plan.reshape(index, (count,))


def broadcast(*shapes):
    rank = max(map(len, shapes))
    padded = [(*(1,) * (rank - len(shape)), *shape) for shape in shapes]
    return tuple(next((n for n in sizes if n != 1), 1) for sizes in zip(*padded, strict=True))


def several(plan, x, indices):
    """Flatten `x`, and return the positions that indices of some dimensions select, in PyTorch's result order."""
    given = {d: i for d, i in enumerate(indices) if i is not None}
    dims = list(given)
    common = broadcast(*(i.shape for i in given.values()))
    first = dims[0] if dims == list(range(dims[0], dims[0] + len(dims))) else 0  # apart, their result goes first
    rest = [d for d in range(len(x.shape)) if d not in given]
    shape = (*(x.shape[d] for d in rest[:first]), *common, *(x.shape[d] for d in rest[first:]))
    behind = len(rest) - first
    shaped = {}
    for d, i in given.items():
        sizes = (*i.shape, *(1,) * behind)
        shaped[d] = i.reshape(*sizes) if isinstance(i, Constant) else plan.reshape(i, sizes)
    places = {d: n if n < first else n + len(common) for n, d in enumerate(rest)}
    flat = flattened(plan, x, "an index")
    return flat, positions(plan, flat, shaped, {d: p for d, p in places.items() if x.shape[d] != 1}, shape)


@maps(aten.index_put.default, aten._unsafe_index_put.default)
def index_put(plan, x, indices, values, accumulate=False):
    indices = without_constant_masks(indices)
    like = next(v for v in (x, values, *indices) if isinstance(v, Value))
    masks = [i for i in indices if i is not None and i.dtype == torch.bool]
    if masks:
        return masked(plan, x, indices, values, accumulate)
    if any(i is not None and product(i.shape) == 0 for i in indices):
        return x
    flat, where = several(plan, plan.as_value(x, like), indices)
    return joined(plan, flat, where, values, "add" if accumulate else None, True)


def rows(plan, x, dim, index, source):
    """Flatten `x`, as rank 1 or more, and return the positions of whole slices of it along `dim`."""
    like = next(v for v in (x, index, source) if isinstance(v, Value))
    if not x.shape:
        (x,) = ranked_alike(plan, x)
    if not index.shape:
        (index,) = ranked_alike(plan, index)
    return several(plan, plan.as_value(x, like), [*[None] * (dim % len(x.shape)), index])


@maps(aten.index_fill.int_Scalar, aten.index_fill.int_Tensor)
def index_fill(plan, x, dim, index, value):
    if product(index.shape) == 0:
        return x
    value = value if isinstance(value, Value | Constant) else number(value, plan.dtype)
    flat, where = rows(plan, x, dim, index, value)
    return plan.reshape(written(plan, flat, where, value), plan.shape())


@maps(aten.index_reduce.default)
def index_reduce(plan, x, dim, index, source, reduce, *, include_self=True):
    if product(index.shape) == 0:
        return x
    flat, where = rows(plan, x, dim, index, source)
    return plan.reshape(joined(plan, flat, where, source, reduce, include_self), plan.shape())


@maps(aten.put.default)
def put(plan, x, index, source, accumulate=False):
    if product(index.shape) == 0:
        return x
    like = next(v for v in (x, index, source) if isinstance(v, Value))
    line = plan.reshape(plan.as_value(x, like), (product(x.shape),))
    flat, where = several(plan, line, [as_line(plan, index)])
    written_line = joined(plan, flat, where, as_line(plan, source), "add" if accumulate else None, True)
    return plan.reshape(written_line, plan.shape())


def masked(plan, x, indices, values, accumulate):
    """Write where a mask is true: one number everywhere, or one for each place behind the mask."""
    mask, *others = indices
    if any(i is not None for i in others) or mask is None:
        raise Unsupported("a mask besides other indices: use torch.where")
    behind = tuple(x.shape[len(mask.shape) :])
    if len(values.shape) > len(behind) and product(values.shape[: len(values.shape) - len(behind)]) != 1:
        raise Unsupported("one value for each true element of a mask: use torch.where")
    shape = (*mask.shape, *(1,) * len(behind))
    mask = mask.reshape(*shape) if isinstance(mask, Constant) else plan.reshape(mask, shape)
    values = (
        values.reshape(*behind[len(behind) - len(values.shape) :])
        if isinstance(values, Constant) and len(values.shape) > len(behind)
        else values
    )
    dtype = plan.dtype

    def choose(m, a, v):
        a, v = (n if not hasattr(n, "shape") else ops.cast(n, dtype_name(dtype)) for n in (a, v))
        if accumulate:
            v = ops.logical_or(a, v) if dtype == torch.bool else a + v
        return ops.where(m, v, a)

    return plan.elementwise(choose, mask, x, values)


def without_constant_masks(indices):
    """Replace masks that are known at conversion by the indices of their true elements."""
    found = []
    for i in indices:
        if isinstance(i, Constant) and i.dtype == torch.bool:
            found += [computed(n) for n in i.tensor.nonzero(as_tuple=True)]
        else:
            found.append(i)
    return found


@maps(aten.masked_scatter.default)
def masked_scatter(plan, x, mask, source):
    """Give the n-th true element of the mask, counted in PyTorch's order, the n-th element of `source`."""
    shape = plan.shape()
    if not all(isinstance(n, int) for n in (*shape, *source.shape)):
        raise Unsupported("a mask over a dynamic size")
    like = next(v for v in (x, mask, source) if isinstance(v, Value))
    count, most = product(shape), product(source.shape) - 1
    flags = plan.reshape(plan.as_value(expanded(plan, mask, shape), like), (count,))
    flags, _ = plan.isolate_axis(flags, 0, "a mask")

    def ordinal(m):
        return ops.clip(ops.cumsum(ops.cast(m, "int64")) - 1, 0, most)

    places = plan.call(ordinal, flags, layout=flags.layout, dtype=torch.int64)
    chosen = take(plan, source, plan.reshape(places, shape))
    chosen = plan.reshape(chosen, shape)
    return plan.elementwise(ops.where, plan.reshape(flags, shape), chosen, x)
