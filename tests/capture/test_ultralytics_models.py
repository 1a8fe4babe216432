"""Models of ultralytics: called at the size that they were trained at, with the outputs of their own exporter."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from converter.options import LoadOptions
from converter.pipeline.clock import Clock
from converter.pipeline.load_model import load_model


class Head(nn.Module):
    """The head's Python state and flags, as ultralytics has them."""

    dynamic = False
    export = False
    shape = None

    def __init__(self):
        super().__init__()
        self.scores = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        if self.dynamic or self.shape != x.shape:
            self.grid = torch.arange(x.shape[-1], dtype=x.dtype)
            self.shape = x.shape
        raw = self.scores(x)
        y = raw.sigmoid() + self.grid
        return y if self.export else (y, {"scores": raw, "feats": [x]})


class Detector(nn.Module):
    def __init__(self, args, channels):
        super().__init__()
        self.args, self.stride, self.yaml = args, torch.tensor([8.0, 16.0]), {"channels": channels}
        self.model = nn.Sequential(nn.Conv2d(channels, 4, 3, 2, 1), Head())

    def forward(self, x):
        return self.model(x)


def load_detector(args, channels=3, **options):
    return load_model(Detector(args, channels).eval(), LoadOptions.of(**options), clock=Clock(None))


@pytest.fixture(autouse=True)
def of_ultralytics(monkeypatch):
    for kind in (Head, Detector):
        monkeypatch.setattr(kind, "__module__", "ultralytics.nn.tasks")


@pytest.mark.parametrize(
    "args, shape",
    [({"imgsz": 32}, [32, 32]), (SimpleNamespace(imgsz=[40, 50]), [48, 64]), ({}, [640, 640])],
    ids=["square", "not multiples of the stride", "not given"],
)
def test_its_settings_give_the_shape_of_the_image(args, shape):
    loaded = load_detector(args, channels=1)
    assert list(loaded.examples[0].shape) == [1, 1, *shape]
    assert loaded.program.fixed_batch is None
    assert any("args" in note.text for note in loaded.notes)


def test_it_returns_what_its_exporter_writes_unless_every_output_is_asked_for():
    x = torch.randn(3, 3, 32, 32)
    loaded = load_detector({"imgsz": 32})
    assert loaded.program.outputs == ["output"]
    assert "PTC2510" in {note.code for note in loaded.notes}
    assert torch.equal(loaded.program.run(x)[0], loaded.module(x))

    whole = load_detector({"imgsz": 32}, all_outputs=True)
    assert whole.program.outputs == ["output_0", "output_1_scores", "output_1_feats_0"]
    assert "PTC2510" not in {note.code for note in whole.notes}


def test_the_callers_module_keeps_its_flags():
    module = Detector({"imgsz": 32}, 3)
    load_model(module, LoadOptions(), clock=Clock(None))
    head = module.model[1]
    assert (head.export, head.dynamic, head.shape) == (False, False, None)
