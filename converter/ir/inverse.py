"""Compute a checkpoint's tensors from those of an artifact: a recipe, applied backwards.

What only moves is applied to numbers of elements, which then say where each value came from. Of a sum, the part that
is a tensor of the checkpoint, moved, takes the difference: so `bias_ih` takes that of an LSTM's bias. Weight norm gives
its direction the kernel, and its magnitude the kernel's norm.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from converter.ir.recipe import Formula, Kitchen, Step, leaves, operator_of, with_values

MOVES = frozenset(
    {"view", "_unsafe_view", "permute", "transpose", "t", "unsqueeze", "squeeze", "expand", "slice", "select", "split"}
    | {"split_with_sizes", "unbind", "diagonal", "alias", "detach", "clone", "cat", "stack", "index_select", "index"}
    | {"gather", "flip", "roll", "repeat", "embedding"}
)
SUMS = {"add.Tensor": 1, "sub.Tensor": -1}
NOT_HERE = -1


class CannotInvert(Exception):
    """Raised where a tensor of the artifact does not determine those of the checkpoint; says why."""


@dataclass
class Inverse:
    """Collects what the checkpoint's tensors must be.

    Attributes:
        kitchen: computes with the checkpoint's tensors, the new ones where they are known.
        state: the checkpoint's tensors, changed in place of `kitchen.state`.
    """

    kitchen: Kitchen
    _known: dict[str, Tensor] = field(default_factory=dict)  # which elements of a key are new

    def take(self, formula: Formula, value: Tensor) -> None:
        """Have the tensors that a formula reads give this value. Raises CannotInvert."""
        assert formula.result is not None
        backwards = _Backwards(self, formula)
        try:
            backwards.assign(formula.result, value, torch.ones(value.shape, dtype=torch.bool))
        except (RuntimeError, IndexError, TypeError, ValueError, KeyError) as error:
            raise CannotInvert(str(error).partition("\n")[0]) from error

    def set(self, key: str, value: Tensor, mask: Tensor) -> None:
        """Set the elements of a key that the mask has."""
        state = self.kitchen.state
        before, known = state[key], self._known.get(key)
        new = torch.where(mask, value.to(before.dtype), before)
        if known is not None and not torch.equal(new[mask & known], before[mask & known]):
            raise CannotInvert(f"{key} would need two values at once")
        state[key] = new
        self._known[key] = mask if known is None else mask | known


class _Backwards:
    def __init__(self, inverse: Inverse, formula: Formula):
        self._inverse, self._formula = inverse, formula
        self._makers: list[tuple[Step, int] | None] = [None] * len(formula.reads)
        self._values, counts, _ = inverse.kitchen.run(formula)
        for step, count in zip(formula.steps, counts, strict=True):
            self._makers += [(step, i) for i in range(count)]

    def assign(self, number: int, value: Tensor, mask: Tensor) -> None:
        """Have the value of this number be `value` where the mask is true."""
        maker = self._makers[number]
        if maker is None:
            read = self._formula.reads[number]
            if isinstance(read, str):
                self._inverse.set(read, value, mask)
            return
        step, position = maker
        name = step.operator.partition(".")[0]
        if name == "_to_copy":
            self.assign(step.args[0]["t"], value, mask)
        elif name in MOVES:
            self._move_back(step, position, value, mask)
        elif step.operator in SUMS and self._is_plain(step):
            self._subtract(step, value, mask)
        elif name == "_weight_norm_interface" and position == 0 and bool(mask.all()):
            self._unnormalize(step, value, mask)
        elif name in ("mul", "div") and isinstance(step.args[1], int | float) and step.args[1]:
            factor = step.args[1]
            self.assign(step.args[0]["t"], value.double() / factor if name == "mul" else value.double() * factor, mask)
        else:
            raise CannotInvert(f"it is computed with {step.operator}")

    def _move_back(self, step: Step, position: int, value: Tensor, mask: Tensor) -> None:
        """Give each input of a move the values that come from it."""
        numbers = [n for n in self._data(step) if self._keys(n)]
        values, count = list(self._values), 0
        for n in self._data(step):
            size = values[n].numel()
            chosen = torch.arange(count, count + size) if n in numbers else torch.full((size,), NOT_HERE)
            values[n], count = chosen.reshape(values[n].shape), count + size * (n in numbers)
        args = [with_values(arg, values) for arg in step.args]
        kwargs = {name: with_values(arg, values) for name, arg in step.kwargs.items()}
        result = [leaf for leaf in leaves(operator_of(step)(*args, **kwargs)) if isinstance(leaf, Tensor)]
        places = result[position].reshape(-1)
        there = mask.reshape(-1) & (places != NOT_HERE)
        flat, known = value.new_zeros(count), torch.zeros(count, dtype=torch.bool)
        flat[places[there]] = value.reshape(-1)[there]
        known[places[there]] = True
        if not torch.equal(flat[places[there]], value.reshape(-1)[there]):
            raise CannotInvert("values that were one have been trained apart")
        start = 0
        for n in numbers:
            size, shape = self._values[n].numel(), self._values[n].shape
            part = slice(start, start + size)
            start += size
            if bool(known[part].any()):
                self.assign(n, flat[part].reshape(shape), known[part].reshape(shape))

    def _is_plain(self, step: Step) -> bool:
        return not step.kwargs and all(isinstance(a, dict) for a in step.args)

    def _subtract(self, step: Step, value: Tensor, mask: Tensor) -> None:
        """Have the first summand that a tensor of the checkpoint gives, moved, take the difference."""
        first, second = (arg["t"] for arg in step.args)
        a, b, sign = self._values[first].double(), self._values[second].double(), SUMS[step.operator]
        fits = {n: self._is_moved(n) and self._values[n].shape == value.shape for n in (first, second)}
        if self._keys(first) & self._keys(second) or not any(fits.values()):
            raise CannotInvert("it is a sum of what is computed")
        if fits[first]:
            self.assign(first, value.double() - sign * b, mask)
        else:
            self.assign(second, sign * (value.double() - a), mask)

    def _unnormalize(self, step: Step, value: Tensor, mask: Tensor) -> None:
        direction, magnitude = (arg["t"] for arg in step.args[:2])
        dim = step.args[2] if len(step.args) > 2 else step.kwargs.get("dim", 0)
        norm = torch.norm_except_dim(value.double(), 2, dim)
        self.assign(direction, value, mask)
        self.assign(magnitude, norm, torch.ones(norm.shape, dtype=torch.bool))

    def _is_moved(self, number: int) -> bool:
        """Return whether a value is a tensor of the checkpoint, moved or cast only."""
        maker = self._makers[number]
        if maker is None:
            return isinstance(self._formula.reads[number], str)
        name = maker[0].operator.partition(".")[0]
        return name in (*MOVES, "_to_copy") and any(self._is_moved(n) for n in self._data(maker[0]))

    def _keys(self, number: int) -> set[str | int]:
        """Return the keys of the checkpoint that a value is made of."""
        maker = self._makers[number]
        if maker is None:
            read = self._formula.reads[number]
            return {read} if isinstance(read, str) else set()
        return {key for n in _numbers([*maker[0].args, *maker[0].kwargs.values()]) for key in self._keys(n)}

    def _data(self, step: Step) -> list[int]:
        """Return the tensors whose values a move moves: the first argument, or the list that it is."""
        return list(_numbers(step.args[:1]))


def _numbers(part: Any) -> Iterator[int]:
    if isinstance(part, list):
        for item in part:
            yield from _numbers(item)
    elif isinstance(part, dict) and "t" in part:
        yield part["t"]
