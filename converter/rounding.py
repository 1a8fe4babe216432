"""How much a program's results hang on rounding: it runs again, each number moved by its last bit or left."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from converter.program import Program, read_attribute, write_attribute

RUNS = 4


def rounded_otherwise(
    program: Program, inputs: Sequence[Tensor], precision: torch.dtype, seed: int
) -> list[list[Tensor]]:
    """What a captured program makes of `inputs` in `precision` with other roundings, `RUNS` times.

    Every float32 of the inputs and weights is moved by the last bit that it has in `precision` or left, at random but
    always the same way: so do kernels that add up in another order, and weights that were folded and rounded.
    """
    return [_rounded_otherwise(program, inputs, precision, np.random.default_rng((seed, run))) for run in range(RUNS)]


def _rounded_otherwise(
    program: Program, inputs: Sequence[Tensor], precision: torch.dtype, rng: np.random.Generator
) -> list[Tensor]:
    def moved(tensor: Tensor) -> Tensor:
        if tensor.dtype != torch.float32:
            return tensor
        return torch.from_numpy(np.ascontiguousarray(nudged(tensor.detach().to(precision).numpy(), rng)))

    inputs = [moved(x) for x in inputs]
    program = program.copy()
    for target in dict.fromkeys(node.target for node in program.graph.find_nodes(op="get_attr")):
        write_attribute(program.graph_module, target, moved(read_attribute(program.graph_module, target)))
    return program.at(precision).run(*inputs)


def nudged(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Every number as it is or the next one above or below."""
    direction = rng.integers(-1, 2, array.shape).astype(array.dtype)
    return np.where(direction == 0, array, np.nextafter(array, array + direction * np.abs(array) + direction))
