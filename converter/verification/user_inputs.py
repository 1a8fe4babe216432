"""Load the user's own inputs: arrays from a file, or images from a folder, as rounds to compare on."""

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from ..capture.random_inputs import InputSpec, Round, listed, shape_text
from ..errors import UsageError
from ..options import Preprocessing
from .image_folder import images_in, load_images, preprocess_array

LABELS = "labels"
EXPANSION_LIMIT = 100  # size of an archive's arrays, as a multiple of the file's
SMALL_ARRAYS = 1 << 30  # bytes that any archive may hold
Given = str | Path | Mapping[str, np.ndarray]


def load_given(
    given: Given, specs: Sequence[InputSpec], preprocessing: Preprocessing | None = None
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Read the user's inputs, and the labels if an array is called "labels" and no input is.

    Args:
        given: arrays by the inputs' names; or the path of an `.npz` file of them, of an `.npy` file with the only
            input's array, or of a folder of images for it.
        preprocessing: of images and of pixels, which are arrays of uint8.

    Returns:
        The inputs by name, in the dtypes of `specs`, and the labels as [samples] integers or None. A model's only
        input may have any name in the file.

    Raises:
        UsageError: it cannot be read; an array is missing, unknown, or of a shape or dtype that the input cannot take.
    """
    if isinstance(given, Mapping):
        arrays, path = {name: np.asarray(array) for name, array in given.items()}, Path("inputs")
    else:
        check_exists(given)
        path = Path(given)
        if path.is_dir():
            return load_images(path, specs, preprocessing or Preprocessing()), None
        arrays = _read_file(path)
    names = [spec.name for spec in specs]
    labels = arrays.pop(LABELS) if LABELS in arrays and LABELS not in names else None
    if len(names) == len(arrays) == 1:
        arrays = {names[0]: next(iter(arrays.values()))}
    if list(arrays) == [str(number) for number in range(len(names))]:
        arrays = dict(zip(names, arrays.values(), strict=True))
    if set(arrays) != set(names):
        raise UsageError(
            f"The model's inputs are {listed(names)}; arrays were given for {listed(sorted(arrays))}.",
            code="PTC5017",
            where=str(path),
            fix="Give one array for every input, by its name.",
        )
    if preprocessing is not None:
        arrays = {spec.name: preprocess_array(arrays[spec.name], spec, preprocessing, path) for spec in specs}
    sizes: dict[str, int] = {}
    # Several fixed batches may be given at once; `batches` splits them.
    repeatable = all(_batch_axis(spec) is None for spec in specs)
    inputs = {spec.name: _fitted(arrays[spec.name], spec, sizes, repeatable, path) for spec in specs}
    if labels is not None:
        samples = next((array.shape[0] for array in inputs.values() if array.ndim), 1)
        if labels.shape != (samples,) or labels.dtype.kind not in "iu":
            raise UsageError(
                f"The labels have shape {list(labels.shape)} and type {labels.dtype}, for {samples} samples.",
                code="PTC5018",
                where=f"{path}, array 'labels'",
                fix=f"Give integers of shape [{samples}].",
            )
    return inputs, labels


def batches(arrays: Mapping[str, np.ndarray], specs: Sequence[InputSpec], largest: int = 32) -> Iterator[Round]:
    """Split the user's arrays into rounds of at most `largest` samples, or of the fixed batch.

    Raises:
        UsageError: the samples do not fill the fixed batch, or the inputs have different numbers of samples.
    """
    dynamic = {spec.name: axis for spec in specs if (axis := _batch_axis(spec)) is not None}
    if not dynamic:
        yield from _fixed_batches(arrays, specs)
        return
    counts = {arrays[name].shape[axis] for name, axis in dynamic.items()}
    if len(counts) > 1:
        raise UsageError(
            f"The inputs have different numbers of samples: {listed(sorted(counts))}.",
            code="PTC5019",
            fix="Give every array the same number of samples.",
            where="--inputs",
        )
    (samples,) = counts
    for start in range(0, samples, largest):
        stop = min(start + largest, samples)
        cut = {name: arrays[name][(*(slice(None),) * axis, slice(start, stop))] for name, axis in dynamic.items()}
        yield Round(f"given, samples {start} to {stop - 1}", {**arrays, **cut})


def _batch_axis(spec: InputSpec) -> int | None:
    if "batch" in spec.shape:
        return spec.shape.index("batch")
    return 0 if spec.shape and not isinstance(spec.shape[0], int) else None


def _fixed_batches(arrays: Mapping[str, np.ndarray], specs: Sequence[InputSpec]) -> Iterator[Round]:
    sizes = {spec.name: size for spec in specs if spec.shape and isinstance(size := spec.shape[0], int)}
    counts = set()
    for name, size in sizes.items():
        samples = len(arrays[name])
        if size == 0 or samples % size:
            raise UsageError(
                f"{samples} samples do not fill batches of {size}, which is the model's fixed batch.",
                code="PTC5020",
                where=f"--inputs, array {name!r}",
                fix=f"Give a multiple of {size} samples.",
            )
        counts.add(samples // size)
    if len(counts) > 1:
        raise UsageError(
            f"The inputs fill different numbers of batches: {listed(sorted(counts))}.",
            code="PTC5021",
            fix="Give every array the same number of samples.",
            where="--inputs",
        )
    for number in range(counts.pop() if counts else 1):
        cut = {name: arrays[name][number * size : (number + 1) * size] for name, size in sizes.items()}
        yield Round(f"given, batch {number + 1}", {**arrays, **cut})


def check_exists(given: Given | None) -> None:
    """Raise UsageError if the inputs are a path that does not exist, a folder without images, or a pipe or a device."""
    if not isinstance(given, str | Path) or Path(given).is_file():
        return
    if Path(given).is_dir():
        images_in(Path(given))
        return
    raise UsageError(
        "The inputs cannot be read: there is no such file or folder.",
        code="PTC5026",
        where=str(given),
        fix="Give an .npz or .npy file, or a folder of images.",
    )


def _read_file(path: Path) -> dict[str, np.ndarray]:
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as entries:
                unfolded = sum(entry.file_size for entry in entries.infolist())
            if unfolded > max(EXPANSION_LIMIT * path.stat().st_size, SMALL_ARRAYS):
                raise ValueError(f"its arrays expand to {unfolded} bytes")
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            return {path.stem: archive}
        with archive:
            arrays = {name: archive[name] for name in archive.files}
        if strange := [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]:
            raise ValueError(f"{listed(strange)} is not an array")
        return arrays
    except MemoryError:
        raise
    except Exception as error:  # a damaged archive or header can raise anything
        raise UsageError(
            f"The inputs cannot be read: {error}",
            code="PTC5022",
            where=str(path),
            fix="Write them with numpy.savez(file, name=array), or give a folder of images.",
        ) from error


def _fitted(array: np.ndarray, spec: InputSpec, sizes: dict[str, int], repeatable: bool, path: Path) -> np.ndarray:
    where = f"{path}, array for input {spec.name!r}"
    expected = f"{spec.dtype} of shape {shape_text(spec.shape)}"
    fits = array.ndim == len(spec.shape)
    for axis, (expected_size, size) in enumerate(zip(spec.shape, array.shape, strict=False)):
        if isinstance(expected_size, int):
            fits = fits and (expected_size == size or (axis == 0 and repeatable))
        elif expected_size is not None:
            fits = fits and sizes.setdefault(expected_size, size) == size
    if not fits or 0 in array.shape[:1]:
        raise UsageError(
            f"The array has shape {shape_text(array.shape)}, but input {spec.name!r} takes {shape_text(spec.shape)}.",
            code="PTC5023",
            where=where,
            fix="Give arrays in PyTorch's layout, samples first.",
        )
    dtype = np.dtype(spec.dtype)
    if not np.can_cast(array.dtype, dtype, "same_kind"):
        raise UsageError(
            f"The array is {array.dtype}, which {spec.dtype} cannot hold.",
            code="PTC5024",
            where=where,
            fix=f"Give {expected}.",
        )
    cast = array.astype(dtype)
    if dtype.kind in "iu" and not np.array_equal(cast, array):
        raise UsageError(
            f"The array holds values outside {spec.dtype}.", code="PTC5025", where=where, fix=f"Give {expected}."
        )
    return cast
