"""Apply rewrites, check that the program still computes the same function, and name a rewrite that changed it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from converter.errors import ConversionError
from converter.ir.lazy_tensor import recording_queries
from converter.ir.program import Program
from converter.rewrites.base import Change, Rewrite
from converter.rewrites.run import apply_rewrites
from converter.verification.output_proofs import function_bound
from converter.verification.perturbation import run_perturbed


def rewrite(
    program: Program, rewrites: Sequence[Rewrite], inputs: Sequence[Tensor], expected: Sequence[Tensor] | None = None
) -> tuple[Program, list[Change]]:
    """Return a rewritten copy of `program`, and the changes.

    The copy runs on `inputs` in float64 and is compared with the original, or with its outputs `expected`.

    Raises:
        ConversionError: a rewrite changed the function; the error names it.
    """
    rewritten, changes = apply_rewrites(program, rewrites)
    if not changes:
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
                    f"the rewrite `{culprit}` changed what the model computes (after {', '.join(before) or 'none'})",
                    code="PTC5001",
                    fix="this is a fault of the converter: please report it with the model",
                )


def run_in_float64(program: Program, inputs: Sequence[Tensor]) -> list[Tensor]:
    raised = [x.double() if x.dtype == torch.float32 else x for x in inputs]
    return program.with_dtype(torch.float64).run(*raised)


def outputs_differ(expected: Sequence[Tensor], actual: Sequence[Tensor], own: Sequence[Sequence[Tensor]] = ()) -> bool:
    """Tell whether any output differs by more than rounding, or in its NaNs and infinities.

    Args:
        own: PyTorch's results on the same inputs with other roundings.
    """
    return any(
        a.shape != b.shape
        or not torch.allclose(a, b, rtol=0, atol=function_bound(*_rounding(a, [one[i] for one in own])), equal_nan=True)
        for i, (a, b) in enumerate(zip(expected, actual, strict=True))
    )


def _rounding(expected: Tensor, own: Sequence[Tensor]) -> tuple[float, float]:
    """Return the scale, and the largest error of PyTorch's own results."""
    if not expected.is_floating_point():  # booleans have no abs
        return 0.0, 0.0
    finite = torch.isfinite(expected)
    errors = [(one - expected)[finite].abs() for one in own]
    return _largest(expected[finite].abs()), max(map(_largest, errors), default=0.0)


def _largest(x: Tensor) -> float:
    return float(x.max()) if x.numel() else 0.0
