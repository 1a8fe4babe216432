"""Rows for the table of mappings: positions and orders computed at run time, running extremes, linear algebra."""

import torch
import torch.nn.functional as F
from equivalence import Call, Input
from torch import nn

from converter.plan.registry import find_operator

aten = torch.ops.aten

TOKENS = (2, 6, 11)
IMAGE = (2, 6, 9, 8)
PICKS = Input((2, 4, 11), torch.int64, 0, 6)
FEWER = Input((2, 4, 5), torch.int64, 0, 6)
MASK = Input(TOKENS, torch.bool)
TIES = Input(TOKENS, torch.int64, -2, 3)


def constant(*values, dtype=torch.int64):
    return torch.tensor(values, dtype=dtype)


def last(x):
    """Channels last, so that what follows must not take the array for PyTorch's order."""
    return F.max_pool2d(x, 1)


def spread(x, size):
    """Square matrices that are far from singular."""
    return torch.tanh(x[..., :size, :size]) + 3 * torch.eye(size)


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
        MASK,
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
    "write where a mask is true": (lambda x, m: x.index_put((m,), torch.tensor(2.5)), TOKENS, MASK),
    "write a row where a mask is true": (
        lambda x, m, s: x.index_put((m[:, :, 0],), s[0, 0]),
        TOKENS,
        MASK,
        (2, 6, 11),
    ),
    "add where a mask is true": (lambda x, m: x.index_put((m,), torch.tensor(2.5), accumulate=True), TOKENS, MASK),
    "masked_fill": (lambda x, m: x.masked_fill(m, -torch.inf), TOKENS, MASK),
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


OF_ONE = {  # without a free batch among their dimensions
    "put": (
        lambda x, s: (x[0].put(constant(3, 60), s[0, 0, :2]), x[0].put(constant(3, 3), s[0, 0, :2], True)),
        TOKENS,
        TOKENS,
    ),
    "take": (lambda x, i: x[0].take(i[0, :2, :3]), TOKENS, PICKS),
    "masked_scatter": (lambda x, m: x[0].masked_scatter(m[0], 2 * x[-1]), TOKENS, MASK),
    "as_strided_scatter": (
        lambda x, s: aten.as_strided_scatter(x.sum(0), s[0, :3, :4], (3, 4), (5, 1), 3),
        TOKENS,
        TOKENS,
    ),
}

ORDERS = {
    "running maximum and minimum": (lambda x: (*x.cummax(1), *x.cummin(2)), TOKENS),
    "running extremes of equal elements: the last place": (lambda x: (*x.cummax(2), *x.cummin(1)), TIES),
    "running extremes of booleans": (lambda x: (*x.cummax(2), *x.cummin(1)), MASK),
    "running maximum of channels last": (lambda x: last(x).cummax(1), IMAGE),
    "running logsumexp": (lambda x: (x.logcumsumexp(1), (60 * x).logcumsumexp(2)), TOKENS),
    "running sum of a scalar": (lambda x: x.sum().cumsum(0), TOKENS),
    "searchsorted": (
        lambda s, x: (
            torch.searchsorted(s.sort(2)[0], x[:, :, :4].contiguous()),
            torch.searchsorted(s.sort(2)[0], x[:, :, :4].contiguous(), right=True, out_int32=True),
        ),
        TOKENS,
        TOKENS,
    ),
    "bucketize": (
        lambda x: (torch.bucketize(x, constant(-2, 0, 1)), torch.bucketize(x, constant(-2, 0, 1), right=True)),
        TIES,
    ),
    "mode": (lambda x: (x.mode(1)[0], x.mode(2, keepdim=True)[0]), TIES),
    "sorted booleans": (lambda x: x.sort(2)[0], MASK),
}

MATRICES = {
    "inverse, determinants": (
        lambda x: (
            torch.linalg.inv(spread(x, 5)),
            torch.linalg.det(spread(x, 5)),
            *torch.linalg.slogdet(spread(x, 4)),
        ),
        IMAGE,
    ),
    "inverse of channels last": (lambda x: torch.linalg.inv(spread(last(x), 5)), IMAGE),
    "cholesky": (
        lambda x: tuple(
            torch.linalg.cholesky(spread(x, 5) @ spread(x, 5).transpose(2, 3), upper=upper) for upper in (True, False)
        ),
        IMAGE,
    ),
    "solve": (
        lambda x: (
            torch.linalg.solve(spread(x, 5), x[..., :5, :3]),
            torch.linalg.solve(spread(x, 5), x[..., :3, :5], left=False),
            torch.linalg.solve(spread(x, 5), x[..., :5, 0]),
        ),
        IMAGE,
    ),
    "solve_triangular": (
        lambda x: tuple(
            torch.linalg.solve_triangular(spread(x, 5), b, upper=upper, left=left, unitriangular=ones)
            for upper, left, ones, b in (
                (True, True, False, x[..., :5, :3]),
                (False, True, True, x[..., :5, :3]),
                (True, False, True, x[..., :3, :5]),
                (False, False, False, x[..., :3, :5]),
            )
        ),
        IMAGE,
    ),
    "products of matrices and vectors": (
        Call(
            lambda self, x: (torch.mv(x[0, 0, :, :5], self.v), torch.dot(x[0, 0, 0, :5], self.v)),
            v=nn.Parameter(torch.zeros(5)),
        ),
        IMAGE,
    ),
}
if find_operator("aten::cholesky"):
    MATRICES["cholesky by its old name"] = (
        lambda x: tuple(torch.cholesky(spread(x, 5) @ spread(x, 5).mT, upper=upper) for upper in (True, False)),
        IMAGE,
    )

SPECTRA = {
    "singular values": (lambda x: (torch.linalg.svdvals(x), torch.linalg.svd(last(x))[1]), IMAGE),
    "norms and ranks by singular values": (
        lambda x: (
            torch.linalg.matrix_norm(x[0], "nuc"),
            torch.linalg.matrix_norm(x[0], 2),
            torch.linalg.cond(spread(x[0], 5)),
            torch.linalg.matrix_rank(x[0, :, :, :3] @ x[0, :, :, :3].mT),
        ),
        IMAGE,
    ),
    "eigenvalues, of the triangle that is read": (
        lambda x: (torch.linalg.eigvalsh(spread(x, 5)), torch.linalg.eigvalsh(spread(last(x), 5), UPLO="U")),
        IMAGE,
    ),
    "pseudo-inverse, singular values left out": (
        lambda x: (
            torch.linalg.pinv(x),
            torch.linalg.pinv(last(x), rtol=0.3),
            torch.pinverse(x, 0.2),
            torch.linalg.pinv(spread(x, 5), hermitian=True),
        ),
        IMAGE,
    ),
    "orthogonal and triangular": (
        lambda x: (
            *torch.linalg.qr(x),
            *torch.linalg.qr(last(x).mT, "complete"),
            torch.linalg.qr(x, "r")[1],
            *((torch.qr(x, some=False)[0],) if find_operator("aten::qr") else ()),
        ),
        IMAGE,
    ),
    "tensors inverted and solved": (
        lambda x: (
            torch.linalg.tensorinv(spread(x, 8)[0, 0].reshape(2, 4, 8), 2),
            torch.linalg.tensorsolve(spread(x, 8)[0, 0].reshape(8, 2, 4), x[0, 0, 0]),
        ),
        IMAGE,
    ),
}

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

NUMBERS = {
    "log gamma and digamma on both sides of zero, at poles, 1 and 2": (
        lambda x, n: (torch.lgamma(x), torch.digamma(x), torch.lgamma(n), torch.digamma(n / 2)),
        TOKENS,
        Input(TOKENS, torch.int64),
    ),
    "divisors and multiples of integers of any sign": (
        lambda n, m: (torch.gcd(n, m), torch.lcm(n, m)),
        Input(TOKENS, torch.int64),
        Input(TOKENS, torch.int64),
    ),
    "the sign of a number, -0.0 included": (
        lambda x, y: (torch.copysign(x, y.floor() * 0.0), torch.copysign(x, -2.0), torch.signbit(y.floor() * 0.0)),
        TOKENS,
        TOKENS,
    ),
    "signs and angles of integers": (
        lambda n, m: (n.signbit(), m.signbit(), n.angle(), (n / 2).log().angle(), (n * 0.0).angle()),
        TIES,
        MASK,
    ),
    "the inverse of erf, to its ends": (
        lambda x, n: (torch.erfinv(torch.tanh(x)), torch.erfinv(n / 4), torch.erfinv(n)),
        TOKENS,
        Input(TOKENS, torch.int64),
    ),
    "the next number": (lambda n: torch.nextafter(n.double(), torch.tensor(9.0).double()), Input(TOKENS, torch.int64)),
    "i0": (lambda x: torch.i0(x), TOKENS),
    "meshgrid, which PyTorch broadcasts": (
        lambda x, y: torch.meshgrid(x[0, 0], y[0, :, 0], indexing="ij"),
        TOKENS,
        TOKENS,
    ),
    "variance and mean of everything": (
        lambda x: (*aten.var_mean.default(x, False), *aten.std_mean.default(x)),
        TOKENS,
    ),
    "distances of rows": (
        lambda x, y: tuple(torch.cdist(x, y[:, :4], p) for p in (0.0, 1.0, 2.0, 3.0, torch.inf)),
        TOKENS,
        TOKENS,
    ),
    "distances within rows": (lambda x: (torch.pdist(x[0]), torch.pdist(x[-1], 1.0)), TOKENS),
    "sum of a batch of products": (
        lambda x, a, b: torch.addbmm(x[0, :, :6], a, b.mT, beta=0.5, alpha=2),
        TOKENS,
        TOKENS,
        TOKENS,
    ),
    "clamped integers and booleans": (
        lambda n, m: (n.clamp(-2, 3), n.clamp(min=0.5), torch.minimum(m, n < 1), torch.maximum(m, n > 0)),
        TIES,
        MASK,
    ),
    "padding of booleans, and beyond what is cut off": (
        lambda m, x: (F.pad(m, (1, 2), value=1), F.pad(x, (-11, 3), mode="replicate")),
        MASK,
        TOKENS,
    ),
    "hardtanh of integers, between bounds that are none": (lambda n: F.hardtanh(n, -1.5, 1.5), TIES),
    "mish far from zero": (lambda x: (F.mish(x), F.mish(40 * x)), TOKENS),
    "elementwise of integers and booleans": (
        lambda n, m: (n.exp(), n.ceil(), n.neg(), m.cos(), n.sigmoid(), n.abs(), m.add(m, alpha=0)),
        TIES,
        MASK,
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

CASES = DECOMPOSED | GATHERS | SCATTERS | OF_ONE | ORDERS | MATRICES | SPECTRA | WRITTEN_OUT | NUMBERS
