"""Scaled dot product attention, from exact operators. Batch and heads come first in both matrix products."""

from __future__ import annotations

import math

import numpy as np
import torch

from converter.ir import custom_ops as ours
from converter.ir.lazy_tensor import LazyTensor
from converter.ir.sizes import Size, per_example, product
from converter.plan.builder import PlanBuilder
from converter.plan.layout import Layout
from converter.plan.lazy_keras import layers, ops
from converter.plan.registry import maps
from converter.plan.steps import Constant, ItemStep, Movement, Unsupported, Value
from mappings import dynamic_resize
from mappings.matmul import contract
from mappings.reductions import reduced, softmax_over
from mappings.sort import is_used

aten = torch.ops.aten
assert ours  # registers torch.ops.converter


@maps(aten.scaled_dot_product_attention.default)
def attention(plan, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, *, scale=None, enable_gqa=False):
    if dropout_p:
        raise Unsupported("active dropout")
    if isinstance(query, Constant):
        raise Unsupported("a query that does not depend on the input")
    *_, width = query.shape
    *outer, rows, _ = plan.shape()
    columns = key.shape[-2]
    batch: list = list(range(len(outer)))
    in_front = batch
    split = outer
    if enable_gqa and key.shape[-3] != outer[-1]:  # several heads of the query share one head of the key
        heads = key.shape[-3]
        query = plan.reshape(query, (*query.shape[:-3], heads, query.shape[-3] // heads, *query.shape[-2:]))
        in_front, split = [*batch, "sharing"], [*outer[:-1], heads, outer[-1] // heads]

    def labels(x, front, *last):
        return [*front[len(front) - len(x.shape) + 2 :], *last]

    factor = 1 / math.sqrt(width) if scale is None else scale
    scaled = plan.elementwise(lambda q: q * factor, query)
    of_query, of_key = labels(query, in_front, "rows", "width"), labels(key, batch, "columns", "width")
    scores = contract(plan, scaled, key, of_query, of_key, [*in_front, "rows", "columns"])
    scores = plan.reshape(scores, (*outer, rows, columns))
    if is_causal:
        attn_mask = causal_mask(plan, query, key, rows, columns)
    weights = masked_softmax(plan, scores, attn_mask, is_causal)
    weights = plan.reshape(weights, (*split, rows, columns))
    of_weights, of_value = [*in_front, "rows", "columns"], labels(value, batch, "columns", "features")
    result = contract(plan, weights, value, of_weights, of_value, [*in_front, "rows", "features"])
    return plan.reshape(result, plan.shape())


def causal_mask(plan: PlanBuilder, query: Value, key: Value | Constant, rows: Size, columns: Size) -> Constant | Value:
    """Return the mask in which row i sees columns 0 to i."""
    if not isinstance(rows, int) or not isinstance(columns, int):
        places = [dynamic_resize.places(plan, x, len(x.shape) - 2, n) for x, n in ((query, rows), (key, columns))]
        layout = Layout(((0,), (1,)), ((0,), (1,)), {0: rows, 1: columns})
        compare = lambda i, j: ops.expand_dims(i, 1) >= ops.expand_dims(j, 0)  # noqa: E731
        return plan.call(compare, *places, layout=layout, dtype=torch.bool)
    mask = torch.ones(rows, columns, dtype=torch.bool).tril()
    return Constant(LazyTensor.of(mask), torch.bool, (), True, False, ("causal", rows, columns))


def masked_softmax(plan: PlanBuilder, scores: Value, mask: Value | Constant | None, is_causal: bool = False) -> Value:
    """Compute the softmax over the last dimension; a row that the mask excludes completely becomes 0, as in PyTorch.

    Args:
        is_causal: the mask excludes no row completely.
    """
    rank = len(scores.shape)
    if mask is None:
        return softmax_over(plan, scores, rank - 1)
    boolean = mask.dtype == torch.bool

    def masked(s, m):
        return ops.where(m, s, -math.inf) if boolean else s + m

    scores = plan.elementwise(masked, scores, mask)
    if is_causal or (isinstance(mask, Constant) and not mask.query(dead_rows)):
        return softmax_over(plan, scores, rank - 1)
    best = reduced(plan, scores, [rank - 1], True, lambda a, axes: ops.max(a, axis=axes))
    alive = plan.elementwise(lambda s, b: ops.where(ops.equal(b, -math.inf), 0.0, s), scores, best)
    weights = softmax_over(plan, alive, rank - 1)
    return plan.elementwise(lambda w, b: ops.where(ops.equal(b, -math.inf), 0.0, w), weights, best)


def dead_rows(mask: torch.Tensor) -> bool:
    allowed = mask if mask.dtype == torch.bool else mask > -math.inf
    return not bool(allowed.any(-1).all())


@maps(torch.ops.converter.multi_head_attention.default)
def multi_head_attention(
    plan, query, key, value, weights, biases, query_rows, key_rows, value_rows, columns, heads, dropout
):
    """Map attention to Keras' own layer, which splits heads and joins them again inside."""
    like = next(x for x in (query, key, value) if isinstance(x, Value))
    rows = {"query": query_rows, "key": key_rows, "value": value_rows}
    given, held = {}, list[Constant | None]()
    for i, (name, x) in enumerate(zip(rows, (query, key, value), strict=True)):
        given[name], order = features_behind(plan, plan.as_value(x, like))
        kernel = weights[i].index_select(0, np.array(rows[name])).permute(1, 0).index_select(0, order)
        width = len(rows[name]) // heads
        held.append(kernel.reshape(weights[i].shape[1], heads, width))
        held.append(biases[i].index_select(0, np.array(rows[name])).reshape(heads, width) if biases else None)
    outputs = weights[3].shape[0]
    last = weights[3].index_select(1, np.array(columns)).permute(1, 0)
    held += [last.reshape(heads, len(columns) // heads, outputs), biases[3] if biases else None]
    config = {
        "num_heads": heads,
        "key_dim": len(query_rows) // heads,
        "value_dim": len(value_rows) // heads,
        "use_bias": bool(biases),
        "dropout": dropout,
        "output_shape": outputs,
    }
    batch, time, features = given["query"].layout.dims
    size = {a: n for a, n in given["query"].layout.size.items() if a not in features}
    fresh = max((*given["query"].layout.size, *given["key"].layout.size), default=-1) + 1
    run = (fresh,) if outputs != 1 else ()
    layout = Layout((batch, time, run), (batch, time, run), size | dict.fromkeys(run, outputs))
    wanted = is_used(plan, 1)
    whole = plan.layer(
        layers.MultiHeadAttention, config, given["query"], weights=held, name=plan.name, layout=layout,
        extra_inputs={"value": given["value"], "key": given["key"]},
        arguments={"return_attention_scores": True} if wanted else None,
    )  # fmt: skip
    for x in (*given.values(), whole):
        count = per_example(product(x.shape))
        plan.movements.append(Movement("Transpose", plan.name, "heads of Keras' layer", count, count, plan.node))
    if not wanted:
        return [whole, None]
    scores = Layout.of(plan.shape(1))
    return [Value(out, whole.dtype, ItemStep((whole.step,), plan.node, i)) for i, out in enumerate((layout, scores))]


def features_behind(plan: PlanBuilder, x: Value) -> tuple[Value, np.ndarray]:
    """Return `x` with its axes as (batch, time, features), and the physical order of the features."""
    batch, time, features = x.layout.dims
    run = tuple(a for a in x.layout.atoms if a in features)
    x = plan.relayout(x, (batch, time, run), "(batch, time, features)")
    return x, x.layout.index(x.layout.dims[2], run)
