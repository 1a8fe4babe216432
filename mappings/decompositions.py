"""Operators in terms of other PyTorch operators, where PyTorch has no decomposition or decomposes into unmapped ones.

Each function takes the node it serves, or None if another operator was decomposed to this one, and the operator's
own arguments; tensors among them have no values.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from converter.ir.aten import bound_arguments
from converter.plan.registry import decomposes

aten = torch.ops.aten
SUM, MEAN, MAXIMUM = range(3)


@decomposes(aten.resize.default)
def resize(node, x, size, *, memory_format=None):
    """Take the first elements if there are enough; more would be uninitialized memory."""
    count = math.prod(size)
    return x.reshape(-1)[:count].reshape(size) if count <= x.numel() else NotImplemented


@decomposes(aten.bilinear.default)
def bilinear(node, x, y, weight, bias=None):
    """Compute bilinear of integers; weight: (outputs, features of x, features of y)."""
    outputs, of_x, of_y = weight.shape
    products = F.linear(y, weight.reshape(outputs * of_x, of_y)).unflatten(-1, (outputs, of_x))
    result = (products * x.unsqueeze(-2)).sum(-1, dtype=x.dtype)
    return result if bias is None else result + bias


@decomposes(aten.nanmedian.default)
def nanmedian(node, x):
    return x.reshape(-1).nanmedian(0)[0]


@decomposes(aten.im2col.default)
def im2col(node, x, kernel_size, dilation, padding, stride):
    """Take one slice per place in the window, for all windows: (B, C, H, W) to (B, C * kh * kw, windows)."""
    padded = F.pad(x, (padding[1], padding[1], padding[0], padding[0])) if any(padding) else x
    ends = [
        (n - d * (k - 1) - 1) // s * s + 1
        for n, k, d, s in zip(padded.shape[-2:], kernel_size, dilation, stride, strict=True)
    ]
    places = [
        padded[..., row : row + ends[0] : stride[0], column : column + ends[1] : stride[1]]
        for row in range(0, kernel_size[0] * dilation[0], dilation[0])
        for column in range(0, kernel_size[1] * dilation[1], dilation[1])
    ]
    return torch.stack(places, -3).flatten(-4, -3).flatten(-2)


@decomposes(aten.max_unpool2d.default)
def max_unpool2d(node, x, indices, output_size):
    return unpooled(x, indices, output_size)


@decomposes(aten.max_unpool3d.default)
def max_unpool3d(node, x, indices, output_size, stride=None, padding=None):
    return unpooled(x, indices, output_size)


def unpooled(x, indices, output_size):
    """Put each element at its position in the flattened spatial axes, and zeros elsewhere."""
    rank = len(output_size)
    flat = x.new_zeros((*x.shape[:-rank], math.prod(output_size)))
    flat = flat.scatter(-1, indices.flatten(-rank), x.flatten(-rank))
    return flat.unflatten(-1, output_size)


# -- linear algebra


@decomposes(aten.triangular_solve.default)
def triangular_solve(node, b, a, upper=True, transpose=False, unitriangular=False):
    held = a.mT if transpose else a
    solved = torch.linalg.solve_triangular(held, b, upper=upper != transpose, unitriangular=unitriangular)
    return solved, a.expand(*solved.shape[:-2], *a.shape[-2:])


@decomposes(aten.cholesky_solve.default)
def cholesky_solve(node, b, factor, upper=False):
    lower = factor.mT if upper else factor
    half = torch.linalg.solve_triangular(lower, b, upper=False)
    return torch.linalg.solve_triangular(lower.mT, half, upper=True)


@decomposes(aten.cholesky_inverse.default)
def cholesky_inverse(node, factor, upper=False):
    lower = factor.mT if upper else factor
    one = torch.eye(lower.shape[-1], dtype=lower.dtype).expand(lower.shape)
    half = torch.linalg.solve_triangular(lower, one, upper=False)
    return half.mT @ half


# -- bags of embeddings


@decomposes(aten.embedding_bag.default, aten.embedding_bag.padding_idx)
def embedding_bag(
    node, weight, indices, offsets, scale_grad_by_freq=False, mode=SUM, sparse=False, per_sample_weights=None,
    include_last_offset=False, padding_idx=None,
):  # fmt: skip
    """Compute only the first of the results; the others serve the gradient."""
    if padding_idx is not None and padding_idx < 0:
        padding_idx += weight.shape[0]
    kept = torch.ones_like(indices, dtype=torch.bool) if padding_idx is None else indices != padding_idx
    rows = F.embedding(indices, weight)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.unsqueeze(-1)
    size = size_of_bags(node, indices)
    if size is not None and not include_last_offset:
        rows, kept = rows.reshape(-1, size, rows.shape[-1]), kept.reshape(-1, size)
    else:
        at = torch.cumsum(torch.ones_like(indices), 0) - 1
        own = (at >= offsets.unsqueeze(1)).sum(0) - 1  # of bags that begin at one place the last has what is there
        count = offsets.shape[0] - (1 if include_last_offset else 0)
        bags = torch.cumsum(torch.ones_like(offsets), 0)[:count] - 1
        kept = (own == bags.unsqueeze(1)) & kept
        rows = rows.expand(count, *rows.shape)
    held = torch.where(kept.unsqueeze(-1), rows, -math.inf if mode == MAXIMUM else 0.0)
    number = kept.sum(1, keepdim=True)
    if mode == MAXIMUM:
        result = torch.where(number > 0, held.amax(1), 0.0)
    else:
        result = held.sum(1) / number.clamp(min=1).to(held.dtype) if mode == MEAN else held.sum(1)
    return result, None, None, None


def size_of_bags(node: fx.Node | None, indices: torch.Tensor) -> int | None:
    """Return the size of each bag if bags of one size were flattened, in which case PyTorch counts their offsets."""
    offsets = bound_arguments(node).value("offsets") if node is not None else None
    if not isinstance(offsets, fx.Node) or offsets.target is not aten.arange.start_step:
        return None
    start, end, size = (bound_arguments(offsets).value(name) for name in ("start", "end", "step"))
    same: Any = (end.meta["val"] if isinstance(end, fx.Node) else end) == indices.shape[0]
    if start != 0 or not isinstance(size, int):
        return None
    return size if statically_known_true(same) else None
