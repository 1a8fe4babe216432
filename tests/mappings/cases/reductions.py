"""Rows of `mappings/reductions.py`."""

import torch
import torch.nn.functional as F
from equivalence import Call, Input
from torch import nn

from cases.common import CUBE, FLOATS, IMAGE, INTS, MASK, aten, of_convolution, split_channels

REDUCTIONS = {
    "mean over each axis, kept and not": (
        lambda x: (x.mean(1), x.mean(-1, keepdim=True), x.mean((2, 3)), x.mean((1, 3), keepdim=True), x.mean((-1, -3))),
        IMAGE,
    ),
    "sum over each axis, kept and not": (
        lambda x: (x.sum(1), x.sum(-1, keepdim=True), x.sum((2, 3)), x.sum((1, 3), keepdim=True)),
        IMAGE,
    ),
    "extremes over each axis, kept and not": (
        lambda x: (x.amax(1), x.amax((2, 3), keepdim=True), x.amin(-1), x.amin((1, 2), keepdim=True)),
        IMAGE,
    ),
    "reductions of everything": (lambda x: (x + x.mean(), x + x.sum(), x + x.amax(), x + x.amin()), IMAGE),
    "reductions of the batch": (lambda x: (x + x.mean(0), x + x.sum((0, 2), keepdim=True)), IMAGE),
    "reductions of a convolution": (
        Call(
            lambda self, x: (lambda y: (y.mean(1), y.mean((2, 3)), y.sum(2), y.amax((1, 2))))(self.conv(x)),
            conv=nn.Conv2d(6, 4, 3),
        ),
        IMAGE,
    ),
    "reductions of a convolution, all sizes alike": (
        Call(lambda self, x: (lambda y: (y.mean(1), y.mean(2), y.mean((1, 3))))(self.conv(x)), conv=nn.Conv2d(6, 6, 1)),
        CUBE,
    ),
    "reductions of one": (lambda x: (x.mean(1), x.sum((1, 2), keepdim=True), x.amax(2)), (2, 1, 1, 8)),
    "reductions of what a view merged": (
        lambda x: (x.transpose(1, 2).flatten(1, 2).mean(1), x.flatten(2).transpose(1, 2).sum(1)),
        IMAGE,
    ),
    "reductions of half of what a view split": (
        lambda x: (x.view(-1, 2, 3, 9, 8).mean(1), x.view(-1, 2, 3, 9, 8).amax((2, 4), keepdim=True)),
        IMAGE,
    ),
    "sum of integers and booleans": (
        lambda n, m, b: (n.sum(1), m.sum(1), b.sum(1), m.sum(1, keepdim=True), m + m.amax(1, keepdim=True)),
        INTS,
        Input((2, 6, 9), torch.int32),
        Input((2, 6, 9), torch.bool),
    ),
    "mean in another type": (
        lambda n, x: (n.mean(1, dtype=torch.float32), x.mean(1, dtype=torch.float64)),
        INTS,
        IMAGE,
    ),
}

REDUCTIONS |= {
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
