"""Merge zero padding before a convolution into it.

conv2d(pad(x, (7, 8, 0, 0)), W) -> padded_conv(x, W, pads)

Padding that equals SAME becomes one SAME convolution, even if forward computes the pads from the input's size.
"""

import torch
from torch import fx

from converter.ir import custom_ops
from converter.ir.program import Program, module_path
from converter.ir.windows import same_padding
from converter.rewrites.base import Change

aten, ours = torch.ops.aten, torch.ops.converter
CONVOLUTIONS = {aten.conv1d.default: 1, aten.conv2d.default: 2, aten.conv3d.default: 3}
assert custom_ops  # registers torch.ops.converter


def merge_padding(program: Program) -> list[Change]:
    changes = []
    for conv in list(program.graph.nodes):
        rank = CONVOLUTIONS.get(conv.target)
        if rank is None or conv.args[0].meta["val"].dim() != rank + 2 or not program.is_tensor(conv.args[1]):
            continue
        pad = conv.args[0]
        pads = zeros_padded(pad, rank)
        if pads is None or len(pad.users) > 1:
            continue
        _, weight, bias, stride, padding, dilation, groups = complete(conv, rank)
        pads = [n + p for n, p in zip(pads, [*padding, *padding], strict=True)]
        with program.graph.inserting_before(conv):
            merged = program.insert_call(
                ours.padded_conv.default, (pad.args[0], weight, bias, stride, pads, dilation, groups), like=conv
            )
        conv.replace_all_uses_with(merged)
        sizes, kernel = pad.args[0].meta["val"].shape[2:], weight.meta["val"].shape[2:]
        changes.append(
            Change("padding merged", module_path(conv), describe_pads(pads, sizes, kernel, stride, dilation))
        )
    return changes


def zeros_padded(node: fx.Node, rank: int) -> list[int] | None:
    """Return the zeros before each spatial axis, then those after each, or None if the operator is not such padding."""
    if node.target not in (aten.pad.default, aten.constant_pad_nd.default):
        return None
    widths = list(node.args[1])
    if node.target is aten.pad.default:
        mode = node.args[2] if len(node.args) > 2 else "constant"
        value = node.args[3] if len(node.args) > 3 else 0
    else:
        mode, value = "constant", node.args[2] if len(node.args) > 2 else 0
    spatial = [*widths[: 2 * rank], *[0] * (2 * rank - len(widths))]
    plain = mode == "constant" and not value and not any(widths[2 * rank :])
    if not plain or not all(isinstance(n, int) and n >= 0 for n in widths):
        return None
    before, behind = spatial[::2][::-1], spatial[1::2][::-1]  # PyTorch lists the last dimension first
    return [*before, *behind]


def describe_pads(pads, sizes, kernel, stride, dilation) -> str:  # type: ignore[no-untyped-def]
    rank = len(sizes)
    have = list(zip(pads[:rank], pads[rank:], strict=True))
    same = [same_padding(*axis) for axis in zip(sizes, kernel, stride, dilation, strict=True)]
    if same == have:
        return f"pads of {shown(have)} are SAME"
    return f"pads of {shown(have)} stay explicit, SAME would be {shown(same)}"


def shown(pads: list) -> str:
    return " ".join("unknown" if pad is None else f"({pad[0]}, {pad[1]})" for pad in pads)


def complete(conv: fx.Node, rank: int) -> tuple:
    """Return the arguments with the defaults that capture omits, one number per axis."""
    args = (*conv.args, *(None, None, None, [1], [0], [1], 1)[len(conv.args) :])
    return tuple(list(a) * (rank // len(a)) if isinstance(a, list | tuple) else a for a in args)
