"""TensorFlow's SAME padding."""

from __future__ import annotations

from converter.ir.sizes import Size


def same_padding(size: Size, kernel: int, stride: int, dilation: int) -> tuple[int, int] | None:
    """Return the SAME padding before and after an axis, or None if it depends on a dynamic size.

    The odd element goes after (https://www.tensorflow.org/api_docs/python/tf/nn#notes_on_padding_2).
    """
    total = overhang(size, kernel, stride, dilation)
    if total is None:
        return None
    total = max(total, 0)
    return total // 2, total - total // 2


def overhang(size: Size, kernel: int, stride: int, dilation: int) -> int | None:
    """Return how far SAME windows reach past an axis, or None if that depends on a dynamic size.

    It is negative where the last window ends before the axis does.
    """
    reach = dilation * (kernel - 1) + 1
    if stride == 1:
        return reach - 1
    return (-(-size // stride) - 1) * stride + reach - size if isinstance(size, int) else None
