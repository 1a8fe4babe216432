"""Operators that are called for an effect, such as printing or checking, in a decomposed program.

    token1, result = with_effects(token0, operator, x)        ->   result = operator(x)

The tokens only keep them in order. Operators without a result are dropped: a converted model neither prints nor checks.
"""

from __future__ import annotations

import operator

import torch
from torch import fx


def drop_tokens(graph: fx.Graph) -> None:
    """Remove the tokens that operators of `graph` take and give."""
    with_effects = torch.ops.higher_order.with_effects
    for node in graph.find_nodes(op="call_function", target=with_effects):
        token, target, *args = node.args
        results = node.meta["val"][1:]
        call = None
        if any(value is not None for value in results):
            with graph.inserting_before(node):
                call = graph.call_function(target, tuple(args), dict(node.kwargs))
            call.meta = {**node.meta, "val": results[0] if len(results) == 1 else tuple(results)}
        for item in list(node.users):
            position = item.args[1]
            if position == 0:
                item.replace_all_uses_with(token)
            elif call is not None and len(results) == 1:
                item.replace_all_uses_with(call)
            elif call is not None:
                item.target, item.args = operator.getitem, (call, position - 1)
                continue
            graph.erase_node(item)
        graph.erase_node(node)
