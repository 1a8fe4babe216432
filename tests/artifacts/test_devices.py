"""docs/DEVICES.md: its Python runs, and what the GPU delegate is not documented to take is named."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from torch import nn

import converter
from converter.artifacts.gpu_delegate import DOCUMENTED

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def test_the_lines_for_a_board_run(tmp_path, monkeypatch, capsys):
    for name in ("digits_focus.pt", "digits_holdback.npz"):
        shutil.copy(ROOT / "sample_models" / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    report = converter.convert("digits_focus.pt", to="tflite", trust=["sample_models"], input_shapes=["1,1,16,16"])
    assert report.status == "verified"
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/DEVICES.md").read_text(), re.DOTALL)
    exec(code, {})
    assert int(capsys.readouterr().out) == np.load("digits_holdback.npz")["labels"][0]
    (note,) = [note for note in report.notes if note.code == "PTC4503"]
    assert "1 SPACE_TO_DEPTH" in note.text  # the Focus
    assert not set(re.findall(r"\d+ ([A-Z_0-9]+)", note.text)) & DOCUMENTED


def test_a_check_says_what_the_gpu_does_not_take():
    taken = converter.inspect(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), input_shapes=["1,3,8,8"], check=["tflite"])
    assert [note.text for note in taken.checks[0].notes] == [
        "Nothing in this file is what the GPU delegate is documented to refuse."
    ]
    dynamic = converter.inspect(
        nn.Conv3d(3, 8, 3), input_shapes=["1,3,5,8,8"], check=["tflite"], dynamic_batch=True
    ).checks[0]
    assert "with values of more than 4 axes" in dynamic.notes[0].text
    assert "with sizes that are not fixed" in dynamic.notes[0].text
