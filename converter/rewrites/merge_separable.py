"""Merge a depthwise convolution and the 1x1 convolution after it into one separable convolution.

    conv2d(conv2d(x, D, groups=channels), P, bias)
    -> separable_conv2d(x, D, P, bias)

Nothing may stand between them. A bias of the depthwise part keeps them apart: folded, it would no longer be a
parameter of its own (`fold_depthwise_bias` does so for inference).
"""

import torch
from torch import fx

from converter.ir import custom_ops
from converter.ir.program import Program, module_path
from converter.ir.windows import same_padding
from converter.rewrites.base import Change

aten, ours = torch.ops.aten, torch.ops.converter
DEPTHWISE = {aten.conv2d.default, aten.conv2d.padding, ours.padded_conv.default}
DEFAULTS = (None, None, None, [1, 1], [0, 0], [1, 1], 1)
assert custom_ops  # registers torch.ops.converter


def merge_separable(program: Program) -> list[Change]:
    changes = []
    for pointwise in program.graph.find_nodes(op="call_function", target=aten.conv2d.default):
        depthwise = pointwise.args[0]
        if not separable(program, depthwise, pointwise):
            continue
        x, kernel, _, stride, padding, dilation, _ = complete(depthwise)
        _, weights, bias, *_ = complete(pointwise)
        with program.graph.inserting_before(pointwise):
            merged = program.insert_call(
                ours.separable_conv2d.default, (x, kernel, weights, bias, stride, padding, dilation), like=pointwise
            )
        pointwise.replace_all_uses_with(merged)
        names = module_path(depthwise), module_path(pointwise)
        changes.append(Change("depthwise + pointwise -> SeparableConv2D", names[1], f"`{names[0]}` and `{names[1]}`"))
    return changes


def separable(program: Program, depthwise: fx.Node, pointwise: fx.Node, with_bias: bool = False) -> bool:
    if depthwise.target not in DEPTHWISE or len(depthwise.users) > 1 or depthwise.args[0].meta["val"].dim() != 4:
        return False
    x, kernel, bias, stride, _, dilation, groups = complete(depthwise)
    _, weights, _, *geometry = complete(pointwise)
    if not (program.is_tensor(kernel) and program.is_tensor(weights)) or (bias is not None and not with_bias):
        return False
    plain = geometry == [[1, 1], [0, 0], [1, 1], 1] and list(weights.meta["val"].shape[2:]) == [1, 1]
    channels = x.meta["val"].shape[1]
    # Keras has one stride for both axes, and supports a stride or a dilation, not both
    keras_can = len(set(stride)) == 1 and (max(stride) == 1 or max(dilation) == 1)
    return plain and groups == channels and groups > 1 and keras_can


def complete(conv: fx.Node) -> tuple:
    """Return the arguments with the defaults that capture omits, lists in full length, `padding` as numbers."""
    args = (*conv.args, *DEFAULTS[len(conv.args) :])
    if isinstance(args[4], str):
        args = (*args[:4], named_padding(args), *args[5:])
    return tuple(list(a) * (2 // len(a) or 1) if isinstance(a, list | tuple) else a for a in args)


def named_padding(args: tuple) -> list[int]:
    """Return the pads of "same", for strides of 1, or "valid": before rows and columns, then after."""
    if args[4] == "valid":
        return [0, 0]
    dilation = list(args[5]) * (2 // len(args[5]))
    pads = [same_padding(0, k, 1, d) or (0, 0) for k, d in zip(args[1].meta["val"].shape[2:], dilation, strict=True)]
    return [before for before, _ in pads] + [behind for _, behind in pads]
