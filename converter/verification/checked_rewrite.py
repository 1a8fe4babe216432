"""Apply rewrites, check that the program still computes the same function, and name a rewrite that changed it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from converter.errors import ConversionError
from converter.ir.lazy_tensor import recording_queries
from converter.ir.program import Program
from converter.rewrites.base import Change, Rewrite
from converter.rewrites.run import apply_rewrites
from converter.verification.metrics import classes_of
from converter.verification.output_proofs import function_bound
from converter.verification.perturbation import run_perturbed
from converter.verification.tolerance import classify, rounding_units


def rewrite(
    program: Program,
    rewrites: Sequence[Rewrite],
    inputs: Sequence[Tensor] | None,
    expected: Sequence[Tensor] | None = None,
) -> tuple[Program, list[Change]]:
    """Return a rewritten copy of `program`, and the changes.

    The copy runs on `inputs` in float64 and is compared with the original, or with its outputs `expected`.

    Args:
        inputs: None leaves the comparison out.

    Raises:
        ConversionError: a rewrite changed the function; the error names it.
    """
    rewritten, changes = apply_rewrites(program, rewrites)
    if not changes or inputs is None:
        return rewritten, changes
    with recording_queries(None):
        _check(program, rewritten, rewrites, inputs, expected)
    return rewritten, changes


def _check(
    program: Program,
    rewritten: Program,
    rewrites: Sequence[Rewrite],
    inputs: Sequence[Tensor],
    expected: Sequence[Tensor] | None,
) -> None:
    if expected is None:
        expected = run_in_float64(program, inputs)
    if outputs_differ(expected, run_in_float64(rewritten, inputs)):
        # A network may amplify rounding: its own perturbed results bound the difference of a correct rewrite.
        own = run_perturbed(program, inputs, torch.float64, 0)
        for count in range(1, len(rewrites) + 1):
            partial, _ = apply_rewrites(program, rewrites[:count])
            if outputs_differ(expected, run_in_float64(partial, inputs), own):
                culprit, before = rewrites[count - 1].__name__, [r.__name__ for r in rewrites[: count - 1]]
                raise ConversionError(
                    f"The rewrite `{culprit}` changed what the model computes (after {', '.join(before) or 'none'}).",
                    code="PTC5001",
                    fix="This is a bug in pt-convert. Please report it with the model.",
                )


def run_in_float64(program: Program, inputs: Sequence[Tensor]) -> list[Tensor]:
    raised = [x.double() if x.dtype == torch.float32 else x for x in inputs]
    return program.with_dtype(torch.float64).run(*raised)


def outputs_differ(expected: Sequence[Tensor], actual: Sequence[Tensor], own: Sequence[Sequence[Tensor]] = ()) -> bool:
    """Tell whether any output differs by more than rounding, or in its NaNs and infinities.

    Args:
        own: PyTorch's results on the same inputs with other roundings.
    """
    return any(not _alike(a, b, [one[i] for one in own]) for i, (a, b) in enumerate(zip(expected, actual, strict=True)))


def _alike(expected: Tensor, actual: Tensor, own: Sequence[Tensor]) -> bool:
    if expected.shape != actual.shape or not expected.is_floating_point():
        return torch.equal(expected, actual)
    wide, found = expected.double().numpy(), actual.double().numpy()
    if (classes_of(wide) != classes_of(found)).any():
        return False
    finite = np.isfinite(wide)
    kept, others = np.where(finite, wide, 0.0), [np.where(finite, one.double().numpy(), 0.0) for one in own]
    classes = classify(kept)
    rounding = rounding_units(classes, kept, others) if others else None
    return bool((np.abs(np.where(finite, found, 0.0) - kept) <= function_bound(classes, rounding)).all())
