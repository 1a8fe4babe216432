"""The user's Python files: loading one, and finding where in one an error came from."""

import importlib.util
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from converter.checkpoint.import_isolation import withheld
from converter.errors import ConversionError

_OUR_PACKAGE = Path(__file__).resolve().parents[1]


def load_file(path: Path) -> ModuleType:
    """Return the module of a Python file, loaded once, under the file's name without `.py`.

    Raises:
        ConversionError: the file itself raises while it is loaded; says what and where.
    """
    path = path.resolve()
    loaded = sys.modules.get(path.stem)
    if loaded is not None and _file_of(loaded) == path:
        return loaded
    name = path.stem if loaded is None else f"{path.stem} of {path.parent}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConversionError(
            f"{path} is not a Python file.",
            code="PTC1088",
            fix="Name a file that ends in .py, as in --model net.py:build.",
            where=str(path),
        )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with attribute_errors(f"loading {path.name}"):
            spec.loader.exec_module(module)
    except ConversionError:
        del sys.modules[name]
        raise
    return module


@contextmanager
def attribute_errors(action: str) -> Iterator[None]:
    """Turn errors of the user's code inside into a ConversionError that says so, and where they came from."""
    try:
        yield
    except ConversionError:
        raise
    except (Exception, SystemExit) as error:
        text = f"{action} failed: {type(error).__name__}: {error}"
        raise ConversionError(text, code="PTC1089", where=place_of_error(error), fix=_fix(error)) from error


def misfit(error: BaseException) -> str | None:
    """Return the fix for a torchvision that was built for another torch, if that is the cause of an error."""
    import torch

    if not re.search(r"torchvision::\w+ does not exist|torchvision.*(undefined symbol|cannot open shared)", str(error)):
        return None
    return (
        f"The installed torchvision was built for another torch than {torch.__version__}: install the one that fits it."
    )


def _fix(error: BaseException) -> str:
    if text := misfit(error):
        return text
    if isinstance(error, ModuleNotFoundError) and error.name:
        return how_to_supply(error.name)
    if isinstance(error, ImportError) and "relative import" in str(error):
        return "Run from the folder that holds the package, and name the module by it: --model package.module:name."
    if re.search(r"CUDA|NVIDIA|MPS|XPU", str(error)):
        return "Build the model on the CPU, without .cuda() and device=; a conversion does not need a GPU."
    return "Correct that code; -v shows where it failed."


def how_to_supply(module: str) -> str:
    """Return the fix for a module that was not found."""
    folder = withheld(module)
    if folder is None:
        return f"Install {module}, or run from the folder that holds it."
    name = module.partition(".")[0]
    return f"Add --trust {name} if the {name} in {folder} is yours; none of the code that you named imports it."


def _file_of(module: ModuleType) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(file).resolve() if file else None


def place_of_error(error: BaseException) -> str | None:
    """Return `file:line, in function` of the innermost frame in the user's code, or else of the innermost frame."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<") and not Path(frame.filename).is_relative_to(_OUR_PACKAGE)
    ]
    if not frames:
        return None
    installed = ("site-packages", "dist-packages", "importlib")
    own = [frame for frame in frames if not any(part in Path(frame.filename).parts for part in installed)]
    frame = (own or frames)[-1]
    return f"{frame.filename}:{frame.lineno}, in {frame.name}"
