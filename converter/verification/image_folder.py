"""Load images, of a folder or as arrays of pixels, with a preprocessing that the user states and the report repeats."""

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
    (spec,) = specs
    channels, size = _image_size(spec, preprocessing, folder)
    images = np.stack([_pixels(path, channels, size, preprocessing.fit) for path in images_in(folder)])
    return {spec.name: _preprocessed(images, spec, preprocessing)}


def images_in(folder: Path) -> list[Path]:
    """Return a folder's images, sorted by name, or raise UsageError if there are none."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS and path.is_file())
    if not files:
        raise UsageError(
            "The folder does not contain an image.",
            code="PTC5005",
            where=str(folder),
            fix=f"Add files of type {', '.join(sorted(ENDINGS))}.",
        )
    return files


def preprocess_array(array: np.ndarray, spec: InputSpec, preprocessing: Preprocessing, path: Path) -> np.ndarray:
    """Preprocess pixels as those of image files are, and return the input (images, channels, height, width).

    Args:
        array: of uint8, (images, height, width, channels) or channels first; without channels for one.
        path: where it came from.

    Raises:
        UsageError: they are not pixels, or the model does not take images.
    """
    channels, size = _image_size(spec, preprocessing, path) if len(spec.shape) == 4 else (0, (0, 0))
    pixels = array[..., None] if channels == 1 and array.ndim == 3 else array
    last, first = (pixels.ndim == 4 and pixels.shape[axis] == channels for axis in (3, 1))
    if pixels.dtype != np.uint8 or not (last or first):
        raise UsageError(
            f"Preprocessing was given, but the arrays are no pixels for the input {spec.name!r}: {array.dtype} "
            f"{list(array.shape)}.",
            code="PTC5016",
            where=str(path),
            fix="Give pixels of uint8 as [samples, height, width, channels]; or leave out --preprocessing: then arrays "
            "are used as they are.",
        )
    if not last:
        pixels = pixels.transpose(0, 2, 3, 1)
    if pixels.shape[1:3] != size[::-1]:
        fitted = (_fitted(_pillow().fromarray(one.squeeze(-1) if channels == 1 else one), size, preprocessing.fit)
                  for one in pixels)  # fmt: skip
        pixels = np.stack([np.asarray(one).reshape(*size[::-1], channels) for one in fitted])
    return _preprocessed(pixels, spec, preprocessing)


def _image_size(spec: InputSpec, preprocessing: Preprocessing, path: Path) -> tuple[int, tuple[int, int]]:
    """Return channels, and width and height, of an input that takes images. Raises UsageError if it does not."""
    channels, height, width = (size if isinstance(size, int) else 0 for size in spec.shape[1:])
    if not (channels in (1, 3, 4) and height and width):
        raise UsageError(
            f"Images do not fit the input {spec.name!r} {shape_text(spec.shape)}.",
            code="PTC5003",
            where=str(path),
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
    return channels, (width, height)


def _preprocessed(pixels: np.ndarray, spec: InputSpec, preprocessing: Preprocessing) -> np.ndarray:
    """Return the input of pixels (images, height, width, channels) in the order red, green, blue."""
    channels = pixels.shape[-1]
    if preprocessing.order == "bgr" and channels > 1:
        pixels = pixels[..., [2, 1, 0, *range(3, channels)]]
    pixels = pixels.transpose(0, 3, 1, 2)
    if np.dtype(spec.dtype).kind in "iu":
        return pixels.astype(spec.dtype)
    mean, std = (np.asarray(values, np.float64).reshape(-1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    return ((pixels * preprocessing.scale - mean) / std).astype(spec.dtype)


def _pixels(path: Path, channels: int, size: tuple[int, int], fit: Fit) -> np.ndarray:
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
    return np.asarray(_fitted(image, size, fit)).reshape(size[1], size[0], channels)


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
