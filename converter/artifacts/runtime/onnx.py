"""Open and run an ONNX file, given only its path."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from . import graph_digest as digests
from . import onnx_file
from .onnx_file import OnnxFile, place_outside
from .onnx_graph import all_graphs, initializers, nested_graphs
from .protocol import Fact, Tensors, Value, fingerprint
from .refusals import messages, refuse_onnx_operators

_AT_ONCE = 48  # values of a trace held in memory together; each group is another run of the graph


ARGUMENTS = {"Clip": (1, 2), "Pad": (1, 2, 3), "Resize": (1, 2, 3)}  # inputs that are not data: bounds, widths, scales


BOOKKEEPING = frozenset({"Constant", "Identity"})  # they hold or name a value: no work on a tensor


class Reader:
    """Opens an `.onnx` file from any tool with onnxruntime on the CPU."""

    inputs: list[Fact]
    outputs: list[Fact]

    def __init__(self) -> None:
        import onnx
        import onnxruntime

        self._onnx, self._runtime = onnx, onnxruntime

    def open(self, path: Path, signature: str | None = None, *, trusted: bool = False) -> None:
        if signature is not None:
            raise ValueError("an ONNX file has no signatures")
        self._path = path
        if not trusted:
            refuse_onnx_operators(OnnxFile(path).model, path.parent)
        options = self._runtime.SessionOptions()
        options.add_session_config_entry("session.load_model_format", "ONNX")  # whatever the name ends in
        self._session = self._runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs = [_fact(node) for node in self._session.get_inputs()]
        self.outputs = [_fact(node) for node in self._session.get_outputs()]

    def _file(self) -> OnnxFile:
        """Return the file's content, with the data of all tensors but those of the main graph's initializers."""
        file = OnnxFile(self._path)
        for part in (part for node in (*file.model.graph.node, *file.model.functions) for part in messages(node)):
            if part.DESCRIPTOR.name == "TensorProto" and part.data_location == part.EXTERNAL:
                self._onnx.external_data_helper.load_external_data_for_tensor(part, str(self._path.parent))
                part.ClearField("data_location")
                del part.external_data[:]
        return file

    def run(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = [name for name, _, _ in self.outputs]
        return dict(zip(names, self._session.run(names, dict(arrays)), strict=True))

    def tensors(self) -> Mapping[str, np.ndarray]:
        """Return the initializers of the main graph, except those that only configure an operator."""
        file = self._file()
        places: dict[str, set[bool]] = {}
        for node in file.model.graph.node:
            for position, name in enumerate(node.input):
                places.setdefault(name, set()).add(position in ARGUMENTS.get(node.op_type, ()))
        held = {tensor.name: tensor for tensor in file.model.graph.initializer if places.get(tensor.name) != {True}}
        return Tensors(held, lambda name: file.array(held[name]))

    def held(self) -> dict[str, np.ndarray]:
        """Return all initializers and constants of the main graph, its branches and loops, and of local functions."""
        file = self._file()
        arrays: dict[str, np.ndarray] = {}

        def add(name: str, array: np.ndarray) -> None:
            if array.dtype.kind not in "OSU":
                arrays[name if name not in arrays else f"{name}#{len(arrays)}"] = array

        for graph in all_graphs(file.model):
            for tensor in initializers(graph):
                add(tensor.name, file.array(tensor))
            for node in graph.node:
                for attribute in node.attribute if node.op_type == "Constant" else ():
                    if not attribute.ref_attr_name:
                        add(node.output[0], self._constant(attribute))
        return arrays

    def _constant(self, attribute: Any) -> np.ndarray:
        """Return the value of a Constant; text and sparse tensors as arrays that are not numeric."""
        value = self._onnx.helper.get_attribute_value(attribute)
        if attribute.type == attribute.TENSOR:
            return self._onnx.numpy_helper.to_array(value)
        return np.asarray(value, np.float32 if attribute.type in (attribute.FLOAT, attribute.FLOATS) else None)

    def trace(self, arrays: Mapping[str, np.ndarray]) -> Iterator[Value]:
        """Yield the results of the main graph's operators, each made an output: onnxruntime returns only outputs."""
        file = self._file()
        model = file.model
        given = {value.name for value in model.graph.input} | {tensor.name for tensor in model.graph.initializer}
        makers = {name: node for node in model.graph.node for name in node.output if name and name not in given}
        names = [name for name, node in makers.items() if node.op_type != "Constant"]
        del model.graph.output[:]
        model.graph.output.extend(self._onnx.ValueInfoProto(name=name) for name in names)
        options = self._runtime.SessionOptions()
        options.graph_optimization_level = self._runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
        kept = self._beside(file, options)
        session = self._runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        for start in range(0, len(names), _AT_ONCE):
            group = names[start : start + _AT_ONCE]
            for name, array in zip(group, session.run(group, dict(arrays)), strict=True):
                if isinstance(array, np.ndarray) and array.dtype.kind in "fiub":
                    yield name, makers[name].op_type, list(array.shape), fingerprint(array)
        del kept  # the session reads them until here

    def _beside(self, file: OnnxFile, options: Any) -> list[Any]:
        """Give the large weights that are outside of the model to the session: no message can hold them all."""
        names, values = [], []
        for tensor in file.model.graph.initializer:
            if not tensor.external_data:
                continue
            array = file.array(tensor)
            if array.nbytes > onnx_file.LARGE and tensor.data_type in onnx_file.DTYPES:
                names.append(tensor.name)
                values.append(self._runtime.OrtValue.ortvalue_from_numpy(array))
                place_outside(tensor, "in memory", 0, array.nbytes)
            else:
                tensor.CopyFrom(self._onnx.numpy_helper.from_array(array, tensor.name))
        options.add_external_initializers(names, values)
        return values

    def graph_digest(self) -> str:
        file = self._file()
        arrays = ((tensor.name, partial(file.array, tensor)) for tensor in file.model.graph.initializer)
        return digests.onnx_digest(file.model.graph.node, arrays)

    def operators(self) -> dict[str, int]:
        """Count each operator of the graph, without `BOOKKEEPING`.

        Operators of branches and loops count once, those of a local function once per call.
        """
        model = OnnxFile(self._path).model
        functions = {(function.domain, function.name): function for function in model.functions}

        @cache
        def count_function(key: tuple[str, str]) -> Counter[str]:
            return count(functions[key])

        def count(root: Any) -> Counter[str]:
            total: Counter[str] = Counter()
            for graph in nested_graphs(root):
                for node in graph.node:
                    if (key := (node.domain, node.op_type)) in functions:
                        total += count_function(key)
                    elif node.op_type not in BOOKKEEPING:
                        total[node.op_type] += 1
            return total

        return dict(sorted(count(model.graph).items(), key=lambda item: (-item[1], item[0])))

    def xla_functions(self) -> list[str]:
        return []


def _fact(node: Any) -> Fact:
    """Return name, shape and dtype of an input or output.

    Onnxruntime's types read `tensor(float)`, its named dimensions are strings.
    """
    kind = node.type.removeprefix("tensor(").removesuffix(")")
    dtype = {"float": "float32", "double": "float64"}.get(kind, kind)
    return node.name, [size if isinstance(size, int) else None for size in node.shape], dtype
