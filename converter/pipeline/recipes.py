"""Record how an artifact is filled from its checkpoint, for its stamp."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from converter.ir.inverse import MOVES
from converter.ir.lazy_tensor import LazyTensor, ValueQueries
from converter.ir.program import Program, read_attribute
from converter.ir.recipe import Formula, Kitchen, Recipe, Spec
from converter.ir.record import CannotRecord, Memory, Recorder, memory_of
from converter.verification.array_arrangement import content

LARGEST_SHARE = 0.02  # of an artifact's size
LEAST = 16384  # bytes that are always allowed: a small model of many tensors
KEY, REASON = "recipe", "no_recipe"
MOST_AXES = 5


class Source(Protocol):
    """A loaded model.

    Attributes:
        state: the checkpoint's tensors by their keys.
        keys: the key of each tensor of the captured program that is one.
    """

    program: Program
    state: Mapping[str, Tensor]
    keys: Mapping[str, str]


def is_alike(array: np.ndarray, others: Iterable[np.ndarray]) -> bool:
    """Return whether content does not tell where an array came from, and in which order of its axes.

    Args:
        others: all that it may have come from, itself included.
    """
    own = content(array)
    same = sum(other.size == array.size and content(other) == own for other in others)
    squeezed = array.squeeze()
    orders = itertools.islice(itertools.permutations(range(squeezed.ndim)), 1, None)
    return same > 1 or squeezed.ndim > MOST_AXES or any(_is_same(squeezed, squeezed.transpose(o)) for o in orders)


def _is_same(first: np.ndarray, second: np.ndarray) -> bool:
    few = slice(0, 1 << 10)
    a, b = first.flat, second.flat
    return np.array_equal(a[few], b[few]) and np.array_equal(first.reshape(-1), second.reshape(-1))


def take_same_elements(source: Source, first: LazyTensor, second: LazyTensor) -> bool:
    """Return whether two tensors are the same elements of the checkpoint's tensors, whatever these hold."""
    recorder = Recorder(_memories(source))
    try:
        formulas = [recorder.formula(values.compute) for values in (first, second)]
    except CannotRecord:
        return False
    steps = [step for formula in formulas for step in formula.steps]
    names = {step.operator.partition(".")[0] for step in steps}
    casts = {str(step.kwargs.get("dtype")) for step in steps if step.operator == "_to_copy.default"}
    if recorder.conditions or not names <= {*MOVES, "_to_copy"} or first.shape != second.shape:
        return False
    keys = list(dict.fromkeys(key for formula in formulas for key in formula.keys))
    held, places, count = [source.state[key] for key in keys], dict[str, Tensor](), 0
    for key, tensor in zip(keys, held, strict=True):
        places[key] = torch.arange(count, count + tensor.numel(), dtype=torch.float64).reshape(tensor.shape)
        count += tensor.numel()
    exact = {str({"dtype": "float64"}), *([str({"dtype": "float32"})] if count <= 1 << 24 else [])}
    if not casts <= exact:
        return False
    specs = {key: Spec(tuple(places[key].shape), torch.float64) for key in keys}
    kitchen = Kitchen(Recipe(specs, literals=recorder.literals), places, first.numel() + second.numel())
    return torch.equal(*(kitchen.compute(formula).double() for formula in formulas))


def stamped_recipe(
    source: Source,
    queries: ValueQueries,
    tensors: Mapping[str, tuple[LazyTensor, np.dtype]],
    inlined: Iterable[LazyTensor] = (),
    merged: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """Return the entry of the stamp: the recipe, or why there is none.

    Args:
        tensors: what the artifact's tensors hold, and their types.
        inlined: what the artifact's graph holds.
        merged: the tensors' values, where equal ones become one and some numbers are left out.
    """
    if source.program.values_read or source.program.frozen_flow:
        return {REASON: "the capture of the model reads values of the checkpoint"}
    differing = [n for n, (values, dtype) in tensors.items() if merged and not _holds(merged[n], values, dtype)]
    if differing:
        return {REASON: f"{differing[0]} is not what the plan computes"}
    try:
        recipe = _recorded(source, queries, tensors, inlined)
    except CannotRecord as error:
        return {REASON: str(error)}
    recipe.coincidences = None if merged is None else coincidences({name: merged[name] for name in recipe.formulas})
    text = recipe.encode()
    size = sum(values.numel() * dtype.itemsize for values, dtype in tensors.values())
    if len(text) > max(LARGEST_SHARE * size, LEAST):
        return {REASON: f"it takes {len(text)} bytes, more than 2 % of the artifact"}
    return {KEY: text}


def _holds(array: np.ndarray, values: LazyTensor, dtype: np.dtype) -> bool:
    with np.errstate(over="ignore"):
        return array.shape == values.shape and array.tobytes() == np.asarray(values).astype(dtype).tobytes()


def _recorded(
    source: Source,
    queries: ValueQueries,
    tensors: Mapping[str, tuple[LazyTensor, np.dtype]],
    inlined: Iterable[LazyTensor],
) -> Recipe:
    recorder = Recorder(_memories(source))
    for question in queries.ask_again():
        recorder.note(question)
    for values in inlined:
        recorder.note_value(values.compute)
    formulas: dict[str, Formula | str] = {}
    for name, (values, dtype) in tensors.items():
        formula = recorder.formula(values.compute)
        formulas[name] = formula if formula.keys else array_digest(np.asarray(values).astype(dtype))
    groups: dict[int, list[str]] = {}
    for key, tensor in source.state.items():
        groups.setdefault(id(tensor), []).append(key)
    return Recipe(
        keys={key: Spec(tuple(tensor.shape), tensor.dtype) for key, tensor in source.state.items()},
        tied=[tuple(keys) for keys in groups.values() if len(keys) > 1],
        literals=recorder.literals,
        tensors=formulas,
        conditions=recorder.conditions,
    )


def _memories(source: Source) -> dict[Memory, str]:
    """Return the checkpoint's keys by the memory of the captured program's tensors."""
    found: dict[Memory, str] = {}
    for target, origin in source.program.origins.items():
        key = source.keys.get(origin.sources[0]) if len(origin.sources) == 1 and origin.exact else None
        if key is None:
            continue
        tensor, held = read_attribute(source.program.graph_module, target).detach(), source.state[key].detach()
        if tensor.numel() and (memory_of(tensor) == memory_of(held) or torch.equal(tensor, held)):
            found[memory_of(tensor)] = key
    return found


def coincidences(arrays: Mapping[str, np.ndarray]) -> str:
    """Return a digest of which arrays are equal, which repeat one number, and which are a single 0 or 1."""
    first: dict[tuple[Any, ...], int] = {}
    found = []
    for place, array in enumerate(arrays.values()):
        number = None
        if array.size and (array == array.flat[0]).all() and (array.size > 1 or array.flat[0] in (0, 1)):
            number = float(array.flat[0])
        same = first.setdefault((array.shape, array.dtype.str, array_digest(array)), place)
        found.append([place - same, number])
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def array_digest(array: np.ndarray) -> str:
    """Return the SHA-256 of an array's values."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
