"""Rows of `mappings/comparison.py`."""

import torch
from equivalence import Call
from torch import nn

from cases.common import FLOATS, INTS, MASK, aten, parameter

LOGIC = {
    "comparisons the wrong way round": (lambda x, y: (x < y, x <= y, x == y, x != y, x >= y, x > y), FLOATS, FLOATS),
    "comparisons at equality": (
        lambda n, m: (n < m, n <= m, n == m, n != m, n >= m, n > m, n < 1, n <= 1, n == 1, n != 1, n >= 1, n > 1),
        INTS,
        INTS,
    ),
    "comparisons of integers with broken numbers": (
        lambda n, x: (n < 0.5, n > -0.5, n == 1.5, n < x, x >= n, n.int() < n),
        INTS,
        FLOATS,
    ),
    "comparisons of truth values": (lambda b, c: (b == c, b != c, b > c, b == True), MASK, MASK),  # noqa: E712
    "comparisons in different layouts": (
        Call(lambda self, x: self.conv(x) > x.permute(0, 3, 2, 1)[:, :4, :7, :6], conv=nn.Conv2d(6, 4, 3)),
        (2, 6, 9, 8),
    ),
    "comparisons with a parameter": (Call(lambda self, x: (x > self.p, self.p[0, 0] <= x), p=parameter(6, 1)), FLOATS),
    "comparisons with NaN": (lambda x: ((x - 9).sqrt() < 1, (x - 9).sqrt() != 1, (x - 9).log() == x), FLOATS),
    "logic of truth values": (lambda b, c: (b & c, b | c, ~b, b ^ c, b & ~c, torch.logical_not(b)), MASK, MASK),
    "logic of numbers": (
        lambda n, x: (
            torch.logical_and(n, x),
            torch.logical_or(n, n - 1),
            torch.logical_xor(n, x),
            torch.logical_not(n),
            torch.logical_not(x),
        ),
        INTS,
        FLOATS,
    ),
    "bits": (
        lambda n, m: (n & m, n | m, n ^ m, ~n, n & 3, n | 4, n ^ 1, n << 2, n >> 1, m.int() >> 1, n << m.abs()),
        INTS,
        INTS,
    ),
    "bits of operands that are repeated": (
        lambda n, m: (n[..., None] >> torch.arange(4), n[..., :1] & m, m ^ n[..., :1]),
        INTS,
        INTS,
    ),
    "bits by name": (
        lambda n, m: (torch.bitwise_and(n, m), torch.bitwise_or(n, 2), torch.bitwise_xor(3, n)),
        INTS,
        INTS,
    ),
    "bits of a decomposed program": (
        lambda n, m: (
            aten.bitwise_and.Tensor(n, m),
            aten.bitwise_and.Scalar(n, 6),
            aten.bitwise_and.Scalar_Tensor(5, n),
            aten.bitwise_or.Tensor(n, m),
            aten.bitwise_or.Scalar_Tensor(5, n),
            aten.bitwise_xor.Tensor(n, m),
            aten.bitwise_xor.Scalar(n, 3),
            aten.bitwise_left_shift.Tensor(n, m.abs()),
            aten.bitwise_left_shift.Tensor_Scalar(n, 2),
            aten.bitwise_left_shift.Scalar_Tensor(3, n.abs()),
            aten.bitwise_right_shift.Tensor(n, m.abs()),
            aten.bitwise_right_shift.Tensor_Scalar(n, 2),
            aten.bitwise_right_shift.Scalar_Tensor(99, n.abs()),
            aten.__rshift__.Tensor(n, m.abs()),
        ),
        INTS,
        INTS,
    ),
    "where by position and number": (
        lambda b, x, y: (torch.where(b, x, y), torch.where(b, x, 0.5), torch.where(b, 1, x), torch.where(b, 1.0, -2.5)),
        MASK,
        FLOATS,
        FLOATS,
    ),
    "where of two types": (
        lambda b, n, x: (
            torch.where(b, n, x),
            torch.where(b, n, 0.5),
            torch.where(b, 1, 2),
            torch.where(b, x.double(), x),
        ),
        MASK,
        INTS,
        FLOATS,
    ),
    "where that broadcasts": (
        lambda b, x, y: (torch.where(b[:, :1], x, y), torch.where(b, x[:, :, :1], y[:, :1])),
        MASK,
        FLOATS,
        FLOATS,
    ),
    "where in different layouts": (
        Call(lambda self, x: torch.where(x.mean(1) > 0, self.conv(x).amax(1), x[:, 0]), conv=nn.Conv2d(6, 4, 1)),
        (2, 6, 9, 8),
    ),
    "where by a constant mask": (
        Call(lambda self, x: (torch.where(self.m, x, 0.0), x.masked_fill(self.m, 2)), m=torch.ones(6, 9).tril() > 0),
        FLOATS,
    ),
    "masked_fill with minus infinity": (
        lambda b, x: (x.masked_fill(b, float("-inf")), x.masked_fill(b, torch.tensor(1.5)), x.masked_fill(b, x.mean())),
        MASK,
        FLOATS,
    ),
    "NaN and infinity by name": (
        lambda x: tuple(f(y) for f in (torch.isnan, torch.isinf, torch.isfinite) for y in (x.log(), (x / x.floor()))),
        FLOATS,
    ),
}
