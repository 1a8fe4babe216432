"""Symbolic sizes: products of numbers and dynamic sizes, and the shapes that nodes hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from functools import lru_cache, reduce
from math import gcd, prod
from typing import Any, TypeAlias

import numpy as np
import sympy
import torch
from torch import Tensor, fx
from torch.utils._sympy.functions import (
    BitwiseFn_bitwise_and,
    BitwiseFn_bitwise_or,
    CeilToInt,
    CleanDiv,
    FloatTrueDiv,
    FloorDiv,
    FloorToInt,
    IntTrueDiv,
    Max,
    Min,
    Mod,
    PythonMod,
    RoundToInt,
    RShift,
    ToFloat,
    TruncToInt,
)

Size: TypeAlias = Any  # int, or a sympy expression of dynamic sizes
SYMBOLIC = torch.SymInt | torch.SymFloat | torch.SymBool  # numbers of a graph that conversion does not know


def product(sizes: Iterable[Size]) -> Size:
    held = tuple(sizes)
    symbolic = any(isinstance(size, sympy.Basic) for size in held)  # others are numbers, or arrays of them
    return _symbolic_product(held) if symbolic else prod(held)


@lru_cache(maxsize=65536)
def _symbolic_product(sizes: tuple[Size, ...]) -> Size:
    return prod(sizes)


@lru_cache(maxsize=65536, typed=True)
def quotient(size: Size, divisor: Size) -> Size | None:
    """Return `size / divisor` if that is a whole number for all dynamic sizes, else None."""
    if isinstance(size, int) and isinstance(divisor, int):
        if not divisor:  # 0 / 0 counts as 1
            return 1 if not size else None
        return size // divisor if size % divisor == 0 else None
    result = sympy.cancel(sympy.sympify(size) / divisor)
    _, denominator = sympy.fraction(sympy.together(result))
    return as_size(result) if denominator == 1 else None


NOMINAL = 32  # value of every dynamic size where there are several


def per_example(n: Size) -> int:
    """Return a size with the dynamic batch as 1; of several dynamic sizes, one is taken as the batch."""
    return n if isinstance(n, int) else _symbolic_per_example(n)


@lru_cache(maxsize=65536)
def _symbolic_per_example(n: sympy.Expr) -> int:
    unknown = n.free_symbols
    return (
        int(n.subs(dict.fromkeys(unknown, NOMINAL))) // NOMINAL
        if len(unknown) > 1
        else int(n.subs(dict.fromkeys(unknown, 1)))
    )


def as_size(expression: Any) -> Size:
    return int(expression) if getattr(expression, "is_Integer", True) else expression


ROUNDED = (
    Mod, PythonMod, CeilToInt, FloorToInt, TruncToInt, RoundToInt, Max, Min, BitwiseFn_bitwise_and,
    BitwiseFn_bitwise_or, RShift,
)  # fmt: skip
# PyTorch's functions of whole numbers that sizes in one form can have, for arrays.
OF_ARRAYS: Mapping[str, Callable[..., Any]] = {
    "FloorDiv": np.floor_divide, "Mod": np.mod, "PythonMod": np.mod, "Max": lambda *n: reduce(np.maximum, n),
    "Min": lambda *n: reduce(np.minimum, n),
}  # fmt: skip
TRIED = 8192  # a size that is the larger of two up to this one is the larger at all


@lru_cache(maxsize=4096)
def canonical(expression: sympy.Expr) -> sympy.Expr:
    """Return a size as a sum of whole multiples of dynamic sizes and of floor divisions by numbers.

    So `W + (4 - W % 4) % 4`, `W + -W % 4` and `4 * ceil(W / 4)` are all `4*((W + 3)//4)`, which 4 divides. Of two sizes
    the larger is the one that always is. A size without remainders, ceilings, maxima, divisions of negatives or within
    divisions is returned as it is.
    """
    divided = [division.args[0] for division in expression.atoms(FloorDiv, CleanDiv)]
    rounds = any(size.has(FloorDiv) or size.could_extract_minus_sign() for size in divided)
    return sympy.expand(_without_remainders(expression)) if rounds or expression.has(*ROUNDED) else expression


def _without_remainders(expression: sympy.Expr) -> sympy.Expr:
    if not expression.args:
        return expression
    args = [_without_remainders(arg) for arg in expression.args]
    divisor: Any = args[1] if len(args) == 2 else None
    if isinstance(expression, (Mod, PythonMod, FloorDiv, CleanDiv)) and _divides(divisor):
        floor = floor_division(args[0], int(divisor))
        return floor if isinstance(expression, (FloorDiv, CleanDiv)) else args[0] - divisor * floor
    if isinstance(expression, (FloorDiv, CleanDiv)) and (whole := quotient(args[0], divisor)) is not None:
        return sympy.sympify(whole)
    if isinstance(expression, (BitwiseFn_bitwise_and, BitwiseFn_bitwise_or, RShift)):
        return _without_bits(type(expression), *args)
    if isinstance(expression, (Max, Min)) and (chosen := _always(type(expression), args)) is not None:
        return chosen
    if isinstance(expression, RoundToInt) and (rounded := _rounded(args[0])) is not None:
        return rounded
    if isinstance(expression, (CeilToInt, FloorToInt, TruncToInt)) and isinstance(args[0], (IntTrueDiv, FloatTrueDiv)):
        size, divisor = (part.args[0] if isinstance(part, ToFloat) else part for part in args[0].args)
        divisor = sympy.Integer(int(divisor)) if divisor.is_Float and float(divisor).is_integer() else divisor
        if _divides(divisor) and not (isinstance(expression, TruncToInt) and _may_be_negative(size)):
            up = isinstance(expression, CeilToInt)
            return -floor_division(-size, int(divisor)) if up else floor_division(size, int(divisor))
    return expression.func(*args)


def _rounded(number: sympy.Expr) -> sympy.Expr | None:
    """Return a fraction of one size, rounded to the nearest integer and halves to the even one, as floor divisions.

    None if the fraction, which PyTorch computes in floating point, is not exact.
    """
    divisions = {division: division.args[0] / division.args[1] for division in number.atoms(IntTrueDiv, FloatTrueDiv)}
    exact = number.xreplace(divisions).replace(ToFloat, lambda size: size)
    floats = exact.atoms(sympy.Float)
    exact = exact.xreplace({n: sympy.Rational(Fraction(float(n)).limit_denominator(1000)) for n in floats})
    size, divisor = sympy.fraction(sympy.together(exact))
    symbols = list(exact.free_symbols)
    if len(symbols) != 1 or not divisor.is_Integer or size.atoms(sympy.Function) or not size.is_polynomial(*symbols):
        return None
    by = int(divisor)
    # floor(n / b + 1/2), and one less where that is a half rounded up to an odd number
    nearest = floor_division(2 * size + by, 2 * by)
    odd = floor_division(2 * size + 3 * by, 4 * by) - floor_division(2 * size + 3 * by - 1, 4 * by)
    found = nearest - odd
    given = np.arange(1, TRIED)
    functions = {"IntTrueDiv": np.true_divide, "FloatTrueDiv": np.true_divide, "ToFloat": np.float64}
    expected = np.round(sympy.lambdify(symbols, number, [functions, "numpy"])(given))
    own = sympy.lambdify(symbols, found, [OF_ARRAYS, "numpy"])(given)
    return found if np.array_equal(own, expected) else None


def _without_bits(kind: type, *args: Any) -> sympy.Expr:
    """Return `n & ~31`, `n & 31`, `n | 31` or `n >> 5` as a floor division by 32, others as they are."""
    number, bits = sorted(args, key=lambda arg: arg.is_Integer) if kind is not RShift else args
    if not bits.is_Integer or number.is_Integer:
        return kind(*args)
    if kind is RShift:
        return floor_division(number, 2 ** int(bits))
    step = -int(bits) if bits < 0 else int(bits) + 1
    if step & (step - 1) or (bits < 0 and kind is BitwiseFn_bitwise_or):
        return kind(*args)
    multiple = step * floor_division(number, step)
    if kind is BitwiseFn_bitwise_or:
        return multiple + bits
    return multiple if bits < 0 else number - multiple


def _always(kind: type, args: Sequence[sympy.Expr]) -> sympy.Expr | None:
    """Return the argument that is the maximum or minimum at all sizes, None if none is."""
    symbols = list(set().union(*(arg.free_symbols for arg in args)))
    functions = {type(call).__name__ for arg in args for call in arg.atoms(sympy.Function, Max, Min)}
    if len(symbols) != 1 or not functions <= OF_ARRAYS.keys():
        return None
    given = np.arange(1, TRIED)
    values = [np.broadcast_to(sympy.lambdify(symbols, arg, [OF_ARRAYS, "numpy"])(given), given.shape) for arg in args]
    chosen = OF_ARRAYS[kind.__name__](*values)
    return next((arg for arg, value in zip(args, values, strict=True) if np.array_equal(value, chosen)), None)


def _divides(divisor: Any) -> bool:
    return isinstance(divisor, sympy.Integer) and divisor > 0


def _may_be_negative(size: sympy.Expr) -> bool:
    return any(n < 0 for n in sympy.expand(size).as_coefficients_dict().values())


def floor_division(size: sympy.Expr, divisor: int) -> sympy.Expr:
    """Return floor(size / divisor), as the same expression however it was written.

    Multiples of the divisor are taken out, ceilings become floors, and common factors are canceled.
    """
    terms = sympy.expand(size).as_coefficients_dict()
    if not all(isinstance(n, sympy.Integer) for n in terms.values()):
        return FloorDiv(size, divisor)
    order = sorted((term for term in terms if term != 1), key=sympy.default_sort_key)
    first = int(terms[order[0]]) % divisor if order else 0
    if 2 * first > divisor or (2 * first == divisor and terms[order[0]] < 0):
        return -floor_division(divisor - 1 - size, divisor)
    whole = sum((int(n) // divisor * term for term, n in terms.items()), sympy.Integer(0))
    rest = {term: int(n) % divisor for term, n in terms.items() if term != 1 and int(n) % divisor}
    number = int(terms.get(sympy.S.One, 0)) % divisor
    if not rest:
        return whole
    common = reduce(gcd, rest.values(), divisor)
    if common > 1:
        left = sum((n // common * term for term, n in rest.items()), sympy.Integer(number // common))
        return whole + floor_division(left, divisor // common)
    (term, times), *others = rest.items()
    if not others and times == 1 and isinstance(term, FloorDiv):  # a quotient of a quotient
        inner, by = term.args
        if _divides(by):
            return whole + floor_division(inner + number * by, int(by) * divisor)
    return whole + FloorDiv(sum((n * term for term, n in rest.items()), sympy.Integer(number)), divisor)


def symbolic_shape(tensor: Tensor) -> tuple[Size, ...]:
    """Return a fake tensor's shape, with dynamic sizes as sympy expressions."""
    return tuple(size_of(n) for n in tensor.shape)


def size_of(n: Any) -> Size:
    return as_size(canonical(sympy.sympify(n.node.expr))) if isinstance(n, torch.SymInt) else int(n)


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
