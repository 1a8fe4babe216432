"""Transposed convolutions.

PyTorch stores a kernel as (in, out / groups, height, width), Keras as (height, width, out, in): nothing is flipped.
PyTorch's padding crops the borders of a transposed convolution without padding; its output padding extends the
far side. Keras supports neither groups nor strides with dilation. Such a transposed convolution is computed as a
convolution (kernel flipped) of an input with zeros between its elements.
"""

import torch

from converter.plan.dynamic_reshape import along, counted
from converter.plan.layout import channels_last_result
from converter.plan.lazy_keras import layers, ops
from converter.plan.registry import maps
from converter.plan.steps import Constant, Unsupported
from mappings.conv import each, padded_convolution, without_batch
from mappings.padding import cropped

aten = torch.ops.aten
CONV_TRANSPOSE = {1: layers.Conv1DTranspose, 2: layers.Conv2DTranspose, 3: layers.Conv3DTranspose}


@maps(
    aten.conv_transpose1d.default,
    aten.conv_transpose2d.input,
    aten.conv_transpose3d.input,
    channels_last=True,
    produces=1,
)
def transposed_convolution(
    plan, x, weight, bias=None, stride=(1,), padding=(0,), output_padding=(0,), groups=1, dilation=(1,)
):
    if not isinstance(weight, Constant):
        raise Unsupported("a kernel that depends on the input")
    rank = len(weight.shape) - 2
    stride, padding, output_padding, dilation = (each(n, rank) for n in (stride, padding, output_padding, dilation))

    def of_batch(x, shape):
        if groups == 1 and max(dilation) == 1 and max(stride) > 1:
            return by_layer(plan, x, weight, bias, stride, padding, output_padding, shape)
        return by_zero_insertion(plan, x, weight, bias, stride, padding, output_padding, groups, dilation, shape)

    return without_batch(plan, x, of_batch) if len(x.shape) == rank + 1 else of_batch(x, plan.shape())


def by_layer(plan, x, weight, bias, stride, padding, output_padding, shape):
    """Apply Keras' own layer without padding, and extend or crop its result to `shape`."""
    rank = len(stride)
    size = weight.shape[2:]
    x, order = plan.channels_last(x)
    beyond = tuple(max(o - p, 0) for o, p in zip(output_padding, padding, strict=True))
    behind = [max(p - o, 0) for o, p in zip(output_padding, padding, strict=True)]
    crops = list(zip(padding, behind, strict=True))
    whole = (*shape[:2], *(n + before + after for n, (before, after) in zip(shape[2:], crops, strict=True)))
    layout, emitted = plan.choose_channel_order(channels_last_result(x.layout, whole), 1)
    config = {
        "filters": shape[1],
        "kernel_size": size,
        "strides": stride,
        "padding": "valid",
        "output_padding": beyond,
        "use_bias": bias is not None,
    }
    kernel = weight.index_select(0, order).index_select(1, emitted).permute(*range(2, rank + 2), 1, 0)
    bias = None if bias is None else bias.index_select(0, emitted)
    y = plan.layer(CONV_TRANSPOSE[rank], config, x, weights=(kernel, bias), layout=layout)
    return cropped(plan, y, crops) if any(any(crop) for crop in crops) else y


def by_zero_insertion(plan, x, weight, bias, stride, padding, output_padding, groups, dilation, shape):
    """Convolve `x`, with stride - 1 zeros after each element, with the flipped kernel."""
    into, out_per_group, *size = weight.shape
    out = out_per_group * groups
    rank = len(size)
    if max(stride) > 1:
        sizes = x.shape[2:]
        x, _ = plan.channels_last(x) if groups == 1 else (plan.channels_in_order(x), None)
        spread = (*x.shape[:2], *(n * s for n, s in zip(sizes, stride, strict=True)))
        x = plan.call(lambda a: zeros_between(a, stride), x, layout=channels_last_result(x.layout, spread, channels=1))
    reach = [d * (k - 1) for k, d in zip(size, dilation, strict=True)]
    pads = [(r - p, r - p + o - (s - 1)) for r, p, o, s in zip(reach, padding, output_padding, stride, strict=True)]
    flipped = weight.rearranged(lambda tensor: tensor.flip(tuple(range(2, rank + 2))), "flip")
    kernel = (
        flipped.reshape(groups, into // groups, out_per_group, *size)
        .permute(0, 2, 1, *range(3, rank + 3))
        .reshape(out, into // groups, *size)
    )
    return padded_convolution(plan, x, kernel, bias, (1,) * rank, pads, dilation, groups, shape)


def zeros_between(array, strides):
    """Insert stride - 1 zeros after each element of a channels-last array's spatial axes."""
    known = None not in array.shape[1:]
    for axis, stride in enumerate(strides, start=1):
        if stride > 1 and known:
            before, size, after = array.shape[1:axis], array.shape[axis], array.shape[axis + 1 :]
            apart = ops.reshape(array, (-1, *before, size, 1, *after))
            widths = [(0, 0)] * (axis + 1) + [(0, stride - 1)] + [(0, 0)] * len(after)
            array = ops.reshape(ops.pad(apart, widths), (-1, *before, size * stride, *after))
        elif stride > 1:
            array = ops.repeat(array, stride, axis)
            position, _ = counted(along(array, axis), "int32")
            first = ops.equal(position % stride, 0)
            array = ops.where(ops.reshape(first, (-1, *(1,) * (len(array.shape) - axis - 1))), array, 0)
    return array
