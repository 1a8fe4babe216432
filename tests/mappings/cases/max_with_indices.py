"""Rows of `mappings/max_with_indices.py`."""

import torch
import torch.nn.functional as F
from equivalence import Call, Input
from torch import nn

from cases.common import IMAGE, VOLUME


def ties(x):
    """Few different numbers, so that maxima are met several times."""
    return x.round()


def unpooled(x):
    greatest, places = F.max_pool3d(x, 2, return_indices=True)
    return F.max_unpool3d(greatest, places, 2, output_size=x.shape[2:])


POSITIONS = {
    "max unpool of what was pooled": (lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2), IMAGE),
    "max unpool of a volume": (unpooled, VOLUME),
    "max pool positions: the first of equals, in the flattened image": (
        lambda x: F.max_pool2d(ties(x), (3, 2), (2, 1), (1, 0), return_indices=True),
        IMAGE,
    ),
    "max pool positions, dilated, ceil_mode, below zero": (
        lambda x: F.max_pool2d(ties(x) - 20, 2, 3, 1, dilation=2, ceil_mode=True, return_indices=True),
        IMAGE,
    ),
    "max pool positions of integers": (
        lambda n: F.max_pool2d(torch.where(n > 2, torch.iinfo(n.dtype).min, n), 3, 2, 1, return_indices=True),
        Input(IMAGE, torch.int64),
    ),
    "max pool positions behind a convolution": (
        Call(lambda self, x: F.max_pool2d(self.conv(x), 2, return_indices=True), conv=nn.Conv2d(6, 4, 3)),
        IMAGE,
    ),
    "max pool positions where all is minus infinity, or NaN": (
        lambda x: F.max_pool2d(
            torch.where(x > 0, -torch.inf, torch.where(x < -4, torch.nan, x)), 3, 2, 1, return_indices=True
        ),
        IMAGE,
    ),
    "max pool positions, 1-D and 3-D": (
        lambda x: (
            *F.max_pool1d(ties(x.flatten(2)), 3, 2, 1, return_indices=True),
            *F.max_pool3d(ties(x), (2, 3, 1), (2, 1, 3), (1, 1, 0), return_indices=True),
        ),
        VOLUME,
    ),
    "max pool positions alone": (lambda x: F.max_pool2d(ties(x), 2, return_indices=True)[1], IMAGE),
    "adaptive max pool positions": (
        lambda x: (
            *F.adaptive_max_pool2d(ties(x), (4, 3), return_indices=True),
            *F.adaptive_max_pool1d(ties(x.flatten(2)), 7, return_indices=True),
            *F.adaptive_max_pool2d(x, 1, return_indices=True),
        ),
        IMAGE,
    ),
    "pools without a batch, whose channels are of an unknown number": (
        lambda x: (
            F.max_pool2d(x, 2),
            F.avg_pool2d(x, 3, 2, 1),
            F.adaptive_avg_pool2d(x, (4, 3)),
            F.lp_pool1d(x, 2, 3),
        ),
        (2, 9, 8),
    ),
}
