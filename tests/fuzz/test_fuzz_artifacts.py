"""A few damaged ONNX files; tests/fuzz/fuzz_artifacts.py opens as many of every format as wanted."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent))

import fuzz_artifacts
import pytest


@pytest.mark.slow
def test_damaged_artifacts_are_refused_fail_or_are_noticed():
    found = fuzz_artifacts.fuzz(60, 3, ["onnx"])
    assert found.bad == []
    assert sum(found.ends["onnx"].values()) == 60
    assert found.ends["onnx"]["another function, noticed"] > 3
