"""A spatial shift in ONNX: every group cut and joined to its border. Channels come first there, so cuts are cheap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

LAST = 2**63 - 1


def shift(x: Any, dim: int, sizes: Sequence[int], dims: Sequence[int], distances: Sequence[int], border: str) -> Any:
    from onnxscript import opset18 as op

    def ints(*numbers: int) -> Any:
        return op.Constant(value_ints=list(numbers))

    def cut(part: Any, axes: Sequence[int], starts: Sequence[int], stops: Sequence[int]) -> Any:
        return op.Slice(part, ints(*starts), ints(*stops), ints(*axes))

    def kept(part: Any, by: Sequence[tuple[int, int]]) -> Any:
        """What remains of `part` when it is moved."""
        stops = [-n if n > 0 else LAST for _, n in by]
        return cut(part, [axis for axis, _ in by], [max(-n, 0) for _, n in by], stops)

    def turned(part: Any, by: Sequence[tuple[int, int]]) -> Any:
        for axis, n in by:
            end, start = cut(part, [axis], [-n], [LAST]), cut(part, [axis], [0], [-n])
            part = op.Concat(end, start, axis=axis)
        return part

    def placed(part: Any, inner: Any, by: Sequence[tuple[int, int]]) -> Any:
        if not by:
            return inner
        (axis, n), *rest = by
        if n > 0:
            band = placed(cut(part, [axis], [n], [LAST]), inner, rest)
            return op.Concat(cut(part, [axis], [0], [n]), band, axis=axis)
        band = placed(cut(part, [axis], [0], [n]), inner, rest)
        return op.Concat(band, cut(part, [axis], [n], [LAST]), axis=axis)

    parts, first = [], 0
    for group, size in enumerate(sizes):
        by = [(d, n) for d, n in zip(dims, distances[group * len(dims) :], strict=False) if n]
        part = cut(x, [dim], [first], [first + size]) if len(sizes) > 1 else x
        first += size
        if not by:
            parts.append(part)
        elif border == "circular":
            parts.append(turned(part, by))
        elif border == "keep":
            parts.append(placed(part, kept(part, by), by))
        else:
            # for all axes: onnxruntime 1.31 moves transposes through a Pad as if it listed them all
            by_axis = [dict(by).get(axis, 0) for axis in range(len(x.shape))]
            widths = ints(*(max(n, 0) for n in by_axis), *(max(-n, 0) for n in by_axis))
            mode = "constant" if border == "zeros" else "edge"
            parts.append(op.Pad(kept(part, by), widths, None, None, mode=mode))
    return op.Concat(*parts, axis=dim) if len(parts) > 1 else parts[0]
