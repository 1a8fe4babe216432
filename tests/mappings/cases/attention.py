"""Rows of `mappings/attention.py`."""

import torch
import torch.nn.functional as F
from equivalence import Call, Input
from torch import nn

from cases.common import TOKENS, ours, parameter

QUERY, KEY, VALUE = (2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 6)

attend = F.scaled_dot_product_attention

ORDERS = ((5, 13, 12), (5, 12, 12), (7, 18, 18), (5, 18, 18))


def multi_head(self, query, key, value, biases, dropout=0.0):
    """Heads of 4, values of 6, in orders that are not PyTorch's."""
    rows = [[(step * i + 2) % size for i in range(count)] for step, size, count in ORDERS]
    weights = [self.wq, self.wk, self.wv, self.wo]
    return ours.multi_head_attention(query, key, value, weights, biases, *rows, 3, dropout)


MULTI_HEAD = {
    "multi_head_attention and its scores": (
        Call(
            lambda self, x, y, z: multi_head(self, x, y, z, [self.bq, self.bk, self.bv, self.bo]),
            wq=parameter(13, 11), wk=parameter(12, 7), wv=parameter(18, 5), wo=parameter(9, 18),
            bq=parameter(13), bk=parameter(12), bv=parameter(18), bo=parameter(9),
        ),
        (2, 6, 11),
        (2, 8, 7),
        (2, 8, 5),
    ),
    "multi_head_attention of what a convolution leaves, without bias": (
        Call(
            lambda self, x: multi_head(self, *[self.conv(x).flatten(2).mT] * 3, [])[0],
            conv=nn.Conv2d(6, 7, 2),
            wq=parameter(13, 7), wk=parameter(12, 7), wv=parameter(18, 7), wo=parameter(1, 18),
        ),
        (2, 6, 4, 5),
    ),
    "multi_head_attention asked by a parameter": (
        Call(
            lambda self, x: multi_head(self, self.query.expand(x.shape[0], 3, 7), x, x.flip(1), [])[0],
            query=parameter(1, 3, 7),
            wq=parameter(13, 7), wk=parameter(12, 11), wv=parameter(18, 11), wo=parameter(5, 18),
        ),
        TOKENS,
    ),
}  # fmt: skip

ATTENTION = {
    "attention": (lambda q, k, v: attend(q, k, v), QUERY, KEY, VALUE),
    "attention without heads, another scale": (
        lambda q, k, v: attend(q, k, v, scale=0.3),
        (2, 5, 4),
        (2, 7, 4),
        (2, 7, 6),
    ),
    "attention causal from the top left": (
        lambda q, k, v: (attend(q, k, v, is_causal=True), attend(k, q, q, is_causal=True)),
        QUERY,
        KEY,
        VALUE,
    ),
    "attention with a mask of booleans": (
        lambda q, k, v, m: attend(q, k, v, attn_mask=m),
        QUERY,
        KEY,
        VALUE,
        Input((2, 1, 5, 7), torch.bool),
    ),
    "attention that a mask leaves nothing of": (
        lambda q, k, v, m: attend(q, k[:, :, :2], v[:, :, :2], attn_mask=m),
        QUERY,
        KEY,
        VALUE,
        Input((2, 1, 5, 2), torch.bool),
    ),
    "attention with a mask of numbers": (
        lambda q, k, v, m: attend(q, k, v, attn_mask=m),
        QUERY,
        KEY,
        VALUE,
        (2, 3, 5, 7),
    ),
    "attention with a trained mask": (
        Call(lambda self, q, k, v: attend(q, k, v, attn_mask=self.mask), mask=parameter(5, 7)),
        QUERY,
        KEY,
        VALUE,
    ),
    "attention with a constant mask that leaves nothing of a row": (
        Call(lambda self, q, k, v: attend(q, k, v, attn_mask=self.mask), mask=torch.arange(35).view(5, 7) > 9),
        QUERY,
        KEY,
        VALUE,
    ),
    "attention of heads that share a key": (
        lambda q, k, v: attend(q, k, v, enable_gqa=True),
        (2, 6, 5, 4),
        (2, 3, 7, 4),
        (2, 3, 7, 8),
    ),
    "attention of heads behind the tokens, all sizes alike": (
        lambda x: attend(*(x.view(-1, 4, 3, 4, 4).permute(2, 0, 3, 1, 4).unbind(0))).transpose(1, 2).flatten(2),
        (2, 4, 48),
    ),
    "multi-head attention and its weights": (
        Call(lambda self, x: self.mha(x, x, x), mha=nn.MultiheadAttention(12, 3, batch_first=True)),
        (2, 6, 12),
    ),
    "multi-head attention, weights of every head": (
        Call(
            lambda self, x: self.mha(x, x, x, average_attn_weights=False),
            mha=nn.MultiheadAttention(12, 3, batch_first=True),
        ),
        (2, 6, 12),
    ),
    "multi-head attention without weights": (
        Call(
            lambda self, x: self.mha(x, x, x, need_weights=False)[0], mha=nn.MultiheadAttention(12, 3, batch_first=True)
        ),
        (2, 6, 12),
    ),
    "multi-head attention of other keys and values": (
        Call(
            lambda self, x, k, v: self.mha(x, k, v)[0],
            mha=nn.MultiheadAttention(12, 3, batch_first=True, kdim=5, vdim=7),
        ),
        (2, 6, 12),
        (2, 4, 5),
        (2, 4, 7),
    ),
    "multi-head attention with its batch second": (
        Call(
            lambda self, x: self.mha(x.transpose(0, 1), x.transpose(0, 1), x.transpose(0, 1))[0],
            mha=nn.MultiheadAttention(12, 3),
        ),
        (2, 6, 12),
    ),
    "multi-head attention with padding to ignore": (
        Call(
            lambda self, x, m: self.mha(x, x, x, key_padding_mask=m, need_weights=False)[0],
            mha=nn.MultiheadAttention(12, 3, batch_first=True),
        ),
        (2, 6, 12),
        Input((2, 6), torch.bool),
    ),
    "transformer encoder layer": (nn.TransformerEncoderLayer(12, 3, 20, batch_first=True), (2, 6, 12)),
    "transformer encoder layer, norms first": (
        nn.TransformerEncoderLayer(12, 3, 20, batch_first=True, norm_first=True, activation="gelu"),
        (2, 6, 12),
    ),
    "transformer decoder layer": (nn.TransformerDecoderLayer(12, 3, 20, batch_first=True), (2, 6, 12), (2, 7, 12)),
    "softmax over every axis": (
        lambda x: (x.softmax(1), x.softmax(-1), x.permute(0, 2, 3, 1).flatten(1, 2).softmax(1), x[:, :1].softmax(1)),
        (2, 6, 9, 8),
    ),
}
