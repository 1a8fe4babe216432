"""Parts of a dynamic size by `split(n)`, whose number depends on it: PyTorch's C++ makes a number of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor


class Parts(tuple[Tensor, ...]):
    """The parts of a tensor along a dynamic size: `n` elements each, but the last, which has what remains.

    The tuple itself is empty, and each part is made when it is read: reading the first restricts the size less than
    counting them. Reading all counts them, which restricts the size to those of as many parts.
    """

    whole: Tensor
    n: Any
    dim: int

    @staticmethod
    def of(whole: Tensor, n: Any, dim: int) -> Parts:
        parts = tuple.__new__(Parts, ())
        parts.whole, parts.n, parts.dim = whole, n, dim % whole.dim()
        return parts

    @property
    def size(self) -> Any:
        return self.whole.shape[self.dim]

    @property
    def count(self) -> Any:
        return (self.size + self.n - 1) // self.n

    def __len__(self) -> int:
        if not isinstance(self.n, torch.SymInt):
            return int(self.count)
        count = 1  # asked step by step, as a number of both sizes would fix them
        while count * self.n < self.size:
            count += 1
        return count

    def __iter__(self) -> Iterator[Tensor]:
        return iter([self._part(i, i == count - 1) for count in [len(self)] for i in range(count)])

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            ends = (index.start, index.stop)
            if index.step in (None, 1) and index.stop is not None and all(n is None or n >= 0 for n in ends):
                return tuple(self[i] for i in range(index.start or 0, index.stop) if i * self.n < self.size)
            return tuple(self)[index]
        if index == -1:
            start = (self.count - 1) * self.n
            return self.whole.narrow(self.dim, start, self.size - start)
        if index < 0:
            return self._part(self.count + index, False)
        if index * self.n >= self.size:
            raise IndexError("tuple index out of range")
        return self._part(index, (index + 1) * self.n > self.size)

    def __add__(self, others: Any) -> Any:
        return tuple(self) + tuple(others)

    def __radd__(self, others: Any) -> Any:
        return tuple(others) + tuple(self)

    def _part(self, index: Any, last: bool) -> Tensor:
        start = index * self.n
        return self.whole.narrow(self.dim, start, self.size - start if last else self.n)

    def stacked(self) -> Tensor | None:
        """Return the parts in a dimension of their own, before the one that is cut, if all are equally long."""
        if self.size % self.n != 0:
            return None
        return self.whole.unflatten(self.dim, (self.size // self.n, self.n))


def split(before: Any) -> Callable[..., Any]:
    """Return `Tensor.split` that keeps a dynamic size."""

    def split(self: Tensor, split_size: Any, dim: int = 0) -> Any:
        one = isinstance(split_size, int | torch.SymInt) and not isinstance(split_size, bool)
        dynamic = one and any(isinstance(n, torch.SymInt) for n in (split_size, self.shape[dim]))
        return Parts.of(self, split_size, dim) if dynamic else before(self, split_size, dim)

    return split


def joined(before: Any) -> Callable[..., Any]:
    """Return a `torch.cat` that also joins parts whose number is unknown."""

    def cat(tensors: Any, dim: int = 0, **named: Any) -> Any:
        if not isinstance(tensors, Parts):
            return before(tensors, dim, **named)
        to = dim % tensors.whole.dim()
        if to == tensors.dim:
            return tensors.whole.clone()
        stacked = tensors.stacked()
        return before(tuple(tensors), dim) if stacked is None else stacked.movedim(tensors.dim, to).flatten(to, to + 1)

    return cat


def stacked(before: Any) -> Callable[..., Any]:
    """Return `torch.stack` that does the same."""

    def stack(tensors: Any, dim: int = 0, **named: Any) -> Any:
        if not isinstance(tensors, Parts):
            return before(tensors, dim, **named)
        parts = tensors.stacked()
        if parts is None:
            return before(tuple(tensors), dim)
        return parts.movedim(tensors.dim, dim % parts.dim()).clone()

    return stack
