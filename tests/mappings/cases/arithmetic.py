"""Rows of `mappings/arithmetic.py`."""

import torch

from cases.common import FLOATS, INTS, aten

ARITHMETIC = {
    "floor division of floats": (
        lambda x, y: (x // y, x // 2, x // -0.5, torch.floor_divide(x, y), torch.div(x, y, rounding_mode="floor")),
        FLOATS,
        FLOATS,
    ),
    "floor division by zero": (lambda x, n: (x // n, torch.xlogy(n, n)), FLOATS, INTS),
    "floor division that rounding would spoil": (lambda n: (n.double() // 0.1, (n * 3).double() // -0.3), INTS),
    "division of integers that rounds": (
        lambda n, m: tuple(
            torch.div(n, d, rounding_mode=mode) for mode in ("floor", "trunc", None) for d in (m.abs() + 1, -2, 3)
        ),
        INTS,
        INTS,
    ),
    "division of floats that truncates": (
        lambda x, y: (torch.div(x, y, rounding_mode="trunc"), torch.div(x, 0.7, rounding_mode="trunc")),
        FLOATS,
        FLOATS,
    ),
    "remainders and their signs": (
        lambda x, y, n: (
            x % y,
            x % 0.7,
            x % -0.7,
            2 % y,
            torch.fmod(x, y),
            torch.fmod(x, -0.7),
            n % 3,
            n % -3,
            torch.fmod(n, 3),
            torch.fmod(n, -3),
            n % (n.abs() + 2),
            7 % (n.abs() + 1),
        ),
        FLOATS,
        FLOATS,
        INTS,
    ),
    "powers of numbers and tensors": (
        lambda x, n: (2**x, 0.5**x, x.abs() ** x, n.abs() ** 3, 2 ** n.abs(), torch.float_power(x.abs(), 1.5), x**3),
        FLOATS,
        INTS,
    ),
    "clamp with tensors": (
        lambda x, y, n: (
            x.clamp(x.mean(), y),
            x.clamp(min=y),
            x.clamp(max=y[:, :1]),
            x.clamp_min(0.3),
            x.clamp_max(-0.2),
            torch.clamp_min(x, y),
            torch.clamp_max(x, y),
            n.clamp_min(1),
            x.clip(y.mean()),
            n.clamp(min=0.5),
        ),
        FLOATS,
        FLOATS,
        INTS,
    ),
    "larger and smaller by other names": (
        lambda x, y: (torch.max(x, y), torch.min(x, y), torch.fmax(x.log(), y.log()), torch.fmin(x.log(), y.log())),
        FLOATS,
        FLOATS,
    ),
    "transcendental functions": (
        lambda x: (x.exp2(), x.expm1(), x.tan(), x.atan(), x.sinh(), x.cosh(), x.asinh(), x.erfc(), torch.sinc(x)),
        FLOATS,
    ),
    "transcendental functions with a domain": (
        lambda x: (
            lambda y: (y.asin(), y.acos(), y.atanh(), (y + 3).acosh(), y.abs().log2(), y.abs().log10(), y.log1p())
        )(x.tanh() * 0.99),
        FLOATS,
    ),
    "transcendental functions of integers": (
        lambda n: (n.exp2(), n.atan(), n.sinh(), (n.abs() + 1).log2(), n.abs().log1p(), torch.special.expit(n)),
        INTS,
    ),
    "roundings at a half and below zero": (
        lambda x, n: (
            (n / 2).round(),
            (3 * x).trunc(),
            (3 * x).frac(),
            x.sgn(),
            x.round(decimals=1),
            (99 * x).round(decimals=-1),
        ),
        FLOATS,
        INTS,
    ),
    "angles": (lambda x, y: (torch.atan2(x, y), torch.hypot(x, y), x.deg2rad(), x.rad2deg()), FLOATS, FLOATS),
    "logits": (lambda x: (x.sigmoid().logit(), x.logit(0.1), torch.special.expit(x)), FLOATS),
    "logarithms of sums and products": (
        lambda x, y: (
            torch.logaddexp(x, y),
            torch.xlogy(x, y.abs()),
            torch.xlogy(x.round(), y.abs()),
            torch.xlogy(2, y.abs()),
        ),
        FLOATS,
        FLOATS,
    ),
    "NaN and infinity replaced": (
        lambda x: (x.log().nan_to_num(), x.log().nan_to_num(2.0), (x / x.floor()).nan_to_num(0.5, 7.0, -8.0)),
        FLOATS,
    ),
    "numbers as operands of a decomposed program": (
        lambda x, n: (
            aten.add.Scalar(x, 2, 3),
            aten.sub.Scalar(x, 2, 3),
            aten.mul.Scalar(n, 3),
            aten.div.Scalar(n, 3),
            aten.div.Scalar_mode(n, 3, rounding_mode="trunc"),
            aten.floor_divide.Scalar(n, 3),
            aten.rsub.Tensor(x, n, alpha=2),
            aten.clip.default(x, -0.3, 0.4),
            aten.xlogy.Scalar_Other(x, 2),
            torch.float_power(x.abs(), n),
        ),
        FLOATS,
        INTS,
    ),
    "sums of products": (
        lambda x, y: (
            x.lerp(y, 0.3),
            x.lerp(y, y.sigmoid()),
            x.addcmul(y, x, value=0.7),
            x.addcdiv(x, y.exp(), value=-2),
            x[:, :, 0].addcmul(y[0, :, 0], y[:, :, 1]),
        ),
        FLOATS,
        FLOATS,
    ),
}
