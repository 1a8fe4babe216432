"""Detect outputs whose agreement would mean nothing."""

from collections.abc import Sequence

import numpy as np

from .metrics import classes_of, real
from .tolerance import classify

NEARLY_CONSTANT = 1e-3  # of the mean magnitude
VISIBLE = 10  # times the bound: an output must vary by this much for a fault in it to be visible


def judge_variation(
    reference: Sequence[np.ndarray], allowed: Sequence[np.ndarray | None]
) -> tuple[str | None, float | None]:
    """Return why agreement on these outputs would prove nothing, or None.

    The second result is None unless an output is nearly constant: the least share of what varies that would be seen.

    Args:
        reference: one array for each round of inputs.
        allowed: the errors allowed to its elements, or None where values must be equal.
    """
    arrays = [np.asarray(array) for array in reference]
    if any(array.dtype.kind == "c" for array in arrays):
        arrays = [real(array) for array in arrays]
    if not sum(array.size for array in arrays):
        return "proves nothing: it is empty", None
    arrays = [array.astype(np.float64) for array in arrays]
    if not any(np.isfinite(array).any() for array in arrays):
        return "proves nothing: none of its values is finite", None
    exact = np.asarray(reference[0]).dtype.kind in "iub"
    finite = [np.isfinite(array) for array in arrays]
    fills = [classify(np.where(held, array, 0.0)).fills for array, held in zip(arrays, finite, strict=True)]
    values = np.concatenate([a[held & ~fill] for a, held, fill in zip(arrays, finite, fills, strict=True)])
    scale = float(np.abs(values).max(initial=0.0))
    spread = _spread(arrays, [np.zeros(1) if a is None or exact else a for a in allowed])
    # By the mean, because the largest may be one of a million.
    constant = not exact and values.size > 1 and values.std() < NEARLY_CONSTANT * np.abs(values).mean()
    if spread is None:
        one = "it is nearly constant" if constant else None if values.size > 1 else "it is a single value"
        return one and f"proves nothing: {one}", None
    widest, multiple = spread
    if widest == 0:
        return "proves nothing: it does not vary with the input", None
    if not multiple > VISIBLE:
        varies = f"it varies with the input by only {widest / scale:.1e} of its scale"
        return f"proves nothing: {varies}, less than {VISIBLE} times the allowed error", None
    return None, 1 / multiple if constant else None


def why_overflown(overflows: Sequence[np.ndarray]) -> str | None:
    """Return why agreement proves nothing if every value of the output, or of a channel, overflows in float32, or None.

    Args:
        overflows: for each round the elements where PyTorch's float32 is not finite and its float64 is.
    """
    if all(one.all() for one in overflows):
        return "proves nothing: PyTorch's own float32 overflows in every value"
    for axis in (1, -1):
        if min(one.ndim for one in overflows) > 1 and len({one.shape[axis] for one in overflows}) == 1:
            in_slices = [one.all(axis=tuple(a for a in range(one.ndim) if a != axis % one.ndim)) for one in overflows]
            if (whole := np.flatnonzero(np.all(in_slices, axis=0))).size:
                place = "its last axis" if axis < 0 else "dimension 1"
                return f"proves nothing at {whole[0]} of {place}: PyTorch's own float32 overflows in every value there"
    return None


def _spread(arrays: Sequence[np.ndarray], allowed: Sequence[np.ndarray]) -> tuple[float, float] | None:
    """Return the largest difference that another input makes at the same position, or None if there is one sample.

    The second result is the largest multiple of what is allowed there that such a difference is.

    A constant grid has the same shape in every round, and so has every output at a fixed batch: these are compared
    round by round. Where shapes differ, they differ by the batch, and the first axis is that of the samples.
    """
    bounds = [np.broadcast_to(bound, array.shape) for array, bound in zip(arrays, allowed, strict=True)]
    if len(arrays) > 1 and len({array.shape for array in arrays}) == 1:
        groups = [(np.stack(arrays), np.stack(bounds))]
    else:
        by_sample: dict[tuple[int, ...], list[tuple[np.ndarray, np.ndarray]]] = {}
        for array, bound in zip(arrays, bounds, strict=True):
            if array.ndim:
                by_sample.setdefault(array.shape[1:], []).append((array, bound))
        joined = ([np.concatenate(each) for each in zip(*same, strict=True)] for same in by_sample.values())
        groups = [(samples, bound) for samples, bound in joined if len(samples) > 1]
    widest, multiple = [], 0.0
    for samples, bound in groups:
        finite = np.isfinite(samples).all(0)
        if (classes_of(samples) != classes_of(samples[:1])).any():
            widest.append(np.inf)
            multiple = np.inf
        elif finite.any():
            differences = np.ptp(samples[:, finite], 0)
            widest.append(float(differences.max()))
            bounds_there = bound[:, finite].min(0)
            with np.errstate(divide="ignore", invalid="ignore"):
                multiples = np.where(differences > 0, differences / bounds_there, 0.0)
            multiple = max(multiple, float(multiples.max()))
        else:
            widest.append(0.0)
    return (max(widest), multiple) if widest else None
