"""What is imported is declared; pyproject.toml, the constraints and docs/INSTALLATION.md have the same versions."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import chain, zip_longest
from pathlib import Path

import pytest
from versions import PAGE, document

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
OURS = {"cli", "converter", "mappings", "sample_models", "artifacts"}
DISTRIBUTIONS = {
    "PIL": "pillow",
    "onnx_ir": "onnx-ir",
    "sklearn": "scikit-learn",
}  # by what is imported, where it differs
# Whoever has models of them has them; tests are skipped without, benchmarks say so.
WITH_THE_MODEL = {"timm", "transformers", "ultralytics"}
COLUMNS = ("torch", "tensorflow", "keras", "onnx", "onnxruntime", "numpy")


def pinned(file: str) -> dict[str, str]:
    lines = (line for line in (ROOT / file).read_text().splitlines() if not line.lstrip().startswith("#"))
    return {normal(name): version for name, _, version in (line.partition("==") for line in lines)}


def normal(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()


def numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def bounds(requirements: list[str]) -> dict[str, str]:
    """The lower bound of each requirement; there are no other kinds of them."""
    found = [re.fullmatch(r"([\w-]+)>=([\d.]+)", requirement) for requirement in requirements]
    assert all(found), requirements
    return {normal(match[1]): match[2] for match in found if match}


def imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module.partition(".")[0]


def of_others(*places: str) -> set[str]:
    """Names of the distributions that Python files import."""
    files = [
        file for place in places for file in ([ROOT / place] if place[-3:] == ".py" else (ROOT / place).rglob("*.py"))
    ]
    scripts = [
        file for file in files if not (file.parent / "__init__.py").exists()
    ]  # they import each other by bare names
    beside = {file.stem for file in scripts} | {file.parent.name for file in files}
    names = set(chain.from_iterable(map(imported, files))) - beside - OURS - set(sys.stdlib_module_names)
    # What is not installed is written by a test for itself, or missed on purpose: else that test would fail.
    installed = {name for name in names - WITH_THE_MODEL if find_spec(name) is not None}
    return {normal(DISTRIBUTIONS.get(name, name)) for name in installed}


@pytest.mark.slow
def test_what_the_program_imports_is_declared_and_nothing_else():
    declared = bounds(PROJECT["dependencies"])
    optional = bounds([*EXTRAS["cluster"], *EXTRAS["images"], *EXTRAS["pytest"], *EXTRAS["tflite"]])
    found = of_others("converter", "mappings", "cli.py")
    assert found - set(optional) == set(declared)
    assert set(optional) <= found


@pytest.mark.slow
def test_what_tests_and_samples_import_is_declared():
    declared = bounds([*PROJECT["dependencies"], *EXTRAS["test"]])
    assert of_others("tests", "benchmarks", "docs/generate", "sample_models") <= set(declared)


def test_the_lowest_versions_are_those_that_pyproject_allows():
    declared = bounds([*PROJECT["dependencies"], *chain.from_iterable(EXTRAS.values())])
    lowest = pinned("constraints-lowest.txt")
    assert lowest.keys() >= declared.keys()
    for name, bound in declared.items():
        differences = [a - b for a, b in zip_longest(numbers(lowest[name]), numbers(bound), fillvalue=0)]
        assert not any(differences), f"{name} {lowest[name]} is not the lowest of {bound}"


def test_an_extra_says_the_same_as_the_others():
    for name, bound in chain.from_iterable(bounds(extra).items() for extra in EXTRAS.values()):
        assert {bounds(extra).get(name, bound) for extra in EXTRAS.values()} == {bound}


def test_pinned_versions_are_allowed():
    pins = pinned("constraints.txt")
    declared = bounds([*PROJECT["dependencies"], *chain.from_iterable(EXTRAS.values())])
    assert {name: pins[name] for name, bound in declared.items() if numbers(pins[name]) < numbers(bound)} == {}


@pytest.mark.parametrize("row, file", [("pinned", "constraints.txt"), ("lowest", "constraints-lowest.txt")])
def test_the_page_of_installation_shows_them(row, file):
    pins = pinned(file)
    (cells,) = re.findall(
        rf"^\| {row}[^|]*\| [\d.]+ \|(.*)\|$", (ROOT / "docs/INSTALLATION.md").read_text(), re.MULTILINE
    )
    assert [cell.strip() for cell in cells.split("|")] == [pins[name] for name in COLUMNS]


def test_the_page_of_tested_versions_is_that_of_the_results():
    assert PAGE.read_text() == document()
