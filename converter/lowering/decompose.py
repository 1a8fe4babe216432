"""Write out operators that cannot be mapped in terms of others, as PyTorch decomposes them.

    addr(c, a, b) -> add(c, mul(unsqueeze(a), b))

An operator stays unchanged, so that an error can name it, unless everything that it decomposes to has a mapping.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, fx
from torch._C import DispatchKey
from torch._decomp import global_decomposition_table
from torch._dispatch.python import enable_python_dispatcher
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import dispatch_functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.utils._pytree import tree_flatten, tree_unflatten

from converter.compat.replaced import replaced
from converter.ir.aten import ASSERTIONS, is_mutating, read_item, returned
from converter.ir.program import Origin, Program, module_meta
from converter.plan.registry import Registry

aten = torch.ops.aten
# A view needs a tensor with suitable strides, which another operator's result need not have.
FREE = {aten.view.default: aten.reshape.default, aten._unsafe_view.default: aten.reshape.default}


def decompose(program: Program, node: fx.Node, registry: Registry) -> bool:
    """Write out one operator if everything that it decomposes to is mapped. An operator that gives a number stays."""
    if node.op != "call_function" or is_size(node):
        return False
    for function in decompositions(node, registry):
        traced = decomposed(node, function, registry)
        program.refuse_fixed_sizes(f"{node.target} was decomposed")
        if traced is not None and inline(program, node, traced):
            return True
    return False


def decompositions(node: fx.Node, registry: Registry) -> Iterator[Callable]:
    """Yield ways to write an operator in terms of others: registered ones first, then PyTorch's own."""
    target = node.target
    assert isinstance(target, OpOverload)
    if (own := registry[target].decomposition) is not None:
        yield functools.partial(own, node)
    table = global_decomposition_table["post_autograd"]
    if target in table:
        yield table[target]
    for key in (DispatchKey.CompositeImplicitAutograd, DispatchKey.CompositeExplicitAutograd):
        if target.has_kernel_for_dispatch_key(key):
            yield functools.partial(target._op_dk, key)


def unmapped(registry: Registry) -> dict[OpOverload, Callable]:
    """Return the decompositions of all operators that have no mapping."""
    table = global_decomposition_table["post_autograd"]
    found = registry.having("decomposition")
    own: dict[Any, Callable] = {target: functools.partial(function, None) for target, function in found.items()}
    return {
        target: function
        for target, function in {**table, **own}.items()
        if isinstance(target, OpOverload) and registry[target].lowering is None and not target._schema.is_mutable
    }


def decomposed(node: fx.Node, function: Callable, registry: Registry) -> fx.GraphModule | None:
    """Return a graph of mapped operators that computes `node` from its inputs by `function`, or None."""
    sources = node.all_input_nodes

    def call(*values: Any) -> Any:
        given = dict(zip(sources, values, strict=True))
        leaves, spec = tree_flatten((node.args, node.kwargs))  # in fresh lists: some decompositions write to them
        args, kwargs = tree_unflatten([given[x] if isinstance(x, fx.Node) else x for x in leaves], spec)
        results = function(*args, **kwargs)
        if results is NotImplemented:
            raise NotImplementedError
        return results if isinstance(results, list | tuple) else (results,)

    fakes = [n.meta["val"] for n in sources]
    mode = next((x.fake_mode for x in fakes if isinstance(x, FakeTensor)), None)
    if mode is None:
        return None
    traced = traced_in(mode, call, fakes, unmapped(registry))
    if traced is None:
        return None
    constant: set[fx.Node] = set()  # these will be computed
    for n in traced.graph.nodes:
        if n.op == "get_attr" or (
            n.op == "call_function" and constant.issuperset(n.all_input_nodes) and not is_size(n)
        ):
            constant.add(n)
        elif (
            n.op == "call_function"
            and n.target not in ASSERTIONS
            and (n.target is node.target or not is_known(n, registry))
        ):
            return None
    return traced


def traced_in(mode: Any, call: Callable, fakes: list, table: Mapping[OpOverload, Callable]) -> fx.GraphModule | None:
    """Trace what `call` does to `fakes` into a functional graph, decomposing by `table`.

    Returns None if it reads values or fails otherwise on tensors without values; an error then names the operator.
    Without the dispatcher in Python, PyTorch's C++ reads sizes as numbers, which fixes dynamic ones for good.
    """
    free = any(
        isinstance(n, torch.SymInt) for fake in fakes for n in (fake.shape if isinstance(fake, Tensor) else [fake])
    )
    for dispatcher in (enable_python_dispatcher,) if free else (contextlib.nullcontext, enable_python_dispatcher):
        with contextlib.suppress(Exception), unlogged(), mode, dispatcher(), torch.no_grad():
            traced = make_fx(call, table, _allow_non_fake_inputs=True)(*fakes)
            if any(is_mutating(n) for n in traced.graph.nodes):
                traced = make_fx(dispatch_functionalize(call), table, _allow_non_fake_inputs=True)(*fakes)
            return traced
    return None


def unlogged() -> AbstractContextManager[None]:
    """Silence the errors that PyTorch logs when its shape functions fail, as another way may work."""
    return replaced(logging.getLogger("torch._subclasses.fake_tensor"), disabled=True)


def is_known(node: fx.Node, registry: Registry) -> bool:
    return registry[node.target].lowering is not None or node.target is operator.getitem or is_size(node)


def is_size(node: fx.Node) -> bool:
    """Return whether `node` computes with sizes."""
    return isinstance(node.meta.get("val"), (torch.SymInt, torch.SymBool, torch.SymFloat, int, float, bool))


def inline(program: Program, node: fx.Node, traced: fx.GraphModule) -> bool:
    """Replace `node` by `traced`, which has the same inputs."""
    results = returned(traced.graph)
    value = node.meta["val"]
    before = [value] if isinstance(value, Tensor) else value
    items = {user: item[1] for user in node.users if (item := read_item(user)) is not None and item[0] is node}
    taken = {0} if isinstance(value, Tensor) else set(items.values())
    if len(results) != len(before) or not all(are_alike(before[i], result_of(results[i])) for i in taken):
        return False
    made: dict[fx.Node, fx.Node] = dict(
        zip(traced.graph.find_nodes(op="placeholder"), node.all_input_nodes, strict=True)
    )
    with program.graph.inserting_before(node):
        for inner in traced.graph.nodes:
            if inner.op == "get_attr":
                tensor, name = getattr(traced, inner.target).detach(), f"{node.name}.{inner.target}"
                made[inner] = program.new_tensor(name, tensor, node, Origin(()), trainable=False, dtype=tensor.dtype)
            elif inner.op == "call_function" and inner.target not in ASSERTIONS:
                made[inner] = program.graph.node_copy(inner, made.__getitem__)
                made[inner].target = FREE.get(inner.target, inner.target)
                made[inner].meta = {"val": inner.meta["val"], **module_meta(node)}
    if isinstance(value, Tensor):
        node.replace_all_uses_with(made[results[0]])
        return True
    for user, position in items.items():
        user.replace_all_uses_with(made[results[position]])
    return True


def result_of(result: Any) -> Any:
    return result.meta["val"] if isinstance(result, fx.Node) else result


def are_alike(a: Any, b: Any) -> bool:
    """Return whether two results have the same known type and shape; sizes that depend on values are not known."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return type(a) is type(b)
    same = [statically_known_true(n == m) for n, m in zip(a.shape, b.shape, strict=False)]
    return a.dtype == b.dtype and a.ndim == b.ndim and all(same)
