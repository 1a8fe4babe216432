"""Rows of `mappings/normalization.py`."""

from equivalence import Call
from torch import nn

from cases.common import CUBE, IMAGE, VOLUME, split_channels

NORMS = {
    "group norm with Keras' epsilon, groups of neighbors": (nn.GroupNorm(3, 6), IMAGE),
    "group norm behind a convolution": (nn.Sequential(nn.Conv2d(6, 4, 3), nn.GroupNorm(2, 4, eps=0.2)), IMAGE),
    "group norm of one group": (nn.GroupNorm(1, 6), IMAGE),
    "group norm of a group for each channel, all sizes alike": (nn.GroupNorm(6, 6), CUBE),
    "group norm without scale and shift": (nn.GroupNorm(2, 6, affine=False), IMAGE),
    "group norm of sequences, features and volumes": (
        Call(
            lambda self, x: (self.norm(x), self.norm(x.flatten(2)), self.norm(x.mean((2, 3, 4)))),
            norm=nn.GroupNorm(2, 4),
        ),
        VOLUME,
    ),
    "group norm of channels that a view split, against the groups": (
        Call(lambda self, x: self.norm(split_channels(x)), norm=nn.GroupNorm(2, 6)),
        IMAGE,
    ),
    "group norm of channels that a view split, along the groups": (
        Call(lambda self, x: self.conv(self.norm(split_channels(x))), norm=nn.GroupNorm(3, 6), conv=nn.Conv2d(6, 4, 1)),
        IMAGE,
    ),
    "group norm of one column": (nn.GroupNorm(2, 6), (2, 6, 9, 1)),
    "instance norm": (nn.InstanceNorm2d(6), IMAGE),
    "instance norm with a scale, of channels that a view split": (
        Call(lambda self, x: self.norm(split_channels(x)), norm=nn.InstanceNorm2d(6, affine=True, eps=0.1)),
        IMAGE,
    ),
    "instance norm with the statistics of training": (
        nn.InstanceNorm2d(6, affine=True, track_running_stats=True),
        IMAGE,
    ),
    "instance norm of sequences and volumes": (
        Call(
            lambda self, x: (self.flat(x.flatten(2)), self.norm(x)),
            flat=nn.InstanceNorm1d(4),
            norm=nn.InstanceNorm3d(4),
        ),
        VOLUME,
    ),
    "RMS norm with the epsilon of its type": (nn.RMSNorm(8), IMAGE),
    "RMS norm of several axes, another epsilon": (nn.RMSNorm((9, 8), eps=0.3), IMAGE),
    "RMS norm without a scale, far from one": (
        Call(lambda self, x: self.norm(x * 1e-3), norm=nn.RMSNorm(8, elementwise_affine=False)),
        IMAGE,
    ),
    "RMS norm of the channels of a convolution": (
        Call(
            lambda self, x: self.norm(self.conv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
            conv=nn.Conv2d(6, 4, 3),
            norm=nn.RMSNorm(4),
        ),
        IMAGE,
    ),
    "local response norm": (nn.LocalResponseNorm(3, alpha=0.1, beta=0.6, k=0.8), IMAGE),
    "local response norm of a convolution, an even width": (
        nn.Sequential(nn.Conv2d(6, 4, 1), nn.LocalResponseNorm(2, 0.3)),
        IMAGE,
    ),
}
