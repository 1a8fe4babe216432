"""Rewrites of the captured program. Each leaves a program that runs in PyTorch and computes the same function."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from converter.errors import ConversionError
from converter.ir.lazy_tensor import noting
from converter.ir.program import Program
from converter.rewrites.base import Change, Rewrite
from converter.rewrites.constant_offsets import constant_offsets, learned_offsets
from converter.rewrites.drop_batch_index import index_by_position
from converter.rewrites.drop_dropout import drop_dropout
from converter.rewrites.drop_identities import drop_identities
from converter.rewrites.expand_adaptive_pools import adaptive_pools
from converter.rewrites.expand_masked_attention import masked_attention
from converter.rewrites.find_attention import find_attention
from converter.rewrites.find_channel_permutations import find_channel_permutations
from converter.rewrites.find_shifts import (
    find_sampled_shifts,
    find_shifts,
    find_trained_and_sampled_shifts,
    find_trained_shifts,
)
from converter.rewrites.find_space_to_depth import find_space_to_depth
from converter.rewrites.focus_to_space_to_depth import focus_to_space_to_depth
from converter.rewrites.fold_batch_norm import fold_batch_norm
from converter.rewrites.fold_channel_order import fold_channel_order
from converter.rewrites.fold_constants import fold_constants
from converter.rewrites.fold_depthwise_bias import fold_depthwise_bias
from converter.rewrites.group_convolutions import group_convolutions
from converter.rewrites.linear_to_matmul import linear_to_matmul
from converter.rewrites.merge_padding import merge_padding
from converter.rewrites.merge_separable import merge_separable
from converter.rewrites.negative_zero_padding import negative_zero_padding
from converter.rewrites.normalize_pools import pool_windows
from converter.rewrites.note_split_volumes import tell_split_volumes
from converter.rewrites.run import _applied
from converter.rewrites.shift_to_depthwise import shift_to_depthwise
from converter.rewrites.tie_embeddings import tie_embeddings
from converter.rewrites.unify_clamp_bounds import clamp_bounds
from converter.rounding import rounded_otherwise
from converter.verification.compare import function_bound

# In order: channels must be reordered before kernels are folded or merged into others.
FOR_ALL: tuple[Rewrite, ...] = (
    drop_identities,
    fold_constants,
    constant_offsets,
    find_shifts,
    group_convolutions,
    focus_to_space_to_depth,
    find_channel_permutations,
    fold_channel_order,
)


def before(rewrites: tuple[Rewrite, ...], later: Rewrite, new: Rewrite) -> tuple[Rewrite, ...]:
    """`rewrites` with `new` before `later`."""
    at = rewrites.index(later)
    return (*rewrites[:at], new, *rewrites[at:])


TRAINED: dict[Rewrite, Rewrite] = {find_shifts: find_trained_shifts, constant_offsets: learned_offsets}
FOR_INFERENCE = (drop_dropout, *(TRAINED.get(r, r) for r in FOR_ALL), fold_batch_norm, merge_padding)
REWRITES: dict[str, tuple[Rewrite, ...]] = {
    "keras": (
        tie_embeddings,
        index_by_position,
        *FOR_ALL,
        find_attention,
        tell_split_volumes,
        merge_padding,
        merge_separable,
    ),
    "tf": (index_by_position, *FOR_INFERENCE, tell_split_volumes, fold_depthwise_bias, merge_separable),
    "onnx": (
        *before(FOR_INFERENCE, fold_channel_order, find_space_to_depth),
        linear_to_matmul,
        adaptive_pools,
        pool_windows,
        negative_zero_padding,
        clamp_bounds,
        masked_attention,
        shift_to_depthwise,
    ),
}
KEEP_BATCHNORM = (fold_batch_norm,)
EXACT_SHIFTS: dict[Rewrite, Rewrite] = {
    find_shifts: find_sampled_shifts,
    find_trained_shifts: find_trained_and_sampled_shifts,
}


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
    with noting(None):
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
        own = rounded_otherwise(program, inputs, torch.float64, 0)
        for count in range(1, len(rewrites) + 1):
            partial, _ = _applied(program, rewrites[:count])
            if departs(expected, outputs(partial, inputs), own):
                culprit, before = rewrites[count - 1].__name__, [r.__name__ for r in rewrites[: count - 1]]
                raise ConversionError(
                    f"the rewrite `{culprit}` changed what the model computes (after {', '.join(before) or 'none'})",
                    cure="this is a fault of the converter: please report it with the model",
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
