"""Load a folder of images as inputs, with a preprocessing that the user states and the report repeats."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..capture.random_inputs import InputSpec, shape_text
from ..errors import UsageError
from ..options import Fit, Preprocessing

ENDINGS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # whatever the name says: Pillow runs Ghostscript on others
PAD_GREY = 114  # of 255, YOLO's letterbox


def load_images(folder: Path, specs: Sequence[InputSpec], preprocessing: Preprocessing) -> dict[str, np.ndarray]:
    """Load a folder's images, sorted by name, as the array (images, channels, height, width) of the only input.

    Raises:
        UsageError: there are none, one cannot be read, or the model does not take images.
    """
    if len(specs) != 1 or len(specs[0].shape) != 4:
        raise UsageError(
            "A folder of images needs a model with a single input (batch, channels, height, width).",
            code="PTC5002",
            fix="Give --inputs an .npz with an array for each input.",
        )
    spec = specs[0]
    channels, height, width = (size if isinstance(size, int) else 0 for size in spec.shape[1:])
    if not (channels in (1, 3, 4) and height and width):
        raise UsageError(
            f"Images do not fit the input {spec.name!r} {shape_text(spec.shape)}.",
            code="PTC5003",
            where=str(folder),
            fix="Use an input with 1, 3 or 4 channels and known height and width.",
        )
    for name in ("mean", "std"):
        if len(getattr(preprocessing, name)) not in (1, channels):
            raise UsageError(
                f"{name} must be one number, or {channels}.",
                code="PTC5004",
                fix="Give one number for all channels, or one for each.",
                where="preprocessing of images",
            )
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS and path.is_file())
    if not files:
        raise UsageError(
            "The folder does not contain an image.",
            code="PTC5005",
            where=str(folder),
            fix=f"Add files of type {', '.join(sorted(ENDINGS))}.",
        )
    images = [_pixels(path, channels, (width, height), preprocessing) for path in files]
    pixels = np.stack(images).transpose(0, 3, 1, 2)
    if np.dtype(spec.dtype).kind in "iu":
        return {spec.name: pixels.astype(spec.dtype)}
    mean, std = (np.asarray(values, np.float64).reshape(-1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    return {spec.name: ((pixels * preprocessing.scale - mean) / std).astype(spec.dtype)}


def _pixels(path: Path, channels: int, size: tuple[int, int], preprocessing: Preprocessing) -> np.ndarray:
    """Return the pixels of an image as (height, width, channels), 0 to 255."""
    image_module = _pillow()
    try:
        with image_module.open(path, formats=FORMATS) as opened:
            image = opened.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels])
    except MemoryError:
        raise
    except Exception as error:  # a damaged image can raise anything, and Pillow refuses those without measure
        raise UsageError(
            f"The image cannot be read: {error}",
            code="PTC5006",
            fix="Remove the image from the folder, or save it again.",
            where=str(path),
        ) from error
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
        raise UsageError(
            "Pillow, which reads images, is not installed.", code="PTC5007", fix="Run pip install pillow."
        ) from missing
    return Image
