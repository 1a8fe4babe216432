"""Translate custom operators to ONNX.

A spatial shift slices every group and joins it to its border. Channels come first in ONNX, so slices are cheap.
"""

from __future__ import annotations

import builtins
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
        """Return the slice of `part` that stays inside when `part` moves."""
        stops = [-n if n > 0 else LAST for _, n in by]
        return cut(part, [axis for axis, _ in by], [max(-n, 0) for _, n in by], stops)

    def turned(part: Any, by: Sequence[tuple[int, int]]) -> Any:
        for axis, n in by:
            end, start = cut(part, [axis], [-n], [LAST]), cut(part, [axis], [0], [-n])
            part = op.Concat(end, start, axis=axis)
        return part

    def reflected(part: Any, by: Sequence[tuple[int, int]]) -> Any:
        for axis, n in by:
            starts, stops = (n, 0) if n > 0 else (-2, n - 2)
            edge, rest = op.Slice(part, ints(starts), ints(stops), ints(axis), ints(-1)), kept(part, [(axis, n)])
            part = op.Concat(edge, rest, axis=axis) if n > 0 else op.Concat(rest, edge, axis=axis)
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
        elif border == "reflect" and any(2 * abs(n) >= x.shape[axis] for axis, n in by):
            parts.append(reflected(part, by))
        else:
            # pad all axes: onnxruntime 1.31 moves transposes through a Pad as if it listed every axis
            by_axis = [dict(by).get(axis, 0) for axis in range(len(x.shape))]
            widths = ints(*(max(n, 0) for n in by_axis), *(max(-n, 0) for n in by_axis))
            mode = {"zeros": "constant", "replicate": "edge", "reflect": "reflect"}[border]
            parts.append(op.Pad(kept(part, by), widths, None, None, mode=mode))
    return op.Concat(*parts, axis=dim) if len(parts) > 1 else parts[0]


def _translations() -> dict[Any, Any]:
    """Return the translations of rewrites' operators, and of those that the exporter translates worse.

    Returns:
        {overload: onnxscript function}
    """
    import onnx_ir
    import torch
    from onnxscript import opset18

    from ..ir import custom_ops  # noqa: F401  # registers them
    from . import onnx_exact_translations, onnx_missing_translations, onnx_rnn_translations

    def space_to_depth(x: Any, block: int) -> Any:
        return opset18.SpaceToDepth(x, blocksize=block)

    def reorder_channels(x: Any, order: Sequence[int]) -> Any:
        return opset18.Gather(x, opset18.Constant(value_ints=list(order)), axis=1)

    def dropout(x: Any, rate: float) -> Any:
        return opset18.Identity(x)

    def depth_to_space(x: Any, block: int) -> Any:
        return opset18.DepthToSpace(x, blocksize=block, mode="DCR")

    def padded_conv(
        x: Any, weight: Any, bias: Any, stride: Sequence[int], pads: Sequence[int], dilation: Sequence[int], groups: int
    ) -> Any:
        lists = {"strides": list(stride), "pads": list(pads), "dilations": list(dilation)}
        return opset18.Conv(x, weight, bias, group=groups, **lists)

    def log_sigmoid(x: Any) -> Any:
        """Avoid the exporter's log(sigmoid(x)), whose error equals the value where the sigmoid is close to 1."""
        return opset18.Neg(opset18.Softplus(opset18.Neg(x)))

    def resize(x: Any, output_size: Any, align_corners: bool, scale_factors: Any, **how: Any) -> Any:
        """Write a Resize: https://onnx.ai/onnx/operators/onnx__Resize.html."""
        how["coordinate_transformation_mode"] = "align_corners" if align_corners else "half_pixel"
        if scale_factors is not None:
            return opset18.Resize(x, None, opset18.Constant(value_floats=[1.0, 1.0, *scale_factors]), None, **how)
        sizes = opset18.Concat(opset18.Shape(x, start=0, end=2), opset18.Cast(output_size, to=7), axis=0)
        return opset18.Resize(x, None, None, sizes, **how)

    def upsample_linear1d(x: Any, output_size: Any, align_corners: bool, scale_factors: Any) -> Any:
        """Write a Resize; the exporter decomposes it into gathers."""
        return resize(x, output_size, align_corners, scale_factors, mode="linear")

    def bilinear_antialiased(x: Any, output_size: Any, align_corners: bool, scale_factors: Any) -> Any:
        """Write a Resize by the factors; the exporter computes them again from the rounded sizes."""
        return resize(x, output_size, align_corners, scale_factors, mode="linear", antialias=1, exclude_outside=1)

    def bicubic_antialiased(x: Any, output_size: Any, align_corners: bool, scale_factors: Any) -> Any:
        how = {"mode": "cubic", "antialias": 1, "exclude_outside": 1, "cubic_coeff_a": -0.5}
        return resize(x, output_size, align_corners, scale_factors, **how)

    def double(number: float) -> Any:
        return opset18.Constant(value=onnx_ir.tensor(number, dtype=onnx_ir.DataType.DOUBLE))

    def nearest_exact(x: Any, output_size: Any, scale_factors: Any) -> Any:
        """Gather along one axis after the other at PyTorch's positions, which it computes in float32."""
        for axis, i in enumerate(range(len(x.shape) - 2), start=2):
            size = opset18.Squeeze(opset18.Shape(x, start=axis, end=axis + 1))
            if scale_factors is None:
                out = opset18.Squeeze(opset18.Slice(opset18.Cast(output_size, to=7), [i], [i + 1]))
                ratio = opset18.Div(opset18.Cast(size, to=1), opset18.Cast(out, to=1))
            else:
                out = opset18.Floor(opset18.Mul(opset18.Cast(size, to=11), double(scale_factors[i])))
                ratio = 1 / scale_factors[i]
            count = opset18.Range(opset18.Cast(0.0, to=1), opset18.Cast(out, to=1), opset18.Cast(1.0, to=1))
            places = opset18.Cast(opset18.Floor(opset18.Mul(opset18.Add(count, 0.5), ratio)), to=7)
            x = opset18.Gather(x, opset18.Min(places, opset18.Sub(size, 1)), axis=axis)
        return x

    translations = [space_to_depth, depth_to_space, reorder_channels, dropout, shift, padded_conv]
    own = {getattr(torch.ops.converter, translation.__name__).default: translation for translation in translations}

    def rounded(number: Any, digits: Any = None) -> Any:
        """Round a number that is computed from sizes to the nearest integer, halves to the even one."""
        if digits is not None:
            raise NotImplementedError("a size that is rounded to digits")
        return opset18.Cast(opset18.Round(number), to=onnx_ir.DataType.INT64)

    def matmul(x: Any, other: Any) -> Any:
        """Write the product of transposed matrices with a vector by a column.

        ONNX Runtime 1.31 fuses a transpose into a product with a vector as if the vector were a matrix, and is wrong.
        """
        made = x.producer()
        if len(other.shape) == 1 and len(x.shape) > 1 and made is not None and made.op_type == "Transpose":
            return opset18.Squeeze(opset18.MatMul(x, opset18.Unsqueeze(other, [-1])), [-1])
        return opset18.MatMul(x, other)

    aten = torch.ops.aten
    better = {
        aten.matmul.default: matmul,
        builtins.round: rounded,
        aten.log_sigmoid.default: log_sigmoid,
        aten.upsample_linear1d.vec: upsample_linear1d,
        aten._upsample_bilinear2d_aa.vec: bilinear_antialiased,
        aten._upsample_bicubic2d_aa.vec: bicubic_antialiased,
        aten._upsample_nearest_exact1d.vec: nearest_exact,
        aten._upsample_nearest_exact2d.vec: nearest_exact,
        aten._upsample_nearest_exact3d.vec: nearest_exact,
    }
    others = (onnx_missing_translations, onnx_rnn_translations, onnx_exact_translations)
    return own | {target: write for each in others for target, write in each.translations().items()} | better
