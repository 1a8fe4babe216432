"""Autocast in forward: the conversion computes in float32, and says so."""

import torch
from torch import nn

from converter.options import ConvertOptions, LoadOptions
from converter.pipeline.clock import Clock
from converter.pipeline.load_model import compute_reference, load_model


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 3)

    @torch.autocast("cpu", torch.bfloat16)
    def inner(self, x):
        return self.one(x)

    def forward(self, x):
        y = self.inner(x)
        with torch.autocast("cpu", torch.bfloat16, enabled=False):
            return self.two(y.float())


def test_autocast_is_computed_in_float32():
    module = Mixed().eval()
    options = ConvertOptions.of(input_shapes=["1,4"])
    loaded = load_model(module, options, clock=Clock(None))
    assert [note.text for note in loaded.notes if note.code == "PTC2509"] == [
        "Forward uses autocast to bfloat16; it is computed in float32."
    ]
    x = torch.randn(3, 4)
    torch.testing.assert_close(loaded.program.run(x)[0], module.two(module.one(x)))
    compute_reference(loaded, options, Clock(None))  # refuses a program that is not the module
    assert module(x).dtype == torch.float32
    assert not torch.equal(module(x), module.two(module.one(x)))  # the caller's own module still uses it


def test_a_model_without_autocast_gets_no_note():
    loaded = load_model(nn.Linear(4, 2).eval(), LoadOptions.of(input_shapes=["1,4"]), clock=Clock(None))
    assert "PTC2509" not in {note.code for note in loaded.notes}
