"""Grouped and separable convolutions, as they are and as they are written out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Multiplier(nn.Module):
    """Depthwise with a multiplier, then grouped with fewer outputs than inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(4, 12, 3, padding=1, groups=4)
        self.grouped = nn.Conv2d(12, 6, 3, groups=3)

    def forward(self, x: Tensor) -> Tensor:
        return self.grouped(self.depthwise(x).relu())


class Deck(nn.Module):
    """Groups of two emulated: depthwise, split as a deck of cards, the halves added."""

    def __init__(self, channels: int, stem: bool):
        super().__init__()
        self.stem = nn.Conv2d(channels, channels, 1) if stem else nn.Identity()
        self.depthwise = nn.Conv2d(channels, 2 * channels, 3, padding=1, groups=channels)
        self.head = nn.Conv2d(channels, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.depthwise(self.stem(x)).chunk(2, 1)
        return self.head((first + second).relu())


class InParts(nn.Module):
    """Groups emulated: every part of the channels by a convolution of its own, joined."""

    def __init__(self, channels: int, parts: int = 3, activate: bool = False):
        super().__init__()
        self.activate = activate
        self.stem = nn.Conv2d(channels, 2 * parts, 1)
        self.convs = nn.ModuleList(nn.Conv2d(2, 4, 3, stride=2) for _ in range(parts))

    def forward(self, x: Tensor) -> Tensor:
        parts = self.stem(x).relu().chunk(len(self.convs), 1)
        made = [conv(part) for conv, part in zip(self.convs, parts, strict=True)]
        return torch.cat([part.relu() for part in made] if self.activate else made, 1)


class Separable(nn.Module):
    """Keras' SeparableConv2D(64, (1, 16), padding="same") written in PyTorch, with pads before and behind."""

    def __init__(self, pads: tuple[int, int] = (7, 8), bias: bool = False):
        super().__init__()
        self.pads = pads
        self.depthwise = nn.Conv2d(6, 6, (1, 16), groups=6, bias=bias)
        self.pointwise = nn.Conv2d(6, 8, 1, bias=False)
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.elu(self.pointwise(self.depthwise(F.pad(x, (*self.pads, 0, 0))))))


class SeparableSequence(nn.Module):
    """A depthwise convolution along one axis, then a pointwise one; both with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise, self.pointwise = nn.Conv1d(6, 6, 5, padding=2, groups=6), nn.Conv1d(6, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x)).relu()


class QuestionedSeparable(nn.Module):
    """A depthwise part of `outputs * depth` channels, then a pointwise one."""

    def __init__(self, inputs: int, outputs: int, depth: int):
        super().__init__()
        self.depthwise = nn.Conv2d(inputs, outputs * depth, (1, 16), groups=inputs, bias=False)
        self.pointwise = nn.Conv2d(outputs * depth, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(F.pad(x, (8, 7, 0, 0)))).relu()


class SizedPadding(nn.Module):
    """Pads computed from the input's size at every call, as TensorFlow's SAME has them (timm's Conv2dSame)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, 2), nn.Conv2d(6, 8, (4, 5), (2, 3))

    def padded(self, x: Tensor, conv: nn.Conv2d) -> Tensor:
        pads: list[int] = []
        for n, k, s in zip(x.shape[:1:-1], conv.kernel_size[::-1], conv.stride[::-1], strict=True):
            total = max((-(-n // s) - 1) * s + k - n, 0)
            pads += [total // 2, total - total // 2]
        return conv(F.pad(x, pads))

    def forward(self, x: Tensor) -> Tensor:
        return self.padded(self.padded(x, self.first).relu(), self.second)
