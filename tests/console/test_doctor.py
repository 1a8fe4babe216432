"""`pt-convert doctor` and `pt-convert sample`."""

import json
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fresh_process import run_commands

import cli
from converter.compat import shipped
from converter.console import doctor, sample
from converter.console.doctor import FormatTrial
from converter.errors import ConversionError

REPOSITORY = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, arguments)


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> dict[str, FormatTrial]:
    """What trials find, by format; without an entry they work."""
    found: dict[str, FormatTrial] = {}
    monkeypatch.setattr(doctor, "try_format", lambda format: found.get(format, FormatTrial(format, True, 1.0)))
    return found


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """Versions in the place of those that are installed; None is missing."""
    changed: dict[str, str | None] = {}
    real = doctor.version

    def version(name: str) -> str:
        if name not in changed:
            return real(name)
        if changed[name] is None:
            raise PackageNotFoundError(name)
        return changed[name]

    monkeypatch.setattr(doctor, "version", version)
    monkeypatch.setattr(doctor, "providers", dict)
    return changed


def diagnosis() -> dict:
    result = run("doctor", "--json")
    return {"exit_status": result.exit_code, **json.loads(result.stdout)}


@pytest.mark.slow
def test_a_format_is_tried_in_a_process_of_its_own_which_alone_imports_torch(tmp_path):
    (status, output, both, imported), *_ = run_commands(tmp_path, ["doctor", "--to", "onnx", "--json"], ["sample"])
    assert (status, imported) == (0, []), both
    (trial,) = json.loads(output)["formats"]
    assert trial["works"]


def test_a_crash_and_a_failure_of_a_trial_are_reasons(monkeypatch, tmp_path):
    (tmp_path / "trial.py").write_text(
        "import json, os, sys\n"
        "if sys.argv[1] == 'tf': os.abort()\n"
        "print(json.dumps({'reason': 'keras cannot be imported', 'fix': 'Run pip install keras.'}))\n"
    )
    monkeypatch.setattr(doctor, "__file__", str(tmp_path / "doctor.py"))
    assert "status -6" in (doctor.try_format("tf").reason or "")
    failed = doctor.try_format("keras")
    assert (failed.works, failed.reason, failed.fix) == (False, "keras cannot be imported", "Run pip install keras.")


def test_versions_are_found_beside_those_allowed_and_tested(tried, installed):
    installed |= {"torch": "2.99.0+cu128", "onnx": "1.2", "keras": None}
    found = {package["name"]: package for package in diagnosis()["packages"]}
    states = {name: found[name]["state"] for name in ("torch", "onnx", "keras", "click")}
    assert states == {"torch": "newer than tested", "onnx": "not allowed", "keras": "missing", "click": "found"}
    records = json.loads((REPOSITORY / "docs/versions.json").read_text())
    assert set(found["torch"]["tested"]) == {record["versions"]["torch"] for record in records}
    assert found["python"]["found"]


@pytest.mark.parametrize(
    "version, allowed, fits",
    [
        ("2.13.0+cpu", ">=2.13", True),
        ("2.12.9", ">=2.13", False),
        ("3.14.0", ">=3.11,<3.14", False),
        ("3.13.9", "<3.14,>=3.11", True),
        ("2.15.0", ">=2.13,!=2.15", False),
        ("1.0", "", True),
    ],
)
def test_a_version_is_among_those_allowed(version, allowed, fits):
    assert doctor.satisfies(version, allowed) is fits


@pytest.mark.slow
def test_a_format_that_does_not_work_is_status_1(tried):
    assert diagnosis()["exit_status"] == 0
    tried["tf"] = FormatTrial("tf", False, 1.0, "tensorflow cannot be imported", "Run pip install tensorflow.")
    result = run("doctor")
    assert result.exit_code == 1
    assert "does not work: tensorflow cannot be imported" in result.output
    assert "Run pip install tensorflow." in result.output


def test_a_format_of_an_extra_decides_the_status_only_if_it_is_asked_for(tried, monkeypatch):
    monkeypatch.setattr(doctor, "extra_names", lambda: ["images", "tflite"])
    tried["tflite"] = FormatTrial("tflite", False, 1.0, "not installed", 'pip install "pt-convert[tflite]"')
    assert run("doctor").exit_code == 0
    assert run("doctor", "--to", "tflite").exit_code == 1


def test_a_missing_extra_is_named_with_its_command(tried, installed):
    installed["pillow"] = None
    assert {"name": "images", "missing": ["pillow"], "command": 'pip install "pt-convert[images]"'} in (
        diagnosis()["extras"]
    )


def test_known_problems_are_named(tried, installed, monkeypatch, tmp_path):
    installed |= {"torch": "2.14.1", "torchvision": "0.28.0", "triton": "3.7"}
    monkeypatch.setattr(doctor, "_requires", lambda name: ["numpy", "torch==2.13.0"] if name == "torchvision" else [])
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    (tmp_path / "convert").write_text("#!/bin/sh\n")
    (tmp_path / "convert").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = diagnosis()
    for text in ("built for torch 2.13.0", "import triton first", "KERAS_BACKEND is jax", "another program"):
        assert sum(text in problem for problem in found["problems"]) == 1
    assert found["convert_command"] == str(tmp_path / "convert")
    (tmp_path / "convert").write_text("from converter.__main__ import main\n")
    assert not any("another program" in problem for problem in diagnosis()["problems"])


def test_the_sample_is_written_and_left_alone_where_it_is(tmp_path):
    result = run("sample", str(tmp_path / "new"))
    assert result.exit_code == 0, result.output
    assert "--trust sample_models" in result.output
    for name in sample.FILES:
        copy = tmp_path / "new/sample_models" / name
        assert copy.read_bytes() == (REPOSITORY / "sample_models" / name).read_bytes()
    (tmp_path / "new/sample_models/blocks.py").unlink()
    again = json.loads(run("sample", str(tmp_path / "new"), "--json").stdout)
    assert again["written"] == [str(tmp_path / "new/sample_models/blocks.py")]


def test_a_file_of_the_users_is_not_overwritten(tmp_path):
    mine = tmp_path / "sample_models/blocks.py"
    mine.parent.mkdir()
    mine.write_text("mine")
    result = run("sample", str(tmp_path))
    assert result.exit_code == 1
    assert str(mine) in result.output.replace("\n", "")
    assert mine.read_text() == "mine"
    assert list(mine.parent.iterdir()) == [mine]


def test_a_folder_that_cannot_be_written_is_an_error_with_a_fix(tmp_path):
    (tmp_path / "file").touch()
    result = run("sample", str(tmp_path / "file"))
    assert result.exit_code == 1
    assert "PTC6045" in result.output


def test_what_the_sample_says_to_run_is_the_readmes_main_job():
    readme = (REPOSITORY / "README.md").read_text()
    job = readme.split("<!-- main job -->\n```sh\n")[1].split("```")[0]
    assert sample.WrittenSample(".", ()).command.split()[1:] == job.replace("\\\n", "").split()[1:]


def test_an_installation_without_its_files_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(shipped, "REPOSITORY", tmp_path)
    with pytest.raises(ConversionError, match="missing from this installation") as caught:
        shipped.shipped("docs/none.json")
    assert caught.value.fix
