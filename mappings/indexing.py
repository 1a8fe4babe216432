"""Picking, repeating and flipping along dimensions; channel shuffles, which are views and move nothing."""

from dataclasses import replace
from functools import partial

import numpy as np
import torch

from converter.ir.lazy_tensor import LazyTensor
from converter.ir.sizes import product
from converter.plan.dynamic_reshape import counted
from converter.plan.layout import Layout
from converter.plan.lazy_keras import ops
from converter.plan.registry import maps
from converter.plan.steps import Constant, Unsupported, Value
from mappings import dynamic_resize
from mappings.elementwise import arithmetic
from mappings.expand import expanded
from mappings.gather_scatter import read, several
from mappings.views import split_along

aten = torch.ops.aten


# -- repetition


@maps(aten.repeat.default)
def repeat(plan, x, repeats):
    have = (1,) * (len(repeats) - len(x.shape)) + tuple(x.shape)
    for d, (n, r) in enumerate(zip(have, repeats, strict=True)):
        if n != 1 and not isinstance(r, int):  # along a new dimension in front, which is then merged
            before, behind = have[:d], have[d + 1 :]
            split = (*before, 1, n, *behind)
            x = x.reshape(*split) if isinstance(x, Constant) else plan.reshape(x, split)
            have = (*before, r * n, *behind)
            x = plan.reshape(expanded(plan, x, (*before, r, n, *behind)), have)
            repeats = [*repeats[:d], 1, *repeats[d + 1 :]]
    x = expanded(plan, x, tuple(r if n == 1 else n for n, r in zip(have, repeats, strict=True)))
    times = {d: r for d, (n, r) in enumerate(zip(have, repeats, strict=True)) if n != 1 and r != 1}
    for d in times:
        x, _ = plan.isolate_axis(x, d, "a repetition")
    layout, by_axis = x.layout, [1] * len(x.layout.axes)
    for d, r in times.items():
        layout, axis = layout.resize_dim(d, layout.shape[d] * r)
        by_axis[axis] = r
    return plan.call(lambda a: ops.tile(a, by_axis), x, layout=layout) if times else x


@maps(aten.tile.default)
def tile(plan, x, dims):
    return repeat(plan, x, [*(1,) * (len(x.shape) - len(dims)), *dims])


@maps(aten.repeat_interleave.self_int)
def repeat_interleave(plan, x, repeats, dim=None, *, output_size=None):
    if dim is None:
        x, dim = plan.reshape(x, (product(x.shape),)), 0
    dim %= len(x.shape)
    x, axis = plan.isolate_axis(x, dim, "a repetition")
    layout, _ = x.layout.resize_dim(dim, x.shape[dim] * repeats)
    return plan.call(lambda a: ops.repeat(a, repeats, axis), x, layout=layout)


# -- picking


@maps(aten.unbind.int)
def unbind(plan, x, dim=0):
    dim %= len(x.shape)
    if isinstance(x, Constant):
        return [x.rearranged(partial(torch.select, dim=dim, index=i), "select", dim, i) for i in range(x.shape[dim])]
    count = x.shape[dim]
    x, axis = plan.isolate_axis(x, dim, "a selection")
    one, _ = x.layout.resize_dim(dim, 1)
    parts = plan.calls(lambda a: split_along(a, count, axis), x, layouts=[one] * count)
    return [plan.reshape(part, plan.shape(i)) for i, part in enumerate(parts)]


def picked(plan, x, dim, indices, reason):
    """Pick the elements of `dim` at constant `indices`: by a slice if they are evenly spaced, else by a gather."""
    if not x.shape:
        x = plan.reshape(x, (1,))
    size, count = x.shape[dim], len(indices)
    if not isinstance(size, int):
        raise Unsupported("an index into a dynamic size")
    if np.array_equal(indices, np.arange(size)):
        return x
    x, axis = plan.isolate_axis(x, dim, reason)
    layout, _ = x.layout.resize_dim(dim, count)
    step = int(indices[1] - indices[0]) if count > 1 else 1
    if count and step > 0 and np.array_equal(indices, indices[0] + step * np.arange(count)):
        cut = (*(slice(None),) * axis, slice(int(indices[0]), int(indices[-1]) + 1, step))
        return plan.call(lambda a: a[cut], x, layout=layout)
    plan.count_gather(x, reason)
    tensor = torch.from_numpy(np.asarray(indices, dtype="int64"))
    held = Constant(LazyTensor.of(tensor), torch.int64, (), False, False, ("indices", tuple(tensor.tolist())))
    return plan.call(lambda a, i: ops.take(a, i, axis=axis), x, plan.as_value(held, x), layout=layout)


@maps(aten.index_select.default)
def index_select(plan, x, dim, index):
    dim %= max(len(x.shape), 1)
    if isinstance(index, Constant):
        return plan.reshape(picked(plan, x, dim, np.atleast_1d(index.array()), "an index"), plan.shape())
    return taken(plan, x, dim, index)


def taken(plan, x, dim, index):
    """Take `x` at an index computed from the input, whose dimensions replace `dim`."""
    size = x.shape[dim] if x.shape else 1
    if not isinstance(size, int):
        index, size = place_in_order(plan, [index], [size]), 0
    x = plan.as_value(x, index)
    if not x.shape:
        x = plan.reshape(x, (1,))
    x, axis = plan.isolate_axis(x, dim, "an index")
    plan.count_gather(x, "an index that depends on the input")
    above = max(x.layout.size, default=-1) + 1
    inner = index.layout.renamed({a: above + i for i, a in enumerate(index.layout.size)})
    outer = {a: n for a, n in x.layout.size.items() if a not in x.layout.dims[dim]}
    layout = Layout(
        (*x.layout.dims[:dim], *inner.dims, *x.layout.dims[dim + 1 :]),
        (*x.layout.axes[:axis], *inner.axes, *x.layout.axes[axis + 1 :]),
        {**outer, **inner.size},
    )

    def take(a, i):
        return ops.take(a, ops.where(i < 0, i + size, i) if size else i, axis=axis)

    return plan.reshape(plan.call(take, x, index, layout=layout), plan.shape())


def place_in_order(plan, indices, sizes):
    """Return the places that indices of dimensions select where these lie in one axis; sizes may be dynamic."""
    held = [n if isinstance(n, int) else runtime_size(plan, n) for n in sizes]

    def place(*given):
        found = 0
        for i, n in zip(given[: len(indices)], given[len(indices) :], strict=True):
            found = found * n + ops.where(i < 0, i + n, i)
        return found

    return arithmetic(plan, place, *indices, *held, dtype=torch.int64)


def runtime_size(plan, size):
    """Return a dynamic size as a number that the graph computes."""
    line = dynamic_resize.zeros(plan, size)
    return plan.call(lambda a: counted(a, "int64")[1], line, layout=Layout.of(()), dtype=torch.int64)


def across(plan, x, given):
    """Index dimensions of dynamic size: they become one, in which the graph computes the places."""
    dims = list(given)
    first = dims[0] if dims == list(range(dims[0], dims[0] + len(dims))) else 0  # apart, their result goes first
    rest = [d for d in range(len(x.shape)) if d not in given]
    order = [*rest[:first], *dims, *rest[first:]]
    sizes = [x.shape[d] for d in dims]
    shape = (*(x.shape[d] for d in rest[:first]), product(sizes), *(x.shape[d] for d in rest[first:]))
    together = plan.reshape(Value(x.layout.permute(order), x.dtype, x.step), shape)
    return taken(plan, together, first, place_in_order(plan, list(given.values()), sizes))


@maps(aten.index.Tensor, aten._unsafe_index.Tensor)
def index(plan, x, indices):
    given = {d: i for d, i in enumerate(indices) if i is not None}
    if any(i.dtype == torch.bool for i in given.values()):
        raise Unsupported("the number of elements that a mask selects depends on values: use torch.where")
    if not isinstance(x, Value) or not all(isinstance(i, Constant) for i in given.values()):
        like = next(v for v in (x, *given.values()) if isinstance(v, Value))
        x = plan.as_value(x, like)
        if len(given) == 1 and isinstance(next(iter(given.values())), Value):
            ((dim, chosen),) = given.items()
            return taken(plan, x, dim, chosen)
        if not all(isinstance(n, int) for n in (*(x.shape[d] for d in given), *x.shape[1:])):
            return across(plan, x, {d: plan.as_value(i, x) for d, i in given.items()})
        flat, where = several(plan, x, [given.get(d) for d in range(max(given) + 1)])
        return read(plan, flat, where, "an index that depends on the input")
    dims = list(given)
    sizes = [x.shape[d] for d in dims]
    if not all(isinstance(n, int) for n in sizes):
        return across(plan, x, {d: plan.as_value(i, x) for d, i in given.items()})
    chosen = np.broadcast_arrays(*(i.array() % n for i, n in zip(given.values(), sizes, strict=True)))
    first = dims[0] if dims == list(range(dims[0], dims[0] + len(dims))) else 0  # apart, their result goes first
    rest = [d for d in range(len(x.shape)) if d not in given]
    together = Value(x.layout.permute([*rest[:first], *dims, *rest[first:]]), x.dtype, x.step)
    before, after = together.shape[:first], together.shape[first + len(dims) :]
    merged = plan.reshape(together, (*before, product(sizes), *after))
    flat = np.ravel_multi_index(chosen, sizes)
    return plan.reshape(picked(plan, merged, first, flat.ravel(), "an index"), plan.shape())


# -- parts of a fixed pattern


@maps(aten.diagonal.default)
def diagonal(plan, x, offset=0, dim1=0, dim2=1):
    """Pick every (columns + 1)-th element of the two dimensions merged into one."""
    merged, chosen = plane(plan, x, offset, dim1, dim2)
    return picked(plan, merged, len(merged.shape) - 1, chosen, "a diagonal")


def plane(plan, x, offset, dim1, dim2):
    """Return `x` with the two dimensions merged into its last one, and the indices of a diagonal there."""
    rank = len(x.shape)
    dim1, dim2 = dim1 % rank, dim2 % rank
    rows, columns = x.shape[dim1], x.shape[dim2]
    if not (isinstance(rows, int) and isinstance(columns, int)):
        raise Unsupported("a diagonal of a dynamic size")
    rest = [d for d in range(rank) if d not in (dim1, dim2)]
    together = Value(x.layout.permute([*rest, dim1, dim2]), x.dtype, x.step)
    merged = plan.reshape(together, (*(x.shape[d] for d in rest), rows * columns))
    count = max(min(rows, columns - offset) if offset >= 0 else min(rows + offset, columns), 0)
    start = offset if offset >= 0 else -offset * columns
    return merged, start + (columns + 1) * np.arange(count)


@maps(aten.as_strided.default)
def as_strided(plan, x, size, stride, storage_offset=None):
    flat, chosen = in_storage(plan, x, size, stride, storage_offset)
    return plan.reshape(picked(plan, flat, 0, chosen, "a strided view"), plan.shape())


def in_storage(plan, x, size, stride, storage_offset):
    """Return `x` in PyTorch's memory order, and the indices of a strided view there."""
    if not plan.node.args[0].meta["val"].is_contiguous() or not all(isinstance(n, int) for n in (*size, *x.shape)):
        raise Unsupported("a view by strides: use permute, reshape or unfold")
    chosen = np.asarray(storage_offset or 0)
    for n, step in zip(size, stride, strict=True):
        chosen = chosen[..., None] + step * np.arange(n)
    if chosen.size and chosen.max() >= product(x.shape):
        raise Unsupported("a view by strides past the end of the tensor: use permute, reshape or unfold")
    return plan.reshape(x, (product(x.shape),)), chosen.ravel()


# -- order


@maps(aten.flip.default)
def flip(plan, x, dims):
    return flipped(plan, x, dims)


def flipped(plan, x, dims):
    """Flip `x` along `dims`: every axis that holds a part of them."""
    dims = {d % len(x.shape) for d in dims}
    x = plan.relayout(x, x.layout.axes_within(dims).axes, "a flip")
    turned = {a for d in dims for a in x.layout.dims[d]}
    axes = [i for i, axis in enumerate(x.layout.axes) if turned.intersection(axis)]
    return plan.call(lambda a: ops.flip(a, axes), x, layout=x.layout) if axes else x


@maps(aten.rot90.default)
def quarter_turns(plan, x, k=1, dims=(0, 1)):
    first, second = (d % len(x.shape) for d in dims)
    turned = {0: (), 1: (second,), 2: (first, second), 3: (first,)}[k % 4]
    y = flipped(plan, x, turned)
    order = list(range(len(x.shape)))
    if k % 2:
        order[first], order[second] = second, first
    return Value(y.layout.permute(order), y.dtype, y.step)


@maps(aten.roll.default)
def roll(plan, x, shifts, dims=()):
    if not dims:
        flat = plan.reshape(x, (product(x.shape),))
        return plan.reshape(roll(plan, flat, shifts, (0,)), x.shape)
    moved: dict[int, int] = {}
    for shift, d in zip(shifts, dims, strict=True):
        if x.layout.dims[d]:
            moved[d % len(x.shape)] = moved.get(d % len(x.shape), 0) + shift
    for d in moved:
        x, _ = plan.isolate_axis(x, d, "a roll")
    axes = [x.layout.axes.index(x.layout.dims[d]) for d in moved]
    by = list(moved.values())
    return plan.call(lambda a: ops.roll(a, by, axes), x, layout=x.layout) if moved else x


# -- shuffles


def viewed(plan, x, split, order, shape):
    """View `x` as `split`, permute it, and view it as `shape`: nothing moves."""
    parts = plan.reshape(x, split)
    return plan.reshape(Value(parts.layout.permute(order), parts.dtype, parts.step), shape)


@maps(aten.pixel_shuffle.default, channels_last=True, factors=lambda channels, r: (channels // (r * r), r * r))
def pixel_shuffle(plan, x, upscale_factor):
    r = upscale_factor
    *lead, channels, height, width = x.shape
    n = len(lead)
    split = (*lead, channels // (r * r), r, r, height, width)
    return viewed(plan, x, split, (*range(n), n, n + 3, n + 1, n + 4, n + 2), plan.shape())


@maps(
    torch.ops.converter.depth_to_space.default, channels_last=True,
    factors=lambda channels, block: (block * block, channels // (block * block)),
)  # fmt: skip
def depth_to_space(plan, x, block):
    batch, channels, height, width = x.shape
    split = (batch, block, block, channels // (block * block), height, width)
    return viewed(plan, x, split, (0, 3, 4, 1, 5, 2), plan.shape())


@maps(aten.pixel_unshuffle.default, channels_last=True)
def pixel_unshuffle(plan, x, downscale_factor):
    r = downscale_factor
    *lead, channels, height, width = x.shape
    n = len(lead)
    if n == 1 and not all(isinstance(size, int) for size in (height, width)):
        x, _ = plan.channels_last(x)
        layout = x.layout.space_to_depth(r)
        batch, (row, column, *rest), *spatial = layout.dims
        layout = replace(layout, dims=(batch, (*rest, row, column), *spatial))
        return plan.call(lambda a: ops.space_to_depth(a, r), x, layout=layout)
    split = (*lead, channels, height // r, r, width // r, r)
    return viewed(plan, x, split, (*range(n), n, n + 2, n + 4, n + 1, n + 3), plan.shape())


@maps(aten.channel_shuffle.default, factors=lambda channels, groups: (groups, channels // groups))
def channel_shuffle(plan, x, groups):
    batch, channels, *rest = x.shape
    split = (batch, groups, channels // groups, *rest)
    return viewed(plan, x, split, (0, 2, 1, *range(3, len(split))), x.shape)
