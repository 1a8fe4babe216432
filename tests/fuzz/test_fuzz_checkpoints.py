"""A few hundred damaged checkpoints of every format; tests/fuzz/fuzz_checkpoints.py loads as many as wanted."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import fuzz_checkpoints


@pytest.mark.slow
def test_damaged_checkpoints_load_or_are_refused():
    found = fuzz_checkpoints.fuzz(330, seed=20)
    assert found.bad == []
    assert len(found.ends) >= 11
    assert all(sum(ends.values()) >= 25 for ends in found.ends.values())
    assert sum(ends["loaded"] for ends in found.ends.values()) > 10  # damage that is too coarse would test nothing
