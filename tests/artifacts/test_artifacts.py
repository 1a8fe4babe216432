"""What is written opens again in a process of its own, tells what it holds, and is the same bytes each time."""

import hashlib
import os
import signal
import struct
import subprocess
import sys
import tempfile
import textwrap
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from converter.artifacts.detect_format import detect_format
from converter.artifacts.runner import Runner, TensorSpec
from converter.artifacts.runtime.stamp import bears_our_stamp, read_stamp
from converter.errors import ConversionError

pytestmark = pytest.mark.versions

STAMP = {"schema": 1, "converter": "0.1", "source_sha256": "ab" * 32, "options": {"layout": "auto", "ü": None}}
RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(3, 2, 2, 6)).astype(np.float32)  # 3x2, two groups of 2 channels
BIAS = RNG.normal(size=6).astype(np.float32)
IMAGE = RNG.normal(size=(3, 9, 8, 4)).astype(np.float32)


def keras_model():
    """A grouped convolution named as PyTorch names modules, an operation without a name, an output twice."""
    import keras

    image = keras.Input((9, 8, 4), name="image")
    features = keras.layers.Conv2D(6, (3, 2), groups=2, name="stem.0.conv")(image)
    total = keras.ops.mean(keras.ops.relu(features), axis=(1, 2))
    model = keras.Model({"image": image}, {"total": total, "features": features}, name="net")
    model.set_weights([KERNEL, BIAS])
    return model


def write_keras(path: Path) -> None:
    from converter.artifacts import keras_writer

    keras_writer.write(keras_model(), path, STAMP)


def write_saved_model(path: Path) -> None:
    """With a loop and a custom gradient (silu), whose names TensorFlow counts up."""
    import tensorflow as tf
    from writers import write_saved_model

    variables = {"stem.0.conv/kernel": tf.Variable(KERNEL), "stem.0.conv.bias": tf.Variable(BIAS)}

    def function(image: tf.Tensor) -> dict[str, tf.Tensor]:
        features = tf.nn.conv2d(image, variables["stem.0.conv/kernel"], 1, "VALID") + variables["stem.0.conv.bias"]
        doubled = tf.while_loop(lambda i, x: i < 3, lambda i, x: (i + 1, x + tf.nn.silu(features)), [0, features])[1]
        return {"total.1": tf.reduce_mean(doubled, [1, 2]), "features": features}

    signature = [tf.TensorSpec((None, 9, 8, 4), tf.float32, name="image")]
    write_saved_model(function, signature, variables, path, STAMP)


def torch_network():
    import torch
    from torch import nn

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(12, 5, 3)

        def forward(self, x):
            features = self.conv(torch.ops.converter.space_to_depth(x, 2))
            return features.relu(), features.mean((2, 3))

    torch.manual_seed(0)
    return Network().eval()


def write_onnx(path: Path, *, external_data: bool | None = None) -> None:
    import torch
    from writers import write_onnx

    import converter.ir.custom_ops  # noqa: F401  # registers space_to_depth

    write_onnx(
        torch_network(),
        (torch.zeros(2, 3, 10, 8),),
        ["image"],
        ["features", "total"],
        ({0: torch.export.Dim("batch")},),
        path,
        STAMP,
        external_data=external_data,
    )


WRITERS = {"tf": write_saved_model, "keras": write_keras, "onnx": write_onnx}
NAMES = {"tf": "net_saved_model", "keras": "net.keras", "onnx": "net.onnx"}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    """One of each format: {format: path}."""
    folder = tmp_path_factory.mktemp("artifacts")
    for format, write in WRITERS.items():
        write(folder / NAMES[format])
    return {format: folder / name for format, name in NAMES.items()}


@pytest.fixture(scope="module")
def runners(artifacts):
    opened = {format: Runner(format, timeout=120) for format in WRITERS}
    for format, runner in opened.items():
        runner.open(artifacts[format])
    yield opened
    for runner in opened.values():
        runner.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "format, inputs, outputs",
    [
        pytest.param(
            "tf",
            [TensorSpec("image", (None, 9, 8, 4), "float32")],
            [TensorSpec("features", (None, 7, 7, 6), "float32"), TensorSpec("total.1", (None, 6), "float32")],
            id="tf",
        ),
        pytest.param(
            "keras",
            [TensorSpec("image", (None, 9, 8, 4), "float32")],
            [TensorSpec("features", (None, 7, 7, 6), "float32"), TensorSpec("total", (None, 6), "float32")],
            id="keras: names are the keys, not the layers",
        ),
        pytest.param(
            "onnx",
            [TensorSpec("image", (None, 3, 10, 8), "float32")],
            [TensorSpec("features", (None, 5, 3, 2), "float32"), TensorSpec("total", (None, 5), "float32")],
            id="onnx",
        ),
    ],
)
def test_inputs_and_outputs(runners, format, inputs, outputs):
    assert list(runners[format].inputs) == inputs
    assert list(runners[format].outputs) == outputs


def convolve(image: np.ndarray) -> np.ndarray:
    """KERNEL over `image`, in float64, written out."""
    result = np.zeros((len(image), 7, 7, 6))
    for group in range(2):
        channels, filters = slice(2 * group, 2 * group + 2), slice(3 * group, 3 * group + 3)
        for row in range(3):
            for column in range(2):
                window = image[:, row : row + 7, column : column + 7, channels].astype(np.float64)
                result[..., filters] += window @ KERNEL[row, column, :, filters]
    return result + BIAS


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("format", ["tf", "keras"])
def test_runs_at_any_batch(runners, format, batch):
    outputs = runners[format].run({"image": IMAGE[:batch]})
    np.testing.assert_allclose(outputs["features"], convolve(IMAGE[:batch]), rtol=0, atol=1e-5)
    assert set(outputs) == {spec.name for spec in runners[format].outputs}


@pytest.mark.parametrize("batch", [1, 3])
def test_onnx_runs_at_any_batch(runners, batch):
    import torch

    image = RNG.normal(size=(batch, 3, 10, 8)).astype(np.float32)
    with torch.no_grad():
        features, total = torch_network()(torch.from_numpy(image))
    outputs = runners["onnx"].run({"image": image})
    np.testing.assert_allclose(outputs["features"], features.numpy(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(outputs["total"], total.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "format, expected",
    [
        pytest.param("tf", {"stem.0.conv/kernel": KERNEL, "stem.0.conv.bias": BIAS}, id="tf: dots and slashes"),
        pytest.param("keras", {"stem.0.conv/kernel": KERNEL, "stem.0.conv/bias": BIAS}, id="keras"),
    ],
)
def test_weights_come_back_bit_for_bit(runners, format, expected):
    tensors = runners[format].tensors()
    assert set(tensors) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(tensors[name], value)


def test_onnx_weights_keep_their_names(runners):
    tensors = runners["onnx"].tensors()
    np.testing.assert_array_equal(tensors["conv.weight"], torch_network().conv.weight.detach().numpy())


@pytest.mark.parametrize(
    "format, expected",
    [
        pytest.param(
            "tf",
            {"Conv2D": 1, "AddV2": 4, "Sigmoid": 1, "Mul": 2, "Mean": 1, "Less": 1, "StatelessWhile": 1},
            id="tf: a loop's body counts once, no variable is an operator",
        ),
        pytest.param(
            "keras",
            {"Conv2D": 1, "BiasAdd": 1, "Relu": 1, "Mean": 1},
            id="keras: a called function counts as its nodes, a bias reshaped is no operator",
        ),
        pytest.param(
            "onnx", {"SpaceToDepth": 1, "Conv": 1, "Relu": 1, "ReduceMean": 1}, id="onnx: one SpaceToDepth, no Slice"
        ),
    ],
)
def test_operators(runners, format, expected):
    assert runners[format].operators() == expected


def test_xla_is_found(runners):
    assert runners["tf"].xla_functions() == []
    assert runners["onnx"].xla_functions() == []
    assert runners["keras"].xla_functions() != [], "Keras compiles a stock grouped Conv2D with XLA"


@pytest.mark.slow
@pytest.mark.parametrize("format", WRITERS)
def test_the_stamp_comes_back(artifacts, format):
    assert read_stamp(artifacts[format]).items() > STAMP.items()
    with Runner(format) as runner:
        runner.open(artifacts[format])
        assert runner.graph_as_written() is True


def test_formats_and_stamps_are_told_without_a_framework(artifacts):
    script = """
        import sys
        from pathlib import Path
        from converter.artifacts.detect_format import detect_format
        from converter.artifacts.runtime.stamp import read_stamp
        for path in sys.argv[1:]:
            print(detect_format(Path(path)), read_stamp(Path(path))["schema"])
        heavy = {"torch", "tensorflow", "keras", "onnx", "onnxruntime", "numpy"} & set(sys.modules)
        assert not heavy, heavy
    """
    told = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, artifacts.values())],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )
    assert (told.stdout.split(), told.stderr) == (["tf", "1", "keras", "1", "onnx", "1"], "")


def test_the_format_is_told_by_content(artifacts, tmp_path):
    for format in ["keras", "onnx"]:
        renamed = tmp_path / "artifact"
        renamed.write_bytes(artifacts[format].read_bytes())
        assert detect_format(renamed) == format


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", "")


@pytest.mark.parametrize(
    "occupy",
    [
        pytest.param(lambda path: None, id="nothing"),
        pytest.param(lambda path: path.mkdir(), id="empty folder"),
        pytest.param(lambda path: path.write_bytes(b""), id="empty file"),
        pytest.param(lambda path: path.write_text("a checkpoint, honestly"), id="text"),
        pytest.param(lambda path: path.write_bytes(RNG.bytes(5000)), id="noise"),
        pytest.param(write_zip, id="a PyTorch checkpoint"),
        pytest.param(lambda path: path.write_bytes(b"\x08\x0a\x3a\x05ab"), id="protobuf cut short"),
        pytest.param(lambda path: path.write_bytes(b"\x80" * 100), id="endless number"),
    ],
)
def test_what_is_no_artifact_has_no_format_and_no_stamp(tmp_path, occupy):
    path = tmp_path / "unknown"
    occupy(path)
    assert not bears_our_stamp(path)
    with pytest.raises(ConversionError) as refused:
        detect_format(path)
    assert str(path) in str(refused.value)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["keras", "onnx"])
@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_bytes_never_break_the_telling(artifacts, tmp_path, format, data):
    content = bytearray(artifacts[format].read_bytes())
    places = st.integers(0, len(content) - 1) | st.integers(max(0, len(content) - 600), len(content) - 1)
    for place in data.draw(st.lists(places, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.none() | places)
    path = tmp_path / "damaged"
    path.write_bytes(content[:cut])
    assert read_stamp(path) is None or isinstance(read_stamp(path), dict)


@pytest.mark.parametrize("format", WRITERS)
def test_an_artifact_of_another_tool_bears_no_stamp(tmp_path, format):
    path = tmp_path / "theirs"
    if format == "keras":
        keras_model().save(tmp_path / "theirs.keras")
        path = tmp_path / "theirs.keras"
    elif format == "tf":
        keras_model().export(path, verbose=False)
    else:
        import onnx

        value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
        graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "theirs", [value], [])
        model = onnx.helper.make_model(graph)
        onnx.helper.set_model_props(model, {"author": "them"})
        onnx.save(model, path)
    assert detect_format(path) == format
    assert read_stamp(path) is None


def contents(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


@pytest.mark.parametrize("format", WRITERS)
def test_the_same_model_gives_the_same_bytes_again_in_this_process(artifacts, tmp_path, format):
    WRITERS[format](tmp_path / NAMES[format])
    assert contents(tmp_path / NAMES[format]) == contents(artifacts[format])


@pytest.mark.slow
def test_the_same_model_gives_the_same_bytes_in_another_process(artifacts, tmp_path):
    script = "import sys, test_artifacts as t; from pathlib import Path\n"
    script += "for format, write in t.WRITERS.items(): write(Path(sys.argv[1], t.NAMES[format]))"
    tests = Path(__file__).resolve().parents[1]
    paths = os.pathsep.join(map(str, (tests / "artifacts", tests / "support", tests.parent)))
    environment = os.environ | {"PYTHONPATH": paths, "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], env=environment, check=True, capture_output=True)
    for format, path in artifacts.items():
        assert contents(tmp_path / NAMES[format]) == contents(path), format


def test_others_may_read_what_is_written(artifacts):
    umask = os.umask(0)
    os.umask(umask)
    for path in artifacts.values():
        for file in [path] if path.is_file() else path.rglob("*"):
            assert file.stat().st_mode & 0o444 == 0o444 & ~umask, file


def test_nothing_but_the_artifact_is_left_beside_it(artifacts):
    assert sorted(path.name for path in artifacts["keras"].parent.iterdir()) == sorted(NAMES.values())


@pytest.mark.slow
def test_keras_file_opens_with_stock_keras_where_converter_cannot_be_imported(artifacts, tmp_path):
    script = """
        import sys
        sys.modules["converter"] = sys.modules["mappings"] = None
        import keras
        model = keras.saving.load_model(sys.argv[1])
        print(model.get_layer("stem.0.conv").count_params(), len(model.trainable_variables))
    """
    opened = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(script), str(artifacts["keras"])],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert opened.stdout.split() == [str(KERNEL.size + BIAS.size), "2"], opened.stderr


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    "format, absent",
    [("tf", ["libtorch", "PIL/_imaging"]), ("keras", ["libtorch", "sklearn"]), ("onnx", ["libtorch", "libtensorflow"])],
)
def test_the_child_loads_nothing_but_its_runtime(runners, format, absent):
    loaded = Path(f"/proc/{runners[format].pid}/maps").read_text()
    assert [library for library in absent if library in loaded] == []


@pytest.mark.slow
def test_a_users_own_modules_in_the_current_directory_do_not_shadow(tmp_path, monkeypatch, artifacts):
    for name in ["converter", "onnx", "numpy", "messages", "artifacts"]:
        (tmp_path / f"{name}.py").write_text("raise SystemExit('shadowed')")
    monkeypatch.chdir(tmp_path)
    with Runner("onnx") as runner:
        runner.open(artifacts["onnx"])
        assert runner.operators()["SpaceToDepth"] == 1


@pytest.mark.slow
def test_a_saved_model_of_another_tool_opens(runners, artifacts, tmp_path):
    keras_model().export(tmp_path / "theirs", verbose=False)
    try:
        runners["tf"].open(tmp_path / "theirs")
        outputs = runners["tf"].run({"image": IMAGE})
        assert runners["tf"].xla_functions() != []
        assert any(np.array_equal(tensor, KERNEL) for tensor in runners["tf"].tensors().values())
    finally:
        runners["tf"].open(artifacts["tf"])
    np.testing.assert_allclose(outputs["features"], convolve(IMAGE), rtol=0, atol=1e-5)


def test_a_keras_file_of_any_name_opens(runners, artifacts, tmp_path):
    (tmp_path / "model.bin").write_bytes(artifacts["keras"].read_bytes())
    runners["keras"].open(tmp_path / "model.bin")
    assert runners["keras"].outputs[1].name == "total"


@pytest.mark.parametrize("name", [None, "images.0", "0", "größe"])
def test_an_input_name_that_tensorflow_would_change_is_refused(tmp_path, name):
    import tensorflow as tf
    from writers import write_saved_model

    with pytest.raises(ValueError, match="rename"):
        write_saved_model(lambda x: {"y": x}, [tf.TensorSpec((1,), name=name)], {}, tmp_path / "m", STAMP)


def test_the_saved_model_keeps_its_weights_by_name_and_once(artifacts):
    import tensorflow as tf

    loaded = tf.saved_model.load(str(artifacts["tf"]))
    assert set(loaded.weights) == {"stem.0.conv/kernel", "stem.0.conv.bias"}
    size = (artifacts["tf"] / "variables" / "variables.data-00000-of-00001").stat().st_size
    assert size < 1.02 * (KERNEL.nbytes + BIAS.nbytes) + 2000


@pytest.mark.slow
def test_the_gradient_goes_through_a_loaded_saved_model(artifacts):
    """The writer takes custom gradients' registration out; what they stand for must still be derived."""
    import tensorflow as tf

    image = tf.constant(IMAGE)
    loaded = tf.saved_model.load(str(artifacts["tf"]))
    with tf.GradientTape() as tape:
        tape.watch(image)
        written = loaded.signatures["serving_default"](image=image)["total.1"]
    gradient = tape.gradient(written, image)
    with tf.GradientTape() as tape:
        tape.watch(image)
        features = tf.nn.conv2d(image, KERNEL, 1, "VALID") + BIAS
        expected = tf.reduce_mean(features + 3 * features * tf.sigmoid(features), [1, 2])
    np.testing.assert_allclose(gradient, tape.gradient(expected, image), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_onnx_external_data_has_its_final_name(tmp_path):
    write_onnx(tmp_path / "net.onnx", external_data=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.onnx", "net.onnx.data"]
    assert read_stamp(tmp_path / "net.onnx").items() > STAMP.items()
    with Runner("onnx") as runner:
        runner.open(tmp_path / "net.onnx")
        assert runner.tensors()["conv.weight"].shape == (5, 12, 3, 3)


@pytest.mark.slow
def test_weights_beside_an_onnx_file_are_named_by_their_content(tmp_path):
    from converter.artifacts import onnx_writer
    from converter.artifacts.placement import data_name

    write_onnx(tmp_path / "net.onnx", external_data=True)
    content = (tmp_path / "net.onnx.data").read_bytes()
    onnx_writer.name_by_content(tmp_path / "net.onnx")
    name = data_name("net.onnx", hashlib.sha256(content).hexdigest())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.onnx", name]
    assert (tmp_path / name).read_bytes() == content
    assert read_stamp(tmp_path / "net.onnx").items() > STAMP.items()
    with Runner("onnx") as runner:
        runner.open(tmp_path / "net.onnx")
        assert runner.tensors()["conv.weight"].shape == (5, 12, 3, 3)
        assert runner.graph_as_written()


@pytest.mark.slow
def test_a_conversion_of_large_weights_takes_the_place_of_an_earlier_one_with_its_own(tmp_path, monkeypatch):
    import torch

    import converter
    from converter.artifacts import onnx_writer
    from converter.artifacts.placement import data_name

    monkeypatch.setattr(onnx_writer, "LARGEST", 0)
    found = []
    for seed, verify in ((1, False), (2, True)):
        torch.manual_seed(seed)
        module = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.ReLU(), torch.nn.Linear(30, 7)).eval()
        report = converter.convert(
            module, to=["onnx"], output=tmp_path / "net.onnx", input_shapes=["1,40"], verify=verify, trace=verify
        )
        model, data = sorted(path for path in tmp_path.iterdir())
        assert model.name == "net.onnx"
        assert data.name == data_name("net.onnx", hashlib.sha256(data.read_bytes()).hexdigest())
        assert data.stat().st_size > 4 * 30 * 40
        found.append(data.name)
    assert found[0] != found[1]
    assert report.status == "verified"


@pytest.mark.slow
def test_a_trace_of_large_weights_leaves_nothing_for_a_killed_process_to_leave(tmp_path, monkeypatch):
    """They are handed to the session in memory, not in a temporary file."""
    from converter.artifacts.runtime import onnx as onnx_reader
    from converter.artifacts.runtime import onnx_file

    write_onnx(tmp_path / "net.onnx", external_data=True)
    image = np.random.default_rng(0).normal(size=(2, 3, 10, 8)).astype(np.float32)
    reader = onnx_reader.Reader()
    reader.open(tmp_path / "net.onnx")
    whole = list(reader.trace({"image": image}))
    monkeypatch.setattr(onnx_file, "LARGE", 200)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    apart = list(reader.trace({"image": image}))
    assert [value[:3] for value in apart] == [value[:3] for value in whole]
    for one, other in zip(apart, whole, strict=True):
        np.testing.assert_array_equal(one[3], other[3])
    assert {operator for _, operator, *_ in whole} >= {"Conv", "Relu"}


def test_onnx_names_the_batch_and_no_path_of_this_machine(artifacts):
    import onnx

    model = onnx.load(artifacts["onnx"])
    assert [value.type.tensor_type.shape.dim[0].dim_param for value in [*model.graph.input, *model.graph.output]] == [
        "batch"
    ] * 3
    assert str(Path(__file__).parent).encode() not in artifacts["onnx"].read_bytes()
    assert any("conv" in prop.value for node in model.graph.node for prop in node.metadata_props)


@pytest.mark.parametrize("format", WRITERS)
def test_writing_is_silent(tmp_path, capfd, format):
    WRITERS[format](tmp_path / NAMES[format])
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_the_exporter_does_not_warn(tmp_path, recwarn):
    write_onnx(tmp_path / "net.onnx")
    assert [str(warning.message) for warning in recwarn] == []


@pytest.mark.slow
@pytest.mark.parametrize("opset", [17, 20])
def test_onnx_has_the_opset_asked_for(tmp_path, opset):
    import onnx
    import torch
    from writers import write_onnx

    write_onnx(torch.nn.GELU(), (torch.zeros(2, 3),), ["x"], ["y"], None, tmp_path / "a.onnx", STAMP, opset)
    assert [entry.version for entry in onnx.load(tmp_path / "a.onnx").opset_import] == [opset]


@pytest.mark.slow
def test_an_opset_that_the_exporter_does_not_reach_is_no_other_one(tmp_path):
    import torch
    from writers import write_onnx

    with pytest.raises(ConversionError, match="wrote opset 18, not 12"):
        write_onnx(torch.nn.ReLU(), (torch.zeros(2, 3),), ["x"], ["y"], None, tmp_path / "a.onnx", STAMP, 12)


@pytest.mark.slow
def test_operators_of_ours_come_out_as_onnx_operators(tmp_path, runners, artifacts):
    import torch
    from writers import write_onnx

    class Ours(torch.nn.Module):
        def forward(self, x):
            ours = torch.ops.converter
            return ours.dropout(ours.reorder_channels(ours.space_to_depth(x, 2), [1, 0, 3, 2]), 0.5)

    image = torch.arange(48.0).reshape(2, 1, 4, 6)
    write_onnx(Ours().eval(), (image,), ["x"], ["y"], None, tmp_path / "a.onnx", STAMP)
    try:
        runners["onnx"].open(tmp_path / "a.onnx")
        assert runners["onnx"].operators() == {"Gather": 1, "SpaceToDepth": 1}
        np.testing.assert_array_equal(runners["onnx"].run({"x": image.numpy()})["y"], Ours()(image).numpy())
    finally:
        runners["onnx"].open(artifacts["onnx"])


@pytest.mark.slow
def test_onnx_of_an_operator_without_translation_is_explained(tmp_path):
    import torch
    from writers import write_onnx

    class Sorted(torch.nn.Module):
        def forward(self, x):
            return torch.linalg.eigvals(x).real

    with pytest.raises(ConversionError, match="linalg_eig"):
        write_onnx(Sorted().eval(), (torch.zeros(3, 3),), ["x"], ["y"], None, tmp_path / "a.onnx", STAMP)


@pytest.mark.parametrize("format", WRITERS)
def test_a_damaged_artifact_is_explained_and_the_runner_lives_on(runners, artifacts, tmp_path, format):
    broken = tmp_path / NAMES[format]
    if format == "tf":
        broken.mkdir()
        (broken / "saved_model.pb").write_bytes((artifacts["tf"] / "saved_model.pb").read_bytes()[:500])
    else:
        broken.write_bytes(artifacts[format].read_bytes()[:500])
    with pytest.raises(ConversionError, match="does not open") as refused:
        runners[format].open(broken)
    assert str(broken) in str(refused.value)
    runners[format].open(artifacts[format])


def test_inputs_of_other_names_are_refused(runners):
    with pytest.raises(ConversionError, match=r"\['image'\], not \['picture'\]"):
        runners["onnx"].run({"picture": IMAGE})


def test_inputs_of_another_shape_are_refused(runners):
    with pytest.raises(ConversionError, match="does not run"):
        runners["onnx"].run({"image": IMAGE})


def test_a_child_that_dies_is_told_with_what_it_wrote(artifacts):
    with Runner("onnx") as runner:
        runner.open(artifacts["onnx"])
        os.kill(runner.pid, signal.SIGKILL)
        with pytest.raises(ConversionError, match="signal 9"):
            runner.run({"image": np.zeros((1, 3, 10, 8), np.float32)})
        with pytest.raises(ConversionError, match="signal 9"):
            runner.tensors()


def test_what_a_crashing_child_wrote_is_told(artifacts, monkeypatch):
    monkeypatch.setenv("PYTHONFAULTHANDLER", "1")
    with Runner("onnx") as runner:
        runner.open(artifacts["onnx"])
        os.kill(runner.pid, signal.SIGSEGV)
        with pytest.raises(ConversionError, match="Segmentation fault"):
            runner.tensors()


def test_a_runtime_that_cannot_be_imported_is_told(artifacts, tmp_path, monkeypatch):
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('libfoo.so is missing')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Runner("onnx") as runner, pytest.raises(ConversionError, match=r"libfoo\.so is missing"):
        runner.open(artifacts["onnx"])


def test_a_child_that_takes_too_long_is_stopped(artifacts):
    with Runner("onnx", timeout=0.01) as runner, pytest.raises(ConversionError, match=r"longer than 0\.01 s"):
        runner.open(artifacts["onnx"])


def test_a_runner_closed_at_once_leaves_no_process():
    runner = Runner("tf")
    runner.close()
    with pytest.raises(ProcessLookupError):
        os.kill(runner.pid, 0)


@pytest.mark.parametrize(
    "array",
    [
        pytest.param(np.array(3.5), id="a scalar stays one"),
        pytest.param(np.zeros((0, 4), np.int64), id="empty"),
        pytest.param(np.arange(24, dtype=">f4").reshape(2, 3, 4).transpose(2, 0, 1), id="strided, big-endian"),
        pytest.param(np.array([True, False]), id="bool"),
        pytest.param(np.array([1 + 2j]), id="complex"),
        pytest.param(np.array([np.nan, -np.inf], np.float16), id="half with nan"),
        pytest.param("bfloat16", id="bfloat16"),
    ],
)
def test_arrays_pass_between_processes_unchanged(tmp_path, array):
    from converter.artifacts.runtime.protocol import receive, send

    if isinstance(array, str):
        import ml_dtypes

        array = np.array([1.5, -2], getattr(ml_dtypes, array))
    with (tmp_path / "message").open("w+b") as stream:
        send(stream, {"a": 1}, {"x": array})
        stream.seek(0)
        content, arrays = receive(stream)
    assert content == {"a": 1}
    assert arrays["x"].dtype == array.dtype
    np.testing.assert_array_equal(arrays["x"], array)
    assert arrays["x"].shape == array.shape


def test_a_message_cut_short_is_the_end(tmp_path):
    from converter.artifacts.runtime.protocol import receive

    with (tmp_path / "message").open("w+b") as stream:
        stream.write(struct.pack("<Q", 10) + b"{}")
        stream.seek(0)
        with pytest.raises(EOFError):
            receive(stream)


def test_strings_are_no_numbers(tmp_path):
    from converter.artifacts.runtime.protocol import send

    with (tmp_path / "message").open("w+b") as stream, pytest.raises(TypeError, match="'labels'"):
        send(stream, {}, {"labels": np.array(["cat"])})
