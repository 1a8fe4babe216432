"""Embeddings: the features come last, in any layout of the indices."""

import torch

from converter.plan.layout import Layout
from converter.plan.lazy_keras import layers
from converter.plan.registry import maps
from converter.plan.steps import Constant, Unsupported

aten = torch.ops.aten


@maps(aten.embedding.default)
def embedding(plan, weight, indices, padding_idx=-1, scale_grad_by_freq=False, sparse=False):
    """Map an embedding; `padding_idx` and the later arguments concern training: its row is looked up like any other."""
    if not isinstance(weight, Constant) or isinstance(indices, Constant):
        raise Unsupported("a table that depends on the input")
    count, features = weight.shape
    layout = indices.layout
    fresh = max(layout.size, default=-1) + 1
    run = (fresh,) if features != 1 else ()
    result = Layout((*layout.dims, run), (*layout.axes, run), {**layout.size, **dict.fromkeys(run, features)})
    if is_tied(plan, weight):
        return table_layer(plan, indices, weight, result)
    config = {"input_dim": count, "output_dim": features}
    return plan.layer(layers.Embedding, config, indices, weights=(weight,), layout=result)


def is_tied(plan, weight):
    return isinstance(weight, Constant) and weight.key in plan.program.tied


def table_layer(plan, x, table, layout, **arguments):
    """Use one layer for both calls: rows of `table` by their indices, or with `reverse` the scores of all rows."""
    count, features = table.shape
    config = {"input_dim": count, "output_dim": features}
    return plan.layer(layers.ReversibleEmbedding, config, x, weights=(table,), layout=layout, arguments=arguments)
