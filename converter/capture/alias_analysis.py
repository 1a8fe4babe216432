"""Operators that write to memory which they still have to read: PyTorch does not define their result.

`x[1:] = x[:-1]` copies onto its own source. Its result depends on the processor and on the tensor's place in memory,
while a functional graph has only one answer: the old values are read. `ReadOldValues` runs a module so.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from converter.ir.aten import bound_arguments, is_mutating, is_view, parameters
from converter.ir.sizes import example_shape

aten = torch.ops.aten


class ReadOldValues(TorchDispatchMode):
    """A context in which assignments within one tensor's memory read a copy of it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator."""
        if func is aten.copy_.default and args[0].untyped_storage().data_ptr() == args[1].untyped_storage().data_ptr():
            args = (args[0], args[1].clone(), *args[2:])
        return func(*args, **(kwargs or {}))


def is_assignment(node: fx.Node) -> bool:
    """Return whether an in-place operator only copies."""
    return node.target is aten.copy_.default


def overlapping_writes(graph_module: fx.GraphModule) -> list[fx.Node]:
    """List an exported graph's operators, in-place ones included, that write to elements they also read elsewhere."""
    return [n for n in graph_module.graph.nodes if n.op == "call_function" and is_mutating(n) and overlaps_itself(n)]


def overlaps_itself(node: fx.Node) -> bool:
    assert isinstance(node.target, OpOverload)
    arguments = bound_arguments(node)
    written = [arguments.value(parameter.name) for parameter in parameters(node.target) if parameter.written]
    targets = [value for value in written if isinstance(value, fx.Node)]
    return any(overlap(target, source) for target in targets for source in node.all_input_nodes if source is not target)


def overlap(target: fx.Node, source: fx.Node) -> bool:
    """Return whether the two share elements at different positions."""
    root, views = chain(target)
    other, other_views = chain(source)
    if root is not other or not isinstance(root.meta.get("val"), Tensor):
        return False
    elements = torch.arange(count(root.meta["val"])).reshape(example_shape(root.meta["val"].shape))
    a, b = viewed(elements, views), viewed(elements, other_views)
    if any(t.untyped_storage().data_ptr() != elements.untyped_storage().data_ptr() for t in (a, b)):
        return False  # a view that had to copy
    return not (a.shape == b.shape and torch.equal(a, b)) and bool(torch.isin(a, b).any())


def chain(node: fx.Node) -> tuple[fx.Node, list[fx.Node]]:
    """Return the tensor that `node` is a view of, and the views in their order."""
    views: list[fx.Node] = []
    while node.op == "call_function" and isinstance(node.args[0], fx.Node):
        if not is_mutating(node):
            if not is_view(node):
                break
            views.append(node)
        node = node.args[0]
    return node, views[::-1]


def viewed(elements: Any, views: list[fx.Node]) -> Tensor:
    for view in views:
        args, kwargs = tree_map_only(fx.Node, lambda n: example_shape([n.meta["val"]])[0], (view.args[1:], view.kwargs))
        assert callable(view.target)
        elements = view.target(elements, *args, **kwargs)
    return elements


def count(tensor: Tensor) -> int:
    total = 1
    for n in example_shape(tensor.shape):
        total *= n
    return total
