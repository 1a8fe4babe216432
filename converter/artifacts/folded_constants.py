"""Record which constants the ONNX optimizer folds, so that each can be computed again from its sources.

The optimizer evaluates operators whose inputs are all constants, merges equal tensors and drops what changes nothing;
the file then holds tensors that are nowhere in the program. Before it evaluates an operator it asks `should_fold`: that
is where `FoldedConstants` notes the operator and its operands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from converter.compat import patches

# Operators that give values of their first operand as they are. Concat: of all.
_MOVES = {"Transpose", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Identity", "Expand", "Slice", "Gather", "Concat"}
EXPORTED_AS = "exported as"  # key of an initializer's meta data: the name that it had before it was renamed
_FLOAT, _DOUBLE = 1, 11  # https://github.com/onnx/onnx/blob/main/onnx/onnx.proto, TensorProto.DataType


@dataclass(frozen=True)
class Weight:
    """A tensor of the program, under the name that it was exported with."""

    name: str


@dataclass(frozen=True)
class Literal:
    """A tensor that the operator's translation holds."""

    tensor: Any

    @cached_property
    def array(self) -> np.ndarray:
        return np.asarray(self.tensor.numpy())


@dataclass(frozen=True)
class Folded:
    """An operator whose operands are constants.

    Attributes:
        operands: of each the weight, the literal, or the name of another such operator's result; None if left out.
        weights: the names of the weights that the result is made of.
        moves: the result holds values of its weights and literals as they are, in another order or shape.
    """

    domain: str
    operator: str
    version: int
    attributes: Mapping[str, Any]
    operands: tuple[Weight | Literal | str | None, ...]
    weights: tuple[str, ...]
    moves: bool


@dataclass
class FoldedConstants:
    """What one run of the optimizer could evaluate, by the name of the result.

    Attributes:
        literals: the tensors that translations hold, by name.
        shapes: of the results, where the exporter knows them.
    """

    folded: dict[str, Folded] = field(default_factory=dict)
    literals: dict[str, Literal] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    _weights: dict[int, tuple[Any, str]] = field(default_factory=dict)  # by id; the value is held, so that it stays
    _opsets: Mapping[str, int] = field(default_factory=dict)

    def begin(self, model: Any) -> None:
        """Note the tensors of a model that has no functions, before it is optimized."""
        import onnx_ir

        self._opsets = model.opset_imports
        for name, value in model.graph.initializers.items():
            self._weights[id(value)] = value, value.meta.get(EXPORTED_AS, name)
        for node in model.graph.all_nodes():
            if (
                node.op_type == "Constant"
                and (tensor := onnx_ir.convenience.get_const_tensor(node.outputs[0])) is not None
            ):
                self.literals[node.outputs[0].name] = Literal(tensor)

    def note(self, node: Any) -> None:
        """Note an operator whose operands are constants. Whether to fold it is left to the optimizer (None)."""
        if len(node.outputs) == 1:
            (result,) = node.outputs
            attributes = {name: attribute.value for name, attribute in node.attributes.items()}
            version = node.version or self._opsets[node.domain]
            operands = tuple(self._operand(value) for value in node.inputs)
            weights = dict.fromkeys(name for operand in operands for name in self._weights_of(operand))
            data = operands if node.op_type == "Concat" else operands[:1]
            moves = not node.domain and node.op_type in _MOVES and all(self._moves(operand) for operand in data)
            self.folded[result.name] = Folded(
                node.domain, node.op_type, version, attributes, operands, tuple(weights), moves
            )
            if result.shape is not None and result.shape.is_static():
                self.shapes[result.name] = tuple(int(size) for size in result.shape)

    def end(self) -> None:
        """Let go of the model's tensors."""
        self._weights.clear()

    def _operand(self, value: Any) -> Weight | Literal | str | None:
        if value is None:
            return None
        if id(value) in self._weights:
            return Weight(self._weights[id(value)][1])
        return value.name if value.name in self.folded else Literal(value.const_value)

    def _weights_of(self, operand: Weight | Literal | str | None) -> tuple[str, ...]:
        if isinstance(operand, str):
            return self.folded[operand].weights
        return (operand.name,) if isinstance(operand, Weight) else ()

    def _moves(self, operand: Weight | Literal | str | None) -> bool:
        return self.folded[operand].moves if isinstance(operand, str) else True

    def _inner(self, name: str) -> list[str]:
        """List a result and the results that it is made of, each after those that it needs."""
        order: dict[str, None] = {}
        stack = [(name, False)]
        while stack:
            current, ready = stack.pop()
            if ready:
                order[current] = None
            elif current not in order:
                operands = self.folded[current].operands
                stack += [(current, True), *((o, False) for o in operands if isinstance(o, str))]
        return list(order)

    def value(self, name: str, weight: Callable[[str], np.ndarray], *, raised: bool) -> np.ndarray | None:
        """Compute a result. None if ONNX's reference cannot: then the optimizer, which asks it too, has not folded it.

        Args:
            weight: gives the program's tensor of a name.
            raised: with every float32 in float64.
        """

        def read(operand: Weight | Literal | str | None) -> Any:
            if operand is None:
                return None
            if isinstance(operand, str):
                return known[operand]
            array = weight(operand.name) if isinstance(operand, Weight) else operand.array
            if raised:
                return array.astype(np.float64) if array.dtype == np.float32 else array
            return array.astype(np.float32) if array.dtype == np.float64 and isinstance(operand, Weight) else array

        known: dict[str, np.ndarray] = {}
        for inner in self._inner(name):
            held = self.folded[inner]
            result = _evaluate(held, [read(operand) for operand in held.operands], raised)
            if result is None:
                return None
            known[inner] = result
        return known[name]


def _evaluate(folded: Folded, operands: list[Any], raised: bool) -> np.ndarray | None:
    from onnx.reference import ops

    attributes = {name: _attribute(folded, name, value, raised) for name, value in folded.attributes.items()}
    try:
        operator = ops.load_op(folded.domain, folded.operator, folded.version)
        return np.asarray(operator.eval(*operands, **attributes))
    except Exception:  # of any type, by the operator: what cannot be computed stays unexplained
        return None


def _attribute(folded: Folded, name: str, value: Any, raised: bool) -> Any:
    import onnx
    import onnx_ir

    if isinstance(value, onnx_ir.TensorProtocol):
        array = value.numpy()
        return onnx.numpy_helper.from_array(array.astype(np.float64) if raised and array.dtype == np.float32 else array)
    if raised and folded.operator == "Cast" and name == "to" and value == _FLOAT:
        return _DOUBLE
    return value


def recorded(into: FoldedConstants) -> AbstractContextManager[None]:
    """Record what PyTorch's exporter folds within."""
    from onnx_ir.passes import common

    def recording(before: Callable[..., None]) -> Callable[..., None]:
        def optimize(model: Any, **options: Any) -> None:
            common.InlinePass()(model)  # as the optimizer does first
            into.begin(model)
            before(model, should_fold=into.note, **options)
            into.end()

        return optimize

    return patches.OPTIMIZER.applied(recording)
