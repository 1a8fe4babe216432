"""Write zero padding before a pool as negative zeros, which ONNX Runtime does not fuse into the pool.

max_pool2d(pad(x, (0, 1, 0, 1)), 2) -> max_pool2d(pad(x, (0, 1, 0, 1), value=-0.0), 2)

ONNX Runtime (PadFusion, up to 1.31 at least) fuses a Pad whose value has no bit set into the MaxPool after it, which
pads with -inf. The maxima at the border then differ if a whole window is negative. A pool of averages that is padded as
wide as its window does not open after the fusion. A negative zero equals zero.
"""

import torch
from torch import fx

from converter.ir import custom_ops
from converter.ir.aten import AVERAGE_POOLS, MAX_POOLS, bound_arguments, first_input, set_arguments
from converter.ir.program import Program, module_path
from converter.rewrites.base import Change
from converter.rewrites.merge_padding import zeros_padded
from converter.rewrites.normalize_pools import geometry

aten, ours = torch.ops.aten, torch.ops.converter
assert custom_ops  # registers torch.ops.converter
# A runtime or the exporter may remove these, or what they become, from between a pad and a pool.
DROPPED = (
    aten.clone.default, aten.alias.default, aten.detach.default, aten.contiguous.default, aten.to.dtype,
    aten._to_copy.default, aten.dropout.default, ours.dropout.default,
    aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor,
)  # fmt: skip
NOT_NEGATIVE = (
    aten.relu.default, aten.relu6.default, aten.sigmoid.default, aten.softmax.int, aten._softmax.default,
    aten.abs.default, aten.exp.default, aten.hardsigmoid.default,
)  # fmt: skip


def negative_zero_padding(program: Program) -> list[Change]:
    changes = []
    for pool in program.graph.nodes:
        rank = (AVERAGE_POOLS | MAX_POOLS).get(pool.target)
        pad = rank and _pad_before(first_input(pool))
        if not rank or not pad or not pad.meta["val"].is_floating_point():
            continue
        widths = zeros_padded(pad, rank)
        averages = pool.target in AVERAGE_POOLS
        if widths is None or (_reaches_values(pool, rank, widths) and (averages or _not_negative(first_input(pad)))):
            continue
        set_arguments(pad, value=-0.0)
        changes.append(Change("zeros before a pool kept apart from it", module_path(pool), routine=True))
    return changes


def _pad_before(node: fx.Node) -> fx.Node | None:
    while node.target in DROPPED:
        node = first_input(node)
    return node if node.target in (aten.pad.default, aten.constant_pad_nd.default) else None


def _not_negative(node: fx.Node) -> bool:
    while node.target in MAX_POOLS or node.target in (aten.dropout.default, ours.dropout.default, aten.clone.default):
        node = first_input(node)
    if node.target is aten.hardtanh.default:
        least = bound_arguments(node).value("min_val")
        return isinstance(least, int | float) and least >= 0
    return node.target in NOT_NEGATIVE


def _reaches_values(pool: fx.Node, rank: int, widths: list[int]) -> bool:
    """Return whether every window reaches values, so that zeros change no maximum of values that are not negative."""
    kernel, _, padding, dilation = geometry(pool, rank)
    sides = zip([*widths], [*padding] * 2, [*kernel] * 2, strict=True)
    return all(d == 1 for d in dilation) and all(width + own < size for width, own, size in sides)
