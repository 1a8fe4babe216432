"""The stamp of every artifact that pt-convert writes: the facts of its conversion, as JSON.

It is an extra member of the `.keras` zip, a member of a zip at the end of a `.tflite` file, a file in a SavedModel's
`assets.extra` or beside a PyTorch module, or an entry of ONNX's `metadata_props`. Read without TensorFlow, Keras or
onnx.
"""

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from .formats import TORCH_FILES, TORCH_STAMP, protobuf_fields, recognize, says_damaged

ZIP_MEMBER = "converter_stamp.json"
SAVED_MODEL_FILE = Path("assets.extra") / "converter_stamp.json"
ONNX_KEY = "converter_stamp"

_LARGEST = 1 << 26  # bytes
_METADATA_PROPS, _KEY, _VALUE = 14, 1, 2  # onnx.proto: ModelProto.metadata_props, StringStringEntryProto


def stamp_text(stamp: Mapping[str, Any]) -> str:
    """Return the stamp as JSON, the same text for any order of its keys."""
    return json.dumps(stamp, sort_keys=True, ensure_ascii=False)


def read_stamp(path: Path) -> dict[str, Any] | None:
    """Return the stamp of an artifact, or None if there is no artifact, no stamp, or a damaged one."""
    try:
        stamp = json.loads(_stamp_of(path) or "null")
    except Exception as error:
        if says_damaged(error):
            return None
        raise
    return stamp if isinstance(stamp, dict) else None


def bears_our_stamp(path: Path) -> bool:
    """Return whether pt-convert wrote all of an artifact: beside a PyTorch module, people put files of their own."""
    if recognize(path) == "torch" and {entry.name for entry in path.iterdir()} - {*TORCH_FILES, "__pycache__"}:
        return False
    return read_stamp(path) is not None


def _stamp_of(path: Path) -> bytes | None:
    match recognize(path):
        case "tf" | "torch" as format:
            file = path / (SAVED_MODEL_FILE if format == "tf" else TORCH_STAMP)
            return file.read_bytes() if file.is_file() and file.stat().st_size <= _LARGEST else None
        case "keras" | "tflite":
            if not zipfile.is_zipfile(path):
                return None
            with zipfile.ZipFile(path) as archive:
                entry = next((e for e in archive.infolist() if e.filename == ZIP_MEMBER), None)
                return archive.read(entry) if entry is not None and entry.file_size <= _LARGEST else None
        case "onnx":
            with path.open("rb") as opened:
                return _onnx_metadata(opened).get(ONNX_KEY)
    return None


def _onnx_metadata(file: BinaryIO) -> dict[str, bytes]:
    entries = {}
    for number, length in protobuf_fields(file):
        if number == _METADATA_PROPS and length is not None and length <= _LARGEST:
            entry = io.BytesIO(file.read(length))
            fields = {part: entry.read(size) for part, size in protobuf_fields(entry) if size is not None}
            entries[fields.get(_KEY, b"").decode()] = fields.get(_VALUE, b"")
        elif length is not None:
            file.seek(length, 1)
    return entries
