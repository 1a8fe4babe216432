"""The user's Python files: finding and loading one, and finding where in one an error came from."""

import ast
import difflib
import importlib.util
import re
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from converter.checkpoint.import_isolation import withheld
from converter.errors import ConversionError, UsageError

_OUR_PACKAGE = Path(__file__).resolve().parents[1]
SHOWN = 5  # definitions of a file to name
FORMS = "package.module:name, file.py:name, timm:NAME, torchvision:NAME or hf:FOLDER"
BUILDER, APPLICATIONS = "BUILDER", "keras_app"  # the argument of `into`, and how it names keras.applications


def split_factory(factory: str, option: str = "--model", forms: str = FORMS) -> tuple[str, str]:
    """Split the value of `option` into the module, file or library, and the name in it.

    Raises:
        UsageError: it has another form, names only a file, or a file that does not exist.
    """
    home, separator, name = factory.rpartition(":")
    if (factory.endswith(".py") and Path(factory).is_file()) or (home.endswith(".py") and not name):
        file = Path(home if separator and not name else factory)
        raise UsageError(
            f"{file} is a file, which does not name a class or function in it.",
            code="PTC1095",
            where=f"{option} {factory}",
            fix=" or ".join(f"{option} {file}:{defined}" for defined in _definitions(file)) or f"Write {forms}.",
        )
    if not home or not name:
        raise UsageError(
            f"{factory!r} does not name a factory.", code="PTC1009", where=f"{option} {factory}", fix=f"Write {forms}."
        )
    if home.endswith(".py") and not Path(home).is_file():
        raise UsageError(
            f"The file {home} does not exist.",
            code="PTC1010",
            where=f"{option} {factory}",
            fix=close_names(home, sorted(str(other) for other in Path(home).parent.glob("*.py"))),
        )
    return home, name


def split_builder(builder: str) -> tuple[str, str]:
    """Split what names the function that builds a Keras model, as `split_factory` does."""
    return split_factory(builder, BUILDER, f"file.py:name, package.module:name or {APPLICATIONS}:NAME")


def _definitions(file: Path) -> list[str]:
    """Return the classes and functions that a file defines, classes first, without running it."""
    try:
        body = ast.parse(file.read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return []
    classes = [node.name for node in body if isinstance(node, ast.ClassDef)]
    functions = [node.name for node in body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    return [*classes, *functions][:SHOWN]


def close_names(name: str, names: Iterable[str]) -> str | None:
    """Return a fix that names what is close to `name`, or else the first of what there is."""
    names = [known for known in names if not known.startswith("_")]
    near = difflib.get_close_matches(name, names, n=5, cutoff=0.5)
    if near:
        return f"Did you mean {' or '.join(near)}?"
    return f"Choose from {', '.join(names[:10])}." if names else None


def mapping_files(files: str | Path | Iterable[str | Path]) -> list[Path]:
    """Return the files of --mappings. Raises UsageError if one does not exist."""
    paths = [Path(file) for file in ([files] if isinstance(files, str | Path) else files)]
    for file in paths:
        if not file.is_file():
            raise UsageError(
                f"The file {file} does not exist.",
                code="PTC3003",
                fix="Give the path of the Python file that registers your mappings.",
                where="--mappings",
            )
    return paths


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
