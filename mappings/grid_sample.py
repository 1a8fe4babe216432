"""Sampling at the positions of a grid, and the grid of an affine map.

A tap is a pixel that a sample reads: its position in the image with all spatial axes flattened, and its weight. The
taps are gathered one after another, so memory grows with the result and not with the number of taps.
"""

import itertools

import numpy as np
import torch

from converter.ir.lazy_tensor import LazyTensor
from converter.ir.sizes import product
from converter.plan.dynamic_reshape import along, counted
from converter.plan.layout import Layout, channels_last_result
from converter.plan.lazy_keras import ops
from converter.plan.registry import maps
from converter.plan.steps import Constant, Unsupported, Value
from mappings.elementwise import sum_of

aten = torch.ops.aten
BILINEAR, NEAREST, BICUBIC = range(3)
ZEROS, BORDER, REFLECTION = range(3)


@maps(aten.grid_sampler.default, aten.grid_sampler_2d.default, aten.grid_sampler_3d.default, channels_last=True)
def grid_sampler(plan, x, grid, interpolation_mode, padding_mode, align_corners):
    sizes = x.shape[2:]
    x, _ = plan.channels_last(x)
    widths = margins(interpolation_mode, padding_mode)
    layout = channels_last_result(x.layout, plan.shape(), channels=1)

    def located(g, sizes=sizes):
        by_axis = [
            taps(g[..., len(sizes) - 1 - axis], size, interpolation_mode, padding_mode, align_corners)
            for axis, size in enumerate(sizes)
        ]
        return combined(by_axis, [whole(n) + sum(widths) for n in sizes])

    for _ in range({BILINEAR: 2, NEAREST: 1, BICUBIC: 4}[interpolation_mode] ** len(sizes)):
        plan.count_gather(Value(layout, x.dtype, x.step), "a grid to sample at")
    fixed = fixed_grid(plan) if all(isinstance(n, int) for n in sizes) else None
    if fixed is not None:
        held = [n + sum(widths) for n in sizes]
        found = [(np.asarray(index), None if w is None else np.asarray(w)) for index, w in located(fixed)]
        tables = [plan.as_value(table(a, plan.dtype), x) for pair in found for a in pair if a is not None]
        shape = [-1, *plan.shape()[2:]]

        def at_fixed_positions(a, *tables):
            pixels = ops.reshape(padded(a, widths), (-1, product(held), a.shape[-1]))
            given = iter(tables)
            samples = [
                weighted(ops.take(pixels, next(given), axis=1), None if w is None else next(given)) for _, w in found
            ]
            return ops.reshape(total(samples), (*shape, a.shape[-1]))

        return plan.call(at_fixed_positions, x, *tables, layout=layout)

    grid = plan.in_torch_order(plan.as_value(grid, x), "a grid to sample at")

    def at_positions(a, g):
        pixels = ops.reshape(padded(a, widths), (-1, a.shape[-1]))
        found = [
            n if isinstance(n, int) else ops.cast(counted(along(a, axis))[1], g.dtype)
            for axis, n in enumerate(sizes, start=1)
        ]
        first = batch_index(g, len(sizes) + 1) * product(whole(n) + sum(widths) for n in found)
        return total(weighted(ops.take(pixels, sum_of(index, first), axis=0), w) for index, w in located(g, found))

    return plan.call(at_positions, x, grid, layout=layout)


def fixed_grid(plan):
    """Return the grid of one example, as float64, if it is known at conversion and the same for all examples."""
    node = plan.node.args[1]
    while node.op == "call_function" and node.target in (aten.expand.default, aten.repeat.default):
        source, repeated = node.args[0], node.args[1]
        if node.target is aten.repeat.default and any(n != 1 for n in repeated[1:]):
            return None
        node = source
    if node.op != "get_attr":
        return None
    grid = plan.program.tensor(node)
    whole = grid.shape[0] == 1 and tuple(grid.shape[1:]) == tuple(plan.node.args[1].meta["val"].shape[1:])
    return grid.detach().double().numpy()[0] if whole else None


def table(array, dtype):
    """Convert an array of positions or weights to a constant."""
    tensor = torch.from_numpy(np.ascontiguousarray(array).astype("int64" if array.dtype.kind == "i" else "float64"))
    dtype = torch.int64 if array.dtype.kind == "i" else dtype
    return Constant(LazyTensor.of(tensor), dtype, (), False, False, ("table", array.shape, tensor.numpy().tobytes()))


# -- on arrays, whose sizes are integers or, if they are dynamic, arrays of floats


def whole(size):
    return size if isinstance(size, int) else ops.cast(size, "int32")


def within(p, low, high):
    fixed = all(isinstance(n, int | float) for n in (low, high))
    return ops.clip(p, low, high) if fixed else ops.maximum(ops.minimum(p, high), low)


def margins(mode, padding):
    """Return the zeros around the image, before and after each axis, that outside taps read."""
    if padding == ZEROS:
        return 1, 1
    return (0, 1) if mode == BILINEAR else (0, 0)  # the far tap of the last pixel, whose weight is 0


def padded(array, widths):
    return ops.pad(array, [(0, 0), *[widths] * (len(array.shape) - 2), (0, 0)]) if any(widths) else array


def batch_index(array, rank):
    """Return the position of each example in the batch, as (B, 1, ...) of rank `rank`."""
    first = array[(slice(None), *(0,) * (len(array.shape) - 1))]
    counted = ops.cumsum(ops.ones_like(first, dtype="int32")) - 1
    return ops.reshape(counted, (-1, *(1,) * (rank - 1)))


def combined(along, sizes):
    """Combine the taps of each axis into those of all: positions in the flattened image, and products of weights."""
    for chosen in itertools.product(*along):
        index, weight = 0, None
        for (position, factor), size in zip(chosen, sizes, strict=True):
            index = index * size + position
            weight = factor if weight is None else weight * factor
        yield index, weight


def weighted(samples, weight):
    return samples if weight is None else samples * ops.expand_dims(weight, -1)


def total(samples):
    result = None
    for sample in samples:
        result = sample if result is None else result + sample
    return result


def taps(coordinate, size, mode, padding, align_corners):
    """Return [(position, weight)] along one axis for normalized coordinates, weight None for 1.

    Follows PyTorch's documentation of `grid_sample`: -1 and 1 are the corner pixels' centers (`align_corners`) or
    their outer edges.
    """
    p = (coordinate + 1) * ((size - 1) / 2) if align_corners else (coordinate + 1) * (size / 2) - 0.5
    if mode == BICUBIC:
        if padding != REFLECTION:
            p = within(p, -4, size + 3)  # still far enough for all taps to be outside; integers overflow beyond
        base = ops.floor(p)
        return [
            (pixel(bounded(base + (k - 1), size, padding, align_corners), size, padding), weight)
            for k, weight in enumerate(cubic(p - base))
        ]
    p = bounded(p, size, padding, align_corners)
    if mode == NEAREST:
        return [(pixel(ops.round(p), size, padding), None)]
    return linear(p, size, padding)


def linear(p, size, padding):
    """Return the taps of a position in pixels, at most one pixel outside."""
    base = ops.floor(p)
    behind = p - base
    first = ops.cast(base, "int32") + (1 if padding == ZEROS else 0)
    most = whole(size) + (1 if padding == ZEROS else 0)
    return [(clipped(first, most), 1 - behind), (clipped(first + 1, most), behind)]


def pixel(p, size, padding):
    """Convert a whole position to an integer; ZEROS has a pixel before the first."""
    if padding == ZEROS:
        return clipped(ops.cast(within(p, -1, size), "int32") + 1, whole(size) + 1)
    return clipped(ops.cast(p, "int32"), whole(size) - 1)


def clipped(index, most):
    """Clip an index to 0 to `most`; LiteRT takes `ops.clip` to 6 for ReLU6, which it does not have for integers."""
    return ops.minimum(ops.maximum(index, 0), most)


def bounded(p, size, padding, align_corners):
    """Bring a position into the image or, if zeros are outside, at most next to it."""
    if padding == ZEROS:
        return within(p, -1, size)
    if padding == REFLECTION:
        p = reflected(p, *((0, size - 1) if align_corners else (-0.5, size - 0.5)))
    return within(p, 0, size - 1)


def reflected(p, low, high):
    span = high - low
    if not isinstance(span, int | float):
        span = ops.maximum(span, 1)  # of one pixel, to which everything is brought after this
    if isinstance(span, int) and span == 0:
        return ops.zeros_like(p)
    p = ops.abs(p - low)
    turns = ops.floor(p / span)
    inside = p - turns * span
    return ops.where(ops.equal(ops.mod(turns, 2), 0), inside + low, high - inside)


def cubic(t, a=-0.75):
    """Return the weights of four pixels around a position `t` after the second.

    Cubic convolution: R. Keys, IEEE Trans. Acoustics, Speech, and Signal Processing 29 (1981), p. 1153-1160.
    """

    def near(d):
        return ((a + 2) * d - (a + 3)) * d * d + 1

    def far(d):
        return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a

    return [far(t + 1), near(t), near(1 - t), far(2 - t)]


# -- grids


@maps(aten.affine_grid_generator.default)
def affine_grid(plan, theta, size, align_corners):
    """Compute each coordinate as a sum of products with the coordinates of an image, which are constants."""
    sizes = plan.shape()[1:-1]
    if not all(isinstance(n, int) for n in sizes):
        raise Unsupported("an image of dynamic size")
    rank = len(sizes)
    identity = torch.eye(rank, rank + 1, dtype=torch.float64)[None]
    base = aten.affine_grid_generator.default(identity, [1, 1, *sizes], align_corners)[0].numpy()
    if isinstance(theta, Constant):
        theta = plan.as_value(theta, Value(Layout.of(plan.input_steps[0].shape), plan.dtype, plan.input_steps[0]))
    theta = plan.in_torch_order(theta, "an affine map")
    lines = [base[(*(0,) * (rank - 1 - i), slice(None), *(0,) * i, i)] for i in range(rank)]  # along the i-th last axis
    held = [plan.as_value(table(line, plan.dtype), theta) for line in lines]

    def apply(t, *lines):
        t = ops.reshape(t, (-1, *(1,) * rank, rank, rank + 1))
        made = t[..., rank]
        for i, line in enumerate(lines):
            made = sum_of(made, t[..., i] * ops.reshape(line, (1, *(1,) * (rank - 1 - i), -1, *(1,) * i, 1)))
        return made

    return plan.call(apply, theta, *held, layout=Layout.of(plan.shape()))
