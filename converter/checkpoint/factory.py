"""Build what the user's factory makes: the module that a state dict belongs to, or a Keras model."""

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeGuard

from torch import nn

from converter.checkpoint.hugging_face import HOME, build_from_config
from converter.checkpoint.import_isolation import UserCode
from converter.checkpoint.model_folder import has_config
from converter.checkpoint.user_source import (
    attribute_errors,
    close_names,
    how_to_supply,
    load_file,
    misfit,
    place_of_error,
    split_factory,
)
from converter.errors import ConversionError, UsageError

Factory = str | Callable[..., Any]


def named_code(factory: Factory | None) -> tuple[Sequence[str], Sequence[Path]]:
    """Return the user's module or Python file that a factory names."""
    if factory is not None and not isinstance(factory, str):
        return (), ()
    home = (factory or "").rpartition(":")[0]
    if home.endswith(".py"):
        return (), (Path(home),)
    return ((home,) if home and home not in (HOME, "timm", "torchvision") else ()), ()


@dataclass(frozen=True)
class Asked:
    """Where the user names a factory, and gives its arguments, on the command line."""

    option: str = "--model"
    arguments: str = "--model-args"


MODEL = Asked()


def name_of(factory: Factory) -> str:
    """Return how messages name a factory."""
    return factory if isinstance(factory, str) else getattr(factory, "__qualname__", type(factory).__name__)


def build(factory: Factory, arguments: Mapping[str, Any], code: UserCode) -> nn.Module:
    """Build the module that a factory names, or is.

    The forms of a name are `package.module:name`, `file.py:name`, `timm:NAME`, `torchvision:NAME`, and `hf:FOLDER` with
    a config.json. It names a class or function, called with the arguments, or a module. Nothing is downloaded.

    Raises:
        UsageError: the factory does not exist, or does not take the arguments.
        ConversionError: the factory raises, or does not return a module.
    """
    arguments = dict(arguments)
    if not isinstance(factory, str):
        with code:
            return _made(factory, arguments, name_of(factory))
    home, name = split_factory(factory)
    if home == HOME:
        return build_from_config(config_folder(factory, arguments))
    if home in ("timm", "torchvision"):
        make, arguments = _of_library(home, name, arguments, factory)
    else:
        make = find_definition(home, name, factory, code)
    with code:
        return _made(make, arguments, factory)


def find_definition(home: str, name: str, factory: str, code: UserCode, asked: Asked = MODEL) -> Any:
    """Return what a file or module of the user's defines under a name.

    Raises:
        UsageError: it defines no such name.
        ConversionError: it raises while it is loaded.
    """
    with code:
        module = load_file(Path(home)) if home.endswith(".py") else _imported(home, factory, asked)
        return _attribute(module, name, factory, asked)


def is_config(factory: Factory) -> TypeGuard[str]:
    """Return whether this is `hf:FOLDER`."""
    return isinstance(factory, str) and factory.rpartition(":")[0] == HOME


def config_folder(factory: str, arguments: dict[str, Any]) -> Path:
    """Return the folder of `hf:FOLDER`, whose config.json names the architecture.

    Raises:
        UsageError: it has none, or arguments are given too.
    """
    folder = Path(factory.rpartition(":")[2])
    if not has_config(folder):
        what = f"{folder}/config.json does not exist."
        raise UsageError(
            what,
            code="PTC1011",
            where=f"--model {factory}",
            fix="Give a folder that contains it; pt-convert does not download anything.",
        )
    if arguments:
        fix = "Leave out --model-args, or change config.json."
        raise UsageError(
            "The arguments of this architecture come from its config.json.",
            code="PTC1012",
            where="--model-args",
            fix=fix,
        )
    return folder


def _imported(module: str, factory: str, asked: Asked) -> ModuleType:
    try:
        with attribute_errors(f"importing {module}"):
            return importlib.import_module(module)
    except ConversionError as failure:
        error = failure.__cause__
        if not isinstance(error, ModuleNotFoundError):
            raise
        missing = error.name or module
        if module == missing or module.startswith(f"{missing}."):
            fix = "Run from the folder that contains it, put it beside the checkpoint, or install it."
            raise UsageError(
                f"The module {missing} was not found.", code="PTC1013", where=f"{asked.option} {factory}", fix=fix
            ) from error
        what = f"{module} imports {missing}, which is not installed."
        raise ConversionError(what, code="PTC1014", where=place_of_error(error), fix=how_to_supply(missing)) from error


def _attribute(home: ModuleType, name: str, factory: str, asked: Asked = MODEL) -> Any:
    found: Any = home
    for part in name.split("."):
        if not hasattr(found, part):
            usable = [known for known, value in vars(found).items() if callable(value) or isinstance(value, nn.Module)]
            what = f"{factory.rpartition(':')[0]} does not define `{name}`."
            raise UsageError(what, code="PTC1015", where=f"{asked.option} {factory}", fix=close_names(part, usable))
        found = getattr(found, part)
    return found


def _of_library(library: str, name: str, arguments: dict[str, Any], factory: str) -> tuple[Callable, dict[str, Any]]:
    try:
        models = importlib.import_module("torchvision.models" if library == "torchvision" else "timm")
    except (ImportError, RuntimeError) as error:
        what = f"{library} cannot be imported: {error}"
        missing = isinstance(error, ModuleNotFoundError) and error.name == library
        other = f"Install a build of {library} that matches this torch."
        fix = f"Run pip install {library}." if missing else misfit(error) or other
        raise UsageError(what, code="PTC1016", where=f"--model {factory}", fix=fix) from error
    known = models.list_models()
    if name.split(".")[0] not in known:
        raise UsageError(
            f"{library} does not have a model {name!r}.",
            code="PTC1017",
            where=f"--model {factory}",
            fix=close_names(name, known),
        )
    if library == "timm":
        return models.create_model, {"model_name": name, "pretrained": False, **arguments}
    make = models.get_model_builder(name)
    downloads = {option for option in ("weights", "weights_backbone") if option in inspect.signature(make).parameters}
    return make, {**dict.fromkeys(downloads), **arguments}


def _made(make: Any, arguments: dict[str, Any], factory: str) -> nn.Module:
    if isinstance(make, nn.Module):
        if arguments:
            raise UsageError(
                f"{factory} is a module, which does not take arguments.",
                code="PTC1018",
                fix="Leave out --model-args.",
                where="--model-args",
            )
        return make
    if not callable(make):
        what = f"{factory} is a {type(make).__name__}, not a class, function or module."
        raise UsageError(
            what,
            code="PTC1019",
            fix="Name the class, or a function that returns the model: --model file.py:build.",
            where=f"--model {factory}",
        )
    module = call_factory(make, arguments, factory)
    if not isinstance(module, nn.Module):
        what = f"The factory returned an object of type {type(module).__name__}, not a torch.nn.Module."
        raise ConversionError(
            what, code="PTC1020", where=f"--model {factory}", fix="Name a function that returns only the module."
        )
    return module


def call_factory(make: Callable[..., Any], arguments: dict[str, Any], factory: str, asked: Asked = MODEL) -> Any:
    """Call a factory of the user's.

    Raises:
        UsageError: it does not take the arguments.
        ConversionError: it raises.
    """
    _check_arguments(make, arguments, factory, asked)
    with attribute_errors("the factory"):
        return make(**arguments)


def _check_arguments(make: Callable, arguments: dict[str, Any], factory: str, asked: Asked) -> None:
    try:
        signature = inspect.signature(make)
    except (ValueError, TypeError):  # some callables have none; then the call itself fails
        return
    try:
        signature.bind(**arguments)
    except TypeError as error:
        fix = f"Give arguments that match {signature} as JSON with {asked.arguments}."
        if next(iter(signature.parameters), "") == "self":
            fix = "This is a method. Name a function that creates the object and returns the model."
        raise UsageError(
            f"{factory} does not accept these arguments: {error}.", code="PTC1021", where=asked.arguments, fix=fix
        ) from error
