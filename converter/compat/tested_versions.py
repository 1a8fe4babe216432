"""The versions that pt-convert was tested with, as docs/versions.json records them."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from converter.compat.shipped import shipped
from converter.errors import ConversionError, Note


@cache
def tested_versions() -> dict[str, tuple[str, ...]]:
    """Return the versions of Python and of each package that the tests ran with, the lowest first."""
    found: dict[str, set[str]] = {}
    for record in json.loads(shipped("docs/versions.json").read_text()):
        for name, one in {"python": record["python"], **record["versions"]}.items():
            found.setdefault(name, set()).add(one)
    return {name: tuple(sorted(versions, key=release)) for name, versions in found.items()}


def release(text: str) -> tuple[int, ...]:
    """Return the numbers of a version: (2, 13, 0) of 2.13.0+cpu."""
    match = re.match(r"\d+(\.\d+)*", text)
    return tuple(map(int, match[0].split("."))) if match else ()


def is_newer(found: str, tested: Iterable[str]) -> bool:
    """Return whether a version is newer than all tested ones, as far as those have numbers, as 3.12 of Python."""
    last = max(map(release, tested))
    return release(found)[: len(last)] > last


def newer_versions() -> list[Note]:
    """Return a note that lists what is installed in a version newer than any tested one."""
    try:
        known = tested_versions()
    except ConversionError:  # an incomplete installation, as `doctor` reports, can convert
        return []
    newer = []
    for name, tested in known.items():
        try:
            found = platform.python_version() if name == "python" else version(name)
        except PackageNotFoundError:
            continue
        if is_newer(found, tested):
            newer.append(f"{name} {found} (tested up to {tested[-1]})")
    text = f"Installed in versions newer than any tested one: {', '.join(newer)}."
    return [Note(text, code="PTC6512")] if newer else []
