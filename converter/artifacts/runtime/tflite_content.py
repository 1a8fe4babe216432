"""Read the tensors of a `.tflite` file by the FlatBuffers schema, without an interpreter.

https://github.com/google-ai-edge/LiteRT/blob/main/tflite/converter/schema/schema.fbs
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .graph_digest import is_weight
from .refusals import EXPANSION_LIMIT, MOST_FILES
from .stamp import ZIP_MEMBER

_DTYPES = {
    "FLOAT32": "<f4", "FLOAT16": "<f2", "INT32": "<i4", "UINT8": "|u1", "INT64": "<i8", "BOOL": "|b1", "INT16": "<i2",
    "COMPLEX64": "<c8", "INT8": "|i1", "FLOAT64": "<f8", "COMPLEX128": "<c16", "UINT64": "<u8", "UINT32": "<u4",
    "UINT16": "<u2",
}  # fmt: skip


@dataclass(frozen=True)
class StoredTensor:
    """A tensor with data in the file.

    Attributes:
        scales, zero_points: of a quantized tensor, one for all or one for each position along `axis`.
        start, stop: where its bytes are.
    """

    name: str
    array: np.ndarray
    scales: np.ndarray
    zero_points: np.ndarray
    axis: int
    start: int
    stop: int

    def real(self) -> np.ndarray:
        """Return the real numbers: scale * (quantized - zero point)."""
        if not self.is_quantized:
            return self.array
        zeros = self.zero_points.reshape(self.steps().shape)
        return ((self.array.astype(np.float32) - zeros) * self.steps()).astype(np.float32)

    @property
    def is_quantized(self) -> bool:
        return bool(self.scales.size) and self.array.dtype.kind in "iu"

    def steps(self) -> np.ndarray:
        """Return the difference between neighboring real numbers, in a shape that broadcasts to the array's."""
        shape = [1] * self.array.ndim
        if self.scales.size > 1:
            shape[self.axis] = -1
        return self.scales.reshape(shape)


def model_bytes(content: bytes) -> bytes:
    """Return the file without the zip archive at its end, which holds the stamp and files for libraries of devices."""
    stream = io.BytesIO(content)
    if not zipfile.is_zipfile(stream):
        return content
    with zipfile.ZipFile(stream) as archive:
        return content[: min((entry.header_offset for entry in archive.infolist()), default=len(content))]


def attached_files(content: bytes) -> dict[str, bytes]:
    """Return the files for libraries of devices in the zip archive at the end of a file of ours."""
    stream = io.BytesIO(content)
    if not zipfile.is_zipfile(stream):
        return {}
    with zipfile.ZipFile(stream) as archive:
        held = [entry for entry in archive.infolist() if entry.filename != ZIP_MEMBER]
        if sum(entry.file_size for entry in held) > len(content):
            raise ValueError("its zip archive holds more than the file")
        return {entry.filename: archive.read(entry) for entry in held}


def stored_tensors(content: bytes) -> Iterator[StoredTensor]:
    """Yield every tensor that has data, of all subgraphs, each under a name of its own.

    Raises:
        ValueError: the file is damaged.
    """
    from ai_edge_litert import schema_py_generated as schema

    names = {value: name for name, value in vars(schema.TensorType).items() if not name.startswith("_")}
    model = _model(content)
    taken: Counter[str] = Counter()
    total = 0
    for graph in map(model.Subgraphs, range(model.SubgraphsLength())):
        for tensor in map(graph.Tensors, range(graph.TensorsLength())):
            start, stop = _place(model.Buffers(tensor.Buffer()))
            dtype = _DTYPES.get(names[tensor.Type()])
            if start == stop or dtype is None:
                continue
            shape = tuple(tensor.Shape(i) for i in range(tensor.ShapeLength()))
            if stop > len(content) or int(np.prod(shape)) * np.dtype(dtype).itemsize != stop - start:
                raise ValueError("a tensor's size is not that of its data")
            if (total := total + stop - start) > EXPANSION_LIMIT * len(content):
                raise ValueError("its tensors share their data without measure")
            name = (tensor.Name() or b"").decode(errors="replace").partition(";")[0]  # a fused one has several
            taken[name] += 1
            unique = name if taken[name] == 1 else f"{name}#{taken[name]}"
            array = np.frombuffer(content, dtype, int(np.prod(shape)), start).reshape(shape)
            yield StoredTensor(unique, array, *_quantization(tensor.Quantization()), start, stop)


def real_tensors(content: bytes) -> dict[str, np.ndarray]:
    """Return the constants of a file, dequantized, with the slopes of its leaky ReLUs, by name."""
    return {tensor.name: tensor.real() for tensor in stored_tensors(content)} | dict(slopes(content))


def slopes(content: bytes) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the slope of every leaky ReLU, which may be a weight, as (name, array of one element)."""
    from ai_edge_litert import schema_py_generated as schema

    model = _model(content)
    for graph in map(model.Subgraphs, range(model.SubgraphsLength())):
        for operator in map(graph.Operators, range(graph.OperatorsLength())):
            code = model.OperatorCodes(operator.OpcodeIndex()).BuiltinCode()
            if code == schema.BuiltinOperator.LEAKY_RELU and (table := operator.BuiltinOptions()) is not None:
                options = schema.LeakyReluOptions()
                options.Init(table.Bytes, table.Pos)
                name = (graph.Tensors(operator.Outputs(0)).Name() or b"").decode(errors="replace")
                yield f"{name.partition(';')[0]}/alpha", np.array([options.Alpha()], np.float32)


@dataclass(frozen=True)
class Operator:
    """An operator, and the values that it reads and makes, constants left out.

    Attributes:
        is_dynamic: a value has a size that is not fixed.
        types: TFLite's names of their types.
    """

    name: str
    most_axes: int
    is_dynamic: bool
    types: frozenset[str]


def operators(content: bytes) -> Iterator[Operator]:
    """Yield every operator of all subgraphs."""
    from ai_edge_litert import schema_py_generated as schema

    kinds, types = (
        {value: name for name, value in vars(kind).items() if not name.startswith("_")}
        for kind in (schema.BuiltinOperator, schema.TensorType)
    )
    model = _model(content)
    for graph in map(model.Subgraphs, range(model.SubgraphsLength())):
        for operator in map(graph.Operators, range(graph.OperatorsLength())):
            places = [operator.Outputs(i) for i in range(operator.OutputsLength())]
            places += [operator.Inputs(i) for i in range(operator.InputsLength())]
            tensors = [graph.Tensors(i) for i in places if i >= 0]
            values = [t for t in tensors if len(set(_place(model.Buffers(t.Buffer())))) == 1]
            yield Operator(
                kinds[model.OperatorCodes(operator.OpcodeIndex()).BuiltinCode()],
                max((t.ShapeLength() for t in values), default=0),
                any(t.ShapeSignature(i) < 0 for t in values for i in range(t.ShapeSignatureLength())),
                frozenset(types[t.Type()] for t in values),
            )


def operator_tensors(content: bytes) -> Iterator[tuple[list[str], list[str]]]:
    """Yield the names of the results of each operator, and of its constants, each as the file has it."""
    model = _model(content)
    for graph in map(model.Subgraphs, range(model.SubgraphsLength())):
        names = [(graph.Tensors(i).Name() or b"").decode(errors="replace") for i in range(graph.TensorsLength())]
        for operator in map(graph.Operators, range(graph.OperatorsLength())):
            results = [operator.Outputs(i) for i in range(operator.OutputsLength())]
            inputs = [i for n in range(operator.InputsLength()) if (i := operator.Inputs(n)) >= 0]
            held = [i for i in inputs if len(set(_place(model.Buffers(graph.Tensors(i).Buffer())))) > 1]
            yield [names[i] for i in results if i >= 0], [names[i] for i in held]


def _place(buffer: Any) -> tuple[int, int]:
    """Return where a buffer's bytes begin and end; large models have them behind the FlatBuffer."""
    if buffer.Offset() > 1:
        if not buffer.DataIsNone():
            raise ValueError("a tensor's data is in two places")
        return buffer.Offset(), buffer.Offset() + buffer.Size()
    if not buffer.DataLength():
        return 0, 0
    table = buffer._tab
    start = table.Vector(table.Offset(4))
    return start, start + buffer.DataLength()


def _quantization(found: Any) -> tuple[np.ndarray, np.ndarray, int]:
    if found is None or not found.ScaleLength():
        return np.zeros(0, np.float32), np.zeros(0, np.int64), 0
    zeros = found.ZeroPointAsNumpy() if found.ZeroPointLength() else np.zeros(found.ScaleLength(), np.int64)
    return found.ScaleAsNumpy(), zeros, found.QuantizedDimension()


def graph_digest(content: bytes) -> str:
    """Return the digest of the model without its zip archive and its weights, which are compared one by one.

    Raises:
        ValueError: the file is damaged.
    """
    bare = model_bytes(content)
    return digest_without(bare, [(one.start, one.stop) for one in stored_tensors(bare) if is_weight(one.array)])


def digest_without(content: bytes, parts: Iterable[tuple[int, int]]) -> str:
    """Return the digest of a file with zeros in some of its parts, each from a byte to another."""
    digest, held, at = hashlib.sha256(), memoryview(content), 0
    for start, stop in sorted(parts):
        digest.update(held[at:start])
        digest.update(bytes(max(stop - max(start, at), 0)))
        at = max(at, stop)
    digest.update(held[at:])
    return digest.hexdigest()


def custom_operators(content: bytes) -> set[str]:
    """Return the names of the operators that are not TFLite's own."""
    model = _model(content)
    codes = (model.OperatorCodes(i).CustomCode() for i in range(model.OperatorCodesLength()))
    return {code.decode(errors="replace") for code in codes if code}


def external_files(content: bytes) -> set[str]:
    """Return the names of the files in which a model has weights."""
    model = _model(content)
    groups = map(model.ExternalBufferGroups, range(model.ExternalBufferGroupsLength()))
    return {(group.Name() or b"(no file)").decode(errors="replace") for group in groups}


def _model(content: bytes) -> Any:
    """Return the root of a file, or raise ValueError if it lacks what LiteRT takes for granted."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(content)
    graphs, signatures = model.SubgraphsLength(), model.SignatureDefsLength()
    counts = (graphs, signatures, model.OperatorCodesLength(), model.ExternalBufferGroupsLength())
    if not graphs or max(counts) > MOST_FILES:
        raise ValueError(f"it has {graphs} graphs, {signatures} signatures and {counts[2]} kinds of operators")
    if any(signature.SubgraphIndex() >= graphs for signature in map(model.SignatureDefs, range(signatures))):
        raise ValueError("a signature is of a graph that it does not have")
    return model
