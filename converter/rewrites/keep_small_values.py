"""Write functions that LiteRT computes as exp(x) - 1 or log(1 + x) so that small values keep their digits.

    expm1(x) -> tanh(x / 2) (exp(x) + 1)
    log1p(x) -> 2 (s + s^3 / 3 + s^5 / 5 + ...) with s = x / (x + 2), the series of 2 artanh(s), where |x| < 1/4

log(1 + x) does not serve there even if 1 + x is exact: XNNPACK's logarithm is off by 6e-8 near 1.
"""

from collections.abc import Mapping

import torch
from torch import fx
from torch._ops import OpOverload

from converter.ir.program import Program
from converter.rewrites.base import Call, Change, Formula, write_out

aten = torch.ops.aten
COEFFICIENTS = (2 / 11, 2 / 9, 2 / 7, 2 / 5, 2 / 3)


def keep_small_values(program: Program) -> list[Change]:
    return write_out(program, WRITTEN, torch.float32, "small values keep their digits")


def _expm1(call: Call, x: fx.Node) -> fx.Node:
    half = call(aten.tanh.default, call(aten.mul.Tensor, x, 0.5))
    return call(aten.mul.Tensor, half, call(aten.add.Tensor, call(aten.exp.default, x), 1.0))


def _log1p(call: Call, x: fx.Node) -> fx.Node:
    part = call(aten.div.Tensor, x, call(aten.add.Tensor, x, 2.0))
    square = call(aten.mul.Tensor, part, part)
    series = call(aten.mul.Tensor, square, COEFFICIENTS[0])
    for coefficient in COEFFICIENTS[1:]:
        series = call(aten.mul.Tensor, square, call(aten.add.Tensor, series, coefficient))
    near = call(aten.mul.Tensor, part, call(aten.add.Tensor, series, 2.0))
    far = call(aten.log.default, call(aten.add.Tensor, x, 1.0))
    return call(aten.where.self, call(aten.lt.Scalar, call(aten.abs.default, x), 0.25), near, far)


def _elu(call: Call, x: fx.Node, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> fx.Node:
    negative = call(aten.clamp.default, x, None, 0.0)
    if input_scale != 1:
        negative = call(aten.mul.Tensor, negative, input_scale)
    below = _expm1(call, negative)
    if scale * alpha != 1:
        below = call(aten.mul.Tensor, below, scale * alpha)
    above = x if scale == 1 else call(aten.mul.Tensor, x, scale)
    return call(aten.where.self, call(aten.gt.Scalar, x, 0.0), above, below)


def _celu(call: Call, x: fx.Node, alpha: float = 1.0) -> fx.Node:
    return _elu(call, x, alpha, 1.0, 1.0 / alpha)


def _selu(call: Call, x: fx.Node) -> fx.Node:
    return _elu(call, x, 1.6732632423543772848170429916717, 1.0507009873554804934193349852946)


def _log1p_exp(call: Call, distance: fx.Node) -> fx.Node:
    """Return log(1 + exp(-|distance|))."""
    return _log1p(call, call(aten.exp.default, call(aten.neg.default, call(aten.abs.default, distance))))


def _softplus(call: Call, x: fx.Node, beta: float = 1.0, threshold: float = 20.0) -> fx.Node:
    scaled = x if beta == 1 else call(aten.mul.Tensor, x, beta)
    soft = call(aten.add.Tensor, call(aten.relu.default, scaled), _log1p_exp(call, scaled))
    soft = soft if beta == 1 else call(aten.div.Tensor, soft, beta)
    return call(aten.where.self, call(aten.gt.Scalar, scaled, threshold), x, soft)


def _log_sigmoid(call: Call, x: fx.Node) -> fx.Node:
    return call(aten.sub.Tensor, call(aten.clamp.default, x, None, 0.0), _log1p_exp(call, x))


def _logaddexp(call: Call, a: fx.Node, b: fx.Node) -> fx.Node:
    greatest = call(aten.maximum.default, a, b)
    distance = call(aten.sub.Tensor, a, b)
    same = call(aten.eq.Tensor, a, b)  # infinities, whose difference is NaN
    distance = call(aten.where.ScalarSelf, same, 0.0, distance)
    return call(aten.add.Tensor, greatest, _log1p_exp(call, distance))


WRITTEN: Mapping[OpOverload, Formula] = {
    aten.expm1.default: _expm1,
    aten.special_expm1.default: _expm1,
    aten.log1p.default: _log1p,
    aten.special_log1p.default: _log1p,
    aten.elu.default: _elu,
    aten.celu.default: _celu,
    aten.selu.default: _selu,
    aten.softplus.default: _softplus,
    aten.log_sigmoid.default: _log_sigmoid,
    aten.logaddexp.default: _logaddexp,
}
