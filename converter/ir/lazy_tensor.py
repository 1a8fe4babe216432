"""Tensors that are computed when they are read, so that rewritten weights take no memory of their own.

`recording_queries` records what rewrites and mappings learn about values. A plan is also right for other weights of
the same shapes if every recorded question has the same answer there.
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
    """The questions asked about tensors' values, and their answers."""

    _asked: list[tuple[Callable[[], Any], Any]] = field(default_factory=list)

    def add(self, question: Callable[[], Any], answer: Any) -> None:
        self._asked.append((question, answer))

    def ask_again(self) -> Iterator[Callable[[], Any]]:
        """Yield the questions, which nothing records meanwhile."""
        with recording_queries(None):
            for question, _ in self._asked:
                yield question

    def hold(self) -> bool:
        """Return whether the tensors' current values give the same answers."""
        with recording_queries(None):
            return all(question() == answer for question, answer in self._asked)


_NOTED: ContextVar[ValueQueries | None] = ContextVar("noted", default=None)


@contextmanager
def recording_queries(answers: ValueQueries | None) -> Iterator[None]:
    """Record into `answers` every question asked inside, and every tensor read whole; None records nothing."""
    token = _NOTED.set(answers)
    try:
        yield
    finally:
        _NOTED.reset(token)


def read_whole(tensor: Tensor) -> Tensor:
    """Return `tensor`, and record that any of its values may matter."""
    answers = _NOTED.get()
    if answers is not None:
        answers.add(lambda: digest(tensor), digest(tensor))
    return tensor


def digest(tensor: Tensor) -> bytes:
    """Return the SHA-256 of a tensor's values."""
    held = tensor.detach().contiguous()
    return hashlib.sha256(held.reshape(-1).view(torch.uint8).numpy().tobytes()).digest()


@dataclass(frozen=True, eq=False)
class LazyTensor:
    """A tensor of known shape and type that is recomputed on each read.

    Attributes:
        function: computes it from the values of `parts`; needs only the weights that it reads, and returns the same at
            each call.
    """

    function: Callable[..., Tensor]
    parts: tuple[LazyTensor, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype

    @staticmethod
    def of(tensor: Tensor) -> LazyTensor:
        """Wrap a tensor that already exists."""
        return LazyTensor(lambda: read_whole(tensor), (), tuple(tensor.shape), tensor.dtype)

    @staticmethod
    def combine(function: Callable[..., Tensor], *parts: LazyTensor) -> LazyTensor:
        """Return the lazy result of `function` on several lazy tensors."""
        result = function(*(torch.empty(part.shape, dtype=part.dtype, device="meta") for part in parts))
        return LazyTensor(function, parts, tuple(result.shape), result.dtype)

    def compute(self) -> Tensor:
        """Compute the values: each part once, however many others read it, and kept until its last reader is done."""
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
        """List this tensor and all its parts, parts first."""
        order: dict[LazyTensor, None] = {}
        waiting = [self]
        while waiting:
            missing = [part for part in waiting[-1].parts if part not in order]
            if missing:
                waiting += missing
            else:
                order[waiting.pop()] = None
        return list(order)

    def map(self, function: Callable[[Tensor], Tensor]) -> LazyTensor:
        """Return the lazy result of `function` on this tensor."""
        return LazyTensor.combine(function, self)

    def query(self, question: Callable[[Tensor], T]) -> T:
        """Return `question` of the values, and record only that answer."""
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
    """A lazy tensor as a module of a graph, called where the tensor is read."""

    def __init__(self, deferred: LazyTensor):
        super().__init__()
        self.deferred = deferred

    def forward(self) -> Tensor:
        return self.deferred.compute()
