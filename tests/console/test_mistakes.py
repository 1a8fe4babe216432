"""Mistakes on the command line: what the tool knows is in the answer."""

from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import cli
from converter.artifacts.paths import output_path
from converter.capture.run_forward import run_forward
from converter.checkpoint.factory import build
from converter.checkpoint.import_isolation import user_code
from converter.checkpoint.load import load
from converter.checkpoint.user_source import misfit
from converter.errors import CaptureError, UsageError
from converter.lowering.training_notes import keeps_statistics
from converter.options import ConvertOptions, LoadOptions
from converter.pipeline.clock import Clock
from converter.pipeline.load_model import compute_reference, load_model


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "line, said",
    [
        ("inspct net.pt", "Did you mean inspect?"),
        ("batchh net.pt --to tf", "Did you mean batch?"),
        ("net.pt --to savedmodel", "Did you mean --to tf?"),
        ("net.pt --to saved_model", "Did you mean --to tf?"),
        ("net.pt --to onnx,tf", "Did you mean --to onnx --to tf?"),
        ("net.pt --to .onnx", "Did you mean --to onnx?"),
        ("net.pt --to coreml", "is not one of"),
    ],
)
def test_a_mistyped_word_is_answered_with_the_right_one(here: Path, line: str, said: str):
    result = CliRunner().invoke(cli.main, line.split())
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())


def test_h_is_help():
    verify = cli.main.commands["verify"]
    assert "-h" in verify.get_help(click.Context(verify))  # click keeps the option that it makes first
    for line in (["-h"], ["convert", "-h"], ["verify", "-h"]):
        result = CliRunner().invoke(cli.main, line)
        assert result.exit_code == 0
        assert "Usage:" in result.stdout


def test_the_output_folder_takes_the_default_name(here: Path):
    source = Path("nets/net.pt")
    (here / "there").mkdir()
    (here / "artifact").mkdir()
    (here / "artifact" / "saved_model.pb").touch()
    assert output_path(source, "onnx", "out/", False) == Path("out/net.onnx")
    assert output_path(source, "tf", "there", False) == Path("there/net_saved_model")
    assert output_path(source, "tf", "artifact", False) == Path("artifact")
    assert output_path(source, "tf", "fresh", False) == Path("fresh")
    (here / "file.onnx").touch()
    with pytest.raises(UsageError, match="is a file"):
        output_path(source, "onnx", "file.onnx", True)


def test_an_image_with_its_channels_last_is_answered_with_the_right_shape():
    with pytest.raises(CaptureError) as refused:
        run_forward(nn.Sequential(nn.Conv2d(3, 4, 3)), [torch.ones(1, 32, 28, 3)])
    assert "Did you mean --input-shape 1,3,32,28?" in refused.value.fix
    with pytest.raises(CaptureError) as refused:
        run_forward(nn.Sequential(nn.Conv2d(3, 4, 3)), [torch.ones(1, 5, 28, 8)])
    assert "Did you mean" not in refused.value.fix


@pytest.mark.parametrize("shape, meant", [("3,32,28", "1,3,32,28"), ("32,28", None)])
def test_a_shape_without_the_batch_is_answered_with_it(shape, meant):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(CaptureError) as refused:
        load_model(net, LoadOptions.of(input_shapes=[shape]), clock=Clock(None))
    assert (f"Did you mean --input-shape {meant}?" in refused.value.fix) == (meant is not None)


def test_a_file_without_a_name_is_answered_with_its_classes(here: Path):
    (here / "train.py").write_text("import torch\n\nclass Net(torch.nn.Module):\n    pass\n\ndef build():\n    ...\n")
    for factory in ("train.py", "train.py:"):
        with pytest.raises(UsageError) as refused:
            build(factory, {}, user_code())
        assert refused.value.fix == "--model train.py:Net or --model train.py:build"


SCRIPT = """
import torch
class Net(torch.nn.Linear):
    pass
if __name__ == "__main__":
    torch.save(Net(2, 3), "net.pt")
"""


def test_the_module_of_a_script_is_trusted_by_the_scripts_name(here: Path):
    (here / "train_it.py").write_text(SCRIPT)
    import sys

    class Net(nn.Linear):
        pass

    Net.__module__, Net.__qualname__ = "__main__", "Net"
    main = sys.modules["__main__"]
    vars(main)["Net"] = Net
    try:
        torch.save(Net(2, 3), "net.pt")
    finally:
        del vars(main)["Net"]
    assert load("net.pt", trust=["train_it"]).module.out_features == 3


def test_a_torchvision_of_another_torch_is_named():
    assert "built for another torch" in str(misfit(RuntimeError("operator torchvision::nms does not exist")))
    assert misfit(RuntimeError("operator aten::nms does not exist")) is None


class Remembering(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.hidden = nn.Linear(4, 4), torch.zeros(1, 4)

    def forward(self, x):
        self.hidden = torch.tanh(self.linear(x) + self.hidden.mean(0))
        return self.hidden


def test_state_that_forward_keeps_is_named():
    options = ConvertOptions.of(input_shapes=["1,4"])
    loaded = load_model(Remembering().eval(), options, clock=Clock(None))
    with pytest.raises(CaptureError, match=r"`self\.hidden`") as refused:
        compute_reference(loaded, options, Clock(None))
    assert "self.hidden as an input" in refused.value.fix


def test_a_momentum_of_zero_is_no_average():
    from types import SimpleNamespace

    for momentum, averages in ((0.0, False), (None, True)):
        module = nn.Sequential(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3, momentum=momentum)).eval()
        program = load_model(module, LoadOptions.of(input_shapes=["1,2,4"]), clock=Clock(None)).program
        assert program.averaging == (frozenset({"1"}) if averages else frozenset())
        node = next(node for node in program.graph.nodes if "batch_norm" in str(node.target))
        kind = SimpleNamespace(__name__="BatchNormalization")
        step = SimpleNamespace(kind=kind, trainable=True, config={"momentum": 1}, node=node)
        assert keeps_statistics(step, program) == averages
