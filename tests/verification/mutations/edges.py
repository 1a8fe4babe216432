"""Networks in which a tolerance or the inputs may hide a fault: magnitudes, small values, integers, dead units, NaN."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mutations.architectures import Architecture, unit


class MixedMagnitudes(nn.Module):
    """Boxes in pixels beside scores, and logits beside the fill of a mask."""

    def __init__(self):
        super().__init__()
        self.stem = unit(3, 8, nn.ReLU())
        self.boxes, self.scores, self.classes = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 6, 1), nn.Linear(8, 9)
        self.register_buffer("mask", torch.arange(9) % 4 == 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        boxes, scores = self.boxes(x).clamp(-4, 4).exp() * 900, self.scores(x).sigmoid()
        found = torch.cat([boxes, scores], 1).flatten(2).transpose(1, 2)
        return found, self.classes(x.mean((2, 3))).masked_fill(self.mask, -1e9)


class SmallValues(nn.Module):
    """Functions that lose the digits of small values if they are computed in another way."""

    def __init__(self):
        super().__init__()
        self.enter, self.leave = nn.Linear(10, 12, bias=False), nn.Linear(12, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.enter(x) * 1e-4
        y = torch.log1p(y.abs()) + torch.expm1(y.clamp(max=1.0)) + F.elu(y) * 0.5
        return self.leave(y) + 1e-3 * self.leave(torch.tanh(y))


class Integers(nn.Module):
    """Integers at the edges of what float32 and 32 bits hold."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(7, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        large = (x - 100) * ((1 << 24) + 1)
        quotient = torch.div(large, 7, rounding_mode="floor")
        rest = torch.fmod(large, 1001) + torch.remainder(large, 13)
        limited = (quotient * 129).clamp(-(1 << 33), 1 << 33)
        return limited.sum(1) - rest.cumsum(1)[:, -1], self.head(rest.float() / 1001)


class DeadChannels(nn.Module):
    """A third of the channels wakes up for rare inputs only."""

    def __init__(self):
        super().__init__()
        self.stem, self.body, self.head = nn.Conv2d(3, 9, 3, padding=1), nn.Conv2d(9, 9, 3, padding=1), nn.Linear(9, 6)
        self.late = nn.Parameter(torch.tensor([0.0, 0.0, -60.0] * 3).view(9, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x) + self.late)
        return self.head(F.relu(self.body(x) - 0.1).mean((2, 3)))


class NotANumber(nn.Module):
    """Roots and logarithms of negative numbers, and infinities."""

    def __init__(self):
        super().__init__()
        self.enter, self.leave = nn.Linear(10, 12), nn.Linear(10, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.enter(x)
        return torch.where(y > 1, torch.inf, (y + 0.5).sqrt()), self.leave(x).log().nan_to_num(-3.0)


EDGES = {
    "mixed magnitudes": Architecture(MixedMagnitudes, ("1,3,8,8",)),
    "small values": Architecture(SmallValues, ("1,10",)),
    "integers at the edges": Architecture(Integers, ("1,7:int64",)),
    "dead channels": Architecture(DeadChannels, ("1,3,8,8",)),
    "NaN": Architecture(NotANumber, ("1,10",)),
}
