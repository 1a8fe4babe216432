"""Find what a traced function computes of its variables alone, which TensorFlow's converter for LiteRT evaluates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from converter.plan.steps import Constant


@dataclass(frozen=True)
class FrozenConstant:
    """An array that operators on the inputs read.

    Attributes:
        array: its values in the precision of the function.
        constants: the plan's constants that it is computed of.
    """

    array: np.ndarray
    constants: tuple[Constant, ...]

    @property
    def sources(self) -> tuple[str, ...]:
        """The program's tensors that it is computed of."""
        return tuple(dict.fromkeys(source for constant in self.constants for source in constant.sources))


def frozen_constants(traced: Any, tensors: Mapping[str, tuple[Any, Constant]]) -> list[FrozenConstant]:
    """Return the arrays of floats at the border between what depends on the inputs and what does not.

    Args:
        traced: a `ConcreteFunction`.
        tensors: every variable that it reads, and the constant that it holds.
    """
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    handles = {id(variable.handle): constant for variable, constant in tensors.values()}
    captured = {
        placeholder.op.name: handles[id(handle)]
        for handle, placeholder in traced.graph.captures
        if id(handle) in handles
    }
    frozen = convert_variables_to_constants_v2(traced, lower_control_flow=False, aggressive_inlining=True)
    given = {tensor.op.name for tensor in frozen.inputs}
    held: dict[str, tuple[Constant, ...]] = {}  # by operator that depends on no input: the constants behind it
    border: dict[str, Any] = {}
    for operator in _in_order(frozen.graph.get_operations()):
        names = [tensor.op.name for tensor in operator.inputs]
        if operator.name not in given and operator.type != "Placeholder" and all(name in held for name in names):
            own = (captured[operator.name],) if operator.name in captured else ()
            held[operator.name] = tuple({id(c): c for c in (*own, *(c for n in names for c in held[n]))}.values())
            continue
        border |= {tensor.name: tensor for tensor in operator.inputs if tensor.op.name in held}
    border |= {tensor.name: tensor for tensor in frozen.outputs if tensor.op.name in held}
    wanted = [tensor for tensor in border.values() if tensor.dtype.is_floating]
    if not wanted:
        return []
    arrays = frozen.prune([], wanted)()
    return [FrozenConstant(a.numpy(), held[t.op.name]) for t, a in zip(wanted, arrays, strict=True)]


def literals(traced: Any) -> list[np.ndarray]:
    """Return the arrays of floats that a function, or one that it calls, holds itself."""
    from tensorflow.python.framework.tensor_util import MakeNdarray

    graph = traced.graph.as_graph_def()
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    arrays = (MakeNdarray(node.attr["value"].tensor) for node in nodes if node.op == "Const")
    return [array for array in arrays if array.dtype.kind == "f"]


def _in_order(operators: Iterable[Any]) -> list[Any]:
    """Sort operators so that each comes after those it reads."""
    order: dict[str, Any] = {}
    pending = list(reversed(list(operators)))
    while pending:
        operator = pending[-1]
        missing = [tensor.op for tensor in operator.inputs if tensor.op.name not in order]
        if operator.name in order or not missing:
            order.setdefault(operator.name, operator)
            pending.pop()
        else:
            pending += missing
    return list(order.values())
