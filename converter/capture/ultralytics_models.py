"""Models of ultralytics: the input shape in their settings, and the outputs that their own exporter returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from converter.capture.input_shapes import InputShape, Sizes
from converter.errors import Note

PACKAGE = "ultralytics"
USUAL_SIDE = 640
USUAL_STRIDE = 32


def image_of_ultralytics(module: nn.Module, size: Sizes | None) -> tuple[list[InputShape], str] | None:
    """Return the shape of the image that a model was trained on, a multiple of its stride, or None for other models."""
    settings = getattr(module, "args", None)
    if not is_of_ultralytics(module) or settings is None:
        return None
    values: Mapping[str, Any] = settings if isinstance(settings, Mapping) else vars(settings)
    trained = values.get("imgsz", USUAL_SIDE)
    sides = [trained] * 2 if isinstance(trained, int) else list(trained)
    stride = max(map(int, getattr(module, "stride", [])), default=USUAL_STRIDE)
    described = getattr(module, "yaml", None) or {}
    channels = described.get("channels") or described.get("ch") or 3
    rounded = tuple(-(-int(side) // stride) * stride for side in sides)
    return [InputShape(None, (1, channels, *(size or rounded)))], f'its args["imgsz"]: {trained}'


def set_exported_outputs(module: nn.Module, all_outputs: bool) -> list[Note]:
    """Make the heads of ultralytics return what its own exporter writes, and return a note if this changes something.

    A detection head computes its grid in each call, in place of comparing sizes with those of the last call.

    Args:
        all_outputs: keep the outputs as they are.
    """
    heads: list[Any] = [part for part in module.modules() if is_of_ultralytics(part) and hasattr(type(part), "export")]
    for head in heads:
        if hasattr(type(head), "shape"):
            head.dynamic = True
    changed = [] if all_outputs else [head for head in heads if not head.export]
    for head in changed:
        head.export = True
    names = ", ".join(dict.fromkeys(type(head).__name__ for head in changed))
    text = f"{names} returns only what ultralytics' own exporter writes; --all-outputs keeps the others."
    return [Note(text, code="PTC2510")] if names else []


def is_of_ultralytics(module: nn.Module) -> bool:
    """Return whether a class of ultralytics, or one that is derived from it, made the module."""
    return any(base.__module__.partition(".")[0] == PACKAGE for base in type(module).__mro__)
