"""The inputs and outputs of an artifact: names, shapes and layouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import sympy
import torch

from converter.ir.program import Program
from converter.ir.sizes import Size, symbolic_shape
from converter.report.results import Shape, TensorFacts


@dataclass
class TensorInterface:
    """A graph input or output in the artifact: its shape there, and PyTorch's dimension for each axis."""

    name: str
    shape: tuple[Size, ...]
    dtype: torch.dtype
    order: tuple[int, ...]

    @property
    def layout(self) -> str:
        return "pytorch" if self.order == tuple(range(len(self.order))) else "channels_last"


def to_artifact(array: np.ndarray, interface: TensorInterface) -> np.ndarray:
    return np.asarray(array.transpose(interface.order), order="C")


def to_torch(array: np.ndarray, interface: TensorInterface) -> np.ndarray:
    return array.transpose(np.argsort(interface.order)) if array.ndim == len(interface.order) else array


def facts(interface: TensorInterface, names: Mapping[sympy.Symbol, sympy.Expr] | None = None) -> TensorFacts:
    """Return the facts for a report; `names` come from `symbol_names`."""
    shape = sizes_shown(interface.shape, names)
    layout = "pytorch" if len(interface.order) < 3 else interface.layout
    return TensorFacts(interface.name, shape, str(interface.dtype).removeprefix("torch."), layout)


def symbol_names(program: Program) -> dict[sympy.Symbol, sympy.Expr]:
    """Return the user's names for the symbols of the program's dynamic sizes, including the batch."""
    shapes = [symbolic_shape(node.meta["val"]) for node in program.placeholders]
    batch = next((shape[0] for shape in shapes if shape and not isinstance(shape[0], int)), None)
    shown = sympy.Symbol("batch") if program.fixed_batch is None else sympy.Integer(program.fixed_batch)
    return ({} if batch is None else {batch: shown}) | program.size_names


def sizes_shown(shape: Sequence[Size], names: Mapping[sympy.Symbol, sympy.Expr] | None = None) -> Shape:
    """Return a shape as reports show it, with names for dynamic sizes, also where they are factors."""
    return tuple(n if isinstance(n, int) else _named(n, names or {}, first=not i) for i, n in enumerate(shape))


def _named(size: Size, names: Mapping[sympy.Symbol, sympy.Expr], first: bool) -> str | int:
    if first and not names:
        return "batch"
    named = sympy.sympify(size).subs(names)
    return int(named) if named.is_Integer else str(named)
