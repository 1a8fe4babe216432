"""A value for each pixel or voxel: U-Nets, attention gates, volumes, super-resolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Twice(nn.Sequential):
    def __init__(self, into: int, out: int):
        super().__init__(
            nn.Conv2d(into, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(inplace=True),
            nn.Conv2d(out, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(inplace=True),
        )  # fmt: skip


class UNet(nn.Module):
    """Down with max pools, up by transposed convolutions or bilinear upsampling, padded to what was skipped.

    Images (batch, 3, height, width), of any size from 8, to logits (batch, classes, height, width).
    """

    def __init__(self, classes: int = 2, bilinear: bool = False):
        super().__init__()
        widths = (8, 12, 16)
        self.down = nn.ModuleList(Twice(a, b) for a, b in zip((3, *widths), widths, strict=False))
        self.bottom = Twice(widths[-1], 20)
        before = (20, *widths[:0:-1])
        self.up = nn.ModuleList(
            nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), nn.Conv2d(a, b, 1))
            if bilinear
            else nn.ConvTranspose2d(a, b, 2, 2)
            for a, b in zip(before, widths[::-1], strict=True)
        )
        self.join = nn.ModuleList(Twice(2 * w, w) for w in widths[::-1])
        self.classify = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skipped = []
        for down in self.down:
            x = down(x)
            skipped.append(x)
            x = F.max_pool2d(x, 2)
        x = self.bottom(x)
        for up, join, skip in zip(self.up, self.join, skipped[::-1], strict=True):
            x = up(x)
            high, wide = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
            x = F.pad(x, [wide // 2, wide - wide // 2, high // 2, high - high // 2])
            x = join(torch.cat([skip, x], 1))
        return self.classify(x)


class Gate(nn.Module):
    """Skipped features scaled by what a coarser map makes of them."""

    def __init__(self, skip: int, coarse: int, width: int):
        super().__init__()
        self.skip, self.coarse = nn.Conv3d(skip, width, 2, 2, bias=False), nn.Conv3d(coarse, width, 1)
        self.score = nn.Conv3d(width, 1, 1)

    def forward(self, skip: Tensor, coarse: Tensor) -> Tensor:
        score = self.score(F.relu(self.skip(skip) + self.coarse(coarse))).sigmoid()
        return skip * F.interpolate(score, size=skip.shape[2:], mode="trilinear", align_corners=False)


class Residual(nn.Module):
    def __init__(self, into: int, out: int, stride: int | tuple[int, int, int] = 1):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv3d(into, out, 3, stride, 1), nn.InstanceNorm3d(out, affine=True), nn.PReLU(),
            nn.Conv3d(out, out, 3, 1, 1), nn.InstanceNorm3d(out, affine=True),
        )  # fmt: skip
        self.skip = nn.Conv3d(into, out, 1, stride) if into != out or stride != 1 else nn.Identity()
        self.activate = nn.PReLU(out)

    def forward(self, x: Tensor) -> Tensor:
        return self.activate(self.body(x) + self.skip(x))


class VolumeSegmenter(nn.Module):
    """Scans (batch, 1, depth, height, width), multiples of 4, to logits of that size on two levels."""

    def __init__(self, classes: int = 3):
        super().__init__()
        self.first, self.second, self.third = Residual(1, 6), Residual(6, 10, 2), Residual(10, 12, (1, 2, 2))
        self.gate = Gate(6, 10, 4)
        self.up2, self.up1 = nn.ConvTranspose3d(12, 10, (1, 2, 2), (1, 2, 2)), nn.ConvTranspose3d(10, 6, 2, 2)
        self.join2, self.join1 = Residual(20, 10), Residual(12, 6)
        self.classify2, self.classify1 = nn.Conv3d(10, classes, 1), nn.Conv3d(6, classes, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = self.first(x)
        second = self.second(first)
        y = self.join2(torch.cat((self.up2(self.third(second)), second), 1))
        coarse = F.interpolate(self.classify2(y), scale_factor=2, mode="trilinear", align_corners=False)
        y = self.join1(torch.cat((self.up1(y), self.gate(first, y)), 1))
        return self.classify1(y), coarse


class VolumeTransformer(nn.Module):
    """A volume cut into patches, a transformer over them, and a decoder that puts them together again."""

    def __init__(self, size: Sequence[int] = (8, 12, 16), patch: int = 4, width: int = 24, classes: int = 2):
        super().__init__()
        self.grid = [n // patch for n in size]
        self.embed = nn.Conv3d(1, width, patch, patch)
        self.position = nn.Parameter(torch.zeros(1, self.grid[0] * self.grid[1] * self.grid[2], width))
        layer = nn.TransformerEncoderLayer(width, 3, 32, 0.0, activation="gelu", batch_first=True, norm_first=True)
        self.encode = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.decode = nn.Sequential(
            nn.ConvTranspose3d(width, 8, 2, 2),
            nn.InstanceNorm3d(8),
            nn.LeakyReLU(),
            nn.ConvTranspose3d(8, classes, 2, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(-1, -2) + self.position
        y = self.norm(self.encode(tokens))
        return self.decode(y.view(y.shape[0], *self.grid, -1).permute(0, 4, 1, 2, 3).contiguous())


class Dense(nn.Module):
    """Each convolution sees all before it; the result is added to the input, scaled."""

    def __init__(self, width: int = 12, growth: int = 6):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(width + i * growth, growth, 3, padding=1) for i in range(3))
        self.join = nn.Conv2d(width + 3 * growth, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        held = [x]
        for conv in self.convs:
            held.append(F.leaky_relu(conv(torch.cat(held, 1)), 0.2))
        return self.join(torch.cat(held, 1)) * 0.2 + x


class Attentive(nn.Module):
    """Channels scaled by what a global pool makes of them."""

    def __init__(self, width: int = 12):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)
        )
        self.scale = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, 4, 1), nn.ReLU(), nn.Conv2d(4, width, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return x + y * self.scale(y)


class SuperResolution(nn.Module):
    """Images (batch, 3, height, width) of 0 to 1, the mean of a data set taken off, to `scale` times that size.

    Pixels come from a pixel shuffle, or from nearest upsampling between convolutions; a bicubic upsampling is added.
    """

    mean: Tensor

    def __init__(self, scale: int = 2, nearest: bool = False):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.45, 0.44, 0.40]).view(1, 3, 1, 1))
        self.head, self.body = nn.Conv2d(3, 12, 3, padding=1), nn.Sequential(Dense(), Attentive(), Attentive())
        shuffled = (nn.Conv2d(12, 12 * scale**2, 3, padding=1), nn.PixelShuffle(scale))
        enlarged = (nn.Upsample(scale_factor=scale, mode="nearest"), nn.Conv2d(12, 12, 3, padding=1), nn.LeakyReLU(0.2))
        self.tail = nn.Sequential(*(enlarged if nearest else shuffled), nn.Conv2d(12, 3, 3, padding=1))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        x = x - self.mean
        y = self.head(x)
        y = self.tail(self.body(y) + y)
        plain = F.interpolate(x, scale_factor=self.scale, mode="bicubic", align_corners=False)
        return (y + plain + self.mean).clamp(0, 1)
