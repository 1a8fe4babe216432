"""The table of threats in SECURITY.md is that of the tests here."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_table_of_threats_is_up_to_date():
    generator = runpy.run_path(str(ROOT / "docs" / "generate" / "threats.py"))
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    assert page == generator["written_into"](page), "python docs/generate/threats.py --write SECURITY.md"
    assert generator["table"]().count("\n") > 20
