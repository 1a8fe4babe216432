"""The precision in which a plan is carried out. The proof runs in float64 the same steps that ship in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_FLOAT: ContextVar[str] = ContextVar("float", default="float32")


def dtype_name(dtype: torch.dtype) -> str:
    """Return Keras' name for a PyTorch type; float32 becomes the precision of this run."""
    name = str(dtype).removeprefix("torch.")
    return _FLOAT.get() if name == "float32" else name


@contextmanager
def float32_is(name: str) -> Iterator[None]:
    token = _FLOAT.set(name)
    try:
        yield
    finally:
        _FLOAT.reset(token)
