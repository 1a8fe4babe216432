"""Rows of `mappings/sort.py`."""

import torch

from cases.common import FLOATS, IMAGE, INTS, TIES, TOKEN_MASK, TOKENS, constant, last, of_convolution, split_channels

ORDERS = {
    "running maximum and minimum": (lambda x: (*x.cummax(1), *x.cummin(2)), TOKENS),
    "running extremes of equal elements: the last place": (lambda x: (*x.cummax(2), *x.cummin(1)), TIES),
    "running extremes of booleans": (lambda x: (*x.cummax(2), *x.cummin(1)), TOKEN_MASK),
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
    "sorted booleans": (lambda x: x.sort(2)[0], TOKEN_MASK),
}

ORDER = {
    "argmax and argmin, kept and not": (
        lambda x: (x.argmax(1), x.argmin(-1), x.argmax(2, keepdim=True), x.argmin(1, keepdim=True)),
        IMAGE,
    ),
    "argmax of equals is the first": (lambda n: (n.argmax(1), n.argmin(2), (n * 0).argmax(1)), INTS),
    "argmax of negative zeros": (lambda x: torch.cat([-x.relu() * 0, x.relu() * 0], 1).argmax(1), FLOATS),
    "argmax of everything": (lambda x: (x.argmax(), x.argmin(), x[:, 0].argmax(keepdim=True)), IMAGE),
    "argmax of a convolution": (of_convolution(lambda y: (y.argmax(1), y.flatten(1).argmax(1), y.argmin(2))), IMAGE),
    "argmax of what a view split": (lambda x: split_channels(x).argmax(1), IMAGE),
    "max and min with positions": (lambda x: (*x.max(1), *x.min(-1, keepdim=True)), IMAGE),
    "max and min, one of their results": (lambda x: (x.max(1)[0], x.min(2)[1], x.max(-1, keepdim=True).values), IMAGE),
    "max of a convolution over its channels": (of_convolution(lambda y: (*y.max(1), y.min(3)[0])), IMAGE),
    "topk, largest and smallest": (
        lambda x: (*x.topk(3, 1), *x.topk(2), *x.topk(2, 2, largest=False), x.topk(1, 1)[0]),
        IMAGE,
    ),
    "topk of integers": (lambda n: (n.topk(3, 1)[0], n.topk(3, 2, largest=False)[0]), INTS),
    "topk of a convolution": (of_convolution(lambda y: (*y.topk(2, 1), y.flatten(1).topk(5)[1])), IMAGE),
    "sorted up and down": (lambda x: (*x.sort(1), *x.sort(-1, descending=True), x.argsort(2), x.sort(1).values), IMAGE),
    "sorted with equals in their order": (
        lambda n: (
            *n.sort(dim=1, stable=True),
            *n.sort(dim=2, descending=True, stable=True),
            n.argsort(dim=1, stable=True),
        ),
        INTS,
    ),
    "medians and the k-th": (
        lambda x: (*x.median(1), *x.median(2, keepdim=True), *x.kthvalue(3, -1), x[:, 0, 0, 0] * x[0].median()),
        IMAGE,
    ),
}
