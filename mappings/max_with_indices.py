"""Maxima of windows and their positions, as pools with `return_indices` return them.

The spatial axes are reduced one after another, last first: the best along the last axis of every row, then the best of
these along the axis before. PyTorch's index is the element's position in the flattened spatial axes; among equals it is
the first, among NaNs the last.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from converter.ir.sizes import product
from converter.plan.builder import PlanBuilder
from converter.plan.lazy_keras import backend, ops
from converter.plan.steps import Unsupported, Value
from mappings.elementwise import sum_of


@dataclass(frozen=True)
class Windows:
    """The windows along one axis.

    Attributes:
        positions: (results, taps), position of each window's elements; outside, that of the first element inside.
        inside: (results, taps), whether they are inside.
    """

    positions: np.ndarray
    inside: np.ndarray


def sliding(size: int, out: int, kernel: int, stride: int, padding: int, dilation: int) -> Windows:
    if not all(isinstance(n, int) for n in (size, out)):
        raise Unsupported("the positions of maxima along a dynamic size")
    positions = np.arange(out)[:, None] * stride - padding + np.arange(kernel) * dilation
    inside = (positions >= 0) & (positions < size)
    first = np.take_along_axis(positions, inside.argmax(1)[:, None], 1)
    return Windows(np.where(inside, positions, first), inside)


def bounds(size: int, out: int) -> list[tuple[int, int]]:
    """Return the begin and end of an adaptive pool's windows."""
    return [(i * size // out, -(-(i + 1) * size // out)) for i in range(out)]


def adaptive(size: int, out: int) -> Windows:
    if not all(isinstance(n, int) for n in (size, out)):
        raise Unsupported("the positions of maxima along a dynamic size")
    first, last = np.array(bounds(size, out)).T
    positions = first[:, None] + np.arange((last - first).max())
    return Windows(np.minimum(positions, last[:, None] - 1), positions < last[:, None])


def maxima_and_positions(plan: PlanBuilder, x: Value, windows: Sequence[Windows]) -> list[Value]:
    """Return the maxima and their positions over the last dimensions of `x`, one for each of `windows`."""
    rank = len(x.shape)
    sizes = x.shape[rank - len(windows) :]
    for dim in range(rank - len(windows), rank):
        x, _ = plan.isolate_axis(x, dim, "the positions of maxima")
    values, held = x, None
    for i in reversed(range(len(windows))):
        dim, below = rank - len(windows) + i, product(sizes[i + 1 :])
        values, axis = plan.isolate_axis(values, dim, "the positions of maxima")
        plan.count_gather(values, "the positions of maxima")
        if held is not None:
            held = plan.relayout(held, values.layout.axes, "the positions of maxima")
        layout, _ = values.layout.resize_dim(dim, len(windows[i].positions))
        best = BestAlong(windows[i], axis, below)
        made = plan.calls(best, *([values] if held is None else [values, held]), layouts=[layout, layout])
        values, held = made
    return [Value(v.layout.without_ones(), v.dtype, v.step) for v in made]


@dataclass(frozen=True)
class BestAlong:
    """The best along an axis, and its position; neighbors of this axis are `below` elements apart."""

    windows: Windows
    axis: int
    below: int

    def __call__(self, values, held=None):
        best = position = None
        for tap in range(self.windows.positions.shape[1]):
            at = self.windows.positions[:, tap]
            inside = self.along(self.windows.inside[:, tap], values)
            here = ops.take(values, at.astype("int32"), axis=self.axis)
            offset = ops.cast(self.along(at.astype("int32") * self.below, values), "int64")
            where = offset if held is None else sum_of(ops.take(held, at.astype("int32"), axis=self.axis), offset)
            if best is None:
                best = ops.where(inside, here, ops.full_like(here, lowest(here)))
                position = sum_of(ops.zeros_like(here, dtype="int64"), where)
                continue
            larger = ops.logical_or(here > best, ops.isnan(here)) if is_float(here) else here > best
            better = ops.logical_and(inside, larger)
            best, position = ops.where(better, here, best), ops.where(better, where, position)
        return best, position

    def along(self, numbers: np.ndarray, like):
        """Reshape one number per position of the axis to broadcast."""
        return numbers.reshape([-1 if i == self.axis else 1 for i in range(len(like.shape))])


def is_float(array) -> bool:
    return "float" in backend.standardize_dtype(array.dtype)


def lowest(array) -> float | int:
    return -np.inf if is_float(array) else int(np.iinfo(backend.standardize_dtype(array.dtype)).min)
