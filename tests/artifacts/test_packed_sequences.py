"""Packed sequences: recurrent layers that stop at each sequence's length, an input."""

import numpy as np
import onnxruntime
import pytest
import tensorflow as tf
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import converter
from converter.errors import CaptureError, ConversionError


class Every(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 6, padding_idx=0)
        self.lstm = nn.LSTM(6, 5, 2, bidirectional=True, batch_first=True)
        self.gru, self.rnn = nn.GRU(10, 4, bidirectional=True), nn.RNN(6, 3, batch_first=True)

    def forward(self, tokens, lengths):
        x = self.embed(tokens)
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        between, (hidden, cell) = self.lstm(packed)
        after, last = self.gru(between)
        plain, _ = self.rnn(packed, torch.ones(1, tokens.shape[0], 3))
        after, steps = pad_packed_sequence(after, batch_first=True, total_length=tokens.shape[1], padding_value=-1.0)
        plain, _ = pad_packed_sequence(plain, total_length=tokens.shape[1])
        return {"hidden": hidden, "cell": cell[-1], "last": last, "after": after, "plain": plain, "steps": steps * 2}


@pytest.fixture(scope="module")
def every(tmp_path_factory):
    torch.manual_seed(0)
    module = Every().eval()
    report = converter.convert(
        module, to=["tf", "keras", "onnx", "tflite"], output=tmp_path_factory.mktemp("packed"),
        input_shapes=["1,T:int64", "1:int64"],
    )  # fmt: skip
    assert report.status == "verified", report
    assert "PTC2515" not in {note.code for note in report.notes}
    return module, {artifact.format: artifact for artifact in report.artifacts}


@pytest.mark.slow
@pytest.mark.parametrize("steps, lengths", [(7, [3, 7, 1, 7]), (5, [2, 4]), (9, [1])])
def test_layers_stop_at_each_length(every, steps, lengths):
    module, artifacts = every
    tokens = np.random.default_rng(0).integers(0, 20, (len(lengths), steps))
    given = {"tokens": tokens, "lengths": np.array(lengths)}
    session = onnxruntime.InferenceSession(artifacts["onnx"].path)
    names = [output.name for output in session.get_outputs()]
    loaded = tf.saved_model.load(artifacts["tf"].path).signatures["serving_default"]
    found = [
        dict(zip(names, session.run(None, given), strict=True)),
        loaded(**{n: tf.constant(a) for n, a in given.items()}),
    ]
    with torch.no_grad():
        expected = module(*map(torch.from_numpy, given.values()))
    for results in found:
        for name, value in expected.items():
            np.testing.assert_allclose(np.asarray(results[name]), value.numpy(), atol=2e-6, err_msg=name)


@pytest.mark.slow
def test_onnx_has_one_operator_a_layer_that_is_given_the_lengths(every):
    import onnx

    _, artifacts = every
    nodes = onnx.load(artifacts["onnx"].path).graph.node
    layers = [node for node in nodes if node.op_type in ("LSTM", "GRU", "RNN")]
    assert sorted(node.op_type for node in layers) == ["GRU", "LSTM", "LSTM", "RNN"]
    assert all(node.input[4] for node in layers)


class Subsampled(nn.Module):
    """As speech models: a strided convolution halves the frames, and the lengths with them."""

    def __init__(self):
        super().__init__()
        self.conv, self.lstm = nn.Conv1d(6, 4, 3, 2, 1), nn.LSTM(4, 5, bidirectional=True)

    def forward(self, frames, lengths):
        frames = self.conv(frames).permute(2, 0, 1)
        packed = pack_padded_sequence(frames, torch.div(lengths - 1, 2, rounding_mode="floor") + 1)
        return pad_packed_sequence(self.lstm(packed)[0])[0]


@pytest.mark.slow
def test_lengths_may_be_computed_and_must_descend_where_pytorch_asks_for_it(tmp_path):
    shapes = ["frames=batch,6,T", "lengths=batch:int64"]
    report = converter.convert(Subsampled(), to="onnx", output=tmp_path / "s.onnx", input_shapes=shapes)
    assert report.status == "verified", report
    assert "PTC2515" in {note.code for note in report.notes}  # it is cut at the longest


class OfFields(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.gru = nn.Embedding(20, 6), nn.GRU(6, 4)

    def forward(self, tokens, lengths):
        packed = pack_padded_sequence(tokens, lengths)
        return self.gru(PackedSequence(self.embed(packed.data), packed.batch_sizes))[1]


class OfMask(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(6, 4, batch_first=True)

    def forward(self, x, mask):
        packed = pack_padded_sequence(x, mask.sum(1).clamp(min=1), batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(self.gru(packed)[0], batch_first=True)[0]


@pytest.mark.parametrize(
    "module, shapes, code, fix",
    [
        (OfFields(), ["7,2:int64", "2:int64"], "PTC2036", "compute anything else on the padded sequences"),
        (OfMask(), ["1,7,6", "1,7:bool"], "PTC5013", "total_length=x.shape[1]"),
    ],
    ids=["its fields are read", "cut at a longest one that is shorter than the padding"],
)
def test_what_cannot_be_captured_says_what_to_write(tmp_path, module, shapes, code, fix):
    with pytest.raises(CaptureError) as refused:
        converter.convert(module, to="onnx", output=tmp_path / "m.onnx", input_shapes=shapes)
    assert refused.value.code == code
    assert fix in refused.value.fix


class Projected(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(6, 5, batch_first=True, proj_size=3)

    def forward(self, x, lengths):
        packed, _ = self.lstm(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
        return pad_packed_sequence(packed, batch_first=True, total_length=7)[0]


@pytest.mark.slow
@pytest.mark.parametrize("format, code", [("onnx", "PTC4006"), ("keras", "PTC3001")])
def test_a_packed_lstm_with_projections_is_refused(tmp_path, format, code):
    with pytest.raises(ConversionError) as raised:
        converter.convert(
            Projected().eval(), to=format, output=tmp_path / f"x.{format}", input_shapes=["1,7,6", "1:int64"]
        )
    assert raised.value.code == code
    assert "proj_size" in str(raised.value)
