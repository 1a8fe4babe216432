"""Give clamp bounds one type: PyTorch's ONNX exporter rejects a clamp of floats between a float and an integer.

clamp(x, 0.001, 1) -> clamp(x, 0.001, 1.0)
"""

import torch

from converter.ir.program import Program, module_path
from converter.rewrites.base import Change

aten = torch.ops.aten


def unify_clamp_bounds(program: Program) -> list[Change]:
    changes = []
    for clamp in program.graph.find_nodes(op="call_function", target=aten.clamp.default):
        x, *bounds = clamp.args
        if x.meta["val"].is_floating_point() and {type(bound) for bound in bounds} >= {int, float}:
            clamp.args = (x, *(float(bound) for bound in bounds))
            changes.append(Change("bounds of one type", module_path(clamp), routine=True))
    return changes
