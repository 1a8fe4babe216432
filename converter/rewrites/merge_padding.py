"""Merge zero padding before a convolution into it.

conv2d(pad(x, (7, 8, 0, 0)), W) -> padded_conv(x, W, pads)

Padding that equals SAME becomes one SAME convolution, even if forward computes the pads from the input's size.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from converter.ir import custom_ops
from converter.ir.aten import bound_arguments
from converter.ir.program import Program, module_path
from converter.ir.windows import same_padding
from converter.rewrites.analysis.convolutions import read_convolution
from converter.rewrites.base import Change

aten, ours = torch.ops.aten, torch.ops.converter
CONVOLUTIONS: dict[object, int] = {aten.conv1d.default: 1, aten.conv2d.default: 2, aten.conv3d.default: 3}
assert custom_ops  # registers torch.ops.converter


def merge_padding(program: Program) -> list[Change]:
    changes = []
    for conv in list(program.graph.nodes):
        rank = CONVOLUTIONS.get(conv.target)
        given = read_convolution(conv) if rank is not None else None
        if rank is None or given is None or isinstance(given.padding, str):
            continue
        pad = given.x
        if pad.meta["val"].dim() != rank + 2 or not program.is_tensor(given.weight):
            continue
        widths = zeros_padded(pad, rank)
        if widths is None or len(pad.users) > 1:
            continue
        x, stride, dilation = bound_arguments(pad).node("self"), given.stride, given.dilation
        pads = [n + p for n, p in zip(widths, given.padding * 2, strict=True)]
        with program.graph.inserting_before(conv):
            arguments = (x, given.weight, given.bias, stride, pads, dilation, given.groups)
            merged = program.insert_call(ours.padded_conv.default, arguments, like=conv)
        conv.replace_all_uses_with(merged)
        sizes, kernel = x.meta["val"].shape[2:], given.weight.meta["val"].shape[2:]
        changes.append(
            Change("padding merged", module_path(conv), describe_pads(pads, sizes, kernel, stride, dilation))
        )
    return changes


def zeros_padded(node: fx.Node, rank: int) -> list[int] | None:
    """Return the zeros before each spatial axis, then those after each, or None if the operator is not such padding."""
    if node.target not in (aten.pad.default, aten.constant_pad_nd.default):
        return None
    arguments = bound_arguments(node)
    widths = arguments.known_integers("pad")
    if widths is None or any(n < 0 for n in widths) or any(widths[2 * rank :]):
        return None
    if arguments.value("value") or (node.target is aten.pad.default and arguments.text("mode") != "constant"):
        return None
    spatial = [*widths[: 2 * rank], *[0] * (2 * rank - len(widths))]
    before, behind = spatial[::2][::-1], spatial[1::2][::-1]  # PyTorch lists the last dimension first
    return [*before, *behind]


def describe_pads(
    pads: list[int], sizes: Sequence[Any], kernel: Sequence[int], stride: list[int], dilation: list[int]
) -> str:
    rank = len(sizes)
    have = list(zip(pads[:rank], pads[rank:], strict=True))
    same = [same_padding(*axis) for axis in zip(sizes, kernel, stride, dilation, strict=True)]
    if same == have:
        return f"pads of {shown(have)} are SAME"
    return f"pads of {shown(have)} stay explicit, SAME would be {shown(same)}"


def shown(pads: list) -> str:
    return " ".join("unknown" if pad is None else f"({pad[0]}, {pad[1]})" for pad in pads)
