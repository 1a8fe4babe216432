"""Find out what works in this installation: versions, formats, extras, and what is known to go wrong."""

import json
import operator
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions, requires, version
from pathlib import Path
from typing import Any, Literal

import psutil

from converter.artifacts.paths import SUFFIXES
from converter.compat.tested_versions import is_newer, release, tested_versions
from converter.report.failures import Report

State = Literal["tested", "not tested", "newer than tested", "not allowed", "missing", "found"]
OFTEN_BESIDE = ("torchvision", "timm", "transformers", "ultralytics")  # models that people bring need them
FOR_DEVELOPERS = ("test", "dev", "docs")  # extras that a user does not need
LIMIT = 600  # seconds for a trial
CLAUSES: Mapping[str, Callable[[tuple[int, ...], tuple[int, ...]], bool]] = {
    ">=": operator.ge, "<=": operator.le, "==": operator.eq, "!=": operator.ne, ">": operator.gt, "<": operator.lt,
}  # fmt: skip


@dataclass(frozen=True)
class Package:
    """Python, or a package that pt-convert needs.

    Attributes:
        allowed: the versions that pt-convert accepts.
        tested: those that its tests ran with, where docs/VERSIONS.md records them.
    """

    name: str
    found: str | None
    allowed: str
    tested: tuple[str, ...]
    state: State


@dataclass(frozen=True)
class FormatTrial:
    """Whether a small network converts to a format here, tried in a process of its own."""

    format: str
    works: bool
    seconds: float
    reason: str | None = None
    fix: str | None = None


@dataclass(frozen=True)
class MissingExtra:
    """An optional feature that is not installed, and the command that adds it."""

    name: str
    missing: tuple[str, ...]
    command: str


@dataclass(frozen=True)
class Diagnosis(Report):
    """What was found.

    Attributes:
        needed: the formats without which the exit status is 1: those asked for, or all that need no extra.
        problems: what is known to go wrong with what is installed, each with what to do.
        convert_command: the `convert` that a shell finds first.
        temporary_folder: where conversions keep temporary files; no cache outlives a command.
    """

    pt_convert: str
    system: str
    packages: tuple[Package, ...]
    formats: tuple[FormatTrial, ...]
    needed: tuple[str, ...]
    extras: tuple[MissingExtra, ...]
    problems: tuple[str, ...]
    convert_command: str | None
    cores: int
    memory: int
    memory_available: int
    temporary_folder: str
    temporary_space: int

    @property
    def exit_status(self) -> int:  # type: ignore[override]
        return int(not all(trial.works for trial in self.formats if trial.format in self.needed))


def diagnose(wanted: Sequence[str], progress: Callable[[str], AbstractContextManager[None]]) -> Diagnosis:
    """Look at what is installed, by its metadata, and try the formats wanted, or all."""
    formats, cores = wanted or tuple(SUFFIXES), len(os.sched_getaffinity(0))
    with progress(f"convert a small network: {', '.join(formats)}"), ThreadPoolExecutor(cores) as pool:
        trials = tuple(pool.map(try_format, formats))
    folder, memory = tempfile.gettempdir(), psutil.virtual_memory()
    return Diagnosis(
        pt_convert=version("pt-convert"),
        system=platform.platform(),
        packages=packages(),
        formats=trials,
        needed=tuple(wanted) or tuple(format for format in formats if format not in extra_names()),
        extras=missing_extras(),
        problems=tuple(problems()),
        convert_command=shutil.which("convert"),
        cores=cores,
        memory=memory.total,
        memory_available=memory.available,
        temporary_folder=folder,
        temporary_space=shutil.disk_usage(folder).free,
    )


def packages() -> tuple[Package, ...]:
    """Return Python and the packages that pt-convert requires, and others it uses that are there.

    Each has the versions found, allowed and tested.
    """
    tested = tested_versions()
    allowed = {"python": distribution("pt-convert").metadata["Requires-Python"] or ""} | dict(requirements(""))
    extras = [pair for name in extra_names() if name not in FOR_DEVELOPERS for pair in requirements(name)]
    others = {name: versions for name, versions in [*extras, *((n, "") for n in OFTEN_BESIDE)] if name not in allowed}
    found = {name: found_version(name) for name in (*allowed, *others)} | {"python": platform.python_version()}
    allowed |= {name: versions for name, versions in others.items() if found[name] is not None}
    return tuple(_package(name, found[name], allowed[name], tested.get(name, ())) for name in allowed)


def _package(name: str, found: str | None, allowed: str, tested: tuple[str, ...]) -> Package:
    state: State = "found"
    if found is None:
        state = "missing"
    elif not satisfies(found, allowed):
        state = "not allowed"
    elif tested:
        own = {release(found)[: len(release(one))] for one in tested}  # Python is tested as 3.12
        same = own & set(map(release, tested))
        state = "tested" if same else "newer than tested" if is_newer(found, tested) else "not tested"
    return Package(name, found, allowed, tested, state)


def requirements(extra: str) -> list[tuple[str, str]]:
    """Return the packages that pt-convert requires, or those of an extra, with the versions allowed."""
    found = []
    for text in requires("pt-convert") or ():
        match = re.fullmatch(r"([\w.-]+)\s*([^;]*?)\s*(?:;\s*extra\s*==\s*['\"](\w+)['\"])?", text)
        if match and (match[3] or "") == extra:
            found.append((match[1], match[2]))
    return found


def found_version(name: str) -> str | None:
    """Return the version of a package, also where another distribution brings it, such as tensorflow-cpu."""
    try:
        return version(name)
    except PackageNotFoundError:
        others = providers().get(name, [])
        return version(others[0]) if others else None


@cache
def providers() -> Mapping[str, list[str]]:
    """Return the installed distributions by the modules that they bring; to look through all takes a second."""
    return packages_distributions()


def satisfies(found: str, allowed: str) -> bool:
    """Return whether a version is among those that clauses such as `>=2.13,<3` allow."""
    for clause in filter(None, map(str.strip, allowed.split(","))):
        compare = next(sign for sign in CLAUSES if clause.startswith(sign))
        have, bound = release(found), release(clause.removeprefix(compare))
        width = max(len(have), len(bound))
        if not CLAUSES[compare](*(one + (0,) * (width - len(one)) for one in (have, bound))):
            return False
    return True


def missing_extras() -> tuple[MissingExtra, ...]:
    """Return the extras whose packages are not installed."""
    extras = []
    for name in extra_names():
        missing = tuple(package for package, _ in requirements(name) if found_version(package) is None)
        if missing and name not in FOR_DEVELOPERS:
            extras.append(MissingExtra(name, missing, f'pip install "pt-convert[{name}]"'))
    return tuple(extras)


def extra_names() -> list[str]:
    """Return the extras that pt-convert declares; a format that needs one has its name."""
    return distribution("pt-convert").metadata.get_all("Provides-Extra") or []


def problems() -> list[str]:
    """Return what is known to go wrong with what is installed."""
    found = []
    torch = found_version("torch")
    for pin in filter(None, (re.match(r"torch\s*\(?==([\d.]+)", text) for text in _requires("torchvision"))):
        if torch is not None and release(torch) != release(pin[1]):
            found.append(f"torchvision {found_version('torchvision')} is built for torch {pin[1]}, and {torch} is "
                         "installed. Run pip install --upgrade torch torchvision.")  # fmt: skip
    if found_version("triton") and found_version("tensorflow"):
        found.append("triton and TensorFlow in one process end it unless triton is imported first. pt-convert keeps "
                     "them apart; import triton first in programs of your own.")  # fmt: skip
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    if backend != "tensorflow":
        found.append(f"KERAS_BACKEND is {backend}; conversion needs tensorflow. Run unset KERAS_BACKEND.")
    first = shutil.which("convert")
    if first is not None and b"converter.__main__" not in Path(first).read_bytes()[:4096]:
        found.append(f"`convert` is {first}, another program (ImageMagick has one). Use pt-convert.")
    return found


def _requires(name: str) -> Sequence[str]:
    try:
        return requires(name) or ()
    except PackageNotFoundError:
        return ()


def try_format(format: str) -> FormatTrial:
    """Convert a small network to a format, with all proofs, in a process that may crash."""
    started = time.perf_counter()
    command = [sys.executable, "-P", str(Path(__file__).with_name("trial.py")), format]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=LIMIT, check=False)
    except subprocess.TimeoutExpired:
        return FormatTrial(format, False, time.perf_counter() - started, f"It took longer than {LIMIT} s.")
    seconds = time.perf_counter() - started
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1]) if done.stdout.strip() else {}
    if answer.get("status") == "verified":
        return FormatTrial(format, True, seconds)
    last = (done.stderr.strip().splitlines() or [""])[-1]
    reason = answer.get("reason") or answer.get("status") or f"The process ended with status {done.returncode}. {last}"
    return FormatTrial(format, False, seconds, reason, answer.get("fix"))
