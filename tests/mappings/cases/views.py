"""Rows of `mappings/views.py`."""

import torch
import torch.nn.functional as F
from equivalence import Call
from torch import nn

from cases.common import CUBE, IMAGE, INTS, aten

SHAPES = {
    "permute by the inverse": (lambda x: (x.permute(0, 2, 3, 1), x.permute(0, -1, 1, 2)), IMAGE),
    "permute behind a convolution": (
        Call(lambda self, x: self.conv(x).permute(0, 3, 1, 2), conv=nn.Conv2d(6, 4, 3)),
        IMAGE,
    ),
    "permute of the batch": (lambda x: (x.permute(1, 0, 2, 3) + 1, x.transpose(0, -1)), IMAGE),
    "transpose, negative dimensions": (
        lambda x: (x.transpose(1, 2), x.transpose(-1, -3), x.mT, x.swapaxes(1, 1)),
        IMAGE,
    ),
    "matrix transpose": (lambda x: x.flatten(1).t() * 2, (2, 6, 9)),
    "view that splits and merges": (lambda x: (x.view(-1, 2, 3, 9, 8), x.view(-1, 6, 72), x.view(-1, 2, 27, 8)), IMAGE),
    "view across dimensions": (lambda x: (x.view(-1, 8, 9, 6), x.flatten(2).view(-1, 8, 54)), IMAGE),
    "view across dimensions behind a convolution": (
        Call(lambda self, x: self.conv(x).reshape(-1, 7, 4, 6), conv=nn.Conv2d(6, 4, 3)),
        IMAGE,
    ),
    "view across dimensions, all sizes alike": (
        Call(lambda self, x: self.conv(x).reshape(-1, 4, 9, 6), conv=nn.Conv2d(6, 6, 1)),
        CUBE,
    ),
    "view of what was permuted": (lambda x: x.permute(0, 2, 3, 1).reshape(-1, 72, 6), IMAGE),
    "view that folds into the batch": (lambda x: (x.flatten(0, 1), x.flatten(0, 1).view(-1, 6, 9, 8) + 1), IMAGE),
    "view as one row": (lambda x: x.reshape(-1), IMAGE),
    "flatten of some dimensions": (
        lambda x: (x.flatten(1), x.flatten(1, 2), x.flatten(2), x.unflatten(1, (2, 3))),
        IMAGE,
    ),
    "flatten in Keras' order": (nn.Sequential(nn.Conv2d(6, 4, 3), nn.Flatten()), IMAGE),
    "squeeze and unsqueeze": (
        lambda x: (x.squeeze(), x.squeeze(1), x.squeeze((1, 3)), x.squeeze(2), x.unsqueeze(0), x.unsqueeze(-1)),
        (2, 1, 9, 1),
    ),
    "unsqueeze of what lies channels last": (
        Call(lambda self, x: (self.conv(x).unsqueeze(2), self.conv(x)[:, None]), conv=nn.Conv2d(6, 4, 3)),
        IMAGE,
    ),
    "expand of ones": (lambda x: (x.expand(-1, 5, -1, -1), x.expand(3, -1, 5, 9, -1)[0] * 2), (2, 1, 9, 8)),
    "expand of what lies channels last": (
        Call(lambda self, x: self.conv(x).expand(-1, 4, -1, -1), conv=nn.Conv2d(6, 1, 3)),
        IMAGE,
    ),
    "expand that changes nothing": (lambda x: x.expand_as(x) + 1, IMAGE),
    "cat over each axis": (
        lambda x, y: (torch.cat([x, y], 1), torch.cat([x, x], -1), torch.cat([x, y, x], 1)),
        IMAGE,
        (2, 4, 9, 8),
    ),
    "cat over the batch": (lambda x: torch.cat([x, x * 2]), IMAGE),
    "cat of ones": (lambda x: (torch.cat([x[:, :1], x[:, 1:2]], 1), torch.cat([x[:, :1], x], 1)), IMAGE),
    "cat of values in different layouts": (
        Call(lambda self, x, y: torch.cat([self.conv(x), y.permute(0, 3, 1, 2)], 1), conv=nn.Conv2d(6, 4, 3)),
        IMAGE,
        (2, 7, 6, 3),
    ),
    "cat of values in different layouts, all sizes alike": (
        Call(lambda self, x: torch.cat([self.conv(x), x, x.transpose(1, 2)], 2), conv=nn.Conv2d(6, 6, 1)),
        CUBE,
    ),
    "cat of channels that a view split, into a convolution": (
        Call(
            lambda self, x: self.conv(torch.cat([x.view(-1, 2, 3, 9, 8).transpose(1, 2).flatten(1, 2), x], 1)),
            conv=nn.Conv2d(12, 4, 1),
        ),
        IMAGE,
    ),
    "cat of flattened maps into a linear": (
        Call(
            lambda self, x: self.linear(torch.cat([self.conv(x).flatten(1), x.flatten(1)], 1)),
            conv=nn.Conv2d(6, 4, 3),
            linear=nn.Linear(4 * 42 + 432, 5),
        ),
        IMAGE,
    ),
    "cat of integers and floats": (lambda n, x: torch.cat([n, x], 1), INTS, (2, 4, 9)),
    "stack at each position": (
        lambda x, y: (torch.stack([x, y], 1), torch.stack([x, y], -1), torch.stack([x, x, y])),
        IMAGE,
        IMAGE,
    ),
    "stack of convolutions": (
        Call(lambda self, x: torch.stack([self.conv(x), self.conv(-x)], 2), conv=nn.Conv2d(6, 4, 3)),
        IMAGE,
    ),
    "split into equal parts and a rest": (
        lambda x: (*x.split(2, 1), *x.split(4, 2), *x.split(9, 2), *x.split(3, -1)),
        IMAGE,
    ),
    "split by sizes": (lambda x: (*x.split([1, 3, 2], 1), *x.split([7, 1], -1)), IMAGE),
    "chunk into unequal parts": (lambda x: (*x.chunk(4, 2), *x.chunk(2, 1), *x.chunk(1, 1)), IMAGE),
    "split of a convolution, one part left": (
        Call(lambda self, x: self.conv(x).split([1, 3], 1)[1], conv=nn.Conv2d(6, 4, 3)),
        IMAGE,
    ),
    "split of channels that a view split": (
        lambda x: x.view(-1, 2, 3, 9, 8).transpose(1, 2).flatten(1, 2).split(2, 1),
        IMAGE,
    ),
    "slice from the end, with steps and beyond": (
        lambda x: (x[:, 1:-1], x[:, :, ::2], x[..., -3:], x[:, 1::3, 2:7:2], x[:, :, :100], x[:, -100:2]),
        IMAGE,
    ),
    "slice to one": (lambda x: (x[:, 2:3], x[..., -1:]), IMAGE),
    "slice of a convolution": (Call(lambda self, x: self.conv(x)[:, 1:, ::2, 1:-1], conv=nn.Conv2d(6, 4, 3)), IMAGE),
    "slice of what a view merged": (lambda x: x.permute(0, 2, 1, 3).flatten(1, 2)[:, 5:23:4], IMAGE),
    "select from either end": (lambda x: (x[:, 2], x[:, -1], x[..., 0], x[:, :, -2], x.narrow(1, 2, 3)), IMAGE),
    "select from a convolution": (
        Call(lambda self, x: (self.conv(x)[:, 1], self.conv(x)[:, :, -1]), conv=nn.Conv2d(6, 4, 3)),
        IMAGE,
    ),
    "select the only one": (lambda x: (x[:, 0], x[:, :, 0]), (2, 1, 1, 8)),
    "pad of each axis": (
        lambda x: (
            F.pad(x, (1, 2)),
            F.pad(x, (1, 2, 3, 0)),
            F.pad(x, (0, 0, 0, 0, 1, 2)),
            F.pad(x, (0, 1), value=-1.5),
        ),
        IMAGE,
    ),
    "pad of a convolution": (
        Call(lambda self, x: F.pad(self.conv(x), (1, 2, 3, 4), value=0.5), conv=nn.Conv2d(6, 4, 3)),
        IMAGE,
    ),
    "pad of one": (lambda x: (F.pad(x, (0, 0, 2, 1)), F.pad(x, (0, 0, 0, 0, 1, 3))), (2, 1, 1, 8)),
    "pad of what a view merged": (lambda x: F.pad(x.transpose(1, 2).flatten(1, 2), (0, 0, 2, 1)), IMAGE),
    "pad of integers": (lambda x: F.pad(x, (1, 2), value=7), INTS),
    "pad by reflection, replication and wrapping": (
        lambda x: tuple(F.pad(x, (1, 2, 3, 0), mode=mode) for mode in ("reflect", "replicate", "circular")),
        IMAGE,
    ),
    "pad of a convolution by reflection, replication and wrapping": (
        nn.Sequential(
            nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect"),
            nn.Conv2d(4, 3, (1, 3), padding=(0, 1), padding_mode="replicate"),
            nn.Conv2d(3, 5, 3, padding=(2, 1), padding_mode="circular"),
        ),
        IMAGE,
    ),
    "pad as an older program has it": (lambda x: aten.constant_pad_nd.default(x, [1, 2, 0, 3], 0.5), IMAGE),
    "pad that is zero": (lambda x: F.pad(x, (0, 0, 0, 0)) + 1, IMAGE),
}
