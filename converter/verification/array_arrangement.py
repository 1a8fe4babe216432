"""Find by content how one array holds the values of another: transposed, reshaped, with reordered dimensions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, permutations

import numpy as np

FOLDED_ROUNDING = 8 * float(np.finfo(np.float32).eps)  # relative: a fold is a few operations in float32
PROBES = 64  # elements to compare before comparing all
MOST_TRANSPOSED = 6  # dimensions

# splitmix64: https://prng.di.unimi.it/splitmix64.c
_STEPS = ((np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(27), np.uint64(0x94D049BB133111EB)))


@dataclass(frozen=True)
class Arrangement:
    """How an array holds another.

    Attributes:
        order: the source's dimension of each axis.
        reordered: the axes of the result whose positions moved.
    """

    order: tuple[int, ...]
    reordered: tuple[int, ...]
    reshaped: bool

    @property
    def is_straight(self) -> bool:
        return not self.reordered and not self.reshaped and self.order == tuple(range(len(self.order)))

    def __str__(self) -> str:
        parts = []
        if self.order != tuple(range(len(self.order))):
            parts.append(f"transposed {self.order}")
        if self.reordered:
            parts.append(f"dimension {', '.join(str(self.order[a]) for a in self.reordered)} reordered")
        if self.reshaped:
            parts.append("reshaped")
        return ", ".join(parts)


def comparable(array: np.ndarray) -> np.ndarray:
    """Return numbers of any type as float32 (integers and booleans as float64), with negative zero as zero."""
    with np.errstate(over="ignore"):
        return np.add(array.astype(np.float64 if array.dtype.kind in "iub" else np.float32), np.float32(0))


def hashes(array: np.ndarray) -> np.ndarray:
    """Return a 64-bit hash of each element's value."""
    bits = np.ascontiguousarray(array).view(np.uint32 if array.dtype == np.float32 else np.uint64)
    mixed = bits.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in _STEPS:
        mixed ^= mixed >> shift
        mixed *= factor
    mixed ^= mixed >> np.uint64(31)
    return np.asarray(mixed)


def digest(array: np.ndarray) -> tuple[int, int]:
    """Return a digest that is the same for any order of the same values, and hardly ever for others."""
    return array.size, int(hashes(array).sum(dtype=np.uint64))


def content(array: np.ndarray) -> tuple[int, int]:
    """Return a digest of an array's values in any order, as float32."""
    return digest(comparable(np.atleast_1d(array)))


def arranged(source: np.ndarray, target: np.ndarray, rounding: np.ndarray | None = None) -> Arrangement | None:
    """Find how `target` holds the values of `source`: bit for bit, or each within `rounding` (shaped as the source).

    Transpositions and reshapes are tried first, then reordered dimensions too. Returns None if there is no such
    arrangement.
    """
    if source.size != target.size:
        return None
    probes = np.unique(np.linspace(0, source.size - 1, min(PROBES, source.size)).astype(np.int64))
    flat = target.reshape(-1)
    for order in _orders(source):
        turned = source.transpose(order)
        place = np.unravel_index(probes, turned.shape)
        allowed = None if rounding is None else rounding.transpose(order)
        if _same(turned[place], flat[probes], None if allowed is None else allowed[place]) and _same(
            turned, target.reshape(turned.shape), allowed
        ):
            return Arrangement(order, (), turned.shape != target.shape)
    for order in _orders(source):
        turned = source.transpose(order)
        shaped = target.reshape(turned.shape)
        reordered = _reordered(turned, shaped, None if rounding is None else rounding.transpose(order))
        if reordered is not None:
            return Arrangement(order, reordered, turned.shape != target.shape)
    return None


def _orders(array: np.ndarray) -> Iterator[tuple[int, ...]]:
    """Yield the orders of the dimensions; those of size 1 keep their place, since moving them changes nothing."""
    moving = [d for d, n in enumerate(array.shape) if n > 1]
    if len(moving) > MOST_TRANSPOSED:
        yield tuple(range(array.ndim))
        return
    for order in islice(permutations(moving), 720):
        left = iter(order)
        yield tuple(next(left) if n > 1 else d for d, n in enumerate(array.shape))


def _same(a: np.ndarray, b: np.ndarray, rounding: np.ndarray | None) -> bool:
    if rounding is None:
        return bool(np.array_equal(a, b, equal_nan=True))
    return bool((np.abs(a - b) <= rounding).all())


def _reordered(source: np.ndarray, target: np.ndarray, rounding: np.ndarray | None) -> tuple[int, ...] | None:
    """Return the axes along which `target` is a reordered `source`, or None.

    A slice is recognized by its content, which the order within it does not change.
    """
    moved = []
    exact = rounding is None
    marks = (hashes(source), hashes(target)) if exact else (source.astype(np.float64), target.astype(np.float64))
    for axis in range(source.ndim):
        if source.shape[axis] < 2:
            continue
        ours, theirs = (_slice_marks(mark, axis, exact) for mark in marks)
        if exact and not np.array_equal(np.sort(ours), np.sort(theirs)):
            return None
        places = np.empty(len(ours), np.int64)
        places[np.argsort(theirs, kind="stable")] = np.argsort(ours, kind="stable")
        if (places != np.arange(len(places))).any():
            source = source.take(places, axis)
            rounding = None if rounding is None else rounding.take(places, axis)
            moved.append(axis)
    return tuple(moved) if moved and _same(source, target, rounding) else None


def _slice_marks(marks: np.ndarray, axis: int, exact: bool) -> np.ndarray:
    """Return one number for each slice across `axis`."""
    others = tuple(a for a in range(marks.ndim) if a != axis)
    if exact:
        return np.asarray(marks.sum(others, dtype=np.uint64))
    return np.asarray(marks.mean(others) + 0.37 * np.abs(marks).mean(others))
