"""The networks on tokens, windows and time steps."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mutations.architectures import (
    MLP,
    Architecture,
    FocusDetector,
    MobileNet,
    PlainCNN,
    ResNeXt,
    ShuffleNet,
    SuperResolution,
    UNet,
    WaveNet,
)


class VisionTransformer(nn.Module):
    """Patches, a class token, positions, attention by PyTorch's function, layer scale."""

    def __init__(self, width: int = 12, heads: int = 3):
        super().__init__()
        self.heads = heads
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token, self.positions = nn.Parameter(torch.zeros(1, 1, width)), nn.Parameter(torch.zeros(1, 17, width))
        self.before, self.after = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.5))
        self.head = nn.Linear(width, 5)

    def attention(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), 1) + self.positions
        x = x + self.scale * self.attention(self.before(x))
        x = x + self.narrow(F.gelu(self.wide(self.after(x))))
        return self.head(x[:, 0])


class Windows(nn.Module):
    """Swin's shifted windows with relative positions and a mask, then merged patches."""

    def __init__(self, width: int = 8, heads: int = 2, window: int = 4, size: int = 8):
        super().__init__()
        self.heads, self.window, self.size = heads, window, size
        self.patches, self.norm = nn.Conv2d(3, width, 2, 2), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.relative = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        place = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        distance = (place[:, :, None] - place[:, None]) + window - 1
        self.register_buffer("index", distance[0] * (2 * window - 1) + distance[1])
        self.register_buffer("mask", self.shift_mask())
        self.merge = nn.Linear(4 * width, 2 * width, bias=False)
        self.last, self.head = nn.LayerNorm(2 * width), nn.Linear(2 * width, 5)

    def shift_mask(self) -> Tensor:
        regions = torch.zeros(1, self.size, self.size, 1)
        cuts = (slice(0, -self.window), slice(-self.window, -2), slice(-2, None))
        for number, (rows, columns) in enumerate((r, c) for r in cuts for c in cuts):
            regions[:, rows, columns] = number
        flat = self.cut(regions)[..., 0]
        return (flat[:, None] != flat[:, :, None]).float().mul(-100.0)

    def cut(self, x: Tensor) -> Tensor:
        batch, _, _, channels = x.shape
        n, w = self.size // self.window, self.window
        return x.view(batch, n, w, n, w, channels).transpose(2, 3).reshape(-1, w * w, channels)

    def join(self, x: Tensor, batch: int) -> Tensor:
        n, w = self.size // self.window, self.window
        return x.view(batch, n, n, w, w, -1).transpose(2, 3).reshape(batch, self.size, self.size, -1)

    def attention(self, x: Tensor) -> Tensor:
        windows, tokens, width = x.shape
        q, k, v = self.qkv(x).view(windows, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = (q * (width // self.heads) ** -0.5) @ k.transpose(-2, -1)
        scores = scores + self.relative[self.index.flatten()].view(tokens, tokens, -1).permute(2, 0, 1)
        count = len(self.mask)
        scores = scores.view(-1, count, self.heads, tokens, tokens) + self.mask[:, None]
        return self.out((scores.view(-1, self.heads, tokens, tokens).softmax(-1) @ v).transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).permute(0, 2, 3, 1)
        shifted = torch.roll(self.norm(x), (-2, -2), (1, 2))
        back = torch.roll(self.join(self.attention(self.cut(shifted)), x.shape[0]), (2, 2), (1, 2))
        x = x + back
        x = torch.cat((x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]), -1)
        return self.head(self.last(self.merge(x)).mean((1, 2)))


class Recurrent(nn.Module):
    """A bidirectional LSTM of two layers behind a convolution over time."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(4, 6, 3, padding=1)
        self.lstm = nn.LSTM(6, 5, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, (hidden, _) = self.lstm(torch.relu(self.conv(x)).transpose(1, 2))
        return self.head(y), hidden[-1] * hidden[-2]


class Gated(nn.Module):
    """A GRU whose outputs are pooled by attention, beside a plain recurrent layer."""

    def __init__(self):
        super().__init__()
        self.gru, self.rnn = nn.GRU(6, 8, batch_first=True), nn.RNN(6, 8, batch_first=True)
        self.score, self.head = nn.Linear(8, 1), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.gru(x)
        pooled = (self.score(torch.tanh(y)).softmax(1) * y).sum(1)
        return self.head(torch.cat((pooled, self.rnn(x)[0][:, -1]), 1))


class Language(nn.Module):
    """Token and position embeddings, masked attention, a tied head; scores and the tokens chosen."""

    def __init__(self, tokens: int = 40, width: int = 8, length: int = 7):
        super().__init__()
        self.tokens, self.places = nn.Embedding(tokens, width, padding_idx=0), nn.Embedding(length, width)
        self.norm, self.last = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.wide, self.narrow = nn.Linear(width, 16), nn.Linear(16, width)
        self.register_buffer("places_in_order", torch.arange(length))
        with torch.no_grad():
            self.tokens.weight[0] = 0.3 * torch.randn(width)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        length = tokens.shape[1]
        x = self.tokens(tokens) + self.places(self.places_in_order)
        mask = torch.ones(length, length, dtype=torch.bool).triu(1)
        normed = self.norm(x)
        x = x + self.attention(normed, normed, normed, attn_mask=mask, need_weights=False)[0]
        x = x + self.narrow(F.gelu(self.wide(self.last(x)), approximate="tanh"))
        scores = x @ self.tokens.weight.t()
        return scores, scores.argmax(-1)


ARCHITECTURES = {
    "plain CNN": Architecture(PlainCNN, ("1,3,32,32",)),
    "Focus detector": Architecture(FocusDetector, ("1,3,16,16",)),
    "mobile net": Architecture(MobileNet, ("1,3,16,16",)),
    "ResNeXt": Architecture(ResNeXt, ("1,3,16,16",)),
    "shuffle net": Architecture(ShuffleNet, ("1,3,8,8",)),
    "U-Net": Architecture(UNet, ("1,3,12,12",)),
    "super-resolution": Architecture(SuperResolution, ("1,3,8,8",)),
    "wave net": Architecture(WaveNet, ("1,4,16",)),
    "MLP": Architecture(MLP, ("1,10",)),
    "vision transformer": Architecture(VisionTransformer, ("1,3,16,16",)),
    "shifted windows": Architecture(Windows, ("1,3,16,16",)),
    "LSTM": Architecture(Recurrent, ("1,4,9",)),
    "GRU": Architecture(Gated, ("1,7,6",)),
    "language model": Architecture(Language, ("1,7:int64",)),
}
