"""Let a module take pixels and return classes, where the user asks for it: it is captured as it then is."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from converter.capture.input_shapes import InputShape
from converter.errors import CaptureError, Note, UsageError
from converter.options import BoundaryOptions, Preprocessing

RANGE = 255.0  # of pixels


def set_boundary(module: nn.Module, options: BoundaryOptions) -> list[Note]:
    """Make the module's forward preprocess its first input, and compute what is appended of its output."""
    preprocessing, append = options.embedded, options.append
    if preprocessing is None and append is None:
        return []
    forward = module.forward

    @functools.wraps(forward)
    def outer(*args: Any, **kwargs: Any) -> Any:
        if preprocessing is not None:
            args = (preprocessed(args[0], preprocessing), *args[1:])
        result = forward(*args, **kwargs)
        return result if append is None else appended(result, append)

    outer.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    module.forward = outer
    notes = []
    if preprocessing is not None:
        text = f"The artifact takes pixels, 0 to 255, and preprocesses them: {str(preprocessing).partition(', ')[2]}."
        notes.append(Note(text, code="PTC2511"))
    if append is not None:
        notes.append(Note(f"The output is the {append} of the model's, along dimension 1.", code="PTC2512"))
    return notes


def takes_pixels(shapes: Sequence[InputShape], options: BoundaryOptions) -> list[InputShape]:
    """Return the shapes with the type of pixels.

    Raises:
        UsageError: the first input is no image of floats, or the preprocessing does not fit its channels.
    """
    given = options.embedded
    if given is None:
        return list(shapes)
    image = shapes[0]
    channels = image.shape[1] if len(image.shape) == 4 else None
    if channels is None or image.dtype not in ("float32", "uint8"):
        raise UsageError(
            "Only an image of floats, of 4 dimensions, can be preprocessed within the artifact.",
            code="PTC2045",
            where=f"--embed-preprocessing, input {image}",
            fix="Leave it out; or give the image's shape as the first, batch first.",
        )
    wrong = [n for n in ("mean", "std") if len(getattr(given, n)) not in (1, channels)]
    if wrong or (given.order == "bgr" and channels != 3):
        raise UsageError(
            f"The preprocessing does not fit {channels} channels: {given}.",
            code="PTC2046",
            where="--preprocessing",
            fix="Give one number for all channels, or one for each; only 3 channels have an order.",
        )
    return [replace(image, dtype=options.input_type), *shapes[1:]]


def preprocessed(pixels: Tensor, how: Preprocessing) -> Tensor:
    """Return what the model takes, of pixels [batch, channels, height, width] from 0 to 255 in the order RGB."""
    image = pixels if pixels.is_floating_point() else pixels.to(torch.float32)
    if how.order == "bgr":
        image = image[:, [2, 1, 0]]
    count = max(len(how.mean), len(how.std))
    mean, std = (values * count if len(values) < count else values for values in (how.mean, how.std))
    subtracted = [value / how.scale for value in mean]
    factors = [how.scale / value for value in std]
    if any(subtracted):
        image = image - _by_channel(subtracted)
    return image * _by_channel(factors)


def _by_channel(values: Sequence[float]) -> Tensor | float:
    return torch.tensor(values).reshape(1, -1, 1, 1) if len(set(values)) > 1 else values[0]


def appended(result: Any, what: str) -> Any:
    """Return the softmax, sigmoid or argmax of the only output, [batch, classes, ...]."""
    if isinstance(result, (tuple, list)) and len(result) == 1:
        return [appended(result[0], what)]
    if isinstance(result, dict) and len(result) == 1:
        return {name: appended(value, what) for name, value in result.items()}
    if not isinstance(result, Tensor) or result.ndim < 2 or not result.is_floating_point():
        raise CaptureError(
            "The model does not return one tensor of floats, [batch, classes, ...].",
            code="PTC2047",
            where=f"--append {what}",
            fix="Leave it out: a model with several outputs has to compute it itself.",
        )
    match what:
        case "softmax":
            return result.softmax(1)
        case "sigmoid":
            return result.sigmoid()
    return result.argmax(1)
