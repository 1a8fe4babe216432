"""Write pools so that ONNX counts the same windows and PyTorch's exporter can write them.

max_pool2d(x, 2, 3, ceil_mode=True) of 10 x 10 -> max_pool2d(x, 2, 3)  (the fourth window would lie outside)
avg_pool2d(x, 3, divisor_override=5)           -> avg_pool2d(x, 3) * (9 / 5)
"""

import math

import torch
from torch import fx

from converter.ir.aten import AVERAGE_POOLS, MAX_POOLS, bound_arguments, first_input, set_arguments
from converter.ir.program import Program, module_path
from converter.ir.sizes import symbolic_shape
from converter.rewrites.base import Change

aten = torch.ops.aten


def normalize_pools(program: Program) -> list[Change]:
    changes = []
    for node in list(program.graph.nodes):
        rank = (AVERAGE_POOLS | MAX_POOLS).get(node.target)
        if rank is None:
            continue
        divisor = bound_arguments(node).values.get("divisor_override")
        changed = round_down(program, node, rank) if divisor is None else divide(program, node, rank, divisor)
        if changed:
            changes.append(Change("windows of a pool written out", module_path(node), routine=True))
    return changes


def round_down(program: Program, node: fx.Node, rank: int) -> bool:
    """Round the number of windows down where that gives as many, in a separate pool if only some axes allow it.

    PyTorch drops a window that begins after the image, ONNX rounds up and keeps it
    (https://docs.pytorch.org/docs/stable/generated/torch.nn.MaxPool2d.html).
    """
    arguments = bound_arguments(node)
    if not arguments.flag("ceil_mode"):
        return False
    x, value = arguments.node("self"), node.meta["val"]
    have = symbolic_shape(x.meta["val"])[-rank:]
    out = symbolic_shape(value[0] if isinstance(value, tuple) else value)[-rank:]
    if not all(isinstance(n, int) for n in (*have, *out)):
        return False
    kernel, stride, padding, dilation = geometry(node, rank)
    beyond = [  # where the last window may begin at most
        n + 2 * p - d * (k - 1) - 1 for n, k, p, d in zip(have, kernel, padding, dilation, strict=True)
    ]
    down = [r // s + 1 == m for r, s, m in zip(beyond, stride, out, strict=True)]
    if all(-(-r // s) + 1 == m for r, s, m in zip(beyond, stride, out, strict=True)):
        return False
    if all(down):
        set_arguments(node, ceil_mode=False)
        return True
    if isinstance(value, tuple):
        return False  # positions
    rest = [] if node.target in MAX_POOLS else [arguments.flag("count_include_pad")]
    with program.graph.inserting_before(node):
        for part in (True, False):
            along = [
                [n if this == part else neutral for n, this in zip(values, down, strict=True)]
                for values, neutral in ((kernel, 1), (stride, 1), (padding, 0), (dilation, 1))
            ]
            windows = along if node.target in MAX_POOLS else along[:3]
            x = program.insert_call(node.target, (x, *windows, not part, *rest), node)
    node.replace_all_uses_with(x)
    return True


def divide(program: Program, node: fx.Node, rank: int, divisor: int) -> bool:
    """Write a custom divisor as a factor; pad with zeros where windows reach beyond the padding."""
    x, (kernel, stride, padding, _) = first_input(node), geometry(node, rank)
    with program.graph.inserting_before(node):
        if bound_arguments(node).flag("ceil_mode"):
            have, out = symbolic_shape(x.meta["val"])[-rank:], symbolic_shape(node.meta["val"])[-rank:]
            if not all(isinstance(n, int) for n in (*have, *out)):
                return False
            behind = [
                max((m - 1) * s + k - n - p, p)
                for n, m, k, s, p in zip(have, out, kernel, stride, padding, strict=True)
            ]
            if behind != padding:
                widths = [n for pad in zip(reversed(padding), reversed(behind), strict=True) for n in pad]
                x, padding = program.insert_call(aten.constant_pad_nd.default, (x, widths), node), [0] * rank
        pooled = program.insert_call(node.target, (x, kernel, stride, padding), node)
        scaled = program.insert_call(aten.mul.Tensor, (pooled, math.prod(kernel) / divisor), node)
    node.replace_all_uses_with(scaled)
    return True


def geometry(node: fx.Node, rank: int) -> tuple[list[int], list[int], list[int], list[int]]:
    """Return kernel_size, stride, padding and dilation along each axis."""
    arguments = bound_arguments(node)
    kernel, padding = arguments.integers("kernel_size", rank), arguments.integers("padding", rank)
    dilation = arguments.integers("dilation", rank) if node.target in MAX_POOLS else [1] * rank
    return kernel, arguments.integers("stride", rank) or kernel, padding, dilation
