"""Fold the bias of a depthwise convolution into the 1x1 convolution after it.

conv(conv(x, D, d, groups=channels), P, p) -> conv(conv(x, D, groups=channels), P, p + P d)

The two can then become one separable convolution. In a Keras file the 1x1 convolution must have a bias of its own,
which then learns for both.
"""

from torch import Tensor

from converter.ir.aten import set_arguments
from converter.ir.lazy_tensor import LazyTensor
from converter.ir.program import Program, module_path
from converter.rewrites.base import Change, set_bias
from converter.rewrites.merge_separable import POINTWISE, read_separable


def fold_depthwise_bias(program: Program) -> list[Change]:
    return folded(program, may_add=True)


def fold_redundant_bias(program: Program) -> list[Change]:
    return folded(program, may_add=False)


def folded(program: Program, may_add: bool) -> list[Change]:
    """Fold each bias; `may_add`: also into a convolution that has none."""
    changes = []
    for pointwise in [n for target in POINTWISE for n in program.graph.find_nodes(op="call_function", target=target)]:
        found = read_separable(program, pointwise, with_bias=True)
        if found is None or (found[2].bias is None and not may_add):
            continue
        depthwise, first, second = found
        added, weight, bias = first.bias, second.weight, second.bias
        if added is None or not first.has_known_weights(program) or not second.has_known_weights(program):
            continue
        origin = program.merged_origin(n for n in (bias, weight, added) if n is not None)
        shift = LazyTensor.combine(carried, *(program.values(n) for n in (weight, added, bias) if n is not None))
        set_bias(program, pointwise, weight, bias, shift, origin)
        set_arguments(depthwise, bias=None)
        description = f"of `{module_path(depthwise)}` into `{module_path(pointwise)}`"
        changes.append(Change("depthwise bias folded", module_path(pointwise), description, routine=True))
    return changes


def carried(weight: Tensor, added: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return the pointwise convolution's bias plus the depthwise bias carried through its kernel."""
    through = weight.double().flatten(1) @ added.double()
    return through if bias is None else through + bias.double()
