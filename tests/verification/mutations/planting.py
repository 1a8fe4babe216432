"""How a fault is planted in a captured program: in an operator's arguments or tensors, or by operators beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from converter.ir.program import Program, module_meta

aten = torch.ops.aten
Plant = Callable[[Program, fx.Node], None]
Sites = Callable[[Program], Iterator[tuple[fx.Node, Plant]]]


@dataclass(frozen=True)
class Fault:
    """A kind of fault: the places of a program where it can be planted, and how it is planted at each."""

    name: str
    sites: Sites


PROGRAM_FAULTS: dict[str, Fault] = {}


def fault(name: str) -> Callable[[Sites], Sites]:
    """Register the decorated generator of sites.

    Raises:
        ValueError: a fault of this name is there.
    """

    def register(sites: Sites) -> Sites:
        if name in PROGRAM_FAULTS:
            raise ValueError(f"there are two faults called {name!r}")
        PROGRAM_FAULTS[name] = Fault(name, sites)
        return sites

    return register


def planted(program: Program, node: fx.Node, plant: Plant) -> Program:
    """A copy of `program` with the fault planted at `node`."""
    copied = program.copy()
    plant(copied, twin(copied, node))
    copied.cleanup()
    return copied


def twin(program: Program, value: Any) -> Any:
    """`value` with every node in it as that of the same name in `program`."""
    nodes = {n.name: n for n in program.graph.nodes}
    return fx.map_arg(value, lambda n: nodes[n.name])


# -- reading an operator


def called(program: Program, *packets: Any) -> list[fx.Node]:
    """Calls of any overload of these operators."""
    return [n for n in program.graph.nodes if getattr(n.target, "overloadpacket", None) in packets]


def argument(node: fx.Node, name: str) -> Any:
    """By the operator's schema, defaults included."""
    for position, parameter in enumerate(node.target._schema.arguments):
        if parameter.name == name:
            if position < len(node.args):
                return node.args[position]
            return node.kwargs.get(name, parameter.default_value)
    raise LookupError(f"{node.target} has no argument {name}")


def has(node: fx.Node, name: str) -> bool:
    return any(parameter.name == name for parameter in node.target._schema.arguments)


def set_argument(node: fx.Node, name: str, value: Any) -> None:
    parameters = node.target._schema.arguments
    position = next(i for i, parameter in enumerate(parameters) if parameter.name == name)
    if parameters[position].kwarg_only:
        node.kwargs = {**node.kwargs, name: value}
        return
    given = [argument(node, parameter.name) for parameter in parameters[: max(position + 1, len(node.args))]]
    given[position] = value
    node.args = tuple(given)


def shape(node: fx.Node) -> tuple[int, ...]:
    """With 0 for a size that is not known."""
    return tuple(n if isinstance(n, int) else 0 for n in node.meta["val"].shape)


def is_floating(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


# -- ways of planting


def with_argument(name: str, value: Any) -> Plant:
    return lambda program, node: set_argument(node, name, twin(program, value))


def with_target(target: Any) -> Plant:
    def plant(program: Program, node: fx.Node) -> None:
        node.target = target

    return plant


def with_tensor(change: Callable[[Tensor], Tensor], name: str = "weight") -> Plant:
    """What the operator reads as argument `name`, changed for it alone."""

    def plant(program: Program, node: fx.Node) -> None:
        change_tensor(program, argument(node, name), node, change)

    return plant


def change_tensor(program: Program, read: fx.Node, user: fx.Node, change: Callable[[Tensor], Tensor]) -> None:
    value = change(program.tensor(read).detach()).contiguous()
    origin = program.origins[read.target]
    changed = program.new_tensor(
        f"{read.target}_fault", value, read, replace(origin, exact=False), trainable=program.trainable(read)
    )
    user.replace_input_with(read, changed)


def on_result(*calls: tuple[Any, ...]) -> Plant:
    """A chain of operators behind the result: each a target and its arguments after the first."""

    def plant(program: Program, node: fx.Node) -> None:
        users, after = list(node.users), node
        point = program.graph.output_node() if node.next.op == "output" else node.next
        with program.graph.inserting_before(point):
            for target, *arguments in calls:
                after = call(program, target, after, arguments)
        for user in users:
            user.replace_input_with(node, after)

    return plant


def on_argument(name: str, *calls: tuple[Any, ...]) -> Plant:
    """A chain of operators before an argument of the operator."""

    def plant(program: Program, node: fx.Node) -> None:
        given = argument(node, name)
        with program.graph.inserting_before(node):
            for target, *arguments in calls:
                given = call(program, target, given, arguments)
        set_argument(node, name, given)

    return plant


def call(program: Program, target: Any, value: fx.Node, arguments: Sequence[Any]) -> fx.Node:
    """A call whose shape is found without the program's symbols: an operator might settle the batch for good."""
    known = {_concrete(n): n for n in value.meta["val"].shape}
    given = torch.empty(list(known), dtype=value.meta["val"].dtype, device="meta")
    if len(known) < value.meta["val"].ndim:  # equal sizes
        given = given.new_empty([_concrete(n) for n in value.meta["val"].shape])
    result = target(given, *arguments)
    node = program.graph.call_function(target, (value, *arguments))
    node.meta = {
        **module_meta(value),
        "val": value.meta["val"].new_empty([known.get(n, n) for n in result.shape], dtype=result.dtype),
    }
    return node


def _concrete(size: Any) -> int:
    return size if isinstance(size, int) else int(size.node.expr.subs(dict.fromkeys(size.node.expr.free_symbols, 97)))


def both(*plants: Plant) -> Plant:
    def plant(program: Program, node: fx.Node) -> None:
        for one in plants:
            one(program, node)

    return plant
