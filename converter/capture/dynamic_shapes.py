"""Dynamic sizes that the user asks for, as far as `torch.export` allows.

Where it does not, it captures once more with `Dim.AUTO`, and its ShapeEnv has the guards as expressions. A guard (a
feature map and its half, upsampled, must agree) holds for some sizes only. They are found by trying: the multiples of
the smallest number, and the smallest such size from which all guards hold.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import sympy
import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.utils._sympy.functions import Mod, PythonMod

from converter.capture.input_shapes import BATCH, FreeSize
from converter.errors import CaptureError, Note
from converter.ir.program import Program
from converter.ir.sizes import size_of

PREFIX = "size_"  # sympy reserves names, such as S and N
LEAST = 2  # a size of 1 broadcasts
CHECKED = 2048  # largest size at which guards are tried
MOST_FACTOR = 256
EDGE = 256  # sizes tried at each end of a range that reaches beyond those


@dataclass(frozen=True)
class Range:
    """The allowed values of a dynamic size, the number under the user's name: multiples of `factor` within bounds."""

    factor: int = 1
    least: int = LEAST
    most: int | None = None

    def __contains__(self, size: int) -> bool:
        return size % self.factor == 0 and self.least <= size and (self.most is None or size <= self.most)

    def dim(self, name: str) -> Any:
        """Return the torch.export dimension of the size divided by `factor`."""
        limits = {"min": -(-self.least // self.factor)} | ({"max": self.most // self.factor} if self.most else {})
        if limits["min"] == limits.get("max"):
            raise not_free(name, limits["min"] * self.factor, "the model takes no other size nearby")
        return Dim(f"{PREFIX}{name}", **limits)

    def __str__(self) -> str:
        told = [f"a multiple of {self.factor}"] if self.factor > 1 else []
        told += [f"at least {self.least}"] if self.least > self.factor else []
        return ", ".join(told + ([] if self.most is None else [f"at most {self.most}"]))

    def described(self, name: str) -> Note | None:
        """Return the limits that the user has to know, or None."""
        told = []
        if self.factor > 1:
            told.append(f"must be a multiple of {self.factor}")
        if self.least > max(self.factor * LEAST, LEAST):
            told.append(f"must be at least {self.least}")
        if self.most is not None:
            told.append(f"must be at most {self.most}")
        return Note(f"Size {name} {' and '.join(told)}.", code="PTC2502") if told else None


ANY_BATCH = Range(least=1)
Free = Sequence[Mapping[int, FreeSize]]


def names_of(free: Free) -> list[str]:
    return list(dict.fromkeys(size.name for sizes in free for size in sizes.values()))


def dims(free: Free, ranges: Mapping[str, Range]) -> list[dict[int, Any]]:
    """Return the dynamic dimensions of each input as torch.export takes them."""
    named = {name: ranges[name].dim(name) for name in names_of(free)}

    def dim(size: FreeSize) -> Any:
        factor = size.factor * ranges[size.name].factor
        return named[size.name] if factor == 1 else factor * named[size.name]

    return [{d: dim(size) for d, size in sizes.items()} for sizes in free]


Conditions = Mapping[str, set[sympy.Basic]]


def tighten(conditions: Conditions, ranges: Mapping[str, Range], examples: Mapping[str, int]) -> dict[str, Range]:
    """Return the ranges in which the conditions of each size hold.

    Args:
        examples: the sizes at which the model was traced.
    """
    found = dict(ranges)
    for name in ranges.keys() & conditions.keys():
        holding = [_predicate(condition, name) for condition in conditions[name]]
        found[name] = _fitting(name, ranges[name], holding, examples[name])
    return found


def batch_is_free(conditions: Conditions) -> bool:
    """Return whether the conditions hold for every batch that is tried."""
    return all(all(map(_predicate(each, BATCH), range(1, CHECKED + 1))) for each in conditions.get(BATCH, ()))


def unresolved(free: Free, why: str) -> CaptureError:
    """Return the error for conditions on several sizes, which no ranges express."""
    names = " and ".join(names_of(free))
    return CaptureError(
        f"torch.export cannot keep {names} dynamic: {why}",
        code="PTC2007",
        where="--input-shape",
        fix=f"Give numbers in place of {names}.",
    )


def conditions_of(exported: ExportedProgram, free: Free) -> Conditions:
    """Return torch.export's conditions on each size of a program that it was free to restrict (`unrestricted`).

    Raises:
        CaptureError: a size is a constant, or depends on another.
    """
    held: list[tuple[FreeSize, sympy.Expr]] = []
    guards: list[sympy.Basic] = []
    for shape, sizes in zip(input_shapes(exported), free, strict=True):
        for d, size in sizes.items():
            n = size_of(shape[d])
            if isinstance(n, int):
                raise not_free(size.name, n // size.factor)
            guards = [guard.expr for guard in shape[d].node.shape_env.guards]
            held.append((size, shape[d].node.expr))
    named: dict[sympy.Basic, sympy.Expr] = {}
    for size, expression in sorted(held, key=lambda each: not each[1].is_Symbol):
        _name(expression, size, named)
    found: dict[str, set[sympy.Basic]] = {}
    for condition in (part for guard in guards for part in sympy.And.make_args(guard.xreplace(named))):
        if len(condition.free_symbols) == 1:
            found.setdefault(condition.free_symbols.pop().name, set()).add(condition)
    return found


def input_shapes(exported: ExportedProgram) -> list[Sequence[Any]]:
    names = exported.graph_signature.user_inputs
    return [node.meta["val"].shape for node in exported.graph.find_nodes(op="placeholder") if node.name in names]


def unrestricted(free: Free, ranges: Mapping[str, Range]) -> list[dict[int, Any]]:
    """Return the dynamic dimensions of each input, which torch.export may restrict as it needs."""

    def dim(size: FreeSize) -> Any:
        held = ranges[size.name]
        return Dim.AUTO(min=size.factor * held.least, max=held.most and size.factor * held.most)

    return [{d: dim(size) for d, size in sizes.items()} for sizes in free]


def symbol_of(name: str) -> sympy.Symbol:
    return sympy.Symbol(name, integer=True, positive=True)


def _name(size: sympy.Expr, given: FreeSize, named: dict[sympy.Basic, sympy.Expr]) -> None:
    """Say in `named` which of the user's sizes is the symbol in one of torch.export's.

    Raises:
        CaptureError: the symbol is another size already.
    """
    own = given.factor * symbol_of(given.name)
    unknown = [symbol for symbol in size.free_symbols if symbol not in named]
    if len(unknown) == 1:
        named[unknown[0]] = sympy.solve(size.xreplace(named) - own, unknown[0])[0]
        return
    what = sympy.expand(size.xreplace(named) / given.factor)
    if what == symbol_of(given.name):
        return
    others = sorted(symbol.name for symbol in what.free_symbols if symbol.name != given.name)
    if not others:
        raise not_free(given.name, None)
    how = f"write {what} in place of {given.name}" if what.is_Symbol or what.is_Mul else "give one of them as a number"
    raise CaptureError(
        f"The sizes {given.name} and {', '.join(others)} depend on each other: {given.name} must be {what}.",
        code="PTC2008",
        where="--input-shape",
        fix=f"Use {how} in --input-shape.",
    )


def not_free(name: str, only: int | None, why: str = "forward has it as a constant, or loops over it") -> CaptureError:
    """Return the error for a size that the model accepts only one number for."""
    number = str(only) if only else "a number"
    return CaptureError(
        f"Size {name} cannot be dynamic: {why}",
        code="PTC2009",
        where="--input-shape",
        fix=f"Give {number} in place of {name}. If forward loops over parts of it, whose number depends on it: compute "
        "them at once, as on x.unflatten(dim, (-1, n)), or cut a fixed number of parts with chunk.",
    )


# PyTorch's functions of sizes.
FUNCTIONS = {
    "TruncToInt": math.trunc, "CeilToInt": math.ceil, "FloorToInt": math.floor, "RoundToInt": round, "ToFloat": float,
    "FloorDiv": operator.floordiv, "CleanDiv": operator.floordiv, "IntTrueDiv": operator.truediv,
    "FloatTrueDiv": operator.truediv, "remainder": operator.mod, "PowByNatural": pow, "Identity": lambda size: size,
    "BitwiseFn_bitwise_and": operator.and_, "BitwiseFn_bitwise_or": operator.or_, "RShift": operator.rshift,
}  # fmt: skip


REMAINDER = sympy.Function("remainder")


@cache  # every layer of a deep network may state the same condition, which is then tried once
def _predicate(condition: sympy.Basic, *names: str) -> Callable[..., bool]:
    # sympy prints remainders of remainders without their brackets.
    called = condition.replace(lambda part: isinstance(part, Mod | PythonMod), lambda part: REMAINDER(*part.args))
    computed = sympy.lambdify([symbol_of(name) for name in names], called, [FUNCTIONS, "math"], cse=True)

    def holds(*sizes: int) -> bool:
        try:
            return bool(computed(*sizes))
        except ZeroDivisionError:
            return False

    return holds


def period(conditions: Collection[sympy.Basic], name: str) -> int | None:
    """Return how many sizes on the conditions repeat, 1 if they hold for all large ones, None if they do not repeat."""
    found = 1
    large = range(CHECKED // 2, CHECKED)
    for condition in conditions:
        holds = np.array([*map(_predicate(condition, name), large)])
        repeats = (n for n in range(1, MOST_FACTOR) if np.array_equal(holds[n:], holds[:-n]))
        if not holds.any() or (each := next(repeats, None)) is None:
            return None
        found = math.lcm(found, each)
    return found


def _fitting(name: str, known: Range, guards: Sequence[Callable[[int], bool]], example: int) -> Range:
    if known.most is not None and known.most > CHECKED:
        ends = [*range(known.least, known.least + EDGE), *range(known.most - EDGE, known.most + 1)]
        if all(guard(size) for guard in set(guards) for size in ends if size in known):
            return known
    best: Range | None = None
    count = 0
    holding = {size for size in range(1, CHECKED + 1) if size in known and all(guard(size) for guard in set(guards))}
    for factor in range(known.factor, MOST_FACTOR + 1, known.factor):
        if example % factor:
            continue
        least = most = example
        while least - factor in holding:
            least -= factor
        while most + factor in holding:
            most += factor
        if known.most is None and most + factor > CHECKED:
            return Range(factor, least)
        if (most - least) // factor > count:
            best, count = Range(factor, least, most), (most - least) // factor
    if best is not None:
        return best
    raise not_free(name, example, "the model takes no other than that which it was traced with")


def double_factors(ranges: Mapping[str, Range], examples: Mapping[str, int]) -> dict[str, Range] | None:
    """Return ranges with twice the factors, or None if the examples do not allow it."""
    factors = {name: 2 * held.factor for name, held in ranges.items()}
    if any(examples[name] % factor for name, factor in factors.items()):
        return None
    return {name: replace(held, factor=factors[name], least=factors[name] * LEAST) for name, held in ranges.items()}


def other_sizes(ranges: Mapping[str, Range]) -> list[dict[str, int]]:
    """Return choices of sizes, no two alike, in which each is the largest once."""

    def nearest(held: Range, wanted: int) -> int:
        return held.factor * (wanted if held.most is None else min(wanted, held.most // held.factor))

    choices = []
    for step in (1, 2):
        leasts = {name: -(-held.least // held.factor) for name, held in ranges.items()}
        choices.append({
            name: nearest(held, leasts[name] + 3 * step + 2 * i) for i, (name, held) in enumerate(ranges.items())
        })  # fmt: skip
    for name, held in list(ranges.items())[: len(ranges) if len(ranges) > 1 else 0]:
        choices.append(choices[0] | {name: nearest(held, max(choices[1].values()) // held.factor + 1)})
    return choices


def resized(x: Tensor, held: Mapping[int, FreeSize], sizes: Mapping[str, int]) -> Tensor:
    """Return an input like `x`, an example, with other sizes; integers are some of those that `x` holds in a column."""
    shape = [held[d].factor * sizes[held[d].name] if d in held else n for d, n in enumerate(x.shape)]
    generator = torch.Generator().manual_seed(0)
    if x.is_floating_point() or not x.numel():
        return torch.randn(shape, generator=generator).to(x.dtype)
    columns = x.shape[-1] if x.ndim > 1 and shape[-1] == x.shape[-1] else 1
    rows = x.reshape(-1, columns)
    at = torch.randint(0, len(rows), (math.prod(shape) // columns, columns), generator=generator)
    return rows.gather(0, at).reshape(shape)


def any_ranges(free: Free) -> dict[str, Range]:
    """Return the ranges that the user gives, or else ranges without limits."""
    limits = limits_of(free)
    given = {name: Range(1, max(least, LEAST), most) for name, (least, most) in limits.items()}
    return {name: given.get(name, ANY_BATCH if name == BATCH else Range()) for name in names_of(free)}


def is_bounded(ranges: Mapping[str, Range], free: Free) -> bool:
    """Return whether the model takes a size only up to one that the user does not give."""
    return any(held.most is not None and name not in limits_of(free) for name, held in ranges.items())


def limits_of(free: Free) -> dict[str, tuple[int, int]]:
    """Return the limits that the user gives, by the names of sizes; where several are given, what all allow."""
    found: dict[str, tuple[int, int]] = {}
    for size in (size for sizes in free for size in sizes.values()):
        if size.limits is not None:
            least, most = found.get(size.name, size.limits)
            found[size.name] = (max(least, size.limits[0]), min(most, size.limits[1]))
    return found


def name_sizes(program: Program, free: Free) -> None:
    """Give the program's symbols the user's names, for reports and files."""
    for node, sizes in zip(program.placeholders, free, strict=True):
        for d, size in sizes.items():
            if size.name in limits_of(free):
                program.limited |= node.meta["val"].shape[d].node.expr.free_symbols
            expression = sympy.sympify(node.meta["val"].shape[d].node.expr)
            symbols = list(expression.free_symbols)
            if len(symbols) == 1 and symbols[0] not in program.size_names:
                (symbol,) = symbols
                times = sympy.Integer(size.factor) / expression.coeff(symbol)
                program.size_names[symbol] = times * sympy.Symbol(size.name)


def example_sizes(free: Free, inputs: Sequence[Tensor]) -> dict[str, int]:
    return {
        size.name: x.shape[d] // size.factor for x, sizes in zip(inputs, free, strict=True) for d, size in sizes.items()
    }
