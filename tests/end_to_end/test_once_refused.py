"""Models that are right and were once refused, or wrong: their files give what PyTorch gives in float64."""

import warnings

import keras
import numpy as np
import onnxruntime
import pytest
import tensorflow as tf
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

import converter


def weight_normed(norm) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older one is deprecated
        return norm(norm(nn.LSTM(6, 5, batch_first=True), "weight_hh_l0"), "weight_ih_l0")


class OnceRefused(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.of_batch = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)
        self.normalized, self.head = nn.Conv2d(3, 4, 3), nn.Linear(6, 4)
        self.of_rows, self.training_norm = nn.BatchNorm1d(4, track_running_stats=False), nn.BatchNorm2d(4)
        self.lstm, self.older = weight_normed(parametrizations.weight_norm), weight_normed(nn.utils.weight_norm)
        self.register_buffer("half_precision", (torch.rand(4) * 100).half())
        self.register_buffer("whole_numbers", torch.arange(4) + 3)
        self.register_buffer("double_precision", torch.rand(4, dtype=torch.float64))

    def forward(self, image, steps):
        y, rows = self.conv(image), steps.mean(1)
        return {
            "batch_statistics": self.of_batch(y).relu(),
            "batch_statistics_of_rows": self.of_rows(self.head(steps).transpose(1, 2)),
            "training_mode": F.batch_norm(
                y, None, None, self.training_norm.weight, self.training_norm.bias, training=True, eps=1e-3
            ),
            "mean_and_variance": self.normalized(
                (image - image.mean((2, 3), keepdim=True)) / image.std((2, 3), keepdim=True)
            ),
            "mean_and_variance_of_samples": (y - y.mean((1, 2, 3), keepdim=True))
            / (y.var((1, 2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt(),
            "weight_norm": self.lstm(steps)[0],
            "older_weight_norm": self.older(steps)[0],
            "cast_buffers": self.head(rows) * self.half_precision.float()
            + self.whole_numbers.float().mean()
            + self.double_precision.float(),
            "dilated_pool": F.max_pool2d(image - 9, 3, 2, 1, dilation=2, ceil_mode=True),
            "dilated_pool_of_rows": F.max_pool1d(steps - 9, 2, 3, 1, dilation=2, ceil_mode=True),
        }


@pytest.fixture(scope="module")
def once_refused(tmp_path_factory):
    torch.manual_seed(0)
    module = OnceRefused().eval()
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            if "norm" in name or "of_" in name:
                tensor.copy_(torch.randn(tensor.shape))
    folder = tmp_path_factory.mktemp("once")
    report = converter.convert(
        module, to=["tf", "keras", "onnx"], output=folder, input_shapes=["image=1,3,9,11", "steps=1,7,6"]
    )
    assert report.status == "verified", report
    rng = np.random.default_rng(1)
    given = [rng.standard_normal((5, *sizes)).astype(np.float32) for sizes in ((3, 9, 11), (7, 6))]
    with torch.no_grad():
        expected = module.double()(*(torch.from_numpy(array).double() for array in given))
    return {artifact.format: artifact for artifact in report.artifacts}, given, expected


def results(artifact, image: np.ndarray, steps: np.ndarray) -> dict[str, np.ndarray]:
    def held(array, facts):
        return np.moveaxis(array, 1, -1) if facts.layout == "channels_last" else array

    given = {i.name: held(a, i) for a, i in zip((image, steps), artifact.inputs, strict=True)}
    names = [output.name for output in artifact.outputs]
    if artifact.format == "onnx":
        found = dict(zip(names, onnxruntime.InferenceSession(artifact.path).run(names, given), strict=True))
    elif artifact.format == "keras":
        found = keras.saving.load_model(artifact.path)(given)
    else:
        loaded = tf.saved_model.load(artifact.path)
        found = loaded.signatures["serving_default"](**{name: tf.constant(a) for name, a in given.items()})
    layouts = {output.name: output.layout for output in artifact.outputs}
    arrays = {name: np.asarray(found[name]) for name in names}
    return {n: np.moveaxis(a, -1, 1) if layouts[n] == "channels_last" else a for n, a in arrays.items()}


@pytest.mark.slow
@pytest.mark.parametrize("format", ["tf", "keras", "onnx"])
def test_what_was_once_refused_gives_the_right_values(once_refused, format):
    artifacts, given, expected = once_refused
    found = results(artifacts[format], *given)
    assert len(found) == len(expected) == 10
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value.numpy(), rtol=2e-5, atol=2e-5, err_msg=name)


@pytest.mark.slow
def test_resizes_of_dynamic_sizes_are_right_in_onnx(tmp_path):
    class Resizes(nn.Module):
        def forward(self, x):
            return (
                F.interpolate(x, scale_factor=(1.5, 0.75), mode="nearest-exact"),
                F.interpolate(x, scale_factor=(0.5, 1.25), mode="bicubic", antialias=True),
                F.interpolate(x, (5, 17), mode="bicubic", antialias=True),
                F.interpolate(x, (13, 4), mode="nearest-exact"),
            )

    report = converter.convert(Resizes(), to="onnx", output=tmp_path / "r.onnx", input_shapes=["1,2,H,W"])
    assert report.status == "verified", report
    session = onnxruntime.InferenceSession(tmp_path / "r.onnx")
    for height, width in ((8, 8), (11, 6), (7, 19)):
        x = np.random.default_rng(height).standard_normal((3, 2, height, width)).astype(np.float32)
        found = session.run(None, {report.artifacts[0].inputs[0].name: x})
        for one, expected in zip(found, Resizes()(torch.from_numpy(x).double()), strict=True):
            np.testing.assert_allclose(one, expected.numpy(), atol=1e-5)
