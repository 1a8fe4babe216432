"""Add long running sums in float64, as PyTorch's CPU kernel does; other runtimes add them in float32.

    cumsum(x) -> float32(cumsum(float64(x)))

In float32 the phase of an oscillator over 65,536 steps ends anywhere: its sine is off by as much as the sine itself.
"""

import torch
from torch import fx

from converter.ir.program import Program
from converter.rewrites.base import Call, Change, write_out

aten = torch.ops.aten
LONG = 1024  # numbers; a shorter sum in float32 is as exact as other operators


def sum_in_float64(program: Program) -> list[Change]:
    return write_out(program, {aten.cumsum.default: _cumsum}, torch.float32, "running sum in float64")


def _cumsum(call: Call, x: fx.Node, dim: int, dtype: torch.dtype | None = None) -> fx.Node | None:
    shape = x.meta["val"].shape
    if not shape or (isinstance(shape[dim], int) and shape[dim] < LONG):
        return None
    total = call(aten.cumsum.default, call(aten.to.dtype, x, torch.float64), dim)
    return call(aten.to.dtype, total, torch.float32)
