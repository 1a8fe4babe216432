"""Input shapes from the module itself: its timm, transformers or ultralytics configuration, or its first layers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from converter.capture.input_shapes import EXAMPLE, InputShape, Sizes, parse_image_size
from converter.capture.ultralytics_models import image_of_ultralytics
from converter.errors import Note, UsageError

TOKENS = 128
SAMPLES = 16000
USUAL_SIDE = 224
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def infer_input_shapes(module: nn.Module, image_size: str | None) -> tuple[list[list[InputShape]], Note]:
    """Return the input shapes that the module implies, and their source.

    If the shape has to be found by trying, return several choices, the likeliest first.

    Args:
        image_size: `HEIGHT[,WIDTH]`, numbers or names.

    Raises:
        UsageError: the module does not imply them.
    """
    size = None if image_size is None else parse_image_size(image_size)
    usual = _of_timm(module, size) or _of_transformers(module, size) or image_of_ultralytics(module, size)
    if usual is not None:
        shapes, source = usual
        source = source if size is None else f"--image-size, with the channels of {source}"
        shown = " and ".join(map(_shown, shapes))
        return [shapes], Note(f"The input shape is {shown}, from {source}.", code="PTC2506")
    first = first_layer(module, CONVOLUTIONS)
    if size is not None and isinstance(first, nn.Conv2d):
        # A layer before it may make four channels of each, as Focus does.
        channels = [first.in_channels, *([first.in_channels // 4] if first.in_channels % 4 == 0 else [])]
        tried = [[InputShape(None, (1, n, *size))] for n in channels]
        return tried, Note("The input has the channels of the first convolution.", code="PTC2507")
    raise UsageError(
        "The input shape is unknown.",
        code="PTC2002",
        fix=f"Give {_example(module)} (batch first, PyTorch's layout).",
    )


def _of_timm(module: nn.Module, size: Sizes | None) -> tuple[list[InputShape], str] | None:
    for name in ("pretrained_cfg", "default_cfg"):
        found = getattr(module, name, None)
        shape = found.get("input_size") if isinstance(found, Mapping) else None
        if isinstance(shape, (list, tuple)) and len(shape) == 3 and all(isinstance(n, int) for n in shape):
            return [InputShape(None, (1, shape[0], *(size or shape[1:])))], f"its {name}"
    return None


def _of_transformers(module: nn.Module, size: Sizes | None) -> tuple[list[InputShape], str] | None:
    """Return the shapes of a model whose only required input is an image or a row of tokens, or None."""
    config = getattr(module, "config", None)
    if config is None or not hasattr(config, "model_type") or getattr(config, "is_encoder_decoder", False):
        return None
    source = f"the configuration of its {config.model_type}"
    parameters = inspect.signature(module.forward).parameters
    main = getattr(module, "main_input_name", None) or next(iter(parameters), None)
    if main == "pixel_values":
        vision = getattr(config, "vision_config", config)
        side = getattr(vision, "image_size", None)
        sides: Any = size or (tuple(side) if isinstance(side, (list, tuple)) else (side, side))
        if size or all(isinstance(n, int) for n in sides):
            return [InputShape(main, (1, getattr(vision, "num_channels", 3), *sides))], source
    if main == "input_ids" and isinstance(getattr(config, "vocab_size", None), int):
        most = getattr(config, "max_position_embeddings", None)
        tokens = min(TOKENS, most) if isinstance(most, int) and most > 0 else TOKENS
        return [InputShape(main, (1, tokens), "int64")], source
    return None


def first_layer(module: nn.Module, kinds: tuple[type, ...]) -> nn.Module | None:
    return next((part for part in module.modules() if isinstance(part, kinds)), None)


def _example(module: nn.Module) -> str:
    """Suggest an option, by the parameters of forward and the first layer."""
    first = first_layer(module, (*CONVOLUTIONS, nn.Linear, nn.Embedding))
    parameters = inspect.signature(module.forward).parameters.values()
    needed = [
        p.name
        for p in parameters
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]  # fmt: skip
    text = EXAMPLE.partition(" ")[2]
    match first:
        case nn.Conv1d():
            text = f"1,{first.in_channels},{SAMPLES}"
        case nn.Conv2d():
            text = f"1,{first.in_channels},{USUAL_SIDE},{USUAL_SIDE}"
        case nn.Conv3d():
            text = f"1,{first.in_channels},32,64,64"
        case nn.Linear():
            text = f"1,{first.in_features}"
        case nn.Embedding():
            text = f"1,{TOKENS}:int64"
    if len(needed) < 2:
        return f"--input-shape {text}"
    return " ".join(f"--input-shape {name}={text}" for name in needed) + ", a shape for each"


def _shown(shape: InputShape) -> str:
    return str(shape).removesuffix(":float32")
