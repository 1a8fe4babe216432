"""Add mappings of the user's own (`--mappings my_ops.py`) and of installed packages to a copy of the built-in ones."""

from __future__ import annotations

import hashlib
import importlib
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from converter.checkpoint.import_isolation import installed_code, user_code
from converter.checkpoint.user_source import attribute_errors, load_file, mapping_files, place_of_error
from converter.errors import ConversionError, Note, UsageError
from converter.ir.program import Program
from converter.plan.builder import PlanBuilder
from converter.plan.layout import NeedsMerge
from converter.plan.registry import Registry, filling
from converter.plan.steps import Constant, Unsupported, Value

ENTRY_POINTS = "pt_convert.mappings"  # the group of a package's entry point; its value is a module
_additions: dict[str, Registry] = {}  # by the file, or the package and its module
_executing = threading.RLock()


def load_mappings(files: str | Path | Sequence[str | Path] = ()) -> Registry:
    """Return what installed packages and Python files add to the built-in mappings.

    A file and a package's module run once in a process. A file may import modules beside it or in the current
    directory. `converter` and `mappings` always refer to this project there, whatever the user's folders contain.
    A package that fails is kept in `Registry.broken`, for models that may need it.

    Raises:
        UsageError: there is no such file, or it registers nothing.
        ConversionError: it raises, or maps an operator that has a mapping.
    """
    added = Registry()
    with installed_code():
        packages = sorted(entry_points(group=ENTRY_POINTS), key=lambda entry: (package_of(entry), entry.value))
    for entry in packages:
        owner = package_of(entry)
        try:
            _include(added, _execute(owner, f"{owner}: {entry.value}", partial(_import, entry)))
        except ConversionError as error:
            text = f"The mappings of {owner} are not used: {error.what}"
            fix = f"Update or uninstall {owner}."
            added.broken.append(ConversionError(text, code="PTC3008", where=error.where, fix=fix))
    for file in mapping_files(files):
        _include(added, _execute(str(file), str(file.resolve()), partial(_load, file)))
    return added


def with_built_in(added: Registry | None) -> Registry:
    """Return a copy of the built-in registry with what was added, or the built-in one itself.

    Raises:
        ConversionError: an operator has two mappings.
    """
    import mappings

    built_in = mappings.load()
    if added is None or not added.records:
        return built_in
    registry = built_in.copy()
    _include(registry, added)
    return registry


def _include(registry: Registry, added: Registry) -> None:
    try:
        registry.include(added)
    except ValueError as error:
        owners = {owner for record in added.records.values() for owner in record.owners.values()}
        text = f"The mappings of {', '.join(sorted(owners))} cannot be added: {error}"
        raise ConversionError(text, code="PTC3009", fix="Leave one of the two out.") from error


def package_of(entry: EntryPoint) -> str:
    return f"the package {entry.dist.name}" if entry.dist else "an unnamed package"


def _import(entry: EntryPoint) -> ModuleType:
    with installed_code(), attribute_errors(f"loading {entry.module}"):
        return importlib.import_module(entry.module)


def _load(file: Path) -> ModuleType:
    with user_code(Path.cwd(), files=[file.resolve()], ours=True):
        return load_file(file)


def _execute(owner: str, key: str, load: Callable[[], ModuleType]) -> Registry:
    """Return what a module registers while `load` runs it, now or earlier."""
    import mappings

    with _executing:
        if key in _additions:
            return _additions[key]
        built_in, modules = mappings.load(), set(sys.modules)
        filled = built_in.copy(owner)
        try:
            with filling(filled):
                module = load()
        except BaseException:  # what registered something must run again next time
            for function in filled.minus(built_in).functions():
                if (name := getattr(function, "__module__", "")) not in modules:
                    sys.modules.pop(name, None)
            raise
        added = filled.minus(built_in)
        if not added.records and not any(f.__module__ == module.__name__ for f in built_in.functions()):
            fix = "Decorate a function with `@converter.registry.maps(torch.ops.my_library.my_operator.default)`."
            raise UsageError(f"{owner} does not register a mapping.", code="PTC3004", where=key, fix=fix)
        added.digests = (hashlib.sha256(Path(str(module.__file__)).read_bytes()).hexdigest(),)
        _additions[key] = added
        return added


def call_lowering(plan: PlanBuilder, target: Any, args: Any, kwargs: Any) -> Any:
    """Call the lowering of an operator; if it is not a built-in one, its failure or a wrong result is its own.

    Raises:
        ConversionError: it names the file or the package.
    """
    record = plan.registry[target]
    function, owner = record.lowering, record.owners.get("lowering")
    if function is None:
        raise Unsupported
    if owner is None:
        return function(plan, *args, **kwargs)
    try:
        result = function(plan, *args, **kwargs)
    except (ConversionError, Unsupported, NeedsMerge):
        raise
    except Exception as error:
        raise blame(target, error, owner) from error
    results = result if isinstance(result, list | tuple) else [result]
    if not results or not all(isinstance(r, Value | Constant) for r in results):
        raise ConversionError(
            f"The mapping of {target} in {owner} returns {type(result).__name__}, not a Value.",
            code="PTC3005",
            where=function.__qualname__,
            fix="Return the result of `plan.elementwise`, `plan.call` or `plan.layer`.",
        )
    return result


def blame(target: Any, error: Exception, owner: str) -> ConversionError:
    return ConversionError(
        f"The mapping of {target} in {owner} failed: {type(error).__name__}: {error}",
        code="PTC3006",
        fix="Correct the mapping; -v shows where it failed.",
        where=place_of_error(error),
    )


def mapping_notes(registry: Registry, program: Program) -> list[Note]:
    """Return which operators of `program` have mappings of whom, and which packages' mappings are missing."""
    used: dict[str, dict[str, None]] = {}
    for node in program.graph.nodes:
        for owner in registry[node.target].owners.values():
            used.setdefault(owner, {})[str(node.target)] = None
    notes = [Note(f"{', '.join(operators)}: mapped by {owner}.", code="PTC3510") for owner, operators in used.items()]
    return notes + [
        Note(f"Mappings of an installed package are missing: {error.what}", code="PTC3511") for error in registry.broken
    ]
