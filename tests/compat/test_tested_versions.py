"""A version newer than any tested one is a line in the report, not an error."""

from torch import nn

import converter
from converter.compat import tested_versions


def newer(monkeypatch, **changed):
    known = tested_versions.tested_versions()
    monkeypatch.setattr(tested_versions.platform, "python_version", lambda: f"{known['python'][-1]}.0")
    monkeypatch.setattr(tested_versions, "version", lambda name: changed.get(name) or known[name][-1])
    report = converter.inspect(nn.Linear(3, 2), input_shapes=["1,3"])
    return [note.text for note in report.notes if note.code == "PTC6512"]


def test_versions_newer_than_any_tested_one_are_one_note(monkeypatch):
    assert newer(monkeypatch) == []
    assert newer(monkeypatch, torch="2.13.0+cpu", keras="3.15.0") == []
    (text,) = newer(monkeypatch, torch="2.99.0+cu128", onnx="2.0")
    tested = tested_versions.tested_versions()
    assert f"torch 2.99.0+cu128 (tested up to {tested['torch'][-1]})" in text
    assert f"onnx 2.0 (tested up to {tested['onnx'][-1]})" in text


def test_python_is_compared_by_its_minor_version():
    assert not tested_versions.is_newer("3.13.9", ["3.12", "3.13"])
    assert tested_versions.is_newer("3.14.0", ["3.12", "3.13"])
    assert tested_versions.is_newer("2.15.1", ["2.9.0", "2.15.0"])
