"""The page of a report, and the JSON Schema of reports, with reports of real conversions."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import fastjsonschema
import pytest
import report_schema as published
import torch
from click.testing import CliRunner

import cli
from converter.errors import UsageError
from converter.report.failures import write_report
from converter.report.page import LONGEST, read_report, render, write_page, write_pages

VOID = {"meta", "input"}


class Page(HTMLParser):
    """The elements of a page, each closed in its order, and the text of each section."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.seen if name == tag]


@pytest.fixture(scope="module")
def validate():
    return fastjsonschema.compile(published.schema())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["conversion", "conversion alone", "verification", "summary", "failure", "batch"])
def test_real_reports_are_valid(reports, validate, kind):
    validate(reports[kind])


@pytest.mark.slow
def test_a_report_of_another_form_is_not_valid(reports, validate):
    broken = json.loads(json.dumps(reports["conversion"]))
    del broken["models"][0]["artifacts"][0]["proofs"][2]["tensors"][0]["sources"]
    for wrong in (broken, reports["verification"] | {"schema": 2}, reports["verification"] | {"status": "fine"}):
        with pytest.raises(fastjsonschema.JsonSchemaException):
            validate(wrong)


def test_the_published_schema_is_that_of_the_types():
    assert published.PAGE.read_text() == published.document(), "run: python docs/generate/report_schema.py"


@pytest.mark.slow
def test_a_page_shows_what_the_report_has(reports):
    report = json.loads(json.dumps(reports["conversion"]))
    report["models"][0]["notes"].append({"text": "Not exercised by the inputs: limits.", "code": "PTC5505"})
    page = Page(render(report))
    (artifact,) = reports["conversion"]["models"][0]["artifacts"]
    assert page.text.index("verified") < page.text.index("Interface")
    shown = ["Same function", "Same artifact", "Same weights", "BatchNorm folded", "Environment", "Not exercised by"]
    tensors = [tensor for proof in artifact["proofs"] for tensor in proof["tensors"]]
    shown += [tensor["name"] for tensor in tensors] + [name for tensor in tensors for name in tensor["sources"]]
    shown += [row["module"] for row in artifact["trace"]] + [f"torch {torch.__version__}", "convert net.pt --to onnx"]
    assert tensors
    assert [one for one in shown if one not in page.text] == []
    assert len(page.all("circle")) == len([row for row in artifact["trace"] if row["error"] is not None])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["conversion", "conversion alone", "verification", "failure", "batch"])
def test_a_page_loads_nothing_and_runs_its_own_script_only(reports, kind):
    text = render(reports[kind])
    page = Page(text)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(one["content"] for one in page.all("meta") if "http-equiv" in one)
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert f"'sha256-{digest}'" in policy
    assert not {"link", "img", "iframe", "form", "object"} & {tag for tag, _ in page.seen}
    assert all((one["href"] or "").startswith("#") for one in page.all("a"))
    assert not re.search(r"url\(|@import|src=", text)


@pytest.mark.slow
def test_names_of_strangers_are_text(reports):
    text = render(reports["strangers"])
    assert Page(text).text.count("<script>alert(1)</script>\\x1b[31m\"'") >= 6
    assert "<script>alert" not in text
    assert "\x1b" not in text
    assert len(text) < len(render(reports["conversion"])) + 30 * LONGEST


@pytest.mark.slow
def test_the_first_mismatch_and_what_moves_are_named(reports):
    report = json.loads(json.dumps(reports["verification"] | {"trace": []}))
    conversion = reports["conversion"]["models"][0]["artifacts"][0]
    trace = [dict(row) for row in conversion["trace"]]
    trace[1] |= {"diverges": True, "error": 0.5}
    trace[2] |= {"diverges": True, "error": 50.0}
    report |= {"trace": trace, "status": "disagrees"}
    report["proofs"][0] |= {"holds": False}
    report["proofs"][0]["outputs"][0] |= {"agrees": False, "share_of_bound": None}
    page = Page(render(report))
    assert f"first mismatch: {trace[1]['module']}" in page.text
    assert "does not hold" in page.text
    assert [one["class"] for one in page.all("circle")].count("wrong") == 2
    moved = json.loads(json.dumps(reports["conversion"]))
    line = "net.py:12: return x.permute(0, 2, 1)"
    moved["models"][0]["artifacts"][0]["movements"] = [
        {"kind": "Transpose", "module": "stem", "reason": "a view", "elements": 12, "source_line": line}
    ]
    assert line in Page(render(moved)).text


@pytest.mark.slow
def test_a_page_of_many_tensors_and_layers_stays_small(reports):
    """As many as ResNet-50 has, in three formats, and far more."""
    report = json.loads(json.dumps(reports["conversion"]))
    (model,) = report["models"]
    artifact = model["artifacts"][0]
    artifact["trace"] *= 175 // len(artifact["trace"]) + 1
    artifact["proofs"][2]["tensors"] *= 161 // len(artifact["proofs"][2]["tensors"]) + 1
    model["artifacts"] = [artifact] * 3
    assert len(render(report)) < 1_500_000 / 3
    artifact["trace"] *= 50
    artifact["proofs"][2]["tensors"] *= 50
    model["artifacts"] = [artifact]
    assert len(render(report)) < 1_500_000


@pytest.mark.slow
def test_the_page_of_a_batch_links_the_pages_of_its_models(reports, tmp_path):
    folder = tmp_path / "out" / "reports"
    write_report(folder / "a b/net.json", reports["failure"])
    write_report(folder / "fine.json", reports["conversion alone"])
    write_report(tmp_path / "out/out.json", reports["failure"])
    write_report(tmp_path / "out/summary.json", reports["batch"])
    assert write_pages(reports["batch"]["entries"], folder, tmp_path / "index.html") == {
        "a b/net": "out/reports/a%20b/net.html",  # of ../out nothing is read or written
        "fine": "out/reports/fine.html",
    }
    assert write_page(tmp_path / "out/summary.json").path == str(tmp_path / "out/summary.html")
    page = Page((tmp_path / "out/summary.html").read_text())
    assert [one["href"] for one in page.all("a") if one["href"] != "#main"] == [
        "reports/a%20b/net.html",
        "reports/fine.html",
    ]
    assert {one.get("data-state") for one in page.all("tr")} >= {"failed", "verified"}
    assert "Try another." in Page((folder / "a b/net.html").read_text()).text
    assert not (tmp_path / "out/out.html").exists()


@pytest.mark.slow
def test_the_command_writes_a_page(reports, tmp_path):
    (tmp_path / "r.json").write_text(json.dumps(reports["verification"]))
    run = CliRunner().invoke(cli.main, ["report", str(tmp_path / "r.json"), "-o", str(tmp_path / "p.html")])
    assert run.exit_code == 0
    assert (tmp_path / "p.html").read_text() == render(reports["verification"])
    assert CliRunner().invoke(cli.main, ["report", str(tmp_path / "r.json"), "-o", str(tmp_path / "p")]).exit_code == 2


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("[1, 2]", id="a list"),
        pytest.param('{"models": 3}', id="models that are no list"),
        pytest.param('{"proofs": [{"outputs": [{"share_of_bound": "x"}]}]}', id="figures that are texts"),
        pytest.param('{"schema": 1}', id="something else"),
        pytest.param('{"entries": [{}]}', id="entries without states"),
    ],
)
def test_what_is_not_a_report_is_refused(text):
    with pytest.raises(UsageError, match="not a report"):
        render(json.loads(text))


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[" * 100_000])
def test_a_file_that_cannot_be_read_is_refused(tmp_path, content):
    (tmp_path / "r.json").write_bytes(content)
    with pytest.raises(UsageError, match="cannot be read"):
        read_report(tmp_path / "r.json")
    with pytest.raises(UsageError, match="cannot be read"):
        read_report(Path("/nowhere/r.json"))
