"""Merge a depthwise convolution and the 1x1 convolution after it into one separable convolution.

    conv2d(conv2d(x, D, groups=channels), P, bias)
    -> separable_conv2d(x, D, P, bias), and likewise along one axis

Nothing may stand between them. A bias of the depthwise part keeps them apart (see `fold_depthwise_bias`). Keras has one
stride for all axes; along an axis on which there is one result, any other stride gives the same.
"""

import torch
from torch import fx

from converter.ir import custom_ops
from converter.ir.aten import bound_arguments
from converter.ir.program import Program, module_path
from converter.ir.windows import same_padding
from converter.rewrites.analysis.convolutions import Convolution, read_convolution
from converter.rewrites.base import Change

aten, ours = torch.ops.aten, torch.ops.converter
POINTWISE = (aten.conv1d.default, aten.conv2d.default)
DEPTHWISE = {*POINTWISE, aten.conv1d.padding, aten.conv2d.padding, ours.padded_conv.default}
assert custom_ops  # registers torch.ops.converter


def merge_separable(program: Program) -> list[Change]:
    changes = []
    for pointwise in [n for target in POINTWISE for n in program.graph.find_nodes(op="call_function", target=target)]:
        found = read_separable(program, pointwise)
        if found is None:
            continue
        depthwise, first, second = found
        stride = one_stride(first, depthwise)
        if stride is None:
            continue
        geometry = (stride, named_padding(first), first.dilation)
        axes = len(stride)
        operator = ours.separable_conv1d.default if axes == 1 else ours.separable_conv2d.default
        with program.graph.inserting_before(pointwise):
            arguments = (first.x, first.weight, second.weight, second.bias, *geometry)
            merged = program.insert_call(operator, arguments, like=pointwise)
        pointwise.replace_all_uses_with(merged)
        names = module_path(depthwise), module_path(pointwise)
        changes.append(
            Change(f"depthwise + pointwise -> SeparableConv{axes}D", names[1], f"`{names[0]}` and `{names[1]}`")
        )
    return changes


def read_separable(
    program: Program, pointwise: fx.Node, with_bias: bool = False
) -> tuple[fx.Node, Convolution, Convolution] | None:
    """Return the depthwise convolution before `pointwise` and the arguments of both, or None if they cannot merge.

    Args:
        with_bias: the depthwise convolution may have a bias.
    """
    second = read_convolution(pointwise)
    depthwise = bound_arguments(pointwise).node("input")
    if second is None or depthwise.target not in DEPTHWISE or len(depthwise.users) > 1:
        return None
    first = read_convolution(depthwise)
    if first is None or first.x.meta["val"].dim() != len(first.stride) + 2:
        return None
    if not (program.is_tensor(first.weight) and program.is_tensor(second.weight)):
        return None
    geometry = (second.stride, second.padding, second.dilation, second.groups)
    ones = [1] * len(first.stride)
    plain = geometry == (ones, [0] * len(ones), ones, 1) and list(second.weight.meta["val"].shape[2:]) == ones
    if (
        not plain
        or one_stride(first, depthwise) is None
        or first.groups == 1
        or first.groups != first.x.meta["val"].shape[1]
    ):
        return None
    return (depthwise, first, second) if first.bias is None or with_bias else None


def one_stride(conv: Convolution, node: fx.Node) -> list[int] | None:
    """Return strides, equal along all axes, that give the same result, or None if Keras has none.

    Keras supports a stride or a dilation, not both.
    """
    after = node.meta["val"].shape[2:]
    matter = {stride for stride, n in zip(conv.stride, after, strict=True) if n != 1} or {max(conv.stride)}
    if len(matter) > 1 or (max(matter) > 1 and max(conv.dilation) > 1):
        return None
    (stride,) = matter
    if len(set(conv.stride)) > 1 and not all(
        given == stride or windows(conv, axis, stride) == 1 for axis, given in enumerate(conv.stride)
    ):
        return None
    return [stride] * len(conv.stride)


def windows(conv: Convolution, axis: int, stride: int) -> int | None:
    """Return how many windows there are along an axis with another stride, or None if its size is unknown."""
    size, kernel = conv.x.meta["val"].shape[2 + axis], conv.weight.meta["val"].shape[2 + axis]
    pads, axes = named_padding(conv), len(conv.stride)
    if not isinstance(size, int):
        return None
    return int(size + pads[axis] + pads[axis - axes] - conv.dilation[axis] * (kernel - 1) - 1) // stride + 1


def named_padding(conv: Convolution) -> list[int]:
    """Return the padding in numbers; those of "same", for strides of 1: before rows and columns, then after."""
    if not isinstance(conv.padding, str):
        return conv.padding
    if conv.padding == "valid":
        return [0, 0]
    sizes = zip(conv.weight.meta["val"].shape[2:], conv.dilation, strict=True)
    pads = [same_padding(0, kernel, 1, dilation) or (0, 0) for kernel, dilation in sizes]
    return [before for before, _ in pads] + [behind for _, behind in pads]
