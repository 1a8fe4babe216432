"""Space to depth and back, in the ways in which it is written."""

from __future__ import annotations

import itertools

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


class Blocks(nn.Module):
    """Strided slices along every spatial axis, the last axis first, joined."""

    def __init__(self, *steps: int):
        super().__init__()
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        places = itertools.product(*(range(step) for step in self.steps[::-1]))
        cuts = [
            tuple(slice(first, None, step) for first, step in zip(place[::-1], self.steps, strict=True))
            for place in places
        ]
        return torch.cat([x[:, :, *cut] for cut in cuts], 1)


class Quadrants(nn.Module):
    """The inverse of Focus: four parts of the channels assigned to every second row and column."""

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        y = x.new_zeros(b, c // 4, 2 * h, 2 * w)
        for part, (row, column) in zip(x.chunk(4, 1), BY_COLUMN, strict=True):
            y[..., row::2, column::2] = part
        return y


class PatchMerging(nn.Module):
    """Swin's (arXiv 2103.14030): slices of an image of tokens, channels last."""

    def __init__(self, channels: int, size: tuple[int, int]):
        super().__init__()
        self.size = size
        self.embed = nn.Linear(channels, channels)
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        (height, width), (b, _, c) = self.size, x.shape
        x = self.embed(x).view(b, height, width, c)
        x = torch.cat([x[:, row::2, column::2] for row, column in BY_COLUMN], -1).view(b, -1, 4 * c)
        return self.reduction(self.norm(x))


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


class ShuffledSum(nn.Module):
    """A residual block before a pixel shuffle, and a norm after it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = (
            nn.Conv2d(3, 64, 3, padding=1),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.Conv2d(16, 3, 3),
        )
        self.norm = nn.BatchNorm2d(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.norm(F.pixel_shuffle(x + self.body(x.relu()), 2)).relu())
