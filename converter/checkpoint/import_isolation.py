"""Control which modules the user's folders may supply, such as a user's `cli.py`, `mappings.py` or `converter.py`.

The current directory and a checkpoint's folder are never on `sys.path`: any library that tries an optional import would
run code from there. While user code may run, a finder supplies two kinds of modules from these folders: those that the
user named, before installed ones, and those that the source files of named modules import, after installed ones.
"""

import ast
import importlib
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

OUR_NAMES = ("cli", "mappings", "converter")
OUR_API = ("mappings", "converter")  # what code that is written against pt-convert imports
OUR_FOLDER = Path(__file__).resolve().parents[2]

# The owner of each pt-convert name in `sys.modules` now (None: pt-convert), and the other owners' modules.
_holder: dict[str, Path | None] = dict.fromkeys(OUR_NAMES)
_set_aside: dict[tuple[str, Path | None], dict[str, ModuleType]] = {}
# User modules that those of the same name from another folder replace, by top-level name and origin, with `_imports`.
_replaced: dict[tuple[str, str], tuple[dict[str, ModuleType], dict[str, frozenset[str]]]] = {}
_active: list["UserCode"] = []
# The top-level names that the source of each user module imports, by the module's name.
_imports: dict[str, frozenset[str]] = {}

_INSTALLED = (
    *(Path(sysconfig.get_path(kind)).resolve() for kind in ("stdlib", "platstdlib", "purelib", "platlib")),
    *(OUR_FOLDER / name for name in OUR_NAMES),
)
_DOTTED = re.compile(r"[^\W\d]\w*(\.\w+)*\.?")


class UserCode:
    """A context in which the user's own modules can be imported; may be entered again, and nested.

    Inside it, `import mappings` (or `cli`, `converter`) gives the user's module if a folder has one that may be
    imported, and pt-convert's again afterwards. The user's modules stay loaded and return when the context is entered
    again. pt-convert's own code must not import `converter`, `mappings` or `cli` while inside.

    Args:
        folders: where the user's modules may be, after the folders of `files`; the first that has one supplies it.
        names: the modules that the user named, dotted.
        files: the Python files that the user named.
        ours: keep pt-convert's `mappings` and `converter`, for code that is written against them.
        everything: treat a checkpoint's modules as if the user's source imported them.
    """

    def __init__(
        self,
        folders: Iterable[Path],
        names: Iterable[str] = (),
        files: Sequence[Path] = (),
        *,
        ours: bool = False,
        everything: bool = False,
    ):
        self.folders = tuple(dict.fromkeys(place.resolve() for place in (*(file.parent for file in files), *folders)))
        self._files = files
        self._ours = ours
        self._everything = everything
        self._wanted = {*names, *(file.stem for file in files)}
        self._named = frozenset(name.partition(".")[0] for name in self._wanted)
        self._importable: set[str] = set(self._named)
        self._before: list[dict[str, Path | None]] = []
        self._exchanged: list[dict[str, tuple[str, str]]] = []

    def __enter__(self) -> None:
        self._importable.update(*(imported_names(file) for file in self._files))
        importlib.invalidate_caches()
        kept = {name for modules in _set_aside.values() for name in modules}
        for module in _imports.keys() - sys.modules.keys() - kept:  # no longer loaded: another may replace it
            del _imports[module]
        self._before.append(dict(_holder))
        self._exchanged.append({})
        _active.append(self)
        sys.meta_path.insert(0, self)
        self._follow()

    def __exit__(self, *_: object) -> None:
        sys.meta_path.remove(self)
        _active.pop()
        for name, owner in self._before.pop().items():
            _hand_over(name, owner)
        for name, (before, own) in self._exchanged.pop().items():
            _exchange(name, own, before)

    def expect(self, modules: Iterable[str]) -> None:
        """Prefer the package that has these modules among several of one name."""
        modules = set(modules)
        self._wanted |= modules
        if self._everything:
            self._importable.update(name.partition(".")[0] for name in modules)
            self._follow()

    def withholds(self, module: str) -> Path | None:
        """Return the folder whose module of that name is withheld because no code that the user named imports it."""
        name = module.partition(".")[0]
        if name in self._importable:
            return None
        return next((place for place in self.folders if _has_module(place, name)), None)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        name = fullname.partition(".")[0]
        if name not in self._importable or (self._ours and name in OUR_API):
            return None
        if path is not None:
            spec, theirs = _elsewhere(fullname, path), name in _imports
        else:
            spec, theirs = self._choose(name)
        if spec is not None and (theirs or not _is_installed(spec)):
            _imports[fullname] = imported_names(Path(spec.origin)) if spec.origin else frozenset()
            self._follow()
        return spec

    def _choose(self, name: str) -> tuple[ModuleSpec | None, bool]:
        """Return the top-level module of that name, and whether one of the folders supplies it."""
        installed = _elsewhere(name)
        here = list(self._in_folders(name))
        first = name in self._named or name in OUR_NAMES
        found = [*here, installed] if first else [installed, *here]
        specs = [spec for spec in found if spec is not None]
        if not specs:
            return None, False
        wanted = [module for module in self._wanted if module.partition(".")[0] == name]
        best = max(specs, key=lambda spec: (sum(_holds(spec, module) for module in wanted), spec.loader is not None))
        if best.loader is None:  # a package without __init__.py; as a list, its places do not change with `sys.path`
            parts = [spec for spec in (best, *specs) if spec.loader is None]
            places = dict.fromkeys(place for spec in parts for place in spec.submodule_search_locations or ())
            merged = ModuleSpec(name, None, is_package=True)
            merged.submodule_search_locations = list(places)
            return merged, best is not installed
        return best, best is not installed

    def _in_folders(self, name: str) -> Iterator[ModuleSpec]:
        for place in self.folders:
            if (spec := PathFinder.find_spec(name, [str(place)])) is not None:
                yield spec
        for place in self.folders:
            if place.name == name:  # weights inside their own package
                spec = PathFinder.find_spec(name, [str(place.parent)])
                if spec is not None and str(place) in (spec.submodule_search_locations or ()):
                    yield spec

    def _follow(self) -> None:
        """Add the names that the sources of importable modules import."""
        known = -1
        while known != len(self._importable):
            known = len(self._importable)
            importable = (names for module, names in _imports.items() if module.partition(".")[0] in self._importable)
            self._importable = self._importable.union(*importable)
        for name in OUR_NAMES:
            if name in self._importable and not (self._ours and name in OUR_API):
                owner = next((place for place in self.folders if _has_module(place, name)), None)
                if owner not in (None, OUR_FOLDER):
                    _hand_over(name, owner)
        for name in (self._importable & sys.modules.keys()).difference(OUR_NAMES):
            loaded = sys.modules[name].__spec__
            if loaded is None or _is_installed(loaded) or name in self._exchanged[-1]:
                continue
            spec, theirs = self._choose(name)
            before, own = _origin(loaded), _origin(spec)
            if theirs and before != own:
                self._exchanged[-1][name] = before, own
                _exchange(name, before, own)


def user_code(*folders: Path, names: Iterable[str] = (), files: Sequence[Path] = (), ours: bool = False) -> UserCode:
    """Allow importing these user modules and files, and their own imports, from the folders."""
    return UserCode(folders, names, files, ours=ours)


def expect(modules: Iterable[str]) -> None:
    """Announce to the active user code which modules a checkpoint uses."""
    if _active:
        _active[-1].expect(modules)


def withheld(module: str) -> Path | None:
    """Return the folder whose module of that name was withheld because no code that the user named imports it."""
    return _active[-1].withholds(module) if _active else None


@contextmanager
def installed_code() -> Iterator[None]:
    """Restrict imports to installed modules, without the current directory and the folders of user code."""
    path, finders = list(sys.path), list(sys.meta_path)
    hidden = {*(str(place) for code in _active for place in code.folders), str(Path.cwd()), ""}
    sys.path[:] = [entry for entry in path if entry not in hidden]
    sys.meta_path[:] = [finder for finder in finders if not isinstance(finder, UserCode)]
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = path
        sys.meta_path[:] = finders


def imported_names(file: Path) -> frozenset[str]:
    """Return the top-level modules that a Python file imports, in functions too; empty if it cannot be read.

    A call of `importlib.import_module` or similar counts too. If its argument is computed, every string in the file
    that could be a module's name counts.
    """
    try:
        tree = ast.parse(file.read_bytes()) if file.suffix == ".py" else ast.Module([], [])
    except (OSError, SyntaxError, ValueError):  # importing the file reports the error
        return frozenset()
    modules: list[str] = []
    computed = False
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules.append(node.module)
        elif isinstance(node, ast.Call) and _imports_by_name(node.func):
            texts = [value for argument in node.args if (value := _text(argument))]
            modules += texts
            computed |= not texts
    if computed:
        modules += [text for node in ast.walk(tree) if (text := _text(node))]
    return frozenset(module.partition(".")[0] for module in modules)


def _imports_by_name(function: ast.expr) -> bool:
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return "import" in name.lower() or name == "find_spec"


def _text(node: ast.AST) -> str | None:
    """Return a string that could be the name of a module, or its beginning."""
    value = node.value if isinstance(node, ast.Constant) else None
    return value if isinstance(value, str) and _DOTTED.fullmatch(value) else None


def _elsewhere(name: str, path: Sequence[str] | None = None) -> ModuleSpec | None:
    """Return the spec that other finders give, installed modules first."""
    for finder in sys.meta_path:
        if not isinstance(finder, UserCode) and (spec := finder.find_spec(name, path, None)) is not None:
            return spec
    return None


def _holds(spec: ModuleSpec | None, module: str) -> bool:
    """Return whether the package has a module of this dotted name, or is it."""
    if spec is None:
        return False
    parent, _, rest = module[len(spec.name) :].removeprefix(".").partition(".")
    if not parent:
        return True
    places = spec.submodule_search_locations
    part = f"{spec.name}.{parent}"
    return places is not None and _holds(PathFinder.find_spec(part, list(places)), f"{part}.{rest}".rstrip("."))


def _is_installed(spec: ModuleSpec) -> bool:
    """Return whether a module belongs to an installed package, whose imports are installed too."""
    places = [spec.origin] if spec.has_location and spec.origin else list(spec.submodule_search_locations or ())
    paths = [Path(place).resolve() for place in places]
    return all(
        {"site-packages", "dist-packages"}.intersection(path.parts) or any(map(path.is_relative_to, _INSTALLED))
        for path in paths
    )


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


def _origin(spec: ModuleSpec | None) -> str:
    """Return where a module comes from: its file, or the folders of a package without one."""
    return "" if spec is None else spec.origin or ":".join(spec.submodule_search_locations or ())


def _exchange(name: str, before: str, after: str) -> None:
    """Replace the loaded user module of that name by the one from `after`, if that was loaded earlier.

    Models of several folders in one process may each have a module of the same name.
    """
    held = [key for key in sys.modules if key == name or key.startswith(f"{name}.")]
    imports = {key: _imports.pop(key) for key in held if key in _imports}
    _replaced[name, before] = {key: sys.modules.pop(key) for key in held}, imports
    modules, imports = _replaced.pop((name, after), ({}, {}))
    sys.modules.update(modules)
    _imports.update(imports)
