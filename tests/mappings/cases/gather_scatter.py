"""Rows of `mappings/gather_scatter.py`."""

import torch
import torch.nn.functional as F
from equivalence import Call, Input

from cases.common import IMAGE, PICKS, TIES, TOKEN_MASK, TOKENS, aten, constant, last

FEWER = Input((2, 4, 5), torch.int64, 0, 6)

GATHERS = {
    "gather along another dimension": (lambda x, i: x.gather(1, i), TOKENS, PICKS),
    "gather, the index smaller in another dimension": (lambda x, i: x.gather(1, i), TOKENS, FEWER),
    "gather of channels last": (
        lambda x, i: last(x).gather(1, i[:, :4, :, None].expand(-1, -1, 9, 5)),
        IMAGE,
        Input((2, 6, 9), torch.int64, 0, 6),
    ),
    "gather by a constant index": (
        lambda x: x.gather(2, torch.arange(4).expand(x.shape[0], 6, 4)),
        TOKENS,
    ),
    "take_along_dim, broadcast": (lambda x, i: torch.take_along_dim(x[0], i[0, :, :1], 0), TOKENS, PICKS),
    "take by several indices at once": (lambda x, i, j: x[:, i[0, :4, 0], j[-1, 0, :4]], TOKENS, PICKS, FEWER),
    "indices apart: their result goes first": (lambda x, i: x[:, i[0, :, 0], :, i[-1, :, 0]], IMAGE, PICKS),
    "negative indices": (lambda x, i: x[:, i[0, 0] - 6, i[-1, 1]], TOKENS, PICKS),
    "index of what lies channels last": (lambda x, i: last(x)[:, i[0, 0], i[-1, 0]], IMAGE, PICKS),
    "a constant indexed by the input": (
        Call(lambda self, x, i: x + self.table[i[:, :, 0], i[:, :, 1]].sum(), table=torch.randn(6, 7)),
        TOKENS,
        PICKS,
    ),
    "index_select by a scalar": (lambda x, i: x.index_select(1, i[0, 0, 0]), TOKENS, PICKS),
    "diagonals": (lambda x: (x.diagonal(0, 1, 2), x.diagonal(2, 1, 2), x.diagonal(-1, 2, 1)), IMAGE),
    "diagonal of channels last": (lambda x: last(x).diagonal(1, 2, 3), IMAGE),
    "windows that overlap": (lambda x: (x.unfold(2, 3, 2), last(x).unfold(2, 4, 1)), IMAGE),
    "as_strided": (lambda x: (x.sum(0, keepdim=True) + 1).sum(0).as_strided((3, 4), (2, 1), 3), TOKENS),
    "im2col of overlapping windows": (lambda x: F.unfold(x, (3, 2), 1, 1, 2), IMAGE),
    "im2col that leaves pixels out, of a value whose batch PyTorch's decomposition fixes": (
        lambda x: F.unfold(F.conv_transpose2d(x, torch.ones(6, 1, 2, 3), groups=6), 1, stride=2),
        IMAGE,
    ),
    "im2col that pads what an operator gives, which PyTorch's C++ does for one batch only": (
        lambda x: F.unfold(F.conv_transpose2d(x, torch.ones(6, 1, 2, 3), groups=6), 1, padding=1),
        IMAGE,
    ),
    "im2col of windows with holes, whose places are further apart than they": (
        lambda x: F.unfold(x, (2, 3), (3, 2), (1, 2), (2, 1)),
        IMAGE,
    ),
    "col2im of overlapping windows": (lambda x: F.fold(F.unfold(x, 3), (9, 8), 3), IMAGE),
}

SCATTERS = {
    "scatter": (lambda x, s: x.scatter(1, constant(3, 1)[None, :, None].expand(x.shape[0], 2, 11), s), TOKENS, TOKENS),
    "scatter of a number": (lambda x, i: x.scatter(1, i[:, :1], 2.5), TOKENS, PICKS),
    "scatter into channels last": (
        lambda x, i: last(x).scatter(1, i[:, :1, :, None].expand(-1, -1, 9, 8), 2.5),
        IMAGE,
        Input((2, 6, 9), torch.int64, 0, 6),
    ),
    "scatter that adds, several to one element": (lambda x, i, s: x.scatter_add(1, i, s[:, :4]), TOKENS, PICKS, TOKENS),
    "scatter that adds or multiplies": (
        lambda x, i, s: (x.scatter(1, i, s, reduce="add"), x.scatter(1, i[:, :1], 3.0, reduce="multiply")),
        TOKENS,
        PICKS,
        TOKENS,
    ),
    "scatter_reduce": (
        lambda x, i, s: tuple(x.scatter_reduce(1, i, s[:, :4], r) for r in ("sum", "prod", "amax", "amin", "mean")),
        TOKENS,
        PICKS,
        TOKENS,
    ),
    "scatter_reduce without what was there": (
        lambda x, i, s: tuple(
            x.scatter_reduce(1, i, s[:, :4], r, include_self=False) for r in ("sum", "prod", "amax", "amin", "mean")
        ),
        TOKENS,
        PICKS,
        TOKENS,
    ),
    "scatter_reduce of integers and booleans": (
        lambda x, m, i: (
            x.scatter_reduce(1, i, x[:, :4], "mean"),
            m.scatter_reduce(1, i, m[:, :4], "sum", include_self=False),
            x.scatter_reduce(1, i, x[:, :4], "amax", include_self=False),
        ),
        TIES,
        TOKEN_MASK,
        PICKS,
    ),
    "one hot": (lambda i: F.one_hot(i[:, :, 0], 6), PICKS),
    "index_put": (lambda x, i: aten.index_put(x, [None, constant(1, 4)], i[:, :1, :].float()), TOKENS, PICKS),
    "index_put that adds to one element twice": (
        lambda x, s: aten.index_put(x, [None, constant(1, 4, 1)], s[:, :3], True),
        TOKENS,
        TOKENS,
    ),
    "index_put by an index of the input": (
        lambda x, i: aten.index_put(x, [None, i[0, :2, 0]], torch.tensor(2.5)),
        TOKENS,
        Input((2, 4, 11), torch.int64, 0, 1),
    ),
    "write where a mask is true": (lambda x, m: x.index_put((m,), torch.tensor(2.5)), TOKENS, TOKEN_MASK),
    "write a row where a mask is true": (
        lambda x, m, s: x.index_put((m[:, :, 0],), s[0, 0]),
        TOKENS,
        TOKEN_MASK,
        (2, 6, 11),
    ),
    "add where a mask is true": (
        lambda x, m: x.index_put((m,), torch.tensor(2.5), accumulate=True),
        TOKENS,
        TOKEN_MASK,
    ),
    "masked_fill": (lambda x, m: x.masked_fill(m, -torch.inf), TOKENS, TOKEN_MASK),
    "index_add, index_copy, index_fill": (
        lambda x, s: (
            x.index_add(1, constant(2, 0, 2), s[:, :3], alpha=2),
            x.index_copy(1, constant(2, 0), s[:, :2]),
            x.index_fill(2, constant(5, 1), 7.0),
            x.index_fill(2, constant(5, 1), s[0, 0, 0]),
        ),
        TOKENS,
        TOKENS,
    ),
    "index_reduce": (
        lambda x, s: tuple(
            x.index_reduce(1, constant(2, 0, 2), s[:, :3], r, include_self=r != "prod")
            for r in ("prod", "amax", "amin", "mean")
        ),
        TOKENS,
        TOKENS,
    ),
    "slice_scatter with a step": (lambda x, s: x.slice_scatter(s[:, :3], 1, 1, 6, 2), TOKENS, TOKENS),
    "assignment to every other column": (lambda x, s: assigned(x, s), IMAGE, IMAGE),
    "select_scatter": (lambda x, s: x.select_scatter(s[:, 0], 1, -2), TOKENS, TOKENS),
    "diagonal_scatter": (
        lambda x, s: (
            x.diagonal_scatter(s[:, 0, :6, :].transpose(1, 2), 2, 1, 2),
            last(s).diagonal_scatter(s[:, :, 0, :5], 3, 2, 3),
        ),
        IMAGE,
        IMAGE,
    ),
}


def assigned(x, source):
    x = last(x)
    x[:, :, ::2, 1::3] = source[:, :, ::2, 1::3]
    return x
