"""Rows for the table of mappings: products, attention, repetition, embeddings, recurrence."""

import torch
import torch.nn.functional as F
from equivalence import Call, Input
from torch import nn

TOKENS = (2, 6, 11)
HEADS = (2, 3, 5, 4)
QUERY, KEY, VALUE = (2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 6)
attend = F.scaled_dot_product_attention
ours = torch.ops.converter


def parameter(*shape):
    return nn.Parameter(torch.zeros(shape))


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

EXPANSION = {
    "a class token in front of every example": (
        Call(lambda self, x: torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1), token=parameter(1, 1, 11)),
        TOKENS,
    ),
    "a constant repeated along the batch and an axis": (
        Call(lambda self, x: torch.cat([self.c.expand(x.shape[0], 4, 11), x], 1), c=parameter(1, 11)),
        TOKENS,
    ),
    "a value repeated along the batch": (lambda x: x.mean(0, keepdim=True).expand(x.shape[0], 6, 11) + 1, TOKENS),
    "a value repeated along an axis in front of the batch": (lambda x: x.expand(3, -1, -1, -1) * 2, TOKENS),
    "zeros, ones and a number for every example": (
        lambda x: (
            torch.cat([torch.zeros(x.shape[0], 2, 11), x, torch.ones(x.shape[0], 1, 11)], 1),
            x.new_full((x.shape[0], 3), 1.5),
            torch.full((x.shape[0], 4), 7),
            torch.full_like(x, 2) + x.new_zeros((x.shape[0], 6, 1)),
            x.new_ones((x.shape[0], 3)),
            torch.zeros_like(x),
            torch.ones_like(x),
        ),
        TOKENS,
    ),
    "a tensor filled by its shape alone is a constant": (
        lambda x: x + torch.cat([x.new_zeros((2, 11)), x.new_full((4, 11), 3.0)]),
        TOKENS,
    ),
}

PRODUCTS = {
    "matmul with its right operand transposed": (lambda x: x @ x.transpose(1, 2), TOKENS),
    "matmul with its left operand transposed": (lambda x: x.transpose(1, 2) @ x, TOKENS),
    "matmul with both transposed": (lambda x, y: x.transpose(1, 2) @ y.transpose(1, 2), TOKENS, (2, 3, 6)),
    "matmul all sizes alike": (lambda x, y: (x @ y, x.mT @ y, x @ y.mT, x.mT @ y.mT), (2, 4, 4), (2, 4, 4)),
    "matmul with a vector on each side": (lambda x, y: (x @ y[0], y[0] @ x.transpose(1, 2)), TOKENS, (2, 11)),
    "matmul with a weight": (Call(lambda self, x: x @ self.w, w=parameter(11, 3)), TOKENS),
    "matmul of features alone with a weight": (Call(lambda self, x: x @ self.w, w=parameter(11, 3)), (2, 11)),
    "matmul with a weight on the left": (Call(lambda self, x: self.w @ x, w=parameter(3, 6)), TOKENS),
    "matmul of tokens mixed by a weight": (
        Call(lambda self, x: (x.transpose(1, 2) @ self.w).transpose(1, 2) + x, w=parameter(6, 6)),
        TOKENS,
    ),
    "matmul with a weight for each head": (Call(lambda self, x: x @ self.w, w=parameter(3, 4, 7)), HEADS),
    "matmul with a weight for each new head": (
        Call(lambda self, x: x[:, None] @ self.w, w=parameter(3, 11, 7)),
        TOKENS,
    ),
    "matmul that broadcasts a single head": (lambda x, y: x @ y, HEADS, (2, 1, 4, 7)),
    "matmul that broadcasts the batch": (lambda x, y: x @ y[:1, 0], HEADS, (2, 1, 4, 7)),
    "matmul of different ranks": (lambda x, y: x @ y[0], HEADS, (2, 3, 4, 7)),
    "matmul of heads behind the tokens": (
        lambda x, y: x.view(-1, 6, 3, 4).transpose(1, 2) @ y.view(-1, 7, 3, 4).permute(0, 2, 3, 1),
        (2, 6, 12),
        (2, 7, 12),
    ),
    "matmul of heads behind the tokens, all sizes alike": (
        lambda x, y: x.view(-1, 3, 3, 3).transpose(1, 2) @ y.view(-1, 3, 3, 3).permute(0, 2, 3, 1),
        (2, 3, 9),
        (2, 3, 9),
    ),
    "matmul over one": (lambda x, y: x @ y, (2, 6, 1), (2, 1, 5)),
    "matmul to one row and column": (lambda x, y: x @ y, (2, 1, 6), (2, 6, 1)),
    "matmul of pixels with pixels": (
        Call(
            lambda self, x: (lambda y: y.flatten(2).transpose(1, 2) @ y.flatten(2))(self.conv(x)),
            conv=nn.Conv2d(6, 4, 3),
        ),
        (2, 6, 9, 8),
    ),
    "bmm": (lambda x, y: torch.bmm(x, y), TOKENS, (2, 11, 3)),
    "mm of batches": (lambda x, y: torch.mm(x.t(), y), (2, 11), (2, 3)),
    "addmm as a linear layer": (
        Call(lambda self, x: torch.addmm(self.b, x, self.w), w=parameter(11, 3), b=parameter(3)),
        (2, 11),
    ),
    "addmm scaled": (
        Call(lambda self, x: torch.addmm(self.b, x, self.w, beta=0.5, alpha=2), w=parameter(11, 3), b=parameter(1, 3)),
        (2, 11),
    ),
    "addmm without what it adds, NaN or not": (
        Call(lambda self, x: torch.addmm(self.b / 0 * 0, x, self.w, beta=0), w=parameter(11, 3), b=parameter(1, 3)),
        (2, 11),
    ),
    "baddbmm": (lambda x, y, z: torch.baddbmm(z, x, y, beta=0.5, alpha=3), TOKENS, (2, 11, 3), (2, 6, 3)),
    "einsum of heads behind the tokens": (
        lambda x, y: torch.einsum("bqhd,bkhd->bhqk", x, y),
        (2, 6, 3, 4),
        (2, 7, 3, 4),
    ),
    "einsum whose result has the heads behind the tokens": (
        lambda x, y: torch.einsum("bhqk,bkhd->bqhd", x, y),
        (2, 3, 6, 7),
        (2, 7, 3, 4),
    ),
    "einsum over channels": (
        Call(lambda self, x: torch.einsum("nchw,cd->ndhw", x, self.w), w=parameter(4, 5)),
        (2, 4, 3, 6),
    ),
    "einsum with an ellipsis, no result given": (lambda x, y: torch.einsum("...ij,j", x, y[0]), TOKENS, (2, 11)),
    "einsum of one operand, transposed": (lambda x: torch.einsum("bij->ji", x), TOKENS),
    "einsum of outer products": (lambda x, y: torch.einsum("bi,bj->bij", x, y), (2, 3), (2, 6)),
    "einsum that sums before the product": (lambda x, y: torch.einsum("bij,bk->jk", x, y), (2, 3, 6), (2, 4)),
}

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

SEQUENCES = (2, 7, 6)
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

CASES = EXPANSION | PRODUCTS | ATTENTION | MULTI_HEAD | RECURRENT
