"""Open and run a `.tflite` file with LiteRT's interpreter, as devices do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .protocol import Fact, Value, fingerprint
from .refusals import refuse_tflite_parts
from .signatures import chosen_signature
from .tflite_content import custom_operators, external_files, graph_digest, real_tensors

_GENERATED = "serving_default_"  # prefix of input names in a file without signatures


class Reader:
    """Opens a `.tflite` file from any tool; quantized inputs and outputs become floats by their scales."""

    inputs: list[Fact]
    outputs: list[Fact]

    def __init__(self) -> None:
        from ai_edge_litert import interpreter

        self._litert = interpreter

    def open(self, path: Path, signature: str | None = None, *, trusted: bool = False) -> None:
        self._path = path
        if not trusted:
            content = path.read_bytes()
            refuse_tflite_parts(custom_operators(content), external_files(content))
        self._interpreter = self._interpret()
        signatures = self._interpreter.get_signature_list()
        name = chosen_signature(signatures, signature) if signatures or signature else None
        self._signature = name
        ins, outs = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        if name is None:
            self._ins = {_bare(detail["name"]): detail for detail in ins}
            self._outs = {_bare(detail["name"]): detail for detail in outs}
        else:
            runner = self._interpreter.get_signature_runner(name)
            self._ins, self._outs = runner.get_input_details(), runner.get_output_details()
        if len(self._ins) < len(ins) and name is None:
            raise ValueError("two of its inputs have the same name")
        self.inputs = [_fact(name, detail) for name, detail in self._ins.items()]
        self.outputs = [_fact(name, detail) for name, detail in self._outs.items()]

    def use_plain_kernels(self) -> None:
        """Run the opened file without XNNPACK from now on, as some devices do."""
        resolver = self._litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        self._interpreter = self._litert.Interpreter(str(self._path), experimental_op_resolver_type=resolver)

    def _interpret(self, keep_all: bool = False) -> Any:
        return self._litert.Interpreter(model_path=str(self._path), experimental_preserve_all_tensors=keep_all)

    def run(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self._run(self._interpreter, arrays)

    def _run(self, interpreter: Any, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        given = {name: _quantized(array, self._ins[name]) for name, array in arrays.items()}
        if self._signature is not None:
            results = interpreter.get_signature_runner(self._signature)(**given)
        else:
            for name, array in given.items():
                interpreter.resize_tensor_input(self._ins[name]["index"], array.shape)
            interpreter.allocate_tensors()
            for name, array in given.items():
                interpreter.set_tensor(self._ins[name]["index"], array)
            interpreter.invoke()
            results = {name: interpreter.get_tensor(detail["index"]) for name, detail in self._outs.items()}
        return {name: _dequantized(results[name], detail) for name, detail in self._outs.items()}

    def tensors(self) -> dict[str, np.ndarray]:
        """Return the constants of the graph: TFLite has no variables."""
        return real_tensors(self._path.read_bytes())

    held = tensors

    def trace(self, arrays: Mapping[str, np.ndarray]) -> Iterator[Value]:
        interpreter = self._interpret(keep_all=True)
        self._run(interpreter, arrays)
        makers: dict[int, str] = {}
        for operator in interpreter._get_ops_details():  # a delegate's operators are listed again, at the end
            for index in operator["outputs"]:
                makers.setdefault(int(index), operator["op_name"])
        for detail in interpreter.get_tensor_details():
            if detail["index"] not in makers:
                continue
            try:
                array = _dequantized(interpreter.get_tensor(detail["index"]), detail)
            except ValueError:  # in a branch that did not run
                continue
            if array.dtype.kind in "fiub":
                name = detail["name"].partition(";")[0]
                yield name, makers[detail["index"]], list(array.shape), fingerprint(array)

    def graph_digest(self) -> str:
        return graph_digest(self._path.read_bytes())

    def operators(self) -> dict[str, int]:
        counted = Counter(operator["op_name"] for operator in self._interpret()._get_ops_details())
        return dict(sorted(counted.items(), key=lambda item: (-item[1], item[0])))

    def xla_functions(self) -> list[str]:
        return []


def _bare(name: str) -> str:
    return name.removeprefix(_GENERATED).rpartition(":")[0] or name


def _fact(name: str, detail: Mapping[str, Any]) -> Fact:
    shape = detail.get("shape_signature")
    sizes = detail["shape"] if shape is None or not len(shape) else shape
    dtype = "float32" if detail["quantization"][0] else np.dtype(detail["dtype"]).name
    return name, [None if size < 0 else int(size) for size in sizes], dtype


def _quantized(array: np.ndarray, detail: Mapping[str, Any]) -> np.ndarray:
    """Quantize an array: real = scale * (quantized - zero point).

    https://ai.google.dev/edge/litert/models/quantization_spec
    """
    scale, zero = detail["quantization"]
    if not scale:
        return array.astype(detail["dtype"], copy=False)
    limits = np.iinfo(detail["dtype"])
    return np.clip(np.round(array / scale) + zero, limits.min, limits.max).astype(detail["dtype"])


def _dequantized(array: np.ndarray, detail: Mapping[str, Any]) -> np.ndarray:
    parameters = detail["quantization_parameters"]
    scales, zeros = parameters["scales"], parameters["zero_points"]
    if not len(scales) or array.dtype.kind not in "iu":
        return array
    if len(scales) > 1:
        shape = [1] * array.ndim
        shape[parameters["quantized_dimension"]] = -1
        scales, zeros = scales.reshape(shape), zeros.reshape(shape)
    return ((array.astype(np.float32) - zeros) * scales).astype(np.float32)
