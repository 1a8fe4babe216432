"""Reports as CI systems show them: the summary of a step, JUnit XML, and the fixture for pytest."""

from pathlib import Path
from xml.etree import ElementTree

import pytest

from converter.batch.journal import Entry
from converter.batch.results import BatchReport
from converter.errors import OutputError
from converter.pytest_plugin import pt_convert  # noqa: F401  # as pytest finds it where pt-convert is installed
from converter.report.ci import append_summary, cases, markdown, write_junit
from converter.report.failures import Failure
from converter.report.results import ArtifactReport, ConversionReport, Proof, VerificationReport
from converter.testing import assert_equivalent

HOLDS = Proof("function", True, "equal")
DIFFERS = Proof("artifact", False, "max error 2", first_difference="stem.conv")
FAILURE = Failure("m.pt", "CheckpointError", "PTC1001", "It is empty.", None, "Copy it again.", 4)
HOSTILE = "a|b`<script>\x1b[31m\x00*" + "x" * 5000


def artifact(format, *proofs, status, failure=None):
    return ArtifactReport(format, Path(f"m.{format}"), (), (), proofs, {}, (), status, 1.5, failure=failure)


def conversion(*artifacts):
    return ConversionReport("m.pt", None, "module", 3, "dynamic", (), (), artifacts).to_dict()


MIXED = {
    "schema": 1,
    "models": [
        conversion(
            artifact("tf", HOLDS, status="verified"),
            artifact("onnx", HOLDS, DIFFERS, status="disagrees"),
            artifact("keras", status="not verified", failure=FAILURE),
            artifact("torch", status="not verified"),  # --no-verify
        ),
        FAILURE.to_dict(),
    ],
}
VERIFIED = VerificationReport("m.pt", "m.onnx", (HOLDS,), (), "verified", timings={"run": 2.0}).to_dict()
BATCH = BatchReport(
    (Entry("a", "a.pt", "verified", 0, "", {}, "", 1.0, 1), Entry("b", "b.pt", "failed", 4, HOSTILE, {}, "", 2.0, 1)),
    (), (), 3.0,
).to_dict()  # fmt: skip


@pytest.mark.parametrize(
    "content, expected",
    [
        (
            MIXED,
            [
                ("m.pt", "tf", ""),
                ("m.pt", "onnx", "artifact: max error 2; differs first in stem.conv"),
                ("m.pt", "keras", "It is empty. [PTC1001] Copy it again."),
                ("m.pt", "torch", ""),
                ("m.pt", "model", "It is empty. [PTC1001] Copy it again."),
            ],
        ),
        (VERIFIED, [("m.pt", "m.onnx", "")]),
        (VERIFIED | {"status": "not verified", "proofs": []}, [("m.pt", "m.onnx", "nothing says what is enough")]),
        (BATCH, [("a", "a.pt", ""), ("b", "b.pt", HOSTILE)]),
        (conversion(artifact("tf", HOLDS, status="verified")), [("m.pt", "tf", "")]),
    ],
    ids=["convert", "verify", "quantized without demands", "batch", "one report"],
)
def test_cases_are_artifacts_and_models(content, expected, tmp_path):
    found = cases(content)
    assert [(case.model, case.name, case.problem) for case in found] == expected
    write_junit(tmp_path / "out.xml", content)
    (suite,) = ElementTree.parse(tmp_path / "out.xml").getroot()
    assert suite.attrib["tests"] == str(len(expected))
    assert suite.attrib["failures"] == str(sum(bool(problem) for *_, problem in expected))
    for row, case in zip(suite, found, strict=True):
        assert row.attrib["classname"] == case.model
        assert (row.find("failure") is not None) == bool(case.problem)


def test_a_table_has_the_problems_first_and_names_as_text(monkeypatch, tmp_path):
    (tmp_path / "summary.md").write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    append_summary(MIXED)
    append_summary(BATCH)
    text = (tmp_path / "summary.md").read_text()
    assert text.startswith("before\n\n### pt-convert: 1 of 5 verified\n")
    rows = [line for line in text.splitlines() if line.startswith(("| m.pt", "| b"))]
    assert rows[0].startswith("| m.pt | onnx | disagrees | 1.5 | artifact: max error 2")
    assert "<script>" not in text
    assert "\x1b" not in text
    assert all(row.count("|") == 6 for row in rows)
    assert max(map(len, rows)) < 1000
    assert markdown(VERIFIED).count("\n| m.pt") == 1


def test_a_summary_that_cannot_be_written_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path))
    with pytest.raises(OutputError, match="The summary cannot be written"):
        append_summary(VERIFIED)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY")
    append_summary(VERIFIED)  # outside of CI nothing is written


def test_the_fixture_is_the_assertion(pt_convert):  # noqa: F811
    assert pt_convert is assert_equivalent
