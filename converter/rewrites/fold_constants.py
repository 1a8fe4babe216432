"""Compute values that do not depend on any input.

    x + permute(view(p, ...)) * 2 -> x + c
    full([n, 1], item(select(p, 0, i))) -> full([n, 1], 8.0) -> c
    view(x, [-1, item(b)])              -> view(x, [-1, 4])
    index(x, [None, mask])              -> index(x, [None, positions])

A parameter that is only rearranged stays exact. One that enters a computation (weight norm) becomes one tensor that is
trainable as a whole. Computes in the best known precision. A tensor without elements is known too.
"""

from collections.abc import Mapping
from typing import Any, cast

import sympy
import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_map_only

from converter.ir.aten import bound_arguments, first_input, has_tag, read_item, set_arguments
from converter.ir.lazy_tensor import LazyTensor
from converter.ir.program import Origin, Program, default_dtype, module_path
from converter.ir.sizes import symbolic_shape
from converter.rewrites.base import Change

aten = torch.ops.aten
REARRANGING = {
    aten.permute.default, aten.transpose.int, aten.view.default, aten.reshape.default, aten.unsqueeze.default,
    aten.squeeze.dim, aten.squeeze.dims, aten.t.default, aten.clone.default, aten.alias.default, aten.detach.default,
    aten.slice.Tensor, aten.select.int, aten.flip.default, aten.expand.default,
}  # fmt: skip

# These read only the type of a tensor, or a shape that is known.
FILLING = {
    aten.new_zeros.default, aten.new_ones.default, aten.new_full.default, aten.zeros_like.default,
    aten.ones_like.default, aten.full_like.default,
}  # fmt: skip
NUMBERS = {aten.item.default, aten._local_scalar_dense.default}


def fold_constants(program: Program) -> list[Change]:
    changes = []
    made: dict[tuple[Any, ...], fx.Node] = {}
    stale: set[fx.Node] = set()  # their results follow from a number that is now known
    for node in list(program.graph.nodes):
        if node.target is aten.index.Tensor and chosen_by_positions(program, node):
            stale.add(node)
        if node in stale:
            stale |= refresh(program, node)
        number = known_number(program, node, node in stale)
        if number is not None:
            stale |= dict.fromkeys(node.users).keys()
            substitute(node, number)
            changes.append(Change("constant computed", module_path(node), f"{node.name} is a number", routine=True))
            continue
        if is_empty(node):
            changes.append(emptied(program, node))
            continue
        if not is_constant(program, node):
            continue
        key: tuple[Any, ...] = (node.target, repr(node.args), repr(node.kwargs))
        sources = whole(node).all_input_nodes
        if is_filling(node):
            key = (node.target, node.meta["val"].dtype, node.meta["val"].shape, repr(node.args[1:]), repr(node.kwargs))
            sources = []
        if key not in made:
            origin = program.merged_origin(sources, exact=node.target in REARRANGING)
            name = ".".join(filter(None, (module_path(node), node.name)))
            trainable = any(program.trainable(n) for n in sources) and node.meta["val"].is_floating_point()
            made[key] = program.new_tensor(
                name, evaluate(program, node), node, origin, trainable=trainable, dtype=node.meta["val"].dtype
            )
        node.replace_all_uses_with(made[key])
        changes.append(Change("constant computed", module_path(node), str(node.target), routine=True))
    return changes


def chosen_by_positions(program: Program, node: fx.Node) -> bool:
    """Replace known masks among the indices of `node` by the positions where they are true; return if there are any."""
    before = bound_arguments(node).value("indices")
    indices: list[fx.Node | None] = []
    for index in before:
        if index is None or not program.is_tensor(index) or index.meta["val"].dtype != torch.bool:
            indices.append(index)
            continue
        program.inline_sources(index, "its value became positions of the graph")
        for positions in program.query(index, lambda mask: mask.nonzero().T.tolist()):
            held = torch.tensor(positions, dtype=torch.int64)
            indices.append(program.new_tensor(f"{node.name}.positions", held, node, Origin(()), trainable=False))
    if indices != list(before):
        set_arguments(node, indices=indices)
    return indices != list(before)


def known_number(program: Program, node: fx.Node, derived: bool) -> int | float | bool | None:
    """Return the number that `node` reads from a constant or, if `derived`, computes from such numbers, or None."""
    if node.target in NUMBERS and program.is_tensor(first_input(node)):
        read = first_input(node)
        program.inline_sources(read, "its value became a number of the graph")
        return program.query(read, Tensor.item)
    value = node.meta.get("val")
    if not derived or node.op != "call_function":
        return None
    if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
        return as_number(value)
    return value if isinstance(value, int | float) else None


def as_number(value: torch.SymInt | torch.SymFloat | torch.SymBool) -> int | float | bool | None:
    expression = value.node.expr
    if isinstance(value, torch.SymBool):
        return bool(expression) if expression in (sympy.true, sympy.false) else None
    if not expression.is_number:
        return None
    return int(expression) if isinstance(value, torch.SymInt) else float(expression)


def substitute(node: fx.Node, number: int | float | bool) -> None:
    """Write `number` wherever `node` is an argument."""
    for user in list(node.users):
        args, kwargs = user.args, user.kwargs
        user.args, user.kwargs = fx.node.map_arg((args, kwargs), lambda n: number if n is node else n)


def refresh(program: Program, node: fx.Node) -> set[fx.Node]:
    """Recompute what `node` returns.

    Returns:
        The operators whose input changes.
    """
    if node.op != "call_function" or not callable(node.target):
        return set()
    before = node.meta["val"]
    fakes = (n.meta["val"] for n in program.graph.nodes if isinstance(n.meta.get("val"), FakeTensor))
    args, kwargs = cast(Any, fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["val"]))
    with next(fakes).fake_mode, enable_python_dispatcher():
        after = node.target(*args, **kwargs)
    program.refuse_fixed_sizes(f"{node.target} in {module_path(node) or 'the model itself'}")
    node.meta = node.meta | {"val": after}
    alike = isinstance(before, Tensor) and (before.dtype, symbolic_shape(before)) == (
        after.dtype,
        symbolic_shape(after),
    )
    return set() if alike else set(node.users)


def is_constant(program: Program, node: fx.Node) -> bool:
    target = whole(node).target
    return (
        node.op == "call_function"
        and isinstance(node.meta.get("val"), Tensor)
        and isinstance(target, OpOverload)
        and not has_tag(target, torch.Tag.nondeterministic_seeded)
        and (is_filling(node) or all(program.is_tensor(n) for n in whole(node).all_input_nodes))
        and all(isinstance(n, int) for n in node.meta["val"].shape)
    )


def whole(node: fx.Node) -> fx.Node:
    """Return the operator of several results that `node` is one of, or `node` itself."""
    item = read_item(node)
    return node if item is None else item[0]


def is_empty(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return (
        node.op in ("placeholder", "call_function")
        and isinstance(value, Tensor)
        and all(isinstance(n, int) for n in value.shape)
        and value.numel() == 0
        and bool(node.users)
    )


def emptied(program: Program, node: fx.Node) -> Change:
    value = node.meta["val"]
    for read in node.all_input_nodes:
        if program.is_tensor(read):
            program.inline_sources(read, "what it works on has no elements")
    with program.graph.inserting_after(node):
        before = program.graph.call_function(aten.alias.default, (node,))
    before.meta = dict(node.meta)
    empty = torch.empty(value.shape, dtype=value.dtype)
    made = program.new_tensor(f"{node.name}.empty", empty, before, Origin(()), trainable=False)
    node.replace_all_uses_with(made)
    program.graph.erase_node(before)
    return Change("constant computed", module_path(node), f"{node.name} has no elements", routine=True)


def is_filling(node: fx.Node) -> bool:
    return node.target in FILLING and node.all_input_nodes == [first_input(node)]


def evaluate(program: Program, node: fx.Node) -> Tensor | LazyTensor:
    """Return the result of `node`, float32 raised to float64, lazy if it depends on weights."""
    called = whole(node)
    inputs = {n: filled(n) if is_filling(node) else program.values(n) for n in called.all_input_nodes}
    # The graph changes these nodes; their current arguments stay.
    target, args, kwargs, value = called.target, called.args, called.kwargs, called.meta["val"]
    item = read_item(node)

    def function(*values: Tensor) -> Tensor:
        known = {n: raised(tensor.detach()) for n, tensor in zip(inputs, values, strict=True)}
        with default_dtype(torch.float64):  # the type that integers get in a division
            result = computed(target, args, kwargs, value, known)
        return (result if item is None else list(result)[item[1]]).contiguous()

    shown = node.meta["val"]
    dtype = torch.float64 if shown.dtype == torch.float32 else shown.dtype
    deferred = LazyTensor(function, tuple(inputs.values()), tuple(shown.shape), dtype)
    depends_on_weights = any(program.origin(n).sources and is_float(n) for n in inputs if program.is_tensor(n))
    if not depends_on_weights or is_filling(node) or not is_float(node):
        return deferred.compute()
    return deferred


def is_float(node: fx.Node) -> bool:
    return bool(node.meta["val"].is_floating_point())


def filled(node: fx.Node) -> LazyTensor:
    """Return a stand-in for a tensor of which only type and shape are read."""
    value = node.meta["val"]
    known = all(isinstance(size, int) for size in value.shape)
    shape = tuple(value.shape) if known else ()
    return LazyTensor(lambda: torch.empty((), dtype=value.dtype).expand(shape), (), shape, value.dtype)


def raised(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.dtype == torch.float32 else tensor


def computed(target: Any, args: Any, kwargs: Any, value: Any, known: Mapping[fx.Node, Tensor]) -> Any:
    """Run an operator on tensors; its `args` and `kwargs` come from the graph."""
    reads = bool(known)
    args, kwargs = tree_map_only(torch.dtype, lambda d: torch.float64 if d is torch.float32 else d, (args, kwargs))
    args, kwargs = tree_map_only(fx.Node, lambda n: known[n], (args, kwargs))
    if "device" in kwargs:
        kwargs = {**kwargs, "device": "cpu"}
    takes_dtype = "dtype" in {argument.name for argument in target._schema.arguments}
    if isinstance(value, Tensor) and value.dtype == torch.float32 and takes_dtype and not reads:
        kwargs = {**kwargs, "dtype": kwargs.get("dtype") or torch.float64}
    return target(*args, **kwargs)
