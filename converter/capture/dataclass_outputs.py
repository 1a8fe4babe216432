"""Dataclasses that forward returns, as dictionaries: torch.export takes dataclasses only if they are registered."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from typing import Any

from torch import nn
from torch.utils._pytree import tree_leaves, tree_map


def return_dicts_for_dataclasses(module: nn.Module, result: Any) -> None:
    """Make this instance return dictionaries for dataclasses, if `result`, which it returned, has any."""
    if not any(_is_dataclass(leaf) for leaf in tree_leaves(result)):
        return
    forward = module.forward

    @functools.wraps(forward)
    def plain(*args: Any, **kwargs: Any) -> Any:
        return _plain(forward(*args, **kwargs))

    plain.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    module.forward = plain


def _is_dataclass(leaf: Any) -> bool:
    return dataclasses.is_dataclass(leaf) and not isinstance(leaf, type)


def _plain(result: Any) -> Any:
    def fields(leaf: Any) -> Any:
        if not _is_dataclass(leaf):
            return leaf
        return {field.name: _plain(getattr(leaf, field.name)) for field in dataclasses.fields(leaf)}

    return tree_map(fields, result)
