"""The search for wrong fusions of ONNX Runtime finds the one that is known, and finds it avoided."""

import sys
from pathlib import Path

import pytest
from torch import nn

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

from onnx_fusions import Chain, compare


@pytest.mark.parametrize("without", [(), ("negative_zero_padding",)], ids=["avoided", "not avoided"])
def test_padding_that_is_fused_into_a_max_pool_is_found(without):
    chain = Chain(("zero_pad", "max_pool"), (nn.ZeroPad2d((0, 1, 0, 1)), nn.MaxPool2d(2)), (2, 4, 5, 5))
    found = list(compare([chain], without))
    assert [chain for chain, _ in found] == ([chain] if without else [])
