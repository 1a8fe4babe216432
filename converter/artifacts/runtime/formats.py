"""Recognize the format of a file or folder by its content, not its name, without heavy imports."""

import errno
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal

Format = Literal["tf", "keras", "onnx", "tflite", "torch"]

# onnx.proto, ModelProto: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
_IR_VERSION, _GRAPH, _OPSET_IMPORT = 1, 7, 8
# schema.fbs: https://github.com/tensorflow/tensorflow/blob/master/tensorflow/compiler/mlir/lite/schema/schema.fbs
_TFLITE_IDENTIFIER = b"TFL3"
# The files of a PyTorch module. Any folder may hold a program: the stamp tells ours.
TORCH_SOURCE, TORCH_WEIGHTS, TORCH_STAMP = "model.py", "weights.pt", "converter_stamp.json"
TORCH_FILES = (TORCH_SOURCE, TORCH_WEIGHTS, TORCH_STAMP)


def recognize(path: Path) -> Format | None:
    if path.is_dir():
        if (path / "saved_model.pb").is_file():
            return "tf"
        return "torch" if all((path / name).is_file() for name in TORCH_FILES) else None
    if not path.is_file():
        return None
    with path.open("rb") as file:
        if file.read(8)[4:] == _TFLITE_IDENTIFIER:  # before a zip: ours and those with metadata end in one
            return "tflite"
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                return "keras" if {"config.json", "metadata.json"} <= set(archive.namelist()) else None
        except Exception as error:
            if says_damaged(error):
                return None
            raise
    with path.open("rb") as file:
        numbers = set()
        try:
            for number, length in protobuf_fields(file):
                numbers.add(number)
                if length is not None:
                    file.seek(length, 1)
        except ValueError:
            return None
    return "onnx" if {_IR_VERSION, _GRAPH, _OPSET_IMPORT} <= numbers else None


def says_damaged(error: Exception) -> bool:
    """Tell whether a read error means damaged content, such as any error that a damaged zip can raise."""
    damage = (ValueError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error)
    return isinstance(error, damage) or (isinstance(error, OSError) and error.errno == errno.EINVAL)  # seeks to -1


def protobuf_fields(file: BinaryIO, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, int | None]]:
    """Yield (number, length) of each field of one message; the caller reads or skips the `length` bytes.

    The message is the file, or its bytes from `start` to `stop`.

    Length is None for a field that is not length-delimited: its value has already been read. Raises ValueError if the
    file is not a protobuf message. https://protobuf.dev/programming-guides/encoding
    """
    size = file.seek(0, 2) if stop is None else stop
    file.seek(start)
    while file.tell() < size:
        tag = _varint(file)
        number, wire_type = tag >> 3, tag & 7
        length = None
        match wire_type:
            case 0:
                _varint(file)
            case 1 | 5:
                file.seek(8 if wire_type == 1 else 4, 1)
            case 2:
                length = _varint(file)
            case _:
                raise ValueError("no such wire type")
        if number == 0 or file.tell() + (length or 0) > size:
            raise ValueError("not a protobuf message")
        yield number, length


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise ValueError("ends in mid-number")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise ValueError("a number of more than 64 bits")
