"""Shifts of channels in space, each as its paper's code has them, between layers with weights."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FOUR = ((0, 1), (0, -1), (1, 0), (-1, 0))


def one_hot_kernels(distances: list[tuple[int, int]], reach: int = 1) -> Tensor:
    """(C, 1, 3, 3): channel i comes from i's distance before, which is at most `reach` pixels."""
    kernel = torch.zeros(len(distances), 1, 2 * reach + 1, 2 * reach + 1)
    for channel, (down, right) in enumerate(distances):
        kernel[channel, 0, reach - down, reach - right] = 1
    return kernel


class Mixing(nn.Module):
    """A shift between two 1x1 convolutions, and a residual."""

    def __init__(self, shift: nn.Module, channels: int):
        super().__init__()
        self.before = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels), nn.ReLU())
        self.shift = shift
        self.after = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.after(self.shift(self.before(x)))


class SliceShift(nn.Module):
    """S2-MLP (arXiv 2106.07477): quarters of the channels assigned a pixel further, the border left as it was."""

    def forward(self, x: Tensor) -> Tensor:
        quarter = x.shape[1] // 4
        y = torch.clone(x)
        y[:, :quarter, :, 1:] = torch.clone(x[:, :quarter, :, :-1])
        y[:, quarter : 2 * quarter, :, :-1] = torch.clone(x[:, quarter : 2 * quarter, :, 1:])
        y[:, 2 * quarter : 3 * quarter, 1:] = torch.clone(x[:, 2 * quarter : 3 * quarter, :-1])
        y[:, 3 * quarter :, :-1] = torch.clone(x[:, 3 * quarter :, 1:])
        return y


class AliasedShift(nn.Module):
    """The same as S2-MLPv2 (arXiv 2108.01072) has it, without a copy: PyTorch reads elements that it wrote before."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1).contiguous()
        _, w, h, c = x.size()
        x[:, 1:, :, : c // 4] = x[:, : w - 1, :, : c // 4]
        x[:, : w - 1, :, c // 4 : c // 2] = x[:, 1:, :, c // 4 : c // 2]
        x[:, :, 1:, c // 2 : c * 3 // 4] = x[:, :, : h - 1, c // 2 : c * 3 // 4]
        x[:, :, : h - 1, 3 * c // 4 :] = x[:, :, 1:, 3 * c // 4 :]
        return x.permute(0, 3, 1, 2)


class SpatialMLP(nn.Module):
    """The S2-MLP block: the shift between Linears, channels last, with a norm."""

    def __init__(self, channels: int, shift: nn.Module | None = None):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.expand, self.reduce = nn.Linear(channels, 2 * channels), nn.Linear(2 * channels, channels)
        self.shift = shift or SliceShift()

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.expand(self.norm(x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)
        return x + self.reduce(self.shift(y).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class AxialShift(nn.Module):
    """AS-MLP (arXiv 2107.08391): padded, chunks rolled along one axis each by its own distance, cropped."""

    def __init__(self, dim: int, size: int = 5, mode: str = "constant"):
        super().__init__()
        self.dim, self.size, self.mode = dim, size, mode

    def forward(self, x: Tensor) -> Tensor:
        pad = self.size // 2
        height, width = x.shape[2:]
        padded = F.pad(x, (pad,) * 4, self.mode)
        parts = zip(torch.chunk(padded, self.size, 1), range(-pad, pad + 1), strict=True)
        rolled = torch.cat([torch.roll(part, distance, self.dim) for part, distance in parts], 1)
        return rolled.narrow(2, pad, height).narrow(3, pad, width)


class RolledShift(nn.Module):
    """The source document's second method: replicated border, `torch.roll` in four directions, cropped."""

    def __init__(self, mode: str = "replicate"):
        super().__init__()
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        parts = F.pad(x, [1, 1, 1, 1], mode=self.mode).chunk(4, 1)
        rolled = [torch.roll(part, by, (2, 3)) for part, by in zip(parts, FOUR, strict=True)]
        return torch.cat(rolled, 1)[..., 1 : 1 + height, 1 : 1 + width]


def cycle_offsets(channels: int, steps: int) -> Tensor:
    """(1, 2 * C, 1, 1): channel i is sampled at a distance along rows that goes round through `steps`."""
    offset = torch.zeros(1, 2 * channels, 1, 1)
    offset[0, 1::2, 0, 0] = ((torch.arange(channels) + 1) % steps - steps // 2).float()
    return offset


class CycleFC(nn.Module):
    """CycleMLP (arXiv 2107.10224): a 1x1 deformable convolution whose offsets go round through the channels."""

    def __init__(self, channels: int, steps: int = 3):
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.empty(channels, channels, 1, 1)),
            nn.Parameter(torch.zeros(channels)),
        )
        nn.init.kaiming_uniform_(self.weight)
        self.register_buffer("offset", cycle_offsets(channels, steps))
        self.offset: Tensor

    def forward(self, x: Tensor) -> Tensor:
        from torchvision.ops import deform_conv2d

        batch, _, height, width = x.shape
        return deform_conv2d(x, self.offset.expand(batch, -1, height, width), self.weight, self.bias)


class DeformedTaps(nn.Module):
    """A 3x3 deformable convolution whose places each read at a constant whole offset."""

    def __init__(self, channels: int, size: tuple[int, int]):
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.empty(channels, channels, 3, 3)),
            nn.Parameter(torch.zeros(channels)),
        )
        nn.init.kaiming_uniform_(self.weight)
        self.register_buffer("offset", (torch.arange(18) % 3 - 1.0).reshape(1, -1, 1, 1).repeat(1, 1, *size))
        self.offset: Tensor

    def forward(self, x: Tensor) -> Tensor:
        from torchvision.ops import deform_conv2d

        return deform_conv2d(x, self.offset.expand(x.shape[0], -1, -1, -1), self.weight, self.bias, padding=1)


class CycleShift(nn.Module):
    """The sampling of CycleFC alone: its kernel is the identity."""

    def __init__(self, channels: int, steps: int = 3):
        super().__init__()
        self.register_buffer("identity", torch.eye(channels).reshape(channels, channels, 1, 1))
        self.register_buffer("offset", cycle_offsets(channels, steps))
        self.identity: Tensor
        self.offset: Tensor

    def forward(self, x: Tensor) -> Tensor:
        from torchvision.ops import deform_conv2d

        batch, _, height, width = x.shape
        return deform_conv2d(x, self.offset.expand(batch, -1, height, width), self.identity)


class ConvolvedShift(nn.Module):
    """The document's fourth method: a fixed 3x3 depthwise convolution behind a replicated border."""

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("kernel", one_hot_kernels([by for by in FOUR for _ in range(channels // 4)]))
        self.kernel: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, [1, 1, 1, 1], mode="replicate"), self.kernel, groups=x.shape[1])


class AtInput(nn.Module):
    """A movement of the input itself, then a 1x1 convolution."""

    def __init__(self, movement: nn.Module, channels: int):
        super().__init__()
        self.movement, self.head = movement, nn.Conv2d(channels, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.movement(x))


class SampledShift(nn.Module):
    """The document's fifth method: `grid_sample` of each quarter on a constant grid."""

    def __init__(self, mode: str):
        super().__init__()
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        moved = []
        for part, (down, right) in zip(x.chunk(4, 1), FOUR, strict=True):
            at = 2 * torch.clamp(columns - right, 0, width - 1) / (width - 1) - 1
            down_at = 2 * torch.clamp(rows - down, 0, height - 1) / (height - 1) - 1
            grid = torch.stack([at, down_at], -1)[None].expand(x.shape[0], -1, -1, -1)
            moved.append(F.grid_sample(part, grid, mode=self.mode, align_corners=True))
        return torch.cat(moved, 1)


class GroupedShift(nn.Module):
    """Shift (arXiv 1711.08141): nine groups, each to one of the neighbors, zeros behind them."""

    def __init__(self, channels: int, reach: int = 1):
        super().__init__()
        steps = range(-reach, reach + 1)
        places = list(itertools.product(steps, steps))
        by = [places[i * len(places) // channels] for i in range(channels)]
        self.register_buffer("kernel", one_hot_kernels(by, reach))
        self.kernel: Tensor
        self.reach = reach

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel, padding=self.reach, groups=x.shape[1])


class FourConnectedShift(nn.Module):
    """4-connected shift residual network: five groups, one of which stays; written into a tensor of zeros."""

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[1] // 5
        y = torch.zeros_like(x)
        y[:, :n, :, :-1] = x[:, :n, :, 1:]
        y[:, n : 2 * n, :, 1:] = x[:, n : 2 * n, :, :-1]
        y[:, 2 * n : 3 * n, :-1] = x[:, 2 * n : 3 * n, 1:]
        y[:, 3 * n : 4 * n, 1:] = x[:, 3 * n : 4 * n, :-1]
        y[:, 4 * n :] = x[:, 4 * n :]
        return y


class SparseShift(nn.Module):
    """Sparse Shift (CVPR 2019): most channels stay, those that learned to move do so by whole pixels."""

    def __init__(self, channels: int):
        super().__init__()
        learned = [(0, 0)] * channels
        learned[2], learned[3], learned[channels - 1] = (1, -1), (0, 1), (-1, 0)
        self.register_buffer("kernel", one_hot_kernels(learned))
        self.kernel: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel, padding=1, groups=x.shape[1])


class ActiveShift(nn.Module):
    """Active Shift (arXiv 1806.07370): learned offsets between pixels, one for each channel, then a 1x1 convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.offset = nn.Parameter(torch.linspace(-0.9, 0.8, 2 * channels).reshape(1, -1, 1, 1))
        self.weight = nn.Parameter(torch.empty(channels, channels, 1, 1))
        nn.init.kaiming_uniform_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        from torchvision.ops import deform_conv2d

        batch, _, height, width = x.shape
        return deform_conv2d(x, self.offset.expand(batch, -1, height, width), self.weight)


class CyclicShift(nn.Module):
    """A map rolled along both of its axes, which are `dims`."""

    def __init__(self, by: int, dims: tuple[int, int] = (2, 3)):
        super().__init__()
        self.by, self.dims = by, dims

    def forward(self, x: Tensor) -> Tensor:
        return torch.roll(x, (self.by, self.by), self.dims)


class ShiftedWindows(nn.Module):
    """Swin (arXiv 2103.14030): windows of a map that is rolled, attention with a mask, rolled back."""

    def __init__(self, channels: int, size: tuple[int, int], window: int = 4, heads: int = 2):
        super().__init__()
        self.window, self.heads = window, heads
        self.away, self.back = CyclicShift(-(window // 2), (1, 2)), CyclicShift(window // 2, (1, 2))
        self.norm = nn.LayerNorm(channels)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        region = torch.zeros(size)
        cuts = (slice(0, -window), slice(-window, -window // 2), slice(-window // 2, None))
        for number, (rows, columns) in enumerate(itertools.product(cuts, cuts)):
            region[rows, columns] = number
        within = self.windows(region[None, :, :, None]).squeeze(-1)
        self.register_buffer("mask", -100.0 * (within[:, None] != within[:, :, None]).float())
        self.mask: Tensor

    def windows(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        n = self.window
        return x.reshape(b, h // n, n, w // n, n, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, n * n, c)

    def forward(self, x: Tensor) -> Tensor:
        y = x.permute(0, 2, 3, 1)
        b, h, w, c = y.shape
        n, heads = self.window, self.heads
        parts = self.windows(self.away(self.norm(y)))
        q, k, v = self.qkv(parts).reshape(-1, n * n, 3, heads, c // heads).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q @ k.transpose(-2, -1)) * (c // heads) ** -0.5
        scores = scores.reshape(b, -1, heads, n * n, n * n) + self.mask[:, None]
        mixed = scores.reshape(-1, heads, n * n, n * n).softmax(-1) @ v
        mixed = self.out(mixed.transpose(1, 2).reshape(-1, n * n, c))
        mixed = mixed.reshape(b, h // n, w // n, n, n, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        return (y + self.back(mixed)).permute(0, 3, 1, 2)
