"""Functions of small numbers and of large integers, for the tests that formats keep their digits."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

MAGNITUDES = np.logspace(-12, 1.9, 300)
SMALL = np.concatenate([MAGNITUDES, [1e-7, 1e-6, 1e-3, 0.5, 0.999, 1 - 1e-6]]).astype(np.float32)
NUMBERS = np.concatenate([SMALL, -SMALL])
SPECIAL = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, -1.0], np.float32)
EXACT = 1e-6  # float32 rounds to 6e-8, ONNX Runtime's Tanh to 3e-7
FUNCTIONS: dict[str, Callable] = {
    "log1p": torch.log1p,
    "special log1p": torch.special.log1p,
    "expm1": torch.expm1,
    "special expm1": torch.special.expm1,
    "elu": F.elu,
    "elu with a factor": lambda x: F.elu(x, 0.3),
    "celu": F.celu,
    "celu with a factor": lambda x: F.celu(x, 1.7),
    "selu": F.selu,
}


# -- integers

EDGES = [0, 1, 2, 3, 7, 2**24 - 1, 2**24 + 1, 2**31 - 1, 2**31, 2**31 + 1, 2**32 + 3, 2**53 - 1, 2**53 + 1, 2**62 + 3]
WHOLE = np.array([*EDGES, *(-n for n in EDGES), 2**63 - 1, 1 - 2**63], np.int64)
DIVISORS = np.array([1, 2, 3, -1, -7, 2**24 + 1, -(2**31) - 1, 2**53 + 1, -(2**62) - 1], np.int64)
BOUND = 2**53 + 1


def rounded(mode: str) -> Callable:
    return lambda x, y: torch.div(x, y, rounding_mode=mode)


OF_TWO: dict[str, Callable] = {
    "div to zero": rounded("trunc"),
    "div to the floor": rounded("floor"),
    "fmod": torch.fmod,
    "remainder": torch.remainder,
    "clamp": lambda x, y: torch.clamp(x, y, y + 100),
    "clamp_min": torch.clamp_min,
    "clamp_max": torch.clamp_max,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "max": torch.max,
}
OF_ONE: dict[str, Callable] = {
    "div by a number": lambda x: torch.div(x, -7, rounding_mode="trunc"),
    "div by a number to the floor": lambda x: torch.div(x, -7, rounding_mode="floor"),
    "fmod of a number": lambda x: torch.fmod(x, -7),
    "clamp": lambda x: x.clamp(-(2**31) - 5, BOUND),
    "clamp to small numbers": lambda x: x.clamp(-3, 2),
    "clamp from below": lambda x: x.clamp(min=2**24 + 1),
    "clamp from above": lambda x: x.clamp(max=BOUND),
    "clamp_min": lambda x: x.clamp_min(BOUND),
    "clamp_max": lambda x: x.clamp_max(-BOUND),
    "sign": torch.sign,
    "relu": torch.relu,
    "abs": torch.abs,
    "cumsum": lambda x: x.reshape(-1, 5).cumsum(1),
    "greatest of rows": lambda x: x.reshape(-1, 5).max(1).values,
    "least of rows": lambda x: x.reshape(-1, 5).min(1).values,
    "greatest of two axes": lambda x: x.reshape(3, 5, 2).amax((0, 2)),
    "greatest and least": lambda x: x.max() // 3 - x.min() // 5,
    "compared": lambda x: (x > 2**53) | (x == 2**24 + 1),
    "chosen": lambda x: torch.where(x > 2**24, BOUND, x),
    "sgn": torch.sgn,
    "sum": lambda x: x.sum(),
    "sum of rows": lambda x: x.reshape(-1, 3).sum(1),
    "sums kept": lambda x: x.reshape(-1, 3, 2).sum((0, 2), keepdim=True),
    "sum of shorter integers": lambda x: x.clamp(-(2**31), 2**31 - 1).to(torch.int32).sum(),
    "sum of booleans": lambda x: (x > 0).sum(),
    "product": lambda x: x[5:8].prod(),
    "product of rows": lambda x: x.reshape(-1, 5).prod(1),
    "products kept": lambda x: x.reshape(6, 5).prod(0, keepdim=True),
    "product of shorter integers": lambda x: x.clamp(-(2**31), 2**31 - 1).to(torch.int32)[8:10].prod(),
    "product of booleans": lambda x: (x > -1).prod(),
}


def assert_digits_kept(
    function: Callable,
    run: Callable[[Callable, np.ndarray], np.ndarray],
    numbers: np.ndarray = NUMBERS,
    special: np.ndarray = SPECIAL,
) -> None:
    """Compare `run(function, x)` with PyTorch in float64, relative to each value, and for numbers that are special."""
    wanted = function(torch.from_numpy(numbers).double()).numpy()
    normal = (np.abs(wanted) > np.finfo(np.float32).tiny) & (np.abs(wanted) < np.finfo(np.float32).max)
    y = run(function, numbers)
    np.testing.assert_allclose(y[normal], wanted[normal], rtol=EXACT, atol=0)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(wanted))
    np.testing.assert_allclose(run(function, special), function(torch.from_numpy(special)).numpy(), rtol=EXACT, atol=0)


def pairs() -> tuple[np.ndarray, np.ndarray]:
    """Return each of `WHOLE` with each of `DIVISORS`."""
    x, y = np.meshgrid(WHOLE, DIVISORS)
    return x.ravel().copy(), y.ravel().copy()
