"""Faults of artifacts: tensors changed on disk, and attributes, constants and operands of their operators."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Change = Callable[[np.ndarray], np.ndarray]
Spoil = Callable[[Path], None]


@dataclass(frozen=True)
class Edit:
    """One way to spoil an artifact: the kind of fault, where, and what to do to the file or folder."""

    fault: str
    site: str
    spoil: Spoil


# -- tensors: name, change of one array, and which arrays it can change


def _one_off(array: np.ndarray) -> np.ndarray:
    changed = array.copy()
    place = int(np.abs(array).argmax())
    changed.flat[place] *= np.float32(1.001)
    return changed


def _equal_sizes(array: np.ndarray) -> bool:
    return array.ndim >= 2 and array.shape[0] == array.shape[1] > 1


TENSORS: dict[str, tuple[Change, Callable[[np.ndarray], bool]]] = {
    "one weight off by a thousandth": (_one_off, lambda a: a.any()),
    "tensor of zeros": (np.zeros_like, lambda a: a.any()),
    "kernel flipped": (lambda a: a[::-1], lambda a: a.ndim > 1 and len(a) > 1),
    "first two axes swapped": (lambda a: a.swapaxes(0, 1), _equal_sizes),
    "channels in another order": (lambda a: np.roll(a, 1, -1), lambda a: a.shape[-1:] > (1,)),
    "through float16": (lambda a: a.astype(np.float16).astype(a.dtype), lambda a: a.size > 1),
    "one NaN": (lambda a: np.where(np.arange(a.size).reshape(a.shape) == 0, np.nan, a), lambda a: True),
}


def tensor_edits(tensors: Mapping[str, np.ndarray], write: Callable[[Path, dict], None]) -> Iterator[Edit]:
    """Of every floating point tensor; `write` puts changed ones into the artifact."""
    held = {name: a for name, a in tensors.items() if a.dtype.kind == "f" and a.size}
    for fault, (change, fits) in TENSORS.items():
        for name, array in held.items():
            changed = np.ascontiguousarray(change(array)).astype(array.dtype) if fits(array) else array
            if not np.array_equal(changed, array, equal_nan=True):
                yield Edit(fault, name, lambda path, c={name: changed}: write(path, c))
    by_shape: dict[tuple, str] = {}
    for name, array in held.items():
        other = by_shape.setdefault(array.shape, name)
        if other is not name and not np.array_equal(array, held[other]):
            swapped = {name: held[other], other: array}
            yield Edit("two equal-shaped weights swapped", f"{other}, {name}", lambda path, c=swapped: write(path, c))


# -- Keras files

WORDS = {
    "relu": "gelu", "gelu": "silu", "silu": "relu", "tanh": "sigmoid", "sigmoid": "hard_sigmoid", "linear": "tanh",
    "softmax": "sigmoid", "elu": "selu", "selu": "elu", "valid": "same", "same": "valid", "reflect": "symmetric",
    "constant": "reflect", "nearest": "bilinear", "bilinear": "nearest", "relu6": "relu", "softplus": "relu",
    "hard_silu": "silu", "hard_sigmoid": "sigmoid",
}  # fmt: skip
SIZES = {"filters", "units", "groups", "use_bias", "center", "scale", "kernel_size", "target_shape", "newshape",
         "shape", "renorm", "renorm_momentum", "synchronized", "output_shape", "equation"}  # fmt: skip
NO_FUNCTION = {"name", "dtype", "batch_shape", "trainable", "module", "class_name", "registered_name", "dtype_policy",
               "build_config", "momentum", "seed", "rate", "shared_object_id", "unroll", "ragged", "sparse",
               "batch_size", "optional"}  # fmt: skip
INITIAL = ("_initializer", "_regularizer", "_constraint")


def keras_edits(path: Path) -> Iterator[Edit]:
    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read("config.json"))
    for number, layer in enumerate(config["config"]["layers"]):
        kind = layer["class_name"]
        for keys, value in _literals(layer.get("config", {}), ("config",)):
            yield from _literal_edits(f"{kind} {keys[-1]}", layer["name"], (number, *keys), value)
        for keys, value in _literals(layer["inbound_nodes"], ("inbound_nodes",)):
            yield from _literal_edits(f"{kind} argument", layer["name"], (number, *keys), value)
        for node, called in enumerate(layer["inbound_nodes"]):
            arguments = called["args"]
            if len(arguments) >= 2 and all(_is_tensor(a) for a in arguments[:2]) and arguments[0] != arguments[1]:
                keys = (number, "inbound_nodes", node, "args")
                yield Edit(f"{kind} operands swapped", layer["name"], _in_config(keys, lambda a: [a[1], a[0], *a[2:]]))
    outputs = config["config"]["output_layers"]
    if isinstance(outputs, dict):
        names = list(outputs)
        yield Edit("outputs swapped", ", ".join(names[:2]), _swap_outputs(names[0], names[1]))


def _literals(value: Any, keys: tuple) -> Iterator[tuple[tuple, Any]]:
    if isinstance(value, dict):
        if value.get("class_name") in ("__keras_tensor__", "DTypePolicy"):
            return
        for key, part in value.items():
            if key not in NO_FUNCTION | SIZES and not key.endswith(INITIAL):
                yield from _literals(part, (*keys, key))
    elif isinstance(value, list):
        for position, part in enumerate(value):
            yield from _literals(part, (*keys, position))
    elif isinstance(value, (bool, int, float, str)):
        yield keys, value


def _literal_edits(fault: str, site: str, keys: tuple, value: Any) -> Iterator[Edit]:
    for faulty in _faulty(value):
        yield Edit(fault, f"{site} {value!r} -> {faulty!r}", _in_config(keys, lambda _, f=faulty: f))


def _faulty(value: Any) -> list[Any]:
    match value:
        case bool():
            return [not value]
        case int():
            return [value - 1 if value > 0 else value + 1]
        case float():
            return [value * 10 if abs(value) < 1e-2 else value * 1.01] if value else [0.5]
        case str():
            return [WORDS[value]] if value in WORDS else []
    return []


def _is_tensor(value: Any) -> bool:
    return isinstance(value, dict) and value.get("class_name") == "__keras_tensor__"


def _in_config(keys: tuple, change: Callable[[Any], Any]) -> Spoil:
    def spoil(path: Path) -> None:
        config = _member(path, "config.json")
        read = json.loads(config)
        place = read["config"]["layers"]
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = change(place[keys[-1]])
        _replace_member(path, "config.json", json.dumps(read).encode())

    return spoil


def _swap_outputs(first: str, second: str) -> Spoil:
    def spoil(path: Path) -> None:
        read = json.loads(_member(path, "config.json"))
        outputs = read["config"]["output_layers"]
        outputs[first], outputs[second] = outputs[second], outputs[first]
        _replace_member(path, "config.json", json.dumps(read).encode())

    return spoil


def write_keras_tensors(path: Path, changed: Mapping[str, np.ndarray]) -> None:
    """By the paths of the variables; found in the file, where they have other names, by what they hold."""
    import h5py
    import keras

    before = {weight.path: weight.numpy() for weight in keras.saving.load_model(path, compile=False).weights}
    with io.BytesIO(_member(path, "model.weights.h5")) as buffer, h5py.File(buffer, "r+") as file:
        held = _datasets(file)
        places = {name: next(d for d in held if _equal(d, before[name])) for name in changed}
        for name, place in places.items():
            place[...] = changed[name]
        file.flush()
        _replace_member(path, "model.weights.h5", buffer.getvalue())


def _equal(dataset: Any, array: np.ndarray) -> bool:
    return dataset.shape == array.shape and np.array_equal(dataset[()], array)


def _datasets(group: Any) -> list[Any]:
    import h5py

    found: list[Any] = []
    group.visititems(lambda _, item: found.append(item) if isinstance(item, h5py.Dataset) else None)
    return found


def _member(path: Path, name: str) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(name)


def _replace_member(path: Path, name: str, content: bytes) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for member, held in members.items():
            archive.writestr(member, content if member == name else held)
