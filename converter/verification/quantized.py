"""Compare a quantized LiteRT file with its float twin's weights, and with PyTorch's outputs.

No bound on the outputs would be honest for every model, so they are reported; the user says what is enough.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from converter.artifacts.runtime.tflite_content import StoredTensor, stored_tensors
from converter.options import ProofOptions
from converter.report.results import Accuracy, LostPart, QuantizedOutput
from converter.verification.metrics import plain
from converter.verification.output_proofs import Outputs
from converter.verification.reference import Reference

_ROUNDING = 4 * np.finfo(np.float32).eps  # where a step is finer than float32
_HALF = 2.0**-11  # the largest relative rounding of float16, whose subnormal numbers are multiples of
_LEAST_HALF = 2.0**-24
APART = 16  # the largest values of two parts of an output: their ratio from which they are judged apart
LOST = 1 / 16  # noise of a part, of its largest value
MOST_PLACES = 4096  # along an axis that may be of several parts
_LOWEST = float(np.finfo(np.float32).min)


def compare_quantized_weights(twin: bytes, quantized: bytes) -> tuple[str, list[str]]:
    """Compare every constant of floats with its own in the quantized file.

    It must be the same, rounded to float16, or within half a step of its scale.

    Returns:
        The counts in words, and a sentence for each constant that is otherwise.
    """
    held: dict[str, list[StoredTensor]] = {}
    for tensor in stored_tensors(quantized):
        held.setdefault(_base(tensor.name), []).append(tensor)
    counts = {"in integers": 0, "in float16": 0, "in float32": 0}
    wrong = []
    for tensor in stored_tensors(twin):
        if tensor.array.dtype != np.float32:
            continue
        found = [one for one in held.get(_base(tensor.name), ()) if one.array.shape == tensor.array.shape]
        errors = [_steps_off(tensor.array.astype(np.float64), one) for one in found]
        if not errors:
            wrong.append(f"{tensor.name} is not in the quantized file")
        elif min(errors) > 1:
            wrong.append(f"{tensor.name} is off by {min(errors) / 2:.2g} steps")
        else:
            best = found[int(np.argmin(errors))]
            kind = "in integers" if best.is_quantized else "in float16" if best.array.itemsize == 2 else "in float32"
            counts[kind] += 1
    told = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    return f"{told} of {sum(counts.values()) + len(wrong)} constants, each within half a step", wrong


def _base(name: str) -> str:
    return name.partition("#")[0]


def _steps_off(wanted: np.ndarray, found: StoredTensor) -> float:
    """Return the largest error, as a multiple of half a step."""
    if found.is_quantized:
        steps = found.steps().astype(np.float64)
        if wanted.size == 1 and float(wanted.flat[0]) <= _LOWEST:  # a max pool's padding: nothing can be below it
            return 0.0 if found.array.flat[0] <= np.iinfo(found.array.dtype).min + 1 else np.inf
        actual = (found.array.astype(np.float64) - found.zero_points.reshape(steps.shape)) * steps
        allowed = steps / 2 + _ROUNDING * np.abs(wanted)
    elif found.array.dtype == np.float16:
        actual, allowed = found.array.astype(np.float64), np.maximum(np.abs(wanted) * _HALF, _LEAST_HALF)
    elif found.array.dtype == np.float32:
        return 0.0 if np.array_equal(found.array, wanted.astype(np.float32), equal_nan=True) else np.inf
    else:
        return np.inf
    return float((np.abs(actual - wanted) / np.broadcast_to(allowed, wanted.shape)).max(initial=0.0))


def _compared_rounds(reference: Reference) -> slice:
    """Return the rounds that tell how well a quantized file does: the user's, or the first of the random ones."""
    return slice(reference.first_given, None) if len(reference.rounds) > reference.first_given else slice(0, 1)


def described_rounds(reference: Reference) -> str:
    """Return in words what the outputs are compared on."""
    rounds = reference.rounds[_compared_rounds(reference)]
    if len(reference.rounds) == reference.first_given:
        return "random inputs, which tell little"
    samples = sum(next((len(array) for array in each.arrays.values() if array.ndim), 1) for each in rounds)
    return f"{samples} given samples"


def compare_quantized_outputs(reference: Reference, results: Sequence[Outputs]) -> tuple[QuantizedOutput, ...]:
    """Return figures of each output over the compared rounds."""
    rounds = _compared_rounds(reference)
    expected, actual = reference.float64[rounds], results[rounds]
    return tuple(
        _figures(name, [plain(one[name]) for one in expected], [plain(one[name]) for one in actual])
        for name in expected[0]
    )


def _figures(name: str, expected: Sequence[np.ndarray], actual: Sequence[np.ndarray]) -> QuantizedOutput:
    if any(a.shape != b.shape for a, b in zip(expected, actual, strict=True)):
        return QuantizedOutput(name, -np.inf, np.inf, None)
    wanted, found = (np.concatenate([np.ravel(one) for one in side]).astype(np.float64) for side in (expected, actual))
    finite = np.isfinite(wanted)
    if not np.isfinite(found[finite]).all():
        return QuantizedOutput(name, -np.inf, np.inf, None)
    signal, noise = np.sum(wanted[finite] ** 2), np.sum((found - wanted)[finite] ** 2)
    decibels = np.inf if not noise else -np.inf if not signal else 10 * np.log10(signal / noise)
    same = None
    if expected[0].ndim == 2 and expected[0].shape[1] > 1:
        hits = [a.argmax(1) == b.argmax(1) for a, b in zip(expected, actual, strict=True)]
        same = float(np.concatenate(hits).mean())
    largest, error = (float(np.abs(one)[finite].max(initial=0.0)) for one in (wanted, found - wanted))
    return QuantizedOutput(name, float(decibels), error, same, largest, _lost_part(expected, actual))


def _lost_part(expected: Sequence[np.ndarray], actual: Sequence[np.ndarray]) -> LostPart | None:
    """Return the places along an axis that hold far smaller values than the others, if these drown in noise.

    Boxes in pixels beside scores are such an output: their noise as a whole is that of the boxes.
    """
    found = []
    for axis in range(1, expected[0].ndim):
        size = expected[0].shape[axis]
        if not 1 < size <= MOST_PLACES or any(one.shape[axis] != size for one in expected):
            continue
        sides = [
            np.concatenate([np.moveaxis(one, axis, 0).reshape(size, -1) for one in side], 1)
            for side in (expected, actual)
        ]
        wanted, noise = (np.where(np.isfinite(sides[0]), one, 0.0) for one in (sides[0], sides[1] - sides[0]))
        peaks = np.abs(wanted).max(1, initial=0.0)
        small = peaks * APART < peaks.max()
        signal, error = np.sum(wanted[small] ** 2), np.sum(noise[small] ** 2)
        if signal and np.sqrt(error / noise[small].size) > LOST * peaks[small].max():
            place = _place(axis, np.flatnonzero(small))
            found.append(LostPart(place, float(peaks[small].max()), float(10 * np.log10(signal / error))))
    return min(found, key=lambda one: one.sqnr_db, default=None)


def _place(axis: int, places: np.ndarray) -> str:
    first, last = int(places[0]), int(places[-1])
    shown = f"{first}:{last + 1}" if last - first + 1 == len(places) else f"{len(places)} places from {first} to {last}"
    return f"[{':, ' * axis}{shown}]"


def shortfalls(outputs: Sequence[QuantizedOutput], accuracy: Accuracy | None, options: ProofOptions) -> list[str]:
    """Return a sentence for each figure that is below what the user demands."""
    found = []
    if options.min_sqnr is not None:
        found += [
            f"output {one.name}{one.lost.place if one.lost else ''}: {one.least_db:.1f} dB is below --min-sqnr "
            f"{options.min_sqnr:g}"
            for one in outputs
            if one.least_db < options.min_sqnr
        ]
    if options.min_accuracy is not None:
        if accuracy is None:
            found.append("--min-accuracy needs labels: an array 'labels' in the file of --inputs")
        elif accuracy.artifact < options.min_accuracy:
            found.append(f"accuracy {accuracy.artifact:.4f} is below --min-accuracy {options.min_accuracy:g}")
    return found


def demands(options: ProofOptions) -> bool:
    """Return whether the user says what a quantized file must reach."""
    return options.min_sqnr is not None or options.min_accuracy is not None
