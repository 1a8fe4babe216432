"""The same movements as strangers write them: with indices, masks, views, stacks and empty tensors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sample_models.packing import BY_COLUMN


class Selected(nn.Module):
    """Focus by the indices of rows and columns."""

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = ([torch.arange(i, x.shape[d], 2) for i in (0, 1)] for d in (2, 3))
        return torch.cat([x.index_select(2, rows[r])[..., columns[c]] for r, c in BY_COLUMN], 1)


class Gathered(nn.Module):
    """Focus by the positions of pixels."""

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        at = torch.arange(h * w).view(h, w)
        places = [at[row::2, column::2].flatten().expand(b, c, -1) for row, column in BY_COLUMN]
        return torch.cat([x.flatten(2).gather(2, place) for place in places], 1).unflatten(2, (h // 2, w // 2))


class Unbound(nn.Module):
    """Focus by views and selections."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.unflatten(2, (-1, 2)).unbind(3)
        return torch.cat([row.unflatten(3, (-1, 2))[..., column] for column in (0, 1) for row in rows], 1)


class Filled(nn.Module):
    """Focus by assignments to an empty tensor."""

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        y = x.new_empty(b, 4 * c, h // 2, w // 2)
        for i, (row, column) in enumerate(BY_COLUMN):
            y[:, i * c : (i + 1) * c] = x[:, :, row::2, column::2]
        return y


class Masked(nn.Module):
    """Focus by masks of rows and columns."""

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (torch.arange(n) % 2 for n in x.shape[2:])
        return torch.cat([x[:, :, rows == r][..., columns == c] for r, c in BY_COLUMN], 1)


class PlacedByKernel(nn.Module):
    """Pixel shuffle by a transposed convolution with a fixed kernel of zeros and ones."""

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("kernel", torch.eye(4 * channels).view(4 * channels, channels, 2, 2))
        self.kernel: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, self.kernel, stride=2)


class HalfFocus(nn.Module):
    """Focus of one half of the channels beside a pool of the other."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(15, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        packed = torch.cat([a[..., row::2, column::2] for row, column in BY_COLUMN], 1)
        return self.conv(torch.cat([packed, F.max_pool2d(b, 2)], 1))


class Interleaved(nn.Module):
    """Pixel shuffle by stacks of the quadrants."""

    def forward(self, x: Tensor) -> Tensor:
        a, b, c, d = x.chunk(4, 1)
        top, bottom = torch.stack([a, b], -1).flatten(-2), torch.stack([c, d], -1).flatten(-2)
        return torch.stack([top, bottom], -2).flatten(-3, -2)


class Patches(nn.Module):
    """Patches as tokens, by an einsum."""

    def __init__(self, channels: int, patch: int, features: int):
        super().__init__()
        self.patch, self.embed = patch, nn.Linear(channels * patch**2, features)

    def forward(self, x: Tensor) -> Tensor:
        (b, c, h, w), p = x.shape, self.patch
        patches = torch.einsum("nchpwq->nhwpqc", x.view(b, c, h // p, p, w // p, p))
        return self.embed(patches.reshape(b, -1, c * p * p))


class MaskedShift(nn.Module):
    """Rolls; masks keep what did not wrap around."""

    def forward(self, x: Tensor) -> Tensor:
        _, c, h, w = x.shape
        group = torch.arange(c).view(-1, 1, 1) * 4 // c
        row, column = torch.arange(h).view(-1, 1), torch.arange(w)
        right = torch.where(column == 0, x, x.roll(1, 3))
        left = torch.where(column == w - 1, x, x.roll(-1, 3))
        down = torch.where(row == 0, x, x.roll(1, 2))
        up = torch.where(row == h - 1, x, x.roll(-1, 2))
        return torch.where(group == 0, right, torch.where(group == 1, left, torch.where(group == 2, down, up)))


class ClearedShift(nn.Module):
    """Rolls; what wraps around is set to zero."""

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        right, up = a.roll(1, 3), b.roll(-1, 2)
        right[..., 0], up[:, :, -1] = 0, 0
        return torch.cat([right, up], 1)


class ClampedShift(nn.Module):
    """Clamped positions as indices."""

    def forward(self, x: Tensor) -> Tensor:
        h, w = (torch.arange(n) for n in x.shape[2:])
        a, b, c, d = x.tensor_split(4, 1)
        left, right = (w - 1).clamp(min=0), (w + 1).clamp(max=x.shape[3] - 1)
        up, down = (h - 1).clamp(min=0), (h + 1).clamp(max=x.shape[2] - 1)
        return torch.cat([a[..., left], b[..., right], c[:, :, up], d[:, :, down]], 1)


class JoinedShift(nn.Module):
    """Narrowed groups, joined to their borders."""

    def forward(self, x: Tensor) -> Tensor:
        (h, w), (a, b, c, d) = x.shape[2:], x.chunk(4, 1)
        return torch.cat(
            [
                torch.cat([a[..., :1], a.narrow(3, 0, w - 1)], 3),
                torch.cat([b.narrow(3, 1, w - 1), b[..., -1:]], 3),
                torch.cat([c.narrow(2, 0, 1), c.narrow(2, 0, h - 1)], 2),
                torch.cat([d.narrow(2, 1, h - 1), d.narrow(2, h - 1, 1)], 2),
            ],
            1,
        )


class TokenShift(nn.Module):
    """S2-MLP's shift of a map with its channels last, between Linears, as its code has it."""

    def __init__(self, channels: int):
        super().__init__()
        self.before, self.after = nn.Linear(channels, channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        _, w, h, c = x.shape
        y = x.clone()
        y[:, 1:, :, : c // 4] = x[:, : w - 1, :, : c // 4]
        y[:, : w - 1, :, c // 4 : c // 2] = x[:, 1:, :, c // 4 : c // 2]
        y[:, :, 1:, c // 2 : c * 3 // 4] = x[:, :, : h - 1, c // 2 : c * 3 // 4]
        y[:, :, : h - 1, c * 3 // 4 :] = x[:, :, 1:, c * 3 // 4 :]
        return self.after(y)


class TemporalShift(nn.Module):
    """TSM's shift (arXiv 1811.08383) of a part of the channels from frame to frame, before a convolution of each."""

    def __init__(self, channels: int, fold: int = 4):
        super().__init__()
        self.fold, self.conv = channels // fold, nn.Conv2d(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        fold, y = self.fold, torch.zeros_like(x)
        y[:, :-1, :fold] = x[:, 1:, :fold]
        y[:, 1:, fold : 2 * fold] = x[:, :-1, fold : 2 * fold]
        y[:, :, 2 * fold :] = x[:, :, 2 * fold :]
        return self.conv(y.flatten(0, 1))


class Branches(nn.Module):
    """Parts of the channels, each by a convolution, a norm and an activation."""

    def __init__(self, parts: int, width: int):
        super().__init__()
        self.stem, self.out = nn.Conv2d(3, parts * width, 1), nn.Conv2d(parts * width, 4, 1)
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, bias=False), nn.BatchNorm2d(width), nn.SiLU())
            for _ in range(parts)
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = self.stem(x).chunk(len(self.branches), 1)
        return self.out(torch.cat([branch(part) for branch, part in zip(self.branches, parts, strict=True)], 1))
