"""Repetition along new or size-1 dimensions, including the dynamic batch, and tensors filled with one number."""

from __future__ import annotations

import torch

from converter.ir.lazy_tensor import LazyTensor
from converter.ir.sizes import Size, quotient
from converter.plan.builder import PlanBuilder
from converter.plan.layout import Layout
from converter.plan.lazy_keras import ops
from converter.plan.precision import dtype_name
from converter.plan.registry import maps
from converter.plan.steps import Constant, Unsupported, Value
from mappings import dynamic_resize
from mappings.elementwise import sum_of

aten = torch.ops.aten


@maps(aten.expand.default)
def expand(plan, x, size, implicit=False):
    return expanded(plan, x, plan.shape())


@maps(torch.ops.prims.broadcast_in_dim.default)
def broadcast_in_dim(plan, x, shape, dims):
    """Broadcast `x`: dimension i of `x` becomes dimension dims[i]."""
    have = [1] * len(shape)
    for d, n in zip(dims, x.shape, strict=True):
        have[d] = n
    x = x.reshape(*have) if isinstance(x, Constant) else plan.reshape(x, tuple(have))
    return expanded(plan, x, plan.shape())


@maps(aten.full.default)
def full(plan, size, fill_value, **_):
    return filled(plan, fill_value)


@maps(aten.new_full.default, aten.full_like.default)
def full_like(plan, x, *arguments, **_):
    return filled(plan, arguments[-1])


@maps(aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default)
def zeros(plan, *_, **__):
    return filled(plan, 0)


@maps(aten.ones.default, aten.ones_like.default, aten.new_ones.default)
def ones(plan, *_, **__):
    return filled(plan, 1)


@maps(aten.arange.default)
def count(plan, end, *_, **__):
    return counted(plan, 0, 1)


@maps(aten.arange.start, aten.arange.start_step)
def count_from(plan, start, end, step=1, *_, **__):
    return counted(plan, start, step)


def counted(plan: PlanBuilder, start: int | float, step: int | float) -> Value:
    """Count start, start + step, ... along a dynamic size; a known one is a constant."""
    if not (isinstance(start, int | float) and isinstance(step, int | float)):
        raise Unsupported("a range whose start or step is a dynamic size")
    zeros = zeros_along(plan, 0, plan.shape())
    return plan.call(lambda z: (ops.cumsum(ops.ones_like(z), 0) - 1) * step + start, zeros, layout=zeros.layout)


def filled(plan: PlanBuilder, number: float | bool) -> Value:
    """Return the operator's result with every element equal to `number`."""
    shape = plan.shape()
    holds = plan.dtype if plan.dtype != torch.float32 else torch.float64
    constant = Constant(
        LazyTensor.of(torch.full((), number, dtype=holds)), plan.dtype, (), True, False, ("full", number, plan.dtype)
    )
    return expanded(plan, constant, shape)


def expanded(plan: PlanBuilder, x: Value | Constant, shape: tuple[Size, ...]) -> Value:
    """Broadcast `x` to `shape`; the result is an array of the graph."""
    have = (1,) * (len(shape) - len(x.shape)) + tuple(x.shape)
    x = x.reshape(*have) if isinstance(x, Constant) else plan.reshape(x, have)
    for d, (one, want) in enumerate(zip(have, shape, strict=True)):
        if one != want and not isinstance(want, int):
            zeros = zeros_along(plan, d, shape)
            x = along(plan, x, zeros) if isinstance(x, Constant) else plan.elementwise(added, x, zeros)
    if isinstance(x, Constant):
        step = plan.input_steps[0]
        x = plan.as_value(x, Value(Layout.of(step.shape), step.dtype, step))
    for d, (one, want) in enumerate(zip(x.shape, shape, strict=True)):
        if one != want:
            x, axis = plan.isolate_axis(x, d, "a repetition")
            layout, _ = x.layout.resize_dim(d, want)
            x = plan.call(lambda a, axis=axis, n=want: ops.repeat(a, n, axis), x, layout=layout)
    return x


def added(x, zeros):
    return ops.logical_or(x, zeros) if zeros.dtype == "bool" else sum_of(x, zeros)


def along(plan: PlanBuilder, constant: Constant, zeros: Value) -> Value:
    """Repeat a constant along the one dimension of `zeros`, where its size is 1."""
    rank = len(zeros.shape)
    (dim,) = (d for d, run in enumerate(zeros.layout.dims) if run)
    shape = tuple(-1 if d == dim else 1 for d in range(rank))
    held = Layout.of((*constant.shape[:dim], zeros.shape[dim], *constant.shape[dim + 1 :]))
    if constant.is_scalar:
        number = constant.scalar()
        return plan.call(lambda z: added(number, ops.reshape(z, shape)), zeros, layout=held)
    return plan.call(lambda z, c: added(c, ops.reshape(z, shape)), zeros, plan.as_value(constant, zeros), layout=held)


def zeros_along(plan: PlanBuilder, dim: int, shape: tuple[Size, ...]) -> Value:
    """Return zeros of the operator's type, of the dynamic size `shape[dim]` along `dim` and of size 1 elsewhere."""
    size, dtype = shape[dim], plan.dtype
    for step in plan.input_steps:
        for axis, known in enumerate(step.shape):
            times = None if isinstance(known, int) else quotient(size, known)
            if isinstance(times, int):
                cut = (*(0,) * axis, slice(None), *(0,) * (len(step.shape) - axis - 1))

                def zeros(a, cut=cut, times=times):
                    z = ops.zeros_like(a[cut], dtype=dtype_name(dtype))
                    return z if times == 1 else ops.repeat(z, times, 0)

                source = Value(Layout.of(step.shape), step.dtype, step)
                dims = tuple((0,) if d == dim else () for d in range(len(shape)))
                return plan.call(zeros, source, layout=Layout(dims, ((0,),), {0: size}))
    held = dynamic_resize.zeros(plan, size)
    dims = tuple((0,) if d == dim else () for d in range(len(shape)))
    return plan.call(lambda z: ops.cast(z, dtype_name(dtype)), held, layout=Layout(dims, ((0,),), {0: size}))
