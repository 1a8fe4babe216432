"""What TensorFlow's SAME pads."""

from __future__ import annotations

from converter.layout import Size


def same_padding(size: Size, kernel: int, stride: int, dilation: int) -> tuple[int, int] | None:
    """What SAME pads before and after an axis; None where that depends on a size unknown at conversion.

    The odd element goes behind (https://www.tensorflow.org/api_docs/python/tf/nn#notes_on_padding_2).
    """
    reach = dilation * (kernel - 1) + 1
    if stride == 1:
        total = reach - 1
    elif isinstance(size, int):
        total = max((-(-size // stride) - 1) * stride + reach - size, 0)
    else:
        return None
    return total // 2, total - total // 2
