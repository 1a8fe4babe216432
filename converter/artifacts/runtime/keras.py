"""Open and run a Keras file, given only its path."""

from __future__ import annotations

import contextlib
import functools
import json
import re
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from . import graph_digest as digests
from .graph_ops import count_operators, find_xla
from .protocol import Fact, Refused, Tensors, Value
from .refusals import refuse_keras_parts
from .tf_trace import trace_function

_CONFIG, _METADATA = "config.json", "metadata.json"
_EXPORTED = "Such a model can be verified once it is exported as a SavedModel, with model.export(...)"


def _canonical_config(text: bytes) -> bytes:
    """Replace what differs between two runs in a config.

    Ids of shared objects are memory addresses, and operations without a name (`keras.ops`) are numbered by how many
    there have been in the process.
    """
    config = json.loads(text)
    _renumber_shared_objects(config, {})
    if "layers" in config.get("config", {}):
        _rename_operations(config["config"])
    return json.dumps(config).encode()


def _renumber_shared_objects(config: Any, numbers: dict[int, int]) -> None:
    if isinstance(config, dict):
        if "shared_object_id" in config:
            config["shared_object_id"] = numbers.setdefault(config["shared_object_id"], len(numbers) + 1)
        config = list(config.values())
    if isinstance(config, list):
        for part in config:
            _renumber_shared_objects(part, numbers)


def _rename_operations(functional: dict[str, Any]) -> None:
    taken = {layer["name"] for layer in functional["layers"] if not _is_operation(layer)}
    names: dict[str, str] = {}
    for layer in functional["layers"]:
        if _is_operation(layer):
            stem = re.sub(r"_\d+$", "", layer["name"])
            number = 0
            while (name := f"{stem}_{number}" if number else stem) in taken:
                number += 1
            taken.add(name)
            names[layer["name"]] = layer["name"] = layer["config"]["name"] = name
    for layer in functional["layers"]:
        _rename_histories(layer["inbound_nodes"], names)
    _rename_ends(functional["input_layers"], names)
    _rename_ends(functional["output_layers"], names)


def _is_operation(layer: dict[str, Any]) -> bool:
    return layer["module"].startswith(("keras.ops", "keras.src.ops"))


def _rename_histories(nodes: Any, names: dict[str, str]) -> None:
    if isinstance(nodes, dict):
        history = nodes.get("keras_history")
        if history:
            history[0] = names.get(history[0], history[0])
        nodes = list(nodes.values())
    if isinstance(nodes, list):
        for part in nodes:
            _rename_histories(part, names)


def _rename_ends(ends: Any, names: dict[str, str]) -> None:
    if isinstance(ends, list) and len(ends) == 3 and isinstance(ends[0], str):
        ends[0] = names.get(ends[0], ends[0])
    elif isinstance(ends, list | dict):
        for end in ends.values() if isinstance(ends, dict) else ends:
            _rename_ends(end, names)


def _reason(message: str) -> str:
    reason = message.rpartition("Exception encountered: ")[2].partition("\n")[0]
    if "custom class" in reason:
        reason += f" {_EXPORTED}"
    return reason


class Reader:
    """Opens a `.keras` file with stock Keras on TensorFlow, without custom objects, in safe mode, on the CPU."""

    inputs: list[Fact]
    outputs: list[Fact]

    def __init__(self) -> None:
        import keras
        import tensorflow as tf

        tf.config.set_visible_devices([], "GPU")  # TF32 and cuDNN add their own rounding
        self._keras, self._tf = keras, tf

    def open(self, path: Path, signature: str | None = None, *, trusted: bool = False) -> None:
        if signature is not None:
            raise ValueError("a Keras file has no signatures")
        self._path = path
        if not trusted:
            try:
                refuse_keras_parts(path)
            except Refused as error:
                raise Refused(f"{error}. {_EXPORTED}") from error
        with contextlib.ExitStack() as stack:
            named = path
            if path.suffix != ".keras":  # Keras decides by the suffix
                named = Path(stack.enter_context(tempfile.TemporaryDirectory()), "model.keras")
                named.symlink_to(path.resolve())
            try:
                model = self._keras.saving.load_model(named, compile=False)
            except TypeError as error:  # its message quotes the whole config
                raise ValueError(_reason(str(error))) from error
        self.take(model)

    def take(self, model: Any) -> None:
        """Read a model that is open."""
        if isinstance(model, self._keras.Sequential):
            model = self._keras.Model(model.inputs, model.outputs, name=model.name)
        if not hasattr(model, "output_names"):
            raise ValueError(f"{type(model).__name__} is not a functional model: its inputs and outputs are not known")
        self.model, self._called = model, False
        self.__dict__.pop("_function", None)  # of the previous artifact
        input_names = [tensor.name for tensor in self._keras.tree.flatten(model.input)]
        self.inputs = self._facts(model.input, input_names)
        self.outputs = self._facts(model.output, model.output_names)

    def _facts(self, structure: Any, names: list[str]) -> list[Fact]:
        """Return the facts of each tensor, named by its dict key if `structure` is a dict, else by `names`."""
        facts: list[Fact] = []
        taken = set()
        for (keys, tensor), name in zip(self._keras.tree.flatten_with_path(structure), names, strict=True):
            name = stem = str(keys[-1]) if isinstance(structure, dict) else name
            number = 1
            while name in taken:  # two outputs of one layer
                name, number = f"{stem}_{number}", number + 1
            taken.add(name)
            facts.append((name, list(tensor.shape), tensor.dtype))
        return facts

    def pack(self, arrays: Mapping[str, np.ndarray]) -> Any:
        """Return what the model is called with."""
        given = [self._tf.constant(arrays[name]) for name, _, _ in self.inputs]
        return self._keras.tree.pack_sequence_as(self.model.input, given)

    def run(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Call the model the first time, then run it compiled, as `predict` does.

        A call holds all layers' results until it ends.
        """
        given = self.pack(arrays)
        results = self._function(given) if self._called else self.model(given, training=False)
        self._called = True
        flat = self._keras.tree.flatten(results)
        return {name: np.asarray(result) for (name, _, _), result in zip(self.outputs, flat, strict=True)}

    def tensors(self) -> Mapping[str, np.ndarray]:
        weights = self.model.weights  # not the states of random generators
        by_path = {weight.path: weight for weight in weights}
        if len(by_path) < len(weights):
            raise ValueError("two weights have the same path")
        return Tensors(by_path, lambda path: by_path[path].numpy())

    def held(self) -> dict[str, np.ndarray]:
        arrays: dict[str, np.ndarray] = {}
        for weight in self.model.weights:
            name, number = weight.path, 1
            while name in arrays:
                number += 1
                name = f"{weight.path}#{number}"
            arrays[name] = weight.numpy()
        return arrays

    def trace(self, arrays: Mapping[str, np.ndarray]) -> Iterator[Value]:
        specs = self._function.structured_input_signature[0][0]
        names = [spec.name for spec in self._tf.nest.flatten(specs)]
        by_name = dict(zip(names, (arrays[name] for name, _, _ in self.inputs), strict=True))
        return trace_function(self._function, by_name)

    def graph_digest(self) -> str:
        with zipfile.ZipFile(self._path) as archive:
            return digests.config_digest(json.loads(_canonical_config(archive.read(_CONFIG))))

    def operators(self) -> dict[str, int]:
        return count_operators(self._graph)

    def xla_functions(self) -> list[str]:
        return find_xla(self._graph)

    @property
    def _graph(self) -> Any:
        return self._function.graph

    @functools.cached_property
    def _function(self) -> Any:
        specs = [self._tf.TensorSpec(shape, dtype, f"given_{i}") for i, (_, shape, dtype) in enumerate(self.inputs)]
        structure = self._keras.tree.pack_sequence_as(self.model.input, specs)
        traced = self._tf.function(lambda inputs: self.model(inputs, training=False), autograph=False)
        return traced.get_concrete_function(structure)
