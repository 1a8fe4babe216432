"""Dynamic sizes that the user asks for, as far as `torch.export` allows: each attempt uses the answer to the last one.

A guard that it finds (a feature map and its half, upsampled, must agree) holds for some sizes only. They are found by
trying: the multiples of the smallest number, and the smallest such size from which all guards hold.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import sympy
import torch
from torch import Tensor
from torch.export import Dim

from converter.capture.input_shapes import BATCH, FreeSize
from converter.checkpoint.symbolic_expressions import is_size_expression
from converter.errors import CaptureError, Note
from converter.ir.program import Program

PREFIX = "size_"  # sympy reserves names, such as S and N
LEAST = 2  # a size of 1 broadcasts
CHECKED = 2048  # largest size at which guards are tried
MOST_FACTOR = 256
EDGE = 256  # sizes tried at each end of a range that reaches beyond those
SIZE_IN_GUARD = r"L\['\w+'\](?:\[\d+\])*\.size\(\)\[\d+\]"


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


def tighten(error: Exception, free: Free, ranges: Mapping[str, Range], examples: Mapping[str, int]) -> dict[str, Range]:
    """Return the ranges that torch.export's answer leaves; the given ones if it says nothing about sizes.

    Args:
        examples: the sizes at which the model was traced.

    Raises:
        CaptureError: a size cannot be dynamic, or depends on another.
    """
    text = str(error)
    found = dict(ranges)
    for name in names_of(free):
        _refuse_relation(text, name, free)
        guards = _guards(text, name, ranges[name].factor)
        if guards:
            found[name] = _fitting(name, ranges[name], guards, examples[name])
    return found


def hold_everywhere(error: Exception, free: Free, ranges: Mapping[str, Range]) -> bool:
    """Return whether torch.export only lacks a proof: its guards hold for every size in its range."""
    text = str(error)
    guards = {name: _guards(text, name, ranges[name].factor) for name in names_of(free)}
    complaints = re.findall(r"^\s+- ", text, re.MULTILINE)
    return 0 < len(complaints) == sum(map(len, guards.values())) and all(
        guard(size)
        for name, found in guards.items()
        for guard in set(found)
        for size in range(1, CHECKED + 1)
        if size in ranges[name]
    )


def unresolved(error: Exception, free: Free) -> CaptureError | None:
    """Return the error if torch.export's answer cannot be used; None if it does not concern the dynamic sizes."""
    text = str(error)
    names = [name for name in names_of(free) if re.search(rf"\b{re.escape(PREFIX + name)}\b", text)]
    if not names:
        return None
    complaint = re.search(r"^\s+- (.+)$", text, re.MULTILINE)
    why = (complaint[1] if complaint else text.splitlines()[0] if text else type(error).__name__).replace(PREFIX, "")
    return CaptureError(
        f"torch.export cannot keep {', '.join(names)} dynamic: {why}",
        code="PTC2007",
        where="--input-shape",
        fix=f"Give {'a number' if len(names) == 1 else 'numbers'} in place of {' and '.join(names)}.",
    )


def _refuse_relation(text: str, name: str, free: Free) -> None:
    own = re.escape(f"{PREFIX}{name}")
    constant = re.search(rf"^\s*{own} = (\d+)\s*$", text, re.MULTILINE)
    if constant or re.search(rf"marked {own} as dynamic but your code specialized it", text):
        raise not_free(name, int(constant[1]) if constant else None)
    related = re.search(rf"^\s*{own} = (?!Dim\(|\d+\*_{own}\b)(.*{PREFIX}.*)$", text, re.MULTILINE)
    if related:
        what = related[1].strip().replace(PREFIX, "")
        other = next((o for o in names_of(free) if re.search(rf"\b{re.escape(o)}\b", what)), "H")
        how = (
            f"write {what} in place of {name}" if re.fullmatch(r"(\d+\*)?\w+", what) else "give one of them as a number"
        )
        raise CaptureError(
            f"The sizes {name} and {other} depend on each other: {name} must be {what}.",
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
        fix=f"Give {number} in place of {name}.",
    )


def _guards(text: str, name: str, factor: int) -> list[Callable[[int], bool]]:
    """Return the conditions that a size must satisfy.

    torch.export states them for dimensions, which are multiples of its own symbol: the size divided by `factor`.
    """
    own = re.escape(f"{PREFIX}{name}")
    line = rf"Not all values of (?:(\d+)\*)?{own} = .* in the specified range (?:.* )?satisfy the generated guard (.+)$"
    found = []
    for times, guard in re.findall(line, text, re.MULTILINE):
        expression = re.sub(SIZE_IN_GUARD, "size", guard.strip().rstrip("."))
        expression = expression.replace("IntInfinity()", str(2**62))
        expression = re.sub(r"(?:math|torch)\.(trunc|ceil|floor|sym_float)\b|\b(min|max)\b", _spelled, expression)
        if is_size_expression(expression) and re.findall(r"[A-Za-z_]\w*", expression):
            found.append(_predicate(expression, int(times or 1) // factor or 1))
    return found


# Functions of sizes, as guards and as sympy spell them.
FUNCTIONS = {
    "trunc": "TruncToInt", "ceil": "CeilToInt", "floor": "FloorToInt", "sym_float": "ToFloat", "min": "Min",
    "max": "Max",
}  # fmt: skip
COMPUTED = {
    "TruncToInt": math.trunc, "CeilToInt": math.ceil, "FloorToInt": math.floor, "ToFloat": float, "Min": min,
    "Max": max,
}  # fmt: skip


def _spelled(found: re.Match[str]) -> str:
    return FUNCTIONS[found[1] or found[2]]


@cache  # every layer of a deep network may state the same guard, which is then tried once
def _predicate(expression: str, factor: int) -> Callable[[int], bool]:
    code = compile(expression, "<guard>", "eval")

    def holds(size: int) -> bool:
        try:
            return bool(eval(code, {"__builtins__": {}}, COMPUTED | {"size": factor * size}))
        except (ZeroDivisionError, NameError):
            return False

    return holds


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
    """Return two choices of sizes, no two alike."""
    choices = []
    for step in (1, 2):
        sizes = {}
        for i, (name, held) in enumerate(ranges.items()):
            least = -(-held.least // held.factor)
            most = None if held.most is None else held.most // held.factor
            wanted = least + 3 * step + 2 * i
            sizes[name] = held.factor * (wanted if most is None else min(wanted, most))
        choices.append(sizes)
    return choices


def resized(x: Tensor, held: Mapping[int, FreeSize], sizes: Mapping[str, int]) -> Tensor:
    """Return an input like `x` with other sizes; integers are 0 and 1, one of each example 1, as for a length."""
    shape = [held[d].factor * sizes[held[d].name] if d in held else n for d, n in enumerate(x.shape)]
    generator = torch.Generator().manual_seed(0)
    if x.is_floating_point():
        return torch.randn(shape, generator=generator)
    if x.ndim == 1 and x.dtype != torch.bool:
        return torch.ones(shape, dtype=x.dtype)
    return torch.randint(0, 2, shape, generator=generator).to(x.dtype)


def any_ranges(free: Free) -> dict[str, Range]:
    """Return the ranges that the user gives, or else ranges without limits."""
    limits = limits_of(free)
    given = {name: Range(1, max(least, LEAST), most) for name, (least, most) in limits.items()}
    return {name: given.get(name, ANY_BATCH if name == BATCH else Range()) for name in names_of(free)}


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
