"""Open and run a SavedModel, given only its path."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import graph_digest as digests
from .graph_ops import count_operators, find_xla
from .protocol import Fact, Tensors, Value
from .refusals import refuse_files_elsewhere, refuse_operators
from .signatures import chosen_signature
from .tf_trace import trace_function

if TYPE_CHECKING:
    import tensorflow as tf


# Keys of the checkpoint: weights/stem..conv..weight/.ATTRIBUTES/VARIABLE_VALUE
_PREFIX, _SUFFIX = "weights/", "/.ATTRIBUTES/VARIABLE_VALUE"
FROZEN = "weights/"  # of the names of constants that would else be variables


class Reader:
    """Opens a SavedModel from any tool, on the CPU."""

    inputs: list[Fact]
    outputs: list[Fact]

    def __init__(self) -> None:
        import tensorflow as tf

        tf.config.set_visible_devices([], "GPU")  # TF32 and cuDNN add their own rounding
        self._tf = tf

    def open(self, path: Path, signature: str | None = None, *, trusted: bool = False) -> None:
        self._path = path
        if not trusted:
            _check_untrusted(path)
        self._model = self._tf.saved_model.load(str(path))  # keep the model: the signature does not hold the variables
        signatures = self._model.signatures
        self._signature = signatures[chosen_signature(list(signatures), signature)]
        self.inputs = _facts(self._signature.structured_input_signature[1])
        self.outputs = _facts(self._signature.structured_outputs)

    def run(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        results = self._signature(**{name: self._tf.constant(array) for name, array in arrays.items()})
        return {name: result.numpy() for name, result in results.items()}

    def tensors(self) -> Mapping[str, np.ndarray]:
        """Return the checkpoint's variables, under the names given to `write`, and the constants in their place."""
        frozen = {node.name.removeprefix(FROZEN): node for _, node in self._constants(FROZEN)}
        if not (self._path / "variables" / "variables.index").is_file():
            return Tensors(frozen, lambda name: _value(frozen[name]))
        checkpoint = self._tf.train.load_checkpoint(str(self._path / "variables" / "variables"))
        keys = sorted(key for key in checkpoint.get_variable_to_shape_map() if key.endswith(_SUFFIX))
        by_name = {_variable_name(key): key for key in keys}

        def read(name: str) -> np.ndarray:
            return np.asarray(checkpoint.get_tensor(by_name[name])) if name in by_name else _value(frozen[name])

        return Tensors({**frozen, **by_name}, read)

    @property
    def frozen(self) -> bool:
        """Whether constants hold what would else be variables."""
        return any(True for _ in self._constants(FROZEN))

    def held(self) -> dict[str, np.ndarray]:
        constants = {place + node.name: _value(node) for place, node in self._constants()}
        numbers = {name: array for name, array in constants.items() if array.dtype.kind not in "OSU"}
        return {**self.tensors(), **numbers}

    def _constants(self, begin: str = "") -> Iterator[tuple[str, Any]]:
        """Yield each constant whose name begins so, behind the path of the function that holds it."""
        definition = self._signature.graph.as_graph_def()
        parts = [("", definition.node), *((f.signature.name + "/", f.node_def) for f in definition.library.function)]
        for place, nodes in parts:
            for node in nodes:
                if node.op == "Const" and node.name.startswith(begin):
                    yield place, node

    def trace(self, arrays: Mapping[str, np.ndarray]) -> Iterator[Value]:
        return trace_function(self._signature, arrays)

    def graph_digest(self) -> str:
        weights = getattr(self._model, "weights", None)
        return digests.tensorflow_digest(self._signature, weights if isinstance(weights, dict) else {})

    def operators(self) -> dict[str, int]:
        return count_operators(self._signature.graph)

    def xla_functions(self) -> list[str]:
        return find_xla(self._signature.graph)


def _check_untrusted(path: Path) -> None:
    """Refuse a SavedModel that could do more than compute, before any of it runs."""
    from tensorflow.core.protobuf import saved_model_pb2
    from tensorflow.python.framework import op_def_registry

    refuse_files_elsewhere(path)
    saved = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    refuse_operators(saved, op_def_registry.get)


def _facts(specs: Mapping[str, tf.TensorSpec]) -> list[Fact]:
    """Return name, shape and dtype of each spec, sorted by name: TensorFlow keeps no other order."""
    return [
        (name, None if spec.shape.rank is None else spec.shape.as_list(), spec.dtype.name)
        for name, spec in sorted(specs.items())
    ]


def _value(node: Any) -> np.ndarray:
    import tensorflow as tf

    return tf.make_ndarray(node.attr["value"].tensor)


def _key(name: str) -> str:
    """Return the checkpoint key of a variable; TensorFlow writes a dot in a name as two and a slash as `.S`."""
    return _PREFIX + name.replace(".", "..").replace("/", ".S") + _SUFFIX


def _variable_name(key: str) -> str:
    """Return the name of a variable from its checkpoint key, the reverse of `_key`."""
    name = key.removeprefix(_PREFIX).removesuffix(_SUFFIX)
    return re.sub(r"\.[.S]", lambda escape: "." if escape[0] == ".." else "/", name)
