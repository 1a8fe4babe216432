"""Whole conversions of models that are odd in their names, outputs and weights, in all formats at once."""

import pytest
import torch
from torch import nn

import converter
from converter.errors import ConversionError


class OddNames(nn.Module):
    """Any text is a key of a ModuleDict and of a dictionary of outputs; `graph` and `code` are fx's own."""

    def __init__(self):
        super().__init__()
        self._stem = nn.Conv2d(3, 4, 3)
        self.graph = nn.ModuleDict({"a b": nn.Conv2d(4, 4, 1), "a_b": nn.Conv2d(4, 4, 1), "x/ü": nn.Conv2d(4, 4, 1)})
        self.code = nn.ModuleDict({"class": nn.Linear(4, 2)})

    def forward(self, x):
        x = self.graph["x/ü"](self.graph["a b"](self._stem(x)).relu() * self.graph["a_b"](self._stem(x)))
        return {"a/b c": x, "größe": self.code["class"](x.mean((2, 3))), "_x": x.amax(1)}


class ConstantOutput(nn.Module):
    def forward(self, x):
        return x * 2, torch.arange(4.0), torch.arange(3) > 1


class EqualTensors(nn.Module):
    """Fresh norms hold the same values: PyTorch's exporter writes them once."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.LayerNorm(4) for _ in range(3))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x).relu() + x
        return x


class TiedTable(nn.Module):
    """A table that is a classifier too: PyTorch's exporter writes it twice, once transposed."""

    def __init__(self):
        super().__init__()
        self.table, self.mix, self.classify = nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 9)
        self.classify.weight = self.table.weight

    def forward(self, tokens):
        return self.classify(self.mix(self.table(tokens)).sigmoid())


class LiveWeightNorm(nn.Module):
    """Built and not saved: the weight that the hook computes is no leaf, which deepcopy refuses."""

    def __init__(self):
        super().__init__()
        self.conv = nn.utils.weight_norm(nn.Conv1d(2, 4, 3))

    def forward(self, x):
        return self.conv(x)


@pytest.mark.slow
@pytest.mark.parametrize(
    "model, shape, outputs",
    [
        pytest.param(LiveWeightNorm, "1,2,9", ["output"], id="a weight that a hook computes"),
        pytest.param(TiedTable, "1,5:int64", ["output"], id="a weight that is read twice"),
        pytest.param(OddNames, "1,3,6,6", ["a/b c", "größe", "_x"], id="names that are no scopes and no attributes"),
        pytest.param(
            ConstantOutput, "1,4", ["output_0", "output_1", "output_2"], id="outputs that do not depend on an input"
        ),
        pytest.param(EqualTensors, "1,4", ["output"], id="equal weights, which the exporter merges"),
    ],
)
def test_odd_model_is_converted_and_verified(tmp_path, model, shape, outputs):
    torch.manual_seed(0)
    report = converter.convert(model().eval(), to=["tf", "keras", "onnx"], output=tmp_path, input_shapes=[shape])
    assert [a.status for a in report.artifacts] == ["verified"] * 3, [
        p.summary for a in report.artifacts for p in a.proofs
    ]
    assert all([o.name for o in a.outputs] == outputs for a in report.artifacts)


class SetsChannel(nn.Module):
    """The zero that is set is the same number as the axis that PyTorch's exporter writes beside it."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        y = self.linear(x)
        y[:, 0] = 0
        return y


class FreshAttention(nn.Module):
    """Its bias of zeros changes nothing, and PyTorch's exporter leaves it out."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "model, shape",
    [
        pytest.param(SetsChannel, "1,4", id="a number that is an axis too"),
        pytest.param(FreshAttention, "1,5,8", id="a bias of zeros"),
    ],
)
def test_what_the_exporter_writes_of_odd_weights_is_accounted_for(tmp_path, model, shape):
    torch.manual_seed(0)
    report = converter.convert(model().eval(), to=["onnx"], output=tmp_path / "m.onnx", input_shapes=[shape])
    assert report.status == "verified", [f for p in report.artifacts[0].proofs for f in p.failures]


class Foreign(nn.Module):
    """The name of its input is none that a graph can have."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(3, 4)

    def forward(self, größe):
        return self.body(größe).relu()


@pytest.fixture
def broken_layer(monkeypatch):
    """A fault in what makes Keras layers, as nobody foresees one."""

    def fail(*_):
        raise KeyError("units")

    monkeypatch.setattr("converter.lowering.executor.PlanExecutor._layer", fail)


@pytest.mark.slow
def test_fault_in_one_format_leaves_the_others_and_names_the_module(tmp_path, broken_layer):
    report = converter.convert(Foreign(), to=["keras", "onnx"], output=tmp_path, input_shapes=["1,3"], verify=False)
    keras, onnx = report.artifacts
    assert onnx.path == tmp_path / "model.onnx"
    assert onnx.path.exists()
    assert onnx.failure is keras.path is None
    assert keras.failure.what == "KeyError: 'units'"
    assert keras.failure.where == "module `body`, aten.linear.default"
    assert report.status == "not verified"
    (note,) = (note for note in report.notes if note.code == "PTC2503")
    assert note.text.startswith("Input `größe` is named `gr__e`: ")
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx"}


def test_fault_in_all_formats_is_an_error(tmp_path, broken_layer):
    with pytest.raises(ConversionError, match=r"module `body`, aten\.linear") as caught:
        converter.convert(Foreign(), to=["keras"], output=tmp_path / "m.keras", input_shapes=["1,3"], verify=False)
    assert isinstance(caught.value.__cause__, KeyError)
