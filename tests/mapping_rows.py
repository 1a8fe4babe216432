"""More rows for the table of mappings: a name, a module or function, its inputs' shapes."""

import torch
import torch.nn.functional as F
from equivalence import Call
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
        Call(lambda self, x: self.conv(x[1]) + x.sum((1, 2, 3), True), conv=nn.Conv2d(6, 4, 3)),
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

CASES = CONVOLUTIONS | PADS
