"""Reports as CI systems show them: a Markdown table, and JUnit XML. Both are made from a report's JSON."""

import html
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from converter.errors import OutputError, escaped
from converter.report.failures import write_text

STEP_SUMMARY = "GITHUB_STEP_SUMMARY"
GOOD = ("verified", "quantized", "converts")
LONGEST, MOST_ROWS = 300, 200  # characters of a cell, rows of a table


@dataclass(frozen=True)
class Case:
    """One artifact of a model, or one model of a batch; `problem` is "" if it is as it should be."""

    model: str
    name: str
    state: str
    problem: str
    seconds: float


def cases(content: Mapping[str, Any]) -> list[Case]:
    """Return what is shown of a report of one model, of several, or of a batch."""
    if "entries" in content:
        return [
            Case(one["name"], one["path"], one["state"], one["reason"] if one["exit_status"] else "", one["seconds"])
            for one in content["entries"]
        ]
    return [case for one in content.get("models", [content]) for case in _of_model(one)]


def _of_model(one: Mapping[str, Any]) -> Iterator[Case]:
    if "error" in one:
        yield Case(one["source"], "model", "failed", _sentence(one), 0.0)
        return
    seconds = sum(one.get("timings", {}).values())
    for artifact in one.get("artifacts", [{**one, "path": one.get("artifact"), "seconds": seconds}]):
        problems = [_sentence(artifact["failure"])] if artifact.get("failure") else []
        for proof in artifact["proofs"]:
            if not proof["holds"]:
                where = f"; differs first in {proof['first_difference']}" if proof["first_difference"] else ""
                problems.append(f"{proof['name']}: {proof['summary']}{where}")
        quantization = artifact.get("quantization") or {"failures": ()}
        problems += quantization["failures"]
        # What was written with --no-verify is not verified, but nothing went wrong.
        good = artifact["status"] in GOOD or ("format" in artifact and not problems)
        name = artifact.get("format") or str(artifact["path"])
        text = "" if good else "; ".join(problems) or "nothing says what is enough"
        yield Case(one["source"], name, artifact["status"], text, artifact["seconds"])


def _sentence(failure: Mapping[str, Any]) -> str:
    return f"{failure['what']} [{failure['code']}]" + (f" {failure['fix']}" if failure["fix"] else "")


def markdown(content: Mapping[str, Any]) -> str:
    """Return a table of the results, those with problems first."""
    rows = sorted(cases(content), key=lambda case: not case.problem)
    states = {case.state for case in rows}
    good = sum(case.state in GOOD for case in rows)
    head = f"### pt-convert: {good} of {len(rows)} {'can be converted' if 'converts' in states else 'verified'}\n"
    lines = ["", head, "| model | artifact | result | seconds | |", "|---|---|---|--:|---|"]
    for case in rows[:MOST_ROWS]:
        cells = (case.model, case.name, case.state, f"{case.seconds:.1f}", case.problem)
        lines.append(f"| {' | '.join(map(_cell, cells))} |")
    if len(rows) > MOST_ROWS:
        lines.append(f"\n{len(rows) - MOST_ROWS} more are in the report.")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    shown = html.escape(escaped(text), quote=False).replace("\n", " ")
    return "".join(f"&#{ord(letter)};" if letter in "|`*_[]\\!@#" else letter for letter in shown)


def append_summary(content: Mapping[str, Any]) -> None:
    """Append the table to the file that GITHUB_STEP_SUMMARY names, if it is set.

    Raises:
        OutputError: it cannot be written.
    """
    file = os.environ.get(STEP_SUMMARY)
    if not file:
        return
    try:
        with Path(file).open("a", encoding="utf-8") as opened:
            opened.write(markdown(content))
    except OSError as error:
        raise OutputError(
            f"The summary cannot be written: {error.strerror}.",
            code="PTC6096",
            where=f"{STEP_SUMMARY}={file}",
            fix="Leave --summary out, or set the variable to a file that can be written.",
        ) from error


def write_junit(file: Path, content: Mapping[str, Any]) -> None:
    """Write JUnit XML, a test case for each artifact or model of a batch, or raise OutputError."""
    write_text(file, junit(cases(content)))


def junit(found: Sequence[Case]) -> str:
    """Return JUnit XML."""
    failed = sum(bool(case.problem) for case in found)
    suite = ElementTree.Element(
        "testsuite", name="pt-convert", tests=str(len(found)), failures=str(failed), errors="0", skipped="0",
        time=f"{sum(case.seconds for case in found):.3f}",
    )  # fmt: skip
    for case in found:
        row = ElementTree.SubElement(
            suite, "testcase", classname=escaped(case.model), name=escaped(case.name), time=f"{case.seconds:.3f}"
        )
        if case.problem:
            problem = ElementTree.SubElement(row, "failure", type=case.state, message=escaped(case.problem)[:LONGEST])
            problem.text = escaped(case.problem)
    ElementTree.indent(suite)
    suites = ElementTree.Element("testsuites")
    suites.append(suite)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suites, encoding="unicode") + "\n"
