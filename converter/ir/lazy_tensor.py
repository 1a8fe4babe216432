"""Tensors that are computed where they are read, so that what rewrites make of weights takes no memory of its own.

What rewrites and mappings learn of values is noted where someone wants to know (`recording_queries`): a plan is right
for other weights of the same shapes too, if every question that was asked on its way has the same answer there.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

T = TypeVar("T")


@dataclass
class ValueQueries:
    """What was asked of tensors' values, and what the answers were."""

    _asked: list[tuple[Callable[[], Any], Any]] = field(default_factory=list)

    def add(self, question: Callable[[], Any], answer: Any) -> None:
        self._asked.append((question, answer))

    def hold(self) -> bool:
        """Whether the tensors, as they are now, give the same answers."""
        with recording_queries(None):
            return all(question() == answer for question, answer in self._asked)


_NOTED: ContextVar[ValueQueries | None] = ContextVar("noted", default=None)


@contextmanager
def recording_queries(answers: ValueQueries | None) -> Iterator[None]:
    """Note every question that is asked within, and that a tensor is read whole; or nothing."""
    token = _NOTED.set(answers)
    try:
        yield
    finally:
        _NOTED.reset(token)


def read_whole(tensor: Tensor) -> Tensor:
    """`tensor`, whose every value may matter to what comes."""
    answers = _NOTED.get()
    if answers is not None:
        answers.add(lambda: digest(tensor), digest(tensor))
    return tensor


def digest(tensor: Tensor) -> bytes:
    """Of a tensor's values."""
    held = tensor.detach().contiguous()
    return hashlib.sha256(held.reshape(-1).view(torch.uint8).numpy().tobytes()).digest()


@dataclass(frozen=True, eq=False)
class LazyTensor:
    """A tensor of known shape and type that is computed each time anew.

    Attributes:
        function: computes it from the values of `parts`; needs no more than the weights that it reads, and returns the
            same at each call.
    """

    function: Callable[..., Tensor]
    parts: tuple[LazyTensor, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype

    @staticmethod
    def of(tensor: Tensor) -> LazyTensor:
        """`tensor` itself, which is there already."""
        return LazyTensor(lambda: read_whole(tensor), (), tuple(tensor.shape), tensor.dtype)

    @staticmethod
    def made(function: Callable[..., Tensor], *parts: LazyTensor) -> LazyTensor:
        """What `function` will make of several."""
        result = function(*(torch.empty(part.shape, dtype=part.dtype, device="meta") for part in parts))
        return LazyTensor(function, parts, tuple(result.shape), result.dtype)

    def compute(self) -> Tensor:
        """Compute its values: every part once, however many others read it, and kept until the last of them has."""
        order = self._order()
        readers = Counter(part for one in order for part in set(one.parts))
        values: dict[LazyTensor, Tensor] = {}
        for one in order:
            values[one] = one.function(*(values[part] for part in one.parts))
            for part in set(one.parts):
                readers[part] -= 1
                if not readers[part]:
                    del values[part]
        return values[self]

    def _order(self) -> list[LazyTensor]:
        """It and all that it is made of, parts first."""
        order: dict[LazyTensor, None] = {}
        waiting = [self]
        while waiting:
            missing = [part for part in waiting[-1].parts if part not in order]
            if missing:
                waiting += missing
            else:
                order[waiting.pop()] = None
        return list(order)

    def then(self, function: Callable[[Tensor], Tensor]) -> LazyTensor:
        """What `function` will make of it."""
        return LazyTensor.made(function, self)

    def answer(self, question: Callable[[Tensor], T]) -> T:
        """What `question` says of its values, of which no more is learnt than that."""
        answers = _NOTED.get()
        with recording_queries(None):
            answer = question(self.compute())
        if answers is not None:
            answers.add(lambda: question(self.compute()), answer)
        return answer

    def numel(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.compute().detach().contiguous().numpy(), dtype)


class Compute(nn.Module):
    """A deferred tensor as a module of a graph, called where the tensor is read."""

    def __init__(self, deferred: LazyTensor):
        super().__init__()
        self.deferred = deferred

    def forward(self) -> Tensor:
        return self.deferred.compute()
