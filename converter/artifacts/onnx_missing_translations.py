"""Translate operators to ONNX that PyTorch's exporter does not translate."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch._ops import OpOverload

aten = torch.ops.aten
INT32, INT64, DOUBLE = 6, 7, 11  # https://github.com/onnx/onnx/blob/main/onnx/onnx.proto, TensorProto.DataType
STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188)  # https://dlmf.nist.gov/5.11.E1
SHIFT = 8  # from here on, the series above is exact to 1e-12


def translations() -> dict[OpOverload, Callable]:
    """Return the onnxscript functions that write these operators."""
    return {
        aten.cummax.default: lambda x, dim: _running_best(x, dim, "Greater"),
        aten.cummin.default: lambda x, dim: _running_best(x, dim, "Less"),
        aten.kthvalue.default: kthvalue,
        aten.sort.stable: stable_sort,
        aten.searchsorted.Tensor: searchsorted,
        aten.searchsorted.Scalar: searchsorted,
        aten.lgamma.default: lgamma,
        aten.signbit.default: signbit,
        aten.fmax.default: lambda x, other: _unless_nan(x, other, "Greater"),
        aten.fmin.default: lambda x, other: _unless_nan(x, other, "Less"),
        aten.hypot.default: hypot,
        aten.scaled_dot_product_attention.default: attention,
    }


def _running_best(x: Any, dim: int, better: str) -> tuple[Any, Any]:
    """Write running maxima or minima and their positions: of twice as many elements in each step.

    Among equals PyTorch takes the last position, and NaN over all numbers.

    Raises:
        NotImplementedError: the number of elements is unknown.
    """
    from onnxscript import opset18 as op

    if not len(x.shape):
        return op.Identity(x), op.Constant(value_int=0)
    axis = dim % len(x.shape)
    size = x.shape[axis]
    if not isinstance(size, int):
        raise NotImplementedError("running maxima along an unknown number of elements (cummax, cummin)")
    floats = x.dtype.is_floating_point()
    along = [size if d == axis else 1 for d in range(len(x.shape))]
    counted = op.Reshape(op.Constant(value_ints=list(range(size))), along)
    places = op.Expand(counted, op.Shape(x))
    values, step = x, 1
    while step < size:
        later, at = (op.Slice(part, [step], [size], [axis]) for part in (values, places))
        earlier, at_earlier = (op.Slice(part, [0], [size - step], [axis]) for part in (values, places))
        keeps = getattr(op, better)(earlier, later)
        if floats:
            keeps = op.Or(op.And(keeps, op.Not(op.IsNaN(later))), op.And(op.IsNaN(earlier), op.Not(op.IsNaN(later))))
        heads = (op.Slice(part, [0], [step], [axis]) for part in (values, places))
        tails = (op.Where(keeps, earlier, later), op.Where(keeps, at_earlier, at))
        values, places = (op.Concat(head, tail, axis=axis) for head, tail in zip(heads, tails, strict=True))
        step *= 2
    return values, places


def kthvalue(x: Any, k: int, dim: int = -1, keepdim: bool = False) -> tuple[Any, Any]:
    """Write the last of the k smallest."""
    from onnxscript import opset18 as op

    axis = dim % max(len(x.shape), 1)
    row = op.Reshape(x, [1]) if not len(x.shape) else x
    found = op.TopK(row, op.Constant(value_ints=[k]), axis=axis, largest=0, sorted=1)
    last = [op.Slice(part, [k - 1], [k], [axis]) for part in found]
    values, places = last if keepdim and len(x.shape) else [op.Squeeze(part, [axis]) for part in last]
    return values, places


def stable_sort(x: Any, stable: bool | None = None, dim: int = -1, descending: bool = False) -> tuple[Any, Any]:
    """Write a stable sort as TopK of all elements, which returns equal ones in their order."""
    from onnxscript import opset18 as op

    if not len(x.shape):
        return op.Identity(x), op.Constant(value_int=0)
    axis = dim % len(x.shape)
    return op.TopK(x, op.Shape(x, start=axis, end=axis + 1), axis=axis, largest=int(descending), sorted=1)


def searchsorted(
    sorted_sequence: Any,
    self: Any,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Any = None,
) -> Any:
    """Count the elements before each value; NaN comes after all.

    Raises:
        NotImplementedError: there is a sorter.
    """
    from onnxscript import opset18 as op

    if sorter is not None:
        raise NotImplementedError("an order of the sorted sequence (searchsorted with sorter)")
    rows, value = sorted_sequence, self
    if isinstance(value, (int, float)):
        value = op.CastLike(op.Constant(value_float=float(value)), rows)
    if len(rows.shape) > 1:
        rows = op.Unsqueeze(rows, [-2])
    value = op.CastLike(op.Unsqueeze(value, [-1]), rows)
    after = (op.Greater if right or side == "right" else op.GreaterOrEqual)(rows, value)
    before = op.Cast(op.Not(after), to=INT64)
    count = op.ReduceSum(before, [-1], keepdims=False)
    return op.Cast(count, to=INT32) if out_int32 else count


def lgamma(x: Any) -> Any:
    """Write Stirling's series in float64, after a shift to where it is exact; the reflection formula below 1/2.

    https://dlmf.nist.gov/5.5.E3, https://dlmf.nist.gov/5.11.E1
    """
    import onnx_ir
    from onnxscript import opset18 as op

    def number(value: float) -> Any:
        return op.Constant(value=onnx_ir.tensor(value, dtype=onnx_ir.DataType.DOUBLE))

    given = op.Cast(x, to=DOUBLE)
    reflected = op.Less(given, number(0.5))
    z = op.Where(reflected, op.Sub(number(1.0), given), given)
    product = z
    for n in range(1, SHIFT):
        product = op.Mul(product, op.Add(z, number(float(n))))
    near = op.Less(z, number(float(SHIFT)))
    w = op.Where(near, op.Add(z, number(float(SHIFT))), z)
    inverse = op.Div(number(1.0), w)
    square = op.Mul(inverse, inverse)
    series = number(STIRLING[-1])
    for coefficient in STIRLING[-2::-1]:
        series = op.Add(op.Mul(series, square), number(coefficient))
    total = op.Sub(op.Mul(op.Sub(w, number(0.5)), op.Log(w)), w)
    total = op.Add(total, op.Add(op.Mul(series, inverse), number(0.5 * math.log(2 * math.pi))))
    total = op.Sub(total, op.Where(near, op.Log(product), number(0.0)))
    sine = op.Abs(op.Sin(op.Mul(op.Sub(given, op.Floor(given)), number(math.pi))))
    below = op.Sub(op.Log(op.Div(number(math.pi), sine)), total)
    result = op.Where(reflected, below, total)
    whole = op.And(op.Equal(given, op.Floor(given)), op.LessOrEqual(given, number(0.0)))
    endless = op.Or(whole, op.IsInf(given))
    return op.CastLike(op.Where(endless, number(math.inf), result), x)


def signbit(x: Any) -> Any:
    """Tell -0.0 from 0.0 by its reciprocal."""
    from onnxscript import opset18 as op

    zero = op.CastLike(op.Constant(value_int=0), x)
    if not x.dtype.is_floating_point():
        return op.Less(x, zero)
    return op.Or(op.Less(x, zero), op.Less(op.Reciprocal(x), zero))


def _unless_nan(x: Any, other: Any, better: str) -> Any:
    from onnxscript import opset18 as op

    best = op.Where(getattr(op, better)(x, other), x, other)
    if not x.dtype.is_floating_point():
        return best
    return op.Where(op.IsNaN(x), other, op.Where(op.IsNaN(other), x, best))


def hypot(x: Any, other: Any) -> Any:
    """Scale by the larger one, whose square may be infinite or 0."""
    from onnxscript import opset18 as op

    one, two = op.Abs(x), op.Abs(other)
    large, small = op.Max(one, two), op.Min(one, two)
    zero = op.CastLike(op.Constant(value_float=0.0), large)
    ratio = op.Where(op.Greater(large, zero), op.Div(small, large), zero)
    result = op.Mul(large, op.Sqrt(op.Add(op.Mul(ratio, ratio), op.CastLike(op.Constant(value_float=1.0), large))))
    endless = op.CastLike(op.Constant(value_float=math.inf), large)
    return op.Where(op.Or(op.IsInf(one), op.IsInf(two)), endless, result)


def attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Write attention by the exporter's translation, which takes four dimensions only."""
    import onnx_ir
    from onnxscript import opset18 as op
    from onnxscript.function_libs.torch_lib.ops import nn as exporters

    rank = len(query.shape)
    rest = (dropout_p, is_causal, scale, enable_gqa)
    if rank == 4:
        return exporters.aten_scaled_dot_product_attention(query, key, value, attn_mask, *rest)
    of_query, of_key, of_value = (op.Shape(x) for x in (query, key, value))
    result_shape = op.Concat(op.Slice(of_query, [0], [rank - 1]), op.Slice(of_value, [rank - 1], [rank]), axis=0)

    def in_four(x: Any, shape: Any, sizes: Any) -> Any:
        if rank < 4:
            outer: tuple[int | str, ...] = (1,) * (4 - rank)
            made = op.Unsqueeze(x, list(range(4 - rank)))
        else:
            inner = op.Slice(shape, [rank - 3], [rank])
            made, outer = op.Reshape(x, op.Concat(op.Constant(value_ints=[-1]), inner, axis=0)), ("merged",)
        made.dtype, made.shape = x.dtype, onnx_ir.Shape([*outer, *sizes[-3:]])
        return made

    if attn_mask is not None and rank > 4:
        lengths = op.Concat(op.Slice(of_query, [0], [rank - 1]), op.Slice(of_key, [rank - 2], [rank - 1]), axis=0)
        expanded = op.Expand(attn_mask, lengths)
        expanded.dtype = attn_mask.dtype
        attn_mask = in_four(expanded, lengths, [query.shape[-3], query.shape[-2], key.shape[-2]])
    given = (in_four(x, shape, x.shape) for x, shape in ((query, of_query), (key, of_key), (value, of_value)))
    return op.Reshape(exporters.aten_scaled_dot_product_attention(*given, attn_mask, *rest), result_shape)
