"""Say what libraries of devices should know of a model's inputs and outputs: pixels, and names of classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from converter.artifacts.tflite_metadata import TensorDescription
from converter.errors import UsageError
from converter.options import BoundaryOptions
from converter.plan.interface import TensorInterface

if TYPE_CHECKING:
    from converter.pipeline.load_model import LoadedModel

COLORS = {1: "gray", 3: "rgb"}


def describe_tensors(
    source: LoadedModel,
    inputs: Sequence[TensorInterface],
    outputs: Sequence[TensorInterface],
    labels: Sequence[str] | None,
) -> tuple[dict[str, TensorDescription], tuple[str, ...]]:
    """Return what is known of inputs and outputs, by name, and the names of the classes.

    Args:
        labels: the user's; None for the model's own.

    Raises:
        UsageError: no output has as many classes as the user names.
    """
    own = () if source.module is None else class_names(source.module)
    known = own if labels is None else tuple(labels)
    described = _of_pixels(source.options.boundary, inputs)
    classes = [one for one in outputs if len(one.shape) > 1 and one.shape[-1] == len(known)] if known else []
    if labels is not None and not classes:
        shapes = ", ".join(f"{one.name} {[n if isinstance(n, int) else 'batch' for n in one.shape]}" for one in outputs)
        raise UsageError(
            f"There are {len(labels)} names of classes, and no output has as many along its last dimension: {shapes}.",
            code="PTC6099",
            where="--labels",
            fix="Give one name a line for each class.",
        )
    described |= {one.name: TensorDescription(has_labels=True) for one in classes}
    return described, known if classes else ()


def class_names(module: nn.Module) -> tuple[str, ...]:
    """Return the classes that a model of ultralytics (`names`) or transformers (`config.id2label`) names, or none."""
    for part in module.modules():
        held = vars(part)
        for found in (held.get("names"), getattr(held.get("config"), "id2label", None)):
            numbered = dict(enumerate(found)) if isinstance(found, list | tuple) else found
            if not isinstance(numbered, dict) or not numbered or {*numbered} != {*range(len(numbered))}:
                continue
            names = tuple(numbered[number] for number in range(len(numbered)))
            if all(isinstance(name, str) and "\n" not in name for name in names) and names != tuple(
                f"LABEL_{n}" for n in numbered
            ):
                return names
    return ()


def _of_pixels(boundary: BoundaryOptions, inputs: Sequence[TensorInterface]) -> dict[str, TensorDescription]:
    """Describe the only input, of images, if their preprocessing is known."""
    given = boundary.preprocessing
    assert not isinstance(given, str)
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or (given is None and boundary.embedded is None):
        return {}
    (image,) = inputs
    channels = image.shape[image.order.index(1)]
    if channels not in COLORS:
        return {}
    if given is None or boundary.embedded is not None:
        return {image.name: TensorDescription(COLORS[channels], (0.0,), (1.0,))}
    count = max(len(given.mean), len(given.std))
    mean, std = (numbers * (count // len(numbers)) for numbers in (given.mean, given.std))
    described = TensorDescription(
        None if given.order == "bgr" and channels == 3 else COLORS[channels],  # there is no name for that order
        tuple(m / given.scale for m in mean),
        tuple(s / given.scale for s in std),
    )
    return {image.name: described}
