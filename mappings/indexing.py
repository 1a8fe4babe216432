"""Picking, repeating and turning round along dimensions; shuffles of channels, which are views and move nothing."""

from functools import partial

import numpy as np
import torch
from keras import ops

from converter.deferred import Deferred
from converter.layout import Layout, product
from converter.plan import Constant, Unsupported, Value
from converter.registry import maps
from mappings.expansion import expanded

aten = torch.ops.aten


# -- repetition


@maps(aten.repeat.default)
def repeat(plan, x, repeats):
    have = (1,) * (len(repeats) - len(x.shape)) + tuple(x.shape)
    x = expanded(plan, x, tuple(r if n == 1 else n for n, r in zip(have, repeats, strict=True)))
    times = {d: r for d, (n, r) in enumerate(zip(have, repeats, strict=True)) if n != 1 and r != 1}
    if not all(isinstance(r, int) for r in times.values()):
        raise Unsupported("repetition by an unknown number")
    for d in times:
        x, _ = plan.one_axis(x, d, "a repetition")
    layout, by_axis = x.layout, [1] * len(x.layout.axes)
    for d, r in times.items():
        layout, axis = layout.resized(d, layout.shape[d] * r)
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
    x, axis = plan.one_axis(x, dim, "a repetition")
    layout, _ = x.layout.resized(dim, x.shape[dim] * repeats)
    return plan.call(lambda a: ops.repeat(a, repeats, axis), x, layout=layout)


# -- picking


@maps(aten.unbind.int)
def unbind(plan, x, dim=0):
    dim %= len(x.shape)
    if isinstance(x, Constant):
        return [x.rearranged(partial(torch.select, dim=dim, index=i), "select", dim, i) for i in range(x.shape[dim])]
    count = x.shape[dim]
    x, axis = plan.one_axis(x, dim, "a selection")
    one, _ = x.layout.resized(dim, 1)
    parts = plan.calls(lambda a: ops.split(a, count, axis), x, layouts=[one] * count)
    return [plan.reshape(part, plan.shape(i)) for i, part in enumerate(parts)]


def picked(plan, x, dim, indices, reason):
    """The elements of `dim` at constant `indices`: a slice where they are evenly spaced, else a gather."""
    size, count = x.shape[dim], len(indices)
    if not isinstance(size, int):
        raise Unsupported("an index into an unknown size")
    if np.array_equal(indices, np.arange(size)):
        return x
    x, axis = plan.one_axis(x, dim, reason)
    layout, _ = x.layout.resized(dim, count)
    step = int(indices[1] - indices[0]) if count > 1 else 1
    if step > 0 and np.array_equal(indices, indices[0] + step * np.arange(count)):
        cut = (*(slice(None),) * axis, slice(int(indices[0]), int(indices[-1]) + 1, step))
        return plan.call(lambda a: a[cut], x, layout=layout)
    plan.gathers(x, reason)
    tensor = torch.from_numpy(np.asarray(indices, dtype="int64"))
    held = Constant(Deferred.of(tensor), torch.int64, (), False, False, ("indices", tuple(tensor.tolist())))
    return plan.call(lambda a, i: ops.take(a, i, axis=axis), x, plan.as_value(held, x), layout=layout)


@maps(aten.index_select.default)
def index_select(plan, x, dim, index):
    dim %= max(len(x.shape), 1)
    if isinstance(index, Constant):
        return picked(plan, x, dim, index.array(), "an index")
    return taken(plan, x, dim, index)


def taken(plan, x, dim, index):
    """`x` at an index computed from the input, whose dimensions take the place of `dim`."""
    size = x.shape[dim]
    if not isinstance(size, int):
        raise Unsupported("an index into an unknown size")
    x, axis = plan.one_axis(plan.as_value(x, index), dim, "an index")
    plan.gathers(x, "an index that depends on the input")
    above = max(x.layout.size, default=-1) + 1
    inner = index.layout.renamed({a: above + i for i, a in enumerate(index.layout.size)})
    outer = {a: n for a, n in x.layout.size.items() if a not in x.layout.dims[dim]}
    layout = Layout(
        (*x.layout.dims[:dim], *inner.dims, *x.layout.dims[dim + 1 :]),
        (*x.layout.axes[:axis], *inner.axes, *x.layout.axes[axis + 1 :]),
        {**outer, **inner.size},
    )

    def take(a, i):
        return ops.take(a, ops.where(i < 0, i + size, i), axis=axis)

    return plan.call(take, x, index, layout=layout)


@maps(aten.index.Tensor)
def index(plan, x, indices):
    given = {d: i for d, i in enumerate(indices) if i is not None}
    if not all(isinstance(i, Constant) for i in given.values()):
        if len(given) == 1 and all(i.dtype != torch.bool for i in given.values()):
            ((dim, chosen),) = given.items()
            return taken(plan, x, dim, chosen)
        raise Unsupported("several indices that depend on the input, or a mask")
    if any(i.dtype == torch.bool for i in given.values()):
        raise Unsupported("a mask")
    dims = list(given)
    sizes = [x.shape[d] for d in dims]
    if not all(isinstance(n, int) for n in sizes):
        raise Unsupported("an index into an unknown size")
    chosen = np.broadcast_arrays(*(i.array() % n for i, n in zip(given.values(), sizes, strict=True)))
    first = dims[0] if dims == list(range(dims[0], dims[0] + len(dims))) else 0  # apart, their result goes first
    rest = [d for d in range(len(x.shape)) if d not in given]
    together = Value(x.layout.permute([*rest[:first], *dims, *rest[first:]]), x.dtype, x.step)
    before, after = together.shape[:first], together.shape[first + len(dims) :]
    merged = plan.reshape(together, (*before, product(sizes), *after))
    flat = np.ravel_multi_index(chosen, sizes)
    return plan.reshape(picked(plan, merged, first, flat.ravel(), "an index"), plan.shape())


# -- order


@maps(aten.flip.default)
def flip(plan, x, dims):
    return flipped(plan, x, dims)


def flipped(plan, x, dims):
    """Turned round along `dims`: every axis that holds a part of them."""
    dims = {d % len(x.shape) for d in dims}
    x = plan.request(x, x.layout.axes_within(dims).axes, "a flip")
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
        x, _ = plan.one_axis(x, d, "a roll")
    axes = [x.layout.axes.index(x.layout.dims[d]) for d in moved]
    by = list(moved.values())
    return plan.call(lambda a: ops.roll(a, by, axes), x, layout=x.layout) if moved else x


# -- shuffles


def viewed(plan, x, split, order, shape):
    """`x` as a view to `split`, a permutation and a view to `shape`: nothing moves."""
    parts = plan.reshape(x, split)
    return plan.reshape(Value(parts.layout.permute(order), parts.dtype, parts.step), shape)


@maps(aten.pixel_shuffle.default, channels_last=True)
def pixel_shuffle(plan, x, upscale_factor):
    r = upscale_factor
    *lead, channels, height, width = x.shape
    n = len(lead)
    split = (*lead, channels // (r * r), r, r, height, width)
    return viewed(plan, x, split, (*range(n), n, n + 3, n + 1, n + 4, n + 2), plan.shape())


@maps(aten.pixel_unshuffle.default, channels_last=True)
def pixel_unshuffle(plan, x, downscale_factor):
    r = downscale_factor
    *lead, channels, height, width = x.shape
    n = len(lead)
    split = (*lead, channels, height // r, r, width // r, r)
    return viewed(plan, x, split, (*range(n), n, n + 2, n + 4, n + 1, n + 3), plan.shape())


@maps(aten.channel_shuffle.default)
def channel_shuffle(plan, x, groups):
    batch, channels, *rest = x.shape
    split = (batch, groups, channels // groups, *rest)
    return viewed(plan, x, split, (0, 2, 1, *range(3, len(split))), x.shape)
