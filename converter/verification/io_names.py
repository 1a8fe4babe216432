"""Pair the inputs and outputs of an artifact with those of a model: by name, by shape, by type."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np

from converter.errors import ConversionError


def pair_names(ours: Sequence[str], theirs: Sequence[str]) -> tuple[str, ...]:
    """Return `theirs` in the order of `ours`: by name (letters and digits only) if all match, else by position."""
    if set(ours) <= set(theirs):
        return tuple(ours)
    plain = {plain_name(name): name for name in theirs}
    if len(plain) == len(theirs) and {plain_name(name) for name in ours} <= set(plain):
        return tuple(plain[plain_name(name)] for name in ours)
    return tuple(theirs[: len(ours)])


def plain_name(name: str) -> str:
    return re.sub(r"[\W_]", "", name.casefold())


def perfect_matching(
    ours: Sequence[str], theirs: Sequence[str], edges: Collection[tuple[str, str]]
) -> list[str] | None:
    """Match each of `ours` to a different one of `theirs` along the edges (augmenting paths), or return None."""
    taken: dict[str, str] = {}

    def place(one: str, tried: set[str]) -> bool:
        for other in theirs:
            if (one, other) in edges and other not in tried:
                tried.add(other)
                if other not in taken or place(taken[other], tried):
                    taken[other] = one
                    return True
        return False

    if not all(place(one, set()) for one in ours):
        return None
    found = {one: other for other, one in taken.items()}
    return [found[one] for one in ours]


def fits(shape: Sequence[Any], other: Sequence[int | None] | None) -> bool:
    """Tell whether two shapes may be the same; unknown sizes match any size."""
    if other is None:
        return True
    return len(shape) == len(other) and all(
        a == b for a, b in zip(shape, other, strict=True) if isinstance(a, int) and isinstance(b, int)
    )


def cast(array: np.ndarray, dtype: str, name: str) -> np.ndarray:
    """Return `array` in the dtype that the artifact takes.

    Raises:
        ConversionError: the cast changes values by more than rounding.
    """
    found = array.astype(dtype)
    if kind(dtype) != "f" and not np.array_equal(found.astype(array.dtype), array):
        raise ConversionError(
            f"The artifact's input `{name}` is {dtype}, which cannot hold the model's {array.dtype} values.",
            code="PTC5011",
            fix="Give --inputs with values that both can hold.",
        )
    return found


def kind(dtype: Any) -> str:
    """Return "f" for floats, "i" for integers, "b" for booleans."""
    found = np.dtype(str(dtype).removeprefix("torch.")).kind if "bfloat" not in str(dtype) else "f"
    return "i" if found == "u" else found


def shown(shape: Iterable[Any] | None) -> str:
    return "of any shape" if shape is None else "[" + ", ".join("?" if n is None else str(n) for n in shape) + "]"


def counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"
