"""Resampling along one axis after another, with matrices from PyTorch's own operator on unit vectors in float64.

So every mode, `align_corners`, scale factor and antialiasing filter is PyTorch's, and the same in every precision.

TensorFlow also has an operator for bilinear resizing by half pixels, without antialiasing. It is 3 to 8 times faster
on a CPU and has PyTorch's rounding, but always computes in float32. So it resizes float32, and the matrices resize
float64: this is the one mapping that differs by precision, and the tables of tests compare it in both.

Between sizes that are unknown until the model runs, the graph computes the weights (`dynamic_resize`).
"""

import functools
from dataclasses import dataclass

import numpy as np
import torch

from converter.ir.sizes import quotient
from converter.plan.layout import channels_last_result
from converter.plan.lazy_keras import backend, image_ops, layers, ops
from converter.plan.registry import maps
from mappings import dynamic_resize
from mappings.axis_matmul import along, multiplied
from mappings.dynamic_resize import Resize
from mappings.indexing import picked

aten = torch.ops.aten
SAMPLE = 1024  # stands in for a dynamic size
UPSAMPLING = {1: layers.UpSampling1D, 2: layers.UpSampling2D, 3: layers.UpSampling3D}
AT_RUN_TIME = {
    aten.upsample_linear1d: dynamic_resize.linear,
    aten.upsample_bilinear2d: dynamic_resize.linear,
    aten.upsample_trilinear3d: dynamic_resize.linear,
    aten.upsample_bicubic2d: dynamic_resize.cubic,
    aten._upsample_bilinear2d_aa: dynamic_resize.antialiased(1, dynamic_resize.triangle),
    aten._upsample_bicubic2d_aa: dynamic_resize.antialiased(2, lambda x: dynamic_resize.cubic_filter(x, -0.5)),
}
NEAREST = {
    aten.upsample_nearest1d: 1,
    aten.upsample_nearest2d: 2,
    aten.upsample_nearest3d: 3,
    aten._upsample_nearest_exact1d: 1,
    aten._upsample_nearest_exact2d: 2,
    aten._upsample_nearest_exact3d: 3,
}
WEIGHTED = {
    aten.upsample_linear1d: 1,
    aten.upsample_bilinear2d: 2,
    aten.upsample_trilinear3d: 3,
    aten.upsample_bicubic2d: 2,
    aten._upsample_bilinear2d_aa: 2,
    aten._upsample_bicubic2d_aa: 2,
}


def along_one_axis(packet, rank, axis, units, out, scale, *options):
    """Apply PyTorch's operator to `units` (batch, size), spread along one of `rank` axes, giving (batch, out)."""
    shape, sizes, scales = [2] * rank, [2] * rank, [None] * rank  # with size 1, antialiasing is wrong in PyTorch 2.13
    shape[axis], sizes[axis], scales[axis] = units.shape[1], out, scale
    lengthwise = [1] * rank
    lengthwise[axis] = units.shape[1]
    image = units.reshape(-1, 1, *lengthwise).expand(-1, 1, *shape).contiguous()
    result = packet.default(image, sizes, *options, *scales).movedim(axis + 2, 1)
    return result.reshape(units.shape[0], out, -1)[:, :, 0]


@functools.cache
def weights(packet, rank, axis, size, out, scale, align_corners) -> np.ndarray:
    """Return the matrix (out, size) of an axis."""
    units = torch.eye(size, dtype=torch.float64)
    return along_one_axis(packet, rank, axis, units, out, scale, align_corners).numpy().T.copy()


@functools.cache
def positions(packet, rank, axis, size, out, scale) -> np.ndarray:
    """Return which element each of the `out` results is."""
    elements = torch.arange(size, dtype=torch.float32)[None]
    return along_one_axis(packet, rank, axis, elements, out, scale)[0].numpy().astype("int32")


@dataclass(frozen=True)
class Bilinear:
    """Bilinear resizing of a channels-last image by half pixels; `matrices` do the same for height and width."""

    size: tuple[int, int]
    matrices: tuple[np.ndarray, np.ndarray]

    def __call__(self, image):
        if backend.standardize_dtype(image.dtype) == "float32":
            return image_ops.resize(image, self.size, interpolation="bilinear", data_format="channels_last")
        for axis, matrix in enumerate(self.matrices, start=1):
            image = along(image, ops.cast(matrix, image.dtype), axis)
        return image


def is_native(packet, x, align_corners, old, new, scales) -> bool:
    """Return whether TensorFlow's operator is the same function, for an image that is already channels last."""
    by_ratio = all(s is None or n * s == m for n, m, s in zip(old, new, scales, strict=True))
    lies = x.layout.channels_last() == x.layout.axes
    return packet is aten.upsample_bilinear2d and not align_corners and by_ratio and lies


def channels_kept_last(plan, x):
    """Make an image channels last if that is free, for example without pixels after a global pool."""
    axes = x.layout.channels_last()
    free = axes != x.layout.axes and x.layout.to(axes)[1].order is None
    return plan.relayout(x, axes, "a resize") if free else x


def resize(plan, packet, rank, x, align_corners, scales):
    old, new = x.shape[2:], plan.shape()[2:]
    if not all(isinstance(n, int) for n in (*old, *new)):
        x = dynamic_resize.as_value(plan, x)
        for dim, (n, m, factor) in enumerate(zip(old, new, scales, strict=True), start=2):
            if n != m or factor not in (None, 1):
                by = Resize(factor, align_corners)
                x = dynamic_resize.weighted(plan, x, dim, m, by, AT_RUN_TIME[packet], "a resize")
        return x
    x = channels_kept_last(plan, x)
    if is_native(packet, x, align_corners, old, new, scales):
        height, width = (weights(packet, rank, i, old[i], new[i], scales[i], align_corners) for i in range(rank))
        layout = channels_last_result(x.layout, plan.shape(), channels=1)
        return plan.call(Bilinear(tuple(new), (height, width)), x, layout=layout)
    steps = [
        (axis + 2, weights(packet, rank, axis, old[axis], new[axis], scales[axis], align_corners))
        for axis in range(rank)
    ]
    for dim, matrix in sorted(steps, key=lambda step: step[1].shape[0] / step[1].shape[1]):  # shrinking axes first
        x = multiplied(plan, x, dim, matrix, "a resize")
    return x


def pick(plan, packet, rank, x, scales):
    old, new = x.shape[2:], plan.shape()[2:]
    if not all(isinstance(n, int) for n in (*old, *new)):
        return pick_at_run_time(plan, packet, rank, x, new, scales)
    chosen = [positions(packet, rank, axis, old[axis], new[axis], scales[axis]) for axis in range(rank)]
    factors = tuple(n // m for n, m in zip(new, old, strict=True))
    if all(np.array_equal(p, np.arange(n).repeat(f)) for p, n, f in zip(chosen, old, factors, strict=True)):
        return repeated(plan, rank, x, factors)
    for dim, indices in enumerate(chosen, start=2):
        x = picked(plan, x, dim, indices, "nearest by a broken factor")
    return x


def repeated(plan, rank, x, factors):
    x, _ = plan.channels_last(x)
    config = {"size": factors if rank > 1 else factors[0]}
    layout = channels_last_result(x.layout, plan.shape(), channels=1)
    return plan.layer(UPSAMPLING[rank], config, x, layout=layout, name=plan.name.lstrip("_"))


def pick_at_run_time(plan, packet, rank, x, new, scales):
    wholes = [quotient(m, n) for n, m in zip(x.shape[2:], new, strict=True)]
    factors = tuple(f for f, s in zip(wholes, scales, strict=True) if isinstance(f, int) and s in (None, f))
    if len(factors) == rank:
        chosen = [positions(packet, rank, axis, SAMPLE, SAMPLE * f, scales[axis]) for axis, f in enumerate(factors)]
        if all(np.array_equal(p, np.arange(SAMPLE).repeat(f)) for p, f in zip(chosen, factors, strict=True)):
            return repeated(plan, rank, x, factors)
    exact = "exact" in str(packet)
    x = dynamic_resize.as_value(plan, x)
    for dim, (n, m, factor) in enumerate(zip(x.shape[2:], new, scales, strict=True), start=2):
        if n != m or factor not in (None, 1):
            x = dynamic_resize.nearest(plan, x, dim, m, factor, exact)
    return x


def register_weighted(packet, rank):
    @maps(packet.default, channels_last=True)
    def by_size(plan, x, output_size, align_corners, *scales):
        return resize(plan, packet, rank, x, align_corners, scales or (None,) * rank)

    @maps(packet.vec, channels_last=True)
    def by_size_or_scale(plan, x, output_size, align_corners, scale_factors=None):
        return resize(plan, packet, rank, x, align_corners, scale_factors or (None,) * rank)


def register_nearest(packet, rank):
    @maps(packet.default, channels_last=True)
    def by_size(plan, x, output_size, *scales):
        return pick(plan, packet, rank, x, scales or (None,) * rank)

    @maps(packet.vec, channels_last=True)
    def by_size_or_scale(plan, x, output_size, scale_factors=None):
        return pick(plan, packet, rank, x, scale_factors or (None,) * rank)


for packet, rank in WEIGHTED.items():
    register_weighted(packet, rank)
for packet, rank in NEAREST.items():
    register_nearest(packet, rank)
