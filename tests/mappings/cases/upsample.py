"""Rows of `mappings/upsample.py`."""

import torch.nn.functional as F
from torch import nn

from cases.common import CUBE, IMAGE, SEQUENCE, VOLUME, aten

RESAMPLING = {
    "nearest by a whole factor": (nn.Upsample(scale_factor=2), IMAGE),
    "nearest by different factors": (lambda x: F.interpolate(x, scale_factor=(3, 2)), IMAGE),
    "nearest to a size": (lambda x: F.interpolate(x, size=(18, 24)), IMAGE),
    "nearest to sizes that do not divide": (lambda x: F.interpolate(x, size=(13, 19)), IMAGE),
    "nearest down": (lambda x: (F.interpolate(x, size=(4, 3)), F.interpolate(x, scale_factor=0.5)), IMAGE),
    "nearest by a broken factor": (nn.Upsample(scale_factor=1.7), IMAGE),
    "nearest by the given factor, not the ratio": (lambda x: F.interpolate(x, scale_factor=2.1), (2, 6, 5, 7)),
    "nearest by the ratio, recomputed": (
        lambda x: F.interpolate(x, scale_factor=2.1, recompute_scale_factor=True),
        (2, 6, 5, 7),
    ),
    "nearest of one pixel": (lambda x: F.interpolate(x, size=(4, 3)), (2, 6, 1, 1)),
    "nearest behind a convolution": (nn.Sequential(nn.Conv2d(6, 4, 3), nn.Upsample(scale_factor=2)), IMAGE),
}


def resized(*sizes, **options):
    return lambda x: tuple(F.interpolate(x, size=size, **options) for size in sizes)


def scaled(*factors, **options):
    return lambda x: tuple(F.interpolate(x, scale_factor=factor, **options) for factor in factors)


RESAMPLING |= {
    "bilinear up, down and both": (resized((18, 16), (13, 5), (4, 3), (9, 11), mode="bilinear"), IMAGE),
    "bilinear with aligned corners": (resized((18, 16), (4, 3), (1, 1), mode="bilinear", align_corners=True), IMAGE),
    "bilinear by the given factor, not the ratio": (scaled(2, 1.7, (0.6, 2.3), mode="bilinear"), IMAGE),
    "bilinear by the ratio, recomputed": (scaled(1.7, mode="bilinear", recompute_scale_factor=True), IMAGE),
    "bilinear by a factor, aligned corners": (scaled(1.7, mode="bilinear", align_corners=True), IMAGE),
    "bilinear on the wrong axis, all sizes alike": (resized((6, 9), (9, 6), mode="bilinear"), CUBE),
    "bilinear of one pixel, and to one": (
        lambda x: (F.interpolate(x[:, :, :1, :1], (4, 3), mode="bilinear"), F.interpolate(x, (1, 1), mode="bilinear")),
        IMAGE,
    ),
    "bilinear behind a convolution": (
        nn.Sequential(nn.Conv2d(6, 4, 3), nn.UpsamplingBilinear2d(scale_factor=2)),
        IMAGE,
    ),
    "bilinear, antialiased": (resized((13, 5), (4, 11), mode="bilinear", antialias=True), IMAGE),
    "bilinear, antialiased, aligned corners": (
        resized((13, 5), (4, 11), mode="bilinear", antialias=True, align_corners=True),
        IMAGE,
    ),
    "bicubic by TensorFlow's a of -0.5": (resized((18, 16), (13, 5), (4, 3), mode="bicubic"), IMAGE),
    "bicubic with aligned corners, by a factor": (scaled(1.7, 0.6, mode="bicubic", align_corners=True), IMAGE),
    "bicubic, antialiased": (resized((13, 5), (4, 11), mode="bicubic", antialias=True), IMAGE),
    "linear": (
        lambda x: (
            F.interpolate(x, 17, mode="linear"),
            F.interpolate(x, 5, mode="linear", align_corners=True),
            F.interpolate(x, scale_factor=1.7, mode="linear"),
        ),
        SEQUENCE,
    ),
    "trilinear": (
        lambda x: (
            F.interpolate(x, (10, 4, 11), mode="trilinear"),
            F.interpolate(x, (3, 9, 6), mode="trilinear", align_corners=True),
            F.interpolate(x, scale_factor=(2, 1.3, 1), mode="trilinear"),
        ),
        VOLUME,
    ),
    "area": (resized((3, 4), (4, 5), mode="area"), IMAGE),
    "nearest of sequences and volumes": (
        lambda x: (
            F.interpolate(x.flatten(2), scale_factor=2),
            F.interpolate(x.flatten(2), 77),
            F.interpolate(x, scale_factor=(2, 1, 3)),
            F.interpolate(x, (3, 9, 6)),
        ),
        VOLUME,
    ),
    "nearest-exact by half pixels": (resized((18, 16), (13, 19), (4, 3), (3, 4), mode="nearest-exact"), IMAGE),
    "nearest-exact by a factor": (scaled(2, 1.7, 0.5, 1 / 3, mode="nearest-exact"), IMAGE),
    "nearest-exact of sequences and volumes": (
        lambda x: (
            F.interpolate(x.flatten(2), 77, mode="nearest-exact"),
            F.interpolate(x, (10, 7, 18), mode="nearest-exact"),
            F.interpolate(x, (3, 9, 6), mode="nearest-exact"),
        ),
        VOLUME,
    ),
    "nearest by whole factors down": (resized((3, 4), (9, 2)), IMAGE),
    "resizes of a decomposed program": (
        lambda x: (
            aten.upsample_bilinear2d(x[:, 0], [9, 4], False),
            aten.upsample_bilinear2d(x[:, 0], [9, 4], True, 1.9, 0.7),
            aten.upsample_bicubic2d(x[:, 0], [9, 4], False),
            aten._upsample_bilinear2d_aa(x[:, 0], [3, 4], False),
            aten._upsample_bicubic2d_aa(x[:, 0], [3, 4], False),
            aten.upsample_linear1d(x[:, 0, 0], [9], False),
            aten.upsample_trilinear3d(x, [3, 9, 4], False),
            aten.upsample_nearest1d(x[:, 0, 0], [9]),
            aten.upsample_nearest2d(x[:, 0], [9, 4], 1.3, 0.7),
            aten.upsample_nearest3d(x, [10, 14, 12]),
            aten._upsample_nearest_exact1d(x[:, 0, 0], [9]),
            aten._upsample_nearest_exact2d(x[:, 0], [9, 4]),
            aten._upsample_nearest_exact3d(x, [3, 9, 4]),
        ),
        VOLUME,
    ),
}
