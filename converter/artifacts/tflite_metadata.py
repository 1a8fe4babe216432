"""Describe a `.tflite` file's inputs and outputs in TFLite Metadata, which the libraries of devices read.

The description is a FlatBuffer within the file; class names are a text file in the zip at the end.
https://github.com/tensorflow/tflite-support/blob/master/tensorflow_lite_support/metadata/metadata_schema.fbs
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LABELS_FILE = "labels.txt"

_ENTRY = "TFLITE_METADATA"
_IDENTIFIER = b"M001"
_PARSER = "1.0.0"  # the first that reads all that is written here
_ALIGNMENT = 16  # of constants, in TFLite's schema
# metadata_schema.fbs: members of unions and enumerations
_NORMALIZATION, _IMAGE, _AXIS_LABELS = 1, 2, 2
_COLORS = {"rgb": 1, "gray": 2}


@dataclass(frozen=True)
class TensorDescription:
    """What libraries should know of an input or output.

    Attributes:
        colors: of an image: "rgb" or "gray".
        mean, std: of the pixels of an image, 0 to 255, one for all channels or one for each: the input is
            (pixel - mean) / std.
        has_labels: whether positions along the last dimension have the names in `LABELS_FILE`.
    """

    colors: str | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    has_labels: bool = False


def add_metadata(content: bytes, name: str, described: Mapping[str, TensorDescription]) -> bytes:
    """Return the model of a `.tflite` file with TFLite Metadata; a zip at its end is left out.

    Args:
        name: of the model.
        described: inputs and outputs by their names in the signature.
    """
    import flatbuffers
    import numpy as np
    from ai_edge_litert import schema_py_generated as schema

    class Aligned(flatbuffers.Builder):
        """Aligns constants as TFLite's schema demands, which FlatBuffers' object interface does not."""

        def StartVector(self, size: int, count: int, alignment: int) -> Any:  # noqa: N802
            return super().StartVector(size, count, _ALIGNMENT if size == 1 else alignment)

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content))
    (signature,) = model.signatureDefs
    graph = model.subgraphs[signature.subgraphIndex]
    given, made = (
        [names[index] for index in indices]
        for indices, names in (
            (graph.inputs, {one.tensorIndex: one.name.decode() for one in signature.inputs}),
            (graph.outputs, {one.tensorIndex: one.name.decode() for one in signature.outputs}),
        )
    )
    held = schema.BufferT()
    held.data = np.frombuffer(_metadata(name, given, made, described), np.uint8)
    entry = schema.MetadataT()
    entry.name, entry.buffer = _ENTRY, len(model.buffers)
    model.buffers.append(held)
    model.metadata = [*(model.metadata or []), entry]
    builder = Aligned(len(content) + len(held.data) + 1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _metadata(
    name: str, inputs: Sequence[str], outputs: Sequence[str], described: Mapping[str, TensorDescription]
) -> bytes:
    """Return a ModelMetadata; the numbers are the fields' places in their tables."""
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    given, made = (
        _tables(builder, [_tensor(builder, each, described.get(each)) for each in names]) for names in (inputs, outputs)
    )
    graph = _table(builder, {2: given, 3: made})
    fields = {0: builder.CreateString(name), 3: _tables(builder, [graph]), 7: builder.CreateString(_PARSER)}
    builder.Finish(_table(builder, fields), _IDENTIFIER)
    return bytes(builder.Output())


def _tensor(builder: Any, name: str, described: TensorDescription | None) -> int:
    """Add a TensorMetadata."""
    fields = {0: builder.CreateString(name)}
    if described is not None and described.colors is not None:
        image = _table(builder, {}, {0: _COLORS[described.colors]})
        fields[3] = _table(builder, {1: image}, {0: _IMAGE})
    if described is not None and described.mean:
        mean, std = (_floats(builder, numbers) for numbers in (described.mean, described.std))
        unit = _table(builder, {1: _table(builder, {0: mean, 1: std})}, {0: _NORMALIZATION})
        fields[4] = _tables(builder, [unit])
        ends = [sorted(((0 - m) / s, (255 - m) / s)) for m, s in zip(described.mean, described.std, strict=True)]
        least, most = (_floats(builder, [pair[end] for pair in ends]) for end in (0, 1))
        fields[5] = _table(builder, {0: most, 1: least})
    if described is not None and described.has_labels:
        fields[6] = _tables(builder, [_table(builder, {0: builder.CreateString(LABELS_FILE)}, {2: _AXIS_LABELS})])
    return _table(builder, fields)


def _table(builder: Any, offsets: Mapping[int, int], bytes_: Mapping[int, int] = {}) -> int:
    """Add a table of what was added before, and of one-byte numbers."""
    builder.StartObject(max([*offsets, *bytes_], default=0) + 1)
    for field, offset in offsets.items():
        builder.PrependUOffsetTRelativeSlot(field, offset, 0)
    for field, number in bytes_.items():
        builder.PrependInt8Slot(field, number, 0)
    return builder.EndObject()


def _tables(builder: Any, offsets: Sequence[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return builder.EndVector()


def _floats(builder: Any, numbers: Sequence[float]) -> int:
    builder.StartVector(4, len(numbers), 4)
    for number in reversed(numbers):
        builder.PrependFloat32(number)
    return builder.EndVector()
