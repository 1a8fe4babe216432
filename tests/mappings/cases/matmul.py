"""Rows of `mappings/matmul.py`."""

import torch
from equivalence import Call
from torch import nn

from cases.common import TOKENS, parameter

HEADS = (2, 3, 5, 4)

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
