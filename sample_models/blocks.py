"""The blocks of a YOLOv5-like network. Values are (batch, channels, height, width)."""

import torch
from torch import Tensor, nn


class ConvUnit(nn.Module):
    """Convolution, batch norm, SiLU. An odd `kernel_size` keeps height and width, divided by `stride`, rounded up."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)
        self.norm = nn.BatchNorm2d(out_channels, eps=1e-3, momentum=0.03)
        self.activation = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.norm(self.conv(x)))


class SeparableConvUnit(nn.Module):
    """Depthwise 3x3 and pointwise convolution with nothing between them, batch norm, SiLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__()
        self.depthwise = nn.Conv2d(in_channels, in_channels, 3, stride, 1, groups=in_channels, bias=False)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.activation = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.norm(self.pointwise(self.depthwise(x))))


class Focus(nn.Module):
    """Every 2x2 square of pixels into channels, the squares' pixels taken column by column; then a convolution.

    Height and width must be even.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1):
        super().__init__()
        self.unit = ConvUnit(4 * in_channels, out_channels, kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        pixels = [x[..., row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.unit(torch.cat(pixels, 1))


class Bottleneck(nn.Module):
    """1x1 and 3x3 convolution beside a shortcut."""

    def __init__(self, channels: int, shortcut: bool = True):
        super().__init__()
        self.reduce = ConvUnit(channels, channels)
        self.expand = ConvUnit(channels, channels, 3)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.expand(self.reduce(x))
        return x + y if self.shortcut else y


class CSP(nn.Module):
    """Cross stage partial block: half of the channels through bottlenecks, half past them, both joined by a 1x1."""

    def __init__(self, in_channels: int, out_channels: int, depth: int = 1, shortcut: bool = True):
        super().__init__()
        half = out_channels // 2
        self.through = ConvUnit(in_channels, half)
        self.past = ConvUnit(in_channels, half)
        self.bottlenecks = nn.Sequential(*(Bottleneck(half, shortcut) for _ in range(depth)))
        self.join = ConvUnit(2 * half, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.join(torch.cat([self.bottlenecks(self.through(x)), self.past(x)], 1))


class SPPF(nn.Module):
    """Spatial pyramid pooling: three 5x5 max pools in a row see 5, 9 and 13 pixels."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        half = in_channels // 2
        self.reduce = ConvUnit(in_channels, half)
        self.pool = nn.MaxPool2d(5, stride=1, padding=2)
        self.join = ConvUnit(4 * half, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        levels = [self.reduce(x)]
        for _ in range(3):
            levels.append(self.pool(levels[-1]))
        return self.join(torch.cat(levels, 1))
