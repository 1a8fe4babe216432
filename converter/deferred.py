"""Tensors that are computed where they are read, so that what rewrites make of weights takes no memory of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Deferred:
    """A tensor of known shape and type that `compute` gives, each time anew.

    Attributes:
        compute: needs no more than the weights that it reads, and gives the same at each call.
    """

    compute: Callable[[], Tensor]
    shape: tuple[int, ...]
    dtype: torch.dtype

    @staticmethod
    def of(tensor: Tensor) -> Deferred:
        """`tensor` itself, which is there already."""
        return Deferred(lambda: tensor, tuple(tensor.shape), tensor.dtype)

    def then(self, function: Callable[[Tensor], Tensor]) -> Deferred:
        """What `function` will make of it."""
        result = function(torch.empty(self.shape, dtype=self.dtype, device="meta"))
        return Deferred(lambda: function(self.compute()), tuple(result.shape), result.dtype)

    def numel(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.compute().detach().contiguous().numpy(), dtype)


class Compute(nn.Module):
    """A deferred tensor as a module of a graph, called where the tensor is read."""

    def __init__(self, deferred: Deferred):
        super().__init__()
        self.deferred = deferred

    def forward(self) -> Tensor:
        return self.deferred.compute()
