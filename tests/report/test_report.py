"""Reports as JSON, and the statuses they add up to."""

import dataclasses
import json
import math
import re
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import pytest

import converter.report
from converter.artifacts.paths import output_path, output_paths
from converter.errors import UsageError
from converter.report.failures import SCHEMA, Failure
from converter.report.results import ArtifactReport, Artifacts, ConversionReport, OutputComparison, Proof, status_of


def comparison(agrees=True, proves_nothing=False):
    nan, inf = math.nan, math.inf
    return OutputComparison(
        "y", agrees, nan, inf, np.float32(0.5), 1.0, inf, 1.0, 1.0, None, proves_nothing=proves_nothing
    )


HOLDS = Proof("function", True, "equal", (comparison(),))
SILENT = Proof("artifact", False, "nothing", (comparison(proves_nothing=True),))
DIFFERS = Proof("artifact", False, "differs", (comparison(agrees=False),))
DIFFERS_AND_SILENT = Proof(
    "artifact", False, "differs", (comparison(agrees=False), comparison(agrees=True, proves_nothing=True))
)
WRONG_WEIGHTS = Proof("weights", False, "one tensor")


@pytest.mark.parametrize(
    "proofs, status",
    [
        pytest.param([], "not verified", id="no proof is no success"),
        pytest.param([HOLDS], "verified", id="all hold"),
        pytest.param([HOLDS, SILENT], "not verified", id="one proves nothing"),
        pytest.param([HOLDS, DIFFERS], "disagrees", id="one differs"),
        pytest.param([DIFFERS_AND_SILENT], "disagrees", id="a dead output does not excuse another that differs"),
        pytest.param([SILENT, WRONG_WEIGHTS], "disagrees", id="weights have no outputs to be silent"),
    ],
)
def test_status_of_proofs(proofs, status):
    assert status_of(proofs) == status
    assert status_of(iter(proofs)) == status


def conversion(*statuses):
    artifacts = tuple(
        ArtifactReport("tf", Path("a/m_saved_model"), (), (), (HOLDS,), {"Conv2D": np.int64(3)}, (), status, 1.0)
        for status in statuses
    )
    return ConversionReport("m.pt", "0f", "module", 3, "dynamic", (), (), artifacts, {"capture": 1.5})


@pytest.mark.parametrize(
    "statuses, worst",
    [
        (["verified", "verified"], "verified"),
        (["verified", "not verified"], "not verified"),
        (["not verified", "disagrees", "verified"], "disagrees"),
        ([], "not verified"),
    ],
)
def test_a_conversion_has_the_worst_status_of_its_artifacts(statuses, worst):
    assert conversion(*statuses).status == worst


def test_json_has_a_schema_and_only_what_json_knows():
    read = json.loads(conversion("verified").to_json(), parse_constant=pytest.fail)
    assert read["schema"] == 1
    assert read["status"] == "verified"
    (artifact,) = read["artifacts"]
    assert artifact["path"] == "a/m_saved_model"
    assert artifact["operators"] == {"Conv2D": 3}
    figures = artifact["proofs"][0]["outputs"][0]
    assert figures["max_abs"] is figures["sqnr_db"] is None
    assert figures["mean_abs"] == 0.5


def test_a_failure_is_json_too():
    assert (
        json.loads(Failure("m.pt", "CheckpointError", "PTC1001", "empty", None, None, 4).to_json())["exit_status"] == 4
    )


def json_type(kind: Any) -> str:
    """How docs/REPORT.md writes a field's type."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(json_type, parts)))
    if kind is Artifacts:
        return json_type(tuple[ArtifactReport, ...])
    if origin is tuple:
        return f"array of {json_type(parts[0])}"
    if origin is Literal:
        return "string"
    if origin is not None:
        return f"object of {json_type(parts[1])}"
    if dataclasses.is_dataclass(kind):
        return f"[{kind.__name__}](#{kind.__name__.lower()})"
    return {type(None): "null", str: "string", int: "integer", float: "number", bool: "boolean", Path: "string"}[kind]


def test_document_of_the_report_is_that_of_its_types():
    text = (Path(__file__).parents[2] / "docs/REPORT.md").read_text()
    assert f"`schema` is {SCHEMA}." in text
    sections = dict(re.findall(r"^### (\w+)\n(.*?)(?=^### |\Z)", text, re.DOTALL | re.MULTILINE))
    types = {name: kind for name, kind in vars(converter.report).items() if dataclasses.is_dataclass(kind)}
    assert set(sections) == set(types)
    for name, kind in types.items():
        hints = get_type_hints(kind)
        expected = [(f.name, json_type(hints[f.name])) for f in dataclasses.fields(kind)]
        if name == "ConversionReport":
            expected.append(("status", "string"))
        assert re.findall(r"^\| `(\w+)` \| (.*?) \|", sections[name], re.MULTILINE) == expected, name


@pytest.mark.parametrize(
    "format, output, several, path",
    [
        ("tf", None, False, "best_saved_model"),
        ("keras", None, True, "best.keras"),
        ("onnx", None, False, "best.onnx"),
        ("tf", "out/net", False, "out/net"),
        ("keras", "out/net.keras", False, "out/net.keras"),
        ("onnx", "net.onnx", False, "net.onnx"),
        ("torch", None, True, "best_torch"),
        ("onnx", "out", True, "out/best.onnx"),
        ("tf", "out.d", True, "out.d/best_saved_model"),
    ],
)
def test_output_path(format, output, several, path):
    assert output_path(Path("runs/best.pt"), format, output and Path(output), several) == Path(path)


@pytest.mark.parametrize(
    "format, output, fix",
    [
        pytest.param("keras", "net", "net.keras", id="Keras opens only .keras"),
        pytest.param("keras", "net.v2", "net.v2.keras", id="a dot in the name is no suffix of ours"),
        pytest.param("onnx", "net.keras", "net.onnx", id="another format's suffix"),
        pytest.param("tf", "net.onnx", "Name it net", id="a folder called .onnx"),
    ],
)
def test_output_path_of_another_format_is_refused(format, output, fix):
    with pytest.raises(UsageError, match=fix):
        output_path(Path("best.pt"), format, Path(output), False)


def test_a_file_goes_into_a_folder_that_exists_unless_that_is_an_artifact(tmp_path):
    (tmp_path / "net_saved_model").mkdir()
    (tmp_path / "net_saved_model" / "saved_model.pb").touch()
    (tmp_path / "out").mkdir()
    for format in ("onnx", "keras"):
        expected = tmp_path / "out" / f"best.{format}"
        assert output_path(Path("best.pt"), format, tmp_path / "out", False) == expected
    assert output_path(Path("best.pt"), "tf", tmp_path / "out", False) == tmp_path / "out" / "best_saved_model"
    artifact = tmp_path / "net_saved_model"
    assert output_path(Path("best.pt"), "onnx", artifact, False) == artifact


def test_a_name_that_is_too_long_is_left_to_those_who_open_it():
    name = "a" * 300
    assert output_path(Path(f"{name}.pt"), "onnx", None, False) == Path(f"{name}.onnx")
    assert output_path(Path("a.pt"), "onnx", Path(name), False) == Path(name)


@pytest.mark.parametrize("given, name", [("bert-v1.5", "bert-v1.5"), (".", "here.2"), ("bert-v1.5/..", "here.2")])
def test_the_artifacts_of_a_folder_have_its_whole_name(tmp_path, monkeypatch, given, name):
    (tmp_path / "here.2/bert-v1.5").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here.2")
    assert output_path(Path(given), "keras", None, False) == Path(f"{name}.keras")


def test_two_checkpoints_of_one_name_do_not_overwrite_each_other():
    with pytest.raises(UsageError, match=r"a/best.pt and b/best.pt would both be written to best_saved_model"):
        output_paths([Path("a/best.pt"), Path("b/best.pt")], ["tf"], None)


def test_output_is_a_folder_for_several_models_of_one_format():
    paths = output_paths([Path("a.pt"), Path("b.pt")], ["onnx"], Path("out"))
    assert list(paths.values()) == [Path("out/a.onnx"), Path("out/b.onnx")]
