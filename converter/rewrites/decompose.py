"""Write out operators that have no mapping in terms of others, as PyTorch itself decomposes them.

    addr(c, a, b) -> add(c, mul(unsqueeze(a), b))

An operator stays as it is, to be named in an error, unless everything that it decomposes to is mapped.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch._C import DispatchKey
from torch._decomp import global_decomposition_table
from torch._ops import OpOverload
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from converter.program import Origin, Program, module_meta, module_path
from converter.registry import MAPPINGS
from converter.rewrites.change import Change

aten = torch.ops.aten
# A view asks for a tensor that lies right in memory, which the tensor of another operator need not do.
FREE = {aten.view.default: aten.reshape.default, aten._unsafe_view.default: aten.reshape.default}


def decompose(program: Program) -> list[Change]:
    import mappings

    mappings.load()
    changes = []
    for node in list(program.graph.nodes):
        if isinstance(node.target, OpOverload) and node.target not in MAPPINGS and not is_size(node):
            traced = decomposed(node)
            if traced is not None and inline(program, node, traced):
                changes.append(Change("operator decomposed", module_path(node), str(node.target), minor=True))
    return changes


def decomposition(target: OpOverload) -> Callable | None:
    """PyTorch's own way to write `target` in terms of other operators."""
    table = global_decomposition_table["post_autograd"]
    if target in table:
        return table[target]
    for key in (DispatchKey.CompositeImplicitAutograd, DispatchKey.CompositeExplicitAutograd):
        if target.has_kernel_for_dispatch_key(key):
            return lambda *args, **kwargs: target._op_dk(key, *args, **kwargs)
    return None


class Unmapped(dict):
    """A table of decompositions, of all operators that have no mapping."""

    def __contains__(self, target: object) -> bool:
        return isinstance(target, OpOverload) and target not in MAPPINGS and decomposition(target) is not None

    def __getitem__(self, target: OpOverload) -> Callable:
        found = decomposition(target)
        if found is None:
            raise KeyError(target)
        return found


def decomposed(node: fx.Node) -> fx.GraphModule | None:
    """A graph of mapped operators that computes `node` from the nodes it takes; None if there is none."""
    function = decomposition(node.target)
    if function is None:
        return None
    sources = node.all_input_nodes

    def call(*values: Any) -> Any:
        given = dict(zip(sources, values, strict=True))
        args, kwargs = tree_map_only(fx.Node, given.__getitem__, (node.args, node.kwargs))
        return tree_flatten(function(*args, **kwargs))[0]

    fakes = [n.meta["val"] for n in sources]
    mode = next((x.fake_mode for x in fakes if isinstance(x, Tensor)), None)
    if mode is None:
        return None
    try:
        with mode, torch.no_grad():
            traced = make_fx(call, decomposition_table=Unmapped(), _allow_non_fake_inputs=True)(*fakes)
    except Exception:  # it reads values, or breaks otherwise on tensors that have none: the operator is named instead
        return None
    constant: set[fx.Node] = set()  # they will be computed
    for n in traced.graph.nodes:
        if n.op == "get_attr" or (n.op == "call_function" and constant.issuperset(n.all_input_nodes) and not is_size(n)):
            constant.add(n)
        elif n.op == "call_function" and not (n.target in MAPPINGS or n.target is operator.getitem or is_size(n)):
            return None
    return traced


def is_size(node: fx.Node) -> bool:
    """Whether it computes with sizes."""
    return isinstance(node.meta.get("val"), (torch.SymInt, torch.SymBool, torch.SymFloat, int, float, bool))


def inline(program: Program, node: fx.Node, traced: fx.GraphModule) -> bool:
    """Put `traced` in the place of `node`, whose inputs are its own."""
    results = traced.graph.output_node().args[0]
    value = node.meta["val"]
    before = tree_flatten(value)[0]
    after = [r.meta["val"] if isinstance(r, fx.Node) else r for r in results]
    if [described(x) for x in before] != [described(x) for x in after]:
        return False
    made: dict[fx.Node, fx.Node] = dict(zip(traced.graph.find_nodes(op="placeholder"), node.all_input_nodes, strict=True))
    with program.graph.inserting_before(node):
        for inner in traced.graph.nodes:
            if inner.op == "get_attr":
                tensor = getattr(traced, inner.target)
                made[inner] = program.new_tensor(
                    f"{node.name}.{inner.target}", tensor.detach(), node, Origin(()), trainable=False
                )
            elif inner.op == "call_function":
                made[inner] = program.graph.node_copy(inner, made.__getitem__)
                made[inner].target = FREE.get(inner.target, inner.target)
                made[inner].meta = {"val": inner.meta["val"], **module_meta(node)}
    if isinstance(value, Tensor):
        node.replace_all_uses_with(made[results[0]])
        return True
    for user in list(node.users):
        user.replace_all_uses_with(made[results[user.args[1]]])
    return True


def described(x: Any) -> Any:
    return (x.dtype, tuple(x.shape)) if isinstance(x, Tensor) else type(x)
