"""Give clamp bounds one type: PyTorch's ONNX exporter rejects a clamp of floats between a float and an integer.

clamp(x, 0.001, 1) -> clamp(x, 0.001, 1.0)

A hardtanh of integers, whose bounds PyTorch truncates, becomes a clamp.
"""

import torch

from converter.ir.aten import bound_arguments, set_arguments
from converter.ir.program import Program, module_path
from converter.rewrites.base import Change

aten = torch.ops.aten


def unify_clamp_bounds(program: Program) -> list[Change]:
    changes = []
    for clamp in program.graph.find_nodes(op="call_function", target=aten.clamp.default):
        arguments = bound_arguments(clamp)
        low, high = arguments.value("min"), arguments.value("max")
        if arguments.node("self").meta["val"].is_floating_point() and {type(low), type(high)} == {int, float}:
            set_arguments(clamp, min=float(low), max=float(high))
            changes.append(Change("bounds of one type", module_path(clamp), routine=True))
    for hardtanh in program.graph.find_nodes(op="call_function", target=aten.hardtanh.default):
        arguments = bound_arguments(hardtanh)
        x, low, high = arguments.node("self"), arguments.number("min_val"), arguments.number("max_val")
        if not x.meta["val"].is_floating_point():
            hardtanh.target, hardtanh.args = aten.clamp.default, (x, int(low), int(high))
            changes.append(Change("a clamp of integers", module_path(hardtanh), routine=True))
    return changes
