"""Drop the running statistics of a batch norm that normalizes by the batch: PyTorch's ONNX exporter would update them.

batch_norm(x, w, b, mean, variance, training=True) -> batch_norm(x, w, b, None, None, training=True)
"""

import torch

from converter.ir.program import Program, module_path
from converter.rewrites.base import Change

aten = torch.ops.aten
MEAN, VARIANCE, TRAINING = 3, 4, 5  # arguments of batch_norm


def drop_unread_statistics(program: Program) -> list[Change]:
    changes = []
    for norm in program.graph.find_nodes(op="call_function", target=aten.batch_norm.default):
        if norm.args[TRAINING] is True and norm.args[MEAN] is not None:
            for node in filter(program.is_tensor, norm.args[MEAN:TRAINING]):
                program.inline_sources(node, "statistics that a norm of the batch does not read")
            norm.args = (*norm.args[:MEAN], None, None, *norm.args[TRAINING:])
            changes.append(Change("a batch norm without running statistics", module_path(norm), routine=True))
    return changes
