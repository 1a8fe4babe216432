"""Write out operators that cannot be mapped in terms of others, as PyTorch itself decomposes them.

    addr(c, a, b) -> add(c, mul(unsqueeze(a), b))

An operator stays as it is, to be named in an error, unless everything that it decomposes to has a mapping.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch._C import DispatchKey
from torch._decomp import global_decomposition_table
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import dispatch_functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_map_only

from converter.functional import is_mutating
from converter.program import Origin, Program, module_meta
from converter.registry import MAPPINGS

aten = torch.ops.aten
# A view asks for a tensor that lies right in memory, which the tensor of another operator need not do.
FREE = {aten.view.default: aten.reshape.default, aten._unsafe_view.default: aten.reshape.default}


def decompose(program: Program, node: fx.Node) -> bool:
    """Write out one operator, if everything that it decomposes to is mapped."""
    traced = decomposed(node)
    program.refuse_fixed_sizes(f"{node.target} was decomposed")
    return traced is not None and inline(program, node, traced)


def decomposition(target: OpOverload) -> Callable | None:
    """PyTorch's own way to write `target` in terms of other operators."""
    table = global_decomposition_table["post_autograd"]
    if target in table:
        return table[target]
    for key in (DispatchKey.CompositeImplicitAutograd, DispatchKey.CompositeExplicitAutograd):
        if target.has_kernel_for_dispatch_key(key):
            return lambda *args, **kwargs: target._op_dk(key, *args, **kwargs)
    return None


@functools.cache
def unmapped() -> dict[OpOverload, Callable]:
    """PyTorch's decompositions of all operators that have no mapping."""
    table = global_decomposition_table["post_autograd"]
    return {
        target: function
        for target, function in table.items()
        if isinstance(target, OpOverload) and target not in MAPPINGS and not target._schema.is_mutable
    }


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
    mode = next((x.fake_mode for x in fakes if isinstance(x, FakeTensor)), None)
    if mode is None:
        return None
    try:
        with mode, torch.no_grad():
            traced = make_fx(call, unmapped(), _allow_non_fake_inputs=True)(*fakes)
            if any(is_mutating(n) for n in traced.graph.nodes):
                traced = make_fx(dispatch_functionalize(call), unmapped(), _allow_non_fake_inputs=True)(*fakes)
    except Exception:  # it reads values, or breaks otherwise on tensors that have none: the operator is named instead
        return None
    constant: set[fx.Node] = set()  # they will be computed
    for n in traced.graph.nodes:
        if n.op == "get_attr" or (
            n.op == "call_function" and constant.issuperset(n.all_input_nodes) and not is_size(n)
        ):
            constant.add(n)
        elif n.op == "call_function" and (n.target is node.target or not is_known(n)):
            return None
    return traced


def is_known(node: fx.Node) -> bool:
    return node.target in MAPPINGS or node.target is operator.getitem or is_size(node)


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
    made: dict[fx.Node, fx.Node] = dict(
        zip(traced.graph.find_nodes(op="placeholder"), node.all_input_nodes, strict=True)
    )
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
