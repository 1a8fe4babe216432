"""Operators in ONNX keep the digits of small numbers, as PyTorch does in float64, and of large integers."""

from collections.abc import Callable

import numpy as np
import onnxruntime
import pytest
import torch
from equivalence import Call
from exact_numbers import FUNCTIONS, OF_ONE, OF_TWO, WHOLE, assert_digits_kept, pairs
from torch import Tensor

import converter
from converter.artifacts import onnx_writer
from converter.errors import ConversionError


def run(function: Callable, *arrays: np.ndarray) -> np.ndarray:
    inputs = [f"x{number}" for number in range(len(arrays))]
    exported = onnx_writer.export(Call(function).eval(), [torch.from_numpy(a) for a in arrays], inputs, ["y"], None)
    model = exported._program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip(inputs, arrays, strict=True)))[0]


@pytest.mark.slow
@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_small_numbers_keep_their_digits(function):
    assert_digits_kept(function, run)


@pytest.mark.slow
@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_negative_zero_keeps_its_sign(function):
    assert np.signbit(run(function, np.array([-0.0], np.float32))) == [True]


@pytest.mark.slow
@pytest.mark.parametrize("function", OF_TWO.values(), ids=OF_TWO)
def test_two_integers_are_computed_exactly(function):
    x, y = pairs()
    wanted = function(torch.from_numpy(x), torch.from_numpy(y)).numpy()
    np.testing.assert_array_equal(run(function, x, y), wanted, strict=True)


@pytest.mark.slow
@pytest.mark.parametrize("function", OF_ONE.values(), ids=OF_ONE)
def test_an_integer_is_computed_exactly(function):
    np.testing.assert_array_equal(run(function, WHOLE), function(torch.from_numpy(WHOLE)).numpy(), strict=True)


@pytest.mark.slow
def test_a_product_of_an_unknown_number_of_integers_is_refused_by_name(tmp_path):
    def product(x: Tensor) -> Tensor:
        return x.prod(1)

    with pytest.raises(ConversionError, match="prod"):
        converter.convert(Call(product), to=["onnx"], output=tmp_path / "net.onnx", input_shapes=["1,T:int64"])


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_they_are_verified(tmp_path, name):
    path = tmp_path / "net.onnx"
    report = converter.convert(Call(FUNCTIONS[name]).eval(), to=["onnx"], output=path, input_shapes=["1,7"])
    assert report.artifacts[0].status == "verified", [proof.failures for proof in report.artifacts[0].proofs]
