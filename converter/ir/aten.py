"""Facts about ATen operators, and their arguments by the names of their schemas."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx
from torch._ops import OpOverload

aten = torch.ops.aten


ASSERTIONS = {
    aten._assert_tensor_metadata.default, aten._assert_scalar.default, aten.sym_constrain_range.default,
    aten._linalg_check_errors.default, aten._assert_async.default, aten._assert_async.msg,
}  # fmt: skip


# With these off, or 0, an operator that PyTorch tags as random draws nothing.
_DRAWING_SWITCHES = ("train", "training", "dropout", "dropout_p")

# PyTorch computes these element by element too, but does not tag them as pointwise.
_UNTAGGED_POINTWISE = {
    aten.hardswish.default,  # its kernel is written by hand
}
_REQUIRED = object()


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
    return any(r.alias_info is not None for r in node.target._schema.returns)


def has_tag(target: object, tag: torch.Tag) -> bool:
    return isinstance(target, OpOverload) and tag in target.tags


def is_pointwise(target: object) -> bool:
    """Return whether each element of the result is computed from the elements at its place, after broadcasting."""
    return has_tag(target, torch.Tag.pointwise) or target in _UNTAGGED_POINTWISE


def draws(node: fx.Node) -> bool:
    """Return whether an operator draws random numbers when it is called with these arguments."""
    if not has_tag(node.target, torch.Tag.nondeterministic_seeded):
        return False
    values = bound_arguments(node).values
    return not any(values.get(name, True) == 0 for name in _DRAWING_SWITCHES)


def may_draw(name: str) -> bool:
    """Return whether an operator of that name may draw random numbers."""
    packet = getattr(aten, name, None)
    overloads = packet.overloads() if packet is not None else ()
    return any(has_tag(getattr(packet, overload), torch.Tag.nondeterministic_seeded) for overload in overloads)


def has_effects(node: fx.Node) -> bool:
    """Return whether a call must stay in the graph even if nothing reads its result."""
    if has_tag(node.target, torch.Tag.nondeterministic_seeded) and not is_mutating(node):
        return draws(node)
    return node.is_impure()


# -- arguments


@dataclass(frozen=True)
class Parameter:
    """A parameter of an operator's schema."""

    name: str
    default: Any
    keyword_only: bool
    written: bool

    def has_default(self, value: object) -> bool:
        """Return whether `value` is the default, with its types: 1.0 is not 1."""
        return self.default is not _REQUIRED and repr(value) == repr(self.default)


@functools.cache
def parameters(target: OpOverload) -> tuple[Parameter, ...]:
    """Return an operator's parameters in the order of its schema."""
    return tuple(
        Parameter(
            p.name,
            p.default_value if p.has_default_value() else _REQUIRED,
            p.kwarg_only,
            p.alias_info is not None and p.alias_info.is_write,
        )
        for p in target._schema.arguments
    )


@dataclass(frozen=True)
class Arguments:
    """The arguments of a call by the names of the operator's schema; those that the call leaves out are the defaults.

    Each method returns one argument as the type in its name. Where sizes are computed, an integer may be a node:
    `value` and `known_integers` allow that.

    Raises:
        TypeError: the argument is of another type.
    """

    call: fx.Node
    values: Mapping[str, Any]

    def value(self, name: str) -> Any:
        return self.values[name]

    def node(self, name: str) -> fx.Node:
        return self._checked(name, self.values[name], fx.Node)

    def optional_node(self, name: str) -> fx.Node | None:
        return None if self.values[name] is None else self.node(name)

    def nodes(self, name: str) -> list[fx.Node]:
        return [self._checked(name, value, fx.Node) for value in self.values[name]]

    def integer(self, name: str) -> int:
        return self._checked(name, self.values[name], int)

    def integers(self, name: str, axes: int = 1) -> list[int]:
        """Return a list of integers; a single one stands for all of `axes`."""
        values = [self._checked(name, value, int) for value in self.values[name]]
        return values * axes if len(values) == 1 else values

    def known_integers(self, name: str, axes: int = 1) -> list[int] | None:
        """Return the same, or None if one of them is computed."""
        return self.integers(name, axes) if all(isinstance(value, int) for value in self.values[name]) else None

    def number(self, name: str) -> int | float:
        return self._checked(name, self.values[name], int | float)

    def flag(self, name: str) -> bool:
        return self._checked(name, self.values[name], bool)

    def text(self, name: str) -> str:
        return self._checked(name, self.values[name], str)

    def _checked(self, name: str, value: Any, kind: Any) -> Any:
        if not isinstance(value, kind):
            raise TypeError(f"`{name}` of {self.call.target} ({self.call.name}) is {value!r}")
        return value


def bound_arguments(node: fx.Node) -> Arguments:
    """Return the arguments of a call of an operator by their names in its schema."""
    values = {}
    for i, parameter in enumerate(parameters(_operator(node))):
        if not parameter.keyword_only and i < len(node.args):
            values[parameter.name] = node.args[i]
        else:
            values[parameter.name] = node.kwargs.get(parameter.name, parameter.default)
    return Arguments(node, values)


def set_arguments(node: fx.Node, **values: Any) -> None:
    """Give a call other arguments, by their names in the operator's schema.

    Raises:
        TypeError: the operator has no such parameter.
    """
    before = bound_arguments(node).values
    if unknown := values.keys() - before.keys():
        raise TypeError(f"{node.target} ({node.name}) has no `{', '.join(unknown)}`")
    node.args, node.kwargs = _shortest(_operator(node), {**before, **values})


def canonicalize_arguments(graph: fx.Graph) -> None:
    """Write every call of an operator as PyTorch's dispatcher does.

    Arguments are positional unless the schema allows only keywords, and defaults at the end are left out, so that
    mappings and decompositions need no parameter that they do not use. `bound_arguments` reads them.
    """
    for node in graph.nodes:
        if node.op == "call_function" and isinstance(node.target, OpOverload):
            args, kwargs = _shortest(node.target, bound_arguments(node).values)
            if (len(args), set(kwargs)) != (len(node.args), set(node.kwargs)):
                node.args, node.kwargs = args, kwargs


def _shortest(target: OpOverload, values: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    given = [p for p in parameters(target) if not p.has_default(values[p.name])]
    last = max((i for i, p in enumerate(parameters(target)) if p in given and not p.keyword_only), default=-1)
    positional = tuple(values[p.name] for p in parameters(target)[: last + 1])
    return positional, {p.name: values[p.name] for p in given if p.keyword_only}


def _operator(node: fx.Node) -> OpOverload:
    if not isinstance(node.target, OpOverload):
        raise TypeError(f"{node.target} ({node.name}) has no schema")
    return node.target


def first_input(node: fx.Node) -> fx.Node:
    """Return the first argument, which is a node, whatever the schema calls it."""
    first = node.args[0]
    assert isinstance(first, fx.Node), node.format_node()
    return first


def returned(graph: fx.Graph) -> list[fx.Node]:
    """Return what a graph returns, which is a tuple of nodes."""
    return list(cast("tuple[fx.Node, ...]", graph.output_node().args[0]))


def read_item(node: fx.Node) -> tuple[fx.Node, int] | None:
    """Return the value of several results and the position in it that `node` reads, or None if it reads none."""
    if node.target is not operator.getitem:
        return None
    source, position = node.args
    return (source, position) if isinstance(source, fx.Node) and isinstance(position, int) else None


# The rank of each pool's windows.
MAX_POOLS: dict[Any, int] = {
    aten.max_pool1d.default: 1,
    aten.max_pool2d.default: 2,
    aten.max_pool3d.default: 3,
    aten.max_pool1d_with_indices.default: 1,
    aten.max_pool2d_with_indices.default: 2,
    aten.max_pool3d_with_indices.default: 3,
}
AVERAGE_POOLS: dict[Any, int] = {
    aten.avg_pool1d.default: 1,
    aten.avg_pool2d.default: 2,
    aten.avg_pool3d.default: 3,
}
