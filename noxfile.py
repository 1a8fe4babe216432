"""Run the quick tests and the main job in an environment for each set of versions that people have installed.

    nox                                       all environments that the interpreters here allow
    nox -s "versions-3.12(pinned)"            one of them
    nox -s lowest                             write constraints-lowest.txt from the lower bounds in pyproject.toml
    nox -s wheel                              the wheel in an empty environment of each Python
    nox -s sdist                              the quick tests of an unpacked sdist

Each records what ran in docs/versions.json, and writes docs/VERSIONS.md from it (docs/generate/versions.py).
Each environment is removed when its session ends: those with PyTorch built for CUDA take several gigabytes.
"""

import json
import shutil
import subprocess
import tempfile
from datetime import date
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import nox

RESULTS = Path("docs/versions.json").resolve()
REQUIREMENTS = {
    "lowest": ["-c", "constraints-lowest.txt"],
    "pinned": ["-c", "constraints.txt"],
    "torch 2.14": ["torch==2.14.1", "torchvision==0.29.1"],
    "newest": ["--upgrade"],
}
SHOWN = ("torch", "torchvision", "tensorflow", "keras", "onnx", "onnxscript", "onnxruntime", "numpy")

QUICK = ("pytest", "-m", "quick or versions", "-q", "-n", "auto", "--dist", "worksteal")  # shared among the cores
MAIN_JOB = (
    *("convert", "sample_models/digits_focus.pt", "--to", "tf", "--to", "keras", "--to", "onnx"),
    *("--trust", "sample_models", "--input-shape", "1,1,16,16", "--inputs", "sample_models/digits_holdback.npz"),
)

nox.options.default_venv_backend = "venv"


@nox.session(python="3.11", default=False)
def lowest(session: nox.Session) -> None:
    """Resolve the lowest versions that pyproject.toml allows of what it names, with the newest of all else."""
    session.install("uv")
    session.run(
        *("uv", "pip", "compile", "--quiet", "--upgrade", "--all-extras", "--resolution", "lowest-direct"),
        *("--python-version", "3.11", "--python-platform", "linux"),
        *("--no-annotate", "--custom-compile-command", "nox -s lowest"),
        *("--no-emit-package", "backports-strenum"),  # its last version excludes Python 3.11, which uv overlooks
        *("--output-file", "constraints-lowest.txt", "pyproject.toml"),
    )


@nox.session(python=["3.11", "3.12", "3.13"])
@nox.parametrize("versions", list(REQUIREMENTS), ids=list(REQUIREMENTS))
def versions(session: nox.Session, versions: str) -> None:
    """Install one set of versions, run the quick tests and the README's main job, and record both."""
    folder, before = Path(session.virtualenv.location), RESULTS.read_text()
    try:
        session.install(*REQUIREMENTS[versions], "-e", ".[test]")
        known = installed_versions(session, "python")
        record(session, versions, known)  # from here on they are known: reports name only versions that are not
        with tempfile.TemporaryDirectory() as scratch:
            tests, job = Path(scratch, "tests.xml"), Path(scratch, "job.json")
            session.run(*QUICK, f"--junitxml={tests}", success_codes=[0, 1])
            session.run(*MAIN_JOB, "-o", scratch, "--report", str(job), success_codes=range(6))
            suite = ElementTree.parse(tests).getroot()[0].attrib
            (model,) = json.loads(job.read_text())["models"]
        record(
            session, versions, known,
            tests={name: int(suite[name]) for name in ("tests", "failures", "errors", "skipped")},
            main_job={each["format"]: each["status"] for each in model.get("artifacts", [])},
        )  # fmt: skip
    except BaseException:  # what an earlier run recorded stays where this one does not end
        write_results(session, before)
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@nox.session(python=["3.11", "3.12", "3.13"])
def wheel(session: nox.Session) -> None:
    """Check the wheel in an empty environment without the repository, and record what its main job said."""
    with tempfile.TemporaryDirectory() as scratch:
        built, _ = build(session, Path(scratch))
        python, work = Path(scratch, "environment/bin/python"), Path(scratch, "work")
        work.mkdir()
        session.run("python", "-m", "venv", str(python.parents[1]))
        session.run(str(python), "-m", "pip", "install", "-q", "-c", "constraints.txt", str(built), external=True)
        known = installed_versions(session, str(python))
        check = (str(python), "-P", str(Path("tests/support/check_wheel.py").resolve()))
        with session.chdir(work):
            session.run(*check, external=True)
            session.run(str(python), "-m", "pip", "uninstall", "-q", "-y", "tensorflow", "keras", external=True)
            session.run(*check, "without-tensorflow", external=True)
            (model,) = json.loads(Path("report.json").read_text())["models"]
        record(session, "wheel", known, main_job={each["format"]: each["status"] for each in model["artifacts"]})


@nox.session(python="3.11")
def sdist(session: nox.Session) -> None:
    """Run the quick tests of an unpacked sdist, and record them."""
    with tempfile.TemporaryDirectory() as scratch:
        _, packed = build(session, Path(scratch))
        session.run("python", "-m", "tarfile", "-e", str(packed), scratch)
        with session.chdir(Path(scratch, packed.name.removesuffix(".tar.gz"))):
            session.install("-c", "constraints.txt", "-e", ".[test]")
            tests = Path(scratch, "tests.xml")
            session.run(*QUICK, f"--junitxml={tests}", success_codes=[0, 1])
        suite = ElementTree.parse(tests).getroot()[0].attrib
        counts = {name: int(suite[name]) for name in ("tests", "failures", "errors", "skipped")}
        record(session, "sdist", installed_versions(session, "python"), tests=counts)


def build(session: nox.Session, folder: Path) -> tuple[Path, Path]:
    """Build the sdist, and from it the wheel, and check their metadata; return the wheel and the sdist."""
    session.install("-c", "constraints.txt", "build", "tabulate", "twine")
    session.run("python", "-m", "build", "-o", str(folder), ".", silent=True)
    (built,), (packed,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    session.run("twine", "check", "--strict", str(built), str(packed))
    return built, packed


def installed_versions(session: nox.Session, python: str) -> dict[str, str]:
    """Return the versions that an environment has, by name."""
    listed = session.run(python, "-m", "pip", "list", "--format=json", silent=True, external=True)
    return {each["name"].lower(): each["version"] for each in json.loads(listed)}


def record(session: nox.Session, versions: str, known: dict[str, str], **results: dict[str, Any]) -> None:
    """Replace what docs/versions.json and its page say of this Python and set of versions."""
    entry = {
        "python": session.python,
        "set": versions,
        "date": date.today().isoformat(),
        "commit": subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], text=True).strip(),
        "versions": {name: known[name].partition("+")[0] for name in SHOWN if name in known},  # 2.13.0 of 2.13.0+cpu
        **results,
    }
    others = [
        one for one in json.loads(RESULTS.read_text()) if (one["python"], one["set"]) != (session.python, versions)
    ]
    write_results(session, json.dumps([*others, entry], indent=2) + "\n")


def write_results(session: nox.Session, text: str) -> None:
    """Write docs/versions.json, and its page from it."""
    RESULTS.write_text(text)
    session.run("python", str(RESULTS.parent / "generate/versions.py"))
