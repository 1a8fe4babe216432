"""More rows for the table of mappings, met by PyTorch's own samples of its modules."""

import torch
import torch.nn.functional as F
from equivalence import Call, Input
from torch import nn

SEQUENCE = (2, 6, 11)
IMAGE = (2, 6, 9, 8)
VOLUME = (2, 4, 5, 7, 6)


def ties(x):
    """Few different numbers, so that maxima are met several times."""
    return x.round()


POSITIONS = {
    "max pool positions: the first of equals, in the flattened image": (
        lambda x: F.max_pool2d(ties(x), (3, 2), (2, 1), (1, 0), return_indices=True),
        IMAGE,
    ),
    "max pool positions, dilated, ceil_mode, below zero": (
        lambda x: F.max_pool2d(ties(x) - 20, 2, 3, 1, dilation=2, ceil_mode=True, return_indices=True),
        IMAGE,
    ),
    "max pool positions of integers": (
        lambda n: F.max_pool2d(torch.where(n > 2, torch.iinfo(n.dtype).min, n), 3, 2, 1, return_indices=True),
        Input(IMAGE, torch.int64),
    ),
    "max pool positions behind a convolution": (
        Call(lambda self, x: F.max_pool2d(self.conv(x), 2, return_indices=True), conv=nn.Conv2d(6, 4, 3)),
        IMAGE,
    ),
    "max pool positions where all is minus infinity, or NaN": (
        lambda x: F.max_pool2d(
            torch.where(x > 0, -torch.inf, torch.where(x < -4, torch.nan, x)), 3, 2, 1, return_indices=True
        ),
        IMAGE,
    ),
    "max pool positions, 1-D and 3-D": (
        lambda x: (
            *F.max_pool1d(ties(x.flatten(2)), 3, 2, 1, return_indices=True),
            *F.max_pool3d(ties(x), (2, 3, 1), (2, 1, 3), (1, 1, 0), return_indices=True),
        ),
        VOLUME,
    ),
    "max pool positions alone": (lambda x: F.max_pool2d(ties(x), 2, return_indices=True)[1], IMAGE),
    "adaptive max pool positions": (
        lambda x: (
            *F.adaptive_max_pool2d(ties(x), (4, 3), return_indices=True),
            *F.adaptive_max_pool1d(ties(x.flatten(2)), 7, return_indices=True),
            *F.adaptive_max_pool2d(x, 1, return_indices=True),
        ),
        IMAGE,
    ),
    "pools without a batch, whose channels are of an unknown number": (
        lambda x: (
            F.max_pool2d(x, 2),
            F.avg_pool2d(x, 3, 2, 1),
            F.adaptive_avg_pool2d(x, (4, 3)),
            F.lp_pool1d(x, 2, 3),
        ),
        (2, 9, 8),
    ),
}

LAYERS = {
    "batch norm without running statistics": (
        nn.Sequential(nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4, eps=0.3, track_running_stats=False)),
        IMAGE,
    ),
    "batch norm without running statistics, of features, sequences and volumes": (
        Call(
            lambda self, x: (
                self.norm(x.flatten(3).transpose(1, 2).flatten(0, 1).mean(2)),
                self.norm(x.flatten(2)),
                self.bare(x),
            ),
            norm=nn.BatchNorm1d(4, track_running_stats=False),
            bare=nn.BatchNorm3d(4, affine=False, track_running_stats=False),
        ),
        VOLUME,
    ),
    "batch norm without running statistics beside what is decomposed": (
        Call(lambda self, x: self.norm(x).movedim(1, 2), norm=nn.BatchNorm2d(6, track_running_stats=False)),
        IMAGE,
    ),
    "linear of one vector": (
        Call(lambda self, x: x + self.linear(x[0, :, 0]).sum(), linear=nn.Linear(6, 4)),
        SEQUENCE,
    ),
    "linear of one row": (
        Call(lambda self, x: x + self.linear(x.mean((0, 2)).view(1, 6)).sum(), linear=nn.Linear(6, 4)),
        SEQUENCE,
    ),
    "bilinear with its operands exchanged": (nn.Bilinear(6, 6, 4), (2, 6), (2, 6)),
    "bilinear of tokens, without bias": (nn.Bilinear(5, 3, 4, bias=False), (2, 7, 5), (2, 7, 3)),
    "bilinear of vectors": (
        Call(lambda self, x, y: x + self.bilinear(x[0], y.mean(0)).sum(), bilinear=nn.Bilinear(6, 5, 4)),
        (2, 6),
        (2, 5),
    ),
    "prelu with slopes for several ranks": (
        Call(lambda self, x: (self.act(x), self.act(x.mean(2)), self.act(x[..., None] - 1)), act=nn.PReLU(6)),
        SEQUENCE,
    ),
    "prelu with one slope for several ranks": (
        Call(lambda self, x: (self.act(x), self.act(x.mean(2)), self.act(x[..., None] - 1)), act=nn.PReLU()),
        SEQUENCE,
    ),
    "prelu and softmax of a number": (
        Call(lambda self, x: x + self.act(x.sum()) + x.sum().softmax(0) + x.sum().log_softmax(0), act=nn.PReLU()),
        (2, 6),
    ),
}

RECURRENT = {
    "LSTM with a projection": (nn.LSTM(6, 5, proj_size=3, batch_first=True), (2, 7, 6)),
    "LSTM with a projection, two layers, both directions, time first": (
        Call(
            lambda self, x: self.r(x.transpose(0, 1)), r=nn.LSTM(6, 5, 2, proj_size=3, bidirectional=True, bias=False)
        ),
        (2, 7, 6),
    ),
    "LSTM with a projection and initial states": (
        Call(
            lambda self, x, h, c: self.r(x, (h.transpose(0, 1), c.transpose(0, 1))),
            r=nn.LSTM(6, 5, proj_size=3, batch_first=True, bidirectional=True),
        ),
        (2, 7, 6),
        (2, 2, 3),
        (2, 2, 5),
    ),
    "LSTM cell": (Call(lambda self, x, h, c: self.r(x, (h, c)), r=nn.LSTMCell(6, 5)), (2, 6), (2, 5), (2, 5)),
    "LSTM cell called twice, from zero": (
        Call(lambda self, x: self.r(x, self.r(x * 2))[0], r=nn.LSTMCell(6, 5, bias=False)),
        (2, 6),
    ),
    "GRU cell": (nn.GRUCell(6, 5), (2, 6), (2, 5)),
    "RNN cells": (
        Call(
            lambda self, x, h: (self.tanh(x, h), self.relu(x, h)),
            tanh=nn.RNNCell(6, 5),
            relu=nn.RNNCell(6, 5, nonlinearity="relu"),
        ),
        (2, 6),
        (2, 5),
    ),
    "transformer encoder whose mask is given": (
        Call(
            lambda self, x, m: self.encoder(x, mask=m[0]),
            encoder=nn.TransformerEncoder(nn.TransformerEncoderLayer(12, 3, 20, batch_first=True), 2),
        ),
        (2, 6, 12),
        (2, 6, 6),
    ),
    "a batch in the example of as many as there are heads": (
        Call(lambda self, x: self.mha(x, x, x)[0], mha=nn.MultiheadAttention(6, 2, batch_first=True, add_bias_kv=True)),
        (2, 5, 6),
    ),
    "one of the batch, cut off": (lambda x: x + x[:2].sum(), (2, 6)),
}
CASES = POSITIONS | LAYERS | RECURRENT
