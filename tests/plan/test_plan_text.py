"""Plans as text, each compared with the file of its name in `plans/`. To rewrite the files:

WRITE_PLANS=1 pytest tests/plan/test_plan_text.py
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from equivalence import with_random_tensors
from torch import nn

from converter.options import ArtifactOptions, InspectOptions
from converter.pipeline.build import build
from converter.pipeline.clock import Clock
from converter.pipeline.load_model import load_model
from sample_models.blocks import Focus, SeparableConvUnit

PLANS = Path(__file__).with_name("plans")


class Shift(nn.Module):
    """Groups of channels move by a pixel each, zeros move in."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Conv2d(6, 4, 1)

    def forward(self, x):
        y = torch.zeros_like(x)
        y[:, :2, :, 1:] = x[:, :2, :, :-1]
        y[:, 2:4, :-1] = x[:, 2:4, 1:]
        y[:, 4:] = x[:, 4:]
        return self.mix(y)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.attend = nn.LayerNorm(12), nn.MultiheadAttention(12, 3, batch_first=True)

    def forward(self, x):
        y = self.norm(x)
        return x + self.attend(y, y, y, need_weights=False)[0]


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.lstm, self.head = nn.Embedding(20, 6), nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.lstm(self.embed(x))[0][:, -1])


class Resized(nn.Module):
    """An image of any size; the result has the size of the input."""

    def __init__(self):
        super().__init__()
        self.down, self.out = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        return F.interpolate(self.out(F.relu(self.down(x))), size=x.shape[2:], mode="bilinear")


@dataclass(frozen=True)
class System:
    build: Callable[[], nn.Module]
    shape: str
    format: str = "keras"


SYSTEMS = {
    "focus_stem": System(lambda: Focus(3, 8, 3), "1,3,16,16", "tf"),
    "shift": System(Shift, "1,6,8,10"),
    "separable_conv": System(lambda: SeparableConvUnit(6, 8), "1,6,8,10"),
    "depthwise_and_grouped_conv": System(
        lambda: nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.ReLU(), nn.Conv2d(6, 4, 3, groups=2)),
        "1,6,8,10",
    ),
    "conv_transpose": System(
        lambda: nn.Sequential(nn.ConvTranspose2d(6, 4, 4, stride=2, padding=1), nn.PixelShuffle(2), nn.Flatten()),
        "1,6,8,10",
    ),
    "attention_block": System(Attention, "1,7,12"),
    "lstm": System(Recurrent, "1,9:int64"),
    "dynamic_sizes": System(Resized, "1,3,2*H,2*W"),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_plan_is_the_committed_one(name: str):
    system, file = SYSTEMS[name], PLANS / f"{name}.txt"
    module, clock = with_random_tensors(system.build()), Clock(None)
    source = load_model(module, InspectOptions.of(input_shapes=[system.shape]), clock=clock)
    text = str(build(source, system.format, ArtifactOptions(), clock).plan)  # type: ignore[arg-type]
    if "WRITE_PLANS" in os.environ:
        PLANS.mkdir(exist_ok=True)
        file.write_text(text)
    assert text == file.read_text()


def test_every_committed_plan_is_compared():
    assert {file.stem for file in PLANS.iterdir()} == SYSTEMS.keys()
