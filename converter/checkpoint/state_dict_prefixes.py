"""Prefixes that wrappers put before the keys of a state dict, and the part of one that belongs to a model."""

import re
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping

import torch

StateDict = Mapping[str, torch.Tensor]

LEAST_KEYS = 3  # that distinguish a model from a layer that any model has


def best_names(state: StateDict, own: Collection[str]) -> tuple[OrderedDict[str, torch.Tensor], str]:
    """Return the state dict under the naming that matches most keys, and its prefix.

    A tie goes to the naming that changes least.
    """
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


# Prefixes of training wrappers: an attribute of a Lightning module, averaged weights.
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


def averaged_part(state: StateDict, own: Collection[str]) -> StateDict | None:
    """Return the averages in a state dict of weights and their averages, if they cover the module's keys; else None."""
    for prefix in AVERAGED:
        part = {name: value for name, value in state.items() if _unwrapped_name(name).startswith(prefix)}
        if 0 < len(part) < len(state) and set(own) <= {_without_prefix(prefix)(name) for name in part}:
            return part
    return None


def part_under_a_prefix(state: StateDict, own: StateDict) -> list[tuple[str, OrderedDict[str, torch.Tensor]]]:
    """Return the parts of a state dict with all of the model's keys and shapes under a prefix, each with its prefix.

    The file may also hold a loss, metrics or a second network (`backbone.`, `encoder_q.`, `student.`).
    """
    if len(own) < LEAST_KEYS:
        return []
    longest = max(own, key=len)
    for naming in (lambda name: name, _unwrapped_name):
        named = _renamed(state, naming)
        if len(named) < len(state):
            continue
        prefixes = [name.removesuffix(longest) for name in named if name.endswith(f".{longest}")]
        parts = [(prefix, _under(prefix, named)) for prefix in prefixes]
        fitting = [(prefix, part) for prefix, part in parts if _is_whole(part, own)]
        if fitting:
            return fitting
    return []


def _under(prefix: str, state: StateDict) -> OrderedDict[str, torch.Tensor]:
    inside = OrderedDict((name, value) for name, value in state.items() if name.startswith(prefix))
    return _renamed(inside, lambda name: name.removeprefix(prefix))


def _is_whole(part: StateDict, own: Mapping[str, object]) -> bool:
    """Return whether these are exactly the model's keys; batch counts, which nothing computes with, may be missing."""
    needed = {name for name in own if not name.endswith("num_batches_tracked")}
    return needed <= part.keys() <= own.keys() and all(
        getattr(part[name], "shape", None) == getattr(own[name], "shape", None) for name in needed
    )
