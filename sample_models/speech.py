"""Sound: convolutions over time, recurrent layers, attention with relative positions, vocoders."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Recognizer(nn.Module):
    """Spectra (batch, mels, time) through 2-D convolutions and bidirectional GRUs to log probabilities of letters."""

    def __init__(self, mels: int = 16, letters: int = 7):
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(1, 4, (5, 3), (2, 2), (2, 1)), nn.BatchNorm2d(4), nn.Hardtanh(0, 20),
            nn.Conv2d(4, 6, 3, (2, 1), 1), nn.BatchNorm2d(6), nn.Hardtanh(0, 20),
        )  # fmt: skip
        self.read = nn.GRU(6 * mels // 4, 8, 2, bidirectional=True)
        self.norm, self.classify = nn.BatchNorm1d(8), nn.Linear(8, letters, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.convs(x[:, None])
        x, _ = self.read(x.flatten(1, 2).permute(2, 0, 1))
        forwards, backwards = x.chunk(2, -1)
        x = self.norm((forwards + backwards).permute(1, 2, 0))
        return self.classify(x.transpose(1, 2)).log_softmax(-1)


class Spotter(nn.Module):
    """Spectra (batch, mels, time) through 1-D convolutions and an LSTM, whose last state says which word it was."""

    def __init__(self, mels: int = 16, words: int = 5):
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv1d(mels, 12, 5, 2), nn.BatchNorm1d(12), nn.ReLU(), nn.MaxPool1d(2),
            nn.Conv1d(12, 12, 3, padding="same", groups=12), nn.Conv1d(12, 14, 1), nn.GELU(),
        )  # fmt: skip
        self.read, self.classify = nn.LSTM(14, 10, batch_first=True), nn.Linear(10, words)

    def forward(self, x: Tensor) -> Tensor:
        _, (state, _) = self.read(self.convs(x).transpose(1, 2))
        return self.classify(state[-1])


class Waves(nn.Module):
    """Samples (batch, time) to features: strided convolutions, and a transformer whose positions come from a grouped
    convolution with a normalized weight."""

    def __init__(self, width: int = 12):
        super().__init__()
        self.first, self.norm = nn.Conv1d(1, 8, 10, 5, bias=False), nn.GroupNorm(8, 8)
        self.second, self.project = nn.Conv1d(8, 8, 3, 2, bias=False), nn.Linear(8, width)
        position = nn.Conv1d(width, width, 6, padding=3, groups=3)
        self.position = nn.utils.parametrizations.weight_norm(position, dim=2)
        layer = nn.TransformerEncoderLayer(width, 2, 20, 0.0, activation="gelu", batch_first=True)
        self.encode = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.enter = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-5).sqrt()
        x = F.gelu(self.second(F.gelu(self.norm(self.first(x[:, None])))))
        x = self.project(self.enter(x.transpose(1, 2)))
        x = x + F.gelu(self.position(x.transpose(1, 2))[..., :-1]).transpose(1, 2)
        return self.encode(x)


class RelativeAttention(nn.Module):
    """Attention whose scores have a term for the distance of two times, brought to its place by padding and a view."""

    positions: Tensor

    def __init__(self, width: int, heads: int, times: int):
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.query, self.key, self.value, self.leave = (nn.Linear(width, width) for _ in range(4))
        self.place = nn.Linear(width, width, bias=False)
        self.content, self.distance = (nn.Parameter(torch.zeros(heads, self.size)) for _ in range(2))
        angle = torch.arange(times - 1, -times, -1)[:, None] * torch.exp(
            torch.arange(0, width, 2) * (-math.log(10000.0) / width)
        )
        self.register_buffer("positions", torch.stack((angle.sin(), angle.cos()), -1).flatten(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, times, _ = x.shape
        query, key, value = (
            layer(x).view(batch, times, self.heads, self.size) for layer in (self.query, self.key, self.value)
        )
        place = self.place(self.positions).view(-1, self.heads, self.size)
        content = torch.einsum("bihd,bjhd->bhij", query + self.content, key)
        distance = torch.einsum("bihd,phd->bhip", query + self.distance, place)
        shifted = F.pad(distance, (1, 0)).view(batch, self.heads, -1, times)[:, :, 1:].view(distance.shape)[..., :times]
        weights = ((content + shifted) / self.size**0.5).softmax(-1)
        return self.leave(torch.einsum("bhij,bjhd->bihd", weights, value).reshape(batch, times, -1))


class Conformer(nn.Module):
    """Spectra (batch, time, mels) through half a feed-forward, attention, a gated convolution, half a feed-forward."""

    def __init__(self, mels: int = 10, width: int = 12, times: int = 9):
        super().__init__()
        self.enter = nn.Linear(mels, width)
        self.before, self.behind = (
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 24), nn.SiLU(), nn.Dropout(0.1), nn.Linear(24, width))
            for _ in range(2)
        )
        self.norm, self.attend = nn.LayerNorm(width), RelativeAttention(width, 2, times)
        self.convolve = nn.Sequential(
            nn.Conv1d(width, 2 * width, 1), nn.GLU(1), nn.Conv1d(width, width, 5, padding=2, groups=width),
            nn.BatchNorm1d(width), nn.SiLU(), nn.Conv1d(width, width, 1),
        )  # fmt: skip
        self.gate, self.leave = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        x = x + 0.5 * self.before(x)
        x = x + self.attend(self.norm(x))
        x = x + self.convolve(self.gate(x).transpose(1, 2)).transpose(1, 2)
        return self.leave(x + 0.5 * self.behind(x))


class Causal(nn.Module):
    """A dilated depthwise convolution that sees the past only, between 1x1 ones; its result is added to its input."""

    def __init__(self, width: int, inside: int, dilation: int):
        super().__init__()
        self.enter, self.slope, self.norm = nn.Conv1d(width, inside, 1), nn.PReLU(), nn.GroupNorm(1, inside, eps=1e-8)
        self.look = nn.Conv1d(inside, inside, 3, dilation=dilation, groups=inside)
        self.leave, self.past = nn.Conv1d(inside, width, 1), 2 * dilation

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.slope(self.enter(x)))
        return x + self.leave(self.look(F.pad(y, (self.past, 0))))


class Separator(nn.Module):
    """Samples (batch, 1, time) of a mixture to `speakers` signals: causal dilated convolutions make masks."""

    def __init__(self, speakers: int = 2, width: int = 10):
        super().__init__()
        self.encode = nn.Conv1d(1, width, 8, 4, bias=False)
        self.blocks = nn.Sequential(*(Causal(width, 14, 2**i) for i in range(3)))
        self.mask = nn.Conv1d(width, speakers * width, 1)
        self.decode = nn.ConvTranspose1d(width, 1, 8, 4, bias=False)
        self.speakers = speakers

    def forward(self, x: Tensor) -> Tensor:
        coded = self.encode(x)
        batch, width, times = coded.shape
        masks = self.mask(self.blocks(coded)).view(batch, self.speakers, width, times).relu()
        masked = (masks * coded[:, None]).view(batch * self.speakers, width, times)
        return self.decode(masked).view(batch, self.speakers, -1)


def normed(conv: nn.Module) -> nn.Module:
    return nn.utils.parametrizations.weight_norm(conv)


class Dilated(nn.Module):
    """Convolutions of growing dilation, the result of each added to its input."""

    def __init__(self, width: int):
        super().__init__()
        self.convs = nn.ModuleList(normed(nn.Conv1d(width, width, 3, padding=d, dilation=d)) for d in (1, 3))

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = x + conv(F.leaky_relu(x, 0.1))
        return x


class Vocoder(nn.Module):
    """Spectra (batch, mels, time) to samples (batch, 1, 8 * time): transposed convolutions with normalized weights."""

    def __init__(self, mels: int = 10):
        super().__init__()
        self.enter, self.leave = normed(nn.Conv1d(mels, 12, 7, padding=3)), normed(nn.Conv1d(6, 1, 7, padding=3))
        ups = (nn.ConvTranspose1d(12, 8, 8, 4, 2), nn.ConvTranspose1d(8, 6, 8, 2, 3))
        self.ups = nn.ModuleList(map(normed, ups))
        self.blocks = nn.ModuleList([Dilated(8), Dilated(6)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for up, block in zip(self.ups, self.blocks, strict=True):
            x = block(up(F.leaky_relu(x, 0.1)))
        return torch.tanh(self.leave(F.leaky_relu(x)))
