"""The search for wrong fusions of ONNX Runtime finds the one that is known, and finds it avoided."""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import converter

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

from onnx_fusions import Chain, compare


@pytest.mark.slow
@pytest.mark.parametrize("without", [(), ("negative_zero_padding",)], ids=["avoided", "not avoided"])
def test_padding_that_is_fused_into_a_max_pool_is_found(without):
    chain = Chain(("zero_pad", "max_pool"), (nn.ZeroPad2d((0, 1, 0, 1)), nn.MaxPool2d(2)), (2, 4, 5, 5))
    found = list(compare([chain], without))
    assert [chain for chain, _ in found] == ([chain] if without else [])


class Expectation(nn.Module):
    """As heads of detectors: the expected value of a distribution over 16 bins."""

    def __init__(self):
        super().__init__()
        self.register_buffer("bins", torch.arange(16.0))

    def forward(self, x):
        return x.view(x.shape[0], 4, 16, -1).softmax(2).permute(0, 1, 3, 2).matmul(self.bins)


@pytest.mark.slow
def test_a_transpose_is_not_fused_into_a_product_with_a_vector(tmp_path):
    report = converter.convert(Expectation(), to="onnx", output=tmp_path / "e.onnx", input_shapes=["1,64,5,6"])
    assert report.status == "verified", report
    x = torch.randn(3, 64, 5, 6)
    session = onnxruntime.InferenceSession(tmp_path / "e.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(found, Expectation()(x).numpy(), atol=1e-5)
