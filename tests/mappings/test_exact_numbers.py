"""Operators in TensorFlow and Keras keep the digits of small numbers and of large integers."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from equivalence import Call, array_of, planned
from exact_numbers import FUNCTIONS, OF_ONE, OF_TWO, WHOLE, assert_digits_kept, pairs

from converter.capture.export import capture
from converter.lowering.executor import PlanExecutor

MORE: dict[str, Callable] = {
    "erfinv": lambda x: torch.erfinv(x * 0.9),
    "erfc": torch.erfc,
    "hypot": lambda x: torch.hypot(x, x / 3),
    "hypot of both magnitudes": lambda x: torch.hypot(x, x.flip(0)),
}
STOCK = pytest.mark.parametrize("stock", [False, True], ids=["tf", "keras"])


def run(stock: bool, function: Callable, *arrays: np.ndarray) -> np.ndarray:
    program = capture(Call(function).eval(), [torch.from_numpy(array) for array in arrays])
    (result,) = PlanExecutor(planned(program), "float32", stock=stock)(*arrays)
    return array_of(result)


@STOCK
@pytest.mark.parametrize("function", (FUNCTIONS | MORE).values(), ids=FUNCTIONS | MORE)
def test_small_numbers_keep_their_digits(function, stock):
    assert_digits_kept(function, lambda function, x: run(stock, function, x))


@STOCK
@pytest.mark.parametrize("function", OF_TWO.values(), ids=OF_TWO)
def test_two_integers_are_computed_exactly(function, stock):
    x, y = pairs()
    wanted = function(torch.from_numpy(x), torch.from_numpy(y)).numpy()
    np.testing.assert_array_equal(run(stock, function, x, y), wanted, strict=True)


@STOCK
@pytest.mark.parametrize("function", OF_ONE.values(), ids=OF_ONE)
def test_an_integer_is_computed_exactly(function, stock):
    wanted = function(torch.from_numpy(WHOLE)).numpy()
    np.testing.assert_array_equal(run(stock, function, WHOLE), wanted, strict=True)
