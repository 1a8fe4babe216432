"""Space to depth and back, in the ways in which it is written."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BY_COLUMN = ((0, 0), (1, 0), (0, 1), (1, 1))  # as YOLOv5 joins the quadrants
BY_ROW = tuple(sorted(BY_COLUMN))  # as TensorFlow does


class Slices(nn.Module):
    """Focus: strided slices, joined."""

    def __init__(self, order: tuple[tuple[int, int], ...] = BY_COLUMN, block: int = 2):
        super().__init__()
        self.order, self.block = order, block

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[..., row :: self.block, column :: self.block] for row, column in self.order], 1)


class Tiles(nn.Module):
    """A packing of square blocks, which tile the image."""

    def __init__(self, block: int = 4):
        super().__init__()
        self.block = block


class Views(Tiles):
    """TResNet (arXiv 2003.13630): view, permute, view."""

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        n = self.block
        x = x.view(b, c, h // n, n, w // n, n).permute(0, 3, 5, 1, 2, 4).contiguous()
        return x.view(b, c * n * n, h // n, w // n)


class Windows(Tiles):
    """`unfold` whose windows tile the image."""

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        n = self.block
        return F.unfold(x, n, stride=n).view(b, c * n * n, h // n, w // n)


class Stem(nn.Module):
    """Space to depth, a convolution, and a network's beginning."""

    def __init__(self, pack: nn.Module, channels: int, kernel: int = 1):
        super().__init__()
        self.pack = pack
        self.conv = nn.Conv2d(channels, 8, kernel, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Conv2d(8, 5, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.silu(self.norm(self.conv(self.pack(x)))))


class Upscaler(nn.Module):
    """Sub-pixel convolution (arXiv 1609.05158)."""

    def __init__(self, factor: int = 3):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 3 * factor**2, 3, padding=1))
        self.shuffle = nn.PixelShuffle(factor)

    def forward(self, x: Tensor) -> Tensor:
        return self.shuffle(self.body(x))
