"""More rows for the table of mappings: a name, a module or function, its inputs' shapes."""

import torch
import torch.nn.functional as F
from equivalence import Call, Input
from torch import nn

aten = torch.ops.aten

SEQUENCE = (2, 6, 11)
IMAGE = (2, 6, 9, 8)
VOLUME = (2, 4, 5, 7, 6)
CUBE = (2, 6, 6, 6)


def parameter(*shape):
    return nn.Parameter(torch.zeros(shape))


CONVOLUTIONS = {
    "transposed kernel flipped or its channels swapped": (nn.ConvTranspose2d(6, 4, (3, 2), stride=2), IMAGE),
    "transposed, all sizes alike": (nn.ConvTranspose2d(6, 6, 3, stride=2, padding=1), CUBE),
    "transposed k3 s2 p1 op1: SAME is wrong": (nn.ConvTranspose2d(6, 4, 3, 2, 1, 1), IMAGE),
    "transposed k4 s2 p1: SAME is right": (nn.ConvTranspose2d(6, 4, 4, 2, 1), IMAGE),
    "transposed k2 s2, as in a U-Net, one channel": (nn.ConvTranspose2d(6, 1, 2, 2), IMAGE),
    "transposed, output padding beyond the padding is bias": (
        nn.ConvTranspose2d(6, 4, 3, (3, 2), (0, 1), (2, 1)),
        IMAGE,
    ),
    "transposed, kernel smaller than its stride": (nn.ConvTranspose2d(6, 4, (1, 2), (3, 4), 0, (1, 3)), IMAGE),
    "transposed, unequal strides and padding, no bias": (
        nn.ConvTranspose2d(6, 4, (5, 4), (1, 3), (4, 2), (0, 2), bias=False),
        IMAGE,
    ),
    "transposed with stride 1": (nn.ConvTranspose2d(6, 4, (3, 2), padding=(2, 0)), IMAGE),
    "transposed with stride 1, padded beyond its kernel": (nn.ConvTranspose2d(6, 4, 2, padding=3), IMAGE),
    "transposed, dilated": (nn.ConvTranspose2d(6, 4, 3, padding=1, dilation=(2, 3)), IMAGE),
    "transposed, stride and dilation together": (nn.ConvTranspose2d(6, 4, 3, 2, 1, 1, dilation=2), IMAGE),
    "transposed, output padding beyond the stride": (
        nn.ConvTranspose2d(6, 4, 3, 2, (1, 3), (2, 1), dilation=3),
        IMAGE,
    ),
    "transposed, groups mixed up": (nn.ConvTranspose2d(6, 4, 3, 2, 1, 1, groups=2), IMAGE),
    "transposed, groups of more outputs, dilated": (nn.ConvTranspose2d(6, 9, 3, 2, 1, groups=3, dilation=2), IMAGE),
    "transposed, depthwise": (nn.ConvTranspose2d(6, 6, 4, 2, 1, groups=6, bias=False), IMAGE),
    "transposed, depthwise with a multiplier": (nn.ConvTranspose2d(6, 12, 3, (2, 3), 1, 1, groups=6), IMAGE),
    "transposed, behind a permutation and before a view": (
        Call(
            lambda self, x: self.up(x.permute(0, 3, 1, 2)).view(-1, 2, 2, 19, 17).transpose(1, 2).flatten(1, 2),
            up=nn.ConvTranspose2d(6, 4, 3, 2),
        ),
        (2, 9, 8, 6),
    ),
    "transposed, channels that a view split": (
        Call(
            lambda self, x: self.up(x.view(-1, 2, 3, 9, 8).transpose(1, 2).flatten(1, 2)),
            up=nn.ConvTranspose2d(6, 4, 3, 2),
        ),
        IMAGE,
    ),
    "transposed twice by one module": (
        Call(lambda self, x: self.up(self.up(x)), up=nn.ConvTranspose2d(6, 6, 3, 2, 1, 1)),
        (2, 6, 3, 4),
    ),
    "transposed without a batch": (
        Call(lambda self, x: self.up(x[0]) * x.mean((1, 2, 3), True), up=nn.ConvTranspose2d(6, 4, 3, 2)),
        IMAGE,
    ),
    "transposed 1-D": (nn.ConvTranspose1d(6, 4, 3, 2, 1, 1), SEQUENCE),
    "transposed 1-D, stride and dilation": (nn.ConvTranspose1d(6, 4, 3, 3, 2, 1, dilation=2), SEQUENCE),
    "transposed 1-D, groups": (nn.ConvTranspose1d(6, 4, 5, 2, 2, groups=2), SEQUENCE),
    "transposed 3-D": (nn.ConvTranspose3d(4, 3, (3, 2, 4), (2, 1, 3), (1, 0, 2), (1, 0, 2)), VOLUME),
    "transposed 3-D, stride and dilation": (nn.ConvTranspose3d(4, 3, 2, 2, dilation=(1, 2, 3)), VOLUME),
    "transposed 3-D, groups": (nn.ConvTranspose3d(4, 6, 3, 2, 1, 1, groups=2), VOLUME),
    "conv3d, groups mixed up": (nn.Conv3d(4, 6, (3, 2, 1), (2, 1, 3), (1, 0, 1), groups=2), VOLUME),
    "conv3d, depthwise": (nn.Conv3d(4, 4, 3, padding=1, groups=4), VOLUME),
    "conv3d, depthwise with a multiplier, stride and dilation": (
        nn.Conv3d(4, 8, (2, 3, 2), 2, (1, 2, 0), (3, 2, 1), groups=4, bias=False),
        VOLUME,
    ),
    "conv3d, groups, all sizes alike": (nn.Conv3d(4, 4, 2, groups=2), (2, 4, 4, 4, 4)),
    "conv2d with a kernel larger than its input": (nn.Conv2d(6, 4, (11, 9), padding=(3, 2)), IMAGE),
    "conv2d without a batch": (
        Call(lambda self, x: self.conv(x[0]) + x.sum((1, 2, 3), True), conv=nn.Conv2d(6, 4, 3)),
        IMAGE,
    ),
    "conv1d without a batch, grouped and named": (
        Call(
            lambda self, x: self.conv(x[0]) + x.sum((1, 2), True),
            conv=nn.Conv1d(6, 4, 4, padding="same", groups=2),
        ),
        SEQUENCE,
    ),
}

PADS = {
    "pads that cut": (
        lambda x: (F.pad(x, (-1, 2)), F.pad(x, (-1, -2, 3, -4)), F.pad(x, (0, 0, 0, 0, -2, 1), value=0.5)),
        IMAGE,
    ),
    "pads that cut, behind a convolution": (
        Call(lambda self, x: F.pad(self.conv(x), (1, -2, -3, 1)), conv=nn.Conv2d(6, 4, 1)),
        IMAGE,
    ),
    "pads of sequences and volumes by reflection, replication and wrapping": (
        lambda x: tuple(
            F.pad(y, widths, mode=mode)
            for mode in ("reflect", "replicate", "circular")
            for y, widths in ((x[:, :, 0, 0], (3, 1)), (x[:, 0], (2, 4, 1, 0)), (x, (1, 0, 2, 3, 1, 2)))
        ),
        VOLUME,
    ),
    "pads by reflection as wide as they can be": (lambda x: F.pad(x, (7, 7, 8, 8), mode="reflect"), IMAGE),
    "pads by replication wider than the image": (lambda x: F.pad(x, (9, 20, 11, 0), mode="replicate"), IMAGE),
    "pads by wrapping as wide as the image": (lambda x: F.pad(x, (8, 7, 9, 0), mode="circular"), IMAGE),
    "pads of a decomposed program": (
        lambda x: (
            aten.reflection_pad1d(x[:, :, 0, 0], [2, 1]),
            aten.reflection_pad2d(x[:, 0], [1, 2, 3, 0]),
            aten.reflection_pad3d(x, [1, 2, 3, 0, 1, 0]),
            aten.replication_pad1d(x[:, :, 0, 0], [2, 1]),
            aten.replication_pad2d(x[:, 0], [1, 2, 3, 0]),
            aten.replication_pad3d(x, [1, 2, 3, 0, 1, 0]),
        ),
        VOLUME,
    ),
}


def split_channels(x):
    """Channels in an order that a view made: two atoms, physically the other way round."""
    return x.view(-1, 2, 3, *x.shape[2:]).transpose(1, 2).flatten(1, 2)


NORMS = {
    "group norm with Keras' epsilon, groups of neighbors": (nn.GroupNorm(3, 6), IMAGE),
    "group norm behind a convolution": (nn.Sequential(nn.Conv2d(6, 4, 3), nn.GroupNorm(2, 4, eps=0.2)), IMAGE),
    "group norm of one group": (nn.GroupNorm(1, 6), IMAGE),
    "group norm of a group for each channel, all sizes alike": (nn.GroupNorm(6, 6), CUBE),
    "group norm without scale and shift": (nn.GroupNorm(2, 6, affine=False), IMAGE),
    "group norm of sequences, features and volumes": (
        Call(
            lambda self, x: (self.norm(x), self.norm(x.flatten(2)), self.norm(x.mean((2, 3, 4)))),
            norm=nn.GroupNorm(2, 4),
        ),
        VOLUME,
    ),
    "group norm of channels that a view split, against the groups": (
        Call(lambda self, x: self.norm(split_channels(x)), norm=nn.GroupNorm(2, 6)),
        IMAGE,
    ),
    "group norm of channels that a view split, along the groups": (
        Call(lambda self, x: self.conv(self.norm(split_channels(x))), norm=nn.GroupNorm(3, 6), conv=nn.Conv2d(6, 4, 1)),
        IMAGE,
    ),
    "group norm of one column": (nn.GroupNorm(2, 6), (2, 6, 9, 1)),
    "instance norm": (nn.InstanceNorm2d(6), IMAGE),
    "instance norm with a scale, of channels that a view split": (
        Call(lambda self, x: self.norm(split_channels(x)), norm=nn.InstanceNorm2d(6, affine=True, eps=0.1)),
        IMAGE,
    ),
    "instance norm with the statistics of training": (
        nn.InstanceNorm2d(6, affine=True, track_running_stats=True),
        IMAGE,
    ),
    "instance norm of sequences and volumes": (
        Call(
            lambda self, x: (self.flat(x.flatten(2)), self.norm(x)),
            flat=nn.InstanceNorm1d(4),
            norm=nn.InstanceNorm3d(4),
        ),
        VOLUME,
    ),
    "RMS norm with the epsilon of its type": (nn.RMSNorm(8), IMAGE),
    "RMS norm of several axes, another epsilon": (nn.RMSNorm((9, 8), eps=0.3), IMAGE),
    "RMS norm without a scale, far from one": (
        Call(lambda self, x: self.norm(x * 1e-3), norm=nn.RMSNorm(8, elementwise_affine=False)),
        IMAGE,
    ),
    "RMS norm of the channels of a convolution": (
        Call(
            lambda self, x: self.norm(self.conv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
            conv=nn.Conv2d(6, 4, 3),
            norm=nn.RMSNorm(4),
        ),
        IMAGE,
    ),
    "local response norm": (nn.LocalResponseNorm(3, alpha=0.1, beta=0.6, k=0.8), IMAGE),
    "local response norm of a convolution, an even width": (
        nn.Sequential(nn.Conv2d(6, 4, 1), nn.LocalResponseNorm(2, 0.3)),
        IMAGE,
    ),
}

ACTIVATIONS = {
    "prelu shared over space": (nn.PReLU(6), IMAGE),
    "prelu with one slope for all": (nn.PReLU(), IMAGE),
    "prelu on the wrong axis, all sizes alike": (nn.PReLU(6), CUBE),
    "prelu behind a convolution": (nn.Sequential(nn.Conv2d(6, 4, 3), nn.PReLU(4)), IMAGE),
    "prelu of channels that a view split": (Call(lambda self, x: self.act(split_channels(x)), act=nn.PReLU(6)), IMAGE),
    "prelu of sequences and features": (
        Call(lambda self, x: (self.act(x), self.act(x.mean(2)), self.act(x[0, :, 0].view(1, 6))), act=nn.PReLU(6)),
        SEQUENCE,
    ),
    "prelu of what a permutation made channels": (
        Call(lambda self, x: self.act(x.permute(0, 3, 1, 2)), act=nn.PReLU(8)),
        IMAGE,
    ),
    "prelu where the batch does not lie first": (
        Call(lambda self, x: self.act(x.transpose(0, 1)), act=nn.PReLU()),
        IMAGE,
    ),
    "prelu called twice": (Call(lambda self, x: self.act(self.act(x) - 1), act=nn.PReLU(6)), IMAGE),
    "prelu with a computed slope": (lambda x: F.prelu(x, x.mean((0, 2, 3))), IMAGE),
    "selu, celu": (lambda x: (F.selu(x), F.celu(x), F.celu(x, 0.4)), IMAGE),
    "softplus at its threshold": (lambda x: (F.softplus(x), F.softplus(9 * x), F.softplus(x, 0.7, 1.0)), IMAGE),
    "mish, softsign, tanhshrink": (lambda x: (F.mish(x), F.mish(20 * x), F.softsign(x), F.tanhshrink(x)), IMAGE),
    "hardshrink and softshrink": (
        lambda x: (F.hardshrink(x), F.softshrink(x), F.hardshrink(x, 1), F.softshrink(x, 0.1)),
        IMAGE,
    ),
    "hardshrink and softshrink beside what is decomposed": (
        lambda x: (F.hardshrink(x), F.softshrink(x), x.movedim(1, 2)),
        IMAGE,
    ),
    "threshold at its bound": (lambda x: (F.threshold(x, 0.3, -2), F.threshold(x.round(), 1, 7)), IMAGE),
    "rrelu of a model that is not trained": (nn.RReLU(0.1, 0.5), IMAGE),
    "glu of each half": (lambda x: (F.glu(x, 1), F.glu(x), F.glu(split_channels(x), 1)), IMAGE),
    "glu of a convolution": (Call(lambda self, x: F.glu(self.conv(x), 1), conv=nn.Conv2d(6, 4, 3)), IMAGE),
}

POOLS = {
    "max pool 3-D": (
        lambda x: (
            F.max_pool3d(x - 20, (3, 2, 2), 2, (1, 0, 1)),
            F.max_pool3d(x, 2, ceil_mode=True),
            F.max_pool3d(x, (1, 3, 2), 1),
        ),
        VOLUME,
    ),
    "max pool 3-D of a convolution, all sizes alike": (
        nn.Sequential(nn.Conv3d(4, 4, 1), nn.MaxPool3d(2, (1, 2, 3))),
        (2, 4, 4, 4, 4),
    ),
    "max pool dilated": (nn.MaxPool2d((3, 2), (2, 1), (1, 0), (2, 3)), IMAGE),
    "max pool dilated, padded, ceil_mode, below zero": (
        lambda x: F.max_pool2d(x - 20, 3, 2, 1, dilation=2, ceil_mode=True),
        IMAGE,
    ),
    "max pool dilated, 1-D and 3-D": (
        lambda x: (F.max_pool1d(x.flatten(2), 3, 2, 1, dilation=4), F.max_pool3d(x, 2, 1, 0, dilation=(1, 3, 2))),
        VOLUME,
    ),
    "max pool with indices that nobody uses": (
        lambda x: (
            F.max_pool2d(x[:, 0], 2, return_indices=True)[0],
            F.max_pool3d(x, 2, return_indices=True)[0],
        ),
        VOLUME,
    ),
    "pools without a batch": (
        lambda x: (
            x.mean((1, 2, 3), True)
            + sum(
                f(x[0]).mean()
                for f in (
                    nn.MaxPool2d(2),
                    nn.AvgPool2d(3, 2, 1),
                    nn.AdaptiveAvgPool2d((4, 3)),
                    nn.AdaptiveMaxPool2d((4, 3)),
                )
            )
        ),
        IMAGE,
    ),
    "average pool 3-D": (
        lambda x: (
            F.avg_pool3d(x, 2, (1, 2, 3)),
            F.avg_pool3d(x, 3, 2, 1, True, False),
            F.avg_pool3d(x, (2, 1, 3), 1, (1, 0, 1), divisor_override=4),
        ),
        VOLUME,
    ),
    "adaptive max pool": (
        lambda x: (
            F.adaptive_max_pool2d(x, 1),
            F.adaptive_max_pool2d(x, (3, 4)),
            F.adaptive_max_pool2d(x, (4, 3)),
            F.adaptive_max_pool2d(x, (None, 11)),
            F.adaptive_max_pool2d(x, (9, 8)) + 1,
        ),
        IMAGE,
    ),
    "adaptive max pool behind a convolution": (nn.Sequential(nn.Conv2d(6, 4, 3), nn.AdaptiveMaxPool2d((2, 5))), IMAGE),
    "adaptive pools of sequences and volumes": (
        lambda x: tuple(
            f(y, n)
            for f, y, n in (
                (F.adaptive_max_pool1d, x.flatten(2), 4),
                (F.adaptive_max_pool1d, x.flatten(2), 7),
                (F.adaptive_max_pool3d, x, (2, 3, 4)),
                (F.adaptive_max_pool3d, x, (5, 1, 3)),
                (F.adaptive_max_pool3d, x, 1),
                (F.adaptive_avg_pool3d, x, (5, 7, 3)),
                (F.adaptive_avg_pool3d, x, (2, 3, 4)),
            )
        ),
        VOLUME,
    ),
    "adaptive pools of a decomposed program": (
        lambda x: (aten._adaptive_avg_pool2d(x[:, 0], [3, 4]), aten._adaptive_avg_pool3d(x, [2, 7, 1])),
        VOLUME,
    ),
    "power-average pools": (
        lambda x: (F.lp_pool2d(x.abs(), 3, 2), F.lp_pool2d(x, 2, (3, 2), 2), F.lp_pool1d(x.flatten(2), 1, 4)),
        IMAGE,
    ),
}

INTS = Input((2, 6, 9), torch.int64)
MASK = Input((2, 6, 9), torch.bool)
FLOATS = (2, 6, 9)

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


def resized(*sizes, **options):
    return lambda x: tuple(F.interpolate(x, size=size, **options) for size in sizes)


def scaled(*factors, **options):
    return lambda x: tuple(F.interpolate(x, scale_factor=factor, **options) for factor in factors)


RESAMPLING = {
    "bilinear up, down and both": (resized((18, 16), (13, 5), (4, 3), (9, 11), mode="bilinear"), IMAGE),
    "bilinear with aligned corners": (resized((18, 16), (4, 3), (1, 1), mode="bilinear", align_corners=True), IMAGE),
    "bilinear by the given factor, not the ratio": (scaled(2, 1.7, (0.6, 2.3), mode="bilinear"), IMAGE),
    "bilinear by the ratio, recomputed": (scaled(1.7, mode="bilinear", recompute_scale_factor=True), IMAGE),
    "bilinear by a factor, aligned corners": (scaled(1.7, mode="bilinear", align_corners=True), IMAGE),
    "bilinear on the wrong axis, all sizes alike": (resized((6, 9), (9, 6), mode="bilinear"), CUBE),
    "bilinear of one pixel, and to one": (
        lambda x: (F.interpolate(x[:, :, :1, :1], (4, 3), mode="bilinear"), F.interpolate(x, (1, 1), mode="bilinear")),
        IMAGE,
    ),
    "bilinear behind a convolution": (
        nn.Sequential(nn.Conv2d(6, 4, 3), nn.UpsamplingBilinear2d(scale_factor=2)),
        IMAGE,
    ),
    "bilinear, antialiased": (resized((13, 5), (4, 11), mode="bilinear", antialias=True), IMAGE),
    "bilinear, antialiased, aligned corners": (
        resized((13, 5), (4, 11), mode="bilinear", antialias=True, align_corners=True),
        IMAGE,
    ),
    "bicubic by TensorFlow's a of -0.5": (resized((18, 16), (13, 5), (4, 3), mode="bicubic"), IMAGE),
    "bicubic with aligned corners, by a factor": (scaled(1.7, 0.6, mode="bicubic", align_corners=True), IMAGE),
    "bicubic, antialiased": (resized((13, 5), (4, 11), mode="bicubic", antialias=True), IMAGE),
    "linear": (
        lambda x: (
            F.interpolate(x, 17, mode="linear"),
            F.interpolate(x, 5, mode="linear", align_corners=True),
            F.interpolate(x, scale_factor=1.7, mode="linear"),
        ),
        SEQUENCE,
    ),
    "trilinear": (
        lambda x: (
            F.interpolate(x, (10, 4, 11), mode="trilinear"),
            F.interpolate(x, (3, 9, 6), mode="trilinear", align_corners=True),
            F.interpolate(x, scale_factor=(2, 1.3, 1), mode="trilinear"),
        ),
        VOLUME,
    ),
    "area": (resized((3, 4), (4, 5), mode="area"), IMAGE),
    "nearest of sequences and volumes": (
        lambda x: (
            F.interpolate(x.flatten(2), scale_factor=2),
            F.interpolate(x.flatten(2), 77),
            F.interpolate(x, scale_factor=(2, 1, 3)),
            F.interpolate(x, (3, 9, 6)),
        ),
        VOLUME,
    ),
    "nearest-exact by half pixels": (resized((18, 16), (13, 19), (4, 3), (3, 4), mode="nearest-exact"), IMAGE),
    "nearest-exact by a factor": (scaled(2, 1.7, 0.5, 1 / 3, mode="nearest-exact"), IMAGE),
    "nearest-exact of sequences and volumes": (
        lambda x: (
            F.interpolate(x.flatten(2), 77, mode="nearest-exact"),
            F.interpolate(x, (10, 7, 18), mode="nearest-exact"),
            F.interpolate(x, (3, 9, 6), mode="nearest-exact"),
        ),
        VOLUME,
    ),
    "nearest by whole factors down": (resized((3, 4), (9, 2)), IMAGE),
    "resizes of a decomposed program": (
        lambda x: (
            aten.upsample_bilinear2d(x[:, 0], [9, 4], False),
            aten.upsample_bilinear2d(x[:, 0], [9, 4], True, 1.9, 0.7),
            aten.upsample_bicubic2d(x[:, 0], [9, 4], False),
            aten._upsample_bilinear2d_aa(x[:, 0], [3, 4], False),
            aten._upsample_bicubic2d_aa(x[:, 0], [3, 4], False),
            aten.upsample_linear1d(x[:, 0, 0], [9], False),
            aten.upsample_trilinear3d(x, [3, 9, 4], False),
            aten.upsample_nearest1d(x[:, 0, 0], [9]),
            aten.upsample_nearest2d(x[:, 0], [9, 4], 1.3, 0.7),
            aten.upsample_nearest3d(x, [10, 14, 12]),
            aten._upsample_nearest_exact1d(x[:, 0, 0], [9]),
            aten._upsample_nearest_exact2d(x[:, 0], [9, 4]),
            aten._upsample_nearest_exact3d(x, [3, 9, 4]),
        ),
        VOLUME,
    ),
}


def of_convolution(function):
    """`function` of what lies channels last."""
    return Call(lambda self, x: function(self.conv(x)), conv=nn.Conv2d(6, 4, 1))


REDUCTIONS = {
    "variance, unbiased and not": (
        lambda x: (x.var(1), x.var(-1, unbiased=False), x.var((1, 3), correction=2, keepdim=True), x.std(2)),
        IMAGE,
    ),
    "variance of everything, the batch included": (
        lambda x: (
            x * x.var(),
            x * x.var(unbiased=False),
            x * x.std(),
            x * x.std(unbiased=False),
            x * x.var(correction=0),
            x + x.std((0, 1), keepdim=True),
        ),
        IMAGE,
    ),
    "variance of a convolution": (
        of_convolution(lambda y: (y.var(1), y.std((2, 3)), y.var((1, 2), correction=0))),
        IMAGE,
    ),
    "variance of one": (lambda x: (x.var(1), x.var(1, correction=0)), (2, 1, 9)),
    "variance and mean together": (
        lambda x: (
            *torch.var_mean(x, 1),
            *torch.std_mean(x, (2, 3), correction=0, keepdim=True),
            *torch.var_mean(x, (1, 2), correction=0),
            *torch.std_mean(x, -1),
        ),
        IMAGE,
    ),
    "variance and mean of what a view split": (lambda x: torch.var_mean(split_channels(x), 1, keepdim=True), IMAGE),
    "norms of every order": (
        lambda x: tuple(
            torch.linalg.vector_norm(x, n, d, k)
            for n, d, k in ((2, 1, False), (1, -1, True), (3, (1, 2), False), (0, 2, False), (0.5, 3, True))
        ),
        IMAGE,
    ),
    "norms of infinite order, of everything": (
        lambda x: (x * x.norm(), x.norm(float("inf"), 1), x.norm(float("-inf"), 2), torch.linalg.norm(x, dim=1)),
        IMAGE,
    ),
    "normalized vectors": (lambda x: (F.normalize(x), F.normalize(x, 1, -1), F.normalize(x * 0)), IMAGE),
    "cosine similarity": (
        lambda x, y: (F.cosine_similarity(x, y), F.cosine_similarity(x, y, -1, 9.0)),
        IMAGE,
        IMAGE,
    ),
    "products": (lambda x, n: (x.prod(1), x.prod(-1, keepdim=True), n.prod(1), n[:, 0] * x.prod()), FLOATS, INTS),
    "extremes of everything": (lambda x, n: (x - x.max(), x - x.min(), n - n.max(), *x.aminmax(dim=1)), FLOATS, INTS),
    "any and all": (
        lambda b, n, x: (
            b.any(1),
            b.all(-1, keepdim=True),
            torch.any(b, dim=(1, 2)),
            torch.all(b | (x > 0), dim=(1, 2)),
            n.any(2),
            (0.3 * n).all(2),
            b & b.any(),
            b | b.all(),
        ),
        MASK,
        INTS,
        FLOATS,
    ),
    "logsumexp far from zero": (
        lambda x: (x.logsumexp(1), (999 * x).logsumexp((1, 2)), x.logsumexp(-1, keepdim=True)),
        IMAGE,
    ),
    "log softmax over each axis": (
        lambda x: (F.log_softmax(x, 1), F.log_softmax(x, -1), F.log_softmax(99 * x, 2), F.softmin(x, 1)),
        IMAGE,
    ),
    "log softmax of a convolution": (
        of_convolution(lambda y: (F.log_softmax(y, 1), F.log_softmax(y.flatten(1), 1))),
        IMAGE,
    ),
    "log softmax of what a view split, of one, and as an older program has it": (
        lambda x: (
            F.log_softmax(split_channels(x), 1),
            F.log_softmax(x[:, :1], 1),
            aten._log_softmax(x, 1, False),
        ),
        IMAGE,
    ),
    "log softmax of minus infinity": (lambda x: F.log_softmax(x.masked_fill(x > 1, float("-inf")), 1), IMAGE),
    "running sums and products": (
        lambda x, n: (x.cumsum(1), x.cumsum(-1), x.cumprod(2), n.cumsum(1), n.int().cumsum(2), (n > 0).cumsum(1)),
        FLOATS,
        INTS,
    ),
    "running sums of a convolution and a view": (
        Call(lambda self, x: (self.conv(x).cumsum(1), self.conv(x).flatten(1).cumsum(1)), conv=nn.Conv2d(6, 4, 1)),
        IMAGE,
    ),
}

ORDER = {
    "argmax and argmin, kept and not": (
        lambda x: (x.argmax(1), x.argmin(-1), x.argmax(2, keepdim=True), x.argmin(1, keepdim=True)),
        IMAGE,
    ),
    "argmax of equals is the first": (lambda n: (n.argmax(1), n.argmin(2), (n * 0).argmax(1)), INTS),
    "argmax of negative zeros": (lambda x: torch.cat([-x.relu() * 0, x.relu() * 0], 1).argmax(1), FLOATS),
    "argmax of everything": (lambda x: (x.argmax(), x.argmin(), x[:, 0].argmax(keepdim=True)), IMAGE),
    "argmax of a convolution": (of_convolution(lambda y: (y.argmax(1), y.flatten(1).argmax(1), y.argmin(2))), IMAGE),
    "argmax of what a view split": (lambda x: split_channels(x).argmax(1), IMAGE),
    "max and min with positions": (lambda x: (*x.max(1), *x.min(-1, keepdim=True)), IMAGE),
    "max and min, one of their results": (lambda x: (x.max(1)[0], x.min(2)[1], x.max(-1, keepdim=True).values), IMAGE),
    "max of a convolution over its channels": (of_convolution(lambda y: (*y.max(1), y.min(3)[0])), IMAGE),
    "topk, largest and smallest": (
        lambda x: (*x.topk(3, 1), *x.topk(2), *x.topk(2, 2, largest=False), x.topk(1, 1)[0]),
        IMAGE,
    ),
    "topk of integers": (lambda n: (n.topk(3, 1)[0], n.topk(3, 2, largest=False)[0]), INTS),
    "topk of a convolution": (of_convolution(lambda y: (*y.topk(2, 1), y.flatten(1).topk(5)[1])), IMAGE),
    "sorted up and down": (lambda x: (*x.sort(1), *x.sort(-1, descending=True), x.argsort(2), x.sort(1).values), IMAGE),
    "sorted with equals in their order": (
        lambda n: (
            *n.sort(dim=1, stable=True),
            *n.sort(dim=2, descending=True, stable=True),
            n.argsort(dim=1, stable=True),
        ),
        INTS,
    ),
    "medians and the k-th": (
        lambda x: (*x.median(1), *x.median(2, keepdim=True), *x.kthvalue(3, -1), x[:, 0, 0, 0] * x[0].median()),
        IMAGE,
    ),
}

INDEXING = {
    "a count along the batch": (
        lambda x: (
            torch.arange(x.shape[0])[:, None, None, None] * x,
            torch.arange(2, 2 + x.shape[0], dtype=torch.float32) - x[:, 0, 0, 0],
            aten.arange.start_step(0, x.shape[0], 1) + 1,
        ),
        IMAGE,
    ),
    "the type of another": (lambda x, n: (x.type_as(n), n.type_as(x) + x), IMAGE, Input(IMAGE, torch.int64)),
    "repeat each axis": (lambda x: (x.repeat(1, 2, 1, 3), x.repeat(1, 1, 3, 1), x.repeat(2, 1, 2, 1, 1)[0]), IMAGE),
    "repeat of ones, of a convolution, and as a tile": (
        Call(
            lambda self, x: (x[:, :1].repeat(1, 4, 1, 1), self.conv(x).repeat(1, 3, 2, 1), x.tile(2), x.tile(3, 1, 2)),
            conv=nn.Conv2d(6, 4, 1),
        ),
        IMAGE,
    ),
    "repeat along the batch": (lambda x: (x.repeat(2, 1, 3, 1), x.mean(0).repeat(x.shape[0], 1, 1, 1) + x), IMAGE),
    "repeat each element": (
        lambda x: (
            x.repeat_interleave(3, 1),
            x.repeat_interleave(2, -1),
            x.repeat_interleave(2),
            x.repeat_interleave(2, 0),
        ),
        IMAGE,
    ),
    "repeat what a view split": (lambda x: split_channels(x).repeat(1, 2, 1, 1), IMAGE),
    "unbind each axis": (lambda x: (*x.unbind(1), *x.unbind(-1)), IMAGE),
    "unbind of a convolution, of one, of a parameter": (
        Call(
            lambda self, x: (*self.conv(x).unbind(1), *x[:, :1].unbind(1), *(x[:, 0] + p for p in self.p.unbind(0))),
            conv=nn.Conv2d(6, 4, 1),
            p=parameter(2, 9, 8),
        ),
        IMAGE,
    ),
    "quarter turns": (lambda x: (*tuple(x.rot90(k, (2, 3)) for k in range(-1, 5)), x.rot90(1, (-1, 1))), IMAGE),
    "moved dimensions": (lambda x: (x.movedim(1, -1), x.moveaxis((1, 2), (3, 1)), x.swapdims(1, 3)), IMAGE),
    "index_select": (
        Call(
            lambda self, x: (x.index_select(1, self.i), x.index_select(-1, self.i), x.index_select(2, self.i[:1])),
            i=torch.tensor([4, 0, 3, 3]),
        ),
        IMAGE,
    ),
    "index_select evenly spaced is a slice": (
        Call(lambda self, x: (x.index_select(1, self.i), x[:, :, self.i]), i=torch.tensor([1, 3, 5])),
        IMAGE,
    ),
    "index by one tensor": (
        Call(
            lambda self, x: (
                x[:, self.i],
                x[:, :, :, self.i],
                x[:, self.i.view(2, 2)],
                x[:, [1, -1, 0]],
                x[:, self.i, 1:3],
            ),
            i=torch.tensor([4, 0, -2, 3]),
        ),
        IMAGE,
    ),
    "index by neighbors, and by tensors apart": (
        Call(
            lambda self, x: (
                x[:, self.i, self.j],
                x[:, self.i, :, self.j],
                x[:, :, self.i[:, None], self.j],
                x[:, 0, self.j],
            ),
            i=torch.tensor([4, 0, 2]),
            j=torch.tensor([7, 1, -1]),
        ),
        IMAGE,
    ),
    "index of a convolution": (
        Call(
            lambda self, x: (self.conv(x)[:, self.i], self.conv(x)[:, :, self.i, self.i]),
            conv=nn.Conv2d(6, 4, 1),
            i=torch.tensor([3, 0, 2]),
        ),
        IMAGE,
    ),
    "index by more than the file's JSON should hold": (
        Call(lambda self, x: x.flatten(1)[:, self.i], i=torch.arange(432).flip(0)[::2].clone()),
        IMAGE,
    ),
    "index of what a view split": (
        Call(lambda self, x: split_channels(x)[:, self.i], i=torch.tensor([3, 0, 2])),
        IMAGE,
    ),
    "index that depends on the input": (
        Call(lambda self, n, x: (self.p[n], x.mean(0)[:, n[0, 0].abs()], self.p.t()[:, n]), p=parameter(11, 3)),
        INTS,
        (2, 6, 9),
    ),
    "index_select that depends on the input": (lambda n, x: (x * 0).index_select(1, n[0, 0].abs()), INTS, (2, 6, 9)),
    "flip of each axis": (lambda x: (x.flip(1), x.flip(-1, 2), x.flip(0), x.flip((1, 3)), x[:, :1].flip(1)), IMAGE),
    "flip of a convolution, a merge and a split": (
        Call(
            lambda self, x: (
                self.conv(x).flip(1),
                self.conv(x).flatten(1, 2).flip(1),
                split_channels(x).flip(1),
                x.flatten(2).flip(2).view(-1, 6, 9, 8),
            ),
            conv=nn.Conv2d(6, 4, 1),
        ),
        IMAGE,
    ),
    "roll of each axis, back and far": (
        lambda x: (
            x.roll(1, 1),
            x.roll((1, -2), (2, 3)),
            x.roll(-11, -1),
            x.roll(3),
            x.roll((1, 1), (1, 1)),
            x.roll(1, 0),
        ),
        IMAGE,
    ),
    "roll of a convolution, as in a shifted window": (
        of_convolution(lambda y: (y.roll((-2, 3), (2, 3)), y.permute(0, 2, 3, 1).roll((-2, -3), (1, 2)))),
        IMAGE,
    ),
    "roll of what a view split": (lambda x: split_channels(x).roll(2, 1), IMAGE),
    "pixel shuffle, blocks against channels": (
        Call(lambda self, x: F.pixel_shuffle(self.conv(x), 2), conv=nn.Conv2d(6, 12, 3)),
        IMAGE,
    ),
    "pixel shuffle of block 3 between convolutions": (
        nn.Sequential(nn.Conv2d(6, 18, 1), nn.PixelShuffle(3), nn.Conv2d(2, 4, 3)),
        IMAGE,
    ),
    "pixel shuffle, all sizes alike": (lambda x: F.pixel_shuffle(x, 2), (2, 4, 4, 4)),
    "pixel unshuffle, blocks against channels": (
        Call(lambda self, x: self.conv(F.pixel_unshuffle(x, 2)), conv=nn.Conv2d(12, 5, 3)),
        (2, 3, 10, 8),
    ),
    "pixel shuffles there and back": (lambda x: F.pixel_unshuffle(F.pixel_shuffle(x, 2) * 2, 2), (2, 8, 3, 5)),
    "channel shuffle by the inverse": (
        Call(lambda self, x: self.conv(F.channel_shuffle(x, 2)), conv=nn.Conv2d(6, 4, 1)),
        IMAGE,
    ),
    "channel shuffle as an output": (lambda x: F.channel_shuffle(x, 3), IMAGE),
}


def assigned(*places, value):
    """A module that writes `value(part)` to each of `places` of a copy of its input."""

    def forward(x):
        y = x.clone()
        for place in places:
            y[place] = value(x[place])
        return y

    return forward


ALL = slice(None)
WRITING = {
    "written first, in between and last": (
        lambda x: tuple(
            assigned((ALL, cut), value=lambda part: part.sigmoid() * 2)(x)
            for cut in (slice(0, 2), slice(1, 4), slice(-2, None), slice(0, 6), 3, -1)
        ),
        IMAGE,
    ),
    "written to the last axis, as a detector does": (
        assigned((..., slice(0, 2)), (..., slice(2, 4)), value=lambda part: (part * 2).exp()),
        IMAGE,
    ),
    "written to two axes at once": (assigned((ALL, slice(1, 3), slice(4, None)), value=torch.neg), IMAGE),
    "written with a number": (assigned((ALL, 0), (ALL, ALL, slice(2, 5)), value=lambda part: 1.5), IMAGE),
    "written with what broadcasts": (
        assigned((ALL, slice(0, 3)), value=lambda part: part.mean(1, keepdim=True)),
        IMAGE,
    ),
    "written into a convolution": (
        of_convolution(assigned((ALL, slice(1, 3)), (ALL, ALL, 0), value=lambda part: part.tanh())),
        IMAGE,
    ),
    "written into what a view split": (
        lambda x: assigned((ALL, slice(1, 3)), value=lambda part: part + 9)(split_channels(x)),
        IMAGE,
    ),
    "written into zeros": (
        lambda x: (lambda y: (y[:, 1:3].copy_(x[:, 2:4]), y)[1])(torch.zeros_like(x)),
        IMAGE,
    ),
    "written over, in another type": (
        lambda x, n: (x.clone().copy_(n), x.clone().fill_(2), n.clone().zero_(), n.clone().copy_(x)),
        FLOATS,
        INTS,
    ),
}

CASES = (
    CONVOLUTIONS
    | PADS
    | NORMS
    | ACTIVATIONS
    | POOLS
    | LOGIC
    | ARITHMETIC
    | RESAMPLING
    | REDUCTIONS
    | ORDER
    | INDEXING
    | WRITING
)
