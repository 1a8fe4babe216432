"""Facts about ATen operators: which ones assert, mutate, or may return a view."""

from __future__ import annotations

import operator

import torch
from torch import fx
from torch._ops import OpOverload

aten = torch.ops.aten


ASSERTIONS = {
    aten._assert_tensor_metadata.default, aten._assert_scalar.default, aten.sym_constrain_range.default,
    aten._linalg_check_errors.default, aten._assert_async.default, aten._assert_async.msg,
}  # fmt: skip


# Their schemas do not say that the result may share memory.
MAY_SHARE = {
    aten.chunk.default, aten.contiguous.default, aten.flatten.using_ints, aten.reshape.default, aten.unflatten.int,
}  # fmt: skip


def is_mutating(node: fx.Node) -> bool:
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def is_view(node: fx.Node) -> bool:
    """Return whether the result may share memory with an input.

    The result of an in-place operator does share it, but counts as a value, so this returns False for it.
    """
    if node.op == "output":
        return False
    if not isinstance(node.target, OpOverload):
        return node.target is operator.getitem
    if node.target._schema.is_mutable:
        return False
    return node.target in MAY_SHARE or any(r.alias_info is not None for r in node.target._schema.returns)
