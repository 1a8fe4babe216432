"""Rows of `mappings/padding.py`."""

import torch
import torch.nn.functional as F
from equivalence import Call
from torch import nn

from cases.common import IMAGE, VOLUME, aten, parameter

PADS = {
    "pads that cut": (
        lambda x: (F.pad(x, (-1, 2)), F.pad(x, (-1, -2, 3, -4)), F.pad(x, (0, 0, 0, 0, -2, 1), value=0.5)),
        IMAGE,
    ),
    "pads that cut, behind a convolution": (
        Call(lambda self, x: F.pad(self.conv(x), (1, -2, -3, 1)), conv=nn.Conv2d(6, 4, 1)),
        IMAGE,
    ),
    "pads of sequences and volumes by reflection, replication and wrapping": (
        lambda x: tuple(
            F.pad(y, widths, mode=mode)
            for mode in ("reflect", "replicate", "circular")
            for y, widths in ((x[:, :, 0, 0], (3, 1)), (x[:, 0], (2, 4, 1, 0)), (x, (1, 0, 2, 3, 1, 2)))
        ),
        VOLUME,
    ),
    "pads by reflection and replication of what a space to depth has packed": (
        lambda x: [F.pad(F.pixel_unshuffle(x, 2), (1, 1, 1, 0), mode=mode) for mode in ("reflect", "replicate")],
        (2, 3, 8, 6),
    ),
    "pads by reflection as wide as they can be": (lambda x: F.pad(x, (7, 7, 8, 8), mode="reflect"), IMAGE),
    "pads by replication wider than the image": (lambda x: F.pad(x, (9, 20, 11, 0), mode="replicate"), IMAGE),
    "pads by wrapping as wide as the image": (lambda x: F.pad(x, (8, 7, 9, 0), mode="circular"), IMAGE),
    "pads of a decomposed program": (
        lambda x: (
            aten.reflection_pad1d(x[:, :, 0, 0], [2, 1]),
            aten.reflection_pad2d(x[:, 0], [1, 2, 3, 0]),
            aten.reflection_pad3d(x, [1, 2, 3, 0, 1, 0]),
            aten.replication_pad1d(x[:, :, 0, 0], [2, 1]),
            aten.replication_pad2d(x[:, 0], [1, 2, 3, 0]),
            aten.replication_pad3d(x, [1, 2, 3, 0, 1, 0]),
        ),
        VOLUME,
    ),
}

PADDED = {
    "convolution padded more behind, strided, in groups": (
        Call(
            lambda self, x: torch.ops.converter.padded_conv(x, self.w, self.b, [2, 1], [0, 2, 1, 3], [1, 1], 2),
            w=parameter(4, 3, 3, 2), b=parameter(4),
        ),
        IMAGE,
    ),
    "convolution of a sequence padded before, dilated": (
        Call(
            lambda self, x: torch.ops.converter.padded_conv(x, self.w, None, [1], [4, 0], [2], 1), w=parameter(4, 6, 3)
        ),
        (2, 6, 11),
    ),
}  # fmt: skip
