"""Rows of `mappings/deform_conv.py`."""

from torch import nn
from torchvision_for_tests import load_torchvision

from cases.common import IMAGE


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
