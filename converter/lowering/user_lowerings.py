"""The user's own mappings (`--mappings my_ops.py`): active for one conversion, and named in the errors they raise."""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch._ops import OpOverload

from converter.checkpoint.import_isolation import user_code
from converter.checkpoint.user_source import load_file, place_of_error
from converter.errors import ConversionError, UnsupportedOperatorsError, UsageError
from converter.ir.program import Program, module_path, source_line
from converter.plan.layout import NeedsMerge
from converter.plan.registry import TABLES, TRANSLATIONS, restore, snapshot
from converter.plan.steps import Constant, Unsupported, Value

# Namespaces for which PyTorch's exporter, or this project, has translations.
TRANSLATED = ("aten", "prims", "converter", "torchvision")


@dataclass(frozen=True)
class Registered:
    """The registrations of a file, by table: additions to those of `registry.TABLES`."""

    tables: tuple[Any, ...]

    def enter(self) -> None:
        for table, added in zip(TABLES, self.tables, strict=True):
            table.update(added)

    def leave(self) -> None:
        for table, added in zip(TABLES, self.tables, strict=True):
            for target in added:
                if isinstance(table, dict):
                    table.pop(target, None)
                else:
                    table.discard(target)


_registered: dict[Path, Registered] = {}


@contextmanager
def user_mappings(files: str | Path | Sequence[str | Path]) -> Iterator[tuple[str, ...]]:
    """Activate the mappings of Python files. Yields the SHA-256 of each file.

    A file runs once. It may import modules beside it or in the current directory. `converter` and `mappings` always
    refer to this project there, whatever the user's folders contain.

    Raises:
        UsageError: there is no such file, or it registers nothing.
        ConversionError: it raises, or maps an operator that has a mapping.
    """
    paths = [Path(file) for file in ([files] if isinstance(files, str | Path) else files)]
    in_force: list[Registered] = []
    try:
        for path in paths:
            registered = _load(path)
            registered.enter()
            in_force.append(registered)
        yield tuple(hashlib.sha256(path.read_bytes()).hexdigest() for path in paths)
    finally:
        for registered in reversed(in_force):
            registered.leave()


def _load(file: Path) -> Registered:
    if not file.is_file():
        raise UsageError(
            f"there is no file {file}",
            code="PTC3003",
            fix="Give the path of the Python file that registers your mappings.",
            where="--mappings",
        )
    place = file.resolve()
    if place in _registered:
        return _registered[place]

    import mappings

    mappings.load()  # built-in mappings are registered before the user's
    before, modules = snapshot(), set(sys.modules)
    try:
        with user_code(Path.cwd(), files=[place], ours=True):
            load_file(place)
        added = tuple(map(_additions, TABLES, before))
    except BaseException:
        _forget(map(_additions, TABLES, before), modules)
        raise
    finally:
        restore(before)
    mapped, _, _, _, written_out, translated, owners, absent = added
    if not mapped and not translated and not written_out and not absent:
        fix = "decorate a function with `@converter.registry.maps(torch.ops.my_library.my_operator.default)`"
        raise UsageError(f"{file} registers no mapping", code="PTC3004", where="--mappings", fix=fix)
    for target in mapped:
        mapped[target] = blamed_mapping(mapped[target], target, file)
        owners[target] = str(file)
    _registered[place] = Registered(added)
    return _registered[place]


def _additions(table: Any, before: Any) -> Any:
    if isinstance(table, dict):
        return {target: value for target, value in table.items() if target not in before}
    return table - before


def _forget(added: Iterable[Any], modules: Set[str]) -> None:
    """Forget the modules that registered `added`, except modules loaded before: they must run again next time."""
    for table in added:
        for function in table.values() if isinstance(table, dict) else ():
            name = getattr(function, "__module__", None)
            if name is not None and name not in modules:
                sys.modules.pop(name, None)


def blamed_mapping(function: Callable, target: OpOverload, file: Path) -> Callable:
    """Wrap `function` so that its failure, or a wrong type of result, is reported as its own."""

    @functools.wraps(function)
    def mapping(plan: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            result = function(plan, *args, **kwargs)
        except (ConversionError, Unsupported, NeedsMerge):
            raise
        except Exception as error:
            raise blame(target, error, str(file)) from error
        results = result if isinstance(result, list | tuple) else [result]
        if not results or not all(isinstance(r, Value | Constant) for r in results):
            raise ConversionError(
                f"the mapping of {target} in {file} returns {type(result).__name__}, not a Value",
                code="PTC3005",
                where=function.__qualname__,
                fix="return what `plan.elementwise`, `plan.call` or `plan.layer` gives",
            )
        return result

    return mapping


def blame(target: Any, error: Exception, file: str) -> ConversionError:
    return ConversionError(
        f"the mapping of {target} in {file} failed: {type(error).__name__}: {error}",
        code="PTC3006",
        fix="Correct your mapping; -v shows where it failed.",
        where=place_of_error(error),
    )


def refuse_untranslated(program: Program) -> None:
    """Reject, before the export to ONNX, operators of the user that have no translation.

    Raises:
        UnsupportedOperatorsError: there are any; it lists all of them.
    """
    found: dict[OpOverload, list] = {}
    for node in program.graph.nodes:
        target = node.target
        if isinstance(target, OpOverload) and target.namespace not in TRANSLATED and target not in TRANSLATIONS:
            found.setdefault(target, []).append(node)
    if not found:
        return
    rows = [
        (
            str(t),
            len(nodes),
            ", ".join(dict.fromkeys(module_path(n) or "(model)" for n in nodes)),
            source_line(nodes[0]),
        )
        for t, nodes in found.items()
    ]
    listed = "\n".join(f"    {target} x{count} in {paths}  {line}" for target, count, paths, line in rows)
    raise UnsupportedOperatorsError(
        f"{len(rows)} operator{'s' * (len(rows) > 1)} without a translation to ONNX:\n{listed}",
        rows,
        code="PTC3007",
        fix="give one, a function of onnxscript under `@converter.registry.translates`, in the file of --mappings; or "
        "leave --to onnx away",
    )
