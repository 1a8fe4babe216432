"""Merge a depthwise convolution and the 1x1 convolution after it into one separable convolution.

    conv2d(conv2d(x, D, groups=channels), P, bias)
    -> separable_conv2d(x, D, P, bias)

Nothing may stand between them. A bias of the depthwise part keeps them apart: folded, it would no longer be a
parameter of its own (`fold_depthwise_bias` does so for inference).
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
DEPTHWISE = {aten.conv2d.default, aten.conv2d.padding, ours.padded_conv.default}
assert custom_ops  # registers torch.ops.converter


def merge_separable(program: Program) -> list[Change]:
    changes = []
    for pointwise in program.graph.find_nodes(op="call_function", target=aten.conv2d.default):
        found = read_separable(program, pointwise)
        if found is None:
            continue
        depthwise, first, second = found
        geometry = (first.stride, named_padding(first), first.dilation)
        with program.graph.inserting_before(pointwise):
            arguments = (first.x, first.weight, second.weight, second.bias, *geometry)
            merged = program.insert_call(ours.separable_conv2d.default, arguments, like=pointwise)
        pointwise.replace_all_uses_with(merged)
        names = module_path(depthwise), module_path(pointwise)
        changes.append(Change("depthwise + pointwise -> SeparableConv2D", names[1], f"`{names[0]}` and `{names[1]}`"))
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
    if first is None or first.x.meta["val"].dim() != 4:
        return None
    if not (program.is_tensor(first.weight) and program.is_tensor(second.weight)):
        return None
    geometry = (second.stride, second.padding, second.dilation, second.groups)
    plain = geometry == ([1, 1], [0, 0], [1, 1], 1) and list(second.weight.meta["val"].shape[2:]) == [1, 1]
    # Keras has one stride for both axes, and supports a stride or a dilation, not both
    keras_can = len(set(first.stride)) == 1 and (max(first.stride) == 1 or max(first.dilation) == 1)
    if not plain or not keras_can or first.groups == 1 or first.groups != first.x.meta["val"].shape[1]:
        return None
    return (depthwise, first, second) if first.bias is None or with_bias else None


def named_padding(conv: Convolution) -> list[int]:
    """Return the padding in numbers; those of "same", for strides of 1: before rows and columns, then after."""
    if not isinstance(conv.padding, str):
        return conv.padding
    if conv.padding == "valid":
        return [0, 0]
    sizes = zip(conv.weight.meta["val"].shape[2:], conv.dilation, strict=True)
    pads = [same_padding(0, kernel, 1, dilation) or (0, 0) for kernel, dilation in sizes]
    return [before for before, _ in pads] + [behind for _, behind in pads]
