"""Detect outputs whose agreement would mean nothing."""

from collections.abc import Sequence

import numpy as np

from .metrics import classes_of, real

DEAD_STD = 1e-3  # of the output's scale
VISIBLE = 10  # times the bound: an output must vary by this much for a fault in it to be visible


def why_vacuous(reference: Sequence[np.ndarray], relative_bound: float) -> str | None:
    """Return why agreement on these outputs would prove nothing, or None."""
    arrays = [np.asarray(array) for array in reference]
    if any(array.dtype.kind == "c" for array in arrays):
        arrays = [real(array) for array in arrays]
    if not sum(array.size for array in arrays):
        return "proves nothing: it has no elements"
    arrays = [array.astype(np.float64) for array in arrays]
    if not any(np.isfinite(array).any() for array in arrays):
        return "proves nothing: it has no finite value"
    exact = np.asarray(reference[0]).dtype.kind in "iub"
    values = np.concatenate([array[np.isfinite(array)] for array in arrays])
    scale = float(np.abs(values).max())
    if not exact and values.size > 1 and values.std() < DEAD_STD * scale:
        return f"proves nothing: it has died, its standard deviation is {values.std() / scale:.1e} of its scale"
    spread = _spread(arrays)
    if spread is None:
        return None if values.size > 1 else "proves nothing: it is a single value"
    if spread == 0:
        return "proves nothing: it does not vary with the input"
    if not exact and spread <= VISIBLE * relative_bound * scale:
        return (
            f"proves nothing: it varies with the input by {spread / scale:.1e} of its scale, and errors of "
            f"{relative_bound:.1e} are allowed"
        )
    return None


def _spread(arrays: Sequence[np.ndarray]) -> float | None:
    """Return the largest difference that another input makes at the same position, or None if there is one sample.

    A constant grid has the same shape in every round, and so has every output at a fixed batch: these are compared
    round by round. Where shapes differ, they differ by the batch, and the first axis is that of the samples.
    """
    if len(arrays) > 1 and len({array.shape for array in arrays}) == 1:
        groups = [np.stack(arrays)]
    else:
        by_sample: dict[tuple[int, ...], list[np.ndarray]] = {}
        for array in arrays:
            if array.ndim:
                by_sample.setdefault(array.shape[1:], []).append(array)
        groups = [samples for same in by_sample.values() if len(samples := np.concatenate(same)) > 1]
    spreads = []
    for samples in groups:
        finite = np.isfinite(samples).all(0)
        if (classes_of(samples) != classes_of(samples[:1])).any():
            spreads.append(np.inf)
        elif finite.any():
            spreads.append(float(np.ptp(samples[:, finite], 0).max()))
        else:
            spreads.append(0.0)
    return max(spreads, default=None)
