"""Compute large convolutions a few rows at a time.

In float64 PyTorch first copies every window of an image: for a kernel of 3x3, nine times its input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, fx

from converter.ir.aten import bound_arguments

aten = torch.ops.aten
AT_ONCE = 1 << 25  # elements of the windows that are copied together


def use_bands(graph: fx.Graph) -> None:
    """Replace the two-dimensional convolutions whose windows are large, in place."""
    for node in graph.nodes:
        if node.target is aten.conv2d.default and _window_elements(node) > AT_ONCE:
            given = bound_arguments(node).values
            node.args = tuple(given[name] for name in ("input", "weight", "bias", "stride", "padding", "dilation"))
            node.kwargs = {"groups": given["groups"]}
            node.target = conv2d_in_bands


def _window_elements(node: fx.Node) -> int:
    """Return the elements of all windows of one sample; 0 where sizes are dynamic or not known."""
    weight, result = bound_arguments(node).values["weight"].meta.get("val"), node.meta.get("val")
    if weight is None or result is None:
        return 0
    sizes = [*result.shape[2:], *weight.shape[1:]]
    return math.prod(sizes) if all(isinstance(n, int) for n in sizes) else 0


def conv2d_in_bands(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Return what `aten.conv2d` does, computed from bands of the input's rows."""
    (down, across), (above, beside), (far, wide) = (_pair(each) for each in (stride, padding, dilation))
    batch, _, height, width = input.shape
    channels_out, channels, kernel_height, kernel_width = weight.shape
    reach = far * (kernel_height - 1) + 1
    rows = (height + 2 * above - reach) // down + 1
    columns = (width + 2 * beside - wide * (kernel_width - 1) - 1) // across + 1
    result = input.new_empty((batch, channels_out, rows, columns))
    step = max(AT_ONCE // (batch * columns * channels * kernel_height * kernel_width), 1)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        first, last = start * down - above, (stop - 1) * down - above + reach
        band = input[:, :, max(first, 0) : min(last, height)]
        if first < 0 or last > height:
            band = torch.nn.functional.pad(band, (0, 0, max(-first, 0), max(last - height, 0)))
        result[:, :, start:stop] = aten.conv2d.default(
            band, weight, bias, [down, across], [0, beside], [far, wide], groups
        )
    return result


def _pair(given: Sequence[int]) -> tuple[int, int]:
    return given[0], given[-1]
