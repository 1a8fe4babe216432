"""Fold the bias of a depthwise convolution into the 1x1 convolution after it (inference artifacts).

conv(conv(x, D, d, groups=channels), P, p) -> conv(conv(x, D, groups=channels), P, p + P d)

The two can then become one separable convolution.
"""

import torch
from torch import Tensor

from converter.ir.lazy_tensor import LazyTensor
from converter.ir.program import Origin, Program, module_path
from converter.rewrites.base import Change
from converter.rewrites.merge_separable import complete, separable

aten = torch.ops.aten


def fold_depthwise_bias(program: Program) -> list[Change]:
    changes = []
    for pointwise in program.graph.find_nodes(op="call_function", target=aten.conv2d.default):
        depthwise = pointwise.args[0]
        if not separable(program, depthwise, pointwise, with_bias=True):
            continue
        added, weight = complete(depthwise)[2], pointwise.args[1]
        bias = complete(pointwise)[2]
        if added is None or not program.is_tensor(added) or not (bias is None or program.is_tensor(bias)):
            continue
        held = [n for n in (bias, weight, added) if n is not None]
        origin = Origin(tuple(dict.fromkeys(s for n in held for s in program.origins[n.target].sources)), exact=False)
        shift = LazyTensor.combine(carried, *(program.values(n) for n in (weight, added, bias) if n is not None))
        if bias is not None:
            program.replace_tensor(bias, shift, origin, [pointwise])
        else:
            name = f"{weight.target.rpartition('.')[0]}.bias".lstrip(".")
            new = program.new_tensor(name, shift, pointwise, origin, trainable=program.trainable(weight))
            pointwise.args = (*pointwise.args[:2], new, *pointwise.args[3:])
        depthwise.args = (*depthwise.args[:2], None, *depthwise.args[3:])
        description = f"of `{module_path(depthwise)}` into `{module_path(pointwise)}`"
        changes.append(Change("depthwise bias folded", module_path(pointwise), description, routine=True))
    return changes


def carried(weight: Tensor, added: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return the pointwise convolution's bias plus the depthwise bias carried through its kernel."""
    through = weight.double().flatten(1) @ added.double()
    return through if bias is None else through + bias.double()
