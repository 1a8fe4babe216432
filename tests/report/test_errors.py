"""docs/ERRORS.md lists every error with what to do about it."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "docs/generate"))

import errors as documented  # noqa: E402

WRITE = "run: python docs/generate/errors.py --write docs/ERRORS.md"


@pytest.fixture(scope="module")
def found() -> list[documented.Found]:
    return documented.found_errors(documented.our_files())


def test_the_document_is_that_of_the_source():
    assert (ROOT / "docs/ERRORS.md").read_text(encoding="utf-8") == documented.document(), WRITE


def test_every_error_says_what_to_do(found):
    without = [one.message for one in found if one.message != documented.HOLE and not documented.explained(one)]
    assert not without, f"give a fix where it is raised, or in EXPLAINED of docs/generate/errors.py; then {WRITE}"


def test_nothing_is_explained_that_is_no_error(found):
    assert set(documented.EXPLAINED) <= {one.message for one in found}


def test_every_message_can_be_read_from_the_source(found):
    """One that is put together elsewhere would stand nowhere in the document."""
    assert [one for one in found if one.message == documented.HOLE] == []


RAISES = """
from .errors import CaptureError, ConversionError, UsageError

FIX = "another one"

def first(name):
    what = f"there is no {name!r}" if name else "there is nothing"
    raise UsageError(what, fix=FIX)

def second(text):
    raise CaptureError(text)

def third():
    second("it " + "fails")

def fourth():
    return ConversionError("made, and raised elsewhere", fix=fix_of(3))

def fix_of(n):
    if n:
        return f"do {n}"
    return None
"""


def test_messages_and_fixes_are_read_however_they_are_written(tmp_path):
    (tmp_path / "raises.py").write_text(RAISES)
    found = {(one.kind, one.message): one.fixes for one in documented.found_errors([tmp_path / "raises.py"])}
    assert found == {
        ("UsageError", "there is no …"): ["another one"],
        ("UsageError", "there is nothing"): ["another one"],
        ("CaptureError", "it fails"): [],
        ("ConversionError", "made, and raised elsewhere"): ["do …"],
    }
