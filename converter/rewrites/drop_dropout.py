"""Drop dropouts, which do nothing in eval mode.

linear(dropout(x)) -> linear(x)
"""

import torch

from converter import ops
from converter.program import Program, module_path
from converter.rewrites.change import Change

assert ops  # registers torch.ops.converter


def drop_dropout(program: Program) -> list[Change]:
    found = program.graph.find_nodes(op="call_function", target=torch.ops.converter.dropout.default)
    for node in found:
        node.replace_all_uses_with(node.args[0])
    return [Change("Dropout dropped", module_path(node), minor=True) for node in found]
