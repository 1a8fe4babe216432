"""What TensorFlow's SAME pads."""

from __future__ import annotations

from converter.ir.sizes import Size


def same_padding(size: Size, kernel: int, stride: int, dilation: int) -> tuple[int, int] | None:
    """What SAME pads before and after an axis; None where that depends on a size unknown at conversion.

    The odd element goes behind (https://www.tensorflow.org/api_docs/python/tf/nn#notes_on_padding_2).
    """
    total = overhang(size, kernel, stride, dilation)
    if total is None:
        return None
    total = max(total, 0)
    return total // 2, total - total // 2


def overhang(size: Size, kernel: int, stride: int, dilation: int) -> int | None:
    """How far the windows of SAME reach beyond an axis; less than 0 where the last one ends before it."""
    reach = dilation * (kernel - 1) + 1
    if stride == 1:
        return reach - 1
    return (-(-size // stride) - 1) * stride + reach - size if isinstance(size, int) else None
