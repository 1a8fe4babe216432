"""Rows of `mappings/special_functions.py`."""

import torch
import torch.nn.functional as F
from equivalence import Input

from cases.common import TIES, TOKEN_MASK, TOKENS, aten

NUMBERS = {
    "log gamma and digamma on both sides of zero, at poles, 1 and 2": (
        lambda x, n: (torch.lgamma(x), torch.digamma(x), torch.lgamma(n), torch.digamma(n / 2)),
        TOKENS,
        Input(TOKENS, torch.int64),
    ),
    "divisors and multiples of integers of any sign": (
        lambda n, m: (torch.gcd(n, m), torch.lcm(n, m)),
        Input(TOKENS, torch.int64),
        Input(TOKENS, torch.int64),
    ),
    "the sign of a number, -0.0 included": (
        lambda x, y: (torch.copysign(x, y.floor() * 0.0), torch.copysign(x, -2.0), torch.signbit(y.floor() * 0.0)),
        TOKENS,
        TOKENS,
    ),
    "signs and angles of integers": (
        lambda n, m: (n.signbit(), m.signbit(), n.angle(), (n / 2).log().angle(), (n * 0.0).angle()),
        TIES,
        TOKEN_MASK,
    ),
    "the inverse of erf, to its ends": (
        lambda x, n: (torch.erfinv(torch.tanh(x)), torch.erfinv(n / 4), torch.erfinv(n)),
        TOKENS,
        Input(TOKENS, torch.int64),
    ),
    "the next number": (lambda n: torch.nextafter(n.double(), torch.tensor(9.0).double()), Input(TOKENS, torch.int64)),
    "i0": (lambda x: torch.i0(x), TOKENS),
    "meshgrid, which PyTorch broadcasts": (
        lambda x, y: torch.meshgrid(x[0, 0], y[0, :, 0], indexing="ij"),
        TOKENS,
        TOKENS,
    ),
    "variance and mean of everything": (
        lambda x: (*aten.var_mean.default(x, False), *aten.std_mean.default(x)),
        TOKENS,
    ),
    "distances of rows": (
        lambda x, y: tuple(torch.cdist(x, y[:, :4], p) for p in (0.0, 1.0, 2.0, 3.0, torch.inf)),
        TOKENS,
        TOKENS,
    ),
    "distances within rows": (lambda x: (torch.pdist(x[0]), torch.pdist(x[-1], 1.0)), TOKENS),
    "sum of a batch of products": (
        lambda x, a, b: torch.addbmm(x[0, :, :6], a, b.mT, beta=0.5, alpha=2),
        TOKENS,
        TOKENS,
        TOKENS,
    ),
    "clamped integers and booleans": (
        lambda n, m: (n.clamp(-2, 3), n.clamp(min=0.5), torch.minimum(m, n < 1), torch.maximum(m, n > 0)),
        TIES,
        TOKEN_MASK,
    ),
    "padding of booleans, and beyond what is cut off": (
        lambda m, x: (F.pad(m, (1, 2), value=1), F.pad(x, (-11, 3), mode="replicate")),
        TOKEN_MASK,
        TOKENS,
    ),
    "hardtanh of integers, between bounds that are none": (lambda n: F.hardtanh(n, -1.5, 1.5), TIES),
    "mish far from zero": (lambda x: (F.mish(x), F.mish(40 * x)), TOKENS),
    "elementwise of integers and booleans": (
        lambda n, m: (n.exp(), n.ceil(), n.neg(), m.cos(), n.sigmoid(), n.abs(), m.add(m, alpha=0)),
        TIES,
        TOKEN_MASK,
    ),
}
