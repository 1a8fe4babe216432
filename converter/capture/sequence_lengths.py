"""Inputs that hold the lengths of padded sequences: which numbers they may hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import sympy
import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from converter.ir import custom_ops
from converter.ir.aten import bound_arguments, first_input, is_view
from converter.ir.program import Program

aten = torch.ops.aten
MOST_STEPS = 1 << 16  # of a sequence, among which lengths are looked for
STRIDES = 64  # steps of the input for one of the sequence, at most
NamedSizes = Mapping[str, tuple[sympy.Expr, sympy.Symbol]]
_KEEPING = {aten._to_copy.default, aten.to.dtype, aten.clone.default, aten.squeeze.dim, aten.squeeze.default}


@dataclass(frozen=True)
class SequenceLengths:
    """What an input of lengths may hold: a recurrent layer stops at the steps that are computed from them.

    Attributes:
        read: the node of the program that the layer reads.
        steps: the number of steps that the sequences are padded to.
        sizes: the expression of each named size, and the only symbol in it.
        descending: the lengths must come in descending order.
    """

    program: Program = field(repr=False)
    input: fx.Node
    read: fx.Node
    steps: int | sympy.Expr
    sizes: NamedSizes
    descending: bool

    def draw(self, shape: Sequence[int], dtype: str, sizes: Mapping[str, int], rng: np.random.Generator) -> np.ndarray:
        """Draw lengths; one of them fills the padded length if any can."""
        longest = min(int(sympy.sympify(self.steps).subs(symbol_values(self.sizes, sizes))), MOST_STEPS)
        candidates = torch.arange(1, STRIDES * longest + STRIDES)
        steps = np.asarray(self._steps(self.read, candidates))
        possible = np.asarray(candidates)[(steps >= 1) & (steps <= longest)]
        filling = np.asarray(candidates)[steps == longest]
        lengths = rng.choice(possible, tuple(shape)) if possible.size else np.ones(shape)
        if lengths.size and filling.size:
            lengths.flat[int(rng.integers(lengths.size))] = rng.choice(filling)
        if self.descending:
            lengths = -np.sort(-lengths, axis=None).reshape(shape)
        return lengths.astype(dtype)

    def _steps(self, node: fx.Node, lengths: Tensor) -> Tensor:
        if node is self.input:
            return lengths
        if keeps_values(node):
            return self._steps(first_input(node), lengths)

        def value(argument: Any) -> Any:
            if not isinstance(argument, fx.Node):
                return argument
            return self.program.tensor(argument) if argument.op == "get_attr" else self._steps(argument, lengths)

        assert isinstance(node.target, OpOverload)
        return node.target(*map(value, node.args), **node.kwargs)


def lengths_of_sequences(program: Program, node: fx.Node) -> SequenceLengths | None:
    """Return what an input may hold if recurrent layers stop at lengths that are computed from it alone, or None."""
    layers = []
    for layer in program.graph.find_nodes(op="call_function", target=custom_ops.packed_recurrent._opoverload):
        if _is_computed_from(program, bound_arguments(layer).node("lengths"), node):
            layers.append(bound_arguments(layer))
    if not layers or node.meta["val"].dtype not in (torch.int32, torch.int64):
        return None
    steps = layers[0].node("input").meta["val"].shape[1 if layers[0].flag("batch_first") else 0]
    descending = any(layer.flag("enforce_sorted") for layer in layers)
    expression = steps if isinstance(steps, int) else steps.node.expr
    return SequenceLengths(program, node, layers[0].node("lengths"), expression, named_sizes(program), descending)


def named_sizes(program: Program) -> NamedSizes:
    """Return the expression of each named size that has one symbol, and that symbol."""
    found = {}
    for node in program.placeholders:
        for size in node.meta["val"].shape:
            if isinstance(size, torch.SymInt) and len(size.node.expr.free_symbols) == 1:
                found[program.size_name(size)] = (size.node.expr, *size.node.expr.free_symbols)
    return found


def symbol_values(named: NamedSizes, sizes: Mapping[str, int]) -> dict[sympy.Symbol, sympy.Expr]:
    """Return the value of each symbol at which the named sizes are these."""
    found = [(symbol, expression - sizes[name]) for name, (expression, symbol) in named.items() if name in sizes]
    return {symbol: sympy.solve(equation, symbol)[0] for symbol, equation in found}


def keeps_values(node: fx.Node) -> bool:
    """Return whether a node holds the elements of its input, perhaps as another type or shape."""
    return node.op == "call_function" and (is_view(node) or node.target in _KEEPING)


def _is_computed_from(program: Program, node: fx.Node, input: fx.Node) -> bool:
    """Return whether each element is computed from that of the input and numbers."""
    if node is input:
        return True
    if keeps_values(node):
        return _is_computed_from(program, first_input(node), input)
    if node.op != "call_function" or not isinstance(node.target, OpOverload):
        return False
    if torch.Tag.pointwise not in node.target.tags:
        return False
    rest = [n for n in node.all_input_nodes if n.op != "get_attr" or program.tensor(n).numel() != 1]
    return bool(rest) and all(_is_computed_from(program, n, input) for n in rest)
