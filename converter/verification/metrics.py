"""Figures of one output in one round of inputs: errors and their limits, similarity, the best classes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from converter.verification.tolerance import Classes, classify, rounding_units

BEST = 5  # classes
SHARE = 1 / 16  # of the slices: fewer may be much smaller than the others by chance
LARGE = 4  # an element is a large one up to this many times below the largest

# Takes finite references, their classes of magnitude and PyTorch's rounding of each; returns the errors allowed.
Allowance = Callable[[np.ndarray, Classes, np.ndarray | None], np.ndarray]


@dataclass(frozen=True)
class Similarity:
    max_abs: float
    max_rel: float
    sum_abs: float
    elements: int
    cosine: float
    sqnr_db: float


@dataclass(frozen=True)
class BestClasses:
    """For outputs (samples, classes): how many rows have the same best class, and the share of best five that agree."""

    rows: int = 0
    same_best: int = 0
    best_five: float = 0.0
    of_five: int = 0  # rows that have more than five classes


@dataclass(frozen=True)
class Figures:
    """Figures of one output in one round."""

    ratio: float  # of the error to the allowed error
    similarity: Similarity
    scale: float
    bound: float
    allowed: np.ndarray | None  # of each element
    torch_rounding: float | None
    multiple: float | None
    set_aside: int
    faults: tuple[str, ...]
    classes: BestClasses = BestClasses()
    resolutions: Mapping[int, np.ndarray] = field(default_factory=dict)  # what `_resolutions` returns
    overflows: np.ndarray | None = None  # elements where PyTorch's float32 is not finite and its float64 is, if any


def figures(
    number: int,
    expected: np.ndarray,
    actual: np.ndarray,
    own: Sequence[np.ndarray],
    allowance: Allowance,
    small: Mapping[int, np.ndarray] = MappingProxyType({}),
) -> Figures:
    """Compare one output in round `number`.

    Args:
        own: PyTorch's float32 results on the inputs, one or several with other roundings; [] in float64.
        small: what `tolerance.small_slices` returns for all rounds.
    """
    expected, actual = plain(expected), plain(actual)
    own = [np.asarray(one) for one in own]
    if fault := _unlike(expected, actual):
        return no_figures(f"round {number + 1}: {fault}")
    for one in own:
        if fault := _unlike(expected, plain(one)):
            return no_figures(f"round {number + 1}: of PyTorch's own float32, {fault}")
    if expected.dtype.kind in "iub":
        return _exact_figures(number, expected, actual, own)
    if expected.dtype.kind == "c":
        expected, actual, own = real(expected), real(actual), [real(one) for one in own]
    return _float_figures(number, expected, actual, own, allowance, small)


def no_figures(fault: str) -> Figures:
    nan = float("nan")
    return Figures(np.inf, Similarity(nan, nan, nan, 0, nan, nan), nan, nan, None, None, None, 0, (fault,))


def plain(array: np.ndarray) -> np.ndarray:
    """Return bfloat16 and float8, which are not numpy's own kinds, as float32, exactly."""
    array = np.asarray(array)
    return array.astype(np.float32) if array.dtype.kind == "V" else array


def classes_of(array: np.ndarray) -> np.ndarray:
    """Classify elements: 0 for a number, others for NaN and the infinities."""
    return np.asarray(np.isnan(array) + 2 * np.isposinf(array).astype(np.int8) + 3 * np.isneginf(array))


def real(array: np.ndarray) -> np.ndarray:
    return np.stack([array.real, array.imag], -1)


def _exact_figures(number: int, expected: np.ndarray, actual: np.ndarray, own: Sequence[np.ndarray]) -> Figures:
    aside = np.zeros(expected.shape, bool)
    for number_of_run, one in enumerate(own):  # perturbed runs excuse only values that differ
        aside |= (one != expected) & ((actual != expected) if number_of_run else True)
    differs = (actual != expected) & ~aside
    errors = np.abs(actual.astype(np.float64) - expected.astype(np.float64))
    errors = np.where(differs, np.maximum(errors, 1.0), 0.0)  # above 2^53 a difference can be lost
    faults: tuple[str, ...] = ()
    if differs.any():
        where = tuple(int(i) for i in np.argwhere(differs)[0])
        count = int(differs.sum())
        faults = (
            f"round {number + 1}: {count} of {expected.size} values differ, first at {list(where)}: "
            f"{actual[where]} where PyTorch has {expected[where]}",
        )
    kept = np.where(aside, expected, actual).astype(np.float64)
    return Figures(
        ratio=np.inf if faults else 0.0,
        similarity=_similarity(expected.astype(np.float64), kept, errors),
        scale=float(np.abs(expected.astype(np.float64)).max(initial=0.0)),
        bound=0.0,
        allowed=None,
        torch_rounding=None,
        multiple=None,
        set_aside=int(aside.sum()),
        faults=faults,
    )


def _float_figures(
    number: int,
    expected: np.ndarray,
    actual: np.ndarray,
    own: Sequence[np.ndarray],
    allowance: Allowance,
    small: Mapping[int, np.ndarray],
) -> Figures:
    wide, result = expected.astype(np.float64), actual.astype(np.float64)
    classes, found_classes = classes_of(wide), classes_of(result)
    finite = np.isfinite(wide) & np.isfinite(result)
    masks_differ = found_classes != classes
    overflows = np.zeros(wide.shape, bool)
    for one in own:
        # Where float32 overflows in PyTorch itself, the artifact may overflow or not.
        own_classes = classes_of(plain(one))
        overflows |= own_classes != classes
        masks_differ &= found_classes != own_classes
        finite &= own_classes == 0
    faults = []
    if masks_differ.any():
        where = tuple(int(i) for i in np.argwhere(masks_differ)[0])
        faults.append(
            f"round {number + 1}: NaN or infinities differ in {int(masks_differ.sum())} places, first at "
            f"{list(where)}: {result[where]} where PyTorch has {wide[where]}"
        )
    kept, found = np.where(finite, wide, 0.0), np.where(finite, result, 0.0)
    own_kept = [np.where(finite, one, one.dtype.type(0)) for one in own]
    errors = np.abs(found - kept)
    by_size = classify(kept)
    units = rounding_units(by_size, kept, own_kept, small) if own_kept else None
    allowed = allowance(kept, by_size, units)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(errors > 0, errors / allowed, 0.0)
    ratio = float(ratios.max(initial=0.0))
    worst = np.unravel_index(int(ratios.argmax()), ratios.shape) if ratios.size else ()
    if not ratio <= 1.0:
        faults.append(
            f"round {number + 1}: the error is {float(errors[worst]):.3g} (limit {float(allowed[worst]):.3g}) "
            f"at {[int(i) for i in worst]}: {float(found[worst]):.9g} where PyTorch has "
            f"{float(kept[worst]):.9g}"
        )
        if _reordered(kept, found, float(allowed.max())):
            faults.append(f"round {number + 1}: the values are PyTorch's, in another order")
    with np.errstate(divide="ignore", invalid="ignore"):
        multiples = None if units is None else np.where(errors > 0, errors / units, 0.0)
    return Figures(
        ratio=np.inf if masks_differ.any() else ratio,
        similarity=_similarity(kept, found, errors),
        scale=by_size.scale,
        bound=float(allowed[worst]) if ratios.size else 0.0,
        allowed=allowed.astype(np.float32),
        torch_rounding=largest_error(kept, own_kept) if own_kept else None,
        multiple=None if multiples is None else float(multiples.max(initial=0.0)),
        set_aside=int(overflows.sum()),
        faults=tuple(faults),
        classes=_classes(kept, found),
        resolutions=_resolutions(by_size, allowed, small),
        overflows=overflows & np.isfinite(wide) if overflows.any() else None,
    )


def _resolutions(classes: Classes, allowed: np.ndarray, small: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
    """Return by axis the least difference that would be seen at one element at least of each slice, as a share of it.

    The axes are that of the channels and the last one. An element counts as no smaller than a quarter of the largest
    one, because it may be the difference of large ones. Slices that are much smaller than others in every round have
    their own largest one, if they are enough not to be so by chance.
    """
    magnitudes, fills, allowed = np.atleast_1d(np.where(classes.fills, 0.0, classes.magnitudes), classes.fills, allowed)
    found = {}
    for axis in {min(1, allowed.ndim - 1), allowed.ndim - 1}:
        others = tuple(other for other in range(allowed.ndim) if other != axis)
        sizes = magnitudes.max(axis=others, initial=0.0)
        levels = small.get(axis, np.zeros(sizes.shape, int))
        for level, count in zip(*np.unique(levels, return_counts=True), strict=True):
            inside = levels == level if count >= SHARE * levels.size else levels >= 0
            sizes[levels == level] = sizes[inside].max()
        counted = np.maximum(magnitudes, np.expand_dims(sizes / LARGE, others))
        seen = ~fills & (allowed > 0) & (counted > 0)
        relative = np.divide(allowed, counted, out=np.full(allowed.shape, np.inf), where=seen)
        found[axis] = relative.min(axis=others, initial=np.inf)
    return found


def _classes(expected: np.ndarray, actual: np.ndarray) -> BestClasses:
    if expected.ndim != 2 or expected.shape[1] < 2:
        return BestClasses()
    rows, count = expected.shape
    same = int((expected.argmax(1) == actual.argmax(1)).sum())
    if count <= BEST:
        return BestClasses(rows, same)
    best, found = (np.argpartition(-array, BEST - 1, 1)[:, :BEST] for array in (expected, actual))
    shares = [len(set(a) & set(b)) / BEST for a, b in zip(best.tolist(), found.tolist(), strict=True)]
    return BestClasses(rows, same, sum(shares), rows)


def _similarity(expected: np.ndarray, actual: np.ndarray, errors: np.ndarray) -> Similarity:
    scale = np.abs(expected).max(initial=0.0)
    large = np.abs(expected) >= 1e-3 * scale if scale else np.zeros(expected.shape, bool)
    unit = max(scale, np.abs(actual).max(initial=0.0)) or 1.0  # squares of large values would overflow
    signal, found, noise = expected / unit, actual / unit, errors / unit
    norms = np.linalg.norm(signal) * np.linalg.norm(found)
    alike = 1.0 if not noise.any() else 0.0
    power = float(np.sum(noise**2))
    return Similarity(
        max_abs=float(errors.max(initial=0.0)),
        max_rel=float((errors[large] / np.abs(expected[large])).max(initial=0.0)),
        sum_abs=float(errors.sum()),
        elements=errors.size,
        cosine=float(np.sum(signal * found) / norms) if norms else alike,
        sqnr_db=float(10 * np.log10(max(np.sum(signal**2), 1e-300) / power)) if power else np.inf,
    )


def _unlike(expected: np.ndarray, actual: np.ndarray) -> str | None:
    if expected.shape != actual.shape:
        return f"the shape is {list(actual.shape)} where PyTorch has {list(expected.shape)}"
    kinds = {"i": "integers", "u": "integers", "f": "floats"}
    if kinds.get(expected.dtype.kind, expected.dtype.kind) != kinds.get(actual.dtype.kind, actual.dtype.kind):
        return f"the dtype is {actual.dtype} where PyTorch has {expected.dtype}"
    return None


def largest_error(expected: np.ndarray, own: Sequence[np.ndarray]) -> float:
    """Return the largest error of any of PyTorch's own results."""
    return max((float(np.abs(one.astype(np.float64) - expected).max(initial=0.0)) for one in own), default=0.0)


def _reordered(expected: np.ndarray, actual: np.ndarray, allowed: float) -> bool:
    """Tell whether sorting explains the error, which rounding alone would not need."""
    by_place = np.abs(expected - actual).max()
    by_size = np.abs(np.sort(expected, axis=None) - np.sort(actual, axis=None)).max()
    return bool(by_size <= allowed and by_size < 0.01 * by_place)
