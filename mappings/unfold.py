"""Windows of an image arranged as columns (`unfold`). Windows that tile the image are views of it."""

import torch

from converter.ir.sizes import product
from converter.plan.registry import maps
from converter.plan.steps import Unsupported
from mappings.indexing import viewed

aten = torch.ops.aten


@maps(aten.im2col.default, channels_last=True)
def im2col(plan, x, kernel_size, dilation, padding, stride):
    """Rearrange (B, C, H, W) to (B, C * kh * kw, windows)."""
    *batch, channels, height, width = x.shape
    if not tiles((height, width), kernel_size, dilation, padding, stride):
        raise Unsupported("windows that overlap or leave gaps")
    kh, kw = kernel_size
    n = len(batch)
    split = (*batch, channels, height // kh, kh, width // kw, kw)
    shape = (*batch, channels * kh * kw, product((height // kh, width // kw)))
    return viewed(plan, x, split, (*range(n), n, n + 2, n + 4, n + 1, n + 3), shape)


@maps(aten.col2im.default, channels_last=True)
def col2im(plan, x, output_size, kernel_size, dilation, padding, stride):
    """Rearrange (B, C * kh * kw, windows) to (B, C, H, W), overlapping windows summed."""
    if not tiles(output_size, kernel_size, dilation, padding, stride):
        raise Unsupported("windows that overlap or leave gaps")
    *batch, columns, _ = x.shape
    (height, width), (kh, kw) = output_size, kernel_size
    n = len(batch)
    split = (*batch, columns // (kh * kw), kh, kw, height // kh, width // kw)
    return viewed(plan, x, split, (*range(n), n, n + 3, n + 1, n + 4, n + 2), plan.shape())


def tiles(size, kernel_size, dilation, padding, stride):
    """Return whether the windows are a partition of an image of that size."""
    known = all(isinstance(n, int) for n in size)
    return (
        known
        and list(kernel_size) == list(stride)
        and set(padding) == {0}
        and all(d == 1 or k == 1 for k, d in zip(kernel_size, dilation, strict=True))
        and all(n % k == 0 for n, k in zip(size, kernel_size, strict=True))
    )
