"""What each element of an output may differ by: rounding is local.

An output is divided into classes of magnitude wherever a gap of 2^10 without any value lies between. Constant fills,
such as the value of a mask, stand apart and set the scale of nothing else. An element's rounding is PyTorch's own,
pooled over the elements of its class and, in slices (last axis, channel) of much smaller values, over its class in its
slice, where these are enough to show what rounding does there. Slices along any axis that are much smaller than others
in every round of inputs are pooled with each other, however few elements they have. So a mask of -1e9 does not widen
the tolerance of logits, nor boxes in pixels that of scores. Small values without a gap or such a slice stay with the
large ones: runtimes have kernels, such as a sigmoid or the gates of an LSTM, that are exact to an absolute error where
PyTorch's are exact to a relative one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType

import numpy as np

FLOOR_ULP = 4
GAP = 10  # powers of two without any value
SMALLER = 2.0**-7  # a slice is judged by itself if its class in it is smaller by this than the class elsewhere
CLASSES = 4  # anything smaller belongs to the last one
ENOUGH = 32  # results whose largest error shows what rounding does; below that a class is pooled with the next larger
FEW = 4  # values that are judged by themselves, as PyTorch is run again before they are said to differ
STEP = 5  # powers of two between the levels of slices that are small in every round
LEVELS = 4
NOISE = 24 / STEP  # a slice further below is what float32 leaves of a zero
SAMPLES = 6  # values of a slice in all rounds that show that it is small not by chance
MOST_FILLS = 4
_ZERO, _FILL, _FAR_FILL = -1, -2, -3
_EXPONENTS = 2200  # more than float64 has


@dataclass(frozen=True)
class Classes:
    """Elements of an output by magnitude.

    Attributes:
        of: for each element its class, 0 for the largest; negative for zeros and constant fills.
        magnitudes: of all elements.
        scale: the largest magnitude of an element that is not a fill.
    """

    of: np.ndarray
    magnitudes: np.ndarray
    scale: float

    @property
    def fills(self) -> np.ndarray:
        return self.of <= _FILL

    def scales(self) -> np.ndarray:
        """Return for each element the scale of its class; a fill within reach of other values has theirs."""
        by_class = [self._largest(number) for number in range(CLASSES)]
        for number in range(1, CLASSES):
            if np.count_nonzero(self.of == number) < ENOUGH:
                by_class[number] = max(by_class[number], by_class[number - 1])
        return np.where(self.of >= 0, np.take(by_class, np.maximum(self.of, 0)), self.scale)

    def _largest(self, number: int) -> float:
        return float(self.magnitudes.max(initial=0.0, where=self.of == number))


def classify(expected: np.ndarray) -> Classes:
    """Divide finite values by magnitude.

    A fill is a value of the largest magnitude that occurs at least twice and is exact in float32, which numbers
    computed in float64 are not. It is far if it is more than 2^10 times any other value: rounding turns no other value
    into it.
    """
    magnitudes = np.asarray(np.abs(expected))
    of = np.zeros(expected.shape, np.int8)
    left = magnitudes.copy()
    fills: list[tuple[float, np.ndarray]] = []
    for _ in range(MOST_FILLS):
        largest = float(left.max(initial=0.0))
        where = left == largest
        with np.errstate(over="ignore"):
            exact = float(np.float32(largest)) == largest
        if largest == 0.0 or not exact or np.count_nonzero(where) < 2 or np.unique(expected[where]).size > 1:
            break
        fills.append((largest, where))
        left[where] = 0.0
    scale = float(left.max(initial=0.0))
    if scale == 0.0:  # nothing but fills: they are the values
        fills, scale = [], float(magnitudes.max(initial=0.0))
    if scale > 0.0:
        of[...] = _class_of_exponent(left if fills else magnitudes)[np.frexp(magnitudes)[1] + _EXPONENTS // 2]
    of[magnitudes == 0.0] = _ZERO
    for value, where in fills:
        of[where] = _FAR_FILL if np.ldexp(value, -GAP) > scale else _FILL
    return Classes(of, magnitudes, scale)


def _class_of_exponent(magnitudes: np.ndarray) -> np.ndarray:
    """Return the class of each power of two, from the smallest to the largest that a float64 can have."""
    exponents = np.frexp(magnitudes[magnitudes > 0.0])[1] + _EXPONENTS // 2
    held = np.flatnonzero(np.bincount(exponents, minlength=_EXPONENTS))[::-1]
    classes = np.zeros(_EXPONENTS, np.int8)
    below_gaps = [smaller for larger, smaller in pairwise(held) if larger - smaller > GAP]
    for number, smaller in enumerate(below_gaps, 1):
        classes[: smaller + 1] = min(number, CLASSES - 1)
    return classes


def small_slices(rounds: Sequence[np.ndarray]) -> dict[int, np.ndarray]:
    """Return for each axis how far its slices stay below the largest one in every round, in steps of 2^5.

    Axes without such slices are left out. Fills, zeros and what is not finite are set aside.

    Args:
        rounds: the reference of one output.
    """
    ranks = {one.ndim for one in rounds}
    if len(ranks) != 1 or ranks == {0} or ranks == {1}:
        return {}
    kept = [np.abs(np.where(np.isfinite(one), one, 0.0)) for one in rounds]
    for magnitudes in kept:
        magnitudes[classify(magnitudes).fills] = 0.0
    found = {}
    for axis in range(*ranks):
        if len({one.shape[axis] for one in kept}) > 1 or kept[0].shape[axis] < 2:
            continue
        others = tuple(other for other in range(*ranks) if other != axis)
        sizes = np.stack([one.max(axis=others, initial=0.0) for one in kept])
        live = sizes.any(1)
        with np.errstate(divide="ignore"):
            below = -np.log2(sizes[live] / sizes[live].max(1, keepdims=True)) / STEP
        nearest = below.min(0, initial=np.inf)
        levels = np.where(nearest <= NOISE, np.minimum(nearest, LEVELS), 0).astype(int)
        if levels.any():
            levels[np.sum([np.count_nonzero(one, axis=others) for one in kept], axis=0) < SAMPLES] = 0
        if levels.any():
            found[axis] = levels
    return found


def rounding_units(
    classes: Classes,
    expected: np.ndarray,
    own: Sequence[np.ndarray],
    small: Mapping[int, np.ndarray] = MappingProxyType({}),
) -> np.ndarray:
    """Return for each element PyTorch's own error on it and its like, or 4 ulp of their largest value if that is more.

    For a far fill it is an eighth of an ulp, so that no more than 2 ulp are allowed.

    Args:
        own: PyTorch's results in its own precision, one or several with other roundings.
        small: the levels of slices, by axis, that `small_slices` returns for all rounds.

    Raises:
        ValueError: there is no result of PyTorch's.
    """
    if not own:
        raise ValueError("there is no float32 result of PyTorch")
    dtype = own[0].dtype
    errors = np.zeros(expected.shape)
    for one in own:
        np.maximum(errors, np.abs(one.astype(np.float64) - expected), out=errors)
    units = _pooled(classes, errors, dtype, len(own), small)
    np.maximum(units, errors, out=units)
    near, far = classes.of == _FILL, classes.of == _FAR_FILL
    units[near] = np.maximum(units[near], floor(dtype, classes.magnitudes[near]))
    units[far] = np.maximum(errors[far], floor(dtype, classes.magnitudes[far]) / 32)
    return units


def _pooled(
    classes: Classes, errors: np.ndarray, dtype: np.dtype, runs: int, small: Mapping[int, np.ndarray]
) -> np.ndarray:
    """Return the least of the errors pooled by class over all axes, all but the last or the channels, and `small`."""
    every = tuple(range(errors.ndim))
    units = np.full(errors.shape, np.inf)
    at_least = [
        (levels >= level).reshape([-1 if each == axis else 1 for each in every])
        for axis, levels in small.items()
        for level in np.unique(levels[levels > 0])
    ]
    # Zeros and fills within reach may be any value that a limit cut off: they are pooled with all classes.
    limited, largest, larger = classes.of < 0, 0.0, 0.0
    for number in range(CLASSES):
        where = classes.of == number
        count = np.count_nonzero(where)
        if not count:
            continue
        error, most = (float(a.max(initial=0.0, where=where)) for a in (errors, classes.magnitudes))
        unit = max(error, float(floor(dtype, np.asarray(most))))
        larger = unit if count * runs >= ENOUGH else max(unit, larger)
        largest = max(largest, larger)
        units[where] = larger
        for axes in [every[:-1]] * (len(every) > 1) + [(0, *every[2:])] * (len(every) > 2):
            _pool_slices(units, classes, errors, where, axes, most, dtype, runs)
        for slices in at_least:
            _pool(units, classes, errors, where & slices, dtype)
    units[limited] = largest
    for slices in at_least:
        inside = slices & ~limited
        if inside.any():
            np.minimum(units, float(units.max(initial=0.0, where=inside)), out=units, where=slices & limited)
    return units


def _pool(units: np.ndarray, classes: Classes, errors: np.ndarray, where: np.ndarray, dtype: np.dtype) -> None:
    """Lower the units of these elements to their largest error, if they are enough."""
    if np.count_nonzero(where) >= FEW:
        error, most = (float(a.max(initial=0.0, where=where)) for a in (errors, classes.magnitudes))
        np.minimum(units, max(error, float(floor(dtype, np.asarray(most)))), out=units, where=where)


def _pool_slices(
    units: np.ndarray,
    classes: Classes,
    errors: np.ndarray,
    where: np.ndarray,
    axes: tuple[int, ...],
    most: float,
    dtype: np.dtype,
    runs: int,
) -> None:
    """Lower the units of a class in slices of smaller magnitude, such as scores beside boxes in pixels."""
    sizes = classes.magnitudes.max(axis=axes, initial=0.0, where=where, keepdims=True)
    smaller = (sizes <= SMALLER * most) & (np.count_nonzero(where, axis=axes, keepdims=True) * runs >= ENOUGH)
    if smaller.any():
        error = errors.max(axis=axes, initial=0.0, where=where, keepdims=True)
        np.minimum(units, np.maximum(error, floor(dtype, sizes)), out=units, where=where & smaller)


def floor(dtype: np.dtype, magnitude: np.ndarray) -> np.ndarray:
    """Return 4 ulp of a float32 or float64; an eighth of an ulp of a half, which only rounds the final result."""
    if dtype.itemsize >= 4:
        return FLOOR_ULP * np.spacing(magnitude.astype(dtype)).astype(np.float64) * (magnitude > 0)
    import ml_dtypes

    with np.errstate(divide="ignore"):
        exponent = np.floor(np.log2(magnitude))
    return np.where(magnitude > 0, float(ml_dtypes.finfo(dtype).eps) * np.exp2(exponent) / 8, 0.0)
