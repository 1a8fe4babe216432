"""`--freeze`: a SavedModel whose weights are constants, proven like one whose weights are variables."""

import shutil

import numpy as np
import pytest
import tensorflow as tf
import torch
from tensorflow.core.protobuf import saved_model_pb2
from torch import nn

from converter import convert, sync, verify
from converter.errors import ConversionError
from converter.options import ArtifactOptions, LoadOptions
from converter.pipeline import build
from converter.pipeline.clock import Clock
from converter.pipeline.load_model import load_model


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU())
        self.norm, self.memory, self.head = nn.LayerNorm(8), nn.LSTM(8, 5, batch_first=True), nn.Linear(5, 4)

    def forward(self, image, scale):
        y = self.norm(self.stem(image).flatten(2).mT)
        return {"b": self.head(self.memory(y)[0]) * scale, "a": y.mean(1)}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("frozen")
    torch.save(module := Net().eval(), folder / "net.pt")
    report = convert(
        module, to="tf", output=folder / "model", input_shapes=["image=1,3,12,12", "scale=1,1,4"], freeze=True
    )
    assert report.status == "verified"
    return module, folder / "model"


def constants(path):
    saved = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    functions = saved.meta_graphs[0].graph_def.library.function
    found = {n.name: n for f in functions for n in f.node_def if n.op == "Const" and n.name.startswith("weights/")}
    return saved, found


@pytest.mark.slow
def test_its_weights_are_constants_and_it_takes_any_batch(written):
    module, path = written
    assert tf.train.list_variables(str(path / "variables/variables"))[1:] == []
    assert {"weights/stem.0.weight", "weights/head.bias"} <= constants(path)[1].keys()
    run = tf.saved_model.load(path).signatures["serving_default"]
    x, scale = torch.randn(3, 3, 12, 12), torch.randn(3, 1, 4)
    got = run(image=tf.constant(x.permute(0, 2, 3, 1).numpy()), scale=tf.constant(scale.numpy()))
    for name, expected in module(x, scale).items():
        np.testing.assert_allclose(got[name], expected.detach(), atol=1e-5)


@pytest.mark.slow
def test_verify_finds_one_weight_that_differs(written, tmp_path):
    module, path = written
    saved, found = constants(path)
    value = found["weights/head.bias"].attr["value"].tensor
    array = tf.make_ndarray(value).copy()
    array[1] = np.nextafter(array[1], np.inf)
    value.CopyFrom(tf.make_tensor_proto(array))
    copied = tmp_path / "model"
    shutil.copytree(path, copied)
    (copied / "saved_model.pb").write_bytes(saved.SerializeToString())
    report = verify(module, copied)
    assert report.status == "disagrees"
    assert any("head.bias" in failure for proof in report.proofs for failure in proof.failures)


@pytest.mark.slow
def test_the_same_model_gives_the_same_bytes(written, tmp_path):
    module, path = written
    shapes = ["image=1,3,12,12", "scale=1,1,4"]
    convert(module, to="tf", output=tmp_path / "model", input_shapes=shapes, freeze=True, verify=False)
    again = (tmp_path / "model/saved_model.pb").read_bytes()
    assert again == (path / "saved_model.pb").read_bytes()


@pytest.mark.slow
def test_sync_writes_what_a_conversion_of_the_other_weights_writes(written, tmp_path):
    _, path = written
    torch.manual_seed(1)
    other = Net().eval()
    nn.init.zeros_(other.head.bias)
    shapes = ["image=1,3,12,12", "scale=1,1,4"]
    convert(other, to="tf", output=tmp_path / "model", input_shapes=shapes, freeze=True, verify=False)
    report = sync(other, path, output=tmp_path / "synced")
    assert report.verified
    files = {file.relative_to(tmp_path / "model") for file in (tmp_path / "model").rglob("*") if file.is_file()}
    assert len(files) >= 4
    for file in files:
        assert (tmp_path / "model" / file).read_bytes() == (tmp_path / "synced" / file).read_bytes(), file
    assert verify(other, tmp_path / "synced").verified


@pytest.mark.slow
def test_sync_refuses_a_changed_constant(written, tmp_path):
    _, path = written
    saved, found = constants(path)
    found["weights/head.bias"].attr["value"].tensor.CopyFrom(tf.make_tensor_proto(np.ones(4, np.float32)))
    shutil.copytree(path, tmp_path / "model")
    (tmp_path / "model/saved_model.pb").write_bytes(saved.SerializeToString())
    with pytest.raises(ConversionError, match="changed after pt-convert wrote it"):
        sync(Net(), tmp_path / "model")


def test_weights_of_over_2_gb_are_refused(monkeypatch):
    monkeypatch.setattr(build, "LARGEST_GRAPH", 100)
    source = load_model(nn.Linear(8, 8), LoadOptions.of(input_shapes=["1,8"]), clock=Clock(None))
    with pytest.raises(ConversionError, match="at most 2 GB") as refused:
        build.build(source, "tf", ArtifactOptions(freeze=True), Clock(None))
    assert "--freeze" in refused.value.fix
    build.build(source, "onnx", ArtifactOptions(freeze=True), Clock(None))
