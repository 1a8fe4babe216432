"""Freeze control flow that depends on values as the example inputs decide it, if other inputs decide the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from converter.capture.input_domains import dynamic_size_choices, input_specs
from converter.capture.random_inputs import Kind, draw
from converter.errors import CaptureError, Note
from converter.ir.program import Program

TRIED: tuple[tuple[Kind, int], ...] = (
    ("normal", 1), ("normal", 3), ("uniform", 1), ("uniform", 4), ("large", 1), ("impulse", 2), ("normal", 2),
    ("spread", 5),
)  # fmt: skip
ALIKE = 1e-4  # relative to the scale, in float32


def freeze_and_check(program: Program, module: nn.Module, where: str) -> None:
    """Note on the program that its control flow is frozen.

    Args:
        where: the line that branches on values.

    Raises:
        CaptureError: the module computes something else on inputs of other values or another batch.
    """
    specs, sizes = input_specs(program), dynamic_size_choices(program) or [{}]
    for number, (kind, batch) in enumerate(TRIED):
        arrays = draw(specs, program.fixed_batch or batch, (1, number), sizes[number % len(sizes)], kind)
        tensors = [torch.from_numpy(array) for array in arrays.values()]
        try:
            with torch.no_grad():
                same = computes(program, tensors, module(*(x.clone() for x in tensors)))
        except (RuntimeError, ValueError, IndexError):  # a shape that depends on values
            same = False
        if not same:
            raise CaptureError(
                f"The control flow cannot be frozen: other inputs ({kind}, batch {batch}) take other branches.",
                code="PTC2001",
                where=where,
                fix="Choose between both results with torch.where, or stop before it with --outputs.",
            )
    program.frozen_flow = True
    program.notes.append(
        Note(
            f"Control flow that depends on values is frozen at {where}, as random inputs took it. {len(TRIED)} other "
            "inputs took the same branches; for an input that takes others the artifact is wrong.",
            code="PTC2504",
        )
    )


def computes(program: Program, inputs: Sequence[Tensor], expected: Any) -> bool:
    """Return whether the program's results equal those of the module, in float32."""
    own = [result for result in tree_leaves(expected) if isinstance(result, Tensor)]
    return all(_alike(a, b) for a, b in zip(own, program.run(*inputs), strict=True))


def _alike(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    x, y = (np.asarray(t.detach().double() if t.is_floating_point() else t) for t in (a, b))
    if x.dtype.kind != "f":
        return bool((x == y).all())
    scale = float(np.abs(x[np.isfinite(x)]).max(initial=0.0))
    return bool(np.allclose(x, y, rtol=0, atol=ALIKE * scale, equal_nan=True))
