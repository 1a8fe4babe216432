"""Known differences that can explain an artifact's disagreement: a softmax, a sigmoid, boxes in other units.

Each is an exact statement, "softmax of the model's output is the artifact's output", compared within the same bounds
in every round of inputs. A transform that would hide an error (a sigmoid that is flat wherever the outputs lie)
explains nothing. `io_matching` finds out which of them hold; the user decides which are acceptable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..report.results import ExplanationKind
from .output_proofs import ROUNDING_FACTOR, Outputs, compare_artifact
from .tolerance import FLOOR_ULP

Transform = Callable[[np.ndarray], np.ndarray]

PLANTED = 1e-3  # of the scale: an error that a transform must not hide
SEEN_SHARE = 0.25  # of the samples in which that error must exceed the bound


@dataclass(frozen=True)
class OutputTransform:
    """One way to read an output of the artifact as one of the model.

    Attributes:
        kind: the explanation; None if the output is read unchanged.
        order: PyTorch's dimension of each axis of the output.
        model: the transform of the model's output.
        artifact: the transform of the artifact's output, in PyTorch's order of dimensions.
    """

    kind: ExplanationKind | None
    order: tuple[int, ...]
    description: str = ""
    model: Transform | None = None
    artifact: Transform | None = None

    def without_explanation(self) -> OutputTransform:
        return OutputTransform(None, self.order)

    def of_model(self, array: np.ndarray) -> np.ndarray:
        return array if self.model is None else self.model(array)

    def of_artifact(self, array: np.ndarray) -> np.ndarray:
        if array.ndim != len(self.order):
            return array
        arranged = array.transpose(np.argsort(self.order))
        return arranged if self.artifact is None else self.artifact(arranged)


def orders(rank: int) -> list[tuple[int, ...]]:
    """Return PyTorch's order of dimensions, then channels last."""
    straight = tuple(range(rank))
    return [straight, (0, *range(2, rank), 1)] if rank >= 3 else [straight]


def possible_transforms(shape: Sequence[int], image_sizes: Sequence[tuple[int, int]]) -> Iterator[OutputTransform]:
    """Yield the explanations that fit an output of this shape, given in PyTorch's order.

    Args:
        image_sizes: height and width of each image that the model takes.
    """
    if not shape:
        return
    straight = tuple(range(len(shape)))
    for axis in dict.fromkeys((len(shape) - 1, 1)) if len(shape) >= 2 else ():
        if shape[axis] >= 2:
            along = f" along dimension {axis}" if len(shape) > 2 else ""

            def soft(array: np.ndarray, axis: int = axis) -> np.ndarray:
                return softmax(array, axis)

            yield OutputTransform(
                "softmax", straight, f"the artifact applies a softmax{along} that the model does not", model=soft
            )
            yield OutputTransform(
                "softmax", straight, f"the model applies a softmax{along} that the artifact does not", artifact=soft
            )
    yield OutputTransform("sigmoid", straight, "the artifact applies a sigmoid that the model does not", model=sigmoid)
    yield OutputTransform(
        "sigmoid", straight, "the model applies a sigmoid that the artifact does not", artifact=sigmoid
    )
    for height, width in dict.fromkeys(image_sizes):
        for axis in range(1, len(shape)):
            if shape[axis] >= 4:
                yield from _boxes(straight, axis, shape[axis], height, width)


def _boxes(straight: tuple[int, ...], axis: int, size: int, height: int, width: int) -> Iterator[OutputTransform]:
    which = "the boxes" if size == 4 else f"the boxes, the first four along dimension {axis},"
    for divisors in dict.fromkeys(((width, height) * 2, (height, width) * 2)):
        divisor = np.ones((size,) + (1,) * (len(straight) - 1 - axis))
        divisor[:4] = np.reshape(divisors, (4,) + (1,) * (divisor.ndim - 1))

        def normalized(array: np.ndarray, divisor: np.ndarray = divisor) -> np.ndarray:
            return array / divisor.astype(array.dtype)

        by = " x ".join(map(str, divisors[:2]))
        yield OutputTransform(
            "boxes", straight, f"{which} are divided by the image size {by} in the artifact", model=normalized
        )
        yield OutputTransform(
            "boxes", straight, f"{which} are divided by the image size {by} in the model", artifact=normalized
        )


def softmax(array: np.ndarray, axis: int) -> np.ndarray:
    """Compute exp(x - max) / sum in the array's own precision."""
    powers = np.exp(array - array.max(axis, keepdims=True))
    return np.asarray(powers / powers.sum(axis, keepdims=True))


def sigmoid(array: np.ndarray) -> np.ndarray:
    """Compute 1 / (1 + exp(-x)) in the array's own precision."""
    powers = np.exp(-np.abs(array))
    return np.asarray(np.where(array >= 0, 1, powers) / (1 + powers), array.dtype)


def explains(
    transform: OutputTransform,
    name: str,
    float64: Sequence[Outputs],
    float32: Sequence[Outputs],
    given: Sequence[np.ndarray],
    *,
    atol: float | None,
    rtol: float | None,
) -> bool:
    """Tell whether an output agrees after this transform in every round, and an error in it would still be visible."""
    arrays = [np.asarray(outputs[name]) for outputs in float64]
    if any(array.dtype.kind != "f" for array in (*arrays, *given)):
        return False
    unexplained = transform.without_explanation()
    if any(unexplained.of_artifact(one).shape != array.shape for one, array in zip(given, arrays, strict=True)):
        return False

    def compared(changed: Sequence[np.ndarray], results: Sequence[np.ndarray]) -> bool:
        return compare_artifact(
            [{name: transform.of_model(array)} for array in changed],
            [{name: transform.of_model(np.asarray(outputs[name]))} for outputs in float32[: len(changed)]],
            [{name: array} for array in results],
            atol=atol,
            rtol=rtol,
        ).holds

    with np.errstate(all="ignore"):
        read = [transform.of_artifact(array) for array in given]
        if not compared(arrays[:1], read[:1]) and not compared(arrays[:2], read[:2]):
            return False
        if not compared(arrays, read):
            return False
        return _shows_errors(transform, arrays, [np.asarray(o[name]) for o in float32], given)


def _shows_errors(
    transform: OutputTransform,
    float64: Sequence[np.ndarray],
    float32: Sequence[np.ndarray],
    given: Sequence[np.ndarray],
) -> bool:
    """Tell whether an error of `PLANTED` of the scale before the transform exceeds the bound after it."""
    rng = np.random.default_rng(0)
    seen = []
    for wide, own, theirs in zip(float64, float32, given, strict=True):
        side, read = wide, transform.of_model
        if transform.artifact is not None:
            side, read = theirs.astype(np.float64), transform.of_artifact
        unit = np.abs(transform.of_model(own).astype(np.float64) - transform.of_model(wide)).max(initial=0.0)
        floor = FLOOR_ULP * float(np.spacing(np.float32(np.abs(transform.of_model(wide)).max(initial=0.0))))
        error = PLANTED * np.abs(side).max(initial=0.0) * rng.choice([-1.0, 1.0], side.shape)
        moved = np.abs(read(side + error) - read(side)).reshape(len(side), -1).max(1)
        seen.append(moved > ROUNDING_FACTOR * max(unit, floor))
    return bool(np.mean(np.concatenate(seen)) >= SEEN_SHARE)
