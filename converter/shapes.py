"""The user's `--input-shape`: which inputs a model is called with."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from converter.errors import UsageError

EXAMPLE = "--input-shape 1,3,224,224"
NO_SHAPES = "the checkpoint does not say what the model is called with"


@dataclass(frozen=True)
class InputShape:
    """One `[name=]1,3,640,640[:dtype]`."""

    name: str | None
    shape: tuple[int, ...]
    dtype: torch.dtype


def parse_input_shape(text: str) -> InputShape:
    """Raises UsageError for anything else than `[NAME=]SIZE,SIZE,...[:DTYPE]`."""
    match = re.fullmatch(r"(?:([^=]+)=)?\s*(\d+(?:\s*,\s*\d+)*)\s*(?::(\w+))?", text.strip())
    if match is None:
        raise UsageError(f"`{text}` is no input shape", where="--input-shape", cure=f"as in {EXAMPLE}, batch first")
    name, sizes, dtype_name = match.groups()
    dtype = getattr(torch, dtype_name or "float32", None)
    if not isinstance(dtype, torch.dtype):
        raise UsageError(f"`{dtype_name}` is no dtype", where="--input-shape", cure="for example float32 or int64")
    shape = tuple(int(n) for n in sizes.split(","))
    if 0 in shape:
        raise UsageError(f"`{text}` has a size of 0", where="--input-shape", cure=f"as in {EXAMPLE}")
    return InputShape(name, shape, dtype)


def example_inputs(module: nn.Module, shapes: Sequence[str], batch: int | None, seed: int) -> list[Tensor]:
    """Seeded random tensors of the shapes that the user gave, in the order of forward's parameters.

    Raises:
        UsageError: no shapes, shapes that cannot be read, or names that forward does not have.
    """
    parsed = [parse_input_shape(text) for text in shapes]
    if not parsed:
        raise UsageError(
            NO_SHAPES,
            cure=f"give {EXAMPLE} (batch first, PyTorch's layout)",
        )
    parameters = [
        p.name
        for p in inspect.signature(module.forward).parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    named = [p for p in parsed if p.name is not None]
    if named and len(named) < len(parsed):
        raise UsageError("either all input shapes have a name or none", where="--input-shape")
    if named:
        unknown = [p.name for p in named if p.name not in parameters]
        expected = parameters[: len(named)]
        if unknown or {p.name for p in named} != set(expected):
            raise UsageError(
                f"forward takes {', '.join(parameters)}; shapes are given for {', '.join(str(p.name) for p in named)}",
                where="--input-shape",
                cure="give one for each of the first parameters, without gaps",
            )
        parsed = sorted(named, key=lambda p: parameters.index(str(p.name)))
    generator = torch.Generator().manual_seed(seed)
    return [_example(p, batch, generator) for p in parsed]


def _example(shape: InputShape, batch: int | None, generator: torch.Generator) -> Tensor:
    sizes = shape.shape if batch is None or not shape.shape else (batch, *shape.shape[1:])
    if shape.dtype.is_floating_point:
        return torch.randn(sizes, generator=generator).to(shape.dtype)
    return torch.randint(0, 2, sizes, generator=generator).to(shape.dtype)
