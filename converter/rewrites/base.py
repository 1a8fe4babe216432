"""The type of a rewrite and of the changes that it reports."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from converter.ir.aten import bound_arguments, set_arguments
from converter.ir.lazy_tensor import LazyTensor
from converter.ir.program import Origin, Program, module_path, tensor_name


@dataclass(frozen=True)
class Change:
    """One place where a rewrite fired.

    Attributes:
        name: the change, for example "Focus -> SpaceToDepth".
        module: path of the module where it happened.
        description: what happened to the weights.
        routine: of no interest to most users.
    """

    name: str
    module: str
    description: str = ""
    routine: bool = False


Rewrite = Callable[[Program], list[Change]]
Call = Callable[..., fx.Node]  # inserts a call of an operator, and returns its node
Formula = Callable[..., fx.Node | None]  # takes a `Call` and the operator's arguments; None leaves the operator


def write_out(program: Program, formulas: Mapping[OpOverload, Formula], dtype: torch.dtype, name: str) -> list[Change]:
    """Replace operators whose result has a type by what their formulas make of other operators.

    Formulas of floats get only tensors of that type.
    """
    changes = []
    for node in list(program.graph.nodes):
        if node.op != "call_function" or node.target not in formulas or node.meta["val"].dtype != dtype:
            continue

        def call(target: OpOverload, *args: Any, node: fx.Node = node) -> fx.Node:
            return program.insert_call(target, args, node)

        def typed(argument: Any, call: Call = call) -> Any:
            is_cast = isinstance(argument, fx.Node) and dtype.is_floating_point and argument.meta["val"].dtype != dtype
            return call(torch.ops.aten.to.dtype, argument, dtype) if is_cast else argument

        with program.graph.inserting_before(node):
            written = formulas[node.target](call, *(typed(a) for a in bound_arguments(node).values.values()))
        if written is not None:
            node.replace_all_uses_with(written)
            changes.append(Change(name, module_path(node), routine=True))
    return changes


def set_bias(
    program: Program, layer: fx.Node, weight: fx.Node, bias: fx.Node | None, values: LazyTensor, origin: Origin
) -> None:
    """Give a convolution or linear layer other biases, as a new tensor beside its weight if it has no `bias`."""
    if bias is not None:
        program.replace_tensor(bias, values, origin, [layer])
        return
    name = f"{tensor_name(weight).rpartition('.')[0]}.bias".lstrip(".")
    added = program.new_tensor(name, values, layer, origin, trainable=program.trainable(weight))
    set_arguments(layer, bias=added)
