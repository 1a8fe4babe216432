"""Find samples on which a model chooses between values that differ only by rounding, and computes on with its choice.

Which of two scores of 1.0 is among the ten best differs between two correct computations, and so do the boxes read
there. Perturbed results of PyTorch alone decide whether a choice is open, before any conversion: which samples are left
out depends only on the model and the inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from converter.ir.aten import read_item
from converter.ir.program import Program, default_dtype
from converter.verification.perturbation import run_perturbed

aten = torch.ops.aten
INDICES = {
    aten.topk.default: 1, aten.sort.default: 1, aten.sort.stable: 1, aten.max.dim: 1, aten.min.dim: 1,
    aten.kthvalue.default: 1, aten.median.dim: 1, aten.argmax.default: None, aten.argmin.default: None,
    aten.argsort.default: None, aten.argsort.stable: None,
}  # fmt: skip
TIES_IN_ANY_ORDER = {aten.topk.default, aten.sort.default, aten.argsort.default, aten.kthvalue.default}
APART = {torch.float64: 1e-6, torch.float32: 1e-3}  # of the scale: a larger difference is another choice


def computes_on_choices(program: Program) -> bool:
    """Tell whether an operator reads positions that another has chosen; positions that are only returned are fine."""
    return any(
        user.op != "output"
        for node in program.graph.nodes
        if node.target in INDICES
        for chosen in chosen_indices(node, INDICES[node.target])
        for user in chosen.users
    )


def chosen_indices(node: fx.Node, position: int | None) -> Sequence[fx.Node]:
    if position is None:
        return [node]
    return [user for user in node.users if read_item(user) == (node, position)]


def stable_samples(
    program: Program, inputs: Sequence[Tensor], batch: int, seed: int, precisions: Sequence[torch.dtype] = tuple(APART)
) -> np.ndarray:
    """Tell for each of `batch` samples whether PyTorch's result is stable under other roundings and orders of ties."""
    held = np.ones(batch, bool)
    for precision in precisions:
        given = [x.to(precision) if x.dtype == torch.float32 else x for x in inputs]
        raised = program.with_dtype(precision)
        expected = raised.run(*given)
        others = run_perturbed(program, inputs, precision, seed)
        with torch.no_grad(), default_dtype(precision):
            others += [TiesInOrder(raised, last_first).run(*given) for last_first in (False, True)]
        for results in others:
            for one, other in zip(expected, results, strict=True):
                held &= alike(one.detach().numpy(), other.detach().numpy(), batch, APART[precision])
    return held


class TiesInOrder(fx.Interpreter):
    """Runs a program; where PyTorch leaves the order of equal elements open, the first or the last comes first."""

    def __init__(self, program: Program, last_first: bool):
        super().__init__(program.graph_module)
        self.last_first = last_first

    def call_function(self, target: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        if target not in TIES_IN_ANY_ORDER or not args[0].ndim:
            return super().call_function(target, args, kwargs)
        given = {**dict(zip((parameter.name for parameter in target._schema.arguments), args, strict=False)), **kwargs}
        x, dim, k = given["self"], given.get("dim", -1), int(given.get("k", 0))
        descending = given.get("largest", target is aten.topk.default) or given.get("descending", False)
        turned = x.flip(dim) if self.last_first else x
        values, places = turned.sort(dim=dim, descending=descending, stable=True)
        places = x.shape[dim] - 1 - places if self.last_first else places
        if target is aten.argsort.default:
            return places
        if target is aten.topk.default:
            return values.narrow(dim, 0, k), places.narrow(dim, 0, k)
        if target is aten.kthvalue.default:
            kept = given.get("keepdim", False)
            return tuple(each.narrow(dim, k - 1, 1) if kept else each.select(dim, k - 1) for each in (values, places))
        return values, places


def alike(expected: np.ndarray, other: np.ndarray, batch: int, apart: float) -> np.ndarray:
    """Tell for each sample whether two results agree but for rounding; an output without samples counts for all."""
    if expected.dtype.kind not in "fc":
        same = expected == other
    else:
        finite = np.isfinite(expected)
        scale = np.abs(expected[finite]).max(initial=0.0)
        with np.errstate(invalid="ignore"):
            same = np.where(finite, np.abs(expected - other) <= apart * scale, ~np.isfinite(other))
    if same.shape[:1] != (batch,):
        return np.full(batch, bool(same.all()))
    return np.asarray(same.reshape(batch, -1).all(1))
