"""The user's `--input-shape`: sizes, and names for dynamic sizes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from converter.errors import UsageError

EXAMPLE = "--input-shape 1,3,224,224"
FREE_EXAMPLE = "1,3,H,W where sizes shall stay free"
NAME = r"[A-Za-z_]\w*"
SIZE = rf"(?:(?:\d+\s*\*\s*)?{NAME}|\d+)"


@dataclass(frozen=True)
class FreeSize:
    """A dynamic size: `factor` times the size called `name`."""

    name: str
    factor: int = 1

    def __str__(self) -> str:
        return self.name if self.factor == 1 else f"{self.factor}*{self.name}"


Sizes = tuple[int | FreeSize, ...]


@dataclass(frozen=True)
class InputShape:
    """One `[name=]1,3,640,640[:dtype]`; a dynamic size is a name, or a number times a name: `1,3,32*H,W`."""

    name: str | None
    shape: Sizes
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        sizes = ",".join(map(str, self.shape))
        return f"{f'{self.name}=' if self.name else ''}{sizes}:{str(self.dtype).removeprefix('torch.')}"

    @property
    def batch(self) -> int | FreeSize | None:
        return self.shape[0] if self.shape else None

    def at(self, values: dict[str, int], batch: int) -> tuple[int, ...]:
        """Return the shape with dynamic sizes as numbers; `batch` replaces the first size if that has a name."""
        return tuple(
            size if isinstance(size, int) else batch if i == 0 else size.factor * values[size.name]
            for i, size in enumerate(self.shape)
        )

    @property
    def free(self) -> dict[int, FreeSize]:
        """Return the dynamic sizes by dimension, without the batch."""
        return {i: size for i, size in enumerate(self.shape) if i and isinstance(size, FreeSize)}


def parse_input_shape(text: str) -> InputShape:
    """Parse `[NAME=]SIZE,SIZE,...[:DTYPE]`, where SIZE is 32, H or 32*H. Raises UsageError for anything else."""
    match = re.fullmatch(rf"(?:([^=]+)=)?\s*({SIZE}(?:\s*,\s*{SIZE})*)\s*(?::(\w+))?", text.strip(), re.ASCII)
    if match is None or re.fullmatch(NAME, match[2], re.ASCII):  # a batch alone is written 1
        raise UsageError(
            f"`{text}` is not a valid input shape.",
            code="PTC2020",
            where="--input-shape",
            fix=f"Write it as in {EXAMPLE}, batch first, or {FREE_EXAMPLE}.",
        )
    name, sizes, dtype_name = match.groups()
    dtype = getattr(torch, dtype_name or "float32", None)
    if not isinstance(dtype, torch.dtype):
        raise UsageError(
            f"`{dtype_name}` is not a valid dtype.",
            code="PTC2021",
            where="--input-shape",
            fix="Use, for example, float32 or int64.",
        )
    shape = tuple(_size(part) for part in sizes.split(","))
    if any(size == 0 or (isinstance(size, FreeSize) and size.factor == 0) for size in shape):
        raise UsageError(
            f"`{text}` has a size of 0.", code="PTC2022", where="--input-shape", fix=f"Write it as in {EXAMPLE}."
        )
    if isinstance(shape[0], FreeSize) and shape[0].factor != 1:
        raise UsageError(
            f"`{text}` has a multiple as its batch size.",
            code="PTC2023",
            where="--input-shape",
            fix="The first size is the batch: write 1.",
        )
    return InputShape(name.strip() if name else None, shape, dtype)


def _size(text: str) -> int | FreeSize:
    factor, _, name = text.replace(" ", "").rpartition("*")
    return int(name) if name.isdigit() else FreeSize(name, int(factor or 1))


def check_batches(shapes: Sequence[InputShape]) -> None:
    """Check that all inputs share one batch name, which no other size has.

    Raises:
        UsageError: batches have different names, or the batch's name is also another size's.
    """
    batches = {shape.batch.name for shape in shapes if isinstance(shape.batch, FreeSize)}
    others = {size.name for shape in shapes for size in shape.free.values()}
    if len(batches) > 1 or (batches | {"batch"}) & others:
        named = ", ".join(f"`{name}`" for name in sorted(batches or {"batch"}))
        raise UsageError(
            f"All inputs have the same batch, which is the first size: {named}.",
            code="PTC2024",
            where="--input-shape",
            fix=f"Write 1 for it, as in {EXAMPLE}, and names for other sizes only.",
        )
