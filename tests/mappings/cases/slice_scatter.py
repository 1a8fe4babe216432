"""Rows of `mappings/slice_scatter.py`."""

import torch

from cases.common import FLOATS, IMAGE, INTS, of_convolution, split_channels


def assigned(*places, value):
    """A module that writes `value(part)` to each of `places` of a copy of its input."""

    def forward(x):
        y = x.clone()
        for place in places:
            y[place] = value(x[place])
        return y

    return forward


ALL = slice(None)

WRITING = {
    "written first, in between and last": (
        lambda x: tuple(
            assigned((ALL, cut), value=lambda part: part.sigmoid() * 2)(x)
            for cut in (slice(0, 2), slice(1, 4), slice(-2, None), slice(0, 6), 3, -1)
        ),
        IMAGE,
    ),
    "written to the last axis, as a detector does": (
        assigned((..., slice(0, 2)), (..., slice(2, 4)), value=lambda part: (part * 2).exp()),
        IMAGE,
    ),
    "written to two axes at once": (assigned((ALL, slice(1, 3), slice(4, None)), value=torch.neg), IMAGE),
    "written with a number": (assigned((ALL, 0), (ALL, ALL, slice(2, 5)), value=lambda part: 1.5), IMAGE),
    "written with what broadcasts": (
        assigned((ALL, slice(0, 3)), value=lambda part: part.mean(1, keepdim=True)),
        IMAGE,
    ),
    "written into a convolution": (
        of_convolution(assigned((ALL, slice(1, 3)), (ALL, ALL, 0), value=lambda part: part.tanh())),
        IMAGE,
    ),
    "written into what a view split": (
        lambda x: assigned((ALL, slice(1, 3)), value=lambda part: part + 9)(split_channels(x)),
        IMAGE,
    ),
    "written into zeros": (
        lambda x: (lambda y: (y[:, 1:3].copy_(x[:, 2:4]), y)[1])(torch.zeros_like(x)),
        IMAGE,
    ),
    "written over, in another type": (
        lambda x, n: (x.clone().copy_(n), x.clone().fill_(2), n.clone().zero_(), n.clone().copy_(x)),
        FLOATS,
        INTS,
    ),
}
