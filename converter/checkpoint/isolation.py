"""A user's `cli.py`, `mappings.py` or `converter.py` beside ours: each side imports its own."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType

OUR_NAMES = ("cli", "mappings", "converter")
OUR_FOLDER = Path(__file__).resolve().parents[2]

# Who holds each of our names in `sys.modules` now (None: we do), and the modules of those who do not.
_holder: dict[str, Path | None] = dict.fromkeys(OUR_NAMES)
_importable: list[str] = []
_set_aside: dict[tuple[str, Path | None], dict[str, ModuleType]] = {}


@contextmanager
def user_code(*folders: Path, ours: bool = False) -> Iterator[None]:
    """Makes the folders importable, before everything else, for as long as the context lasts.

    `import mappings` (or `cli`, `converter`) within it gives the user's module where one of the folders has one, and
    ours again afterwards; the user's stay loaded and come back when the folder is entered again. May be nested. Our
    own code must not import `converter`, `mappings` or `cli` while inside.

    Args:
        ours: these three names are ours all the same, for code that is written against them.
    """
    places = [folder.resolve() for folder in folders]
    entries = [str(place) for place in places]
    before = dict(_holder)
    sys.path[:0] = entries
    _importable[:0] = entries
    importlib.invalidate_caches()
    try:
        for name in OUR_NAMES:
            owner = next((place for place in places if _has_module(place, name)), None)
            if owner not in (None, OUR_FOLDER) and not ours:
                _hand_over(name, owner)
        yield
    finally:
        for name, owner in before.items():
            _hand_over(name, owner)
        del _importable[: len(entries)]
        for entry in entries:
            if entry in sys.path:
                sys.path.remove(entry)


@contextmanager
def installed_code() -> Iterator[None]:
    """Only what is installed is importable: neither the current directory nor the folders of `user_code`."""
    path = list(sys.path)
    hidden = {*_importable, str(Path.cwd()), ""}
    sys.path[:] = [entry for entry in path if entry not in hidden]
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = path


def _has_module(folder: Path, name: str) -> bool:
    spec = PathFinder.find_spec(name, [str(folder)])
    return spec is not None and spec.loader is not None and spec.origin is not None


def _hand_over(name: str, owner: Path | None) -> None:
    holder = _holder[name]
    if holder == owner:
        return
    held = [key for key in sys.modules if key == name or key.startswith(f"{name}.")]
    _set_aside[name, holder] = {key: sys.modules.pop(key) for key in held}
    sys.modules.update(_set_aside.pop((name, owner), {}))
    _holder[name] = owner
