"""The user's `--input-shape`: sizes, and names for dynamic sizes. Parsing needs no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from converter.errors import UsageError

EXAMPLE = "--input-shape 1,3,224,224"
FREE_EXAMPLE = "1,3,H,W for dynamic sizes"
BATCH = "batch"
NAME = r"[A-Za-z_]\w*"
RANGE = r"\s*=\s*(\d+)\s*\.\.\s*(\d+)"
SIZE = rf"(?:(?:\d+\s*\*\s*)?{NAME}(?:{RANGE.replace('(', '(?:')})?|\d+)"
FLOATS = ("float16", "bfloat16", "float32", "float64")
DTYPES = {
    name: name
    for name in (*FLOATS, "bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
                 "complex32", "complex64", "complex128")
} | {
    "half": "float16", "float": "float32", "double": "float64", "short": "int16", "int": "int32", "long": "int64",
    "chalf": "complex32", "cfloat": "complex64", "cdouble": "complex128",
}  # fmt: skip  # PyTorch's names of types, and the names that they are written by


@dataclass(frozen=True)
class FreeSize:
    """A dynamic size: `factor` times the size called `name`, which is within `limits` if they are given."""

    name: str
    factor: int = 1
    limits: tuple[int, int] | None = None

    def __str__(self) -> str:
        named = self.name if self.limits is None else f"{self.name}={self.limits[0]}..{self.limits[1]}"
        return named if self.factor == 1 else f"{self.factor}*{named}"


Sizes = tuple[int | FreeSize, ...]


@dataclass(frozen=True)
class InputShape:
    """One `[name=]1,3,640,640[:dtype]`; a dynamic size is a name: `1,3,32*H,W`, or `1,3,H=320..1280,640`.

    Attributes:
        dtype: PyTorch's name for it.
        batch_first: the first size is the batch, whatever its number; else only sizes that are named so.
    """

    name: str | None
    shape: Sizes
    dtype: str = "float32"
    batch_first: bool = True

    def __str__(self) -> str:
        sizes = ",".join(map(str, self.shape))
        return f"{f'{self.name}=' if self.name else ''}{sizes}:{self.dtype}"

    @property
    def batch(self) -> int | FreeSize | None:
        return self.shape[0] if self.shape and self.batch_first else None

    def at(self, values: dict[str, int], batch: int) -> tuple[int, ...]:
        """Return the shape with dynamic sizes as numbers; `batch` replaces the first size if that has a name."""
        return tuple(
            size if isinstance(size, int) else batch if i == 0 and self.batch_first else size.factor * values[size.name]
            for i, size in enumerate(self.shape)
        )

    @property
    def free(self) -> dict[int, FreeSize]:
        """Return the dynamic sizes by dimension, without a batch that comes first in any case."""
        first = int(self.batch_first)
        return {i: size for i, size in enumerate(self.shape) if i >= first and isinstance(size, FreeSize)}


def parse_input_shape(text: str) -> InputShape:
    """Parse `[NAME=]SIZE,SIZE,...[:DTYPE]`, where SIZE is 32, H, 32*H or H=320..1280; `:int64` has no dimensions.

    Raises:
        UsageError: it is anything else.
    """
    match = re.fullmatch(rf"(?:([^=]+)=)?\s*({SIZE}(?:\s*,\s*{SIZE})*)?\s*(?::(\w+))?", text.strip(), re.ASCII)
    name, sizes, dtype_name = match.groups() if match else (None, None, None)
    only_a_name = sizes is not None and re.fullmatch(NAME, sizes, re.ASCII) and sizes != BATCH
    if not (sizes or dtype_name) or (only_a_name and not (name or dtype_name)):
        raise UsageError(
            f"`{text}` is not a valid input shape.",
            code="PTC2020",
            where="--input-shape",
            fix=f"Write it as in {EXAMPLE}, batch first, or {FREE_EXAMPLE}.",
        )
    dtype = DTYPES.get(dtype_name or "float32")
    if dtype is None:
        raise UsageError(
            f"`{dtype_name}` is not a valid dtype.",
            code="PTC2021",
            where="--input-shape",
            fix="Use, for example, float32 or int64.",
        )
    shape = tuple(_size(part) for part in sizes.split(",")) if sizes else ()
    if any(size == 0 or (isinstance(size, FreeSize) and size.factor == 0) for size in shape):
        raise UsageError(
            f"`{text}` has a size of 0.", code="PTC2022", where="--input-shape", fix=f"Write it as in {EXAMPLE}."
        )
    return InputShape(name.strip() if name else None, shape, dtype)


def _size(text: str) -> int | FreeSize:
    factor, _, size = text.replace(" ", "").rpartition("*")
    if size.isdigit():
        return int(size)
    name, *limits = re.fullmatch(rf"({NAME})(?:{RANGE})?", size, re.ASCII).groups()  # type: ignore[union-attr]
    if limits[0] is None:
        return FreeSize(name, int(factor or 1))
    least, most = map(int, limits)
    if not 0 < least < most:
        raise UsageError(
            f"`{size}` is not a range.",
            code="PTC2048",
            where="--input-shape",
            fix="Write the smallest and the largest size, as in 1,3,H=320..1280,640.",
        )
    return FreeSize(name, int(factor or 1), (least, most))


def parse_image_size(text: str) -> Sizes:
    """Parse HEIGHT or HEIGHT,WIDTH. Raises UsageError for anything else."""
    side = rf"(?:\d+|(?:\d+\*)?{NAME})"
    if not re.fullmatch(rf"{side}(\s*,\s*{side})?", text.strip(), re.ASCII):
        raise UsageError(
            f"`{text}` is not a valid image size.",
            code="PTC2003",
            where="--image-size",
            fix="Write it as in --image-size 224 or 480,640 or H,W.",
        )
    sizes = parse_input_shape(f"1,{text}").shape[1:]
    return sizes if len(sizes) == 2 else (*sizes, *sizes)


def requested_shapes(texts: Sequence[str], image_size: str | None) -> list[InputShape]:
    """Parse the values of --input-shape. Raises UsageError if one is not valid, also that of --image-size."""
    if image_size is not None:
        parse_image_size(image_size)
        if texts:
            raise UsageError(
                "Both --input-shape and --image-size are given.",
                code="PTC6030",
                where=f"--image-size {image_size}",
                fix="Use --image-size only for a model whose only input is an image.",
            )
    shapes = [parse_input_shape(text) for text in texts]
    place_batch(shapes, None)  # which checks their names
    return shapes


def place_batch(shapes: Sequence[InputShape], fixed: int | None) -> list[InputShape]:
    """Return the shapes, marked where a size tells that the batch is not always the first one.

    If a size is named `batch`, or a first size is a multiple of a name, that is the batch, and plain numbers are fixed.

    Args:
        fixed: the only batch size that is wanted.

    Raises:
        UsageError: first sizes have different names, or also stand elsewhere.
    """
    names = {size.name for shape in shapes for size in shape.shape if isinstance(size, FreeSize)}
    first = [size for shape in shapes for size in shape.shape[:1] if isinstance(size, FreeSize)]
    multiples = {size.name for size in first if size.factor > 1}
    if BATCH not in names and not multiples:
        others = {size.name for shape in shapes for size in shape.free.values()}
        called = {size.name for size in first}
        if len(called) > 1 or called & others:
            named = ", ".join(f"`{name}`" for name in sorted(called))
            raise UsageError(
                f"All inputs have the same batch, which is the first size: {named}.",
                code="PTC2024",
                where="--input-shape",
                fix=f"Write 1 for it, as in {EXAMPLE}. If it is not the first size, name it batch, as in 7,batch,5.",
            )
        return list(shapes)
    called = {BATCH} if BATCH in names else multiples

    def placed(size: int | FreeSize) -> int | FreeSize:
        if isinstance(size, int) or size.name not in called:
            return size
        return FreeSize(BATCH, size.factor) if fixed is None else size.factor * fixed

    return [replace(shape, shape=tuple(map(placed, shape.shape)), batch_first=False) for shape in shapes]
