"""Read the weights of a written artifact, and write it again with others; its graph stays as it is, byte for byte."""

from __future__ import annotations

import hashlib
import io
import json
import math
import shutil
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from converter.errors import ConversionError

from . import keras_writer
from .runtime import graph_digest as digests
from .runtime import stamp as stamps
from .runtime.formats import TORCH_SOURCE, TORCH_STAMP, TORCH_WEIGHTS, Format
from .runtime.keras import _CONFIG, _canonical_config
from .runtime.refusals import refuse_keras_parts, refuse_onnx_operators

WEIGHTS = "model.weights.h5"
DAMAGE = (ValueError, KeyError, AttributeError, TypeError, RuntimeError)  # `Refused` is a ValueError


class WrittenArtifact(ABC):
    """An artifact that pt-convert wrote.

    Attributes:
        tensors: by name, in the artifact's shapes and types.
    """

    tensors: Mapping[str, np.ndarray]

    @abstractmethod
    def graph_digest(self) -> str:
        """Return the digest of its graph."""

    def rest_digest(self) -> str:
        """Return the digest of all but the tensors."""
        return self.graph_digest()

    @abstractmethod
    def write(self, path: Path, arrays: Mapping[str, np.ndarray], stamp: Mapping[str, Any]) -> None:
        """Write it to `path` with the values of some tensors replaced, and a new stamp."""


def open_written(path: Path, format: Format, names: Sequence[str]) -> WrittenArtifact:
    """Open an artifact whose tensors have these names, in this order.

    Raises:
        ConversionError: it is not as pt-convert writes it.
    """
    try:
        return _KINDS[format](path, names)
    except (*DAMAGE, OSError, zipfile.BadZipFile) as error:
        raise ConversionError(
            f"The artifact is not as pt-convert wrote it: {error}",
            code="PTC4045",
            where=str(path),
            fix="Convert the checkpoint again.",
        ) from error


class _KerasFile(WrittenArtifact):
    def __init__(self, path: Path, names: Sequence[str]):
        refuse_keras_parts(path)
        self._path = path
        with zipfile.ZipFile(path) as archive:
            self._weights = bytearray(archive.read(WEIGHTS))
        self._places = dict(self._placed(names))
        self.tensors = {
            name: np.frombuffer(self._weights, dtype, math.prod(shape), offset).reshape(shape)
            for name, (offset, shape, dtype) in self._places.items()
        }

    def _placed(self, names: Sequence[str]) -> Iterator[tuple[str, tuple[int, tuple[int, ...], np.dtype]]]:
        """Yield where in the file the values of each tensor are.

        A layer's weights are numbered, in a group below those of the layers that hold it; each group has the layer's
        name. A tensor's name is these names, and its own.
        """
        import h5py

        by_layer: dict[str, list[str]] = {}
        for name in names:
            by_layer.setdefault(name.rpartition("/")[0], []).append(name)
        with h5py.File(io.BytesIO(self._weights), "r") as opened:
            for path, group in _groups(opened):
                own = by_layer.pop(path, []) if len(group) else []
                if len(own) != len(group):
                    raise ValueError(f"{path} has {len(group)} tensors, not {len(own)}")
                for number, name in enumerate(own):
                    held = group[str(number)]
                    offset = held.id.get_offset()
                    if held.size and offset is None:
                        raise ValueError(f"{name} is not stored in one piece")
                    yield name, (offset or 0, held.shape, held.dtype)
        if by_layer:
            raise ValueError(f"it has no weights for {next(iter(by_layer))}")

    def graph_digest(self) -> str:
        with zipfile.ZipFile(self._path) as archive:
            return digests.config_digest(json.loads(_canonical_config(archive.read(_CONFIG))))

    def write(self, path: Path, arrays: Mapping[str, np.ndarray], stamp: Mapping[str, Any]) -> None:
        weights = bytearray(self._weights)
        for name, array in arrays.items():
            offset, _, _ = self._places[name]
            held = array.tobytes()
            weights[offset : offset + len(held)] = held
        keras_writer.write_again(self._path, path, {WEIGHTS: bytes(weights)}, stamp)


def _groups(part: Any, names: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield each group of a layer's own weights with the names of the layers down to it."""
    own = part.get("vars")
    if own is not None and part.name != "/":
        names = (*names, str(own.attrs["name"]))
        yield "/".join(names), own
    for key in part:
        if key != "vars":
            yield from _groups(part[key], names)


class _SavedModel(WrittenArtifact):
    """The digest of a frozen one's graph covers its weights, which are constants in it."""

    def __init__(self, path: Path, names: Sequence[str]):
        from .runtime.saved_model import Reader

        self._path, self._names = path, names
        self._reader = Reader()
        self._reader.open(path)
        self.tensors = self._reader.tensors()

    def graph_digest(self) -> str:
        return self._reader.graph_digest()

    def rest_digest(self) -> str:
        from . import saved_model_writer

        return saved_model_writer.digest_without_weights(self._path) if self._reader.frozen else self.graph_digest()

    def write(self, path: Path, arrays: Mapping[str, np.ndarray], stamp: Mapping[str, Any]) -> None:
        from . import saved_model_writer

        write = saved_model_writer.write_frozen_again if self._reader.frozen else saved_model_writer.write_again
        write(self._path, path, {n: arrays.get(n, self.tensors[n]) for n in self._names}, stamp)


def _readers(arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
    return ((name, partial(np.asarray, array)) for name, array in arrays.items())


class _OnnxFile(WrittenArtifact):
    """The digest of its graph covers small weights too, so it changes with them."""

    def __init__(self, path: Path, names: Sequence[str]):
        import onnx

        self._path, self._names = path, set(names)
        self._model = onnx.load(str(path), "protobuf", load_external_data=False)
        refuse_onnx_operators(self._model, path.parent)
        folder = str(path.parent)
        self._arrays = {t.name: onnx.numpy_helper.to_array(t, folder) for t in self._model.graph.initializer}
        self.tensors = {name: self._arrays[name] for name in names}

    def graph_digest(self) -> str:
        return digests.onnx_digest(self._model.graph.node, _readers(self._arrays))

    def rest_digest(self) -> str:
        rest = {name: array for name, array in self._arrays.items() if name not in self._names}
        return digests.onnx_digest(self._model.graph.node, _readers(rest))

    def write(self, path: Path, arrays: Mapping[str, np.ndarray], stamp: Mapping[str, Any]) -> None:
        import onnx

        from . import onnx_writer

        model = type(self._model)()
        model.CopyFrom(self._model)
        beside = path.with_name(f"{path.name}.data")
        for tensor in model.graph.initializer:
            held = {entry.key: entry.value for entry in tensor.external_data}
            if held and not beside.exists():
                shutil.copyfile(self._path.with_name(held["location"]), beside)
            if tensor.name not in arrays:
                continue
            if held:
                with beside.open("r+b") as file:
                    file.seek(int(held.get("offset", 0)))
                    file.write(arrays[tensor.name].tobytes())
            else:
                same = onnx.numpy_helper.from_array(arrays[tensor.name], tensor.name)
                for kind in ("float_data", "double_data", "int32_data", "int64_data"):
                    tensor.ClearField(kind)
                tensor.raw_data = same.raw_data
        digest = digests.onnx_digest(model.graph.node, _readers(self._arrays | dict(arrays)))
        entry = next(entry for entry in model.metadata_props if entry.key == stamps.ONNX_KEY)
        entry.value = stamps.stamp_text(digests.stamped(stamp, digest))
        path.write_bytes(model.SerializeToString())
        onnx_writer.name_by_content(path)


class _TorchModule(WrittenArtifact):
    def __init__(self, path: Path, names: Sequence[str]):
        import torch

        from converter.checkpoint.pickle_loader import refuse_more_than_tensors

        refuse_more_than_tensors(path / TORCH_WEIGHTS)
        self._path = path
        self._state = torch.load(path / TORCH_WEIGHTS, map_location="cpu", weights_only=True)
        self.tensors = {name: self._state[name].numpy() for name in self._state}

    def graph_digest(self) -> str:
        return hashlib.sha256((self._path / TORCH_SOURCE).read_bytes()).hexdigest()

    def write(self, path: Path, arrays: Mapping[str, np.ndarray], stamp: Mapping[str, Any]) -> None:
        import torch

        path.mkdir()
        shutil.copyfile(self._path / TORCH_SOURCE, path / TORCH_SOURCE)
        held = {name: torch.from_numpy(arrays[name]) if name in arrays else t for name, t in self._state.items()}
        torch.save(held, path / TORCH_WEIGHTS)
        (path / TORCH_STAMP).write_text(stamps.stamp_text(stamp), encoding="utf-8")


class _LiteRTFile(WrittenArtifact):
    """The digest of its graph covers small weights too."""

    def __init__(self, path: Path, names: Sequence[str]):
        from .runtime.tflite_content import attached_files, model_bytes, stored_tensors

        file = path.read_bytes()
        self._content, self._attached = model_bytes(file), attached_files(file)
        self._stored = {tensor.name: tensor for tensor in stored_tensors(self._content)}
        self.tensors = {name: self._stored[name].array for name in names}

    def graph_digest(self) -> str:
        from .runtime.tflite_content import graph_digest

        return graph_digest(self._content)

    def rest_digest(self) -> str:
        from .runtime.tflite_content import digest_without

        return digest_without(self._content, [(self._stored[n].start, self._stored[n].stop) for n in self.tensors])

    def write(self, path: Path, arrays: Mapping[str, np.ndarray], stamp: Mapping[str, Any]) -> None:
        from . import tflite_writer
        from .runtime.tflite_content import graph_digest

        filled = bytearray(self._content)
        for name, array in arrays.items():
            filled[self._stored[name].start : self._stored[name].stop] = array.tobytes()
        content = bytes(filled)
        text = stamps.stamp_text(digests.stamped(stamp, graph_digest(content)))
        tflite_writer.write_content(path, content, text, self._attached)


_KINDS: dict[Format, type] = {
    "keras": _KerasFile,
    "tf": _SavedModel,
    "onnx": _OnnxFile,
    "torch": _TorchModule,
    "tflite": _LiteRTFile,
}
