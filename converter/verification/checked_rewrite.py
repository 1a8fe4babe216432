"""Apply rewrites and check after each that the program still computes the same function."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from converter.errors import ConversionError
from converter.ir.lazy_tensor import recording_queries
from converter.ir.program import Program
from converter.rewrites.base import Change, Rewrite
from converter.rewrites.run import _applied
from converter.verification.output_proofs import function_bound
from converter.verification.perturbation import run_perturbed


def rewrite(
    program: Program, rewrites: Sequence[Rewrite], inputs: Sequence[Tensor], expected: Sequence[Tensor] | None = None
) -> tuple[Program, list[Change]]:
    """A rewritten copy of `program`, and what was changed.

    The copy is run on `inputs` in float64 and compared with the original, or with `expected`, what that gives.

    Raises:
        ConversionError: a rewrite changed the function; it is named.
    """
    rewritten, changes = _applied(program, rewrites)
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
        expected = outputs(program, inputs)
    if departs(expected, outputs(rewritten, inputs)):
        # A network may amplify rounding, which then says how much a right rewrite may depart.
        own = run_perturbed(program, inputs, torch.float64, 0)
        for count in range(1, len(rewrites) + 1):
            partial, _ = _applied(program, rewrites[:count])
            if departs(expected, outputs(partial, inputs), own):
                culprit, before = rewrites[count - 1].__name__, [r.__name__ for r in rewrites[: count - 1]]
                raise ConversionError(
                    f"the rewrite `{culprit}` changed what the model computes (after {', '.join(before) or 'none'})",
                    fix="this is a fault of the converter: please report it with the model",
                )


def outputs(program: Program, inputs: Sequence[Tensor]) -> list[Tensor]:
    raised = [x.double() if x.dtype == torch.float32 else x for x in inputs]
    return program.at(torch.float64).run(*raised)


def departs(expected: Sequence[Tensor], actual: Sequence[Tensor], own: Sequence[Sequence[Tensor]] = ()) -> bool:
    """Whether any output differs by more than rounding, or differs in its NaNs and infinities.

    Args:
        own: what PyTorch makes of the same inputs with other roundings.
    """
    return any(
        a.shape != b.shape
        or not torch.allclose(a, b, rtol=0, atol=function_bound(*_rounding(a, [one[i] for one in own])), equal_nan=True)
        for i, (a, b) in enumerate(zip(expected, actual, strict=True))
    )


def _rounding(expected: Tensor, own: Sequence[Tensor]) -> tuple[float, float]:
    """The scale, and the largest error of PyTorch's own results."""
    if not expected.is_floating_point():  # there is no abs of booleans
        return 0.0, 0.0
    finite = torch.isfinite(expected)
    errors = [(one - expected)[finite].abs() for one in own]
    return _largest(expected[finite].abs()), max(map(_largest, errors), default=0.0)


def _largest(x: Tensor) -> float:
    return float(x.max()) if x.numel() else 0.0
