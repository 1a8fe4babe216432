"""Running sums over many steps, as the phase of a vocoder's oscillator, in the file's own runtime."""

import numpy as np
import onnxruntime
import pytest
import tensorflow as tf
import torch
from torch import nn

import converter


class Oscillator(nn.Module):
    def forward(self, frequency):
        return torch.sin(2 * torch.pi * (torch.sigmoid(frequency) * 0.05).cumsum(-1))


@pytest.mark.slow
def test_the_phase_after_65536_steps_is_pytorchs(tmp_path):
    report = converter.convert(Oscillator(), to=["tf", "onnx"], output=tmp_path, input_shapes=[(1, 1, 65536)])
    assert report.status == "verified"
    x = torch.randn(1, 1, 65536, generator=torch.Generator().manual_seed(0))
    expected = Oscillator().double()(x.double()).numpy()
    session = onnxruntime.InferenceSession(report.artifacts["onnx"].path)
    loaded = tf.saved_model.load(report.artifacts["tf"].path).signatures["serving_default"]
    (of_tf,) = loaded(frequency=tf.constant(x.permute(0, 2, 1).numpy())).values()
    for result in (session.run(None, {"frequency": x.numpy()})[0], of_tf.numpy().reshape(expected.shape)):
        np.testing.assert_allclose(result, expected, atol=3e-3)
