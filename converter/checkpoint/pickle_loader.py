"""Read files of torch.save, without running any code that the user does not trust.

`torch.load` takes the archive apart; the unpickler inside is pt-convert's if there is more than tensors to read.
torch's own restricted one calls the constructors of the classes it is given, and cannot read modules from before 1.6.
"""

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import torch

from converter.checkpoint.file_format import Format, archive_names, file_format, torch_records
from converter.checkpoint.import_isolation import expect
from converter.checkpoint.pickle_allowlist import Refused, is_tensor_name
from converter.checkpoint.pickle_globals import Asked, names_asked_for, resolve
from converter.checkpoint.state_dict import QUANTIZED, check_expansion, quantized_error
from converter.checkpoint.trust import NotFoundError, Trust, is_part_of_python
from converter.checkpoint.unpickler import NameRefused, RestrictedUnpickler, TrustedCodeError
from converter.checkpoint.user_source import place_of_error
from converter.errors import CheckpointError, ConversionError

HOSTILE_FIX = "Do not trust this file: models do not need this. Ask its maker for a state dict or .safetensors."
GRAPH_MODULE_FIX = (
    "A traced torch.fx.GraphModule is Python source, which is never run. Give the original model, its "
    "state dict with --model, or torch.export.save of it."
)


def load_pickled(path: Path, file_format: Format, trust: Trust) -> tuple[Any, CheckpointError | None, list[str]]:
    """Return the object in a file of torch.save, with its tensors in main memory.

    If the file also names classes of other packages, for example for hyper-parameters, an `Opaque` replaces each of
    their objects. Then the second result is the refusal to raise unless the model is a plain state dict, which has none
    of them. The third lists the names of all classes whose objects an `Opaque` replaces.

    Raises:
        CheckpointError: the file is damaged, or uses code that is not trusted or cannot be found.
        ConversionError: trusted code raised while it was imported or run.
    """
    if file_format is Format.ZIP:
        torch_records(path, archive_names(path))
    asked = names_asked_for(path, file_format)
    expect(module for module, _ in asked.names if trust.covers(module))
    refused = check_names(path, asked, trust)
    left_aside: dict[str, None] = {}
    if refused is not None:
        pickle = _restricted_pickle(trust, path.stat().st_size, left_aside, opaque=True)
        try:
            return _load(path, weights_only=False, pickle_module=pickle), refused, list(left_aside)
        except CheckpointError:
            raise refused from None
    plain = file_format is Format.ZIP and not asked.collects and all(protocol <= 2 for protocol in asked.protocols)
    if plain and all(is_tensor_name(*name) for name in asked.names):
        content = _load(path, weights_only=True)
        _check_plain(path, content)
        return content, None, []
    pickle = _restricted_pickle(trust, path.stat().st_size, left_aside)
    return _load(path, weights_only=False, pickle_module=pickle), None, list(left_aside)


def refuse_more_than_tensors(path: Path) -> None:
    """Raise CheckpointError unless this is a file of torch.save that loads without anybody's code."""
    found = file_format(path)
    if found is not Format.ZIP:
        what = f"The weights are a file of {found}, not of torch.save."
        raise CheckpointError(what, code="PTC1096", where=str(path), fix="Do not trust this file, or convert again.")
    content, refused, _ = load_pickled(path, found, Trust.of(()))
    if refused is not None:
        raise refused
    check_expansion(content.values() if isinstance(content, dict) else (), path)


def _check_plain(path: Path, content: Any) -> None:
    """Refuse functions in the place of methods of dictionaries and tensors, and hooks of tensors.

    Raises:
        CheckpointError: there are any.
    """
    pending, seen = [content], set()
    while pending:
        one = pending.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        attributes = getattr(one, "__dict__", {}) if isinstance(one, dict | torch.Tensor) else {}
        for name, value in attributes.items():
            if callable(value):
                raise _misuse(path, Refused(f"a function in the place of {type(one).__name__}.{name}"))
        if isinstance(one, torch.Tensor) and one._backward_hooks:
            raise _misuse(path, Refused("hooks of a tensor"))
        pending += [*(dict.values(one) if isinstance(one, dict) else ()), *attributes.values()]
        pending += one if isinstance(one, list | tuple | set) else ()


def _restricted_pickle(trust: Trust, size: int, left_aside: dict[str, None], *, opaque: bool = False) -> ModuleType:
    """Return a replacement for the module `pickle`; torch derives a class of its own from `Unpickler`."""

    class Unpickler(RestrictedUnpickler):
        def __init__(self, file: IO[bytes], **options: Any):
            super().__init__(file, trust=trust, size=size, opaque=opaque, left_aside=left_aside, **options)

    module = ModuleType("restricted pickle")
    vars(module).update(Unpickler=Unpickler, load=lambda file, **options: Unpickler(file, **options).load())
    return module


def _load(path: Path, **options: Any) -> Any:
    try:
        return torch.load(path, map_location="cpu", **options)
    except ConversionError as error:
        error.where = error.where or str(path)
        raise
    except NameRefused as refused:
        raise _refusal(path, [str(refused)]) from refused
    except Refused as refused:
        raise _misuse(path, refused) from refused
    except TrustedCodeError as error:
        cause = error.__cause__
        what = f"The model's own code failed: {type(cause).__name__}: {cause}."
        raise ConversionError(
            what,
            code="PTC1047",
            fix="Correct that code, or install what it needs; -v shows where it failed.",
            where=place_of_error(error),
        ) from cause
    except NotFoundError as error:
        raise _not_found(path, [str(error)]) from error
    except Exception as error:  # a damaged or hostile pickle can raise anything
        what = f"The file is damaged: {type(error).__name__}: {_reason(error)}"
        raise CheckpointError(what, code="PTC1048", where=str(path), fix="Copy or download it again.") from error


def _reason(error: Exception) -> str:
    text = str(error)
    _, found, reason = text.partition("WeightsUnpickler error:")  # torch puts its advice before it
    return (reason if found else text).strip().splitlines()[0] if text.strip() else "without a message"


def check_names(path: Path, asked: Asked, trust: Trust) -> CheckpointError | None:
    """Return the error for all named classes of packages that are not trusted, or None.

    Raises:
        CheckpointError: the file uses names that no model needs, or trusted names that cannot be found.
    """
    refused: list[str] = []
    missing: dict[str, list[str]] = {}
    for module, name in asked.names:
        if module in ("torch", "torch.storage") and name.endswith("Storage"):
            continue
        if (module, name) == ("builtins", "getattr"):
            continue
        try:
            if resolve(module, name, trust) is None:
                refused.append(f"{module}.{name}")
        except NotFoundError as error:
            missing.setdefault(str(error), []).append(f"{module}.{name}")
        except CheckpointError as error:
            error.where = str(path)
            raise
    if refused and (_is_hostile(refused) or any(name.startswith("torch.fx.") for name in refused)):
        raise _refusal(path, refused)
    if missing:
        raise _not_found(path, [f"{what}, for {', '.join(names)}" for what, names in missing.items()])
    quantized = [name for name in map(".".join, asked.names) if name.startswith(QUANTIZED)]
    if refused and quantized:
        return quantized_error(f"{path}, {quantized[0]}")
    return _refusal(path, refused) if refused else None


def _refusal(path: Path, names: list[str]) -> CheckpointError:
    what = f"The checkpoint uses classes that are not trusted:{_listing(names)}"
    if any(name.startswith("torch.fx.") for name in names):
        return CheckpointError(what, code="PTC1049", where=str(path), fix=GRAPH_MODULE_FIX)
    if all(_is_new_in_torch(name) for name in names):
        fix = (
            f"Save its state dict as .safetensors with the PyTorch that wrote it; {torch.__version__} is "
            "installed here."
        )
        return CheckpointError(f"{what}\n  which this PyTorch does not have.", code="PTC1050", where=str(path), fix=fix)
    if _is_hostile(names):
        return CheckpointError(what, code="PTC1051", where=str(path), fix=HOSTILE_FIX)
    options = ["--trust SCRIPT.py (the script that defines them)"] if any(_in_script(name) for name in names) else []
    options += dict.fromkeys(f"--trust {_package(name)}" for name in names if not _in_script(name))
    fix = (
        f"If you trust its maker and that code, run again with {' '.join(options)}. The code is searched "
        "for in the current directory, beside the checkpoint and among installed packages. Or convert a "
        f"state dict with --model.{_how_to_supply(names)}"
    )
    return CheckpointError(what, code="PTC1052", where=str(path), fix=fix)


# Projects whose pickles name modules that are not installed as a package of that name.
KNOWN_CODE = {
    "models.yolo": "YOLOv5 (or v7): git clone https://github.com/ultralytics/yolov5 and run there, with --trust models "
    "--trust utils",
    "ultralytics": "Ultralytics: pip install ultralytics, and run with --trust ultralytics",
    "models.experimental": "YOLOv5: git clone https://github.com/ultralytics/yolov5 and run there",
    "detectron2": "detectron2: install it, and name what builds the model with --model",
}


def _how_to_supply(names: list[str]) -> str:
    text = " ".join(names)
    known = next(
        (how for package, how in KNOWN_CODE.items() if re.search(rf"(^|\s){re.escape(package)}\.", text)), None
    )
    return f" This is the code of {known}." if known else ""


def _is_hostile(names: list[str]) -> bool:
    """Return whether a function of Python or torch is among them, which no model needs."""
    return any(is_part_of_python(name) or _is_function_of_torch(name) for name in names)


def _misuse(path: Path, refused: Refused) -> CheckpointError:
    return CheckpointError(
        f"The file does something that models do not need: {refused}", code="PTC1053", where=str(path), fix=HOSTILE_FIX
    )


def _listing(names: list[str]) -> str:
    return "".join(f"\n    {name}" for name in dict.fromkeys(names))


def _is_function_of_torch(name: str) -> bool:
    """Return whether a name is a function of torch, without importing anything.

    The quantized modules are classes that are imported late.
    """
    if not name.startswith("torch.") or name.startswith("torch.ao."):
        return False
    module, _, attribute = name.rpartition(".")
    return not isinstance(getattr(sys.modules.get(module), attribute, None), type)


def _is_new_in_torch(name: str) -> bool:
    """Return whether a name is a part of tensors that the installed torch lacks, as in a newer torch's files."""
    module, _, attribute = name.rpartition(".")
    return module in ("torch._utils", "torch._tensor", "torch.serialization") and not hasattr(
        sys.modules[module], attribute
    )


def _in_script(name: str) -> bool:
    return name.startswith("__main__.")


def _package(name: str) -> str:
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] in ("torch", "torchvision", "timm") and len(parts) > 2 else parts[0]


def _not_found(path: Path, missing: list[str]) -> CheckpointError:
    fix = f"Run from the folder that contains the model's code, or install what is missing.{_how_to_supply(missing)}"
    return CheckpointError(
        f"The model's code is incomplete; missing:{_listing(missing)}", code="PTC1054", where=str(path), fix=fix
    )
