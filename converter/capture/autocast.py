"""Autocast in forward, computed in float32: a conversion keeps the precision of the weights."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from converter.errors import Note


@contextlib.contextmanager
def without_autocast() -> Iterator[list[torch.autocast]]:
    """Switch off every autocast that is entered, and give a list that those which were on join."""
    enter, entered = torch.autocast.__enter__, []

    def disabled(region: torch.autocast) -> Any:
        if region._enabled:
            entered.append(region)
        region._enabled = False
        return enter(region)

    torch.autocast.__enter__ = disabled  # type: ignore[method-assign]
    try:
        yield entered
    finally:
        torch.autocast.__enter__ = enter  # type: ignore[method-assign]
        for region in entered:  # one that decorates a function is entered again
            region._enabled = True


def compute_in_float32(module: nn.Module, run: Callable[[], Any]) -> tuple[Any, list[Note]]:
    """Return the result of `run`, and a note if it used autocast; `module` computes in float32 from then on."""
    with without_autocast() as entered:
        result = run()
    if not entered:
        return result, []
    forward = module.forward

    @functools.wraps(forward)
    def plain(*args: Any, **kwargs: Any) -> Any:
        with without_autocast():
            return forward(*args, **kwargs)

    plain.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    module.forward = plain
    kinds = ", ".join(dict.fromkeys(str(region.fast_dtype).removeprefix("torch.") for region in entered))
    return result, [Note(f"Forward uses autocast to {kinds}; it is computed in float32.", code="PTC2509")]
