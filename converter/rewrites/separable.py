"""Merge a depthwise convolution and the 1x1 convolution behind it into one separable convolution.

    conv2d(conv2d(x, D, groups=channels), P, bias)
    -> separable_conv2d(x, D, P, bias)

Only where nothing stands between them. A bias of the depthwise part keeps them apart: folded, it would no longer be a
parameter of its own.
"""

import torch
from torch import fx

from converter import ops
from converter.program import Program, module_path
from converter.rewrites.change import Change

aten, ours = torch.ops.aten, torch.ops.converter
DEFAULTS = (None, None, None, [1, 1], [0, 0], [1, 1], 1)
assert ops  # registers torch.ops.converter


def merge_separable(program: Program) -> list[Change]:
    changes = []
    for pointwise in program.graph.find_nodes(op="call_function", target=aten.conv2d.default):
        depthwise = pointwise.args[0]
        if not separable(program, depthwise, pointwise):
            continue
        x, kernel, _, stride, padding, dilation, _ = complete(depthwise)
        _, weights, bias, *_ = complete(pointwise)
        with program.graph.inserting_before(pointwise):
            merged = program.call(
                ours.separable_conv2d.default, (x, kernel, weights, bias, stride, padding, dilation), like=pointwise
            )
        pointwise.replace_all_uses_with(merged)
        names = module_path(depthwise), module_path(pointwise)
        changes.append(Change("depthwise + pointwise -> SeparableConv2D", names[1], f"`{names[0]}` and `{names[1]}`"))
    return changes


def separable(program: Program, depthwise: fx.Node, pointwise: fx.Node) -> bool:
    if depthwise.target is not aten.conv2d.default or len(depthwise.users) > 1:
        return False
    x, kernel, bias, stride, _, dilation, groups = complete(depthwise)
    _, weights, _, *geometry = complete(pointwise)
    if not (program.is_tensor(kernel) and program.is_tensor(weights)) or bias is not None:
        return False
    plain = geometry == [[1, 1], [0, 0], [1, 1], 1] and list(weights.meta["val"].shape[2:]) == [1, 1]
    channels = x.meta["val"].shape[1]
    # Keras has one stride for both axes, and a stride or a dilation
    keras_can = len(set(stride)) == 1 and (max(stride) == 1 or max(dilation) == 1)
    return plain and groups == channels and groups > 1 and keras_can


def complete(conv: fx.Node) -> tuple:
    """The arguments with the defaults that capture leaves out, lists in full length."""
    args = (*conv.args, *DEFAULTS[len(conv.args) :])
    return tuple(list(a) * (2 // len(a)) if isinstance(a, list | tuple) else a for a in args)
