"""An artifact is looked through before a runtime gets it: what may reach beyond the model is refused by name, and what
the usual tools write is not."""

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import onnx
import pytest

from converter.artifacts.runtime import refusals
from converter.artifacts.runtime.onnx import Reader as OnnxReader
from converter.artifacts.runtime.protocol import Refused
from converter.artifacts.runtime.tflite import Reader as TFLiteReader
from converter.artifacts.runtime.tflite_content import stored_tensors

# -- SavedModels


def registered(name: str) -> Any:
    from tensorflow.python.framework import op_def_registry

    return op_def_registry.get(name)


def saved_model(*operators: str, inside: bool = True) -> Any:
    """A SavedModel message with these operators, in a function or in the graph itself."""
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel()
    meta_graph = saved.meta_graphs.add()
    meta_graph.object_graph_def.SetInParent()  # TensorFlow 2's
    graph = meta_graph.graph_def
    nodes = graph.library.function.add().node_def if inside else graph.node
    for number, operator in enumerate(operators):
        nodes.add(name=f"n{number}", op=operator)
    return saved


OUTSIDE = [
    "ReadFile", "WriteFile", "MatchingFiles", "PyFunc", "PyFuncStateless", "EagerPyFunc", "PrintV2", "Print", "Save",
    "SaveV2", "SaveSlices", "Restore", "RestoreV2", "RestoreSlice", "MergeV2Checkpoints", "CacheDataset",
    "CacheDatasetV2", "TextLineDataset", "TFRecordDataset", "TFRecordDatasetV2", "FixedLengthRecordDatasetV2",
    "SqlDataset", "CSVDataset", "SaveDatasetV2", "LoadDataset", "MatchingFilesDataset", "GeneratorDataset",
    "DatasetToTFRecord", "WholeFileReaderV2", "TextLineReaderV2", "LMDBReader", "InitializeTableFromTextFileV2",
    "ImmutableConst", "DebugIdentity", "DebugIdentityV2", "DebugNumericSummary", "CreateSummaryFileWriter",
    "WriteGraphSummary", "RpcClient", "RpcServer", "DataServiceDatasetV4", "RemoteCall", "Abort", "XlaCustomCall",
    "XlaCustomCallV2", "XlaCallModule", "FileSystemSetConfiguration", "DumpTensor", "CalibrationStatisticsSaver",
    "NoSuchOperator", "_Send", "DeserializeIterator", "RecordInput", "LoadAndRemapMatrix", "GenerateVocabRemapping",
]  # fmt: skip


@pytest.mark.threat(
    "A SavedModel whose graph reads or writes files, opens connections or calls Python",
    "refused by the operators' names before it is loaded",
)
@pytest.mark.parametrize("inside", [True, False], ids=["in a function", "in the graph"])
def test_an_operator_that_is_not_listed_is_refused_by_name(inside):
    for operator in OUTSIDE:
        with pytest.raises(Refused, match=f": {operator}$"):
            refusals.refuse_operators(saved_model("Conv2D", operator, inside=inside), registered)


@pytest.mark.threat(
    "A SavedModel that calls the functions of its checkpoint's saver, or changes them",
    "refused",
)
def test_only_functions_that_nothing_else_calls_may_save():
    """The saver of a checkpoint, which loading does not call. Any other call of it is refused."""

    def with_saver() -> Any:
        saved = saved_model("SaveV2")
        meta_graph = saved.meta_graphs[0]
        meta_graph.graph_def.library.function[0].signature.name = "save"
        meta_graph.graph_def.node.add(name="saver", op="StatefulPartitionedCall").attr["f"].func.name = "save"
        meta_graph.saver_def.save_tensor_name = "saver:0"
        return saved

    refusals.refuse_operators(with_saver(), registered)
    also = with_saver()
    also.meta_graphs[0].graph_def.node.add(name="again", op="StatefulPartitionedCall").attr["f"].func.name = "save"
    in_list = with_saver()
    in_list.meta_graphs[0].graph_def.node.add(name="again", op="Case").attr["b"].list.func.add(name="save")
    as_signature = with_saver()
    as_signature.meta_graphs[0].object_graph_def.concrete_functions["save"].SetInParent()
    writes = with_saver()
    writes.meta_graphs[0].graph_def.library.function[0].node_def.add(name="more", op="WriteFile")
    for saved, name in [(also, "SaveV2"), (in_list, "SaveV2"), (as_signature, "SaveV2"), (writes, "WriteFile")]:
        with pytest.raises(Refused, match=name):
            refusals.refuse_operators(saved, registered)


@pytest.mark.threat(
    "A SavedModel with two functions of one name, of which one writes, or with a function named like an operator",
    "refused",
)
def test_a_name_that_means_two_things_is_refused():
    for names in (("f", "f"), ("g", "WriteFile")):
        saved = saved_model("WriteFile")
        functions = saved.meta_graphs[0].graph_def.library.function
        functions.add().node_def.add(name="harmless", op="Relu")
        for function, name in zip(functions, names, strict=True):
            function.signature.name = name
        with pytest.raises(Refused, match="WriteFile"):
            refusals.refuse_operators(saved, registered)


@pytest.mark.threat(
    "A SavedModel with assets, whose names may lead anywhere",
    "refused",
)
def test_assets_are_refused():
    saved = saved_model("Conv2D")
    saved.meta_graphs[0].asset_file_def.add(filename="../../etc/passwd")
    with pytest.raises(Refused, match="passwd"):
        refusals.refuse_operators(saved, registered)


@pytest.fixture(scope="session")
def of_tensorflow_1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tensorflow as tf

    v1, path = tf.compat.v1, tmp_path_factory.mktemp("v1") / "model"
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 3], "x")
        y = tf.matmul(x, v1.get_variable("w", [3, 2], use_resource=False))
        session.run(v1.global_variables_initializer())
        v1.saved_model.simple_save(session, str(path), {"x": x}, {"y": y})
    return path


def of_keras(path: Path) -> Path:
    """Layers with states, control flow and random numbers."""
    import keras

    image = keras.Input((8, 8, 3))
    x = keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3)(keras.layers.RandomFlip()(image)))
    x = keras.layers.LSTM(5)(keras.layers.Reshape((-1, 4))(keras.layers.Dropout(0.5)(x)))
    keras.Model(image, keras.layers.Dense(2, "softmax")(x)).export(str(path), verbose=False)
    return path


def of_module(path: Path) -> Path:
    """A table in memory, a loop, a list of tensors, an assertion, an image's bytes, another signature."""
    import tensorflow as tf

    class Net(tf.Module):
        def __init__(self) -> None:
            self.weight = tf.Variable(tf.ones((3, 2)))
            keys = tf.constant([1, 2], tf.int64)
            values = tf.lookup.KeyValueTensorInitializer(keys, keys)
            self.table = tf.lookup.StaticHashTable(values, -1)

        @tf.function(input_signature=[tf.TensorSpec((None, 3))])
        def serve(self, x):
            tf.debugging.assert_all_finite(x, "finite")
            values = tf.TensorArray(tf.float32, 3)
            for i in tf.range(3):
                values = values.write(
                    i,
                    tf.einsum("ij,jk->ik", x, self.weight)
                    + tf.cast(self.table.lookup(tf.constant(1, tf.int64)), "float32"),
                )
            return tf.reduce_sum(tf.cond(x[0, 0] > 0, values.stack, values.stack), 0)

        @tf.function(input_signature=[tf.TensorSpec((), tf.string)])
        def of_bytes(self, content):
            return tf.image.resize(tf.io.decode_jpeg(content), (4, 4))

    net = Net()
    tf.saved_model.save(net, str(path), signatures={"serving_default": net.serve, "of_bytes": net.of_bytes})
    return path


@pytest.mark.slow
@pytest.mark.parametrize("write", [of_keras, of_module])
def test_saved_models_of_tensorflow_pass(write: Callable[[Path], Path], tmp_path: Path):
    from converter.artifacts.runtime.saved_model import _check_untrusted

    _check_untrusted(write(tmp_path / "model"))


@pytest.mark.threat(
    "A SavedModel of TensorFlow 1 that restores another checkpoint than its own",
    "refused; others pass",
)
def test_a_saved_model_of_tensorflow_1_passes_until_it_restores_another_file(of_tensorflow_1: Path, tmp_path: Path):
    from tensorflow.core.protobuf import saved_model_pb2

    from converter.artifacts.runtime.saved_model import _check_untrusted

    _check_untrusted(of_tensorflow_1)
    saved = saved_model_pb2.SavedModel.FromString((of_tensorflow_1 / "saved_model.pb").read_bytes())
    restore = next(node for node in saved.meta_graphs[0].graph_def.node if node.op == "RestoreV2")
    elsewhere = saved.meta_graphs[0].graph_def.node.add(name="elsewhere", op="Const")
    restore.input[0] = elsewhere.name
    with pytest.raises(Refused, match="RestoreV2"):
        refusals.refuse_operators(saved, registered)


@pytest.mark.threat(
    "A link or a pipe within a SavedModel",
    "refused unless it stays in the folder",
)
@pytest.mark.parametrize("plant", ["link", "pipe", "link to a folder"])
def test_nothing_outside_a_folder_is_read(tmp_path: Path, plant: str):
    folder = tmp_path / "model"
    (folder / "variables").mkdir(parents=True)
    (tmp_path / "secret").write_text("secret")
    (folder / "inner").symlink_to(folder / "variables")
    refusals.refuse_files_elsewhere(folder)
    if plant == "link":
        (folder / "variables" / "variables.index").symlink_to(tmp_path / "secret")
    elif plant == "pipe":
        os.mkfifo(folder / "variables" / "variables.index")
    else:
        (folder / "assets").symlink_to(tmp_path)
    with pytest.raises(Refused, match=r"variables\.index|assets"):
        refusals.refuse_files_elsewhere(folder)


def test_the_links_of_a_hub_cache_pass(tmp_path: Path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--a--b" / "blobs").mkdir()
    (tmp_path / "models--a--b" / "blobs" / "abc").write_text("")
    (snapshot / "model.onnx").symlink_to("../../blobs/abc")
    refusals.refuse_files_elsewhere(snapshot)


# -- Keras files


def weights(change: Callable[[h5py.File], None] = lambda file: None) -> bytes:
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file.create_dataset("layers/dense/vars/0", data=np.ones((2, 2), np.float32))
        change(file)
    return content.getvalue()


def keras_file(path: Path, config: Any = None, members: dict[str, bytes] | None = None) -> Path:
    file = path / "a.keras"
    dense = {"module": "keras.layers", "class_name": "Dense", "config": {"units": 2}, "registered_name": None}
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("config.json", json.dumps(dense if config is None else config))
        archive.writestr("metadata.json", "{}")
        for name, content in ({"model.weights.h5": weights()} | (members or {})).items():
            archive.writestr(name, content)
    return file


def an_object(name: str, module: str | None, config: Any = None) -> dict[str, Any]:
    return {"module": module, "class_name": name, "config": {} if config is None else config}


@pytest.mark.threat(
    "A Keras file with lambdas, functions, lookup tables from files, layers that load other models",
    "refused by name before Keras reads it",
)
@pytest.mark.parametrize(
    "inner, named",
    [
        (an_object("__lambda__", "builtins", {"value": "4wAA"}), "__lambda__"),
        (an_object("Lambda", "keras.layers"), "Lambda"),
        (an_object("TFSMLayer", "keras.layers", {"filepath": "/etc"}), "TFSMLayer"),
        (an_object("TorchModuleWrapper", "keras.layers"), "TorchModuleWrapper"),
        (an_object("JaxLayer", "keras.layers"), "JaxLayer"),
        (an_object("StringLookup", "keras.layers", {"vocabulary": "/etc/passwd"}), "StringLookup"),
        (an_object("TextVectorization", "keras.layers", {"vocabulary": "/etc/passwd"}), "TextVectorization"),
        (an_object("function", "keras.utils", "get_file"), "get_file"),
        (an_object("function", "os", "system"), "os.system"),
        (an_object("Popen", "subprocess"), "subprocess.Popen"),
        (an_object("Net", "keras_hub.models"), "keras_hub"),
        (an_object("Dense", "keras.utils"), "keras.utils"),
        (an_object("Own", None), "Own"),
        (an_object("load_model", "keras.saving"), "load_model"),
    ],
)
def test_an_object_that_is_not_a_layer_of_keras_is_refused_by_name(tmp_path: Path, inner: Any, named: str):
    config = an_object("Functional", "keras.src.models.functional", {"layers": [{"config": {"activation": inner}}]})
    with pytest.raises(Refused, match=named):
        refusals.refuse_keras_parts(keras_file(tmp_path, config))


@pytest.mark.threat(
    "A Keras file with members whose names lead elsewhere",
    "refused",
)
@pytest.mark.parametrize(
    "members, message",
    [
        ({"../../.bashrc": b""}, "bashrc"),
        ({"/etc/cron.d/x": b""}, "cron"),
        ({"assets/string_lookup/vocabulary.txt": b"/etc/passwd"}, "vocabulary"),
        ({"model.weights.npz": b""}, "npz"),
        ({"extra.pkl": b""}, "extra.pkl"),
    ],
)
def test_a_member_that_is_not_of_a_keras_file_is_refused(tmp_path: Path, members: dict[str, bytes], message: str):
    with pytest.raises(Refused, match=message):
        refusals.refuse_keras_parts(keras_file(tmp_path, members=members))


def external_data(file: h5py.File) -> None:
    file.create_dataset("secret", (4,), "u1", external=[("/etc/passwd", 0, 4)])


def external_link(file: h5py.File) -> None:
    file["secret"] = h5py.ExternalLink("/etc/passwd", "/")


def soft_link(file: h5py.File) -> None:
    file["again"] = h5py.SoftLink("/layers")


def virtual_data(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("/tmp/other.h5", "data", (4,))
    file.create_virtual_dataset("secret", layout)


def never_written(file: h5py.File) -> None:
    file.create_dataset("bomb", (1 << 40,), "f4")


def compressed_zeros(file: h5py.File) -> None:
    file.create_dataset("bomb", data=np.zeros(1 << 22, np.uint8), compression="gzip")


@pytest.mark.threat(
    "HDF5 links, external and virtual data, data that expands",
    "refused",
)
@pytest.mark.parametrize(
    "change", [external_data, external_link, soft_link, virtual_data, never_written, compressed_zeros]
)
def test_weights_in_other_files_or_without_measure_are_refused(tmp_path: Path, change: Callable[[h5py.File], None]):
    with pytest.raises(Refused, match="weights"):
        refusals.refuse_keras_parts(keras_file(tmp_path, members={"model.weights.h5": weights(change)}))


@pytest.mark.threat(
    "A Keras file that is a bomb",
    "refused",
)
def test_an_archive_that_expands_without_measure_is_refused(tmp_path: Path):
    file = tmp_path / "bomb.keras"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", bytes(1 << 24))
    with pytest.raises(Refused, match="expand"):
        refusals.refuse_keras_parts(file)


@pytest.mark.threat(
    "An HDF5 group that holds itself",
    "read once",
)
def test_a_group_that_holds_itself_ends(tmp_path: Path):
    def circle(file: h5py.File) -> None:
        file["layers/again"] = file["/"]

    refusals.refuse_keras_parts(keras_file(tmp_path, members={"model.weights.h5": weights(circle)}))


@pytest.mark.parametrize(
    "part",
    [
        an_object("LayerScale", "keras.src.applications.convnext"),
        an_object("Transpose", "keras.src.ops.numpy"),
        an_object("DTypePolicy", "keras"),
        an_object("__keras_tensor__", None),
        an_object("__tensor__", "builtins"),
        an_object("function", "builtins", "relu"),
        an_object("function", "keras.activations", "gelu"),
        an_object("Functional", "keras.src.engine.functional"),
        an_object("AdamW", "keras.optimizers"),
        an_object("CosineDecay", "keras.optimizers.schedules"),
    ],
)
def test_objects_of_keras_pass(tmp_path: Path, part: Any):
    refusals.refuse_keras_parts(keras_file(tmp_path, an_object("Model", "keras", {"layers": [part]})))


def test_files_of_keras_pass(tmp_path: Path):
    import keras

    image = keras.Input((8, 8, 3), dtype="float32")
    x = keras.layers.Conv2D(4, 3, activation=keras.activations.gelu, kernel_regularizer="l2")(image)
    x = keras.layers.PReLU()(keras.layers.Activation("swish")(keras.layers.BatchNormalization()(x)))
    x = keras.layers.Bidirectional(keras.layers.LSTM(3))(keras.layers.Reshape((-1, 4))(x))
    x = keras.ops.transpose(keras.ops.expand_dims(x[:, 1:3], 1), (0, 2, 1)) + keras.ops.ones((1, 2, 1))
    inner = keras.Sequential([keras.Input((2, 1)), keras.layers.Dense(4, keras.ops.tanh), keras.layers.Dropout(0.1)])
    model = keras.Model(image, keras.layers.MultiHeadAttention(2, 4)(inner(x), inner(x)))
    model.compile("adam", "mse")
    model.save(tmp_path / "a.keras")
    refusals.refuse_keras_parts(tmp_path / "a.keras")


# -- ONNX files


def onnx_model(*nodes: onnx.NodeProto, functions: list[onnx.FunctionProto] | None = None) -> onnx.ModelProto:
    value = onnx.helper.make_tensor_value_info("x", 1, [1])
    graph = onnx.helper.make_graph(list(nodes), "g", [value], [value])
    return onnx.helper.make_model(graph, functions=functions or [])


def node(operator: str, domain: str, **attributes: Any) -> onnx.NodeProto:
    return onnx.helper.make_node(operator, ["x"], ["y"], domain=domain, **attributes)


def function(domain: str, *nodes: onnx.NodeProto) -> onnx.FunctionProto:
    return onnx.helper.make_function(domain, "F", ["x"], ["y"], list(nodes), [onnx.helper.make_opsetid("", 20)])


def branch(inner: onnx.NodeProto) -> onnx.NodeProto:
    return node("If", "", then_branch=onnx_model(inner).graph)


@pytest.mark.threat(
    "An ONNX file with custom operators, also within functions and branches",
    "refused by name before a session is made",
)
@pytest.mark.parametrize(
    "model, named",
    [
        (onnx_model(node("PyOp", "ai.onnx.contrib")), "ai.onnx.contrib.PyOp"),
        (onnx_model(node("Own", "evil")), "evil.Own"),
        (onnx_model(branch(node("Own", "evil"))), "evil.Own"),
        (onnx_model(node("F", "a"), functions=[function("a", node("Own", "evil"))]), "evil.Own"),
        (onnx_model(node("F", "a"), functions=[function("a", branch(node("Own", "evil")))]), "evil.Own"),
        (onnx_model(node("EPContext", "com.microsoft")), "EPContext"),
        (onnx_model(node("F", "b"), functions=[function("a", node("Relu", ""))]), "b.F"),
    ],
)
def test_an_operator_of_an_unknown_domain_is_refused_by_name(tmp_path: Path, model: onnx.ModelProto, named: str):
    with pytest.raises(Refused, match=named):
        refusals.refuse_onnx_operators(model, tmp_path)


def test_operators_of_onnxruntime_and_functions_of_the_model_pass(tmp_path: Path):
    local = function("pkg.torch", node("Relu", ""), branch(node("QuickGelu", "com.microsoft")))
    known = [node("F", "pkg.torch"), node("DynamicQuantizeMatMul", "com.microsoft"), node("Scaler", "ai.onnx.ml")]
    refusals.refuse_onnx_operators(onnx_model(*known, node("Conv", "ai.onnx"), functions=[local]), tmp_path)


@pytest.mark.threat(
    "External data of an ONNX file outside its folder, by a path or a link",
    "refused",
)
@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "link", "pipe", "inner/../../secret"])
@pytest.mark.parametrize("where", ["initializer", "constant"])
def test_data_outside_the_folder_is_refused(tmp_path: Path, location: str, where: str):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(4))
    (folder / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(folder / "pipe")
    model = onnx_model(node("Constant", "", value=onnx.numpy_helper.from_array(np.ones(1, np.float32))))
    if where == "initializer":
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(1, np.float32)))
    tensor = model.graph.initializer[0] if where == "initializer" else model.graph.node[0].attribute[0].t
    onnx.external_data_helper.set_external_data(tensor, location, 0, 4)
    tensor.ClearField("raw_data")
    with pytest.raises(Refused, match=Path(location).name):
        refusals.refuse_onnx_operators(model, folder)


def sparse(model: onnx.ModelProto) -> onnx.TensorProto:
    model.graph.sparse_initializer.append(onnx.SparseTensorProto(dims=[1]))
    return model.graph.sparse_initializer[0].values


def sparse_constant(model: onnx.ModelProto) -> onnx.TensorProto:
    model.graph.node.append(onnx.NodeProto(op_type="Constant", output=["c"]))
    model.graph.node[-1].attribute.append(onnx.AttributeProto(name="sparse_value"))
    return model.graph.node[-1].attribute[0].sparse_tensor.values


def several(model: onnx.ModelProto) -> onnx.TensorProto:
    model.graph.node[0].attribute.append(onnx.AttributeProto(name="all", tensors=[onnx.TensorProto()]))
    return model.graph.node[0].attribute[0].tensors[0]


def default_of_a_function(model: onnx.ModelProto) -> onnx.TensorProto:
    model.functions.append(function("a", node("Relu", "")))
    model.functions[0].attribute_proto.append(onnx.AttributeProto(name="value"))
    return model.functions[0].attribute_proto[0].t


@pytest.mark.threat(
    "External data of an ONNX file wherever the format has tensors: sparse ones, lists, defaults of functions; "
    "parts that the file does not have, and names that mean the memory",
    "refused",
)
@pytest.mark.parametrize("place", [sparse, sparse_constant, several, default_of_a_function])
@pytest.mark.parametrize(
    "location, offset, length",
    [("../secret", "0", "4"), ("*/_ORT_MEM_ADDR_/*", "140000000000000", "4"), ("data", "-4", "4"), ("data", "0", "1e9"),
     ("data", "4", "4"), ("gone", "0", "4"), ("", "0", "4")],
)  # fmt: skip
def test_data_of_every_tensor_is_looked_at(tmp_path: Path, place: Any, location: str, offset: str, length: str):
    (tmp_path / "model").mkdir()
    for name in ("secret", "model/data"):
        (tmp_path / name).write_bytes(bytes(4))
    model = onnx_model(node("Relu", ""))
    tensor = place(model)
    tensor.data_type, tensor.data_location = 1, onnx.TensorProto.EXTERNAL
    for key, value in (("location", "data"), ("offset", "0"), ("length", "4")):
        tensor.external_data.add(key=key, value=value)
    refusals.refuse_onnx_operators(model, tmp_path / "model")
    for entry, value in zip(tensor.external_data, (location, offset, length), strict=True):
        entry.value = value
    with pytest.raises(Refused, match="data in files"):
        refusals.refuse_onnx_operators(model, tmp_path / "model")


@pytest.mark.threat(
    "An ONNX file with an operator in the default of a function's attribute, or a graph for training", "refused"
)
@pytest.mark.parametrize("where", ["default", "training"])
def test_a_graph_anywhere_in_an_onnx_file_is_looked_through(tmp_path: Path, where: str):
    model = onnx_model(node("Relu", ""))
    graph = onnx_model(node("Own", "evil")).graph
    if where == "default":
        model.functions.append(function("a", node("Relu", "")))
        model.functions[0].attribute_proto.append(onnx.helper.make_attribute("body", graph))
    else:
        model.training_info.add().algorithm.CopyFrom(graph)
    with pytest.raises(Refused, match=r"evil\.Own"):
        refusals.refuse_onnx_operators(model, tmp_path)


def test_refused_before_a_session_is_made_and_opened_where_the_user_trusts(tmp_path: Path, monkeypatch):
    file = tmp_path / "a.onnx"
    file.write_bytes(onnx_model(node("Own", "evil")).SerializeToString())
    reader, made = OnnxReader(), []
    monkeypatch.setattr(reader._runtime, "InferenceSession", lambda *_, **__: made.append(1) or 1 / 0)
    with pytest.raises(Refused, match=r"evil\.Own"):
        reader.open(file)
    assert not made
    with pytest.raises(ZeroDivisionError):
        reader.open(file, trusted=True)
    assert made


# -- TFLite files


@pytest.mark.threat("A TFLite file that runs TensorFlow's operators", "refused")
def test_operators_of_tensorflow_in_a_tflite_file_are_refused():
    refusals.refuse_tflite_parts({"TFLite_Detection_PostProcess"}, ())
    with pytest.raises(Refused, match="FlexWriteFile"):
        refusals.refuse_tflite_parts({"FlexWriteFile"}, ())


Edit = Callable[[Any, Any], None]


def tflite_file(path: Path, edit: Edit) -> Path:
    """A model that adds a constant to its input, edited."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model, graph, adds = schema.ModelT(), schema.SubGraphT(), schema.OperatorT()
    model.version, model.subgraphs, model.operatorCodes = 3, [graph], [schema.OperatorCodeT()]
    model.buffers = [schema.BufferT(), schema.BufferT()]
    model.buffers[1].data = list(np.ones(4, np.float32).tobytes())
    graph.tensors = [schema.TensorT() for _ in range(3)]
    for number, tensor in enumerate(graph.tensors):
        tensor.name, tensor.shape, tensor.buffer = f"t{number}", [4], int(number == 1)
    graph.inputs, graph.outputs, graph.operators = [0], [2], [adds]
    adds.inputs, adds.outputs = [0, 1], [2]
    signature, ends = schema.SignatureDefT(), [schema.TensorMapT(), schema.TensorMapT()]
    for end, index in zip(ends, (0, 2), strict=True):
        end.name, end.tensorIndex = f"t{index}", index
    signature.signatureKey, signature.inputs, signature.outputs = "serving_default", ends[:1], ends[1:]
    model.signatureDefs = [signature]
    edit(model, schema)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(builder.Output())
    return path


def weights_in(name: str) -> Edit:
    def edit(model: Any, schema: Any) -> None:
        group, place = schema.ExternalBufferGroupT(), schema.ExternalBufferT()
        group.name, place.id, place.length = name, 1, 16
        model.externalBufferGroups, model.externalBuffers = [group], [place]
        model.subgraphs[0].tensors[1].externalBuffer, model.subgraphs[0].tensors[1].buffer = 1, 0

    return edit


def runs_tensorflow(model: Any, schema: Any) -> None:
    model.operatorCodes[0].customCode = "FlexWriteFile"


def no_graph(model: Any, _: Any) -> None:
    model.subgraphs = []


def signature_of_no_graph(model: Any, _: Any) -> None:
    model.signatureDefs[0].subgraphIndex = 1000


def many_operators(model: Any, _: Any) -> None:
    model.operatorCodes *= 20_000


@pytest.mark.threat("A TFLite file with weights in other files, by any name", "refused")
@pytest.mark.parametrize("edit", [*map(weights_in, ["/etc/passwd", "../w", "w", ""]), runs_tensorflow])
def test_a_tflite_file_that_reaches_beyond_itself_is_refused(tmp_path: Path, edit: Edit):
    reader = TFLiteReader()
    with pytest.raises(Refused):
        reader.open(tflite_file(tmp_path / "a.tflite", edit))


@pytest.mark.threat(
    "A TFLite file without graphs, with a signature of none, with numbers of parts at which LiteRT crashes or hangs",
    "an error before LiteRT gets it",
)
@pytest.mark.parametrize("edit", [no_graph, signature_of_no_graph, many_operators])
def test_what_litert_takes_for_granted_is_looked_at(tmp_path: Path, monkeypatch, edit: Edit):
    reader = TFLiteReader()
    monkeypatch.setattr(reader._litert, "Interpreter", lambda *_, **__: 1 / 0)
    with pytest.raises(ValueError, match=r"it has|a signature is"):
        reader.open(tflite_file(tmp_path / "a.tflite", edit))


@pytest.mark.threat(
    "A TFLite tensor with data in two places, so that what runs is not what is compared, or that many tensors share",
    "an error",
)
def test_data_is_in_one_place_and_bounded(tmp_path: Path):
    def twice(model: Any, _: Any) -> None:
        model.buffers[1].offset, model.buffers[1].size = 4, 16

    def shared(model: Any, _: Any) -> None:
        model.subgraphs[0].tensors[1].shape = [100_000]
        model.buffers[1].data = np.zeros(400_000, np.uint8)
        model.subgraphs[0].tensors += [model.subgraphs[0].tensors[1]] * 200

    for edit, match in ((twice, "two places"), (shared, "without measure")):
        with pytest.raises(ValueError, match=match):
            list(stored_tensors(tflite_file(tmp_path / "a.tflite", edit).read_bytes()))


def test_a_tflite_file_of_itself_alone_runs(tmp_path: Path):
    reader = TFLiteReader()
    reader.open(tflite_file(tmp_path / "a.tflite", lambda *_: None))
    assert reader.run({"t0": np.zeros(4, np.float32)})["t2"].tolist() == [1, 1, 1, 1]


# -- Functions that unfold


def doubling(levels: int) -> Any:
    """A SavedModel in which each function calls the one before twice."""
    saved = saved_model("Relu")
    functions = saved.meta_graphs[0].graph_def.library.function
    functions[0].signature.name = "f0"
    for level in range(1, levels):
        function = functions.add()
        function.signature.name = f"f{level}"
        for call in range(2):
            node = function.node_def.add(name=f"n{call}", op="PartitionedCall")
            node.attr["f"].func.name = f"f{level - 1}"
    return saved


def doubling_in_onnx(levels: int) -> onnx.ModelProto:
    functions = [onnx.helper.make_function("a", "F0", ["x"], ["y"], [node("Relu", "")], [])]
    for level in range(1, levels):
        functions.append(
            onnx.helper.make_function("a", f"F{level}", ["x"], ["y"], [node(f"F{level - 1}", "a")] * 2, [])
        )
    return onnx_model(node(f"F{levels - 1}", "a"), functions=functions)


def doubling_in_keras(levels: int) -> Any:
    """A model within a model, each called twice."""
    model = an_object("Functional", "keras", {"layers": []})
    for _ in range(levels):
        model = an_object("Functional", "keras", {"layers": [{**model, "inbound_nodes": [{}, {}]}]})
    return model


@pytest.mark.threat(
    "Functions, or models within models, that call each other twice each, so that a small file unfolds without end",
    "refused before a runtime unfolds them",
)
@pytest.mark.parametrize("levels, fits", [(5, True), (40, False), (150, False)])
def test_functions_that_unfold_without_measure_are_refused(tmp_path: Path, levels: int, fits: bool):
    for check in (
        lambda: refusals.refuse_operators(doubling(levels), registered),
        lambda: refusals.refuse_onnx_operators(doubling_in_onnx(levels), tmp_path),
        lambda: refusals.refuse_keras_parts(keras_file(tmp_path, doubling_in_keras(levels))),
    ):
        if fits:
            check()
        else:
            with pytest.raises(Refused, match="unfold"):
                check()


def test_functions_that_call_themselves_are_refused(tmp_path: Path):
    saved = doubling(3)
    saved.meta_graphs[0].graph_def.library.function[0].node_def.add(name="up", op="f2")
    with pytest.raises(Refused, match="call themselves"):
        refusals.refuse_operators(saved, registered)
    for inner in ("F", "G"):
        functions = [onnx.helper.make_function("a", "F", ["x"], ["y"], [node(inner, "a")], []),
                     onnx.helper.make_function("a", "G", ["x"], ["y"], [branch(node("F", "a"))], [])]  # fmt: skip
        with pytest.raises(Refused, match="call themselves"):
            refusals.refuse_onnx_operators(onnx_model(node("F", "a"), functions=functions), tmp_path)


# -- Names that choose a reader


@pytest.mark.threat(
    "A file whose name would have another reader check it than the one that runs it, such as net.onnxtxt or net.ort",
    "checked and run as what its content is",
)
@pytest.mark.parametrize("suffix", ["onnxtxt", "textproto", "json", "ort", "onnx"])
def test_a_name_does_not_choose_the_reader(tmp_path: Path, suffix: str):
    reader = OnnxReader()
    evil, good = tmp_path / f"evil.{suffix}", tmp_path / f"good.{suffix}"
    evil.write_bytes(onnx_model(node("Own", "evil")).SerializeToString())
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph([node("Relu", "")], "g", [value("x", 1, [1])], [value("y", 1, [1])])
    good.write_bytes(
        onnx.helper.make_model(
            graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 20)]
        ).SerializeToString()
    )
    with pytest.raises(Refused, match=r"evil\.Own"):
        reader.open(evil)
    reader.open(good)
    assert reader.run({"x": np.full(1, -1, np.float32)})["y"].tolist() == [0]


def test_data_with_two_places_is_refused(tmp_path: Path):
    (tmp_path / "w").write_bytes(bytes(4))
    model = onnx_model(node("Relu", ""))
    tensor = model.graph.initializer.add(data_location=onnx.TensorProto.EXTERNAL, data_type=1, dims=[1])
    for key, value in (("location", "/etc/passwd"), ("location", "w"), ("length", "4")):
        tensor.external_data.add(key=key, value=value)
    with pytest.raises(Refused, match="one of two places"):
        refusals.refuse_onnx_operators(model, tmp_path)
