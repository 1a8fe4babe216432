"""Symbolic sizes: products of numbers and dynamic sizes, and the shapes that nodes hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import sympy
import torch
from torch import Tensor, fx

Size: TypeAlias = Any  # int, or a sympy expression of dynamic sizes
SYMBOLIC = torch.SymInt | torch.SymFloat | torch.SymBool  # numbers of a graph that conversion does not know


def product(sizes: Iterable[Size]) -> Size:
    total: Size = 1
    for size in sizes:
        total = total * size
    return total


def quotient(size: Size, divisor: Size) -> Size | None:
    """Return `size / divisor` if that is a whole number for all dynamic sizes, else None."""
    if isinstance(size, int) and isinstance(divisor, int):
        if not divisor:  # 0 / 0 counts as 1
            return 1 if not size else None
        return size // divisor if size % divisor == 0 else None
    result = sympy.cancel(sympy.sympify(size) / divisor)
    numerator, denominator = sympy.fraction(result)
    return as_size(numerator) if denominator == 1 else None


NOMINAL = 32  # value of every dynamic size where there are several


def per_example(n: Size) -> int:
    """Return a size with the dynamic batch as 1; of several dynamic sizes, one is taken as the batch."""
    if isinstance(n, int):
        return n
    unknown = n.free_symbols
    return (
        int(n.subs(dict.fromkeys(unknown, NOMINAL))) // NOMINAL
        if len(unknown) > 1
        else int(n.subs(dict.fromkeys(unknown, 1)))
    )


def as_size(expression: Any) -> Size:
    return int(expression) if getattr(expression, "is_Integer", True) else expression


def symbolic_shape(tensor: Tensor) -> tuple[Size, ...]:
    """Return a fake tensor's shape, with dynamic sizes as sympy expressions."""
    return tuple(size_of(n) for n in tensor.shape)


def size_of(n: Any) -> Size:
    return as_size(sympy.sympify(n.node.expr)) if isinstance(n, torch.SymInt) else int(n)


def example_shape(shape: Any, numbers: Mapping[sympy.Symbol, int] | None = None) -> tuple[int, ...]:
    """Return a shape in numbers, with every dynamic size as 2 that `numbers` does not have."""
    found = [size_of(n) for n in shape]
    chosen = numbers or {}
    return tuple(n if isinstance(n, int) else int(n.subs({s: chosen.get(s, 2) for s in n.free_symbols})) for n in found)


def numbers_for_sizes(placeholders: Iterable[fx.Node]) -> dict[sympy.Symbol, int]:
    """Return numbers for dynamic sizes: those of the examples, but another batch."""
    numbers: dict[sympy.Symbol, int] = {}
    for node in placeholders:
        for dim, n in enumerate(node.meta["val"].shape):
            if isinstance(n, torch.SymInt):
                size, hint = n.node.expr, n.node.hint
                if len(size.free_symbols) == 1 and not size.is_Symbol:  # a multiple of a size, or more than it
                    (symbol,) = size.free_symbols
                    size, hint = symbol, int(sympy.solve(size - hint, symbol)[0])
                numbers.setdefault(size, hint + (dim == 0))
    return numbers


def with_numbers(value: Any, numbers: Mapping[sympy.Symbol, int]) -> Any:
    """Return metadata in numbers: a meta tensor for a fake one, a number for a symbolic one."""
    if isinstance(value, Tensor):
        shape = [with_numbers(n, numbers) for n in value.shape]
        return torch.empty(shape, dtype=value.dtype, device="meta")
    if not isinstance(value, SYMBOLIC):
        return value
    expression = value.node.expr
    if expression not in numbers:
        expression = expression.subs({s: numbers.get(s, 4) for s in expression.free_symbols})
        return value.node.pytype(expression)
    return numbers[expression]
