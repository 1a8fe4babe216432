"""Embeddings: whatever the indices' layout, the features come last."""

import torch
from keras import layers

from converter.layout import Layout
from converter.plan import Constant, Unsupported
from converter.registry import maps

aten = torch.ops.aten


@maps(aten.embedding.default)
def embedding(plan, weight, indices, padding_idx=-1, scale_grad_by_freq=False, sparse=False):
    """`padding_idx` and what follows concern training: its row is looked up like any other."""
    if not isinstance(weight, Constant) or isinstance(indices, Constant):
        raise Unsupported("a table that is computed from the input")
    count, features = weight.shape
    layout = indices.layout
    fresh = max(layout.size, default=-1) + 1
    run = (fresh,) if features != 1 else ()
    result = Layout((*layout.dims, run), (*layout.axes, run), {**layout.size, **dict.fromkeys(run, features)})
    config = {"input_dim": count, "output_dim": features}
    return plan.layer(layers.Embedding, config, indices, weights=(weight,), layout=result)
