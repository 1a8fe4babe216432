"""Inputs to compare on: random, several kinds, never constant; or the user's own."""

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ..errors import UsageError

Kind = Literal["normal", "uniform", "large"]
LABELS = "labels"


@dataclass(frozen=True)
class InputSpec:
    """One input of a model.

    Attributes:
        shape: a symbol or None for a dynamic dimension; dimension 0 is the batch.
        dtype: numpy's name of it.
        low, high: integers are drawn from [low, high); the default is safe for any embedding of two rows.
    """

    name: str
    shape: tuple[int | str | None, ...]
    dtype: str = "float32"
    low: int = 0
    high: int = 2


@dataclass(frozen=True)
class Round:
    """Inputs for one run of the model, by name."""

    description: str
    arrays: dict[str, np.ndarray]


def draw(
    specs: Sequence[InputSpec],
    batch: int,
    seed: int | Sequence[int],
    sizes: Mapping[str, int] | None = None,
    kind: Kind = "normal",
) -> dict[str, np.ndarray]:
    """Draw one array for every input.

    Args:
        batch: size of dimension 0 where that is dynamic.
        seed: the same seed, the same arrays.
        sizes: size of every other dynamic dimension, by symbol.
        kind: of floats. "normal": N(0, 1). "uniform": in [0, 1), each sample with a contrast and brightness of its
            own as photographs have, so that global pooling does not make all samples alike. "large": N(0, 8²),
            which reaches the flat ends of clipped activations.

    Raises:
        UsageError: a dynamic dimension has no size.
    """
    rng = np.random.default_rng(seed)
    return {spec.name: _draw(spec, _concrete(spec, batch, sizes or {}), kind, rng) for spec in specs}


def rounds(specs: Sequence[InputSpec], seed: int, sizes: Mapping[str, int] | None = None) -> Iterator[Round]:
    """Give the rounds a model is compared on by default: batch 1 and more, or the fixed batch throughout."""
    plan: tuple[tuple[Kind, int], ...] = (("normal", 1), ("normal", 4), ("uniform", 2), ("large", 1))
    for number, (kind, batch) in enumerate(plan):
        arrays = draw(specs, batch, (seed, number), sizes, kind)
        actual_batch = next((array.shape[0] for array in arrays.values() if array.ndim), batch)
        yield Round(f"{kind}, batch {actual_batch}", arrays)


def load_arrays(path: Path, specs: Sequence[InputSpec]) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Read the user's inputs, and the labels if the file has an array called "labels" that is no input.

    Returns:
        The inputs by name, in the dtypes of `specs`, and the labels as [samples] integers or None. A model's only
        input may have any name in the file.

    Raises:
        UsageError: not an .npz file; an array is missing, unknown, or of a shape or dtype the input cannot take.
    """
    arrays = _read_npz(path)
    names = [spec.name for spec in specs]
    labels = arrays.pop(LABELS) if LABELS in arrays and LABELS not in names else None
    if len(names) == len(arrays) == 1:
        arrays = {names[0]: next(iter(arrays.values()))}
    if set(arrays) != set(names):
        raise UsageError(
            f"The model's inputs are {_listed(names)}; the file has {_listed(sorted(arrays))}.",
            where=str(path),
            cure="give every input one array of its name",
        )
    sizes: dict[str, int] = {}
    # Several fixed batches may be given at once, `batches` cuts them.
    repeatable = all(isinstance(spec.shape[0], int) for spec in specs if spec.shape)
    inputs = {spec.name: _fit(arrays[spec.name], spec, sizes, repeatable, path) for spec in specs}
    if labels is not None:
        samples = next((array.shape[0] for array in inputs.values() if array.ndim), 1)
        if labels.shape != (samples,) or labels.dtype.kind not in "iu":
            raise UsageError(
                f"The labels are {labels.dtype}{list(labels.shape)} for {samples} samples.",
                where=f"{path}, array 'labels'",
                cure=f"give integers of shape [{samples}]",
            )
    return inputs, labels


def batches(arrays: Mapping[str, np.ndarray], specs: Sequence[InputSpec], largest: int = 32) -> Iterator[Round]:
    """Cut the user's arrays into rounds of at most `largest` samples, or of the fixed batch.

    Raises:
        UsageError: the samples do not fill the fixed batch, or the inputs have different numbers of samples.
    """
    dynamic = {spec.name for spec in specs if spec.shape and not isinstance(spec.shape[0], int)}
    if not dynamic:
        yield from _fixed_batches(arrays, specs)
        return
    counts = {arrays[name].shape[0] for name in dynamic}
    if len(counts) > 1:
        raise UsageError(f"The inputs have different numbers of samples: {_listed(sorted(counts))}.", where="--inputs")
    (samples,) = counts
    for start in range(0, samples, largest):
        stop = min(start + largest, samples)
        cut = {name: array[start:stop] if name in dynamic else array for name, array in arrays.items()}
        yield Round(f"given, samples {start} to {stop - 1}", cut)


def _fixed_batches(arrays: Mapping[str, np.ndarray], specs: Sequence[InputSpec]) -> Iterator[Round]:
    sizes = {spec.name: size for spec in specs if spec.shape and isinstance(size := spec.shape[0], int)}
    counts = set()
    for name, size in sizes.items():
        samples = len(arrays[name])
        if size == 0 or samples % size:
            raise UsageError(
                f"{samples} samples do not fill batches of {size}, which is the model's fixed batch.",
                where=f"--inputs, array {name!r}",
                cure=f"give a multiple of {size} samples",
            )
        counts.add(samples // size)
    if len(counts) > 1:
        raise UsageError(f"The inputs fill different numbers of batches: {_listed(sorted(counts))}.", where="--inputs")
    for number in range(counts.pop() if counts else 1):
        cut = {name: arrays[name][number * size : (number + 1) * size] for name, size in sizes.items()}
        yield Round(f"given, batch {number + 1}", {**arrays, **cut})


def _draw(spec: InputSpec, shape: tuple[int, ...], kind: Kind, rng: np.random.Generator) -> np.ndarray:
    dtype = np.dtype(spec.dtype)
    if dtype.kind in "iu":
        return _unlike(rng.integers(spec.low, spec.high, shape), spec.low, spec.high - 1).astype(dtype)
    if dtype.kind == "b":
        return _unlike(rng.integers(0, 2, shape), 0, 1).astype(dtype)
    if dtype.kind == "c":
        return np.asarray(_floats(shape, kind, rng) + 1j * _floats(shape, kind, rng), dtype)
    if dtype.kind != "f":
        raise UsageError(f"Inputs of dtype {spec.dtype} cannot be drawn.", where=f"input {spec.name!r}")
    return _floats(shape, kind, rng).astype(dtype)


def _floats(shape: tuple[int, ...], kind: Kind, rng: np.random.Generator) -> np.ndarray:
    if kind == "uniform":
        per_sample = shape[:1] + (1,) * (len(shape) - 1)
        contrast = rng.uniform(0.3, 1.0, per_sample)
        brightness = rng.uniform(0.0, 1.0, per_sample) * (1.0 - contrast)
        return np.asarray(brightness + contrast * rng.random(shape))
    return np.asarray(rng.standard_normal(shape) * (8.0 if kind == "large" else 1.0))


def _unlike(array: np.ndarray | np.integer, lowest: int, highest: int) -> np.ndarray:
    """Make one element differ where chance made all of them the same."""
    array = np.asarray(array)
    if array.size > 1 and lowest < highest and (array == array.flat[0]).all():
        array.flat[0] = lowest if array.flat[0] != lowest else highest
    return array


def _concrete(spec: InputSpec, batch: int, sizes: Mapping[str, int]) -> tuple[int, ...]:
    shape: list[int] = []
    for axis, size in enumerate(spec.shape):
        if isinstance(size, int):
            shape.append(size)
        elif axis == 0:
            shape.append(batch)
        elif size is not None and (size in sizes or size == spec.shape[0]):
            shape.append(batch if size == spec.shape[0] else sizes[size])
        else:
            raise UsageError(
                f"Dimension {axis} of input {spec.name!r} has no size.",
                where=f"input {spec.name!r} {_shape(spec.shape)}",
                cure="give --input-shape",
            )
    return tuple(shape)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise UsageError(
                "This is a single array.", where=str(path), cure="write it with numpy.savez(file, name=array)"
            )
        with archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(
            f"The inputs cannot be read: {error}", where=str(path), cure="write them with numpy.savez(file, name=array)"
        ) from error


def _fit(array: np.ndarray, spec: InputSpec, sizes: dict[str, int], repeatable: bool, path: Path) -> np.ndarray:
    where = f"{path}, array for input {spec.name!r}"
    expected = f"{spec.dtype} of shape {_shape(spec.shape)}"
    fits = array.ndim == len(spec.shape)
    for axis, (expected_size, size) in enumerate(zip(spec.shape, array.shape, strict=False)):
        if isinstance(expected_size, int):
            fits = fits and (expected_size == size or (axis == 0 and repeatable))
        elif expected_size is not None:
            fits = fits and sizes.setdefault(expected_size, size) == size
    if not fits or 0 in array.shape[:1]:
        raise UsageError(
            f"The array has shape {_shape(array.shape)}, input {spec.name!r} takes {_shape(spec.shape)}.",
            where=where,
            cure="arrays have PyTorch's layout, samples first",
        )
    dtype = np.dtype(spec.dtype)
    if not np.can_cast(array.dtype, dtype, "same_kind"):
        raise UsageError(
            f"The array is {array.dtype}, which {spec.dtype} cannot hold.", where=where, cure=f"give {expected}"
        )
    cast = array.astype(dtype)
    if dtype.kind in "iu" and not np.array_equal(cast, array):
        raise UsageError(f"The array holds values outside {spec.dtype}.", where=where, cure=f"give {expected}")
    return cast


def _shape(shape: Sequence[int | str | None]) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"


def _listed(items: Sequence[object]) -> str:
    return ", ".join(map(repr, items)) or "none"
