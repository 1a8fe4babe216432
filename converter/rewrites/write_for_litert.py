"""Write functions that LiteRT has no operator for with operators that it has.

    tan, asin, acos, atan  -> sin / cos and atan2, with sqrt((1 - x) (1 + x)) as the other side
    sinh                   -> tanh(x / 2) (cosh(x) + 1)
    cosh                   -> e^2 / 2 + 1 / (2 e^2) with e = exp(|x| / 2), which overflows where cosh does
    asinh, acosh, atanh    -> log1p of what keeps the digits of small results
    erf, erfc              -> a polynomial near 0, else exp(-x^2) times one of 1 / (1 + 0.4 |x|)
    |x|, sign, a // b, fmod, powers of int64 numbers -> comparisons, products, and quotients of floats

The polynomials interpolate 60 digits' values at Chebyshev nodes, and are off by less than 2e-14 of the value.

A quotient of int64 numbers is approached by float32 quotients of what is left, rounded to the nearest integer. Each is
off by less than 2^-20 of its value, divided or multiplied by a rounded inverse, so that after four of them
little more than half a divisor is left of 2^63. Sums and products wrap around, and what is left is exact.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import fx
from torch._ops import OpOverload

from converter.ir.program import Program
from converter.rewrites.base import Call, Change, Formula, write_out

aten = torch.ops.aten
NEAR = 0.5  # erf is a polynomial below
NEAR_ERF = (  # erf(x) / x, of x^2
    *(-1.3372691582222139e-05, 0.00011993461301850309, -0.0008547030530247074, 0.0052239625135716),
    *(-0.026866169686584996, 0.11283791667965472, -0.376126389031482, 1.128379167095512),
)
FAR_ERFC = (  # erfc(x) exp(x^2) / t, of t = 1 / (1 + 0.4 x)
    *(0.008834181024011867, -0.05444670695101721, 0.1252742368298151, -0.08643147478574684, -0.1660852838542609),
    *(0.4368817878230183, -0.45204234330208576, 0.30178701603743896, -0.18186856459643277, 0.04418850699546089),
    *(0.0020749871045563566, 0.07011595096509864, 0.12117960820623892, 0.17156853669776892, 0.20761773639812212),
    *(0.2256760120341312, 0.22567582981593987),
)
LARGE = 1e9  # x^2 + 1 is x^2 above, and (x^2)^2 is still finite below
QUOTIENTS = 4


def write_for_litert(program: Program) -> list[Change]:
    name = "written with LiteRT's operators"
    return [
        *write_out(program, OF_FLOATS, torch.float32, name),
        *write_out(program, OF_INTEGERS, torch.int64, name),
    ]


# -- trigonometric and hyperbolic functions


def _tan(call: Call, x: fx.Node) -> fx.Node:
    return call(aten.div.Tensor, call(aten.sin.default, x), call(aten.cos.default, x))


def _other_side(call: Call, x: fx.Node) -> fx.Node:
    return call(aten.sqrt.default, call(aten.mul.Tensor, call(aten.rsub.Scalar, x, 1), call(aten.add.Tensor, x, 1)))


def _asin(call: Call, x: fx.Node) -> fx.Node:
    return call(aten.atan2.default, x, _other_side(call, x))


def _acos(call: Call, x: fx.Node) -> fx.Node:
    return call(aten.atan2.default, _other_side(call, x), x)


def _atan(call: Call, x: fx.Node) -> fx.Node:
    return call(aten.atan2.default, x, call(aten.full_like.default, x, 1))


def _cosh(call: Call, x: fx.Node) -> fx.Node:
    root = call(aten.exp.default, call(aten.mul.Tensor, call(aten.abs.default, x), 0.5))
    half = call(aten.mul.Tensor, root, 0.5)
    small = call(aten.div.Tensor, call(aten.div.Tensor, call(aten.full_like.default, x, 0.5), root), root)
    return call(aten.add.Tensor, call(aten.mul.Tensor, half, root), small)


def _sinh(call: Call, x: fx.Node) -> fx.Node:
    half = call(aten.tanh.default, call(aten.mul.Tensor, x, 0.5))
    return call(aten.mul.Tensor, half, call(aten.add.Tensor, _cosh(call, x), 1))


def _odd(call: Call, x: fx.Node, of_size: fx.Node) -> fx.Node:
    """Return what a function that is odd gives for x, given what it gives for |x|."""
    return call(aten.where.self, call(aten.lt.Scalar, x, 0), call(aten.neg.default, of_size), of_size)


def _log_of_twice(call: Call, x: fx.Node, size: fx.Node, otherwise: fx.Node) -> fx.Node:
    """Return log(2 x) where x is large."""
    doubled = call(aten.add.Tensor, call(aten.log.default, size), 0.6931471805599453)
    return call(aten.where.self, call(aten.gt.Scalar, size, LARGE), doubled, otherwise)


def _asinh(call: Call, x: fx.Node) -> fx.Node:
    size = call(aten.abs.default, x)
    square = call(aten.mul.Tensor, x, x)
    root = call(aten.add.Tensor, call(aten.sqrt.default, call(aten.add.Tensor, square, 1)), 1)
    inner = call(aten.add.Tensor, size, call(aten.div.Tensor, square, root))
    return _odd(call, x, _log_of_twice(call, x, size, call(aten.log1p.default, inner)))


def _acosh(call: Call, x: fx.Node) -> fx.Node:
    beyond = call(aten.sub.Tensor, x, 1)
    root = call(aten.sqrt.default, call(aten.mul.Tensor, beyond, call(aten.add.Tensor, beyond, 2)))
    return _log_of_twice(call, x, x, call(aten.log1p.default, call(aten.add.Tensor, beyond, root)))


def _atanh(call: Call, x: fx.Node) -> fx.Node:
    size = call(aten.abs.default, x)
    ratio = call(aten.div.Tensor, call(aten.mul.Tensor, size, 2), call(aten.rsub.Scalar, size, 1))
    return _odd(call, x, call(aten.mul.Tensor, call(aten.log1p.default, ratio), 0.5))


# -- the error function


def _polynomial(call: Call, x: fx.Node, coefficients: Sequence[float]) -> fx.Node:
    total = call(aten.mul.Tensor, x, coefficients[0])
    for coefficient in coefficients[1:-1]:
        total = call(aten.mul.Tensor, x, call(aten.add.Tensor, total, coefficient))
    return call(aten.add.Tensor, total, coefficients[-1])


def _erfc_of_size(call: Call, size: fx.Node) -> fx.Node:
    """Return erfc of what is not negative, exact but near 0.

    exp(-x^2) is exp(-h^2) exp(-(x - h) (x + h)) with h of few digits, as rounding x^2 would cost x^2 digits' worth.
    """
    t = call(aten.reciprocal.default, call(aten.add.Tensor, call(aten.mul.Tensor, size, 0.4), 1))
    bounded = call(aten.clamp.default, size, None, 16.0)  # infinity - infinity is NaN
    head = call(aten.mul.Tensor, call(aten.floor.default, call(aten.mul.Tensor, bounded, 16)), 0.0625)
    rest = call(aten.mul.Tensor, call(aten.sub.Tensor, bounded, head), call(aten.add.Tensor, bounded, head))
    falls = (call(aten.exp.default, call(aten.neg.default, e)) for e in (call(aten.mul.Tensor, head, head), rest))
    inner = call(aten.mul.Tensor, t, _polynomial(call, t, FAR_ERFC))
    for fall in falls:
        inner = call(aten.mul.Tensor, inner, fall)
    return inner


def _near_erf(call: Call, x: fx.Node) -> fx.Node:
    return call(aten.mul.Tensor, x, _polynomial(call, call(aten.mul.Tensor, x, x), NEAR_ERF))


def _where_near(call: Call, size: fx.Node, near: fx.Node, far: fx.Node) -> fx.Node:
    return call(aten.where.self, call(aten.lt.Scalar, size, NEAR), near, far)


def _erf(call: Call, x: fx.Node) -> fx.Node:
    size = call(aten.abs.default, x)
    far = _odd(call, x, call(aten.rsub.Scalar, _erfc_of_size(call, size), 1))
    return _where_near(call, size, _near_erf(call, x), far)


def _erfc(call: Call, x: fx.Node) -> fx.Node:
    size = call(aten.abs.default, x)
    tail = _erfc_of_size(call, size)
    far = call(aten.where.self, call(aten.lt.Scalar, x, 0), call(aten.rsub.Scalar, tail, 2), tail)
    return _where_near(call, size, call(aten.rsub.Scalar, _near_erf(call, x), 1), far)


# -- integers of 64 bits


def _abs(call: Call, x: fx.Node) -> fx.Node:
    return call(aten.maximum.default, x, call(aten.neg.default, x))


def _sign(call: Call, x: fx.Node) -> fx.Node:
    above, below = (call(aten.to.dtype, call(c, x, 0), torch.int64) for c in (aten.gt.Scalar, aten.lt.Scalar))
    return call(aten.sub.Tensor, above, below)


def _quotient(call: Call, a: fx.Node, b: fx.Node | int) -> tuple[fx.Node, fx.Node]:
    """Return q and r with a = q b + r and |r| < |b|; r may have either sign."""
    divisor = float(b) if isinstance(b, int) else call(aten.to.dtype, b, torch.float32)
    quotient, rest = None, a
    for _ in range(QUOTIENTS):
        ratio = call(aten.div.Tensor, call(aten.to.dtype, rest, torch.float32), divisor)
        whole = call(aten.to.dtype, call(aten.round.default, ratio), torch.int64)
        quotient = whole if quotient is None else call(aten.add.Tensor, quotient, whole)
        rest = call(aten.sub.Tensor, a, call(aten.mul.Tensor, quotient, b))
    assert quotient is not None
    return quotient, rest


def _has_other_sign(call: Call, rest: fx.Node, than: fx.Node | int) -> fx.Node:
    is_negative = call(aten.lt.Scalar, rest, 0)
    if isinstance(than, int):
        return call(aten.gt.Scalar, rest, 0) if than < 0 else is_negative
    differs = call(aten.ne.Tensor, is_negative, call(aten.lt.Scalar, than, 0))
    return call(aten.logical_and.default, call(aten.ne.Scalar, rest, 0), differs)


def _divide(call: Call, a: fx.Node, b: fx.Node | int, rounding_mode: str | None = "floor") -> fx.Node | None:
    if rounding_mode is None or not _are_whole(a, b):
        return None
    quotient, rest = _quotient(call, a, b)
    if rounding_mode == "floor":
        return call(aten.sub.Tensor, quotient, call(aten.to.dtype, _has_other_sign(call, rest, b), torch.int64))
    # Rounding towards zero, the remainder has the dividend's sign: else the quotient is one too far from zero.
    too_far = call(aten.to.dtype, _has_other_sign(call, rest, a), torch.int64)
    step = call(aten.mul.Tensor, too_far, _sign(call, quotient))
    return call(aten.sub.Tensor, quotient, step)


def _fmod(call: Call, a: fx.Node, b: fx.Node | int) -> fx.Node | None:
    quotient = _divide(call, a, b, "trunc")
    return None if quotient is None else call(aten.sub.Tensor, a, call(aten.mul.Tensor, quotient, b))


def _position(call: Call, x: fx.Node, dim: int | None, keepdim: bool, extreme: OpOverload) -> fx.Node | None:
    """Return the first position of an extreme, which LiteRT finds among integers of 32 bits."""
    if dim is None or not _are_whole(x):
        return None
    found = call(aten.eq.Tensor, x, call(extreme, x, [dim], True))
    return call(aten.argmax.default, call(aten.to.dtype, found, torch.int32), dim, keepdim)


def _argmax(call: Call, x: fx.Node, dim: int | None = None, keepdim: bool = False) -> fx.Node | None:
    return _position(call, x, dim, keepdim, aten.amax.default)


def _argmin(call: Call, x: fx.Node, dim: int | None = None, keepdim: bool = False) -> fx.Node | None:
    return _position(call, x, dim, keepdim, aten.amin.default)


def _are_whole(*numbers: fx.Node | float) -> bool:
    return all(isinstance(n, int) or (isinstance(n, fx.Node) and n.meta["val"].dtype == torch.int64) for n in numbers)


def _power(call: Call, x: fx.Node, exponent: float) -> fx.Node | None:
    """Return a known power by repeated squares."""
    if not isinstance(exponent, int) or exponent < 1:
        return None
    result, square = None, x
    for bit in reversed(bin(exponent)[2:]):
        if bit == "1":
            result = square if result is None else call(aten.mul.Tensor, result, square)
        square = call(aten.mul.Tensor, square, square)
    return result


OF_FLOATS: Mapping[OpOverload, Formula] = {
    aten.tan.default: _tan,
    aten.asin.default: _asin,
    aten.acos.default: _acos,
    aten.atan.default: _atan,
    aten.sinh.default: _sinh,
    aten.cosh.default: _cosh,
    aten.asinh.default: _asinh,
    aten.acosh.default: _acosh,
    aten.atanh.default: _atanh,
    aten.erf.default: _erf,
    aten.special_erf.default: _erf,
    aten.erfc.default: _erfc,
    aten.special_erfc.default: _erfc,
}
OF_INTEGERS: Mapping[OpOverload, Formula] = {
    aten.abs.default: _abs,
    aten.sign.default: _sign,
    aten.sgn.default: _sign,
    aten.floor_divide.default: _divide,
    aten.floor_divide.Scalar: _divide,
    aten.div.Tensor_mode: _divide,
    aten.div.Scalar_mode: _divide,
    aten.fmod.Tensor: _fmod,
    aten.fmod.Scalar: _fmod,
    aten.pow.Tensor_Scalar: _power,
    aten.argmax.default: _argmax,
    aten.argmin.default: _argmin,
}
