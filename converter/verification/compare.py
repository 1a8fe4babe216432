"""Proofs 1 and 2: the same function in float64, the same artefact within PyTorch's own rounding.

Every function takes outputs as PyTorch has them, in its order of dimensions, one mapping by name for each round of
inputs. Rounds are judged one by one; a proof holds if every output agrees in every round and varies with the input.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..report import Accuracy, OutputComparison, Proof, ProofName

Outputs = Mapping[str, np.ndarray]

FUNCTION_BOUND = 1e-10  # of the output's scale
ROUNDING_FACTOR = 16
FLOOR_ULP = 4
SET_ASIDE_SHARE = 0.01  # of an output's integers
DEAD_STD = 1e-3  # of the output's scale
VISIBLE = 10  # times the bound: what an output must vary by for a fault in it to be seen


def compare_function(
    reference: Sequence[Outputs],
    actual: Sequence[Outputs],
    *,
    relative_bound: float = FUNCTION_BOUND,
    constant: Collection[str] = (),
) -> Proof:
    """Compare two float64 computations; integers and booleans must be equal.

    Args:
        relative_bound: the largest error allowed, over max|reference|; for listed kernels without float64 only.
        constant: outputs which by the graph depend on no input's values, so need not vary.
    """

    def allowance(expected: np.ndarray, own: np.ndarray | None, scale: float) -> float:
        return relative_bound * scale

    outputs = _compare(reference, actual, None, allowance, constant)
    worst = max(
        (output.max_abs / output.scale for output in outputs if output.scale > 0 and np.isfinite(output.max_abs)),
        default=0.0,
    )
    agreed = f"float64 equals PyTorch's to {worst:.1e} of the scale (bound {relative_bound:.0e})"
    return _proof("function", outputs, agreed, len(reference))


def compare_artefact(
    reference: Sequence[Outputs],
    torch_float32: Sequence[Outputs],
    actual: Sequence[Outputs],
    *,
    atol: float | None = None,
    rtol: float | None = None,
    constant: Collection[str] = (),
) -> Proof:
    """Compare what an artefact computes with PyTorch in float64, by PyTorch's own float32 error on the same inputs.

    The error allowed is 16 x max(PyTorch's own error, 4 ulp of the scale), or atol + rtol x |reference| if either is
    given. Integers must be equal but where PyTorch's float32 and float64 differ, which is counted and at most 1 %.
    """

    def allowance(expected: np.ndarray, own: np.ndarray | None, scale: float) -> float | np.ndarray:
        if atol is not None or rtol is not None:
            return np.asarray((atol or 0.0) + (rtol or 0.0) * np.abs(expected))
        return ROUNDING_FACTOR * _rounding_unit(expected, own, scale)

    outputs = _compare(reference, actual, torch_float32, allowance, constant)
    multiples = [output.multiple_of_rounding for output in outputs if output.multiple_of_rounding is not None]
    if atol is not None or rtol is not None:
        agreed = f"within the tolerances given (atol {atol or 0:g}, rtol {rtol or 0:g})"
    elif multiples:
        agreed = f"{max(multiples):.1f} x PyTorch's own rounding (bound {ROUNDING_FACTOR})"
    else:
        agreed = "equal"
    return _proof("artefact", outputs, agreed, len(reference))


def accuracy(reference: np.ndarray, actual: np.ndarray, labels: np.ndarray) -> Accuracy:
    """Compare predictions: two arrays of [samples, classes] (the largest is predicted) and [samples] labels."""
    before, after = reference.argmax(1), actual.argmax(1)
    return Accuracy(
        samples=len(labels),
        source=float(np.mean(before == labels)),
        artefact=float(np.mean(after == labels)),
        same_predictions=int(np.sum(before == after)),
    )


@dataclass(frozen=True)
class _Similarity:
    max_abs: float
    max_rel: float
    sum_abs: float
    elements: int
    cosine: float
    sqnr_db: float


@dataclass(frozen=True)
class _Figures:
    """One output in one round."""

    ratio: float  # of the error to what is allowed
    similarity: _Similarity
    scale: float
    bound: float
    most_allowed: float  # of all elements
    torch_rounding: float | None
    multiple: float | None
    same_top1: int
    rows: int
    set_aside: int
    faults: tuple[str, ...]


_Allowance = Callable[[np.ndarray, np.ndarray | None, float], float | np.ndarray]


def _compare(
    reference: Sequence[Outputs],
    actual: Sequence[Outputs],
    torch_float32: Sequence[Outputs] | None,
    allowance: _Allowance,
    constant: Collection[str],
) -> tuple[OutputComparison, ...]:
    if not reference or len(reference) != len(actual) or len(reference) != len(torch_float32 or reference):
        raise ValueError("every round needs a reference and an actual result, and there must be one round")
    names = list(dict.fromkeys(name for outputs in reference for name in outputs))
    compared = []
    for name in names:
        if any(name not in outputs for outputs in (*reference, *actual)):
            compared.append(_incomparable(name, "the artefact has no such output"))
            continue
        own = [outputs[name] for outputs in torch_float32] if torch_float32 else [None] * len(reference)
        figures = [
            _figures(number, reference[number][name], actual[number][name], own[number], allowance)
            for number in range(len(reference))
        ]
        compared.append(_combine(name, figures, [outputs[name] for outputs in reference], name in constant))
    unknown = dict.fromkeys(name for outputs in actual for name in outputs if name not in names)
    return (*compared, *(_incomparable(name, "PyTorch has no such output") for name in unknown))


def _figures(
    number: int,
    expected: np.ndarray,
    actual: np.ndarray,
    own: np.ndarray | None,
    allowance: _Allowance,
) -> _Figures:
    expected, actual = np.asarray(expected), np.asarray(actual)
    own = None if own is None else np.asarray(own)
    if fault := _unlike(expected, actual):
        return _no_figures(f"round {number + 1}: {fault}")
    if own is not None and (fault := _unlike(expected, own)):
        return _no_figures(f"round {number + 1}: of PyTorch's own float32, {fault}")
    if expected.dtype.kind in "iub":
        return _exact_figures(number, expected, actual, own)
    if expected.dtype.kind == "c":
        expected, actual = _real(expected), _real(actual)
        own = None if own is None else _real(own)
    return _float_figures(number, expected, actual, own, allowance)


def _exact_figures(number: int, expected: np.ndarray, actual: np.ndarray, own: np.ndarray | None) -> _Figures:
    aside = np.zeros(expected.shape, bool) if own is None else own != expected
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
    return _Figures(
        ratio=np.inf if faults else 0.0,
        scale=float(np.abs(expected.astype(np.float64)).max(initial=0.0)),
        bound=0.0,
        most_allowed=0.0,
        torch_rounding=None,
        multiple=None,
        set_aside=int(aside.sum()),
        faults=faults,
        similarity=_similarity(
            expected.astype(np.float64), np.where(aside, expected, actual).astype(np.float64), errors
        ),
        same_top1=0,
        rows=0,
    )


def _float_figures(
    number: int,
    expected: np.ndarray,
    actual: np.ndarray,
    own: np.ndarray | None,
    allowance: _Allowance,
) -> _Figures:
    wide, result = expected.astype(np.float64), actual.astype(np.float64)
    classes, found_classes = _classes(wide), _classes(result)
    finite = np.isfinite(wide) & np.isfinite(result)
    masks_differ = found_classes != classes
    aside = 0
    if own is not None:
        # Where float32 overflows in PyTorch itself, the artefact may have either.
        own_classes = _classes(own)
        aside = int((own_classes != classes).sum())
        masks_differ &= found_classes != own_classes
        finite &= np.isfinite(own)
    faults = []
    if masks_differ.any():
        where = tuple(int(i) for i in np.argwhere(masks_differ)[0])
        faults.append(
            f"round {number + 1}: NaN or infinities differ in {int(masks_differ.sum())} places, first at "
            f"{list(where)}: {result[where]} where PyTorch has {wide[where]}"
        )
    scale = float(np.abs(wide[finite]).max(initial=0.0))
    kept, found = np.where(finite, wide, 0.0), np.where(finite, result, 0.0)
    own_kept = None if own is None else np.where(finite, own, own.dtype.type(0))
    errors = np.abs(found - kept)
    allowed = np.broadcast_to(allowance(kept, own_kept, scale), kept.shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(errors > 0, errors / allowed, 0.0)
    ratio = float(ratios.max(initial=0.0))
    worst = np.unravel_index(int(ratios.argmax()), ratios.shape) if ratios.size else ()
    if not ratio <= 1.0:
        faults.append(
            f"round {number + 1}: the error is {float(errors[worst]):.3g} where {float(allowed[worst]):.3g} is "
            f"allowed, at {[int(i) for i in worst]}: {float(found[worst]):.9g} where PyTorch has "
            f"{float(kept[worst]):.9g}"
        )
        if _reordered(kept, found):
            faults.append(f"round {number + 1}: the values are PyTorch's, in another order")
    max_abs = float(errors.max(initial=0.0))
    unit = None if own_kept is None else _rounding_unit(kept, own_kept, scale)
    by_class = kept.ndim == 2 and kept.shape[1] >= 2
    return _Figures(
        ratio=np.inf if masks_differ.any() else ratio,
        scale=scale,
        bound=float(allowed[worst]) if ratios.size else 0.0,
        most_allowed=float(allowed.max(initial=0.0)),
        torch_rounding=None if own_kept is None else _largest_error(kept, own_kept),
        multiple=max_abs / unit if unit else None,
        set_aside=aside,
        faults=tuple(faults),
        similarity=_similarity(kept, found, errors),
        same_top1=int((kept.argmax(1) == found.argmax(1)).sum()) if by_class else 0,
        rows=len(kept) if by_class else 0,
    )


def _similarity(expected: np.ndarray, actual: np.ndarray, errors: np.ndarray) -> _Similarity:
    scale = np.abs(expected).max(initial=0.0)
    large = np.abs(expected) >= 1e-3 * scale if scale else np.zeros(expected.shape, bool)
    unit = max(scale, np.abs(actual).max(initial=0.0)) or 1.0  # squares of large values would overflow
    signal, found, noise = expected / unit, actual / unit, errors / unit
    norms = np.linalg.norm(signal) * np.linalg.norm(found)
    alike = 1.0 if not noise.any() else 0.0
    power = float(np.sum(noise**2))
    return _Similarity(
        max_abs=float(errors.max(initial=0.0)),
        max_rel=float((errors[large] / np.abs(expected[large])).max(initial=0.0)),
        sum_abs=float(errors.sum()),
        elements=errors.size,
        cosine=float(np.sum(signal * found) / norms) if norms else alike,
        sqnr_db=float(10 * np.log10(max(np.sum(signal**2), 1e-300) / power)) if power else np.inf,
    )


def _combine(
    name: str, figures: Sequence[_Figures], reference: Sequence[np.ndarray], constant: bool
) -> OutputComparison:
    worst = max(figures, key=lambda one: one.ratio)
    alike = [one.similarity for one in figures]
    elements, rows = sum(one.elements for one in alike), sum(one.rows for one in figures)
    set_aside = sum(one.set_aside for one in figures)
    notes = [fault for one in figures for fault in one.faults]
    silence = None
    if constant:
        notes.append("depends on no input's values: a constant")
    else:
        bounds = [one.most_allowed / one.scale for one in figures if one.scale > 0]
        silence = _silence(reference, min(bounds, default=0.0))
    exact = np.asarray(reference[0]).dtype.kind in "iub"
    if exact and set_aside > SET_ASIDE_SHARE * elements:
        silence = (
            f"PyTorch's own float32 and float64 differ in {set_aside} of {elements} values, more than "
            f"{SET_ASIDE_SHARE:.0%}"
        )
    elif set_aside:
        notes.append(f"{set_aside} of {elements} values set aside, where PyTorch's own float32 and float64 differ")
    if silence:
        notes.append(silence)
    multiples = [one.multiple for one in figures if one.multiple is not None]
    return OutputComparison(
        name=name,
        agrees=all(not one.faults for one in figures),
        max_abs=max(one.max_abs for one in alike),
        max_rel=max(one.max_rel for one in alike),
        mean_abs=sum(one.sum_abs for one in alike) / elements if elements else 0.0,
        cosine=min(one.cosine for one in alike),
        sqnr_db=min(one.sqnr_db for one in alike),
        scale=worst.scale,
        bound=worst.bound,
        torch_rounding=worst.torch_rounding,
        multiple_of_rounding=max(multiples, default=None),
        top1_agreement=sum(one.same_top1 for one in figures) / rows if rows else None,
        set_aside=set_aside,
        notes=tuple(notes),
        proves_nothing=silence is not None,
    )


def _silence(reference: Sequence[np.ndarray], relative_bound: float) -> str | None:
    """Say why agreement on these outputs would prove nothing, if so."""
    arrays = [np.asarray(array) for array in reference]
    if any(array.dtype.kind == "c" for array in arrays):
        arrays = [_real(array) for array in arrays]
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
    """Give the largest difference that another input makes at the same position; None if there is one sample.

    A constant grid has the same shape in every round, and so has everything at a fixed batch: such results are
    compared round by round. Where shapes differ they do so by the batch, and the first axis is that of the samples.
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
        if (_classes(samples) != _classes(samples[:1])).any():
            spreads.append(np.inf)
        elif finite.any():
            spreads.append(float(np.ptp(samples[:, finite], 0).max()))
        else:
            spreads.append(0.0)
    return max(spreads, default=None)


def _proof(name: ProofName, outputs: tuple[OutputComparison, ...], agreed: str, rounds: int) -> Proof:
    holds = bool(outputs) and all(output.agrees and not output.proves_nothing for output in outputs)
    different = [output for output in outputs if not output.agrees]
    silent = [output for output in outputs if output.agrees and output.proves_nothing]
    if different:
        summary = f"{_named(different)} of {len(outputs)} outputs {_do(different, 'differs', 'differ')}"
    elif silent:
        summary = f"{_named(silent)} of {len(outputs)} outputs {_do(silent, 'proves', 'prove')} nothing"
    elif not outputs:
        summary = "there is no output to compare"
    else:
        summary = f"{agreed}, {rounds} {'round' if rounds == 1 else 'rounds'} of inputs"
    failures = tuple(f"{output.name}: {note}" for output in (*different, *silent) for note in output.notes)
    return Proof(name, holds, summary, outputs, failures or (() if holds else (summary,)))


def _named(outputs: Sequence[OutputComparison]) -> str:
    names = [output.name for output in outputs]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _do(outputs: Sequence[OutputComparison], one: str, many: str) -> str:
    return one if len(outputs) == 1 else many


def _unlike(expected: np.ndarray, actual: np.ndarray) -> str | None:
    if expected.shape != actual.shape:
        return f"the shape is {list(actual.shape)} where PyTorch has {list(expected.shape)}"
    kinds = {"i": "integers", "u": "integers", "f": "floats"}
    if kinds.get(expected.dtype.kind, expected.dtype.kind) != kinds.get(actual.dtype.kind, actual.dtype.kind):
        return f"the dtype is {actual.dtype} where PyTorch has {expected.dtype}"
    return None


def _classes(array: np.ndarray) -> np.ndarray:
    return np.asarray(np.isnan(array) + 2 * np.isposinf(array).astype(np.int8) + 3 * np.isneginf(array))


def _real(array: np.ndarray) -> np.ndarray:
    return np.stack([array.real, array.imag], -1)


def _rounding_unit(expected: np.ndarray, own: np.ndarray | None, scale: float) -> float:
    """Give PyTorch's own error on these values, or 4 ulp of the scale if that is more."""
    if own is None:
        raise ValueError("there is no float32 result of PyTorch")
    return max(_largest_error(expected, own), FLOOR_ULP * float(np.spacing(own.dtype.type(scale))))


def _largest_error(expected: np.ndarray, own: np.ndarray) -> float:
    return float(np.abs(own.astype(np.float64) - expected).max(initial=0.0))


def _reordered(expected: np.ndarray, actual: np.ndarray) -> bool:
    expected, actual = np.sort(expected, axis=None), np.sort(actual, axis=None)
    scale = np.abs(expected).max(initial=0.0)
    return bool(np.ptp(expected) > 0 and np.abs(expected - actual).max() <= 1e-5 * scale)


def _no_figures(fault: str) -> _Figures:
    nan = float("nan")
    return _Figures(np.inf, _Similarity(nan, nan, nan, 0, nan, nan), nan, nan, nan, None, None, 0, 0, 0, (fault,))


def _incomparable(name: str, note: str) -> OutputComparison:
    nan = float("nan")
    return OutputComparison(name, False, nan, nan, nan, nan, nan, nan, nan, notes=(note,))
