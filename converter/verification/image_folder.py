"""A folder of images as inputs, by a preprocessing that the user states and the report repeats."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from ..capture.random_inputs import InputSpec, shape_text
from ..errors import UsageError

ENDINGS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
Fit = Literal["stretch", "crop", "pad"]
Order = Literal["rgb", "bgr"]
PAD_GREY = 114  # of 255, YOLO's letterbox


@dataclass(frozen=True)
class Preprocessing:
    """How the pixels of a file become an input: value = (pixel x scale - mean) / std, channels first.

    Attributes:
        fit: to the input's height and width. "stretch"; "crop" the middle after the shorter side was resized; "pad"
            with grey after the longer side was. Always bilinear, antialiased, as Pillow does it.
        scale: of pixels, which are 0 to 255.
        mean, std: one number, or one for each channel in the order of `order`.
        order: of the three channels. An input of one channel gets grey, one of four also the opacity.
    """

    fit: Fit = "stretch"
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    order: Order = "rgb"

    def __post_init__(self) -> None:
        if self.fit not in get_args(Fit) or self.order not in get_args(Order):
            raise UsageError(f"No such preprocessing of images: {self.fit}, {self.order}.")
        if not all(np.isfinite([self.scale, *self.mean, *self.std])) or 0 in self.std:
            raise UsageError("Scale, mean and std are to be numbers, std not 0.", where="preprocessing of images")

    def __str__(self) -> str:
        mean, std = (", ".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        return f"{self.fit}, {self.order}, (pixel x {self.scale:g} - [{mean}]) / [{std}]"


PREPROCESSED = {f"image_{field.name}" for field in fields(Preprocessing)}


def with_preprocessing(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a conversion, what they say of images (`image_fit`, ...; None says nothing) as one of them."""
    images = {key: value for key, value in arguments.items() if key in PREPROCESSED}
    rest = {key: value for key, value in arguments.items() if key not in images}
    said: dict[str, Any] = {
        key.removeprefix("image_"): tuple(value) if isinstance(value, list) else value
        for key, value in images.items()
        if value is not None
    }
    return rest | {"preprocessing": Preprocessing(**said)} if said else rest


def load_images(folder: Path, specs: Sequence[InputSpec], preprocessing: Preprocessing) -> dict[str, np.ndarray]:
    """The images of a folder, by their names, as the array (images, channels, height, width) of the only input.

    Raises:
        UsageError: there are none, one cannot be read, or the model does not take images.
    """
    if len(specs) != 1 or len(specs[0].shape) != 4:
        raise UsageError("A folder of images fits a model with one input (batch, channels, height, width).")
    spec = specs[0]
    channels, height, width = (size if isinstance(size, int) else 0 for size in spec.shape[1:])
    if not (channels in (1, 3, 4) and height and width):
        raise UsageError(
            f"Images do not fit the input {spec.name!r} {shape_text(spec.shape)}.",
            where=str(folder),
            fix="the input is to have 1, 3 or 4 channels; height and width must be known",
        )
    for name in ("mean", "std"):
        if len(getattr(preprocessing, name)) not in (1, channels):
            raise UsageError(f"{name} is to be one number, or {channels}.", where="preprocessing of images")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS)
    if not files:
        raise UsageError("There is no image in this folder.", where=str(folder), fix=f"of {', '.join(sorted(ENDINGS))}")
    images = [_pixels(path, channels, (width, height), preprocessing) for path in files]
    pixels = np.stack(images).transpose(0, 3, 1, 2)
    if np.dtype(spec.dtype).kind in "iu":
        return {spec.name: pixels.astype(spec.dtype)}
    mean, std = (np.asarray(values, np.float64).reshape(-1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    return {spec.name: ((pixels * preprocessing.scale - mean) / std).astype(spec.dtype)}


def _pixels(path: Path, channels: int, size: tuple[int, int], preprocessing: Preprocessing) -> np.ndarray:
    """(height, width, channels), 0 to 255."""
    image_module = _pillow()
    try:
        with image_module.open(path) as opened:
            image = opened.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels])
    except OSError as error:
        raise UsageError(f"The image cannot be read: {error}", where=str(path)) from error
    pixels = np.asarray(_fitted(image, size, preprocessing.fit)).reshape(size[1], size[0], channels)
    if preprocessing.order == "bgr" and channels > 1:
        pixels = pixels[..., [2, 1, 0, *range(3, channels)]]
    return pixels


def _fitted(image: Any, size: tuple[int, int], fit: Fit) -> Any:
    from PIL import Image, ImageOps

    method = Image.Resampling.BILINEAR
    if fit == "crop":
        return ImageOps.fit(image, size, method)
    if fit == "pad":
        return ImageOps.pad(image, size, method, color=(PAD_GREY,) * len(image.getbands()))
    return image.resize(size, method)


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as missing:
        raise UsageError("Images are read by Pillow, which is not installed.", fix="pip install pillow") from missing
    return Image
