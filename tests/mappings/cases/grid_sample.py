"""Rows of `mappings/grid_sample.py`."""

import itertools

import torch.nn.functional as F
from equivalence import Call
from torch import nn

from cases.common import IMAGE, VOLUME, aten, parameter

GRID = (2, 5, 7, 2)

OF_VOLUME = (2, 3, 5, 7, 3)

MODES = ("bilinear", "nearest", "bicubic")

PADDINGS = ("zeros", "border", "reflection")


def sampled(mode="bilinear", padding="zeros", align_corners=False, scale=1.0):
    return lambda x, grid: F.grid_sample(x, grid * scale, mode, padding, align_corners)


GRIDS = {
    f"grid {mode}, {padding} outside, {'corners' if aligned else 'edges'} at 1": (
        sampled(mode, padding, aligned), IMAGE, GRID,
    )
    for mode, padding, aligned in itertools.product(MODES, PADDINGS, (True, False))
    if mode == "bilinear" or aligned == (padding == "border")
}  # fmt: skip

GRIDS |= {
    f"grid in a volume {mode}, {padding} outside": (sampled(mode, padding, mode == "nearest"), VOLUME, OF_VOLUME)
    for mode, padding in itertools.product(MODES[:2], PADDINGS)
}

GRIDS |= {
    f"grid {mode} far beyond what an integer holds, {padding} outside": (
        sampled(mode, padding, scale=scale), IMAGE, GRID,
    )
    for mode, padding, scale in (
        ("bilinear", "zeros", 1e12), ("nearest", "border", 1e12), ("bicubic", "zeros", 1e6),
    )
}  # fmt: skip

GRIDS |= {
    "grids by their own operators": (
        lambda x, g, v, h: (aten.grid_sampler_2d(x, g, 0, 1, False), aten.grid_sampler_3d(v, h, 1, 2, True)),
        IMAGE,
        GRID,
        VOLUME,
        OF_VOLUME,
    ),
    "grid on an image of one row": (sampled(padding="reflection", align_corners=True), (2, 6, 1, 8), (2, 1, 1, 2)),
    "grid on an image of one channel": (sampled("bicubic"), (2, 1, 4, 8), (2, 1, 4, 2)),
    "grid on whole pixels and corners": (
        lambda x, g: F.grid_sample(x, g.sign(), align_corners=True),
        IMAGE,
        GRID,
    ),
    "grid nearest, halfway between pixels": (
        lambda x, g: F.grid_sample(x, g.sign() * 0.25, "nearest", align_corners=False),
        (2, 6, 8, 8),
        GRID,
    ),
    "grid that is a parameter": (
        Call(lambda self, x: F.grid_sample(x, self.g.expand(x.shape[0], -1, -1, -1), align_corners=False),
             g=parameter(1, 5, 7, 2)),
        IMAGE,
    ),
    "grid repeated over the batch, bicubic": (
        Call(lambda self, x: F.grid_sample(x, self.g.repeat(x.shape[0], 1, 1, 1), "bicubic", align_corners=True),
             g=parameter(1, 5, 7, 2)),
        IMAGE,
    ),
    "grid repeated over rows too": (
        Call(lambda self, x: F.grid_sample(x, self.g.repeat(x.shape[0], 3, 1, 1), align_corners=True),
             g=parameter(1, 2, 7, 2)),
        IMAGE,
    ),
    "grid of each channel, repeated over the batch": (
        Call(lambda self, x: F.grid_sample(x.reshape(x.shape[0] * 6, 1, 9, 8), self.g.repeat(x.shape[0], 1, 1, 1),
                                           align_corners=False).view(x.shape[0], 6, 5, 7), g=parameter(6, 5, 7, 2)),
        IMAGE,
    ),
    "grid in a volume that is a parameter, nearest": (
        Call(lambda self, x: F.grid_sample(x, self.g.expand(x.shape[0], *[-1] * 4), "nearest", align_corners=False),
             g=parameter(1, 3, 5, 7, 3)),
        VOLUME,
    ),
    "grid predicted by a convolution": (
        Call(lambda self, x: F.grid_sample(self.a(x), self.b(x).permute(0, 2, 3, 1), align_corners=False),
             a=nn.Conv2d(6, 4, 3, padding=1), b=nn.Conv2d(6, 2, 3, padding=1)),
        IMAGE,
    ),
    "grid of a map of the image itself, sampled behind a permutation": (
        lambda x, g: F.grid_sample(x.permute(0, 3, 1, 2), g, align_corners=False).permute(0, 2, 3, 1),
        (2, 9, 8, 6),
        GRID,
    ),
    "affine map, edges at 1": (
        lambda x, t: F.grid_sample(x, F.affine_grid(t, x.shape, align_corners=False), align_corners=False),
        IMAGE,
        (2, 2, 3),
    ),
    "affine map to another size, corners at 1": (
        lambda x, t: F.grid_sample(x, F.affine_grid(t, (x.shape[0], 6, 5, 4), align_corners=True), align_corners=True),
        IMAGE,
        (2, 2, 3),
    ),
    "affine map of a volume": (
        lambda x, t: F.grid_sample(x, F.affine_grid(t, x.shape, align_corners=True), align_corners=False),
        VOLUME,
        (2, 3, 4),
    ),
    "affine map of one pixel": (
        lambda t: (F.affine_grid(t, (t.shape[0], 1, 1, 1), False), F.affine_grid(t, (t.shape[0], 1, 1, 5), True)),
        (2, 2, 3),
    ),
    "affine map that a Linear predicts, as a spatial transformer": (
        Call(
            lambda self, x: F.grid_sample(
                x, F.affine_grid(self.theta(x.flatten(1)).view(-1, 2, 3), x.shape, align_corners=False),
                align_corners=False,
            ),
            theta=nn.Linear(6 * 9 * 8, 6),
        ),
        IMAGE,
    ),
}  # fmt: skip
