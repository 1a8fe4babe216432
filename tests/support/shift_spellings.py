"""The spellings of a spatial shift, for any groups of channels, distances and border."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision_for_tests import load_torchvision

MODES = {"zeros": "constant", "replicate": "replicate", "reflect": "reflect"}


@dataclass(frozen=True)
class Spec:
    """What is shifted: an image of `shape`; `sizes` channels each by (rows, columns)."""

    shape: tuple[int, int, int, int]
    sizes: tuple[int, ...]
    distances: tuple[tuple[int, int], ...]
    border: str

    @property
    def bounds(self) -> list[tuple[int, int]]:
        ends = [sum(self.sizes[: i + 1]) for i in range(len(self.sizes))]
        return list(zip([0, *ends], ends, strict=False))

    @property
    def reach(self) -> int:
        return max(abs(n) for by in self.distances for n in by)


def target(n: int) -> slice:
    return slice(n, None) if n > 0 else slice(None, n or None)


def origin(n: int) -> slice:
    return target(-n)


def by_slices(spec: Spec):
    """Where the border is "keep" it stays what it was, as in S2-MLP; "replicate" is the same for a distance of 1."""

    def forward(x: Tensor) -> Tensor:
        shifted = torch.zeros_like(x) if spec.border == "zeros" else torch.clone(x)
        for (first, end), (rows, columns) in zip(spec.bounds, spec.distances, strict=True):
            source = torch.clone(x[:, first:end, origin(rows), origin(columns)])
            shifted[:, first:end, target(rows), target(columns)] = source
        return shifted

    return forward


def by_roll(spec: Spec):
    r, (_, _, height, width) = spec.reach, spec.shape

    def forward(x: Tensor) -> Tensor:
        if spec.border == "circular":
            parts = zip(spec.bounds, spec.distances, strict=True)
            return torch.cat([torch.roll(x[:, a:b], by, (2, 3)) for (a, b), by in parts], 1)
        padded = F.pad(x, [r, r, r, r], mode=MODES[spec.border])
        parts = zip(spec.bounds, spec.distances, strict=True)
        rolled = torch.cat([torch.roll(padded[:, a:b], by, (2, 3)) for (a, b), by in parts], 1)
        return rolled[..., r : r + height, r : r + width]

    return forward


def padded_for(spec: Spec, x: Tensor) -> tuple[Tensor, int]:
    """What a spelling that has zeros outside of the image works on, and how far to crop the result."""
    r = spec.reach if spec.border == "replicate" else 0
    return (F.pad(x, [r, r, r, r], mode="replicate"), r) if r else (x, 0)


def by_deformable(spec: Spec):
    load_torchvision()
    from torchvision.ops import deform_conv2d

    _, channels, height, width = spec.shape

    def forward(x: Tensor) -> Tensor:
        padded, r = padded_for(spec, x)
        by = [by for by, n in zip(spec.distances, spec.sizes, strict=True) for _ in range(n)]
        offset = -torch.tensor(by).float().reshape(1, 2 * channels, 1, 1)
        offset = offset.repeat(1, 1, *padded.shape[2:]).expand(x.shape[0], -1, -1, -1)
        weight = torch.eye(channels).reshape(channels, channels, 1, 1)
        return deform_conv2d(padded, offset, weight)[..., r : r + height, r : r + width]

    return forward


def by_depthwise(spec: Spec):
    r, channels = spec.reach, spec.shape[1]

    def forward(x: Tensor) -> Tensor:
        kernels = []
        for (rows, columns), n in zip(spec.distances, spec.sizes, strict=True):
            kernels += [F.pad(torch.ones(1, 1, 1, 1), [r - columns, r + columns, r - rows, r + rows])] * n
        weight = torch.cat(kernels)
        if spec.border == "zeros":
            return F.conv2d(x, weight, padding=r, groups=channels)
        return F.conv2d(F.pad(x, [r, r, r, r], mode="replicate"), weight, groups=channels)

    return forward


def by_grid(spec: Spec, mode: str = "nearest"):
    _, _, height, width = spec.shape

    def forward(x: Tensor) -> Tensor:
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        parts = []
        for (first, end), (down, right) in zip(spec.bounds, spec.distances, strict=True):
            at = [2 * (columns - right) / (width - 1) - 1, 2 * (rows - down) / (height - 1) - 1]
            grid = torch.stack(at, -1)[None].expand(x.shape[0], -1, -1, -1)
            padding = "zeros" if spec.border == "zeros" else "border"
            parts.append(F.grid_sample(x[:, first:end], grid, mode, padding, align_corners=True))
        return torch.cat(parts, 1)

    return forward


def by_bilinear_grid(spec: Spec):
    return by_grid(spec, "bilinear")


# The borders that each can have.
SPELLINGS = {
    by_slices: ("zeros", "keep"),
    by_roll: ("zeros", "replicate", "reflect", "circular"),
    by_deformable: ("zeros", "replicate"),
    by_depthwise: ("zeros", "replicate"),
    by_grid: ("zeros", "replicate"),
    by_bilinear_grid: ("zeros", "replicate"),
}

FOUR = ((0, 1), (0, -1), (1, 0), (-1, 0))


def documents_tensor() -> Tensor:
    """The 1x8x5x5 tensor that the five spellings are shown on: channels of row and of column numbers in turn."""
    rows, columns = torch.meshgrid(torch.arange(5), torch.arange(5), indexing="ij")
    return torch.stack([rows, columns]).repeat(4, 1, 1)[None].float()


def documents_result() -> Tensor:
    """What they give: two channels each a pixel to the right, left, down and up, the border repeated."""
    x = documents_tensor()
    at = torch.arange(5)
    before, behind = (at - 1).clamp(min=0), (at + 1).clamp(max=4)
    right, left = x[:, 0:2][..., before], x[:, 2:4][..., behind]
    down, up = x[:, 4:6][:, :, before], x[:, 6:8][:, :, behind]
    return torch.cat([right, left, down, up], 1)
