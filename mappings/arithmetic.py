"""Functions of numbers beyond the four operations: rounding division, powers, transcendental functions."""

import math

import torch

from converter.plan.lazy_keras import ops
from converter.plan.registry import maps
from mappings.comparison import as_array
from mappings.elementwise import arithmetic, sign, sum_of, unary

aten = torch.ops.aten


def inverse_error(a):
    """Refine Keras' result, which has lost the digits of small numbers, by a step of Newton's method."""
    y = ops.erfinv(a)
    near = ops.where(ops.abs(a) < 0.5, y, ops.zeros_like(y))
    refined = near + (a - ops.erf(near)) * ops.exp(near * near) * (math.sqrt(math.pi) / 2)
    return ops.where(ops.abs(a) < 0.5, refined, y)


# Integers are cast to the result's type first; Keras would take float32 for it in every run.
UNARY = {
    aten.acos.default: ops.arccos,
    aten.acosh.default: ops.arccosh,
    aten.asin.default: ops.arcsin,
    aten.asinh.default: ops.arcsinh,
    aten.atan.default: ops.arctan,
    aten.atanh.default: ops.arctanh,
    aten.cosh.default: ops.cosh,
    aten.deg2rad.default: lambda a: a * (math.pi / 180),
    aten.erfc.default: ops.erfc,
    aten.erfinv.default: inverse_error,
    aten.exp2.default: ops.exp2,
    aten.expm1.default: ops.expm1,
    aten.frac.default: lambda a: a - ops.trunc(a),
    aten.log10.default: ops.log10,
    aten.log1p.default: ops.log1p,
    aten.i0.default: ops.i0,
    aten.log2.default: ops.log2,
    aten.rad2deg.default: lambda a: a * (180 / math.pi),
    aten.round.default: ops.round,
    aten.sgn.default: sign,
    aten.sinc.default: ops.sinc,
    aten.sinh.default: ops.sinh,
    aten.special_expit.default: ops.sigmoid,
    aten.tan.default: ops.tan,
    aten.trunc.default: ops.trunc,
}
for target, function in UNARY.items():
    unary(target, function)


@maps(aten.round.decimals)
def round_to_decimals(plan, x, decimals=0):
    scale = 10.0 ** abs(decimals)
    if decimals < 0:
        return plan.elementwise(lambda a: ops.round(a / scale) * scale, x)
    return plan.elementwise(lambda a: ops.round(a * scale) / scale, x)


@maps(aten.logit.default)
def logit(plan, x, eps=None):
    def apply(a):
        a = a if eps is None else ops.minimum(ops.maximum(a, eps), 1 - eps)
        return ops.log(a / (1 - a))

    return arithmetic(plan, apply, x)


@maps(aten.nan_to_num.default)
def nan_to_num(plan, x, nan=None, posinf=None, neginf=None):
    return plan.elementwise(lambda a: ops.nan_to_num(a, nan or 0.0, posinf, neginf), x)


# -- rounding division


def both(plan, function, a, b):
    """Apply `function` to two arrays of the result's type."""
    dtype = plan.dtype
    return arithmetic(plan, lambda a, b: function(as_array(a, dtype), as_array(b, dtype)), a, b)


def floored(a, b, floating):
    """Divide, rounding towards minus infinity; floats use the remainder, as a / b may round up to the next integer."""
    if not floating:
        return ops.floor_divide(a, b)
    return ops.where(ops.equal(b, 0), a / b, ops.round((a - ops.mod(a, b)) / b))


def truncated(a, b, floating):
    """Divide, rounding towards zero."""
    if floating:
        return ops.trunc(a / b)
    quotient = ops.floor_divide(a, b)
    upwards = ops.logical_and(ops.not_equal(quotient * b, a), ops.not_equal(a < 0, b < 0))
    return quotient + ops.cast(upwards, a.dtype)


@maps(aten.floor_divide.default, aten.floor_divide.Scalar)
def floor_divide(plan, x, other):
    return divide(plan, x, other, "floor")


@maps(aten.div.Tensor_mode, aten.div.Scalar_mode)
def divide(plan, x, other, rounding_mode=None):
    floating = plan.dtype.is_floating_point
    if rounding_mode is None:
        return both(plan, lambda a, b: a / b, x, other)
    rounding = floored if rounding_mode == "floor" else truncated
    return both(plan, lambda a, b: rounding(a, b, floating), x, other)


@maps(aten.div.Scalar)
def divide_by_number(plan, x, other):
    return both(plan, lambda a, b: a / b, x, other)


@maps(aten.remainder.Tensor, aten.remainder.Scalar, aten.remainder.Scalar_Tensor)
def remainder(plan, x, other):
    return both(plan, ops.mod, x, other)


@maps(aten.fmod.Tensor, aten.fmod.Scalar)
def fmod(plan, x, other):
    """Compute the remainder with the dividend's sign."""
    return both(plan, lambda a, b: ops.sign(a) * ops.mod(ops.abs(a), ops.abs(b)), x, other)


# -- powers and other functions of several numbers


@maps(aten.pow.Tensor_Tensor, aten.pow.Scalar, aten.float_power.Tensor_Scalar, aten.float_power.Tensor_Tensor)
def power(plan, x, exponent):
    return both(plan, ops.power if plan.dtype.is_floating_point else whole_power, x, exponent)


def whole_power(a, b):
    """Raise integers to a power; with a negative exponent all but 1 and -1 become 0."""
    inverse = ops.where(ops.equal(ops.abs(a), 1), ops.power(a, ops.abs(b)), ops.zeros_like(a))
    return ops.where(b < 0, inverse, ops.power(a, ops.maximum(b, 0)))


def extreme(plan, a, b, function, of_booleans):
    return both(plan, of_booleans if plan.dtype == torch.bool else function, a, b)


@maps(aten.clamp.default, aten.clamp.Tensor, aten.clip.default, aten.clip.Tensor)
def clamp(plan, x, min=None, max=None):
    if min is not None:
        x = maximum(plan, x, min)
    return x if max is None else minimum(plan, x, max)


@maps(aten.clamp_min.default, aten.clamp_min.Tensor)
def clamp_min(plan, x, min):
    return clamp(plan, x, min)


@maps(aten.clamp_max.default, aten.clamp_max.Tensor)
def clamp_max(plan, x, max):
    return clamp(plan, x, None, max)


@maps(aten.max.other, aten.maximum.default)
def maximum(plan, x, other):
    return extreme(plan, x, other, ops.maximum, ops.logical_or)


@maps(aten.min.other, aten.minimum.default)
def minimum(plan, x, other):
    return extreme(plan, x, other, ops.minimum, ops.logical_and)


def without_nan(function):
    """Wrap `function` of two arrays to return the other operand where one is NaN."""
    return lambda a, b: ops.where(ops.isnan(a), b, ops.where(ops.isnan(b), a, function(a, b)))


@maps(aten.fmax.default)
def known_maximum(plan, x, other):
    return (
        maximum(plan, x, other) if not plan.dtype.is_floating_point else both(plan, without_nan(ops.maximum), x, other)
    )


@maps(aten.fmin.default)
def known_minimum(plan, x, other):
    return (
        minimum(plan, x, other) if not plan.dtype.is_floating_point else both(plan, without_nan(ops.minimum), x, other)
    )


def with_sign(a, b):
    """Return the magnitude of `a` with the sign of `b`, including that of -0.0."""
    return ops.where(ops.signbit(b), -ops.abs(a), ops.abs(a))


@maps(aten.angle.default)
def angle(plan, x):
    """Return the angle of real numbers: pi if negative."""

    def apply(a):
        turned = ops.where(a < 0, ops.full_like(a, math.pi), ops.zeros_like(a))
        return ops.where(ops.isnan(a), a, turned)

    return arithmetic(plan, apply, x)


def hypotenuse(a, b):
    endless = ops.logical_or(ops.isinf(a), ops.isinf(b))  # Keras divides infinity by infinity
    return ops.where(endless, math.inf, ops.hypot(a, b))


BINARY = {
    aten.atan2.default: ops.arctan2,
    aten.copysign.Scalar: with_sign,
    aten.copysign.Tensor: with_sign,
    aten.gcd.default: ops.gcd,
    aten.hypot.default: hypotenuse,
    aten.lcm.default: ops.lcm,
    aten.logaddexp.default: ops.logaddexp,
    aten.nextafter.default: ops.nextafter,
}
for target, function in BINARY.items():
    maps(target)(lambda plan, x, other, function=function: both(plan, function, x, other))


@maps(aten.xlogy.Tensor, aten.xlogy.Scalar_Self, aten.xlogy.Scalar_Other)
def x_log_y(plan, x, other):
    def apply(a, b):
        return ops.where(ops.logical_and(ops.equal(a, 0), ops.logical_not(ops.isnan(b))), a * 0, a * ops.log(b))

    return both(plan, apply, x, other)


@maps(aten.lerp.Scalar, aten.lerp.Tensor)
def interpolate(plan, x, end, weight):
    dtype = plan.dtype
    return arithmetic(plan, lambda a, b, w: sum_of(a, (b - a) * as_array(w, dtype)), x, end, weight)


@maps(aten.addcmul.default)
def add_product(plan, x, a, b, value=1):
    return arithmetic(plan, lambda x, a, b: sum_of(x, value * (a * b)), x, a, b)


@maps(aten.addcdiv.default)
def add_quotient(plan, x, a, b, value=1):
    return arithmetic(plan, lambda x, a, b: sum_of(x, value * (a / b)), x, a, b)


@maps(aten.mul.Scalar)
def multiply(plan, x, other):
    return both(plan, lambda a, b: a * b, x, other)


@maps(aten.add.Scalar)
def add(plan, x, other, alpha=1):
    return both(plan, lambda a, b: a + b, x, other * alpha)


@maps(aten.sub.Scalar)
def subtract(plan, x, other, alpha=1):
    return both(plan, lambda a, b: a - b, x, other * alpha)
