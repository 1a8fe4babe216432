"""Rows of `mappings/pooling.py`."""

import torch.nn.functional as F
from torch import nn

from cases.common import CUBE, EVEN, IMAGE, SEQUENCE, VOLUME, aten

POOLS = {
    "max pool padded with zeros": (lambda x: F.max_pool2d(x - 20, 3, 2, 1), IMAGE),
    "max pool taken for SAME on even sizes": (nn.MaxPool2d(3, 2, 1), EVEN),
    "max pool that is SAME": (nn.MaxPool2d(5, 1, 2), IMAGE),
    "max pool rectangular": (nn.MaxPool2d((3, 2), (1, 2), (1, 0)), IMAGE),
    "max pool whose stride is its kernel": (nn.MaxPool2d((2, 3)), IMAGE),
    "max pool ceil_mode": (nn.MaxPool2d(2, 2, ceil_mode=True), IMAGE),
    "max pool ceil_mode, padded, below zero": (lambda x: F.max_pool2d(x - 20, 3, 2, 1, ceil_mode=True), EVEN),
    "max pool ceil_mode, last window in the padding": (nn.MaxPool2d(2, 2, 1, ceil_mode=True), (2, 6, 9, 7)),
    "max pool ceil_mode, stride beyond the kernel": (nn.MaxPool2d(2, 3, ceil_mode=True), (2, 6, 10, 9)),
    "max pool 1-D, 2-D all sizes alike": (lambda x: (F.max_pool2d(x, 3, 2, 1), F.max_pool2d(x, (2, 3))), CUBE),
    "max pool 1-D": (
        lambda x: (F.max_pool1d(x, 3, 2, 1), F.max_pool1d(x - 20, 2, 2, 1, ceil_mode=True), F.max_pool1d(x, 4)),
        SEQUENCE,
    ),
    "average pool, no padding": (nn.AvgPool2d(3, 2), IMAGE),
    "average pool rectangular": (nn.AvgPool2d((3, 2), (1, 2)), IMAGE),
    "average pool counts its padding": (nn.AvgPool2d(3, 2, 1), EVEN),
    "average pool does not count its padding": (nn.AvgPool2d(3, 2, 1, count_include_pad=False), EVEN),
    "average pool SAME does not count its padding": (nn.AvgPool2d(3, 1, 1, count_include_pad=False), IMAGE),
    "average pool SAME counts its padding": (nn.AvgPool2d(3, 1, 1), IMAGE),
    "average pool ceil_mode: the overhang does not count": (nn.AvgPool2d(3, 2, ceil_mode=True), EVEN),
    "average pool ceil_mode, padding counts and overhang not": (nn.AvgPool2d(3, 2, 1, ceil_mode=True), EVEN),
    "average pool ceil_mode, neither counts": (nn.AvgPool2d(3, 2, 1, True, False), EVEN),
    "average pool ceil_mode, last window in the padding": (nn.AvgPool2d(2, 2, 1, True), (2, 6, 9, 7)),
    "average pool ceil_mode without overhang": (nn.AvgPool2d(3, 3, ceil_mode=True), (2, 4, 9, 6)),
    "average pool divisor": (nn.AvgPool2d((3, 2), 2, divisor_override=5), IMAGE),
    "average pool divisor, padded, ceil_mode": (nn.AvgPool2d(3, 2, 1, True, True, 2), EVEN),
    "average pool divisor, padding not counted": (nn.AvgPool2d(3, 1, 1, False, False, 7), IMAGE),
    "average pool 1-D": (
        lambda x: (F.avg_pool1d(x, 3, 2), F.avg_pool1d(x, 4, 2, 1), F.avg_pool1d(x, 3, 2, 1, False, False)),
        SEQUENCE,
    ),
    "average pool 1-D, ceil_mode": (
        lambda x: (F.avg_pool1d(x, 4, 3, ceil_mode=True), F.avg_pool1d(x, 4, 3, 2, True, False)),
        (2, 6, 12),
    ),
    "adaptive average pool to one": (nn.AdaptiveAvgPool2d(1), IMAGE),
    "adaptive average pool that divides": (nn.AdaptiveAvgPool2d((3, 4)), IMAGE),
    "adaptive average pool that does not divide": (nn.AdaptiveAvgPool2d((4, 3)), IMAGE),
    "adaptive average pool to more than there is": (nn.AdaptiveAvgPool2d((5, 11)), IMAGE),
    "adaptive average pool of one axis": (nn.AdaptiveAvgPool2d((None, 3)), IMAGE),
    "adaptive average pool that changes nothing": (nn.AdaptiveAvgPool2d((9, 8)), IMAGE),
    "adaptive average pool from one pixel": (nn.AdaptiveAvgPool2d((2, 3)), (2, 6, 1, 1)),
    "adaptive average pool 1-D": (
        lambda x: (F.adaptive_avg_pool1d(x, 1), F.adaptive_avg_pool1d(x, 4), F.adaptive_avg_pool1d(x[:, :, 1:], 5)),
        SEQUENCE,
    ),
    "adaptive average pool 3-D": (
        lambda x: (F.adaptive_avg_pool3d(x, 1), F.adaptive_avg_pool3d(x, (2, 3, 4))),
        VOLUME,
    ),
}

POOLS |= {
    "max pool 3-D": (nn.MaxPool3d((3, 2, 2), 2, (1, 0, 1)), VOLUME),
    "max pool 3-D, ceil_mode": (nn.MaxPool3d(2, ceil_mode=True), VOLUME),
    "average pool 3-D": (nn.AvgPool3d(2, (1, 2, 3)), VOLUME),
    "average pool 3-D, padding not counted, ceil_mode": (nn.AvgPool3d(3, 2, 1, True, False), VOLUME),
    "adaptive average pool 3-D that divides": (nn.AdaptiveAvgPool3d((5, 7, 3)), VOLUME),
}

POOLS |= {
    "max pool 3-D": (
        lambda x: (
            F.max_pool3d(x - 20, (3, 2, 2), 2, (1, 0, 1)),
            F.max_pool3d(x, 2, ceil_mode=True),
            F.max_pool3d(x, (1, 3, 2), 1),
        ),
        VOLUME,
    ),
    "max pool 3-D of a convolution, all sizes alike": (
        nn.Sequential(nn.Conv3d(4, 4, 1), nn.MaxPool3d(2, (1, 2, 3))),
        (2, 4, 4, 4, 4),
    ),
    "max pool dilated": (nn.MaxPool2d((3, 2), (2, 1), (1, 0), (2, 3)), IMAGE),
    "max pool dilated, padded, ceil_mode, below zero": (
        lambda x: F.max_pool2d(x - 20, 3, 2, 1, dilation=2, ceil_mode=True),
        IMAGE,
    ),
    "max pool dilated, 1-D and 3-D": (
        lambda x: (F.max_pool1d(x.flatten(2), 3, 2, 1, dilation=4), F.max_pool3d(x, 2, 1, 0, dilation=(1, 3, 2))),
        VOLUME,
    ),
    "max pool with indices that nobody uses": (
        lambda x: (
            F.max_pool2d(x[:, 0], 2, return_indices=True)[0],
            F.max_pool3d(x, 2, return_indices=True)[0],
        ),
        VOLUME,
    ),
    "pools without a batch": (
        lambda x: (
            x.mean((1, 2, 3), True)
            + sum(
                f(x[0]).mean()
                for f in (
                    nn.MaxPool2d(2),
                    nn.AvgPool2d(3, 2, 1),
                    nn.AdaptiveAvgPool2d((4, 3)),
                    nn.AdaptiveMaxPool2d((4, 3)),
                )
            )
        ),
        IMAGE,
    ),
    "average pool 3-D": (
        lambda x: (
            F.avg_pool3d(x, 2, (1, 2, 3)),
            F.avg_pool3d(x, 3, 2, 1, True, False),
            F.avg_pool3d(x, (2, 1, 3), 1, (1, 0, 1), divisor_override=4),
        ),
        VOLUME,
    ),
    "adaptive max pool": (
        lambda x: (
            F.adaptive_max_pool2d(x, 1),
            F.adaptive_max_pool2d(x, (3, 4)),
            F.adaptive_max_pool2d(x, (4, 3)),
            F.adaptive_max_pool2d(x, (None, 11)),
            F.adaptive_max_pool2d(x, (9, 8)) + 1,
        ),
        IMAGE,
    ),
    "adaptive max pool behind a convolution": (nn.Sequential(nn.Conv2d(6, 4, 3), nn.AdaptiveMaxPool2d((2, 5))), IMAGE),
    "adaptive pools of sequences and volumes": (
        lambda x: tuple(
            f(y, n)
            for f, y, n in (
                (F.adaptive_max_pool1d, x.flatten(2), 4),
                (F.adaptive_max_pool1d, x.flatten(2), 7),
                (F.adaptive_max_pool3d, x, (2, 3, 4)),
                (F.adaptive_max_pool3d, x, (5, 1, 3)),
                (F.adaptive_max_pool3d, x, 1),
                (F.adaptive_avg_pool3d, x, (5, 7, 3)),
                (F.adaptive_avg_pool3d, x, (2, 3, 4)),
            )
        ),
        VOLUME,
    ),
    "adaptive pools of a decomposed program": (
        lambda x: (aten._adaptive_avg_pool2d(x[:, 0], [3, 4]), aten._adaptive_avg_pool3d(x, [2, 7, 1])),
        VOLUME,
    ),
    "power-average pools": (
        lambda x: (F.lp_pool2d(x.abs(), 3, 2), F.lp_pool2d(x, 2, (3, 2), 2), F.lp_pool1d(x.flatten(2), 1, 4)),
        IMAGE,
    ),
}
