"""Networks that sample a map where they themselves say."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SpatialTransformer(nn.Module):
    """A spatial transformer (arXiv 1506.02025): a network predicts an affine map, by which the image is sampled."""

    def __init__(self, channels: int, size: tuple[int, int]):
        super().__init__()
        self.locate = nn.Sequential(nn.Conv2d(channels, 4, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.theta = nn.Linear(16, 6)
        self.head = nn.Conv2d(channels, 5, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        identity = torch.eye(2, 3, dtype=x.dtype)
        theta = identity + 0.1 * torch.tanh(self.theta(self.locate(x))).view(-1, 2, 3)
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        return self.head(F.grid_sample(x, grid, align_corners=False))


def warped(x: Tensor, flow: Tensor, mode: str = "bilinear") -> Tensor:
    """`x` sampled where `flow`, in pixels of its own size, points from each pixel."""
    height, width = flow.shape[2:]
    rows = torch.linspace(-1.0, 1.0, height, dtype=flow.dtype).view(-1, 1).repeat(1, width)
    columns = torch.linspace(-1.0, 1.0, width, dtype=flow.dtype).repeat(height, 1)
    grid = torch.stack([columns, rows], 2)[None].repeat(x.shape[0], 1, 1, 1)
    grid = grid + flow.permute(0, 2, 3, 1) / torch.tensor([width, height], dtype=flow.dtype)
    return F.grid_sample(x, grid, mode=mode, align_corners=True)


class FlowAlignment(nn.Module):
    """Semantic Flow (arXiv 2002.10120): a coarse map is warped onto a fine one by a predicted flow."""

    def __init__(self, fine: int, coarse: int, channels: int = 6):
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(fine, channels, 1, bias=False), nn.Conv2d(coarse, channels, 1, bias=False)
        self.flow = nn.Conv2d(2 * channels, 2, 3, padding=1, bias=False)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        below, above = self.fine(fine), self.coarse(coarse)
        above_there = F.interpolate(above, size=below.shape[2:], mode="bilinear", align_corners=True)
        return below + warped(above, self.flow(torch.cat([above_there, below], 1)))


class AlignedAggregation(nn.Module):
    """AlignSeg (arXiv 2003.00872): two flows, by one of which each of two maps is warped before they are added."""

    def __init__(self, channels: int):
        super().__init__()
        self.flows = nn.Sequential(
            nn.Conv2d(2 * channels, channels, 1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, 4, 3, padding=1),
        )
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        high_there = F.interpolate(high, size=low.shape[2:], mode="bilinear", align_corners=True)
        flows = self.flows(torch.cat([low, high_there], 1))
        return self.out(warped(high_there, flows[:, :2]) + warped(low, flows[:, 2:]))


class DeformableBlock(nn.Module):
    """Deformable ConvNets v1 (arXiv 1703.06211), and v2 (1811.11168), which weighs each sample by a mask."""

    def __init__(self, channels: int, outputs: int, masked: bool, offset_groups: int = 1):
        super().__init__()
        from torchvision.ops import DeformConv2d

        self.stem = nn.Conv2d(channels, 8, 3, padding=1)
        self.offset = nn.Conv2d(8, 18 * offset_groups, 3, stride=2, padding=2, dilation=2)
        self.mask = nn.Conv2d(8, 9 * offset_groups, 3, stride=2, padding=2, dilation=2) if masked else None
        self.deform = DeformConv2d(8, outputs, 3, stride=2, padding=2, dilation=2)
        self.head = nn.Conv2d(outputs, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        mask = None if self.mask is None else self.mask(x).sigmoid()
        return self.head(self.deform(x, self.offset(x), mask).relu())
