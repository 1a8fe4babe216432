"""What each command imports: TensorFlow and Keras only for their own formats, torch only once the call can be right."""

import json
from pathlib import Path

import pytest
import torch
from fresh_process import run_commands
from torch import nn

from converter.capture.input_shapes import DTYPES

BLOCKS = """
import sys
from importlib.machinery import ModuleSpec
class Blocked:
    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self) if name.partition(".")[0] in ("tensorflow", "keras") else None
    def create_module(self, spec):
        raise ModuleNotFoundError(f"No module named {spec.name!r}", name=spec.name)
    def exec_module(self, module): ...
sys.meta_path.insert(0, Blocked())
"""


@pytest.mark.slow
def test_onnx_and_inspect_work_where_keras_and_tensorflow_cannot_be_imported(tmp_path: Path):
    """Neither here nor in the process that opens the artifact."""
    (tmp_path / "first").mkdir()
    (tmp_path / "first/sitecustomize.py").write_text(BLOCKS)
    torch.save(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2)), tmp_path / "net.pt")
    shape = ["--input-shape", "1,1,4,4"]
    converted, verified, inspected, checked, keras = run_commands(
        tmp_path,
        ["net.pt", "--to", "onnx", "--json", *shape],
        ["verify", "net.pt", "net.onnx", "--json"],
        ["inspect", "net.pt", "--plan", "--json", *shape],
        ["inspect", "net.pt", "--check", "--to", "onnx", "--json", *shape],
        ["net.pt", "--to", "keras", *shape],
    )
    for status, output, both, imported in (converted, verified, inspected, checked):
        assert (status, imported) == (0, ["torch"]), both
        assert json.loads(output)
    rows = {row["path"]: row["becomes"] for row in json.loads(inspected[1])["rows"]}
    assert rows["0"] == "Conv2D"
    assert rows["3"] == "Dense"
    assert keras[0] == 1
    assert "Run pip install tensorflow" in keras[2]


WRONG = {
    "a missing file": (["none.pt", "--to", "onnx"], 4, "PTC1023"),
    "no checkpoint": (["here.txt", "--to", "tf", "--input-shape", "1,3"], 4, "PTC1026"),
    "a folder": (["inspect", "."], 4, "PTC1022"),
    "an unknown format": (["here.pt", "--to", "onxn"], 2, "Did you mean --to onnx"),
    "an unknown option": (["here.pt", "--to", "onnx", "--inputshape", "1"], 2, "No such option"),
    "a shape": (["here.pt", "--to", "onnx", "--input-shape", "1x3x8"], 2, "PTC2020"),
    "a dtype": (["inspect", "here.pt", "--input-shape", "1,3:flat"], 2, "PTC2021"),
    "two batches": (["here.pt", "--to", "tf", "--input-shape", "a=B,3", "--input-shape", "b=N,3"], 2, "PTC2024"),
    "a shape and a size": (["here.pt", "--to", "tf", "--input-shape", "1,3,8,8", "--image-size", "8"], 2, "PTC6030"),
    "an image size": (["inspect", "here.pt", "--image-size", "8x8"], 2, "PTC2003"),
    "a missing artifact": (["verify", "here.pt", "none.onnx"], 1, "PTC4001"),
    "no artifact": (["verify", "here.pt", "here.txt"], 1, "PTC4002"),
    "a missing factory": (["here.pt", "--to", "tf", "--model", "none.py:build"], 2, "PTC1010"),
    "no factory": (["here.pt", "--to", "tf", "--model", "build"], 2, "PTC1009"),
    "missing code": (["verify", "here.pt", "here.onnx", "--trust", "none.py"], 2, "PTC1083"),
    "missing mappings": (["inspect", "here.pt", "--mappings", "none.py"], 2, "PTC3003"),
    "missing inputs": (["here.pt", "--to", "onnx", "--inputs", "none.npz"], 2, "PTC5026"),
    "no images": (["here.pt", "--to", "tflite", "--quantize", "int8", "--calibrate", "."], 2, "PTC5005"),
    "a name for another format": (["here.pt", "--to", "onnx", "-o", "here.keras"], 2, "PTC4007"),
    "arguments that are no JSON": (["here.pt", "--to", "onnx", "--model-args", "{"], 2, "not valid JSON"),
}


@pytest.mark.slow
def test_what_text_and_files_show_to_be_wrong_is_reported_before_torch_is_imported(tmp_path: Path):
    torch.save({"weight": torch.ones(2, 2)}, tmp_path / "here.pt")
    (tmp_path / "here.txt").write_text("no checkpoint")
    (tmp_path / "here.onnx").write_bytes(bytes([8, 10, 58, 0, 66, 0]))  # the fields that every ONNX file has
    results = run_commands(tmp_path, *[command for command, *_ in WRONG.values()], ["--help"])
    for (_, status, text), (given, _, output, imported) in zip(
        [*WRONG.values(), ([], 0, "Usage")], results, strict=True
    ):
        assert (given, imported) == (status, []), output
        assert text in output


def test_dtypes_of_input_shapes_are_those_of_torch():
    assert {name: str(getattr(torch, name)).removeprefix("torch.") for name in DTYPES} == DTYPES
