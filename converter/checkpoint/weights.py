"""Finds the model in what a checkpoint holds, and puts a state dict into a module."""

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from converter.checkpoint.source import blamed
from converter.errors import CheckpointError

# Averaged weights first: they are what the training was for.
ENTRIES = (
    *("ema", "model_ema", "state_dict_ema", "ema_state_dict", "params_ema"),
    *("model", "state_dict", "model_state_dict", "model_state", "net", "network", "module", "weights", "params"),
)
SHOWN = 10
MOST_PATHS = 1_000_000  # from a module to its parts
LARGEST_EXPANSION = 1000  # elements to a byte of the file

StateDict = Mapping[str, torch.Tensor]


def find_model(content: Any, path: Path) -> tuple[nn.Module | StateDict, list[str]]:
    """The module or the state dict in what was unpickled, and notes on what was taken.

    Raises:
        CheckpointError: there is none, or several and none by a usual name.
    """
    if isinstance(content, nn.Module):
        return _unwrapped(content)
    if _is_state_dict(content):
        return content, []
    if not isinstance(content, Mapping):
        what = f"the checkpoint holds a {type(content).__name__}, not a model"
        raise CheckpointError(what, where=str(path), cure="save the model or its state dict with torch.save")
    return _entry(content, path)


def _entry(content: Mapping, path: Path) -> tuple[nn.Module | StateDict, list[str]]:
    found = {name: value for name, value in content.items() if isinstance(value, nn.Module) or _is_state_dict(value)}
    nested = {name: value for name, value in content.items() if isinstance(value, Mapping) and name in ENTRIES}
    if not found and len(nested) == 1:
        ((name, inner),) = nested.items()
        model, notes = _entry(inner, path)
        return model, [f"took `{name}` of the training checkpoint", *notes]
    usual = [name for name in ENTRIES if name in found]
    if not usual and len(found) != 1:
        held = ", ".join(f"`{name}`" for name in list(found or content)[:SHOWN])
        what = f"the checkpoint holds {'several models' if found else 'no model'}: {held}"
        raise CheckpointError(
            what, where=str(path), cure="save the one to convert in a file of its own with torch.save"
        )
    chosen = usual[0] if usual else next(iter(found))
    note = f"took `{chosen}` of the training checkpoint"
    others = [f"`{name}`" for name in found if name != chosen]
    if others:
        note += f"; {', '.join(others)} left aside"
    value = found[chosen]
    if not isinstance(value, nn.Module):
        return value, [note]
    module, notes = _unwrapped(value)
    return module, [note, *notes]


def _is_state_dict(value: Any) -> bool:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        return False
    tensors = [isinstance(entry, torch.Tensor) for entry in value.values()]
    return any(tensors) and all(
        is_tensor or name.endswith("_extra_state") for name, is_tensor in zip(value, tensors, strict=True)
    )


def _unwrapped(module: nn.Module) -> tuple[nn.Module, list[str]]:
    if isinstance(module, nn.DataParallel):
        if not isinstance(module.module, nn.Module):
            raise TypeError("a DataParallel of no module")
        return module.module, ["took the module out of its DataParallel"]
    return module, []


def check_measure(tensors: Iterable[torch.Tensor], path: Path) -> None:
    """Refuses weights that would take far more room than their file, as views of one number can.

    Raises:
        CheckpointError: more than a thousand elements for each byte of the file.
    """
    elements = sum(tensor.numel() for tensor in tensors if isinstance(tensor, torch.Tensor) and not is_lazy(tensor))
    if elements > LARGEST_EXPANSION * path.stat().st_size:
        what = f"the weights have {elements} elements in a file of {path.stat().st_size} bytes"
        raise CheckpointError(what, where=str(path), cure="do not trust this file, or save the weights contiguously")


def check_parts(module: nn.Module) -> None:
    """Refuses a module whose parts would be gone through without end: `eval()` visits a part once for each path to it.

    Raises:
        ValueError: a module is a part of itself, or there are more than a million paths.
    """
    paths: dict[int, int] = {}
    pending: list[tuple[nn.Module, bool]] = [(module, False)]
    begun: set[int] = set()
    while pending:
        one, parts_done = pending.pop()
        if id(one) in paths:
            continue
        parts = [part for part in one._modules.values() if part is not None]
        if parts_done:
            paths[id(one)] = 1 + sum(paths[id(part)] for part in parts)
            continue
        if id(one) in begun:
            raise ValueError("a module that is a part of itself")
        begun.add(id(one))
        pending.append((one, True))
        pending.extend((part, False) for part in parts if id(part) not in paths)
    if paths[id(module)] > MOST_PATHS:
        raise ValueError("modules that stand in each other more often than can be gone through")


def as_float32(module: nn.Module) -> tuple[nn.Module, list[str]]:
    """The module with all floating point weights and buffers in float32, in eval mode, and notes on what they were."""
    tensors = [tensor for tensor in (*module.parameters(), *module.buffers()) if not is_lazy(tensor)]
    kinds = {tensor.dtype for tensor in tensors if tensor.is_floating_point()} - {torch.float32}
    notes = []
    for kind in sorted(kinds, key=str):
        change = "rounded" if kind is torch.float64 else "raised"
        notes.append(f"weights were {str(kind).removeprefix('torch.')}, {change} to float32")
    with blamed(f"putting {type(module).__name__} into float32 and eval mode"):
        return (module.float() if kinds else module).eval(), notes


def fit(module: nn.Module, state: StateDict, path: Path, factory: str) -> list[str]:
    """Loads a state dict into a module, every key and shape matching, and returns notes.

    What wrappers put before the keys (`module.`, `_orig_mod.`, `model.`, `net.`, `ema.`) is dropped where the keys
    match without. Where averaged weights stand beside others, they are taken.

    Raises:
        CheckpointError: keys are missing or left over, or shapes differ; names the first ten of each.
    """
    own = module.state_dict()
    averaged = _averaged(state, own.keys())
    renamed, dropped = _best_names(averaged or state, own.keys())
    missing = [name for name in own if name not in renamed]
    left_over = [name for name in renamed if name not in own]
    shapes = [
        f"{name} is {tuple(renamed[name].shape)} in the file, {tuple(own[name].shape)} in the model"
        for name in own
        if isinstance(renamed.get(name), torch.Tensor)
        and isinstance(own[name], torch.Tensor)
        and not is_lazy(own[name])
        and own[name].shape != renamed[name].shape
    ]
    if not shapes:
        # Modules may rename keys while they load, so that what is missing is known afterwards only.
        with blamed(f"load_state_dict of {type(module).__name__}"):
            result = module.load_state_dict(renamed, strict=False)
        missing, left_over = result.missing_keys, result.unexpected_keys
    missing = _without_shared(missing, own, renamed)
    if missing or left_over or shapes:
        cure = f"give the arguments the model was built with (--model-args), or another --model than {factory}"
        raise unfit(missing, left_over, shapes, where=f"{path} and --model {factory}", cure=cure)
    left = len(state) - len(renamed)
    notes = [f"took the averaged weights; {left} keys without `{dropped}` left aside"] if averaged else []
    return notes or ([f"dropped `{dropped}` before the keys"] if dropped else [])


def _averaged(state: StateDict, own: Any) -> StateDict | None:
    """Of a state dict of weights and their averages, the averages, if they are all that the module has."""
    for prefix in AVERAGED:
        part = {name: value for name, value in state.items() if _unwrapped_name(name).startswith(prefix)}
        if 0 < len(part) < len(state) and set(own) <= {_without_prefix(prefix)(name) for name in part}:
            return part
    return None


def _without_shared(missing: list[str], own: StateDict, given: StateDict) -> list[str]:
    """The keys whose tensor the file does not have by another key either: of those that are one it may keep one."""
    known = {_memory(own[name]) for name in given if isinstance(own.get(name), torch.Tensor)} - {None}
    return [name for name in missing if not isinstance(own.get(name), torch.Tensor) or _memory(own[name]) not in known]


def _memory(tensor: torch.Tensor) -> tuple | None:
    if is_lazy(tensor) or not tensor.numel():
        return None
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride()


def unfit(missing: list[str], left_over: list[str], shapes: list[str], *, where: str, cure: str) -> CheckpointError:
    """What to raise where weights are not those of the model; names the first ten of each kind."""
    parts = [
        _enumerated("keys missing in the file", missing),
        _enumerated("keys the model does not have", left_over),
        _enumerated("shapes that differ", shapes),
    ]
    return CheckpointError("the weights do not fit the model:" + "".join(parts), where=where, cure=cure)


def _enumerated(title: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f"\n      and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"\n    {title} ({len(names)}):" + "".join(f"\n      {name}" for name in names[:SHOWN]) + more


def _best_names(state: StateDict, own: Any) -> tuple[OrderedDict[str, torch.Tensor], str]:
    """The state dict under the naming that matches most keys; among equals, the one that changes least."""
    best, best_matches, dropped = _renamed(state, lambda name: name), -1, ""
    for prefix, rename in NAMINGS.items():
        candidate = _renamed(state, rename)
        if len(candidate) != len(state):
            continue
        matches = sum(name in own for name in candidate)
        if matches > best_matches:
            best, best_matches, dropped = candidate, matches, prefix
    return best, dropped


def _unwrapped_name(name: str) -> str:
    return re.sub(r"^(module\.)+", "", re.sub(r"(^|\.)_orig_mod\.", r"\1", name))


def _without_prefix(prefix: str) -> Callable[[str], str]:
    return lambda name: _unwrapped_name(_unwrapped_name(name).removeprefix(prefix))


# What training wrappers put before all keys: an attribute of a Lightning module, averaged weights.
PREFIXES = ("model.", "net.", "network.", "ema.", "ema_model.", "model_ema.")
NAMINGS: dict[str, Callable[[str], str]] = {
    "": lambda name: name,
    "module.": _unwrapped_name,
    **{prefix: _without_prefix(prefix) for prefix in PREFIXES},
}
AVERAGED = ("ema.", "ema_model.", "model_ema.")


def _renamed(state: StateDict, rename: Callable[[str], str]) -> OrderedDict[str, torch.Tensor]:
    renamed = OrderedDict((rename(name), value) for name, value in state.items())
    versions = getattr(state, "_metadata", None)
    if isinstance(versions, Mapping):
        renamed._metadata = {rename(f"{name}.").rstrip("."): version for name, version in versions.items()}  # type: ignore[attr-defined]
    return renamed
