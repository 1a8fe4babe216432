"""Random inputs to compare on: several kinds, batches and sizes, never constant."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

import numpy as np

from ..errors import UsageError

Kind = Literal["normal", "uniform", "large", "impulse", "small", "spread"]
ROUNDS: tuple[tuple[Kind, int], ...] = (("normal", 1), ("normal", 3), ("uniform", 1), ("large", 1), ("impulse", 2))
LAST: tuple[Kind, int] = ("small", 2)
SMALL = (1e-3, 1e-6, 0.0, 0.0)  # factors of rows; the last kind of row is constant instead
LARGE = 1 << 24  # elements of a round's inputs from which they are not kept
TELLING = ("small", "impulse", "large", "spread")  # kinds of inputs that hold the integers at which a model changes
IMPULSE = 8.0  # over a background of deviation 1/16: after exact zeros, norms would divide rounding errors by zero


class IntegerSource(Protocol):
    """Draws integers that depend on each other or on sizes: lengths of sequences, offsets of bags."""

    def draw(self, shape: Sequence[int], dtype: str, sizes: Mapping[str, int], rng: np.random.Generator) -> np.ndarray:
        """Return an array of `shape`, for these sizes of the dynamic dimensions."""


@dataclass(frozen=True)
class InputSpec:
    """One input of a model.

    Attributes:
        shape: a symbol or None for a dynamic dimension. One called `batch` is the batch, and dimension 0 if its symbol
            has no size.
        dtype: numpy's name for it.
        low, high: integers are drawn from [low, high); the default is safe for any embedding of two rows.
        pixels: floats are pixels, 0 to 255, in the place of numbers around 0.
        telling: integers at which the model may behave differently; in four kinds of rounds each of them is
            drawn twice, in no more than half of the places.
        source: draws the integers, if they depend on each other or on sizes.
        far: the lowest and the highest integer that is drawn in "large" and "spread" rounds. In "uniform" and "small"
            ones they are then `low` and the next, as those of masks are.
        columns: what each place of the last axis holds, if they differ.
    """

    name: str
    shape: tuple[int | str | None, ...]
    dtype: str = "float32"
    low: int = 0
    high: int = 2
    telling: tuple[int, ...] = ()
    pixels: bool = False
    source: IntegerSource | None = None
    far: tuple[int, int] | None = None
    columns: tuple["InputSpec", ...] = ()


@dataclass(frozen=True)
class Round:
    """Inputs for one run of the model, by name."""

    description: str
    arrays: Mapping[str, np.ndarray]

    @property
    def samples(self) -> int:
        """Return the largest first size of an input."""
        held = self.arrays
        shapes = held.shapes.values() if isinstance(held, Drawn) else map(np.shape, held.values())
        return max((shape[0] for shape in shapes if shape), default=1)


class Drawn(Mapping[str, np.ndarray]):
    """Random inputs that are drawn again on each read, because they are large."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], draw: Callable[[], Mapping[str, np.ndarray]]):
        self.shapes, self._draw = shapes, draw

    def __getitem__(self, name: str) -> np.ndarray:
        return self._draw()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def draw(
    specs: Sequence[InputSpec],
    batch: int,
    seed: int | Sequence[int],
    sizes: Mapping[str, int] | None = None,
    kind: Kind = "normal",
) -> dict[str, np.ndarray]:
    """Draw one array for every input.

    Args:
        batch: size of the batch if that is dynamic.
        seed: the same seed gives the same arrays.
        sizes: size of every other dynamic dimension, by symbol.
        kind: distribution of floats. "normal": N(0, 1). "uniform": in [0, 1), each sample with its own contrast and
            brightness, as photographs have, so that global pooling does not make all samples alike. "large": N(0, 8²),
            which reaches the flat ends of clipped activations. "impulse": almost zero except at one position of each
            sample, so that an error at another position or at the border stands out. "small": rows of magnitude 1e-3
            and 1e-6, of zeros of both signs, and constant rows. "spread": N(0, m²), with m from 1/8 to 64 for each
            sample.

    Raises:
        UsageError: a dynamic dimension has no size.
    """
    rng = np.random.default_rng(seed)
    drawn = {}
    for spec in specs:
        shape = _concrete(spec, batch, sizes or {})
        if spec.columns:
            drawn[spec.name] = np.stack([_draw(column, shape[:-1], kind, rng) for column in spec.columns], -1)
        elif spec.source is not None:
            drawn[spec.name] = spec.source.draw(shape, spec.dtype, sizes or {}, rng)
        else:
            drawn[spec.name] = _draw(spec, shape, kind, rng)
    return drawn


def rounds(
    specs: Sequence[InputSpec], seed: int, sizes: Sequence[Mapping[str, int]] = (), many: int = 0, most: int = 3
) -> Iterator[Round]:
    """Yield the default rounds of inputs to compare a model on: batch 1 and more, or the fixed batch throughout.

    Args:
        sizes: of the dynamic dimensions other than the batch, by symbol; the rounds take them in turn.
        many: samples of one more round, "spread", for models so small that few values pass through them.
        most: samples of any other round.
    """
    spread: list[tuple[Kind, int]] = [("spread", many)] if many else []
    for number, (kind, batch) in enumerate((*ROUNDS, *spread, LAST)):
        sized = sizes[number % len(sizes)] if sizes else {}
        batch = batch if kind == "spread" else min(batch, most)
        make = partial(draw, specs, batch, (seed, number), sized, kind)
        shapes = {spec.name: _concrete(spec, batch, sized) for spec in specs}
        large = sum(int(np.prod(shape)) for shape in shapes.values()) > LARGE
        arrays = Drawn(shapes, make) if large else make()
        first = next(iter(specs), None)
        place = first.shape.index("batch") if first is not None and "batch" in first.shape else 0
        actual_batch = next((shape[place] for shape in shapes.values() if len(shape) > place), batch)
        shown = "".join(f", {symbol} {size}" for symbol, size in sized.items())
        yield Round(f"{kind}, batch {actual_batch}{shown}", arrays)


def _draw(spec: InputSpec, shape: tuple[int, ...], kind: Kind, rng: np.random.Generator) -> np.ndarray:
    dtype = np.dtype(spec.dtype)
    if dtype.kind in "iu":
        if spec.far is not None and kind in ("large", "spread"):
            drawn = _far(shape, *spec.far, rng).astype(dtype)
        else:
            high = spec.high if spec.far is None or kind in ("normal", "impulse") else min(spec.high, spec.low + 2)
            drawn = _unlike(rng.integers(spec.low, high, shape), spec.low, high - 1).astype(dtype)
        if kind in TELLING and spec.telling:
            _put(spec.telling, drawn, min((drawn.size + (kind == "small")) // 2, 2 * len(spec.telling)), rng)
        return drawn
    if dtype.kind == "b":
        return _unlike(rng.integers(0, 2, shape), 0, 1).astype(dtype)
    if dtype.kind == "c":
        return np.asarray(_floats(shape, kind, rng) + 1j * _floats(shape, kind, rng), dtype)
    if dtype.kind != "f":
        raise UsageError(
            f"Random inputs of dtype {spec.dtype} are not supported.",
            code="PTC2025",
            fix="Give your own inputs with --inputs.",
            where=f"input {spec.name!r}",
        )
    drawn = _floats(shape, kind, rng)
    return (128.0 + 64.0 * drawn if spec.pixels else drawn).astype(dtype)


def _put(telling: Sequence[int], drawn: np.ndarray, count: int, rng: np.random.Generator) -> None:
    """Put telling integers into so many places, none a second time before all of them are there."""
    drawn.flat[rng.permutation(drawn.size)[:count]] = np.resize(rng.permutation(np.array(telling, drawn.dtype)), count)


def _far(shape: tuple[int, ...], lowest: int, highest: int, rng: np.random.Generator) -> np.ndarray:
    """Return integers of all magnitudes, every other one negative."""
    limits = np.where(np.arange(int(np.prod(shape))).reshape(shape) % 2, highest, lowest)
    magnitudes = np.floor((np.abs(limits) + 1.0) ** rng.random(shape)).astype(np.int64)
    return np.asarray(np.clip(np.sign(limits) * magnitudes, lowest, highest))


def _floats(shape: tuple[int, ...], kind: Kind, rng: np.random.Generator) -> np.ndarray:
    if kind == "uniform":
        per_sample = shape[:1] + (1,) * (len(shape) - 1)
        contrast = rng.uniform(0.3, 1.0, per_sample)
        brightness = rng.uniform(0.0, 1.0, per_sample) * (1.0 - contrast)
        return np.asarray(brightness + contrast * rng.random(shape))
    values = np.asarray(rng.standard_normal(shape))
    match kind:
        case "large":
            return np.asarray(values * 8.0)
        case "impulse":
            return np.asarray(values * _impulse(shape, rng))
        case "small":
            return _small(values, rng)
        case "spread":
            return np.asarray(values * 2.0 ** rng.uniform(-3, 6, shape[:1] + (1,) * (len(shape) - 1)))
    return values


def _impulse(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Return factors that are large at one position of each sample, in all its channels if the shape has positions."""
    factors = np.full(shape, 1 / 16)
    if shape:
        places = shape[2:] or shape[1:]
        for sample in range(shape[0]):
            place: list[int | slice] = [int(rng.integers(size)) for size in places]
            factors[(sample, *([slice(None)] if shape[2:] else []), *place)] = IMPULSE
    return factors


def _small(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return small values: each row is one of 1e-3, 1e-6, zeros and a constant in turn; short shapes mix them."""
    if not values.ndim:
        return np.asarray(values * SMALL[0])
    rows = (*values.shape[:-1], 1)
    if values.ndim > 2:
        kinds = (np.arange(int(np.prod(rows))) + rng.integers(len(SMALL))).reshape(rows) % len(SMALL)
    else:
        kinds = rng.integers(len(SMALL) - 1, size=values.shape)
        kinds[:1] = len(SMALL) - 1
    constant = rng.uniform(0.02, 0.06, rows) * rng.choice([-1.0, 1.0], rows)
    return np.where(kinds == len(SMALL) - 1, constant, values * np.take(SMALL, kinds))


def _unlike(array: np.ndarray | np.integer, lowest: int, highest: int) -> np.ndarray:
    """Change one element if chance made all of them the same."""
    array = np.asarray(array)
    if array.size > 1 and lowest < highest and (array == array.flat[0]).all():
        array.flat[0] = lowest if array.flat[0] != lowest else highest
    return array


def _concrete(spec: InputSpec, batch: int, sizes: Mapping[str, int]) -> tuple[int, ...]:
    shape: list[int] = []
    for axis, size in enumerate(spec.shape):
        if isinstance(size, int):
            shape.append(size)
        elif size is not None and size in sizes:
            shape.append(sizes[size])
        elif size is not None and (multiple := re.fullmatch(r"(?:(\d+)\*)?batch", size)):
            shape.append(int(multiple[1] or 1) * batch)
        elif axis == 0 or size == spec.shape[0]:
            shape.append(batch)
        else:
            raise UsageError(
                f"Dimension {axis} of input {spec.name!r} has an unknown size.",
                code="PTC2026",
                where=f"input {spec.name!r} {shape_text(spec.shape)}",
                fix="Give --input-shape.",
            )
    return tuple(shape)


def shape_text(shape: Sequence[int | str | None]) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"


def listed(items: Sequence[object]) -> str:
    return ", ".join(map(repr, items)) or "none"
