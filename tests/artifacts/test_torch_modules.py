"""A PyTorch module that pt-convert writes: source to read, the same outputs, and no code of a stranger runs."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import converter
from converter.artifacts.runner import Runner
from converter.errors import CheckpointError, UnsupportedOperatorsError
from converter.pipeline.convert import ConversionSession


class Focus(nn.Module):
    """YOLOv5's stem: four slices, joined column by column, and a convolution of them."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(12, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8, eps=1e-3)
        self.head = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1, groups=8), nn.ReLU(), nn.Conv2d(8, 4, 1))

    def forward(self, x):
        x = torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)
        return self.head(F.silu(self.bn(self.conv(x))))


class Recurrent(nn.Module):
    """Layers with states, an integer input, and the batch's size in computations."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(10, 8, padding_idx=0)
        self.norm = nn.LayerNorm(8, eps=1e-6)
        self.lstm = nn.LSTM(8, 6, 2, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(12, 5, batch_first=True)

    def forward(self, words):
        y, (h, c) = self.lstm(self.norm(self.table(words)))
        z, last = self.gru(y)
        return z.reshape(words.shape[0] * 7, -1), h.transpose(0, 1), c[0], last


class Odd(nn.Module):
    """Names that no attribute can have, a layer called twice, weights read in several ways, resizing and borders."""

    def __init__(self):
        super().__init__()
        self.items = nn.ParameterList([nn.Parameter(torch.randn(8, 1, 1))])
        self.add_module("a-b", nn.Linear(8, 3))
        self.add_module("keys", nn.PReLU())
        self.register_buffer("__hidden", torch.full((1,), 2.0))
        self.shared, self.twice = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding="same", groups=8)
        self.up = nn.ConvTranspose2d(8, 8, 3, 2, 1, output_padding=1)
        self.twice.weight.requires_grad_(False)

    def forward(self, load, math):
        x = self.twice(self.twice(self.shared(load) * self.items[0]))
        x = self.up(F.conv2d(x, self.twice.weight, padding=(0, 1), groups=8)) + getattr(self, "__hidden")
        x = F.interpolate(self.keys(x), scale_factor=2.0, mode="bilinear")
        x = F.pad(F.elu(x, 0.7), (1, 2, 0, 0), "replicate")[:, :, 1:-1, ::2]
        return getattr(self, "a-b")(x.mean((2, 3))) @ math, x.argmax(1)


@pytest.fixture(scope="module")
def session():
    with ConversionSession(lasting=True) as opened:
        yield opened


@pytest.fixture(scope="module")
def written(session, tmp_path_factory):
    """The folder, the model and the report of each network above."""
    folder = tmp_path_factory.mktemp("torch_modules")
    torch.manual_seed(0)
    networks = {
        "focus": (Focus(), ["1,3,H,W"]),
        "recurrent": (Recurrent(), ["1,7:int64"]),
        "odd": (Odd(), ["load=1,3,9,8", "math=1,3,2"]),
    }
    made = {}
    for name, (model, shapes) in networks.items():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
        report = session.convert(model.eval(), to="torch", output=folder / f"{name}_torch", input_shapes=shapes)
        made[name] = (folder / f"{name}_torch", model, report)
    return made


def opened(folder: Path):
    """The written module, imported as anybody would, in a process that cannot import the converter from it."""
    spec = importlib.util.spec_from_file_location(f"written_{folder.name}", folder / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("name", ["focus", "recurrent", "odd"])
def test_written_module_is_verified_and_gives_the_same_outputs(written, name):
    folder, model, report = written[name]
    assert report.status == "verified"
    assert [proof.holds for proof in report.artifacts[0].proofs] == [True, True, True]
    inputs = {
        "focus": [torch.randn(3, 3, 10, 14)],
        "recurrent": [torch.randint(10, (3, 7))],
        "odd": [torch.randn(3, 3, 9, 8), torch.randn(3, 3, 2)],
    }[name]
    with torch.no_grad():
        expected, actual = model(*inputs), opened(folder).load()(*inputs)
    for one, other in zip(*(r if isinstance(r, tuple) else (r,) for r in (expected, actual)), strict=True):
        torch.testing.assert_close(other, one)


@pytest.mark.slow
def test_focus_is_one_pixel_unshuffle_and_its_layers_keep_their_paths(written):
    folder, model, report = written["focus"]
    text = (folder / "model.py").read_text()
    assert "x = F.pixel_unshuffle(x, 2)" in text
    assert "self.conv = nn.Conv2d(12, 8, 3, padding=1, bias=False)" in text
    assert "self.bn = nn.BatchNorm2d(8, eps=0.001)" in text
    assert 'self.head["2"] = nn.Conv2d(8, 4, 1)' in text
    assert "cat" not in text
    assert "::2" not in text
    assert {line for line in text.splitlines() if line.startswith(("import", "from"))} == {
        "from pathlib import Path", "import torch", "import torch.nn.functional as F", "from torch import nn",
    }  # fmt: skip
    held = torch.load(folder / "weights.pt", weights_only=True)
    order = [channel + 3 * block for channel in range(3) for block in (0, 2, 1, 3)]  # pixel_unshuffle's, of Focus's
    assert torch.equal(held["conv.weight"], model.conv.weight[:, order])
    assert torch.equal(held["head.0.weight"], model.head[0].weight)
    assert report.artifacts[0].movements == ()
    assert report.artifacts[0].operators["pixel_unshuffle"] == 1
    assert "Conv2d" in report.artifacts[0].operators


@pytest.mark.slow
def test_focus_can_be_one_convolution(session, written, tmp_path):
    model, path = written["focus"][1], tmp_path / "one"
    report = session.convert(model, to="torch", output=path, input_shapes=["1,3,H,W"], focus_as_convolution=True)
    assert report.status == "verified"
    assert "self.conv = nn.Conv2d(3, 8, 6, stride=2, padding=2, bias=False)" in (path / "model.py").read_text()
    assert "pixel_unshuffle" not in report.artifacts[0].operators
    held = torch.load(path / "weights.pt", weights_only=True)["conv.weight"]
    assert torch.equal(held[:, 1, 0::2, 1::2], model.conv.weight[:, 6 + 1])  # of row 0, column 1 of each block
    assert converter.verify(model, path).status == "verified"  # its stamp has the option


@pytest.mark.slow
def test_written_module_can_be_trained(written):
    folder, _, _ = written["odd"]
    model = opened(folder).load().train()
    assert not model.twice.weight.requires_grad
    model(torch.randn(2, 3, 9, 8), torch.randn(2, 3, 2))[0].sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.slow
def test_the_same_model_gives_the_same_bytes(written, session, tmp_path):
    folder, model, _ = written["focus"]
    session.convert(model, to="torch", output=tmp_path / "again", input_shapes=["1,3,H,W"])
    for name in ("model.py", "weights.pt", "converter_stamp.json"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


class Projected(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x):
        return torch.ops.converter.shift(self.inner(x), 1, [2, 2], [2], [1, -1], "keep")


def test_an_operator_that_is_not_pytorchs_is_refused_by_name_module_and_line(tmp_path):
    with pytest.raises(UnsupportedOperatorsError) as refused:
        converter.convert(Projected().eval(), to="torch", output=tmp_path / "x", input_shapes=["1,4,4"])
    (row,) = refused.value.operators
    assert row[0] == "converter.shift.default"
    assert "torch.ops.converter.shift" in row[3]
    assert not (tmp_path / "x").exists()


# -- whose code runs


@pytest.fixture
def copy(written, tmp_path):
    """A copy of the module of Focus, to change."""
    folder, model, _ = written["focus"]
    path = tmp_path / "copy"
    path.mkdir()
    for file in folder.iterdir():
        if file.is_file():
            (path / file.name).write_bytes(file.read_bytes())
    return path, model


@pytest.mark.slow
def test_verify_runs_the_source_that_conversion_writes(copy):
    path, model = copy
    assert converter.verify(model, path).status == "verified"


@pytest.mark.slow
def test_other_weights_are_noticed(copy):
    path, model = copy
    held = torch.load(path / "weights.pt", weights_only=True)
    held["head.2.bias"][0] += 1e-6
    torch.save(held, path / "weights.pt")
    report = converter.verify(model, path)
    assert report.status == "disagrees"
    assert "head.2.bias" in report.proofs[-1].summary


@pytest.mark.slow
def test_an_edited_source_is_reported_as_changed(copy):
    path, model = copy
    file = path / "model.py"
    file.write_text(file.read_text().replace("eps=0.001", "eps=0.00101"))
    report = converter.verify(model, path, trust=["artifact"])
    assert report.status == "disagrees"
    assert any("the graph differs from what was built" in failure for failure in report.proofs[-1].failures)


@pytest.mark.slow
def test_a_folder_with_a_program_but_no_stamp_is_not_opened(copy):
    path, model = copy
    (path / "converter_stamp.json").unlink()
    with pytest.raises(converter.errors.ConversionError, match="not an artifact of a known format"):
        converter.verify(model, path, trust=["artifact"])


@pytest.mark.slow
def test_a_folder_with_other_files_is_not_replaced_without_force(copy, session):
    path, model = copy
    (path / "train.py").write_text("mine")
    with pytest.raises(converter.errors.OutputError, match="already exists"):
        session.convert(model, to="torch", output=path, input_shapes=["1,3,H,W"])
    assert (path / "train.py").read_text() == "mine"


@pytest.mark.slow
def test_reader_runs_without_the_converter(written):
    """The process that opens it cannot import it."""
    folder, model, _ = written["focus"]
    with Runner("torch") as runner:
        with pytest.raises(CheckpointError, match="it is a program"):
            runner.open(folder)
        runner.open(folder, trusted=True)
        assert [spec.shape for spec in runner.inputs] == [(None, 3, None, None)]
        x = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
        given = runner.run({runner.inputs[0].name: x})
        values = [value.operator for value in runner.trace({runner.inputs[0].name: x})]
    assert "aten.pixel_unshuffle.default" in values
    with torch.no_grad():
        np.testing.assert_allclose(given["output"], model(torch.from_numpy(x)).numpy(), rtol=1e-5, atol=1e-6)
    assert "converter" in sys.modules  # here, and not there
