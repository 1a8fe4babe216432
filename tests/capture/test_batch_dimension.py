"""The batch where the user says that it stands; plain numbers are fixed then."""

import numpy as np
import pytest
import torch
from equivalence import assert_same, planned, run_in_float64
from torch import nn

import converter
from converter.capture.input_shapes import FreeSize, parse_input_shape, place_batch
from converter.errors import UsageError
from converter.options import LoadOptions
from converter.pipeline.clock import Clock
from converter.pipeline.load_model import load_model


def load_shaped(module, *shapes, **options):
    return load_model(module.eval(), LoadOptions.of(input_shapes=shapes, **options), clock=Clock(None))


class Recurrent(nn.Module):
    """Time first, with states of (layers, batch, features)."""

    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.GRU(5, 4, 2), nn.Linear(4, 3)

    def forward(self, x, state):
        y, state = self.rnn(x, state)
        return self.head(y), state


@pytest.mark.slow
@pytest.mark.parametrize("format", ["tf", "keras", "onnx"])
def test_a_batch_behind_the_time_is_dynamic_and_the_time_fixed(format, tmp_path):
    shapes = ["x=7,batch,5", "state=2,batch,4"]
    report = converter.convert(Recurrent().eval(), to=[format], output=f"{tmp_path}/", input_shapes=shapes)
    (artifact,) = report.artifacts
    assert artifact.status == "verified", artifact
    assert [list(tensor.shape) for tensor in artifact.inputs] == [[7, "batch", 5], [2, "batch", 4]]
    assert [list(tensor.shape) for tensor in artifact.outputs] == [[7, "batch", 3], [2, "batch", 4]]


class Summed(nn.Module):
    def forward(self, a, b):
        return a.sum(0) + b


def test_the_batch_stands_at_another_place_in_each_input_and_other_names_are_sizes():
    loaded = load_shaped(Summed(), "a=T,batch,5", "b=batch,5")
    assert loaded.program.fixed_batch is None
    a, b = torch.randn(9, 1, 5), torch.randn(1, 5)
    torch.testing.assert_close(loaded.program.run(a, b)[0], a.sum(0) + b)
    a, b = torch.randn(3, 6, 5), torch.randn(6, 5)
    torch.testing.assert_close(loaded.program.run(a, b)[0], a.sum(0) + b)


@pytest.mark.slow
def test_the_users_inputs_are_split_along_the_batch(tmp_path):
    rng = np.random.default_rng(0)
    given = {"a": rng.standard_normal((3, 40, 5), np.float32), "b": rng.standard_normal((40, 5), np.float32)}
    report = converter.convert(
        Summed(), to=["onnx"], output=tmp_path / "sum.onnx", input_shapes=["a=3,batch,5", "b=batch,5"], inputs=given
    )
    assert report.artifacts[0].status == "verified"
    assert any("samples 32 to 39" in kind for kind in report.compared_on.rounds)


class Components(nn.Module):
    """Four images of each example."""

    def forward(self, images, spectra):
        return images.reshape(spectra.shape[0], 4, -1).mean(1) + spectra


@pytest.mark.slow
def test_a_batch_that_is_a_multiple():
    loaded = load_shaped(Components(), "images=4*N,2,3", "spectra=N,6")
    images, spectra = torch.randn(12, 2, 3), torch.randn(3, 6)
    expected = Components()(images, spectra)
    torch.testing.assert_close(loaded.program.run(images, spectra)[0], expected)
    assert loaded.program.fixed_batch is None


def test_a_fixed_batch_replaces_the_name():
    placed = place_batch([parse_input_shape("7,batch,5"), parse_input_shape("3*batch,2")], 4)
    assert [shape.shape for shape in placed] == [(7, 4, 5), (12, 2)]


def test_without_the_name_the_first_size_is_the_batch():
    shapes = [parse_input_shape("N,3,H,W"), parse_input_shape("1,3")]
    assert place_batch(shapes, None) == shapes
    assert shapes[0].batch == FreeSize("N")


@pytest.mark.parametrize("shapes", [("N,3", "M,3"), ("N,N",)])
def test_two_names_of_a_batch_are_refused(shapes):
    with pytest.raises(UsageError, match="same batch"):
        place_batch([parse_input_shape(text) for text in shapes], None)


class ByNumber(nn.Module):
    """Spellings of the batch that make it a number, as DETR's and Swin's own repositories have them."""

    def forward(self, x):
        batch = int(x.shape[0])
        return x.view(batch, 2, -1).sum(1), torch.stack([x[:, 0]] * 2, 1).view(len(x), -1)


def test_a_batch_that_is_made_a_number_stays_dynamic():
    loaded = load_shaped(ByNumber(), "1,4,3")
    assert loaded.program.fixed_batch is None
    x = torch.randn(5, 4, 3)
    for result, expected in zip(loaded.program.run(x), ByNumber()(x), strict=True):
        torch.testing.assert_close(result, expected)


class Looping(nn.Module):
    def forward(self, x):
        return torch.stack([x[i].sum(0) for i in range(len(x))])


def test_the_line_that_fixes_the_batch_is_named():
    loaded = load_shaped(Looping(), "1,4,3")
    assert loaded.program.fixed_batch == 1
    (note,) = [note.text for note in loaded.program.notes if note.code == "PTC2501"]
    assert "does not take other sizes" not in note
    assert "return torch.stack([x[i].sum(0) for i in range(len(x))])" in note


def test_a_norm_with_the_statistics_of_its_batch_is_captured_with_two_examples():
    norm = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False))
    loaded = load_shaped(norm, "1,4")
    assert loaded.program.fixed_batch == 2
    (note,) = [note.text for note in loaded.program.notes if note.code == "PTC2501"]
    assert "of 1 example, Expected more than 1 value per channel" in note
    x = torch.randn(2, 4)
    torch.testing.assert_close(loaded.program.run(x)[0], norm(x))
    (results,) = run_in_float64(planned(loaded.program), [x])
    assert_same(results, loaded.program.with_dtype(torch.float64).run(x.double()), "tf")
