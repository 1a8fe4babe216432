"""Rows of `mappings/indexing.py`."""

import torch
import torch.nn.functional as F
from equivalence import Call, Input
from torch import nn

from cases.common import (
    IMAGE,
    INTS,
    PICKS,
    TOKEN_MASK,
    TOKENS,
    aten,
    constant,
    of_convolution,
    parameter,
    split_channels,
)

OF_ONE = {  # without a free batch among their dimensions
    "put": (
        lambda x, s: (x[0].put(constant(3, 60), s[0, 0, :2]), x[0].put(constant(3, 3), s[0, 0, :2], True)),
        TOKENS,
        TOKENS,
    ),
    "take": (lambda x, i: x[0].take(i[0, :2, :3]), TOKENS, PICKS),
    "masked_scatter": (lambda x, m: x[0].masked_scatter(m[0], 2 * x[-1]), TOKENS, TOKEN_MASK),
    "as_strided_scatter": (
        lambda x, s: aten.as_strided_scatter(x.sum(0), s[0, :3, :4], (3, 4), (5, 1), 3),
        TOKENS,
        TOKENS,
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
    "a line along the batch": (
        lambda x: (torch.linspace(-1, 3, x.shape[0])[:, None, None, None] * x, torch.linspace(2, -1, x.shape[0]) + 1),
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
    "repeat by the batch what is longer than one": (
        lambda x: (
            x.flatten(0, 1) + x[0].repeat(x.shape[0], 1, 1),
            torch.arange(3.0).repeat(x.shape[0]),
            x[0].repeat(x.shape[0], 2, 1, 3),
        ),
        IMAGE,
    ),
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
