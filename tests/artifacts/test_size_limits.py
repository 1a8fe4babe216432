"""Artifacts refuse dynamic sizes outside the range that capture found: there they would compute something else."""

import numpy as np
import onnxruntime
import pytest
import tensorflow as tf
import torch
from ai_edge_litert.interpreter import Interpreter
from torch import nn

from converter import convert


class History(nn.Module):
    """The last 100 steps, which a captured program has only up to there, and the maximum of blocks of 2 x 2."""

    def __init__(self):
        super().__init__()
        self.linear, self.blocks = nn.Linear(8, 5), nn.PixelUnshuffle(2)

    def forward(self, x, image):
        return self.linear(x[:, -100:]).mean(1) + self.blocks(image).amax(1).mean((1, 2))[:, None]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    torch.manual_seed(0)
    module = History().eval()
    folder = tmp_path_factory.mktemp("limits")
    shapes = ["x=1,T,8", "image=1,1,H,W"]
    report = convert(module, to=["tf", "keras", "onnx", "tflite"], output=folder, input_shapes=shapes)
    assert report.status == "verified"
    assert {note.text for note in report.notes if note.code == "PTC2502"} == {
        "Size T must be at most 99.", "Size H must be a multiple of 2.", "Size W must be a multiple of 2.",
    }  # fmt: skip
    return module, {artifact.format: artifact.path for artifact in report.artifacts}, report


def saved_model(path):
    run = tf.saved_model.load(path).signatures["serving_default"]
    return lambda x, image: next(iter(run(x=tf.constant(x), image=tf.constant(image)).values())).numpy()


def onnx(path):
    session = onnxruntime.InferenceSession(path)
    return lambda x, image: session.run(None, {"x": x, "image": image})[0]


def tflite(path):
    runner = Interpreter(str(path)).get_signature_runner("serving_default")
    return lambda x, image: next(iter(runner(x=x, image=image).values()))


READERS = {
    "tf": (saved_model, tf.errors.InvalidArgumentError), "onnx": (onnx, Exception), "tflite": (tflite, RuntimeError),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("format", READERS)
def test_sizes_outside_their_range_are_refused(written, format):
    module, paths, _ = written
    read, refusal = READERS[format]
    run = read(paths[format])

    def given(steps, width):
        rng, batch = np.random.default_rng(0), 1 if format == "tflite" else 3
        channels = rng.standard_normal((batch, 1, 4, width)).astype(np.float32)
        return rng.standard_normal((batch, steps, 8)).astype(np.float32), channels

    def as_it_takes(image):
        return image.transpose(0, 2, 3, 1) if channels_last else image

    channels_last = next(a for a in written[2].artifacts if a.format == format).inputs[1].layout == "channels_last"
    for steps, width in ((99, 8), (1, 2), (7, 6)):
        x, image = given(steps, width)
        expected = module(torch.from_numpy(x), torch.from_numpy(image)).detach().numpy()
        np.testing.assert_allclose(run(x, as_it_takes(image)), expected, atol=1e-5)
    for steps, width in ((101, 8), (200, 8), (12, 7)):
        x, image = given(steps, width)
        told = r"at most 99|multiple of 2|divisible by block_size|[Rr]eshape|RESHAPE"
        with pytest.raises(refusal, match=told):
            run(x, as_it_takes(image))


@pytest.mark.slow
def test_special_sizes_are_compared_too(written):
    rounds = written[2].compared_on.rounds
    assert any("sizes of 1" in each for each in rounds)
    assert any("T 6, H 12, W 12" in each for each in rounds)
