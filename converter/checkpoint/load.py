"""Load a module or an exported program from a file, without running anything that the user does not trust."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn
from torch.export import ExportedProgram

from converter.checkpoint.exported_program import TRUST_KEYWORD, load_exported
from converter.checkpoint.factory import Factory, build, config_folder, is_config, name_of, named_code
from converter.checkpoint.file_format import Format, file_format, refuse_unreachable
from converter.checkpoint.hugging_face import TRUST_KEYWORD as HUGGING_FACE_TRUST
from converter.checkpoint.hugging_face import load_folder, load_into_folder
from converter.checkpoint.import_isolation import UserCode
from converter.checkpoint.model_folder import files_of, has_config, is_index, weights_in
from converter.checkpoint.pickle_loader import load_pickled
from converter.checkpoint.shards import load_shards, refuse_links
from converter.checkpoint.state_dict import (
    SHOWN,
    KeyFilter,
    as_float32,
    changed_to_float32,
    check_expansion,
    check_parts,
    choose_state,
    extract_model,
    load_into,
    refuse_quantized,
    unwrap,
)
from converter.checkpoint.torchscript import load_torchscript
from converter.checkpoint.torchscript.archive import TRUST_KEYWORD as TORCHSCRIPT_TRUST
from converter.checkpoint.trust import Trust, is_guard_lifted
from converter.errors import CheckpointError, Note, UsageError
from converter.ir.module_tensors import named_tensors


@dataclass(frozen=True)
class Checkpoint:
    """A model as read from a file.

    Attributes:
        path: of the file.
        sha256: of its content.
        kind: "module", "state dict" or "exported program".
        module: in eval mode on the CPU, floating point weights in float32; None for an exported program.
        program: of a `.pt2`; None otherwise.
        notes: what was taken, dropped or changed.
        code: context in which the module may run.
    """

    path: Path
    sha256: str
    kind: str
    module: nn.Module | None
    program: ExportedProgram | None
    notes: tuple[Note, ...]
    code: UserCode


def load(
    path: Path | str,
    *,
    factory: Factory | None = None,
    factory_args: Mapping[str, Any] | None = None,
    drop_keys: Sequence[str] = (),
    state: str | None = None,
    trust: Sequence[str] = (),
) -> Checkpoint:
    """Read a checkpoint of any format; the content decides which, never the name.

    Args:
        path: a file of torch.save (module, state dict or training checkpoint), torch.jit.save, .safetensors, or .pt2; a
            Hugging Face folder with config.json and weights; the index of a sharded state dict.
        factory: the architecture of a state dict: package.module:name, file.py:name, timm:NAME, torchvision:NAME,
            hf:FOLDER.
        factory_args: keyword arguments of the factory.
        drop_keys: glob patterns of the state dict's keys to leave out.
        state: the part of a file that holds several models, or several sets of weights.
        trust: packages, modules and Python files whose classes and functions the file may use; "pt2", "torchscript" and
            "hf" lift the guards of these, "all" lifts all. They, and the modules that their source files import, may
            come from the current directory and the checkpoint's folder.

    Raises:
        CheckpointError: the file is missing, damaged, not a checkpoint, uses code that is not trusted, or its weights
            do not fit the factory's module.
        UsageError: `factory`, `factory_args` or `trust` name something that does not exist.
        ConversionError: the user's own code raised.
    """
    path = Path(path)
    refuse_unreachable(path)
    trusted = Trust.of(trust)
    code = _code_of(path, trusted, factory)
    drop = KeyFilter(drop_keys)
    model, notes = _read(path, trusted, trust, code, drop, state, built_elsewhere=factory is not None)
    if trusted.everything:
        notes = [*notes, Note("The file was allowed to run any code (--trust-all).", code="PTC1513")]
    digest = sha256_of(path)
    if isinstance(model, ExportedProgram):
        unneeded = _unneeded(factory, drop_keys)
        return Checkpoint(path, digest, "exported program", None, model, (*notes, *unneeded), code)
    if isinstance(model, nn.Module):
        with code:
            module, changes = as_float32(model)
        unneeded = _unneeded(factory, drop_keys)
        return Checkpoint(path, digest, "module", module, None, (*notes, *changes, *unneeded), code)
    if factory is None:
        raise _needs_factory(path, model)
    given = {value.dtype for value in model.values() if isinstance(value, torch.Tensor) and value.is_floating_point()}
    fitted = _into_folder(model, path, factory, dict(factory_args or {}), drop)
    if fitted is None:
        module, told = unwrap(build(factory, factory_args or {}, code))
        with code:
            told += load_into(module, model, path, name_of(factory), drop)
    else:
        module, told = fitted
    with code:
        module, changes = as_float32(module)
    notes += [*told, *drop.notes()]
    notes += [changed_to_float32(dtype) for dtype in sorted(given - {torch.float32}, key=str)]
    return Checkpoint(path, digest, "state dict", module, None, tuple(dict.fromkeys([*notes, *changes])), code)


def load_object(
    model: Mapping[str, Any] | Callable[..., nn.Module],
    code: UserCode,
    *,
    factory: Factory | None = None,
    factory_args: Mapping[str, Any] | None = None,
    drop_keys: Sequence[str] = (),
    state: str | None = None,
    trust: Sequence[str] = (),
) -> Checkpoint | nn.Module:
    """Take a state dict or training checkpoint that Python holds, or call what builds the model.

    Returns:
        What was made of a state dict, or a module of the user's, which must be copied before it is changed.

    Raises:
        CheckpointError: there are no weights, or they do not fit the factory's module.
        UsageError: it is not a model, or needs a factory.
        ConversionError: the user's own code raised.
    """
    if callable(model):
        return build(model, factory_args or {}, code)
    if not isinstance(model, Mapping):
        raise UsageError(
            f"An object of type {type(model).__name__} is not a model.",
            code="PTC1123",
            fix="Give a module, a class or function that builds it, a path, or a state dict with model=.",
        )
    drop, path = KeyFilter(drop_keys), Path("state dict")
    content, notes = (dict(model), []) if state is None else choose_state(dict(model), state, path)
    held, told = extract_model(content, path)
    if isinstance(held, nn.Module):
        return held
    if factory is None:
        raise _needs_factory(path, held)
    module, unwrapped = unwrap(build(factory, factory_args or {}, code))
    with code:
        told += load_into(module, held, path, name_of(factory), drop)
        module, changes = as_float32(module)
    notes = [*notes, *unwrapped, *told, *drop.notes(), *changes]
    return Checkpoint(path, "", "state dict", module, None, tuple(dict.fromkeys(notes)), code)


def load_state_dict(
    path: Path | str, *, trust: Sequence[str] = (), drop_keys: Sequence[str] = (), state: str | None = None
) -> tuple[dict[str, torch.Tensor], nn.Module | None]:
    """Return a checkpoint's tensors by name, half precision raised to float32, and its module if it holds one.

    A state dict needs no architecture for that. Raises as `load` does.
    """
    path = Path(path)
    refuse_unreachable(path)
    trusted = Trust.of(trust)
    drop = KeyFilter(drop_keys)
    model, _ = _read(path, trusted, trust, _code_of(path, trusted), drop, state, built_elsewhere=True)
    if isinstance(model, ExportedProgram):
        named: Mapping[str, Any] = {**model.state_dict, **model.constants}
    elif isinstance(model, nn.Module):
        named = named_tensors(model)
    else:
        named = drop.kept(model)
    tensors = {name: value.detach() for name, value in named.items() if isinstance(value, torch.Tensor)}
    raised = {name: value.float() if _is_half(value) else value for name, value in tensors.items()}
    return raised, model if isinstance(model, nn.Module) else None


def _read(
    path: Path,
    trusted: Trust,
    trust: Sequence[str],
    code: UserCode,
    drop: KeyFilter,
    part: str | None = None,
    *,
    built_elsewhere: bool,
) -> tuple[nn.Module | ExportedProgram | Mapping[str, Any], list[Note]]:
    """Return the content of the file or folder, and notes on what was taken.

    Args:
        part: `--state`.
        built_elsewhere: from a folder with weights and an architecture, read only the weights.
    """
    if path.is_dir() and (weights := weights_in(path)) is not None and (built_elsewhere or has_config(path)):
        if not (open_folder := is_guard_lifted(HUGGING_FACE_TRUST, trust)):
            refuse_links(weights)
        state, notes = _state_dict(weights, trusted, code, part)
        if built_elsewhere:
            return state, notes
        size = sum(file.stat().st_size for file in files_of(path))
        module, told = load_folder(path, drop.kept(state), size, trusted=open_folder)
        return module, [*notes, *told, *drop.notes()]
    if is_index(path):
        return _state_dict(path, trusted, code, part)
    content_format = file_format(path)
    if content_format is Format.EXPORTED:
        program, told = load_exported(path, trusted=is_guard_lifted(TRUST_KEYWORD, trust))
        return program, list(told)
    if content_format is Format.TORCHSCRIPT:
        return load_torchscript(path, trusted=is_guard_lifted(TORCHSCRIPT_TRUST, trust))
    with code:
        refused: CheckpointError | None = None
        left_aside: list[str] = []
        if content_format is Format.SAFETENSORS:
            content: Any = _safetensors(path)
        else:
            content, refused, left_aside = load_pickled(path, content_format, trusted)
        model, notes = _select_model(content, path, refused, left_aside, part)
    return model, notes


def _into_folder(
    state: Mapping[str, Any], path: Path, factory: Factory, arguments: dict[str, Any], drop: KeyFilter
) -> tuple[nn.Module, list[Note]] | None:
    """Return the module of `hf:FOLDER` with these weights; None for other factories, or if the weights do not fit."""
    if not is_config(factory):
        return None
    size = sum(file.stat().st_size for file in files_of(path))
    return load_into_folder(config_folder(factory, arguments), drop.kept(state), size)


def _select_model(
    content: Any, path: Path, refused: CheckpointError | None, left_aside: Sequence[str], part: str | None
) -> tuple[nn.Module | Mapping[str, Any], list[Note]]:
    """Return the model in the content that was read.

    Args:
        refused: the error to raise unless it is a plain state dict.
        left_aside: names of classes whose objects were not made.
        part: `--state`.

    Raises:
        CheckpointError: there is none, it is larger than its file can hold, or it is not a whole module.
    """
    try:
        content, chosen = (content, []) if part is None else choose_state(content, part, path)
        model, notes = extract_model(content, path)
        notes = [*chosen, *notes]
        if isinstance(model, nn.Module):
            tensors = (*model.parameters(), *model.buffers())
            if not all(isinstance(tensor, torch.Tensor) for tensor in tensors):
                raise TypeError("parameters or buffers that are not tensors")
            check_parts(model)
            refuse_quantized(model, path)
            check_expansion(tensors, path)
        else:
            check_expansion(model.values(), path)
    except CheckpointError as error:
        raise refused or error from None
    except Exception as error:  # a module whose state is any object, or that contains itself
        if refused is not None:
            raise refused from None
        what = f"The model in the file is damaged: {type(error).__name__}: {str(error)[:200]}"
        raise CheckpointError(what, code="PTC1041", where=str(path), fix="Copy or download it again.") from error
    if refused is not None and isinstance(model, nn.Module):
        raise refused
    if left_aside:
        shown = ", ".join(f"`{name}`" for name in left_aside[:SHOWN])
        more = f" and {len(left_aside) - SHOWN} more" if len(left_aside) > SHOWN else ""
        notes.append(Note(f"Ignored objects of unknown classes: {shown}{more}.", code="PTC1514"))
    return model, notes


def _state_dict(path: Path, trusted: Trust, code: UserCode, part: str | None) -> tuple[Mapping[str, Any], list[Note]]:
    """Return the weights in a file, or in the files that an index names."""
    notes: list[Note] = []

    def read(file: Path) -> Mapping[str, Any]:
        if is_index(file):
            fix = "Copy or download the folder again."
            raise CheckpointError(
                f"The index names another index: {file.name}.", code="PTC1042", where=str(path), fix=fix
            )
        model, told = _read(
            file, trusted, (), code, KeyFilter(()), None if is_index(path) else part, built_elsewhere=True
        )
        if not isinstance(model, Mapping):
            what = f"{file.name} contains a whole model, not weights."
            raise CheckpointError(what, code="PTC1043", where=str(file), fix="Give this file itself.")
        notes.extend(told)
        return model

    if not is_index(path):
        return read(path), notes
    whole = load_shards(path, read)
    return (whole, notes) if part is None else choose_state(whole, part, path)


def _code_of(path: Path, trusted: Trust, factory: Factory | None = None) -> UserCode:
    """Return the user's code that may run: only what the user named."""
    names, files = named_code(factory)
    return UserCode(
        (Path.cwd(), path.resolve().parent),
        (*trusted.packages, *names),
        (*files, *trusted.scripts),
        everything=trusted.everything,
    )


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a checkpoint: of its file, or of those of its parts."""
    digests = []
    for part in files_of(path):
        with part.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()


def _safetensors(path: Path) -> dict[str, Any]:
    try:
        return safetensors.torch.load_file(path, device="cpu")
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        what = f"The file is damaged: {error}"
        raise CheckpointError(what, code="PTC1044", where=str(path), fix="Copy or download it again.") from error


def _is_half(value: Any) -> bool:
    return getattr(value, "is_floating_point", bool)() and value.dtype.itemsize < 4


def _unneeded(factory: Factory | None, drop_keys: Sequence[str]) -> Iterator[Note]:
    if factory is not None:
        yield Note(f"--model {name_of(factory)} is not needed: the file contains the model itself.", code="PTC1515")
    if drop_keys:
        yield Note("--drop-keys is not needed: the file contains the model itself.", code="PTC1516")


def _needs_factory(path: Path, state: Any) -> CheckpointError:
    keys = ", ".join(list(state)[:5])
    what = f"The file is a state dict, weights without their model ({len(state)} keys: {keys}, ...)."
    how = "--model package.module:factory (or file.py:factory; in Python model=Net)"
    fix = f"Name the class or function that builds the model: {how}."
    return CheckpointError(what, code="PTC1045", where=str(path), fix=fix)
