"""Write a spatial shift on a small map as one depthwise convolution (ONNX).

shift(x, 1, sizes, dims, distances, border) -> conv(pad(x), one_hot, groups=channels)

This is faster with onnxruntime; on larger maps, slices and joins are faster. Does not apply if infinities may occur,
because a multiplication by zero makes them NaN.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from converter.ir import custom_ops
from converter.ir.aten import bound_arguments
from converter.ir.program import Origin, Program, module_path
from converter.rewrites.analysis.finiteness import ZERO_WEIGHTS, may_be_infinite
from converter.rewrites.base import Change

aten, ours = torch.ops.aten, torch.ops.converter
LARGEST_KERNEL = 9  # elements
LARGEST_MAP = {"zeros": 1024, "replicate": 144}  # pixels
CONVOLUTIONS = {1: aten.conv1d.default, 2: aten.conv2d.default}
assert custom_ops  # registers torch.ops.converter


def shift_to_depthwise(program: Program) -> list[Change]:
    changes = []
    for node in list(program.graph.find_nodes(op="call_function", target=ours.shift.default)):
        arguments = bound_arguments(node)
        x, dim, border = arguments.node("x"), arguments.integer("dim"), arguments.text("border")
        sizes, dims, distances = (arguments.integers(name) for name in ("sizes", "dims", "distances"))
        spatial = x.meta["val"].shape[2:]
        kernel = one_hot_kernel(x.meta["val"].dim(), dim, sizes, dims, distances)
        if dim != 1 or kernel is None or not all(isinstance(n, int) for n in spatial):
            continue
        if int(np.prod(spatial)) > LARGEST_MAP.get(border, 0) or x.meta["val"].dtype != torch.float32:
            continue
        if ZERO_WEIGHTS not in node.meta and may_be_infinite(program, x):
            continue
        axes, reach = len(spatial), [n // 2 for n in kernel.shape[1:]]
        with program.graph.inserting_before(node):
            if border == "replicate":
                widths = [r for r in reversed(reach) for _ in range(2)]
                x = program.insert_call(aten.pad.default, (x, widths, "replicate"), like=node)
            padding = reach if border == "zeros" else [0] * axes
            weight = program.new_tensor(
                f"{node.name}_kernel", kernel.float()[:, None], node, Origin(()), trainable=False
            )
            operands = (x, weight, None, [1] * axes, padding, [1] * axes, kernel.shape[0])
            moved = program.insert_call(CONVOLUTIONS[axes], operands, like=node)
        node.replace_all_uses_with(moved)
        changes.append(Change("shift as a depthwise convolution", module_path(node), "a small map", routine=True))
    return changes


def one_hot_kernel(
    rank: int, dim: int, sizes: Sequence[int], dims: Sequence[int], distances: Sequence[int], most: int = LARGEST_KERNEL
) -> Tensor | None:
    """Return (elements of `dim`, other axes in order), 1 at each one's source; None where slices are always as fast.

    Args:
        most: the largest kernel, in elements.
    """
    spatial = [d for d in range(1, rank) if d != dim]
    groups = [dict(zip(dims, distances[i * len(dims) :], strict=False)) for i in range(len(sizes))]
    reach = [max(abs(by.get(d, 0)) for by in groups) for d in spatial]
    shape = [2 * n + 1 for n in reach]
    if len(sizes) < 2 or len(spatial) not in CONVOLUTIONS or int(np.prod(shape)) > most:
        return None
    kernel = torch.zeros(sum(sizes), *shape, dtype=torch.float64)
    first = 0
    for size, by in zip(sizes, groups, strict=True):
        place = (r - by.get(d, 0) for r, d in zip(reach, spatial, strict=True))
        at: tuple[slice | int, ...] = (slice(first, first + size), *place)
        kernel[at] = 1
        first += size
    return kernel
