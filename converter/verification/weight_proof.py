"""Proof 3: every tensor of an artifact equals its recomputed source; every source tensor is accounted for."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ..report.results import Proof, TensorCheck

FOLDED_ULP = 4
BLOCK = 2**18  # elements compared at a time


@dataclass(frozen=True)
class Expected:
    """The required content of one tensor of the artifact.

    Attributes:
        array: the tensor recomputed from its sources, in the artifact's shape; float64 where it was folded. It becomes
            an array when it is compared, so that not all need be in memory.
        sources: the PyTorch tensors it is made of.
        exact: permuted, reshaped or cast only, so equal bit for bit; else within rounding.
        how: what rearranges it, in words; "" if nothing does, or it is unknown.
        rounded: the same computed in the artifact's own precision, where steps of float32 round by more than the bound:
            the tensor may be this as well.
    """

    array: ArrayLike
    sources: tuple[str, ...]
    exact: bool
    rounded: ArrayLike | None = None
    how: str = ""


def compare_weights(
    expected: Mapping[str, Expected],
    actual: Mapping[str, np.ndarray],
    source_names: Collection[str],
    unused: Mapping[str, str],
    graph_as_written: bool | None = None,
) -> Proof:
    """Compare all tensors of an artifact with their expected content.

    Args:
        source_names: every tensor of the PyTorch model.
        unused: source tensors that are not in the artifact, and why.
        graph_as_written: whether the rest of the graph is as it was built; None if unknown.
    """
    failures = [f"{name}: not in the artifact" for name in expected if name not in actual]
    failures += [
        f"{name}: nothing in the checkpoint explains this tensor of the artifact"
        for name in actual
        if name not in expected
    ]
    checks = []
    module: str | None = None
    for name, one in expected.items():
        if name not in actual:
            continue
        array = np.asarray(actual[name])
        fault, ulps = _compare_tensor(one, array)
        checks.append(TensorCheck(name, one.sources, array.shape, one.exact, ulps, fault or "", one.how))
        if fault:
            failures.append(f"{name} (from {', '.join(one.sources) or 'nothing'}): {fault}")
            module = module or next((source.rpartition(".")[0] or "the model itself" for source in one.sources), None)
    failures += _unaccounted(expected, set(source_names), unused)
    if graph_as_written is False:
        failures.append("the graph differs from what was built, in an operator, an attribute or a constant")
    if failures:
        summary = f"{len(failures)} {'fault' if len(failures) == 1 else 'faults'}: {'; '.join(sorted(failures)[:3])}"
        return Proof(
            "weights", False, summary, failures=tuple(sorted(failures)), first_difference=module, tensors=tuple(checks)
        )
    worst = max((check.ulps for check in checks), default=0.0)
    return Proof("weights", True, _summary(list(expected.values()), unused, worst), tensors=tuple(checks))


def is_as_expected(expected: Expected, actual: np.ndarray) -> bool:
    """Return whether a tensor of the artifact is what it must be."""
    return _compare_tensor(expected, actual)[0] is None


def _compare_tensor(expected: Expected, actual: np.ndarray) -> tuple[str | None, float]:
    """Give what is wrong, if anything, and the error of a folded tensor in ulp of its scale."""
    fault, ulps = _compare_array(expected.array, expected.exact, actual)
    if fault and expected.rounded is not None:
        again, ulps_again = _compare_array(expected.rounded, expected.exact, actual)
        if again is None:
            return None, ulps_again
    return fault, ulps


def _compare_array(expected: ArrayLike, exact: bool, actual: np.ndarray) -> tuple[str | None, float]:
    array = np.asarray(expected)
    if array.shape != actual.shape:
        return f"the shape is {list(actual.shape)}, expected {list(array.shape)}", 0.0
    if array.dtype.kind != actual.dtype.kind:
        # Tables of integers may be stored as floats, but only exactly.
        if not (array.dtype.kind in "iub" and actual.dtype.kind == "f"):
            return f"the dtype is {actual.dtype}, expected {array.dtype}", 0.0
        if not np.array_equal(array.astype(actual.dtype).astype(array.dtype), array):
            return f"{actual.dtype} cannot hold the values of {array.dtype}", 0.0
    if exact or actual.dtype.kind in "iub":
        with np.errstate(over="ignore"):
            cast = array.astype(actual.dtype, copy=False)
        if np.array_equal(_bits(cast), _bits(actual)):
            return None, 0.0
        differs = (_bits(cast) != _bits(actual)).any(-1)
        return f"{int(differs.sum())} of {array.size} values differ from the source", 0.0
    error = scale = 0.0
    for part, held in _blocks(array, actual):
        fault, off, size = _largest_error(part, held)
        if fault:
            return fault, 0.0
        error, scale = max(error, off), max(scale, size)
    info = np.finfo(actual.dtype)
    ulps = error / float(np.spacing(info.dtype.type(min(scale, float(info.max)))))
    if ulps <= FOLDED_ULP:
        return None, ulps
    return f"off by {error:.3g}, {ulps:.3g} ulp of its scale (limit {FOLDED_ULP})", ulps


def _blocks(array: np.ndarray, actual: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Split both into blocks, since a comparison makes copies."""
    flat, held = np.ravel(array), np.ravel(actual)
    for start in range(0, flat.size, BLOCK):
        yield flat[start : start + BLOCK], held[start : start + BLOCK]


def _largest_error(array: np.ndarray, actual: np.ndarray) -> tuple[str | None, float, float]:
    """Return the fault, if any, the largest error of a finite value, and the largest value."""
    with np.errstate(over="ignore"):
        cast = array.astype(actual.dtype)
    finite = np.isfinite(cast)
    if finite.all() and np.isfinite(actual).all():
        return None, float(np.abs(actual - array).max(initial=0.0)), float(np.abs(array).max(initial=0.0))
    if not np.array_equal(cast[~finite], actual[~finite], equal_nan=True):
        return "NaN or infinities differ", 0.0, 0.0
    if not np.isfinite(actual[finite]).all():
        return "it has NaN or infinities, which its source does not have", 0.0, 0.0
    error = np.abs(actual[finite] - array[finite]).max(initial=0.0)
    return None, float(error), float(np.abs(array[finite]).max(initial=0.0))


def _bits(array: np.ndarray) -> np.ndarray:
    array = np.ascontiguousarray(array)
    return array.reshape((*array.shape, 1)).view(np.uint8)


def _unaccounted(expected: Mapping[str, Expected], sources: set[str], unused: Mapping[str, str]) -> list[str]:
    used = {source for tensor in expected.values() for source in tensor.sources}
    return [
        *(
            f"{name}: this tensor of the checkpoint is missing from the artifact"
            for name in sources - used - unused.keys()
        ),
        *(f"{name}: used, but listed as unused ({unused[name]})" for name in used & unused.keys()),
        *(f"{name}: named as a source, but the model has no such tensor" for name in (used | unused.keys()) - sources),
    ]


def _summary(expected: Sequence[Expected], unused: Mapping[str, str], worst: float) -> str:
    if not expected:
        return "the model has no weights"
    exact = sum(tensor.exact for tensor in expected)
    parts = []
    if exact:
        parts.append(f"{exact} of {len(expected)} tensors identical")
    if exact < len(expected):
        parts.append(f"{len(expected) - exact} folded, within {worst:.1f} ulp (limit {FOLDED_ULP})")
    if unused:
        parts.append(f"{len(unused)} left out ({', '.join(sorted(set(unused.values())))})")
    return "; ".join(parts)
