"""The code that a checkpoint may use: what the user named with `--trust`."""

import importlib
import sys
import types
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.checkpoint.user_source import attribute_errors, load_file
from converter.errors import CheckpointError, ConversionError, UsageError

EVERYTHING = "all"  # --trust-all
ARTIFACT = "artifact"
RESERVED = {"pt2", "torchscript", "hf", ARTIFACT, EVERYTHING}  # not packages: they lift a guard


def is_guard_lifted(guard: str, trust: Sequence[str]) -> bool:
    """Return whether the user lifted a guard, by its name or with all others."""
    return guard in trust or EVERYTHING in trust


class NotFoundError(Exception):
    """A trusted package lacks a name that the file uses."""


@dataclass(frozen=True)
class Trust:
    """The packages, modules and Python files whose classes and functions may be unpickled.

    Attributes:
        packages: dotted names; each allows itself and everything below it.
        scripts: Python files; they also stand for `__main__`, under which a script's own classes are pickled.
        everything: no code is refused.
        ran: packages that are single files here, so `python train.py` may have saved the file's classes as `__main__`.
    """

    packages: tuple[str, ...]
    scripts: tuple[Path, ...]
    everything: bool = False
    ran: tuple[str, ...] = ()

    @classmethod
    def of(cls, names: Sequence[str]) -> "Trust":
        """Read the values of `--trust`.

        Raises:
            UsageError: a value is not a package name, or names a part of Python itself.
        """
        packages, scripts = [], []
        for name in names:
            if name.endswith(".py"):
                if not Path(name).is_file():
                    raise UsageError(
                        f"The file {name} does not exist.",
                        code="PTC1083",
                        fix="Give the path of the Python file that defines the model's classes.",
                        where=f"--trust {name}",
                    )
                scripts.append(Path(name))
            elif not all(part.isidentifier() for part in name.split(".")) or name == "__main__":
                fix = "Name the package that contains the model's classes, or the Python file that defines them."
                raise UsageError(
                    f"{name!r} is not a valid package name.", code="PTC1084", where=f"--trust {name}", fix=fix
                )
            elif is_part_of_python(name):
                fix = "Trust only the package that defines the model."
                what = f"{name!r} is part of Python; trusting it would let the file do anything."
                raise UsageError(what, code="PTC1085", where=f"--trust {name}", fix=fix)
            elif name == "torch":
                fix = "Name the part that defines the class, such as torch.ao."
                what = "torch contains functions that run any code."
                raise UsageError(what, code="PTC1086", where="--trust torch", fix=fix)
            elif name not in RESERVED:
                packages.append(name)
        ran = tuple(name for name in packages if Path(f"{name}.py").is_file())
        return cls(tuple(packages), tuple(scripts), EVERYTHING in names, ran)

    def __bool__(self) -> bool:
        return bool(self.packages or self.scripts or self.everything)

    def covers(self, module: str) -> bool:
        """Return whether code of this module is trusted."""
        if self.everything:
            return True
        if any(module == package or module.startswith(f"{package}.") for package in self.packages):
            return True
        if module == "__main__":
            return bool(self.scripts or self.ran)
        return module in {script.stem for script in self.scripts}

    def find(self, module: str, name: str) -> Any:
        """Return the class or function `name` of a trusted module, which is imported.

        Raises:
            NotFoundError: the module cannot be imported or has no such name; the text says which.
            CheckpointError: the name leads out of the trusted modules.
        """
        found: Any = None
        for home in self._homes(module):
            found = home
            for part in name.split("."):
                found = getattr(found, part, None)
            if found is not None:
                break
        if found is None:
            raise NotFoundError(f"{module} has no `{name}`")
        if not self.owns(found):
            owner = getattr(found, "__module__", type(found).__name__)
            fix = (
                "Do not trust this file."
                if is_part_of_python(str(owner))
                else (f"Add --trust {str(owner).split('.')[0]}.")
            )
            raise CheckpointError(
                f"The file asks for {module}.{name}, which belongs to {owner}.", code="PTC1087", fix=fix
            )
        return found

    def owns(self, found: object) -> bool:
        """Return whether this is a class or function that is defined in a trusted module."""
        if self.everything:
            return callable(found)
        return isinstance(found, type | types.FunctionType) and self.covers(found.__module__)

    def _homes(self, module: str) -> list[types.ModuleType]:
        if self.scripts and module in {"__main__", *(script.stem for script in self.scripts)}:
            return [load_file(script) for script in self.scripts if module in ("__main__", script.stem)]
        try:
            with attribute_errors(f"importing {module}"):
                homes = self.ran if module == "__main__" and self.ran else (module,)
                return [importlib.import_module(home) for home in homes]
        except ConversionError as failure:
            if isinstance(failure.__cause__, ModuleNotFoundError):
                raise NotFoundError(_missing(module, failure.__cause__)) from failure
            raise


def _missing(module: str, error: ModuleNotFoundError) -> str:
    name = error.name or ""
    if module == name or module.startswith(f"{name}."):
        return f"the module {name} (not in the current directory, beside the checkpoint or installed)"
    return f"the module {name}, which {module} imports"


def is_part_of_python(module: str) -> bool:
    """Return whether a module belongs to Python's standard library."""
    return module.split(".")[0] in sys.stdlib_module_names
