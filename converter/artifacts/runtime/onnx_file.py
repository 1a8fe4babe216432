"""Read an ONNX file without its large tensors, and write one from them, so that no more than one is in memory.

https://protobuf.dev/programming-guides/encoding, https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .formats import protobuf_fields

LARGE = 1 << 20  # bytes of a tensor that stays in the file
_GRAPH, _INITIALIZER = 7, 5  # ModelProto.graph, GraphProto.initializer
_DIMS, _DATA_TYPE, _NAME, _RAW_DATA = 1, 2, 8, 9  # of TensorProto
_PLAIN = frozenset({_DIMS, _DATA_TYPE, _NAME, _RAW_DATA})
# Types that numpy has too, by their numbers in TensorProto.DataType.
DTYPES = {1: "<f4", 2: "|u1", 3: "|i1", 5: "<i2", 6: "<i4", 7: "<i8", 9: "|b1", 10: "<f2", 11: "<f8"}


class OnnxFile:
    """The content of an `.onnx` file.

    Attributes:
        model: the ModelProto. Of large initializers of the main graph it has name, type and sizes, and where in this
            file the data is, as external data.
    """

    def __init__(self, path: Path):
        import onnx

        self._onnx, self._path = onnx, path
        with path.open("rb") as file:
            self.model = onnx.ModelProto.FromString(self._without_data(file))

    def array(self, tensor: Any) -> np.ndarray:
        """Return the values of a tensor of the model; only these are read."""
        place = {entry.key: entry.value for entry in tensor.external_data}
        if place.get("location") != self._path.name or tensor.data_type not in DTYPES:
            held = type(tensor)()
            held.CopyFrom(tensor)  # reading external data puts it into the message
            return np.asarray(self._onnx.numpy_helper.to_array(held, str(self._path.parent)))
        with self._path.open("rb") as file:
            file.seek(int(place.get("offset", 0)))
            data = file.read(int(place.get("length", -1)))
        return np.frombuffer(data, DTYPES[tensor.data_type]).reshape(tuple(tensor.dims))

    def _without_data(self, file: BinaryIO) -> bytes:
        return b"".join(
            _delimited(_GRAPH, self._graph(file, start, stop)) if number == _GRAPH else _read(file, begin, stop)
            for number, begin, start, stop in _fields(file, 0, file.seek(0, 2))
        )

    def _graph(self, file: BinaryIO, start: int, stop: int) -> bytes:
        parts = []
        for number, begin, inner, end in _fields(file, start, stop):
            short = self._initializer(file, inner, end) if number == _INITIALIZER and end - inner > LARGE else None
            parts.append(_read(file, begin, end) if short is None else _delimited(_INITIALIZER, short))
        return b"".join(parts)

    def _initializer(self, file: BinaryIO, start: int, stop: int) -> bytes | None:
        """Return a tensor that says where its data is; None for one that holds more than name, type, sizes and data."""
        fields = list(_fields(file, start, stop))
        data = [(inner, end) for number, _, inner, end in fields if number == _RAW_DATA]
        if len(data) != 1 or not _PLAIN.issuperset(number for number, *_ in fields):
            return None
        tensor = self._onnx.TensorProto.FromString(
            b"".join(_read(file, begin, end) for number, begin, _, end in fields if number != _RAW_DATA)
        )
        if tensor.data_type not in DTYPES:
            return None
        ((inner, end),) = data
        place_outside(tensor, self._path.name, inner, end - inner)
        return bytes(tensor.SerializeToString())


def place_outside(tensor: Any, location: str, offset: int, length: int) -> None:
    """Say that the data of a tensor is in a file."""
    del tensor.external_data[:]
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    tensor.data_location = type(tensor).EXTERNAL


def write_model(model: Any, data: Mapping[str, Callable[[], bytes]], path: Path) -> None:
    """Write a ModelProto, with the bytes that its serialization has, but with no more than one large tensor in memory.

    Afterwards the model says of each of these where in the file its data is.

    Args:
        model: its initializers named in `data` have no data, only its length as external data.
        data: functions that return the initializers' data.
    """
    before, after = _around(model, _GRAPH)
    graph_before, graph_after = _around(model.graph, _INITIALIZER)
    tensors: list[tuple[bytes, int | None, bytes, Any]] = []
    for tensor in model.graph.initializer:
        if tensor.data_location != tensor.EXTERNAL:
            tensors.append((_delimited(_INITIALIZER, tensor.SerializeToString()), None, b"", tensor))
            continue
        (length,) = (int(entry.value) for entry in tensor.external_data if entry.key == "length")
        bare = type(tensor)()
        bare.CopyFrom(tensor)
        del bare.external_data[:]
        bare.ClearField("data_location")
        head, tail = _around(bare, _RAW_DATA)
        head += _key(_RAW_DATA, length)
        tensors.append((_key(_INITIALIZER, len(head) + length + len(tail)) + head, length, tail, tensor))
    size = len(graph_before) + len(graph_after)
    size += sum(len(head) + (length or 0) + len(tail) for head, length, tail, _ in tensors)
    with path.open("wb") as file:
        file.write(before + _key(_GRAPH, size) + graph_before)
        for head, wanted, tail, tensor in tensors:
            file.write(head)
            if wanted is not None:
                content = data[tensor.name]()
                if len(content) != wanted:
                    raise ValueError(f"{tensor.name} has {len(content)} bytes, not {wanted}")
                place_outside(tensor, path.name, file.tell(), wanted)
                file.write(content)
            file.write(tail)
        file.write(graph_after + after)


def _around(message: Any, number: int) -> tuple[bytes, bytes]:
    """Return the serialized fields before the one of a number, and those after it."""
    before, after = type(message)(), type(message)()
    before.CopyFrom(message)
    after.CopyFrom(message)
    for field, _ in message.ListFields():
        if field.number >= number:
            before.ClearField(field.name)
        if field.number <= number:
            after.ClearField(field.name)
    return before.SerializeToString(), after.SerializeToString()


def _fields(file: BinaryIO, start: int, stop: int) -> list[tuple[int, int, int, int]]:
    """Return number, begin, begin of the content and end of each field of a message."""
    found, begin = [], start
    for number, length in protobuf_fields(file, start, stop):
        inner = file.tell()
        end = inner + (length or 0)
        found.append((number, begin, inner, end))
        begin = file.seek(end)
    return found


def _read(file: BinaryIO, start: int, stop: int) -> bytes:
    file.seek(start)
    return file.read(stop - start)


def _delimited(number: int, content: bytes) -> bytes:
    return _key(number, len(content)) + content


def _key(number: int, length: int) -> bytes:
    """Return the bytes before the content of a field of some length."""
    return _varint(number << 3 | 2) + _varint(length)


def _varint(value: int) -> bytes:
    groups = []
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])
