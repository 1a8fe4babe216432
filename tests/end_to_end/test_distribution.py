"""What the sdist and the wheel hold, and that the wheel alone converts and verifies."""

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

from converter.compat.shipped import INSTALLED
from converter.console.sample import FILES as FILES_OF_SAMPLE
from converter.console.sample import PACKAGE

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (".ci", "benchmarks", "converter", "docs", "mappings", "sample_models", "tests")
FILES = (
    ".gitignore", ".pre-commit-config.yaml", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "MANIFEST.in", "README.md",
    "SECURITY.md", "cli.py", "constraints.txt", "constraints-lowest.txt", "pyproject.toml", "setup.py",
)  # fmt: skip
BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, 'build_' + sys.argv[1])(sys.argv[2])"


def files_below(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def build(kind: str, source: Path, destination: Path) -> Path:
    command = [sys.executable, "-c", BUILD, kind, str(destination)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = destination.iterdir()
    return made


@pytest.fixture(scope="module")
def repository_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("copy")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, copy)
    return copy


@pytest.fixture(scope="module")
def sdist(repository_copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the sdist unpacks to."""
    expected = files_below(repository_copy)
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(build("sdist", repository_copy, tmp_path_factory.mktemp("sdist"))) as archive:
        archive.extractall(folder, filter="data")
    (unpacked,) = folder.iterdir()
    assert expected - files_below(unpacked) == set()
    return unpacked


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the sdist, as `python -m build` does."""
    return build("wheel", sdist, tmp_path_factory.mktemp("wheel"))


@pytest.mark.slow
def test_the_wheel_holds_the_packages_their_types_and_the_sample_only(repository_copy: Path, wheel: Path):
    names = {str(file.relative_to(repository_copy)) for file in (repository_copy / "converter").rglob("*.py")}
    names |= {str(file.relative_to(repository_copy)) for file in (repository_copy / "mappings").rglob("*.py")}
    with zipfile.ZipFile(wheel) as archive:
        held = {name.partition(".data/data/")[2] or name for name in archive.namelist() if ".dist-info/" not in name}
    beside = {f"{INSTALLED}/{PACKAGE}/{name}" for name in FILES_OF_SAMPLE} | {f"{INSTALLED}/docs/versions.json"}
    page = {f"converter/report/{name}" for name in ("page.html.jinja", "page.css", "page.js", "summary.html.jinja")}
    assert held == names | beside | page | {"cli.py", "converter/py.typed", "mappings/py.typed"}


def metadata(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (member,) = (member for member in archive.namelist() if member.endswith(f".dist-info/{name}"))
        return archive.read(member).decode()


@pytest.mark.slow
def test_the_metadata_says_what_a_package_index_shows(wheel: Path):
    said: Message = Parser().parsestr(metadata(wheel, "METADATA"))
    assert said["Name"] == "pt-convert"
    assert said["Requires-Python"] == "<3.14,>=3.11"
    assert said["License-Expression"] == "Apache-2.0"
    assert said["Description-Content-Type"] == "text/markdown"
    described = said.get_payload()
    readme = (ROOT / "README.md").read_text()
    assert (
        re.findall(r"\]\((?!https://)|<img|^\[.*\]:", described, re.MULTILINE) == []
    )  # an index has no files beside it
    assert len(described) > 0.8 * len(readme)
    assert set(re.findall("^## .*", described, re.MULTILINE)) == set(re.findall("^## .*", readme, re.MULTILINE))
    assert {"Typing :: Typed", "Programming Language :: Python :: 3.11"} <= set(said.get_all("Classifier", []))
    assert {"cluster", "docs", "images", "pytest", "tflite", "test", "dev"} == set(said.get_all("Provides-Extra", []))
    assert not [entry for entry in said.get_all("Requires-Dist", []) if " @ " in entry]


@pytest.mark.slow
def test_both_commands_are_installed(wheel: Path):
    commands = [line.partition(" = ") for line in metadata(wheel, "entry_points.txt").splitlines() if " = " in line]
    assert {name: target for name, _, target in commands} == {
        "convert": "converter.__main__:main",
        "pt-convert": "converter.__main__:main",
        "pt_convert": "converter.pytest_plugin",
    }


@pytest.mark.slow
@pytest.mark.wheel
def test_a_wheel_in_an_empty_environment_converts_and_verifies(wheel: Path, tmp_path: Path):
    """And then does without TensorFlow what needs none."""
    python = tmp_path / "environment/bin/python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "environment"], check=True)
    install = ["-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel]
    subprocess.run([python, *install], check=True)
    folder = tmp_path / "work"
    folder.mkdir()
    check = [python, "-P", ROOT / "tests/support/check_wheel.py"]
    subprocess.run(check, cwd=folder, check=True)
    subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", "tensorflow", "keras"], check=True)
    subprocess.run([*check, "without-tensorflow"], cwd=folder, check=True)
