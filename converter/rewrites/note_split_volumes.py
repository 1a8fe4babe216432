"""Report grouped 3-D convolutions, which a CPU does not support: they are built from 2-D ones (Keras, TensorFlow).

The program stays the same; the mapping splits the kernel into its planes.
"""

import torch

from converter.ir import custom_ops
from converter.ir.aten import bound_arguments
from converter.ir.program import Program, module_path
from converter.rewrites.base import Change

aten, ours = torch.ops.aten, torch.ops.converter
assert custom_ops  # registers torch.ops.converter
CONVOLUTIONS = {aten.conv3d.default, aten.conv3d.padding, ours.padded_conv.default}


def note_split_volumes(program: Program) -> list[Change]:
    changes = []
    for node in program.graph.nodes:
        if node.target not in CONVOLUTIONS:
            continue
        kernel = bound_arguments(node).node("weight").meta["val"]
        if kernel.dim() == 5 and bound_arguments(node).integer("groups") > 1:
            planes = kernel.shape[2]
            description = f"{planes} grouped 2-D convolutions, one for each plane of the kernel, are added"
            changes.append(Change("3-D groups split", module_path(node), description))
    return changes
