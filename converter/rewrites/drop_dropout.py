"""Drop dropouts, which do nothing in eval mode, including those between the layers of an LSTM.

linear(dropout(x)) -> linear(x)
"""

import torch
from torch import fx

from converter.compat.export_patches import RECURRENT
from converter.ir import custom_ops
from converter.ir.aten import bound_arguments, set_arguments
from converter.ir.program import Program, module_path
from converter.rewrites.base import Change

assert custom_ops  # registers torch.ops.converter


def drop_dropout(program: Program) -> list[Change]:
    found = program.graph.find_nodes(op="call_function", target=torch.ops.converter.dropout.default)
    for node in found:
        node.replace_all_uses_with(bound_arguments(node).node("x"))
    for node in recurrent_with_dropout(program):
        set_arguments(node, dropout=0.0)
        found.append(node)
    return [Change("Dropout dropped", module_path(node), routine=True) for node in found]


def recurrent_with_dropout(program: Program) -> list[fx.Node]:
    nodes = (n for target in RECURRENT.values() for n in program.graph.find_nodes(op="call_function", target=target))
    given = ((node, bound_arguments(node)) for node in nodes)
    return [node for node, arguments in given if arguments.number("dropout") and arguments.integer("num_layers") > 1]
