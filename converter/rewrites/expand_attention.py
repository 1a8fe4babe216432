"""Write attention as operators, whose scale and transpose the runtime takes into its products (ONNX).

    scaled_dot_product_attention(q, k, v, mask)
    -> s = (q @ k^T) * scale masked; softmax(s) @ v, or where(max(s) == -inf, 0, softmax(s)) @ v

The second if the mask may exclude a whole row, which then gives 0 as in PyTorch. The exporter's own translation gives
NaN there, and it moves k by itself, in three dimensions of sizes that are read from it.
"""

import math
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from converter.ir.aten import bound_arguments
from converter.ir.program import Program, module_path
from converter.ir.sizes import symbolic_shape
from converter.rewrites.base import Change

aten = torch.ops.aten
INFINITY = float("inf")


def expand_attention(program: Program) -> list[Change]:
    changes = []
    for node in program.graph.find_nodes(op="call_function", target=aten.scaled_dot_product_attention.default):
        arguments = bound_arguments(node)
        query, key, value = (arguments.node(name) for name in ("query", "key", "value"))
        mask, scale = arguments.optional_node("attn_mask"), arguments.value("scale")
        shared = (
            arguments.flag("enable_gqa")
            and symbolic_shape(query.meta["val"])[-3] != symbolic_shape(key.meta["val"])[-3]
        )
        if arguments.number("dropout_p") or arguments.flag("is_causal") or shared:
            continue
        scale = 1 / math.sqrt(int(query.meta["val"].shape[-1])) if scale is None else scale
        with program.graph.inserting_before(node):

            def call(target: OpOverload, *args: Any, node: fx.Node = node) -> fx.Node:
                return program.insert_call(target, args, node)

            narrow = query.meta["val"].dtype == torch.float16  # products may exceed its range before they are scaled
            scaled = call(aten.mul.Tensor, query, scale) if narrow else query
            scores = call(aten.matmul.default, scaled, call(aten.transpose.int, key, -2, -1))
            scores = scores if narrow else call(aten.mul.Tensor, scores, scale)
            if mask is not None and mask.meta["val"].dtype == torch.bool:
                scores = call(aten.where.ScalarOther, mask, scores, -INFINITY)
            elif mask is not None:
                scores = call(aten.add.Tensor, scores, mask)
            shares = call(aten.softmax.int, scores, -1)
            if mask is not None and may_be_empty(program, mask):
                empty = call(aten.eq.Scalar, call(aten.amax.default, scores, [-1], True), -INFINITY)
                shares = call(aten.where.ScalarSelf, empty, 0.0, shares)
            node.replace_all_uses_with(call(aten.matmul.default, shares, value))
        changes.append(Change("attention written out", module_path(node), routine=True))
    return changes


def may_be_empty(program: Program, mask: fx.Node) -> bool:
    """Return whether the mask may exclude a whole row."""
    if not program.is_tensor(mask):
        return True
    return program.query(mask, has_empty_rows)


def has_empty_rows(mask: Tensor) -> bool:
    allowed = mask if mask.dtype == torch.bool else mask > -INFINITY
    return not bool(allowed.any(-1).all())
