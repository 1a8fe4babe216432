"""Rows of `mappings/decompositions.py`."""

import torch
import torch.nn.functional as F
from equivalence import Call, Input
from torch import nn

from cases.common import IMAGE, PICKS, TOKENS, aten, constant, spread


def ordered(x):
    """By operators for which PyTorch has a NaN behind infinity."""
    return (
        x.sort(1)[0],
        x.sort(2, descending=True)[0],
        x.topk(3, 1)[0],
        x.topk(7, 2, largest=False)[0],
        x.kthvalue(9, 2)[0],
        *x.median(2),
        x[:, None].median(2)[0],
        x[0].median(),
        x.quantile(0.3, 2),
        x.nanquantile(0.6, 2),
        x.argmax(2),
        x.argmin(1),
        x.sign(),
    )


BAGS = Input((2, 4), torch.int64, 0, 9)


def bag(mode):
    return nn.EmbeddingBag(9, 5, mode=mode)


WRITTEN_OUT = {
    "solved by a triangle, turned or with ones": (
        lambda x: tuple(
            torch.triangular_solve(x[..., :5, :3], spread(x, 5), *how)[0]
            for how in ((True, False, False), (False, True, False), (True, True, True))
        ),
        IMAGE,
    ),
    "inverted and solved by a Cholesky factor of either triangle": (
        lambda x: tuple(
            result
            for upper in (True, False)
            for result in (
                torch.cholesky_inverse(spread(x, 5), upper=upper),
                torch.cholesky_solve(x[..., :5, :3], spread(x, 5), upper=upper),
            )
        ),
        IMAGE,
    ),
    "resized": (lambda x: (aten.resize_as(x[0], x[0].mT), aten.resize(x.sum(0), (7, 3))), TOKENS),
    "NaN among what is put in order": (
        lambda x: ordered(torch.where(x > 2, torch.nan, torch.where(x < -3, torch.inf, x))),
        TOKENS,
    ),
    "the median of all known numbers": (lambda x: torch.nanmedian(torch.where(x[0] > 0, x[0], torch.nan)), TOKENS),
    "medians of known numbers, and where they are": (
        lambda x, y: (
            *torch.where(x > 0, x, torch.nan).nanmedian(2),
            torch.where(x > 1, x, torch.nan).nanmedian(1, keepdim=True)[0],
            *y.nanmedian(1),
        ),
        TOKENS,
        Input((2, 1, 7), torch.int64),
    ),
    "bilinear of integers": (
        Call(
            lambda self, x, y: F.bilinear(x, y, self.weight, self.bias),
            weight=torch.randint(-3, 4, (7, 9, 5)),
            bias=torch.randint(-3, 4, (7,)),
        ),
        Input((2, 3, 9), torch.int64),
        Input((2, 3, 5), torch.int64),
    ),
    "bags of one size": (bag("sum"), BAGS),
    "bags of one size, means": (bag("mean"), BAGS),
    "bags of one size, maxima": (bag("max"), BAGS),
    "bags of one size with a padding, some of them empty": (
        Call(
            lambda self, i: tuple(
                F.embedding_bag(torch.where(i[:, :1] > 2, 3, i), self.weight, mode=mode, padding_idx=3)
                for mode in ("sum", "mean", "max")
            ),
            weight=nn.Parameter(torch.randn(9, 5)),
        ),
        BAGS,
    ),
    "bags of one size, weighted": (
        Call(lambda self, i, w: self.bag(i, None, w), bag=nn.EmbeddingBag(9, 5, mode="sum")),
        BAGS,
        (2, 4),
    ),
    "bags that begin where the input says": (
        Call(
            lambda self, i, lengths: tuple(
                F.embedding_bag(i.flatten(), self.weight, lengths[0].cumsum(0) - lengths[0], mode=mode)
                for mode in ("sum", "mean", "max")
            ),
            weight=nn.Parameter(torch.randn(9, 5)),
        ),
        BAGS,
        Input((2, 3), torch.int64, 0, 3),
    ),
    "bags by their own operator": (
        Call(
            lambda self, i: torch.embedding_bag(self.weight, i[0], constant(0, 3))[0],
            weight=nn.Parameter(torch.randn(9, 5)),
        ),
        BAGS,
    ),
    "bags whose last end is given": (
        Call(
            lambda self, i: F.embedding_bag(
                i[0], self.weight, torch.tensor([0, 1, 4]), mode="mean", include_last_offset=True
            ),
            weight=nn.Parameter(torch.randn(9, 5)),
        ),
        BAGS,
    ),
}

# What PyTorch's decompositions are made of; capture keeps the operators that users write whole.
DECOMPOSED = {
    "inverse, with its status": (lambda x: aten.linalg_inv_ex(spread(x, 5))[0], TOKENS),
    "cholesky, with its status": (lambda x: aten.linalg_cholesky_ex(spread(x, 5) @ spread(x, 5).mT)[0], TOKENS),
    "solve, with its factors": (lambda x: aten._linalg_solve_ex(spread(x, 5), x[:, :5, 5:7])[0], TOKENS),
    "determinants, with their factors": (
        lambda x: (aten._linalg_det(spread(x, 5))[0], *aten._linalg_slogdet(spread(x, 5))[:2]),
        TOKENS,
    ),
    "distances, forwards": (
        lambda x, y: (aten._cdist_forward(x, y[:, :4], 1.0, None), aten._pdist_forward(x[0], 3.0)),
        TOKENS,
        TOKENS,
    ),
    "a product of vectors": (lambda x: aten.vdot(x[0, 0], x[0, 1]), TOKENS),
    "an index within bounds": (lambda x, i: aten._unsafe_index(x, [None, i[0, :, 0]]), TOKENS, PICKS),
    "a write within bounds": (
        lambda x, y: aten._unsafe_index_put(x, [None, constant(3, 0)], y[:, :2]),
        TOKENS,
        TOKENS,
    ),
}
