"""Run the quick tests and the main job in an environment for each set of versions that people have installed.

    nox                                       all environments that the interpreters here allow
    nox -s "versions-3.12(pinned)"            one of them
    nox -s lowest                             write constraints-lowest.txt from the lower bounds in pyproject.toml
    python docs/generate/versions.py          write docs/VERSIONS.md from what ran

Each environment is removed when its session ends: those with PyTorch built for CUDA take several gigabytes.
"""

import json
import shutil
import subprocess
import tempfile
from datetime import date
from pathlib import Path
from xml.etree import ElementTree

import nox

RESULTS = Path("docs/versions.json")
REQUIREMENTS = {
    "lowest": ["-c", "constraints-lowest.txt"],
    "pinned": ["-c", "constraints.txt"],
    "torch 2.14": ["torch==2.14.1", "torchvision==0.29.1"],
    "newest": ["--upgrade"],
}
SHOWN = ("torch", "torchvision", "tensorflow", "keras", "onnx", "onnxscript", "onnxruntime", "numpy")

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
        *("--output-file", "constraints-lowest.txt", "pyproject.toml"),
    )


@nox.session(python=["3.11", "3.12", "3.13"])
@nox.parametrize("versions", list(REQUIREMENTS), ids=list(REQUIREMENTS))
def versions(session: nox.Session, versions: str) -> None:
    """Install one set of versions, run the quick tests and the README's main job, and record both."""
    folder = Path(session.virtualenv.location)
    try:
        session.install(*REQUIREMENTS[versions], "-e", ".[test]")
        installed = json.loads(session.run("pip", "list", "--format=json", silent=True))
        known = {each["name"].lower(): each["version"] for each in installed}
        with tempfile.TemporaryDirectory() as scratch:
            tests, job = Path(scratch, "tests.xml"), Path(scratch, "job.json")
            session.run("pytest", "-m", "quick", "-q", f"--junitxml={tests}", success_codes=[0, 1])
            session.run(*MAIN_JOB, "-o", scratch, "--report", str(job), success_codes=range(6))
            suite = ElementTree.parse(tests).getroot()[0].attrib
            (model,) = json.loads(job.read_text())["models"]
        record = {
            "python": session.python,
            "set": versions,
            "date": date.today().isoformat(),
            "commit": subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], text=True).strip(),
            "versions": {name: known[name] for name in SHOWN if name in known},
            "tests": {name: int(suite[name]) for name in ("tests", "failures", "errors", "skipped")},
            "main_job": {each["format"]: each["status"] for each in model.get("artifacts", [])},
        }
        others = [
            one for one in json.loads(RESULTS.read_text()) if (one["python"], one["set"]) != (session.python, versions)
        ]
        RESULTS.write_text(json.dumps([*others, record], indent=2) + "\n")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
