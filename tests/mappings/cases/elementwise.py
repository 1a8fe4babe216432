"""Rows of `mappings/elementwise.py`."""

import torch
from equivalence import Call, Input
from torch import nn

from cases.common import CUBE, IMAGE, INTS, parameter


def positive(function):
    return lambda x: function(x.abs() + 0.1)


ELEMENTWISE = {
    "signs and roundings": (lambda x: (x.abs(), x.neg(), x.sign(), (3 * x).floor(), (3 * x).ceil()), IMAGE),
    "powers": (lambda x: (x.square(), x**2, x**3, x.abs() ** 0.5, (x.abs() + 0.1) ** -1.5), IMAGE),
    "roots and logarithms": (
        positive(lambda x: (x.sqrt(), x.rsqrt(), x.reciprocal(), x.log(), 1 / x, torch.reciprocal(x))),
        IMAGE,
    ),
    "transcendental functions in float32": (lambda x: (x.exp(), x.sin(), x.cos(), x.erf()), IMAGE),
    "clamp with one bound": (lambda x: (x.clamp(-1, 0.5), x.clamp(min=0.3), x.clamp(max=-0.2)), IMAGE),
    "clamp of integers": (lambda x: (x.clamp(-1, 2), x.clamp(min=0)), INTS),
    "alpha left out": (
        lambda x, y: (torch.add(x, y, alpha=3), torch.sub(x, y, alpha=0.5), torch.add(x, 2, alpha=3)),
        IMAGE,
        IMAGE,
    ),
    "rsub and its alpha": (lambda x: (torch.rsub(x, 2), torch.rsub(x, 2, alpha=3), 1.5 - x), IMAGE),
    "scalars on either side": (lambda x: (2 + x, x + 2, 2 - x, x - 2, 2 * x, x / 2, 2 / x), IMAGE),
    "two operands the wrong way round": (
        lambda x, y: (x - y, x / y, torch.maximum(x, y), torch.minimum(x, y), x * y),
        IMAGE,
        IMAGE,
    ),
    "an operand twice": (lambda x: (x + x, x * x, x - x), IMAGE),
    "operands in different layouts": (
        Call(lambda self, x, y: self.conv(x) + y.permute(0, 3, 1, 2), conv=nn.Conv2d(6, 4, 3)),
        IMAGE,
        (2, 7, 6, 4),
    ),
    "operands in different layouts, all sizes alike": (
        Call(lambda self, x, y: self.conv(x) * y - y.transpose(1, 3), conv=nn.Conv2d(6, 6, 1)),
        CUBE,
        CUBE,
    ),
    "operands whose dimensions are factored differently": (
        lambda x, y: x.flatten(1, 2) + y.transpose(1, 2).flatten(1, 2),
        (2, 6, 4, 5),
        (2, 3, 8, 5),
    ),
    "broadcast of ones in either operand": (lambda x, y: x[:, :, :1] + y[:, :1], IMAGE, IMAGE),
    "broadcast of a lower rank": (lambda x, y: (x + y.mean(0), y.mean(0) - x, x * y.mean((0, 1))), IMAGE, (2, 9, 8)),
    "broadcast of a lower rank over a convolution": (
        Call(lambda self, x, y: self.conv(x) + y.mean(0), conv=nn.Conv2d(6, 4, 3)),
        IMAGE,
        (2, 4, 7, 6),
    ),
    "broadcast of a lower rank, all sizes alike": (
        Call(lambda self, x, y: self.conv(x) + y.mean(0)[0], conv=nn.Conv2d(6, 6, 1)),
        CUBE,
        CUBE,
    ),
    "broadcast along the channels that a view split": (
        lambda x, y: x.view(-1, 2, 3, 9, 8).transpose(1, 2).flatten(1, 2) * y[:, :, None, None],
        IMAGE,
        (2, 6),
    ),
    "squeeze and excite": (
        Call(lambda self, x: x * self.conv(x.mean((2, 3), keepdim=True)).sigmoid(), conv=nn.Conv2d(6, 6, 1)),
        IMAGE,
    ),
    "outer sum of features": (lambda x, y: x[:, :, None] + y[:, None, :], (2, 6), (2, 9)),
    "integers and floats": (lambda n, x: (n + x, n * 0.5, x - n, n / 2, n / n.abs().clamp(min=1)), INTS, (2, 6, 9)),
    "integers of different widths": (
        lambda n, m: (n + m, torch.maximum(n, m), m * 3, n - 2),
        INTS,
        Input((2, 6, 9), torch.int32),
    ),
    "booleans in arithmetic": (lambda b, x: (b * x, b + 1, b * b, b + b), Input((2, 6, 9), torch.bool), (2, 6, 9)),
    "casts": (lambda x: (x.to(torch.int32), x.double() / 3, (x.double() * 0.1).float(), x.long() * x), IMAGE),
    "float64 and float32 together": (lambda x: x.double() * 0.1 + x, IMAGE),
    "copies": (lambda x: (x.clone() + 1, x.detach() + 1, x.contiguous() + 1), IMAGE),
    "a scalar parameter": (Call(lambda self, x: (x * self.p, self.p - x), p=parameter()), IMAGE),
    "a parameter of one element": (Call(lambda self, x: (x * self.p, self.p / x), p=parameter(1)), IMAGE),
    "a buffer of one element and a higher rank": (Call(lambda self, x: x * self.p, p=torch.ones(1, 1, 1)), (2, 6)),
    "parameters per channel": (
        Call(
            lambda self, x: self.conv(x) * self.scale + self.shift,
            conv=nn.Conv2d(6, 4, 1),
            scale=parameter(4, 1, 1),
            shift=parameter(1, 4, 1, 1),
        ),
        IMAGE,
    ),
    "parameters per row and column": (
        Call(lambda self, x: x * self.p + self.q, p=parameter(9, 1), q=parameter(8)),
        IMAGE,
    ),
    "a parameter of every axis, all sizes alike": (
        Call(lambda self, x: self.conv(x) + self.p, conv=nn.Conv2d(6, 6, 1), p=parameter(1, 6, 6, 6)),
        CUBE,
    ),
    "a large buffer held in the file's JSON": (Call(lambda self, x: x * self.b, b=torch.ones(6, 9, 8)), IMAGE),
    "buffers of integers": (
        Call(lambda self, x, n: (x + self.b, n * self.b), b=torch.arange(54).view(6, 9)),
        (2, 6, 9),
        INTS,
    ),
    "a parameter used twice in different layouts": (
        Call(lambda self, x: (x + self.p, x.transpose(1, 3) * self.p), p=parameter(6, 6, 6)),
        CUBE,
    ),
    "a parameter over channels that a view split": (
        Call(lambda self, x: x.view(-1, 2, 3, 9, 8).transpose(1, 2).flatten(1, 2) * self.p, p=parameter(6, 1, 1)),
        IMAGE,
    ),
    "a parameter computed from parameters": (
        Call(lambda self, x: x * (self.p.exp() + self.q).view(6, 1, 1), p=parameter(6), q=parameter(6)),
        IMAGE,
    ),
    "a parameter of more dimensions than the input": (
        Call(lambda self, x: x[:, None, None] * self.p, p=parameter(4, 3, 1)),
        (2, 6),
    ),
}
