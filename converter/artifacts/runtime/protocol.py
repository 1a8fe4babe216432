"""Messages between a `Runner` and its child: a JSON header, then the raw bytes of the arrays that it lists.

Never pickles. Each message is the header's length (8 bytes, little endian), the header, the arrays one after another.
"""

import json
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, Any

import numpy as np

Fact = tuple[str, list[int | None] | None, str]  # of an input or output: name, shape (None: dynamic), dtype
Value = tuple[str, str, list[int], np.ndarray]  # within an artifact: name, operator, shape, fingerprint
FIGURES = ("mean", "deviation", "least", "greatest", "mean_magnitude")
LONGEST_AXIS = 4096  # a longer axis gets no slice means

_LENGTH = struct.Struct("<Q")


class Refused(ValueError):
    """The artifact holds what an untrusted one may not."""


class Tensors(Mapping[str, np.ndarray]):
    """Arrays by name that are made on each read, so that they need not all be in memory.

    Args:
        kept: bytes of arrays, first come, first served, that are kept once they were read.
    """

    def __init__(self, names: Iterable[str], read: Callable[[str], np.ndarray], kept: int = 0):
        self._names = dict.fromkeys(names)
        self._read = read
        self._left = kept
        self._kept: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(name)
        if name in self._kept:
            return self._kept[name]
        array = self._read(name)
        if array.nbytes <= self._left:
            self._left -= array.nbytes
            self._kept[name] = array
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names


def send(stream: IO[bytes], content: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> None:
    """Send a message, or raise TypeError for an array not of numbers, BrokenPipeError if the other side is gone."""
    arrays = {name: np.asarray(array, order="C") for name, array in (arrays or {}).items()}
    facts = [[name, _dtype_name(name, array), array.shape] for name, array in arrays.items()]
    header = json.dumps({"content": content, "arrays": facts}).encode()
    stream.write(_LENGTH.pack(len(header)))
    stream.write(header)
    for array in arrays.values():
        stream.write(array.reshape(-1).view(np.uint8).data)
    stream.flush()


def receive(stream: IO[bytes]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the next message, or raise EOFError if the other side is gone, also in mid-message."""
    length = np.empty(_LENGTH.size, np.uint8)
    _fill(stream, length)
    header = np.empty(_LENGTH.unpack(length.tobytes())[0], np.uint8)
    _fill(stream, header)
    facts = json.loads(header.tobytes())
    arrays = {}
    for name, dtype, shape in facts["arrays"]:
        arrays[name] = np.empty(shape, _dtype(dtype))
        _fill(stream, arrays[name].reshape(-1).view(np.uint8))
    return facts["content"], arrays


def _fill(stream: IO[bytes], buffer: np.ndarray) -> None:
    unread = buffer.data
    while unread.nbytes:
        count = stream.readinto(unread)  # type: ignore[attr-defined]  # typeshed lacks it
        if not count:
            raise EOFError
        unread = unread[count:]


def _dtype_name(name: str, array: np.ndarray) -> str:
    if array.dtype.kind in "OSU":
        raise TypeError(f"{name!r} holds {array.dtype}, not numbers")
    return array.dtype.name if array.dtype.kind == "V" else array.dtype.str


def _dtype(name: str) -> np.dtype:
    try:
        return np.dtype(name)
    except TypeError:  # bfloat16 and float8: ml_dtypes registers them with numpy
        import ml_dtypes  # noqa: F401

        return np.dtype(name)


def fingerprint(array: np.ndarray) -> np.ndarray:
    """Return figures in float64 that identify an array, however its axes and their positions are permuted.

    First its `FIGURES`; then, for each axis of `slices`, the sorted means of every slice across it and the sorted means
    of the magnitudes. No figure changes by more than the largest change of an element.
    """
    array = np.asarray(array)
    if array.dtype.kind == "c":
        array = np.abs(array)
    wide = array.astype(np.float64, copy=False)
    if not wide.size:
        return np.zeros(len(FIGURES))
    magnitudes = np.abs(wide)
    with np.errstate(invalid="ignore", over="ignore"):
        found = [np.array([wide.mean(), wide.std(), wide.min(), wide.max(), magnitudes.mean()])]
        for axis, _, _ in slices(wide.shape):
            others = tuple(a for a in range(wide.ndim) if a != axis)
            found += [np.sort(wide.mean(others)), np.sort(magnitudes.mean(others))]
    return np.concatenate(found)


def slices(shape: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Yield (axis, start, stop) for each axis that has slice means in the fingerprint of an array of this shape."""
    start = len(FIGURES)
    if 0 in shape:
        return
    for axis, size in enumerate(shape):
        if 1 < size <= LONGEST_AXIS and len(shape) > 1:
            yield axis, start, start + 2 * size
            start += 2 * size
