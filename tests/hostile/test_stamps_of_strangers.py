"""A stamp is data of whoever made the artifact. Damage makes it an artifact of another tool; no edit drops a proof."""

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

import converter
from converter.artifacts.runner import Runner
from converter.artifacts.runtime.stamp import ONNX_KEY, SAVED_MODEL_FILE, read_stamp
from converter.artifacts.stamp_schema import FIELDS, checked_stamp
from converter.errors import CheckpointError
from converter.options import ArtifactOptions, VerifyOptions
from converter.pipeline.verify import apply_stamp

SHAPES = ["1,3,8,8"]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(image)).relu()


@pytest.fixture(scope="session")
def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="session")
def artifact(net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stamped") / "net.onnx"
    converter.convert(net, to="onnx", output=path, input_shapes=SHAPES)
    return path


def restamped(artifact: Path, folder: Path, stamp: Any) -> Path:
    """A copy of the artifact with another stamp: an object, a text, or none."""
    model = onnx.load(artifact)
    for entry in [entry for entry in model.metadata_props if entry.key == ONNX_KEY]:
        model.metadata_props.remove(entry)
    if stamp is not None:
        text = stamp if isinstance(stamp, str) else json.dumps(stamp)
        model.metadata_props.add(key=ONNX_KEY, value=text)
    path = folder / "net.onnx"
    onnx.save(model, path)
    return path


JUNK: list[Any] = [
    5,
    -1,
    1.5,
    True,
    "x",
    "x" * 20_000,
    [],
    [5],
    [[]],
    [{}],
    {},
    {"x": 1},
    {"a": {"b": []}},
    2**70,
    None,
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a stamp."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def edited(stamp: dict[str, Any], place: tuple[Any, ...], value: Any, *, remove: bool = False) -> dict[str, Any]:
    stamp = copy.deepcopy(stamp)
    part: Any = stamp
    for key in place[:-1]:
        part = part[key]
    if remove:
        del part[place[-1]]
    else:
        part[place[-1]] = value
    return stamp


@pytest.mark.slow
@pytest.mark.threat(
    "A stamp with any field edited or removed",
    "damaged: the artifact is compared as one of another tool",
)
def test_every_edit_of_a_stamp_is_damage_or_a_stamp_that_can_be_read(artifact: Path, tmp_path: Path, monkeypatch):
    stamp = read_stamp(artifact)
    assert stamp is not None
    stamp |= {
        "choices": {"eager_moves": ["conv"], "channels_last_inputs": [], "channel_orders": {"conv": [[2, 2], [1, 0]]}}
    }
    assert [name for name, check in FIELDS.items() if not check(stamp.get(name))] == []
    damaged = whole = 0
    for place in places(stamp):
        for value in [*JUNK, ...]:
            changed = edited(stamp, place, value, remove=value is ...)
            monkeypatch.setattr("converter.artifacts.stamp_schema.read_stamp", lambda _, changed=changed: changed)
            read, fault = checked_stamp(tmp_path)
            damaged, whole = damaged + bool(fault), whole + (not fault)
            if fault:
                assert read == {}
                continue
            apply_stamp(VerifyOptions.of(), read)
            ArtifactOptions(**read.get("options") or {})
            for tensor in [*(read.get("inputs") or ()), *(read.get("outputs") or ())] if read.get("options") else ():
                assert isinstance(getattr(torch, tensor["dtype"]), torch.dtype)
                assert sorted(tensor["order"]) == list(range(len(tensor["shape"])))
    assert damaged > 500
    assert whole > 50


@pytest.mark.threat(
    "A stamp that is not valid",
    "the same",
)
@pytest.mark.parametrize(
    "stamp",
    [
        "",
        "{",
        "[" * 100_000,
        "5",
        "null",
        "{}",
        '{"schema": 2}',
        '{"schema": 1e400}',
        '{"schema": NaN}',
        '{"options": 1}',
    ],
    ids=range(10),
)
def test_a_text_that_is_no_stamp_is_damage_or_none(artifact: Path, tmp_path: Path, stamp: str):
    read, _ = checked_stamp(restamped(artifact, tmp_path, stamp))
    assert read == {}


def without_digest(stamp: dict[str, Any]) -> None:
    del stamp["graph_sha256"]


def empty_digest(stamp: dict[str, Any]) -> None:
    stamp["graph_sha256"] = ""


def other_digest(stamp: dict[str, Any]) -> None:
    stamp["graph_sha256"] = "0" * 64


@pytest.mark.threat(
    "A stamp whose digest of the graph is removed or another",
    "reported as changed, not verified",
)
@pytest.mark.parametrize("change", [without_digest, empty_digest, other_digest])
def test_a_stamp_without_its_digest_is_a_change(net, artifact, tmp_path, change: Callable[[dict[str, Any]], None]):
    stamp = read_stamp(artifact)
    assert stamp is not None
    change(stamp)
    report = converter.verify(net, restamped(artifact, tmp_path, stamp))
    assert report.status != "verified"
    assert "the graph differs from what was built" in report.proofs[-1].summary


def test_a_damaged_stamp_is_named_and_the_artifact_compared_as_anybodys(net, artifact, tmp_path):
    stamp = read_stamp(artifact)
    assert stamp is not None
    stamp["inputs"][0]["order"] = [0, 0, 1, 2]
    report = converter.verify(net, restamped(artifact, tmp_path, stamp), input_shapes=SHAPES)
    assert report.status == "verified"
    assert any("stamp is damaged (inputs or outputs)" in note.text for note in report.notes)


def test_an_artifact_of_ours_verifies_and_no_operator_of_it_is_refused(net, artifact):
    assert converter.verify(net, artifact).status == "verified"


@pytest.mark.threat(
    "A stamp of gigabytes",
    "not read",
)
def test_a_stamp_that_expands_without_measure_is_none(tmp_path: Path):
    folder = tmp_path / "model"
    (folder / SAVED_MODEL_FILE).parent.mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"")
    with (folder / SAVED_MODEL_FILE).open("wb") as file:
        file.truncate(1 << 30)
    assert read_stamp(folder) is None


def test_what_is_refused_ends_with_status_4_and_the_option_that_lifts_it(tmp_path: Path):
    value = onnx.helper.make_tensor_value_info("x", 1, [1])
    nodes = [onnx.helper.make_node("Own", ["x"], ["y"], domain="evil")]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [value], [value])), tmp_path / "a.onnx")
    with Runner("onnx") as runner, pytest.raises(CheckpointError, match="--trust artifact") as error:
        runner.open(tmp_path / "a.onnx")
    assert error.value.exit_status == 4


def swapped_operands(saved: Any) -> None:
    for function in saved.meta_graphs[0].graph_def.library.function:
        for node in function.node_def:
            if node.op == "Sub":
                node.input[0], node.input[1] = node.input[1], node.input[0]


def swapped_variables(saved: Any) -> None:
    for function in saved.meta_graphs[0].object_graph_def.concrete_functions.values():
        bound = list(function.bound_inputs)
        function.bound_inputs[:] = bound[::-1]


def another_branch(saved: Any) -> None:
    for function in saved.meta_graphs[0].graph_def.library.function:
        for node in function.node_def:
            if node.op in ("If", "StatelessIf"):
                node.attr["then_branch"].CopyFrom(node.attr["else_branch"])


def nothing(saved: Any) -> None:
    """As it was written."""


@pytest.fixture(scope="session")
def written_by_us(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tensorflow as tf

    from converter.artifacts import saved_model_writer
    from converter.lowering.tf_function import trace

    one, other = (tf.Variable(tf.eye(3) * (k + 1), name=f"v{k}") for k in range(2))

    def function(x: Any, y: Any) -> dict[str, Any]:
        left, right = tf.split(tf.matmul(x, one) - tf.matmul(y, other), [1, 2], 1)
        branch = tf.cond(tf.reduce_sum(left) > 0, lambda: right * 2, lambda: right + tf.matmul(y, one)[:, 1:])
        _, looped = tf.while_loop(lambda i, z: i < 3, lambda i, z: (i + 1, z @ one), [0, x])
        return {"branch": branch, "left": left, "looped": looped}

    path = tmp_path_factory.mktemp("ours") / "model"
    signature = [tf.TensorSpec((None, 3), tf.float32, name) for name in ("later", "early")]
    saved_model_writer.save(trace(function, signature), {"a.one": one, "other": other}, path, {"schema": 1})
    return path


@pytest.mark.threat("A SavedModel of ours whose nodes or variables are wired otherwise", "its digest is another")
@pytest.mark.parametrize("change", [nothing, swapped_operands, swapped_variables, another_branch])
def test_the_digest_covers_the_wiring(written_by_us: Path, tmp_path: Path, change: Callable[[Any], None]):
    from tensorflow.core.protobuf import saved_model_pb2

    from converter.artifacts.runtime.saved_model import Reader

    folder = tmp_path / "model"
    shutil.copytree(written_by_us, folder)
    file = folder / "saved_model.pb"
    saved = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    change(saved)
    file.write_bytes(saved.SerializeToString())
    reader = Reader()
    reader.open(folder)
    stamp = read_stamp(folder)
    assert stamp is not None
    assert (reader.graph_digest() == stamp["graph_sha256"]) is (change is nothing)
