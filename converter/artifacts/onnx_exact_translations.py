"""Translate operators to ONNX that the exporter writes inexactly: functions near zero, and integers.

exp(x) - 1 and log(x + 1) lose all digits of a small x; so do ONNX Runtime's Elu, Celu and Selu. The exporter divides
integers in float32, and ONNX Runtime 1.31 is wrong for some of 64 bits in Max, Min, Clip, Sign, Mod, ReduceSum,
ReduceProd, ReduceMax and ReduceMin; its Add, Mul, Div, comparisons, Where and TopK are exact.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch._ops import OpOverload

aten = torch.ops.aten
BOOL, INT64 = 9, 7  # https://github.com/onnx/onnx/blob/main/onnx/onnx.proto, TensorProto.DataType
HALF = 1 << 32  # splits an integer in two, sums of which are exact in float64 for up to 2^21 elements


def translations() -> dict[OpOverload, Callable]:
    """Return the onnxscript functions that write these operators."""
    return {
        aten.log1p.default: log1p,
        aten.expm1.default: expm1,
        aten.special_expm1.default: expm1,
        aten.elu.default: elu,
        aten.celu.default: celu,
        aten.selu.default: selu,
        aten.div.Tensor_mode: divide,
        aten.div.Scalar_mode: divide,
        aten.fmod.Tensor: _integers_or(_fmod, "aten_fmod"),
        aten.fmod.Scalar: _integers_or(_fmod, "aten_fmod"),
        aten.clamp.default: _integers_or(_clamped, "aten_clamp"),
        aten.clamp.Tensor: _integers_or(_clamped, "aten_clamp_tensor"),
        aten.clamp_min.default: _integers_or(_at_least, "aten_clamp_min"),
        aten.clamp_min.Tensor: _integers_or(_at_least, "aten_clamp_min_tensor"),
        aten.clamp_max.default: _integers_or(_at_most, "aten_clamp_max"),
        aten.clamp_max.Tensor: _integers_or(_at_most, "aten_clamp_max_tensor"),
        aten.maximum.default: _integers_or(_at_least, "aten_maximum"),
        aten.minimum.default: _integers_or(_at_most, "aten_minimum"),
        aten.relu.default: relu,
        aten.amax.default: amax,
        aten.amin.default: amin,
        aten.max.default: greatest,
        aten.min.default: least,
        aten.max.dim: greatest_along,
        aten.min.dim: least_along,
        aten.sign.default: _integers_or(_sign, "aten_sign"),
        aten.sgn.default: _integers_or(_sign, "aten_sign"),
        aten.sum.default: total,
        aten.sum.dim_IntList: total,
        aten.prod.default: product,
        aten.prod.dim_int: product,
    }


def log1p(x: Any) -> Any:
    """Write log(u) x / (u - 1) for u = x + 1: what the rounding of u adds to the logarithm cancels in the quotient.

    W. Kahan, in the HP-15C Advanced Functions Handbook, 1982.
    """
    import ml_dtypes
    from onnxscript import opset18 as op

    u = op.Add(x, 1.0)
    rest = op.Sub(op.Min(u, float(ml_dtypes.finfo(x.dtype.numpy()).max)), 1.0)
    # ONNX Runtime's Where returns -0.0 only as its last operand
    return op.Where(op.Cast(rest, to=BOOL), op.Mul(op.Log(u), op.Div(x, rest)), x)


def expm1(x: Any) -> Any:
    """Write tanh(x / 2) (exp(x) + 1)."""
    from onnxscript import opset18 as op

    return op.Mul(op.Tanh(op.Mul(x, 0.5)), op.Add(op.Exp(x), 1.0))


def elu(x: Any, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Any:
    """Write exp(x) - 1 for x <= 0 as 2 t / (1 - t) with t = tanh(x / 2); there it is twice the softsign of t."""
    from onnxscript import opset18 as op

    below = op.Softsign(op.Tanh(op.Mul(x, 0.5 * input_scale)))
    above = x if scale == 1 else op.Mul(x, scale)
    return op.Where(op.Greater(x, 0.0), above, op.Mul(below, 2.0 * alpha * scale))


def celu(x: Any, alpha: float = 1.0) -> Any:
    return elu(x, alpha, 1.0, 1 / alpha)


def selu(x: Any) -> Any:
    return elu(x, 1.6732632423543772848170429916717, 1.0507009873554804934193349852946)


# -- integers


def _core() -> Any:
    from onnxscript.function_libs.torch_lib.ops import core

    return core


def _are_integers(*operands: Any) -> bool:
    return all(type(x) is int or (hasattr(x, "dtype") and x.dtype.is_integer()) for x in operands if x is not None)


def divide(x: Any, other: Any, rounding_mode: str | None = None) -> Any:
    from onnxscript import opset18 as op

    if rounding_mode is None or not _are_integers(x, other):
        return _core().aten_div_mode(x, other, rounding_mode)
    quotient = op.Div(x, other)  # rounded towards zero
    if rounding_mode == "trunc":
        return quotient
    whole = op.Equal(op.Mul(quotient, other), x)
    below = op.Xor(op.Less(x, 0), op.Less(op.CastLike(other, x), 0))
    return op.Sub(quotient, op.CastLike(op.And(op.Not(whole), below), x))


def _integers_or(write: Callable, exporters: str) -> Callable:
    """Return a translation that is `write` for integers, else the exporter's own, with the signature of `write`."""

    @functools.wraps(write)
    def translate(x: Any, *others: Any, **named: Any) -> Any:
        if _are_integers(x, *others, *named.values()):
            return write(x, *others, **named)
        return getattr(_core(), exporters)(x, *others, *named.values())

    return translate


def _fmod(x: Any, other: Any) -> Any:
    from onnxscript import opset18 as op

    return op.Sub(x, op.Mul(op.Div(x, other), other))


def _at_least(x: Any, min: Any) -> Any:
    from onnxscript import opset18 as op

    return op.Where(op.Less(x, min), min, x)


def _at_most(x: Any, max: Any) -> Any:
    from onnxscript import opset18 as op

    return op.Where(op.Greater(x, max), max, x)


def relu(x: Any) -> Any:
    """Write max(x, 0); ONNX Runtime 1.31 has no Relu of integers of 64 bits."""
    from onnxscript import opset18 as op

    return _at_least(x, 0) if _are_integers(x) else op.Relu(x)


def _clamped(x: Any, min: Any = None, max: Any = None) -> Any:
    x = x if min is None else _at_least(x, min)
    return x if max is None else _at_most(x, max)


def _sign(x: Any) -> Any:
    from onnxscript import opset18 as op

    return op.Sub(op.CastLike(op.Greater(x, 0), x), op.CastLike(op.Less(x, 0), x))


def _is_small(x: Any) -> bool:
    """Return whether a float64 holds sums of the elements of `x`: they come from booleans or short integers."""
    return _source(x).bitwidth <= 32


def _source(x: Any) -> Any:
    """Return the type of `x` before it was cast."""
    made = x.producer()
    return made.inputs[0].dtype if made is not None and made.op_type == "Cast" else x.dtype


def total(x: Any, dim: Any = None, keepdim: bool = False, dtype: int = -1) -> Any:
    """Write sums of 64-bit integers as sums of their upper and lower halves."""
    from onnxscript import opset18 as op

    def reduced(part: Any) -> Any:
        dims = [dim] if isinstance(dim, int) else dim
        return op.ReduceSum(part, dims or None, keepdims=keepdim)

    if not _are_integers(x) or dtype not in (-1, None, x.dtype) or _is_small(x) or not len(x.shape):
        return _core().aten_sum_dim_IntList(x, dim or None, keepdim, dtype)
    low = op.Mod(x, HALF)
    high = op.Div(op.Sub(x, low), HALF)
    return op.Add(op.Mul(reduced(high), HALF), reduced(low))


def product(x: Any, dim: int | None = None, keepdim: bool = False, dtype: int = -1) -> Any:
    """Write products of 64-bit integers as products of one half of the elements with the other half, until one is left.

    Raises:
        NotImplementedError: the number of elements is unknown, and they are not booleans.
    """
    from onnxscript import opset18 as op

    sizes = list(x.shape)
    if not _are_integers(x) or dtype not in (-1, None, INT64) or not sizes or _source(x) == BOOL:
        core = _core()
        return core.aten_prod(x, dtype) if dim is None else core.aten_prod_dim_int(x, dim, keepdim, dtype)
    if not all(isinstance(n, int) for n in (sizes if dim is None else [sizes[dim]])):
        raise NotImplementedError("ONNX Runtime multiplies an unknown number of integers in float64 (prod)")
    x = op.Cast(x, to=INT64) if x.dtype != INT64 else x
    size = math.prod(sizes) if dim is None else sizes[dim]
    axis = 0 if dim is None else dim
    x = op.Reshape(x, [-1]) if dim is None else x
    while size > 1:
        half = size // 2
        parts = [op.Slice(x, [at], [at + half], [axis]) for at in (0, half)]
        rest = [op.Slice(x, [2 * half], [size], [axis])] if size % 2 else []
        x, size = op.Mul(*parts), half + size % 2
        x = op.Concat(x, *rest, axis=axis) if rest else x
    return x if keepdim else op.Squeeze(x, [axis])


def _extremes(x: Any, dims: Any, keepdim: bool, largest: bool) -> Any:
    """Write the extremes of 64-bit integers along one dimension after another."""
    from onnxscript import opset18 as op

    along = [dims] if isinstance(dims, int) else list(dims or range(len(x.shape)))
    for dim in along:
        x, _ = op.TopK(x, [1], axis=dim, largest=largest)
    return x if keepdim else op.Squeeze(x, along)


def _is_long(x: Any) -> bool:
    return x.dtype == INT64 and len(x.shape) > 0


def amax(x: Any, dim: Any = (), keepdim: bool = False) -> Any:
    return _extremes(x, dim, keepdim, True) if _is_long(x) else _core().aten_amax(x, dim, keepdim)


def amin(x: Any, dim: Any = (), keepdim: bool = False) -> Any:
    return _extremes(x, dim, keepdim, False) if _is_long(x) else _core().aten_amin(x, dim, keepdim)


def greatest(x: Any) -> Any:
    return _extremes(x, (), False, True) if _is_long(x) else _core().aten_max(x)


def least(x: Any) -> Any:
    return _extremes(x, (), False, False) if _is_long(x) else _core().aten_min(x)


def greatest_along(x: Any, dim: int, keepdim: bool = False) -> tuple[Any, Any]:
    from onnxscript import opset18 as op

    if not _is_long(x):
        return _core().aten_max_dim(x, dim, keepdim)
    return _extremes(x, dim, keepdim, True), op.ArgMax(x, axis=dim, keepdims=keepdim)


def least_along(x: Any, dim: int, keepdim: bool = False) -> tuple[Any, Any]:
    from onnxscript import opset18 as op

    if not _is_long(x):
        return _core().aten_min_dim(x, dim, keepdim)
    return _extremes(x, dim, keepdim, False), op.ArgMin(x, axis=dim, keepdims=keepdim)
