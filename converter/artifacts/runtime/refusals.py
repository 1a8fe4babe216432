"""What an untrusted artifact may hold, checked before any of it is given to a runtime.

Each check is a list of what is allowed; the rest is refused by name. `--trust artifact` leaves the checks out.
"""

from __future__ import annotations

import io
import json
import os
import re
import stat
import struct
import zipfile
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from itertools import chain
from pathlib import Path
from typing import Any

from .protocol import Refused

MOST_FILES = 10_000
EXPANSION_LIMIT = 100  # size that a file may unfold to, as a multiple of its own
SMALL_EXPANSION = 1 << 20  # bytes that any file may unfold to
SMALL_GRAPH = 100_000  # operators that any file may unfold to
SHOWN = 8  # names in a message


def refuse_unknown(kind: str, found: Iterable[str]) -> None:
    """Refuse `found` by name, unless it is empty."""
    if names := sorted(set(found)):
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        raise Refused(f"it holds {kind} that may reach beyond the model: {', '.join(names[:SHOWN])}{more}")


def refuse_expansion(bodies: Iterable[tuple[Hashable, Iterable[Hashable]]]) -> None:
    """Refuse functions that a runtime would unfold to far more operators than the file has, or without end.

    Args:
        bodies: of each function, what it is called by, and what each of its operators calls, if anything.
    """
    calls: dict[Hashable, list[Hashable]] = {}
    for name, called in bodies:
        calls.setdefault(name, []).extend(called)
    try:
        order = list(
            TopologicalSorter({name: {*called} & calls.keys() for name, called in calls.items()}).static_order()
        )
    except CycleError as error:
        raise Refused("its functions call themselves") from error
    sizes: dict[Hashable, int] = {}
    for name in order:
        sizes[name] = sum(sizes.get(called, 1) for called in calls[name])
    limit = max(EXPANSION_LIMIT * sum(map(len, calls.values())), SMALL_GRAPH)
    if sizes and max(sizes.values()) > limit:
        raise Refused(f"its functions unfold to more than {limit} operators")


def refuse_files_elsewhere(folder: Path) -> None:
    """Refuse links that leave a folder, and whatever is neither a file nor a folder.

    The links of a Hugging Face hub cache, which stay in its `blobs`, pass.
    """
    root, count = folder.resolve(), 0
    for place, folders, files in os.walk(root):
        for path in (Path(place, name) for name in (*folders, *files)):
            count += 1
            real = path.resolve()
            if path.is_symlink() and not any(real.is_relative_to(home) for home in _homes(root)):
                raise Refused(f"{path.name!r} in it is a link that leads out of its folder")
            if not (real.is_dir() or real.is_file()):
                raise Refused(f"{path.name!r} in it is neither a file nor a folder")
    if count > MOST_FILES:
        raise Refused(f"it holds {count} files")


def _homes(root: Path) -> list[Path]:
    caches = (part.parent.parent for part in (root, *root.parents) if part.parent.name == "snapshots")
    return [root, *(cache / "blobs" for cache in caches)]


# -- SavedModels


def _names(*texts: str) -> frozenset[str]:
    return frozenset(name for text in texts for name in text.split())


# Stateless operators on numbers are allowed by their registration; these are the others. None opens a file, an address
# or a library, or calls Python.
_STATEFUL = _names(
    # variables, tables in memory, stacks, counters of random numbers
    """VarHandleOp VariableV2 Variable ReadVariableOp _ReadVariablesOp AssignVariableOp AssignAddVariableOp
    AssignSubVariableOp VarIsInitializedOp VariableShape DisableCopyOnRead DestroyResourceOp HashTableV2
    MutableHashTableV2 AnonymousHashTable AnonymousMutableHashTable MutableDenseHashTableV2 InitializeTableV2
    LookupTableFindV2 LookupTableInsertV2 LookupTableImportV2 LookupTableExportV2 LookupTableSizeV2 StackV2 StackPushV2
    StackPopV2 StackCloseV2 Empty DeepCopy GuaranteeConst DeviceIndex RandomUniform RandomStandardNormal TruncatedNormal
    RandomUniformInt RandomShuffle RandomGamma RandomPoissonV2 Multinomial ParameterizedTruncatedNormal
    StatefulStandardNormalV2 StatefulTruncatedNormal StatefulUniform StatefulUniformFullInt StatefulUniformInt
    StatefulRandomBinomial RngReadAndSkip RngSkip NonDeterministicInts StatelessRandomGetAlg
    SampleDistortedBoundingBoxV2 CudnnRNNV3 CudnnRNNV2 CudnnRNN Assert CheckNumerics CheckNumericsV2""",
    # control flow and calls
    """PartitionedCall StatefulPartitionedCall If StatelessIf While StatelessWhile Case StatelessCase For MapDefun
    SymbolicGradient Enter RefEnter""",
    # texts that configure the operator, not names of files
    """PreventGradient DataFormatDimMap DataFormatVecPermute Einsum GatherNd ScatterNd ScatterNdAdd ScatterNdSub
    ScatterNdMax ScatterNdMin ScatterNdUpdate ScatterNdNonAliasingAdd ImageProjectiveTransformV2
    ImageProjectiveTransformV3 ScaleAndTranslate ScaleAndTranslateGrad ExtractGlimpse ExtractGlimpseV2
    RaggedTensorToTensor DenseToDenseSetOperation DenseToSparseSetOperation SparseToSparseSetOperation
    DestroyTemporaryVariable TemporaryVariable UniformQuantizedConvolution UniformQuantizedConvolutionHybrid
    _FusedConv2D _FusedConv3D _FusedMatMul _FusedBatchNormEx _FusedDepthwiseConv2dNative""",
    # strings and images in memory
    """DecodeJpeg DecodePng DecodeGif DecodeBmp DecodeImage DecodeAndCropJpeg DecodeRaw DecodeBase64 EncodeBase64
    EncodePng EncodeJpeg ExtractJpegShape DecodeCSV ParseExample ParseExampleV2 ParseSingleExample AsString Substr
    StringJoin StringSplit StringSplitV2 StringStrip StringLower StringUpper StringLength StringNGrams StringFormat
    StringToNumber StringToHashBucket StringToHashBucketFast StringToHashBucketStrong ReduceJoin RegexReplace
    RegexFullMatch StaticRegexReplace StaticRegexFullMatch UnicodeDecode UnicodeDecodeWithOffsets UnicodeEncode
    UnicodeTranscode UnsortedSegmentJoin""",
)
_FAMILIES = re.compile(
    r"TensorList\w+|EmptyTensorList|TensorArray\w*V3|TensorScatter\w+|TensorMap\w+|EmptyTensorMap|"
    r"Ragged(Tensor\w+|Gather)|Optional(FromValue|GetValue|HasValue|None)|"
    r"Resource(Apply|SparseApply|Scatter|Gather|StridedSlice)\w*"
)
_OF_SAVERS = _names("SaveV2 RestoreV2 MergeV2Checkpoints ShardedFilename")


def refuse_operators(saved: Any, registered: Any) -> None:
    """Refuse a SavedModel with operators that are not allowed, or with files that its graph reads.

    Args:
        saved: the SavedModel message.
        registered: returns the OpDef of an operator by its name, or None.
    """
    unknown: set[str] = set()
    for meta_graph in saved.meta_graphs:
        graph = meta_graph.graph_def
        functions = {function.signature.name for function in graph.library.function}
        unknown |= {name for name in functions if registered(name) is not None}  # which of both would run?
        allowed_in_saver = _functions_of_saver(meta_graph)
        savers = set() if meta_graph.HasField("object_graph_def") else _nodes_of_saver(meta_graph)
        for node in graph.node:
            saves = node.name in savers and node.op in _OF_SAVERS
            if not (node.op in functions or saves or _allowed(node.op, registered)):
                unknown.add(node.op)
        for function in graph.library.function:
            for node in function.node_def:
                if node.op in functions or _allowed(node.op, registered):
                    continue
                if not (function.signature.name in allowed_in_saver and node.op in _OF_SAVERS):
                    unknown.add(node.op)
    refuse_unknown("operators", unknown)
    for meta_graph in saved.meta_graphs:
        bodies: list[Any] = [(f.signature.name, f.node_def) for f in meta_graph.graph_def.library.function]
        bodies.append((None, meta_graph.graph_def.node))
        refuse_expansion((name, chain.from_iterable(map(_functions_named, nodes))) for name, nodes in bodies)
    refuse_unknown("assets", (asset.filename for meta in saved.meta_graphs for asset in meta.asset_file_def))


def _allowed(operator: str, registered: Any) -> bool:
    """Return whether an operator is of the list, or stateless and can take neither texts nor handles."""
    from tensorflow.core.framework import types_pb2 as types

    if operator in _STATEFUL or _FAMILIES.fullmatch(operator):
        return True
    definition = registered(operator)
    if definition is None or definition.is_stateful:
        return False
    handles = {types.DT_STRING, types.DT_RESOURCE, types.DT_VARIANT}
    if any(argument.type in handles for argument in (*definition.input_arg, *definition.output_arg)):
        return False
    free = ("func", "list(func)", "string", "list(string)")
    return not any(attr.type in free and not attr.allowed_values.list.s for attr in definition.attr)


def _functions_of_saver(meta_graph: Any) -> set[str]:
    """Return functions that only the nodes call that save and restore a checkpoint, which loading does not run."""
    saver = meta_graph.saver_def
    ends = {_node_name(saver.save_tensor_name), _node_name(saver.restore_op_name)}
    called: set[str] = set()
    others = set(meta_graph.object_graph_def.concrete_functions)
    for node in meta_graph.graph_def.node:
        (called if node.name in ends else others).update(_functions_named(node))
    for function in meta_graph.graph_def.library.function:
        for node in function.node_def:
            others.update(_functions_named(node))
    others |= {gradient.gradient_func for gradient in meta_graph.graph_def.library.gradient}
    return called - others


def _functions_named(node: Any) -> Iterator[str]:
    yield node.op
    for value in node.attr.values():
        yield value.func.name
        yield from (function.name for function in value.list.func)


def _nodes_of_saver(meta_graph: Any) -> set[str]:
    """Return TensorFlow 1's nodes that save, which loading does not run, and those that restore this checkpoint."""
    saver = meta_graph.saver_def
    nodes = {node.name: node for node in meta_graph.graph_def.node}
    pending = [_node_name(saver.restore_op_name)]
    for signature in meta_graph.signature_def.values():
        pending += [_node_name(tensor.name) for tensor in signature.outputs.values()]
    for key, collection in meta_graph.collection_def.items():
        if key in ("saved_model_main_op", "legacy_init_op"):
            pending += [_node_name(name) for name in collection.node_list.value]
    run = set()
    while pending:
        name = pending.pop()
        if name in nodes and name not in run:
            run.add(name)
            pending += [_node_name(reference) for reference in nodes[name].input]
    path = _node_name(saver.filename_tensor_name)
    restores = {
        name for name in run if nodes[name].op == "RestoreV2" and _node_name(next(iter(nodes[name].input), "")) == path
    }
    fed = path in nodes and nodes[path].op in ("Placeholder", "PlaceholderWithDefault")
    return {name for name in nodes if name not in run and nodes[name].op in _OF_SAVERS} | (restores if fed else set())


def _node_name(reference: str) -> str:
    return reference.removeprefix("^").partition(":")[0]


# -- Keras files

_LAYERS = _names(
    """Functional Sequential Model DTypePolicy DTypePolicyMap FloatDTypePolicy QuantizedDTypePolicy
    QuantizedFloat8DTypePolicy Layer InputLayer InputSpec Activation ActivityRegularization AdaptiveAveragePooling1D
    AdaptiveAveragePooling2D AdaptiveAveragePooling3D AdaptiveMaxPooling1D AdaptiveMaxPooling2D AdaptiveMaxPooling3D Add
    AdditiveAttention AlphaDropout Attention AugMix AutoContrast Average AveragePooling1D AveragePooling2D
    AveragePooling3D BatchNormalization Bidirectional CategoryEncoding CenterCrop Concatenate
    ContrastLimitedAdaptiveHistogramEqualization Conv1D Conv1DTranspose Conv2D Conv2DTranspose Conv3D Conv3DTranspose
    ConvLSTM1D ConvLSTM2D ConvLSTM3D Cropping1D Cropping2D Cropping3D CutMix Dense DepthwiseConv1D DepthwiseConv2D
    Discretization Dot Dropout ELU EinsumDense Embedding Equalization Flatten GRU GRUCell GaussianDropout GaussianNoise
    GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D GlobalMaxPooling1D GlobalMaxPooling2D
    GlobalMaxPooling3D GroupNormalization GroupQueryAttention GroupedQueryAttention Identity LSTM LSTMCell
    CustomScaleLayer StochasticDepth LayerScale
    LayerNormalization LeakyReLU Masking MaxNumBoundingBoxes MaxPooling1D MaxPooling2D MaxPooling3D Maximum
    MelSpectrogram Minimum MixUp MultiHeadAttention Multiply Normalization PReLU Permute Pipeline RMSNormalization RNN
    RandAugment RandomBrightness RandomColorDegeneration RandomColorJitter RandomContrast RandomCrop
    RandomElasticTransform RandomErasing RandomFlip RandomGaussianBlur RandomGrayscale RandomHue RandomInvert
    RandomPerspective RandomPosterization RandomRotation RandomSaturation RandomSharpness RandomShear RandomTranslation
    RandomZoom ReLU RepeatVector Rescaling Reshape Resizing ReversibleEmbedding STFTSpectrogram SeparableConv1D
    SeparableConv2D SimpleRNN SimpleRNNCell Softmax Solarization SpatialDropout1D SpatialDropout2D SpatialDropout3D
    SpectralNormalization StackedRNNCells Subtract ThresholdedReLU TimeDistributed UnitNormalization UpSampling1D
    UpSampling2D UpSampling3D Wrapper ZeroPadding1D ZeroPadding2D ZeroPadding3D"""
)
_VALUES = _names("__tensor__ __keras_tensor__ __numpy__ __bytes__ __ellipsis__ __slice__ __complex__")
_OF_LAYERS = re.compile(r"keras|keras\.(src\.)?(models|layers|engine|applications)\b.*")
_OF_PARTS = re.compile(
    r"keras\.(src\.)?(initializers|regularizers|constraints|activations|dtype_policies|random|losses|metrics|optimizers|"
    r"quantizers|ops|mixed_precision|backend\.common\.dtypes)(\.\w+)*"
)
_OF_FUNCTIONS = re.compile(r"builtins|keras\.(src\.)?activations(\.\w+)*")
_MEMBERS = re.compile(r"config\.json|metadata\.json|model\.weights\.h5|converter_stamp\.json|(assets|_tf_checkpoint)/")


def refuse_keras_parts(path: Path) -> None:
    """Refuse a `.keras` file with objects that are not Keras's own, with odd members or with weights elsewhere."""
    refuse_members(path)
    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read("config.json"))
        if isinstance(config, dict):
            config.pop("compile_config", None)  # it is not read
        refuse_unknown("objects", _unknown_objects(config))
        if _values(config, unfolded=True) > max(EXPANSION_LIMIT * _values(config), SMALL_GRAPH):
            raise Refused("its layers hold each other so often that they unfold without measure")
        if "model.weights.h5" in archive.namelist():
            with _member(archive, path, "model.weights.h5") as weights:
                refuse_weights_elsewhere(weights, path.stat().st_size)


class _Window(io.RawIOBase):
    """A part of a file, which a member of an archive is that is stored as it is."""

    def __init__(self, path: Path, start: int, size: int):
        self._file, self._start, self._size, self._at = path.open("rb"), start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max((0, self._at, self._size)[whence] + offset, 0)
        return self._at

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._start + self._at)
        read = self._file.readinto(memoryview(buffer)[: max(self._size - self._at, 0)])
        self._at += read
        return read

    def close(self) -> None:
        self._file.close()
        super().close()


def _member(archive: zipfile.ZipFile, path: Path, name: str) -> Any:
    """Open a member for reading in any order, for which zipfile reads it from its start again and again."""
    entry = archive.getinfo(name)
    opened = archive.open(entry)  # which checks the header before it
    if entry.compress_type != zipfile.ZIP_STORED:
        return opened
    opened.close()
    with path.open("rb") as file:
        file.seek(entry.header_offset + 26)
        sizes = struct.unpack("<HH", file.read(4))  # of the name and of the extra field
    return _Window(path, entry.header_offset + 30 + sum(sizes), entry.file_size)


def _values(part: Any, *, unfolded: bool = False) -> int:
    """Count the values of a config; unfolded, those of a layer as often as the layer is called."""
    if isinstance(part, list):
        return 1 + sum(_values(value, unfolded=unfolded) for value in part)
    if not isinstance(part, dict):
        return 1
    inside = 1 + sum(_values(value, unfolded=unfolded) for name, value in part.items() if name != "inbound_nodes")
    calls = part.get("inbound_nodes")
    return inside * max(len(calls), 1) if unfolded and isinstance(calls, list) else inside


def refuse_members(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    names = [entry.filename for entry in entries]
    size = path.stat().st_size
    flaws = {
        f"{len(names)} members": len(names) > MOST_FILES,
        "members of the same name": len(set(names)) < len(names),
        "a link": any(stat.S_ISLNK(entry.external_attr >> 16) for entry in entries),
        "encrypted members": any(entry.flag_bits & 1 for entry in entries),
        "overlapping members": sum(entry.compress_size for entry in entries) > size,
        "members that expand without measure": sum(entry.file_size for entry in entries)
        > max(EXPANSION_LIMIT * size, SMALL_EXPANSION),
    }
    if found := [flaw for flaw, present in flaws.items() if present]:
        raise Refused(f"its archive has {' and '.join(found)}")
    refuse_unknown("files", (name for name in names if not _MEMBERS.fullmatch(name)))


def _unknown_objects(config: Any) -> Iterator[str]:
    pending = [config]
    while pending:
        part = pending.pop()
        if isinstance(part, Mapping):
            pending += part.values()
            if "class_name" in part and not _is_of_keras(part):
                module, name = part.get("module"), part["class_name"]
                name = part.get("config") if name == "function" else name
                yield f"{module}.{name}" if isinstance(module, str) else str(name)
        elif isinstance(part, list):
            pending += part


def _is_of_keras(part: Mapping[str, Any]) -> bool:
    name, module = part["class_name"], part.get("module") or "keras"  # values have no module, or builtins
    if not (isinstance(name, str) and isinstance(module, str) and name.isidentifier()):
        return False
    if name == "function":
        return bool(_OF_FUNCTIONS.fullmatch(module))
    if name in _VALUES:
        return True
    return bool(_OF_PARTS.fullmatch(module) or (_OF_LAYERS.fullmatch(module) and name in _LAYERS))


def refuse_weights_elsewhere(file: Any, size: int) -> None:
    """Refuse an HDF5 file with links, with data in other files, or with datasets that are much larger than the file."""
    import h5py

    count = total = 0
    with h5py.File(file, "r") as opened:
        pending: list[Any] = [opened]
        seen = set(pending)
        while pending:
            group = pending.pop()
            for name in group:
                count += 1
                if count > 100 * MOST_FILES:
                    raise Refused("its weights are without end")
                if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                    raise Refused(f"its weights have a link: {name!r}")
                if (part := group[name]) in seen:
                    continue
                seen.add(part)
                if isinstance(part, h5py.Group):
                    pending.append(part)
                    continue
                if not isinstance(part, h5py.Dataset):
                    continue
                if part.external or part.is_virtual:
                    raise Refused(f"its weights are in another file: {name!r}")
                total += part.nbytes
    if total > max(EXPANSION_LIMIT * size, SMALL_EXPANSION):
        raise Refused(f"its weights expand to {total} bytes")


# -- ONNX and TFLite files

_DOMAINS = _names("ai.onnx ai.onnx.ml com.microsoft com.microsoft.nchwc com.ms.internal.nhwc ai.onnx.preview.training")
_OUTSIDE = _names("EPContext PyOp PythonOp PythonOpGrad ATen ATenGrad TritonOp ExternalCustomOp")  # of com.microsoft


def refuse_onnx_operators(model: Any, folder: Path) -> None:
    """Refuse an ONNX model with operators that are not onnxruntime's or functions of the model, or data elsewhere."""
    functions = {(function.domain, function.name) for function in model.functions}
    unknown: set[str] = set()
    elsewhere: set[str] = set()
    for part in messages(model):
        if part.DESCRIPTOR.name == "TensorProto":
            elsewhere |= _data_elsewhere(part, folder)
        elif part.DESCRIPTOR.name == "NodeProto":
            domain = part.domain or "ai.onnx"
            if (part.domain, part.op_type) not in functions and (domain not in _DOMAINS or part.op_type in _OUTSIDE):
                unknown.add(f"{domain}.{part.op_type}")
    refuse_unknown("operators", unknown)
    refuse_unknown("data in files", elsewhere)
    bodies = [((function.domain, function.name), function) for function in model.functions]
    refuse_expansion((name, map(_operator, _nodes(body))) for name, body in [*bodies, (None, model.graph)])


def _nodes(message: Any) -> Iterator[Any]:
    return (part for part in messages(message) if part.DESCRIPTOR.name == "NodeProto")


def _operator(node: Any) -> tuple[str, str]:
    return node.domain, node.op_type


def messages(message: Any) -> Iterator[Any]:
    """Yield a message and all messages in it, wherever the format allows one; tensors are not looked into."""
    pending = [message]
    while pending:
        yield (part := pending.pop())
        if part.DESCRIPTOR.name != "TensorProto":
            for field, value in part.ListFields():
                if field.message_type is not None:
                    pending += [value] if hasattr(value, "DESCRIPTOR") else value


def _data_elsewhere(tensor: Any, folder: Path) -> set[str]:
    """Return where a tensor's data is, unless that is a part of a file in the folder; some names mean the memory."""
    said = {entry.key: entry.value for entry in tensor.external_data}
    if len(said) < len(tensor.external_data):
        return {"one of two places"}
    if not said and tensor.data_location != tensor.EXTERNAL:
        return set()
    location = said.get("location", "")
    real = (folder / location).resolve()
    inside = any(real.is_relative_to(home) for home in _homes(folder.resolve()))
    places = [said.get("offset", "0"), said.get("length", "0")]
    if Path(location).is_absolute() or not inside or not real.is_file():
        return {location or "(no file)"}
    if not all(place.isascii() and place.isdecimal() for place in places):
        return {f"{location} from {places[0]!r} on, {places[1]!r} bytes"}
    return {f"{location}, more than there is"} if sum(map(int, places)) > real.stat().st_size else set()


def refuse_tflite_parts(codes: Collection[str], files: Collection[str]) -> None:
    """Refuse a TFLite file with TensorFlow's operators, which run whatever their options say, or weights elsewhere."""
    refuse_unknown("operators", (code for code in codes if code.startswith("Flex")))
    refuse_unknown("data in files", files)
