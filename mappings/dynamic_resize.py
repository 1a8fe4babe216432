"""Resampling between sizes that are unknown until the model runs: the graph computes the weights.

A size is represented as the length of an array of zeros, cut from a value that has this size. This needs only
`keras.ops` on tensors, so a Keras file can hold it. Sources of the formulas: PyTorch's
aten/src/ATen/native/UpSample.h (positions, cubic coefficients), native/cpu/UpSampleKernel.cpp (antialiasing) and
native/AdaptivePooling.h (windows). Positions between elements are computed in float64, those of "nearest" in float32 as
in PyTorch, those of elements in integers, which LiteRT takes too.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from math import gcd
from typing import Any

import numpy as np
import sympy
import torch
from torch.utils._sympy.functions import FloorDiv, Max, Min

from converter.ir.sizes import Size, per_example, product, quotient
from converter.plan.builder import PlanBuilder
from converter.plan.dynamic_reshape import along, counted
from converter.plan.layout import Layout, Run
from converter.plan.lazy_keras import backend, ops
from converter.plan.steps import Constant, Movement, Unsupported, Value

LEAST, CHECKED = 8, 8192  # range of sizes for which a factor, a float, is checked to act as its fraction
MOST = 100  # largest denominator
# PyTorch's functions of sizes, for arrays.
ROUNDING = {
    "ToFloat": np.float64, "TruncToInt": np.trunc, "FloorToInt": np.floor, "IntTrueDiv": np.true_divide,
    "FloatTrueDiv": np.true_divide, "FloorDiv": np.floor_divide, "RoundToInt": np.round,
}  # fmt: skip
LETTERS = "abcdefgh"


@dataclass(frozen=True)
class Resize:
    """The resampling of one axis.

    Attributes:
        factor: the requested scale factor, None if it follows from the sizes.
        align_corners: the first and last elements stay in place.
    """

    factor: float | None = None
    align_corners: bool = False

    def ratio(self, size: Any, out: Any) -> Any:
        """Return the distance in elements from one result to the next."""
        if self.align_corners:
            return (size - 1) / ops.maximum(out - 1, 1)
        return 1 / self.factor if self.factor else size / out

    def center(self, i: Any, size: Any, out: Any) -> Any:
        return i * self.ratio(size, out) if self.align_corners else (i + 0.5) * self.ratio(size, out) - 0.5


Weights = Callable[[Resize, Any, Any, Any, Any], Any]


def within(places: Any, size: Any) -> Any:
    return ops.minimum(ops.maximum(places, 0), size - 1)


def linear(resize: Resize, i: Any, j: Any, size: Any, out: Any) -> Any:
    """Return the weight of element `j` in result `i` for `size` elements and `out` results, broadcast, in float64."""
    center = within(resize.center(i, size, out), size)
    return ops.relu(1 - ops.abs(center - j))


def cubic(resize: Resize, i: Any, j: Any, size: Any, out: Any) -> Any:
    center = resize.center(i, size, out)
    first = ops.floor(center)
    total = ops.zeros_like(center - j)
    for tap in (-1, 0, 1, 2):
        here = ops.equal(within(first + tap, size), j)
        total = total + ops.where(here, cubic_filter(center - first - tap, -0.75), 0)
    return total


def antialiased(radius: int, filter: Callable[[Any], Any]) -> Weights:
    """Return weights by `filter`, which is 0 from `radius` on, as wide as the elements that one result covers."""

    def weights(resize: Resize, i: Any, j: Any, size: Any, out: Any) -> Any:
        ratio = resize.ratio(size, out)
        width = max(ratio, 1.0) if isinstance(ratio, float) else ops.maximum(ratio, 1)
        center = ratio * (i + 0.5)
        first = ops.maximum(ops.floor(center - radius * width + 0.5), 0)
        last = ops.minimum(ops.floor(center + radius * width + 0.5), size)
        inside = ops.logical_and(j >= first, j < last)
        found = ops.where(inside, filter((j - center + 0.5) / width), 0)
        return found / ops.sum(found, axis=1, keepdims=True)

    return weights


def triangle(x: Any) -> Any:
    return ops.relu(1 - ops.abs(x))


def cubic_filter(x: Any, a: float) -> Any:
    """Compute Keys' cubic convolution with coefficient `a`."""
    x = ops.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return ops.where(x <= 1, near, ops.where(x < 2, far, 0))


def window(i: Any, size: Any, out: Any) -> tuple[Any, Any]:
    """Return the window of an adaptive pool for result `i`: from floor(i size / out) to ceil((i + 1) size / out)."""
    return ops.floor_divide(i * size, out), -ops.floor_divide(-(i + 1) * size, out)


def mean(resize: Resize, i: Any, j: Any, size: Any, out: Any) -> Any:
    """Return the weights of adaptive average pooling."""
    first, last = window(i, size, out)
    return ops.where(ops.logical_and(j >= first, j < last), 1 / (last - first), 0)


def weighted(plan: PlanBuilder, x: Value, dim: int, out: Size, resize: Resize, weights: Weights, reason: str) -> Value:
    """Resample `dim` of `x` to the size `out`."""
    x, axis = plan.isolate_axis(x, dim, reason)
    layout, _ = x.layout.resize_dim(dim, out)
    rank = len(x.layout.axes)
    before = LETTERS[:rank]
    equation = f"z{before[axis]},{before}->{before.replace(before[axis], 'z')}"

    def run(array: Any, *zeros: Any) -> Any:
        j, size = counted(along(array, axis))
        i, results = counted(zeros[0] if zeros else ops.zeros(out, "float64"))
        matrix = weights(resize, ops.expand_dims(i, 1), ops.expand_dims(j, 0), size, results)
        return ops.einsum(equation, ops.cast(matrix, array.dtype), array)

    if axis < rank - 1:
        moved = per_example(product(x.shape))
        plan.movements.append(Movement("Transpose", plan.name, f"{reason} of a dynamic size", moved, moved, plan.node))
    return plan.call(run, x, *zeros_of(plan, x, dim, out), layout=layout)


def largest(plan: PlanBuilder, x: Value, dim: int, out: Size) -> Value:
    """Apply adaptive max pooling of `dim` to the size `out`; each result scans all elements, not only its window."""
    x, axis = plan.isolate_axis(x, dim, "an adaptive pool")
    layout, _ = x.layout.resize_dim(dim, out)
    behind = len(x.layout.axes) - axis - 1

    def run(array: Any, *zeros: Any) -> Any:
        j, size = counted(along(array, axis))
        i, results = counted(zeros[0] if zeros else ops.zeros(out, "float64"))
        first, last = window(ops.expand_dims(i, 1), size, results)
        inside = ops.logical_and(j >= first, j < last)
        for _ in range(behind):
            inside = ops.expand_dims(inside, -1)
        spread = ops.expand_dims(array, axis)
        return ops.max(ops.where(inside, spread, ops.full_like(spread, -np.inf)), axis=axis + 1)

    return plan.call(run, x, *zeros_of(plan, x, dim, out), layout=layout)


def nearest(plan: PlanBuilder, x: Value, dim: int, out: Size, factor: float | None, exact: bool) -> Value:
    """Pick the nearest elements of `dim` of `x`, at PyTorch's positions in float32."""
    x, axis = plan.isolate_axis(x, dim, "nearest")
    layout, _ = x.layout.resize_dim(dim, out)

    def run(array: Any, *zeros: Any) -> Any:
        _, size = counted(along(array, axis), "float32")
        i, results = counted(zeros[0] if zeros else ops.zeros(out, "float32"), "float32")
        ratio = float(np.float32(1 / factor)) if factor else size / results
        places = ops.minimum(ops.floor((i + 0.5 if exact else i) * ratio), size - 1)
        return ops.take(array, ops.cast(places, "int32"), axis)

    plan.count_gather(x, "nearest of a dynamic size")
    return plan.call(run, x, *zeros_of(plan, x, dim, out), layout=layout)


def part(plan: PlanBuilder, x: Value | Constant, dim: int, start: Size, length: Size) -> Value:
    """Take `length` elements of `dim` from `start` on, one of the two dynamic; also of a constant such as positions."""
    x = as_value(plan, x)
    x, axis = plan.isolate_axis(x, dim, "a slice")
    layout, _ = x.layout.resize_dim(dim, length)
    lines, positions = computed_positions(plan, x, dim, start, length)

    def run(array: Any, *arrays: Any) -> Any:
        return ops.take(array, positions(arrays), axis)

    plan.count_gather(x, "a slice of a dynamic size")
    return plan.call(run, x, *lines, layout=layout)


def zeros_of(plan: PlanBuilder, x: Value, dim: int, out: Size) -> list[Value]:
    """Return a list with a line of `out` zeros, or an empty list if `out` is known."""
    if isinstance(out, int):
        return []
    found = multiple_held(plan, out)
    if found is not None:
        return [found]
    share = as_share(x.shape[dim], out)
    if share is None:
        return [zeros(plan, out)]
    value, axis = plan.isolate_axis(x, dim, "its size")
    return [cut(plan, value, axis, out, share)]


def multiple_held(plan: PlanBuilder, out: Size) -> Value | None:
    """Return a line of `out` zeros, cut from a value that has a whole fraction of this size, or None."""
    for value in held(plan):
        for axis, run in enumerate(value.layout.axes):
            times = quotient(out, value.layout.extent(run)) if run else None
            if isinstance(times, int) and times:
                return cut(plan, value, axis, out, Share(times))
    return None


def zeros_held(plan: PlanBuilder, out: Size, may_be_empty: bool = False) -> Value | None:
    """Return a line of `out` zeros from a value that has a whole fraction of this size, or else from an input, or None.

    Of an input, any size computed from one of its own by sums, products and divisions that round will do.
    """
    found = multiple_held(plan, out)
    if found is not None:
        return found
    for step in plan.input_steps:
        for axis, size in enumerate(step.shape):
            share = as_share(size, out)
            if share is not None:
                value = Value(Layout.of(step.shape), step.dtype, step)
                return cut(plan, value, axis, out, share, may_be_empty)
    return None


def zeros(plan: PlanBuilder, size: Size, may_be_empty: bool = False) -> Value:
    """Return a line of `size` zeros, made of lines of the dynamic sizes in it.

    Args:
        may_be_empty: the size is 0 at some of the sizes that it is computed from.

    Raises:
        Unsupported: no sums, differences, products and divisions of sizes that values have give it.
    """
    found = zeros_held(plan, size, may_be_empty)
    if found is not None:
        return found
    terms = dict(sympy.expand(size).as_coefficients_dict())
    number = int(terms.pop(sympy.S.One, 0))
    times = reduce(gcd, map(int, terms.values()), number)
    if times > 1:
        return cut(plan, zeros(plan, sympy.expand(size / times)), 0, size, Share(times))
    negative = [term for term, n in terms.items() if n < 0]
    if negative:
        division, *others = negative
        if others or terms[division] != -1 or not isinstance(division, FloorDiv):
            return _difference(plan, size, sum(term * n for term, n in (*terms.items(), (1, number)) if n > 0))
        of, by = division.args  # n - floor(a / b) = floor((b n + b - 1 - a) / b)
        return cut(plan, zeros(plan, sympy.expand(by * (size + division) + by - 1 - of)), 0, size, Share(1, int(by)))
    if len(terms) > 1 or number or 1 not in terms.values():
        parts = [zeros(plan, term, _may_be_empty(term)) for term, n in terms.items() for _ in range(int(n))]
        return _extended(plan, parts, number, size)
    if isinstance(size, FloorDiv) and isinstance(size.args[1], sympy.Integer):
        return cut(plan, zeros(plan, size.args[0]), 0, size, Share(1, int(size.args[1])), may_be_empty)
    for value in held(plan):  # only multiples of an input's size are allowed
        for axis, run in enumerate(value.layout.axes):
            share = as_share(value.layout.extent(run), size)
            if share is not None:
                return cut(plan, value, axis, size, share)
    if isinstance(size, sympy.Mul):
        return _product(plan, size)
    if isinstance(size, Max | Min):
        return _chosen(plan, size)
    raise Unsupported(f"a size ({plan.program.size_name(size)}) that cannot be computed from those of earlier tensors")


def _may_be_empty(size: Size) -> bool:
    """Return whether a size in a sum is 0 where the one that it is a part of is less than the part."""
    return isinstance(size, FloorDiv) and isinstance(size.args[1], sympy.Integer) and int(size.args[1]) > 2


def _product(plan: PlanBuilder, size: sympy.Mul) -> Value:
    """Return as many zeros as a product of two sizes."""
    first, rest = size.as_two_terms()

    def cross(a: Any, b: Any) -> Any:
        return ops.reshape(ops.expand_dims(a, 1) + ops.expand_dims(b, 0), (-1,))

    line = Layout(((0,),), ((0,),), {0: size})
    return plan.call(cross, zeros(plan, first), zeros(plan, rest), layout=line, dtype=torch.float32)


def _chosen(plan: PlanBuilder, size: sympy.Expr) -> Value:
    """Return as many zeros as the largest or smallest of several sizes: of all in a row, the first that count."""
    parts = [arg for arg in size.args if not arg.is_Integer]
    number = [int(arg) for arg in size.args if arg.is_Integer]
    choose = ops.maximum if isinstance(size, Max) else ops.minimum

    def cut(*lines: Any) -> Any:
        lines = (*lines, *(ops.zeros(n) for n in number))
        row = ops.concatenate(lines)
        return behind(row, counted(row, "int32")[1] - reduce(choose, (counted(line, "int32")[1] for line in lines)))

    line = Layout(((0,),), ((0,),), {0: size})
    return plan.call(cut, *(zeros(plan, part) for part in parts), layout=line, dtype=torch.float32)


def _difference(plan: PlanBuilder, size: Size, whole: Size) -> Value:
    """Return as many zeros as a difference of two sizes, of which `whole` is the larger."""

    def cut(row: Any, without: Any) -> Any:
        return behind(row, counted(without, "int32")[1])

    line = Layout(((0,),), ((0,),), {0: size})
    rest = sympy.expand(whole - size)
    parts = (zeros(plan, each, _may_be_empty(each)) for each in (whole, rest))
    return plan.call(cut, *parts, layout=line, dtype=torch.float32)


def behind(row: Any, start: Any) -> Any:
    """Return the elements of a line from `start` on, a number that the graph computes."""
    if backend.is_keras_tensor(row):  # in PyTorch, Keras cannot slice to the end
        return ops.take(row, ops.nonzero(counted(row, "int32")[0] >= start)[0])
    return ops.slice(row, [start], [-1])  # LiteRT has no operator for what nonzero becomes


def _extended(plan: PlanBuilder, parts: Sequence[Value], number: int, size: Size) -> Value:
    """Return the lines in a row, and `number` zeros more, or fewer if that is negative."""

    def join(*lines: Any) -> Any:
        line = ops.concatenate(lines) if len(lines) > 1 else lines[0]
        return ops.pad(line, ((0, number),)) if number > 0 else line[(slice(-number, None),)]

    return plan.call(join, *parts, layout=Layout(((0,),), ((0,),), {0: size}), dtype=torch.float32)


def computed_positions(
    plan: PlanBuilder, x: Value, dim: int, first: Size, length: Size
) -> tuple[list[Value], Callable[..., Any]]:
    """Return values to pass to a step, and a function that computes `length` positions from `first` on of their arrays.

    Each value is a line that is as long as a dynamic size; `dim` of `x` is where to look for `length` first.
    """
    expression = sympy.sympify(first)
    if any(not isinstance(function, FloorDiv | Max | Min) for function in expression.atoms(sympy.Function, Max, Min)):
        raise Unsupported(f"a position ({plan.program.size_name(first)}) that is not computed from sizes by division")
    symbols = sorted(expression.free_symbols, key=str)
    of_arrays = {"FloorDiv": ops.floor_divide, "Max": ops.maximum, "Min": ops.minimum}
    value = sympy.lambdify(symbols, expression, [of_arrays])
    line = zeros_of(plan, x, dim, length)

    def positions(arrays: Sequence[Any]) -> Any:
        places, _ = counted(arrays[0] if line else ops.zeros(length), "int32")
        return places + value(*(counted(array, "int32")[1] for array in arrays[len(line) :]))

    return [*line, *(zeros(plan, symbol) for symbol in symbols)], positions


def places(plan: PlanBuilder, x: Value | Constant, dim: int, size: Size) -> Value:
    """Return the positions 0, 1, ... along `dim` of `x`, whose size is `size`."""
    zeros = zeros_of(plan, as_value(plan, x), dim, size) or [next(held(plan))]
    layout = Layout(((0,),), ((0,),), {0: size})
    known = isinstance(size, int)
    return plan.call(
        lambda a: ops.arange(size, dtype="float32") if known else counted(a, "float32")[0], *zeros, layout=layout,
        dtype=torch.float32,
    )  # fmt: skip


def opened(plan: PlanBuilder, x: Value) -> Value:
    """Split each axis of `x` that several factors share, dynamic ones among them, into one axis per factor.

    Keras can reshape to one dynamic size only, so the elements are taken by their positions instead.

    Raises:
        Unsupported: a factor is a size that nothing else has.
    """
    axes: list[Run] = []
    shared: list[tuple[int, Run]] = []
    for axis, run in enumerate(x.layout.axes):
        mixed = len(run) > 1 and not all(isinstance(x.layout.size[a], int) for a in run)
        shared += [(axis, run)] if mixed else []
        axes += [(a,) for a in run] if mixed else [run]
    if not shared:
        return x
    lines: list[Value] = []
    for atom in (a for _, run in shared for a in run if not isinstance(x.layout.size[a], int)):
        lines.append(zeros(plan, x.layout.size[atom]))

    def take(array: Any, *counts: Any) -> Any:
        left = list(counts)
        found = []
        for axis, run in shared:
            position: Any = 0
            for place, atom in enumerate(run):
                size = x.layout.size[atom]
                i, n = counted(ops.zeros(size) if isinstance(size, int) else left.pop(0), "int32")
                behind = len(run) - 1 - place
                position = position * n + ops.reshape(i, (-1, *(1,) * behind))
            found.append((axis, position))
        for axis, positions in reversed(found):
            array = ops.take(array, positions, axis)
        return array

    plan.count_gather(x, "a view of several dynamic sizes")
    return plan.call(take, x, *lines, layout=Layout(x.layout.dims, tuple(axes), x.layout.size), dtype=x.dtype)


def as_value(plan: PlanBuilder, x: Value | Constant) -> Value:
    """Convert a constant, such as a table of positions, to a value."""
    return x if isinstance(x, Value) else plan.as_value(x, next(held(plan)))


def held(plan: PlanBuilder) -> Iterator[Value]:
    """Yield every value so far, the graph's inputs first."""
    for step in plan.input_steps:
        yield Value(Layout.of(step.shape), step.dtype, step)
    for value in plan.values.values():
        if isinstance(value, Value):
            yield value


@dataclass(frozen=True)
class Share:
    """A size as a function of another: floor((times n + more) / every)."""

    times: int
    every: int = 1
    more: int = 0


def cut(plan: PlanBuilder, value: Value, axis: int, out: Size, share: Share, may_be_empty: bool = False) -> Value:
    """Return as many zeros as the share of the elements along `axis`, of which there may be none."""

    def zeros(array: Any) -> Any:
        line = ops.zeros_like(along(array, axis), dtype="float32")
        if share.times > 1:
            line = ops.repeat(line, share.times, 0)
        if share.more > 0:
            line = ops.pad(line, [(0, share.more)])
        if share.more < 0:
            line = line[(slice(-share.more, None),)]
        if share.every == 1:
            return line
        every = share.every  # Keras cannot step through a dynamic size
        if may_be_empty:  # no pool gives nothing
            line = ops.pad(line, [(0, every)])
        pooled = ops.max_pool(ops.reshape(line, (1, -1, 1)), every, every, data_format="channels_last")
        return pooled[0, 1:, 0] if may_be_empty else pooled[0, :, 0]

    return plan.call(zeros, value, layout=Layout(((0,),), ((0,),), {0: out}), dtype=torch.float32)


def as_share(size: Size, out: Size) -> Share | None:
    """Return the share of `size` that `out` is, or None if there is none with small numbers."""
    symbols = sympy.sympify(size).free_symbols
    if len(symbols) != 1 or sympy.sympify(out).free_symbols != symbols:
        return None
    if not {type(call).__name__ for n in (size, out) for call in sympy.sympify(n).atoms(sympy.Function)} <= {*ROUNDING}:
        return None
    before, after = sizes_at(size, out, np.arange(CHECKED // 2, CHECKED))
    if before[-1] == before[0]:
        return None
    slope = Fraction(float((after[-1] - after[0]) / (before[-1] - before[0]))).limit_denominator(MOST)
    ratio = Fraction(float(after[-1] / before[-1])).limit_denominator(MOST)
    before, after = sizes_at(size, out, np.arange(LEAST, CHECKED))
    if ratio and np.array_equal(after, before * ratio.numerator // ratio.denominator):
        return Share(ratio.numerator, ratio.denominator)
    before, after = sizes_at(size, out, np.arange(2, CHECKED))
    for fraction in (ratio, slope):
        rest = fraction.denominator * after - fraction.numerator * before
        more = int(rest.max())
        if more < rest.min() + fraction.denominator and abs(more) <= MOST:
            return Share(fraction.numerator, fraction.denominator, more)
    return None


def sizes_at(size: Size, out: Size, numbers: np.ndarray) -> tuple[Any, Any]:
    """Return two sizes where their one symbol has these values."""
    symbols = list(sympy.sympify(size).free_symbols)
    before, after = (sympy.lambdify(symbols, n, [ROUNDING, "numpy"])(numbers) for n in (size, out))
    return before, after
