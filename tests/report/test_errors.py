"""Every error and note has a code of its own, and a page that says what to do."""

import pickle
import sys
from collections import Counter
from pathlib import Path
from typing import get_args

import pytest
from click.testing import CliRunner
from torch import nn

import cli
import converter
from converter.errors import ConversionError, NoteCode, UnsupportedOperatorsError, UsageError
from converter.options import ReportOptions
from converter.report.failures import Failure, failure_of

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "docs/generate"))

import errors as documented  # noqa: E402

WRITE = "run: python docs/generate/errors.py --write"


@pytest.fixture(scope="module")
def coded() -> list[documented.Coded]:
    return documented.coded()


@pytest.mark.slow
def test_the_pages_are_those_of_the_source():
    written = {path.relative_to(ROOT / "docs") for path in (ROOT / "docs/errors").glob("*.md")}
    pages = documented.pages()
    assert written == set(pages) - {Path("ERRORS.md")}, WRITE
    assert [path for path, text in pages.items() if (ROOT / "docs" / path).read_text(encoding="utf-8") != text] == [], (
        WRITE
    )


@pytest.mark.slow
def test_a_code_stands_for_one_message(coded):
    assert [code for code, count in Counter(one.code for one in coded).items() if count > 1] == []
    assert [(one.code, one.messages) for one in coded if len(one.messages) != 1 or one.message == documented.HOLE] == []


@pytest.mark.slow
def test_every_error_says_what_to_do(coded):
    assert [one.code for one in coded if one.status is not None and not one.fixes] == []


@pytest.mark.slow
def test_the_next_free_codes_are_not_in_use(coded):
    used = {one.code for one in coded}
    assert not used.intersection(code for _, *free in documented.next_free(coded) for code in free)


@pytest.mark.slow
def test_the_codes_that_silence_takes_are_those_of_the_notes(coded):
    assert set(get_args(NoteCode)) == {one.code for one in coded if one.kind == "Note"}


def test_a_silenced_note_is_left_out():
    model, shapes = nn.DataParallel(nn.Linear(3, 4)), ["1,3"]
    assert [note.code for note in converter.inspect(model, input_shapes=shapes).notes] == ["PTC1507"]
    assert converter.inspect(model, input_shapes=shapes, silence=["PTC1507"]).notes == ()


def test_a_code_that_no_note_has_cannot_be_silenced():
    with pytest.raises(UsageError, match="Not the code of a note: PTC1001"):
        ReportOptions(("PTC1001",))
    result = CliRunner().invoke(cli.main, ["net.pt", "--to", "tf", "--silence", "PTC1001"])
    assert result.exit_code == 2
    assert "'PTC1001' is not one of" in result.stderr


RAISES = """
from .errors import CaptureError, ConversionError, UsageError

FIX = "another one"

def first(name):
    what = "an earlier one"
    what = f"there is no {name!r}"
    if name:
        raise UsageError(what, code="PTC0001", fix=FIX)
    what = "there is nothing"
    raise UsageError(what, code="PTC0002", fix=FIX)

def second(text):
    fix = "do this"
    if text:
        fix = f"do {text}"
    return ConversionError("made, and raised " + "elsewhere", code="PTC0003", fix=fix)

def third(task):
    return failure(task, "it ended", fix_of(3), code="PTC0004")

def fix_of(n):
    if n:
        return f"do {n}"
    return None

def fourth(error):
    raise UsageError(error.what, code=error.code)
"""


def test_messages_and_fixes_are_read_however_they_are_written(tmp_path):
    (tmp_path / "raises.py").write_text(RAISES)
    found = {one.code: (one.kind, one.messages, one.fixes) for one in documented.Source(tmp_path / "raises.py").coded()}
    assert found == {
        "PTC0001": ("UsageError", ["there is no …"], ["another one"]),
        "PTC0002": ("UsageError", ["there is nothing"], ["another one"]),
        "PTC0003": ("ConversionError", ["made, and raised elsewhere"], ["do this", "do …"]),
        "PTC0004": ("failure", ["it ended"], ["do …"]),
    }


def test_an_error_keeps_what_it_says_on_its_way_to_another_process():
    error = UsageError("this", code="PTC0123", where="here", fix="that")
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), vars(copy), str(copy)) == (UsageError, vars(error), str(error))
    assert str(error) == "PTC0123: this\n  where: here\n  fix: that"
    rows = [("aten.fft.default", 2, "body", "net.py:1")]
    unsupported = pickle.loads(pickle.dumps(UnsupportedOperatorsError("these", rows, code="PTC0124", fix="none")))
    assert (unsupported.code, unsupported.operators) == ("PTC0124", rows)


def test_a_failure_keeps_the_code_of_its_error():
    failure = failure_of(ConversionError("this", code="PTC0123", fix="that"), "net.pt")
    assert isinstance(failure, Failure)
    assert failure.to_dict()["code"] == "PTC0123"
    assert failure_of(SystemExit(1), "net.pt").code == "PTC9005"
    assert failure_of(KeyError("x"), "net.pt").code == "PTC9004"
