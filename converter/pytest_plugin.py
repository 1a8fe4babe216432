"""The pytest plugin of pt-convert: the fixture `pt_convert`, which compares an artifact with its model.

def test_exported_model(pt_convert):
    pt_convert(Network().eval(), "network.onnx", input_shapes=(1, 3, 64, 64))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from converter.report.results import VerificationReport


@pytest.fixture(scope="session")
def pt_convert() -> Callable[..., VerificationReport]:
    """Return `converter.testing.assert_equivalent`; a failure names the first layer that differs."""
    from converter.testing import assert_equivalent  # only a test that asks for it imports torch

    return assert_equivalent
