"""Arguments of convolutions, with one number per axis."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from converter.ir import custom_ops
from converter.ir.aten import bound_arguments
from converter.ir.program import Program

ours = torch.ops.converter
assert custom_ops  # registers torch.ops.converter


@dataclass(frozen=True)
class Convolution:
    """A convolution's arguments.

    Attributes:
        padding: a number per axis, the name of a padding, or, for `padded_conv`, the pads before and then after axes.
    """

    x: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    stride: list[int]
    padding: list[int] | str
    dilation: list[int]
    groups: int

    def has_known_weights(self, program: Program) -> bool:
        return program.is_tensor(self.weight) and (self.bias is None or program.is_tensor(self.bias))


def read_convolution(node: fx.Node) -> Convolution | None:
    """Return the arguments of a convolution, or None if forward computes its geometry."""
    arguments = bound_arguments(node)
    is_padded = node.target is ours.padded_conv.default
    axes = arguments.node("weight").meta["val"].dim() - 2
    stride, dilation = arguments.known_integers("stride", axes), arguments.known_integers("dilation", axes)
    padding = arguments.value("pads" if is_padded else "padding")
    if not isinstance(padding, str):
        padding = arguments.known_integers("pads") if is_padded else arguments.known_integers("padding", axes)
    groups = arguments.value("groups")
    if stride is None or padding is None or dilation is None or not isinstance(groups, int):
        return None
    x, weight, bias = arguments.node("x" if is_padded else "input"), arguments.node("weight"), arguments.value("bias")
    return Convolution(x, weight, bias, stride, padding, dilation, groups)
