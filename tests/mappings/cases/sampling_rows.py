"""Rows for the table of mappings: sampling at grids and offsets, and windows."""

import itertools

import torch
import torch.nn.functional as F
from equivalence import Call
from torch import nn
from torchvision_for_tests import load_torchvision

aten = torch.ops.aten
IMAGE = (2, 6, 9, 8)
EVEN = (2, 6, 10, 8)
VOLUME = (2, 4, 5, 7, 6)
GRID = (2, 5, 7, 2)
OF_VOLUME = (2, 3, 5, 7, 3)
MODES = ("bilinear", "nearest", "bicubic")
PADDINGS = ("zeros", "border", "reflection")


def parameter(*shape):
    return nn.Parameter(torch.zeros(shape))


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

WINDOWS = {
    "unfold into tiles": (lambda x: F.unfold(x, (2, 4), stride=(2, 4)), EVEN),
    "unfold into tiles behind a convolution": (
        nn.Sequential(nn.Conv2d(6, 4, 3, padding=1), nn.Unfold(2, stride=2)),
        EVEN,
    ),
    "unfold into one window": (lambda x: F.unfold(x, (10, 8), stride=(10, 8)), EVEN),
    "fold of tiles": (
        lambda x: F.fold(F.unfold(x, (5, 2), stride=(5, 2)).relu(), (10, 8), (5, 2), stride=(5, 2)),
        EVEN,
    ),
}  # fmt: skip


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


class Deformable(nn.Module):
    """Offsets, and the mask of the second version, come from convolutions of the same geometry."""

    def __init__(self, inputs, outputs, kernel, offset_groups=1, mask=False, **geometry):
        from torchvision.ops import DeformConv2d

        super().__init__()
        self.conv = DeformConv2d(inputs, outputs, kernel, **geometry)
        own = {name: geometry[name] for name in ("stride", "padding", "dilation") if name in geometry}
        window = self.conv.kernel_size[0] * self.conv.kernel_size[1] * offset_groups
        self.offset = nn.Conv2d(inputs, 2 * window, kernel, **own)
        self.mask = nn.Conv2d(inputs, window, kernel, **own) if mask else None

    def forward(self, x):
        return self.conv(x, self.offset(x) / 8, None if self.mask is None else self.mask(x).sigmoid())


def deformables():
    try:
        load_torchvision()
    except ImportError:  # where CI is set, other tests fail for it
        return {}
    return {
        "deformable, rows and columns of an offset swapped": (Deformable(6, 4, 3, padding=1), IMAGE),
        "deformable, with a mask": (Deformable(6, 4, 3, mask=True), IMAGE),
        "deformable, offset groups mixed up": (Deformable(6, 4, 3, 3, mask=True, padding=1), IMAGE),
        "deformable, rectangular, strided, padded, dilated": (
            Deformable(6, 4, (3, 2), 2, mask=True, stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
            IMAGE,
        ),
        "deformable, groups and an offset for each channel": (Deformable(6, 4, (1, 3), 6, groups=2, bias=False), IMAGE),
        "deformable, more groups than offset groups": (Deformable(6, 9, 3, 1, groups=3, padding=2), IMAGE),
        "deformable, between convolutions": (
            nn.Sequential(nn.Conv2d(6, 4, 1), Deformable(4, 8, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(2, 3, 1)),
            IMAGE,
        ),
    }


CASES = GRIDS | WINDOWS | PADDED | deformables()
