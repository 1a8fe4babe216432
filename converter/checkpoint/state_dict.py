"""Find the model in a checkpoint's content, and load a state dict into a module."""

from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel

from converter.checkpoint.placeholders import Compiled
from converter.checkpoint.state_dict_prefixes import StateDict, averaged_part, best_names, part_under_a_prefix
from converter.checkpoint.user_source import attribute_errors
from converter.errors import CheckpointError, ConversionError, Note

# Averaged weights first: they are the result of the training.
ENTRIES = (
    *("ema", "model_ema", "state_dict_ema", "ema_state_dict", "params_ema"),
    *("model", "state_dict", "model_state_dict", "model_state", "net", "network", "module", "weights", "params"),
)
WRAPPERS = (nn.DataParallel, AveragedModel, Compiled)
SAVE_FIX = "Save the model or its state dict in its own file with torch.save."
QUANTIZED_FIX = "Give the floating-point model that it was made from."
QUANTIZED = tuple(
    f"torch.{package}nn.{kind}" for package in ("", "ao.") for kind in ("quantized", "intrinsic.quantized")
)
SHOWN = 10
SHOWN_PATTERNS = 3
MOST_WRAPPERS = 8
MOST_PATHS = 1_000_000  # from a module to its parts
LARGEST_EXPANSION = 1000  # elements for each byte of the file


@dataclass
class KeyFilter:
    """The patterns of `--drop-keys`, and the keys that they have dropped so far."""

    patterns: Sequence[str]
    _dropped: dict[str, set[str]] = field(default_factory=dict, init=False)

    def kept(self, state: StateDict) -> StateDict:
        """Return the state dict without the keys that match."""
        matching = {name: [p for p in self.patterns if fnmatchcase(name, p)] for name in state}
        for name, patterns in matching.items():
            if patterns:
                self._dropped.setdefault(name, set()).update(patterns)
        if not any(matching.values()):
            return state
        rest = OrderedDict((name, value) for name, value in state.items() if not matching[name])
        if hasattr(state, "_metadata"):
            rest._metadata = state._metadata  # type: ignore[attr-defined]
        return rest

    def notes(self) -> list[Note]:
        unmatched = [pattern for pattern in self.patterns if not any(pattern in p for p in self._dropped.values())]
        notes = [Note(f"--drop-keys {pattern} does not match any key.", code="PTC1501") for pattern in unmatched]
        if self._dropped:
            notes.append(Note(f"--drop-keys left out {_keys(self._dropped)}.", code="PTC1502"))
        return notes


def unused_note(keys: Sequence[str], name: str) -> Note:
    """Return the note about weights that a class does not use."""
    return Note(f"{name} does not use {_keys(keys)}.", code="PTC1503")


def _keys(keys: Collection[str]) -> str:
    shown = ", ".join(f"`{key}`" for key in list(keys)[:SHOWN])
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return f"1 key ({shown})" if len(keys) == 1 else f"{len(keys)} keys ({shown}{more})"


def extract_model(content: Any, path: Path) -> tuple[nn.Module | StateDict, list[Note]]:
    """Return the module or the state dict in the unpickled content, and notes on what was taken.

    Raises:
        CheckpointError: there is none, or several without a usual name, or weights are quantized.
    """
    if isinstance(content, nn.Module):
        return unwrap(content)
    if _is_state_dict(content):
        return _tensors(content, path), []
    if isinstance(content, (list, tuple)):
        models = {f"{i}": item for i, item in enumerate(content) if isinstance(item, nn.Module) or _is_state_dict(item)}
        if len(models) > 1:
            raise _several(path, models)
        for model in models.values():
            taken, notes = extract_model(model, path)
            note = Note(f"Took the only model in a {type(content).__name__} of {len(content)} items.", code="PTC1504")
            return taken, [note, *notes]
    if not isinstance(content, Mapping):
        what = f"The checkpoint contains a {type(content).__name__}, not a model."
        raise CheckpointError(what, code="PTC1063", where=str(path), fix=SAVE_FIX)
    return _entry(content, path)


def choose_state(content: Any, key: str, path: Path) -> tuple[Any, list[Note]]:
    """Return the part of the unpickled content that `--state` names: an entry, or the keys under a prefix.

    Args:
        key: of a dictionary, a number of a list, several of these joined by dots, or the prefix of a state dict's keys.

    Raises:
        CheckpointError: there is none; the error lists what there is.
    """
    chosen = _part(content, key)
    if chosen is None and isinstance(content, Mapping) and not _is_state_dict(content):
        states = [value for value in content.values() if _is_state_dict(value)]
        parts = [part for state in states if (part := _part(state, key)) is not None]
        chosen = parts[0] if len(parts) == 1 else None
    if chosen is None:
        held = ", ".join(f"`{name}`" for name in _candidates(content)[:SHOWN]) or "no part of its own"
        raise CheckpointError(
            f"The checkpoint does not contain a model or weights called `{key}`. It has {held}.",
            code="PTC1094",
            where=f"{path}, --state",
            fix="Name one of these parts.",
        )
    return chosen, [Note(f"Took `{key}` (--state).", code="PTC1517")]


def _part(content: Any, key: str) -> Any:
    if isinstance(content, list | tuple):
        content = {str(i): item for i, item in enumerate(content)}
    if not isinstance(content, Mapping):
        return None
    if isinstance(value := content.get(key), Mapping | nn.Module | list | tuple):
        return value
    first, _, rest = key.partition(".")
    if rest and (inner := _part(content.get(first), rest)) is not None:
        return inner
    prefix = f"{key.rstrip('.')}."
    state = content if _is_state_dict(content) else {}
    return OrderedDict((name.removeprefix(prefix), v) for name, v in state.items() if name.startswith(prefix)) or None


def _candidates(content: Any) -> list[str]:
    """Return what `--state` may name: entries that hold models, and first parts of a state dict's keys."""
    if isinstance(content, list | tuple):
        content = {str(i): item for i, item in enumerate(content)}
    if not isinstance(content, Mapping):
        return []
    if _is_state_dict(content):
        return list(dict.fromkeys(name.partition(".")[0] for name in content if "." in name))
    models = [name for name, value in content.items() if isinstance(value, nn.Module) or _holds_models({"": value})]
    return models or [f"{name}.{part}" for name, value in content.items() for part in _candidates(value)]


def _entry(content: Mapping, path: Path) -> tuple[nn.Module | StateDict, list[Note]]:
    found = {name: value for name, value in content.items() if isinstance(value, nn.Module) or _is_state_dict(value)}
    within = {} if found or not _holds_models(content) else content
    nested = {name: value for name, value in within.items() if _holds_models(value)}
    names = list(found or nested)
    usual = [name for name in ENTRIES if name in names]
    if not names:
        return _tensors_beside_others(content, path)
    if not usual and len(names) != 1:
        raise _several(path, found or nested)
    chosen = usual[0] if usual else names[0]
    others = ", ".join(f"`{name}`" for name in names if name != chosen)
    ignored = f"; ignored {others}" if others else ""
    model, notes = extract_model(content[chosen], path)
    return model, [Note(f"Took `{chosen}` from the training checkpoint{ignored}.", code="PTC1505"), *notes]


def _holds_models(value: Any) -> bool:
    """Return whether a model is somewhere in these dictionaries, ignoring those of an optimizer."""
    pending, seen = [value], set()
    while pending:
        one = pending.pop()
        if not isinstance(one, Mapping) or "param_groups" in one or id(one) in seen:
            continue
        seen.add(id(one))
        held = [item for name, item in one.items() if isinstance(name, str)]
        if any(isinstance(item, nn.Module) or _is_state_dict(item) for item in held):
            return True
        pending += held
    return False


def _tensors_beside_others(content: Mapping, path: Path) -> tuple[StateDict, list[Note]]:
    """Return the tensors of a state dict that also holds an epoch, an accuracy and the like, and a note."""
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and _is_tensor(value)}
    if not tensors:
        held = ", ".join(f"`{name}`" for name in list(content)[:SHOWN]) or "nothing"
        raise CheckpointError(
            f"The checkpoint does not contain a model, only: {held}.", code="PTC1064", where=str(path), fix=SAVE_FIX
        )
    others = [f"`{name}`" for name in content if name not in tensors]
    more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
    note = Note(f"Ignored entries that are not tensors: {', '.join(others[:SHOWN])}{more}.", code="PTC1506")
    return _tensors(tensors, path), [note]


def _several(path: Path, found: Mapping[str, Any]) -> CheckpointError:
    names = list(found)
    held = ", ".join(f"`{name}`" for name in names[:SHOWN])
    return CheckpointError(
        f"The checkpoint contains several models: {held}.",
        code="PTC1065",
        where=str(path),
        fix=f"Name the one to convert, as in --state {names[0]}.",
    )


def _is_tensor(value: Any) -> bool:
    """Return whether a value is a tensor, or a numpy array that a tensor can hold."""
    return isinstance(value, torch.Tensor) or (isinstance(value, np.ndarray) and value.dtype.kind in "biufc")


def _is_state_dict(value: Any) -> bool:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        return False
    tensors = [_is_tensor(entry) for entry in value.values()]
    return any(tensors) and all(
        is_tensor or name.endswith("_extra_state") for name, is_tensor in zip(value, tensors, strict=True)
    )


def _tensors(state: Mapping[str, Any], path: Path) -> StateDict:
    """Convert numpy arrays in a state dict to tensors.

    Raises:
        CheckpointError: there are quantized tensors.
    """
    quantized = [name for name, value in state.items() if isinstance(value, torch.Tensor) and value.is_quantized]
    if quantized:
        raise quantized_error(f"{path}, {quantized[0]}")
    if not any(isinstance(value, np.ndarray) for value in state.values()):
        return state
    return OrderedDict(
        (name, torch.from_numpy(np.array(value, value.dtype.newbyteorder("="))))
        if isinstance(value, np.ndarray)
        else (name, value)
        for name, value in state.items()
    )


def unwrap(module: nn.Module) -> tuple[nn.Module, list[Note]]:
    """Return the module inside wrappers of DataParallel, AveragedModel and torch.compile, and notes on these.

    Raises:
        TypeError: a wrapper has no module.
    """
    notes: list[Note] = []
    while isinstance(module, WRAPPERS) or "_orig_mod" in vars(module).get("_modules", {}):
        compiled = "_orig_mod" in vars(module).get("_modules", {})
        inner = module._modules["_orig_mod"] if compiled else module.module
        if not isinstance(inner, nn.Module) or len(notes) > MOST_WRAPPERS:
            raise TypeError(f"a {type(module).__name__} of no module")
        kind = "torch.compile's wrapper" if compiled else f"its {type(module).__name__}"
        notes.append(Note(f"Took the module out of {kind}.", code="PTC1507"))
        module = inner
    return module, notes


def refuse_quantized(module: nn.Module, path: Path) -> None:
    """Refuse a module with quantized weights. Raises CheckpointError."""
    quantized = [name for name, part in module.named_modules() if type(part).__module__.startswith(QUANTIZED)]
    if quantized:
        raise quantized_error(f"{path}, module `{quantized[0]}`")


def quantized_error(where: str) -> CheckpointError:
    """Return the error for weights that are quantized."""
    return CheckpointError("The weights are quantized.", code="PTC1066", where=where, fix=QUANTIZED_FIX)


def check_expansion(tensors: Iterable[torch.Tensor], path: Path) -> None:
    """Refuse weights that would take far more memory than their file, as views of one number can.

    Raises:
        CheckpointError: more than a thousand elements for each byte of the file.
    """
    elements = sum(tensor.numel() for tensor in tensors if isinstance(tensor, torch.Tensor) and not is_lazy(tensor))
    if elements > LARGEST_EXPANSION * path.stat().st_size:
        what = f"The weights have {elements} elements in a file of {path.stat().st_size} bytes."
        raise CheckpointError(
            what, code="PTC1067", where=str(path), fix="Do not trust this file, or save the weights contiguously."
        )


def check_parts(module: nn.Module) -> None:
    """Refuse a module that would take forever to traverse: `eval()` visits a part once for each path to it.

    Raises:
        ValueError: a module contains itself, or there are more than a million paths.
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


def as_float32(module: nn.Module) -> tuple[nn.Module, list[Note]]:
    """Convert a module's floating point weights and buffers to float32, set eval mode, and return it with notes."""
    tensors = [tensor for tensor in (*module.parameters(), *module.buffers()) if not is_lazy(tensor)]
    kinds = {tensor.dtype for tensor in tensors if tensor.is_floating_point()} - {torch.float32}
    notes = [changed_to_float32(kind) for kind in sorted(kinds, key=str)]
    with attribute_errors(f"putting {type(module).__name__} into float32 and eval mode"):
        if kinds:
            module.float()
        module.eval()  # its own `train` may return nothing
    return module, notes


def changed_to_float32(kind: torch.dtype) -> Note:
    """Return the note about weights of another precision."""
    return Note(f"Converted weights from {_shown(kind)} to float32.", code="PTC1508")


def dropped_prefix(prefix: str) -> Note:
    """Return the note about a prefix of all keys that the model does not have."""
    return Note(f"Dropped the prefix `{prefix}` from the keys.", code="PTC1511")


def load_into(
    module: nn.Module, state: StateDict, path: Path, factory: str, drop: KeyFilter | None = None
) -> list[Note]:
    """Load a state dict into a module, every key and shape matching, and return notes.

    Keys that `drop` matches are left out, by their names in the file and by those without the wrappers' prefix.

    Wrappers' prefixes of the keys (`module.`, `_orig_mod.`, `model.`, `net.`, `ema.`) are dropped if the keys match
    without them. If the file holds averaged weights besides others, the averaged weights are used.

    Raises:
        CheckpointError: keys are missing or left over, or shapes differ; names the first ten of each.
    """
    own = module.state_dict()
    if any(isinstance(tensor, torch.Tensor) and tensor.is_meta for tensor in own.values()):
        raise ConversionError(
            "The factory builds the model on the meta device, where tensors have no values.",
            code="PTC1068",
            where=f"--model {factory}",
            fix='Build it on the CPU, without torch.device("meta").',
        )
    drop = drop or KeyFilter(())
    kept, notes = renamed_for(own, state, path, drop)
    missing = [name for name in own if name not in kept]
    left_over = [name for name in kept if name not in own]
    shapes, types = other_kinds(own, kept)
    if not shapes and not types:
        # Modules may rename keys while they load, so the missing keys are only known afterwards.
        with attribute_errors(f"load_state_dict of {type(module).__name__}"):
            result = module.load_state_dict(kept, strict=False)
        missing, left_over = result.missing_keys, result.unexpected_keys
    missing = _without_shared(missing, own, kept)
    if missing or left_over or shapes or types:
        fix = f"Give the arguments that the model was built with (--model-args), or another --model than {factory}."
        if left_over and not (missing or shapes or types):
            fix += f" If the model does not need these keys, leave them out: {_drop_options(left_over, own)}."
        if types and not (missing or left_over or shapes):
            fix = f"{QUANTIZED_FIX} Or name a --model that uses these number types."
        raise unfit(missing, left_over, shapes, types, where=f"{path} and --model {factory}", fix=fix)
    return notes


def renamed_for(own: Mapping[str, Any], state: StateDict, path: Path, drop: KeyFilter) -> tuple[StateDict, list[Note]]:
    """Return the state dict under the names of the model's own, as far as wrappers explain the difference, and notes.

    Raises:
        CheckpointError: several parts of it fit.
    """
    state = drop.kept(state)
    averaged = averaged_part(state, own.keys())
    renamed, dropped = best_names(averaged or state, own.keys())
    notes = [dropped_prefix(dropped)] if dropped else []
    if averaged:
        others = len(state) - len(renamed)
        notes = [Note(f"Took the averaged weights; ignored {others} keys without `{dropped}`.", code="PTC1509")]
    elif renamed.keys() - own.keys() and len(parts := part_under_a_prefix(state, own)) == 1:
        ((prefix, renamed),) = parts
        others = len(state) - len(renamed)
        took = Note(f"Took the keys under `{prefix}`; ignored {others} others.", code="PTC1510")
        notes = [took if others else dropped_prefix(prefix)]
    elif renamed.keys() - own.keys() and parts:
        raise _several_parts([prefix for prefix, _ in parts], path)
    kept, folded = fold_weight_norms(drop.kept(renamed), own)
    return kept, [*notes, *folded]


def other_kinds(own: Mapping[str, Any], kept: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return what tensors have other shapes than the model's own, and what types cannot hold their values."""
    pairs = [(name, kept[name], own[name]) for name in own if _are_tensors(kept.get(name), own[name])]
    shapes = [
        f"{name} is {tuple(given.shape)} in the file, {tuple(wanted.shape)} in the model"
        for name, given, wanted in pairs
        if not is_lazy(wanted) and wanted.shape != given.shape
    ]
    types = [
        f"{name} is {_shown(given.dtype)} in the file, {_shown(wanted.dtype)} in the model"
        for name, given, wanted in pairs
        if not _holds(wanted.dtype, given)
    ]
    return shapes, types


WEIGHT_NORMS = {"weight_g": ("weight", "weight_v"), "parametrizations.weight.original0": (
    "weight", "parametrizations.weight.original1")}  # fmt: skip


def fold_weight_norms(state: StateDict, own: Collection[str]) -> tuple[StateDict, list[Note]]:
    """Return the state dict with the products of a weight norm that the model does not have, and a note on them."""
    folded = OrderedDict(state)
    if hasattr(state, "_metadata"):
        folded._metadata = state._metadata  # type: ignore[attr-defined]
    names = []
    for magnitude, (weight, direction) in WEIGHT_NORMS.items():
        for name in [name for name in state if name == magnitude or name.endswith(f".{magnitude}")]:
            prefix = name.removesuffix(magnitude)
            g, v = state[name], state.get(prefix + direction)
            if name in own or prefix + weight not in own or prefix + weight in state:
                continue
            if not isinstance(v, torch.Tensor) or (g.ndim and v.ndim != g.ndim):
                continue
            reduced = [d for d in range(v.ndim) if not g.ndim or g.shape[d] == 1]
            folded[prefix + weight] = v * (g / v.norm(2, dim=reduced, keepdim=bool(g.ndim)))
            del folded[name], folded[prefix + direction]
            names.append(prefix + weight)
    if not names:
        return state, []
    return folded, [Note(f"Folded weight norm into {_keys(names)}.", code="PTC1518")]


def _drop_options(left_over: Sequence[str], own: Collection[str]) -> str:
    """Return the options that drop these keys and none of the model's."""
    patterns = dict.fromkeys(_pattern(key.split("."), own) for key in left_over)
    more = " ..." if len(patterns) > SHOWN_PATTERNS else ""
    return " ".join(f"--drop-keys '{pattern}'" for pattern in list(patterns)[:SHOWN_PATTERNS]) + more


def _pattern(parts: Sequence[str], own: Collection[str]) -> str:
    prefixes = (".".join(parts[:count]) for count in range(1, len(parts)))
    free = (prefix for prefix in prefixes if not any(f"{name}.".startswith(f"{prefix}.") for name in own))
    prefix = next(free, None)
    return ".".join(parts) if prefix is None else f"{prefix}.*"


def _several_parts(prefixes: list[str], path: Path) -> CheckpointError:
    held = ", ".join(f"`{prefix}`" for prefix in prefixes[:SHOWN])
    one = prefixes[0]
    return CheckpointError(
        f"The file contains these weights several times, under {held}.",
        code="PTC1069",
        where=str(path),
        fix=f"Name the one to convert, as in --state {one.rstrip('.')}.",
    )


def _are_tensors(*values: Any) -> bool:
    return all(isinstance(value, torch.Tensor) for value in values)


def _shown(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _holds(wanted: torch.dtype, given: torch.Tensor) -> bool:
    """Return whether copying to this type keeps the numbers, up to rounding; 8-bit integers encode other numbers."""
    if wanted.is_complex or given.dtype == wanted:
        return True
    if wanted.is_floating_point:
        return given.dtype.is_floating_point or not (
            given.is_complex() or (given.dtype.itemsize == 1 and given.ndim > 1)
        )
    return not given.is_complex() and bool((given.to(wanted).to(given.dtype) == given).all())


def _without_shared(missing: list[str], own: StateDict, given: StateDict) -> list[str]:
    """Return the missing keys whose tensor the file lacks under every key; of tied tensors it may hold only one."""
    known = {_memory(own[name]) for name in given if isinstance(own.get(name), torch.Tensor)} - {None}
    return [name for name in missing if not isinstance(own.get(name), torch.Tensor) or _memory(own[name]) not in known]


def _memory(tensor: torch.Tensor) -> tuple | None:
    if is_lazy(tensor) or not tensor.numel():
        return None
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride()


def unfit(
    missing: list[str], left_over: list[str], shapes: list[str], types: Sequence[str] = (), *, where: str, fix: str
) -> CheckpointError:
    """Return the error for weights that do not fit the model; it names the first ten of each kind."""
    parts = [
        _enumerated("keys missing from the file", missing),
        _enumerated("keys the model does not have", left_over),
        _enumerated("different shapes", shapes),
        _enumerated("different types", types),
    ]
    return CheckpointError("The weights do not fit the model:" + "".join(parts), code="PTC1070", where=where, fix=fix)


def _enumerated(title: str, names: Sequence[str]) -> str:
    if not names:
        return ""
    more = f"\n      and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"\n    {title} ({len(names)}):" + "".join(f"\n      {name}" for name in names[:SHOWN]) + more
