"""Rows of `mappings/rnn.py`."""

import torch
from equivalence import Call, Input
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from cases.common import parameter

SEQUENCES = (2, 7, 6)
LENGTHS = Input((2,), torch.int64, 1, 8)


def packed(given, layer: nn.RNNBase) -> nn.Module:
    """A layer over packed sequences of the lengths that `given` returns, padded again to seven steps."""

    def forward(self, *inputs):
        x, lengths, states = given(self, *inputs)
        sequences = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        y, last = self.r(sequences, states)
        return pad_packed_sequence(y, total_length=7)[0], last

    return Call(forward, r=layer)


RECURRENT = {
    "embedding": (nn.Embedding(9, 5), Input((2, 6), torch.int64, 0, 9)),
    "embedding of padding, of images": (nn.Embedding(9, 5, padding_idx=3), Input((2, 3, 4, 6), torch.int64, 0, 9)),
    "embedding of 32 bits": (nn.Embedding(9, 5), Input((2, 6), torch.int32, 0, 9)),
    "embedding of one feature": (nn.Embedding(9, 1), Input((2, 6), torch.int64, 0, 9)),
    "embedding with positions": (
        Call(
            lambda self, x: self.words(x) + self.places(torch.arange(6)),
            words=nn.Embedding(9, 5),
            places=nn.Embedding(8, 5),
        ),
        Input((2, 6), torch.int64, 0, 9),
    ),
    "LSTM gates in another order": (Call(lambda self, x: self.r(x)[0], r=nn.LSTM(6, 5, batch_first=True)), SEQUENCES),
    "LSTM all sizes alike, its states": (nn.LSTM(6, 6, batch_first=True), (2, 6, 6)),
    "LSTM without bias": (nn.LSTM(6, 5, bias=False, batch_first=True), SEQUENCES),
    "LSTM with time first": (Call(lambda self, x: self.r(x.transpose(0, 1)), r=nn.LSTM(6, 5)), SEQUENCES),
    "LSTM of two layers in both directions": (nn.LSTM(6, 5, 2, batch_first=True, bidirectional=True), SEQUENCES),
    "LSTM of one unit": (nn.LSTM(6, 1, batch_first=True), SEQUENCES),
    "LSTM whose last step alone is used": (
        Call(lambda self, x: self.r(x)[0][:, -1], r=nn.LSTM(6, 5, batch_first=True)),
        SEQUENCES,
    ),
    "LSTM whose states alone are used": (
        Call(lambda self, x: self.r(x)[1][0][-1], r=nn.LSTM(6, 5, 2, batch_first=True, dropout=0.5)),
        SEQUENCES,
    ),
    "LSTM with initial states": (
        Call(
            lambda self, x, h, c: self.r(x, (h.transpose(0, 1), c.transpose(0, 1))),
            r=nn.LSTM(6, 5, 2, batch_first=True, bidirectional=True),
        ),
        SEQUENCES,
        (2, 4, 5),
        (2, 4, 5),
    ),
    "LSTM with trained initial states": (
        Call(
            lambda self, x: self.r(
                x, (self.h.expand(-1, x.shape[0], -1).contiguous(), self.h.expand(-1, x.shape[0], -1) * 2)
            ),
            r=nn.LSTM(6, 5, batch_first=True),
            h=parameter(1, 1, 5),
        ),
        SEQUENCES,
    ),
    "LSTM called twice": (
        Call(lambda self, x: self.r(self.r(x)[0] - 1)[0], r=nn.LSTM(6, 6, batch_first=True)),
        SEQUENCES,
    ),
    "packed LSTM of two layers in both directions, with initial states": (
        packed(
            lambda self, x, n, h, c: (x, n, (h.transpose(0, 1), c.transpose(0, 1))),
            nn.LSTM(6, 5, 2, bidirectional=True),
        ),
        SEQUENCES,
        LENGTHS,
        (2, 4, 5),
        (2, 4, 5),
    ),
    "packed GRU in both directions": (
        packed(lambda self, x, n: (x, n, None), nn.GRU(6, 5, bidirectional=True)),
        SEQUENCES,
        LENGTHS,
    ),
    "packed RNN of relus": (
        packed(lambda self, x, n: (x, n, None), nn.RNN(6, 5, nonlinearity="relu")),
        SEQUENCES,
        LENGTHS,
    ),
    "GRU gates in another order": (Call(lambda self, x: self.r(x)[0], r=nn.GRU(6, 5, batch_first=True)), SEQUENCES),
    "GRU all sizes alike, its state": (nn.GRU(6, 6, batch_first=True), (2, 6, 6)),
    "GRU without bias": (nn.GRU(6, 5, bias=False, batch_first=True), SEQUENCES),
    "GRU of two layers in both directions, an initial state": (
        Call(lambda self, x, h: self.r(x.transpose(0, 1), h.transpose(0, 1)), r=nn.GRU(6, 5, 2, bidirectional=True)),
        SEQUENCES,
        (2, 4, 5),
    ),
    "GRU behind a convolution": (
        Call(
            lambda self, x: self.r(self.conv(x).transpose(1, 2))[0].transpose(1, 2) + 1,
            conv=nn.Conv1d(6, 4, 3),
            r=nn.GRU(4, 5, batch_first=True),
        ),
        (2, 6, 11),
    ),
    "GRU of rows and channels that a view merged": (
        Call(
            lambda self, x: self.r(self.conv(x).permute(0, 3, 1, 2).flatten(2))[0],
            conv=nn.Conv2d(3, 4, 1),
            r=nn.GRU(20, 5, batch_first=True),
        ),
        (2, 3, 5, 7),
    ),
    "RNN with tanh": (nn.RNN(6, 5, batch_first=True), SEQUENCES),
    "RNN with relu, both directions": (nn.RNN(6, 5, 2, "relu", batch_first=True, bidirectional=True), SEQUENCES),
    "RNN with time first, without bias": (
        Call(lambda self, x: self.r(x.transpose(0, 1)), r=nn.RNN(6, 5, bias=False)),
        SEQUENCES,
    ),
}

RECURRENT |= {
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
