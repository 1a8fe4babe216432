"""Recognize a fixed permutation of channels in any form.

    index_select(x, 1, [2, 0, 1]), x[:, [2, 0, 1]], flip(x, [1])
    -> reorder_channels(x, [2, 0, 1])

`fold_channel_order` then moves it into weights. An index that repeats or omits a channel is left alone.
"""

import torch
from torch import fx

from converter.ir import custom_ops
from converter.ir.aten import bound_arguments, first_input
from converter.ir.program import Program, module_path
from converter.rewrites.base import Change

aten = torch.ops.aten


def find_channel_permutations(program: Program) -> list[Change]:
    changes = []
    for node in list(program.graph.nodes):
        order = fixed_order(program, node)
        if order is None:
            continue
        with program.graph.inserting_before(node):
            reordered = program.insert_call(
                custom_ops.reorder_channels._opoverload, (first_input(node), order), like=node
            )
        node.replace_all_uses_with(reordered)
        changes.append(Change("channels permuted", module_path(node), str(node.target)))
    return changes


def fixed_order(program: Program, node: fx.Node) -> list[int] | None:
    """Return the channel at each position of the result if the operator only permutes channels, else None."""
    if node.op != "call_function" or node.target not in (
        aten.index_select.default, aten.index.Tensor, aten.flip.default
    ):  # fmt: skip
        return None
    arguments = bound_arguments(node)
    x = arguments.node("self")
    rank = x.meta["val"].dim()
    channels = x.meta["val"].shape[1] if rank > 1 else None
    if program.is_tensor(x) or not isinstance(channels, int):
        return None
    if node.target is aten.flip.default:
        return list(range(channels))[::-1] if [d % rank for d in arguments.integers("dims")] == [1] else None
    if node.target is aten.index_select.default:
        dim, index = arguments.integer("dim") % rank, arguments.node("index")
    else:
        given = [(d, i) for d, i in enumerate(arguments.value("indices")) if i is not None]
        if len(given) != 1:
            return None
        dim, index = given[0]
    if dim != 1 or not program.is_tensor(index) or program.tensor(index).dtype not in (torch.int32, torch.int64):
        return None
    order = [n % channels for n in program.tensor(index).flatten().tolist()]
    return order if program.tensor(index).dim() == 1 and sorted(order) == list(range(channels)) else None
