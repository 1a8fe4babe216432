"""Where forward turns a dynamic size into a number."""

from __future__ import annotations

import contextlib
import functools
import linecache
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

OURS = str(Path(__file__).parents[1])
CONVERSIONS = (
    (torch.SymInt, "__int__"),
    (torch.SymInt, "__index__"),
    (torch.SymBool, "__bool__"),
    (torch.SymFloat, "__int__"),
)


@contextlib.contextmanager
def noting_numbers() -> Iterator[list[str]]:
    """Give a list that every line outside torch joins which turns a size of torch.export into a number or a branch."""
    lines: list[str] = []
    originals = [(kind, name, getattr(kind, name)) for kind, name in CONVERSIONS]

    def noting(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
        @functools.wraps(original)
        def convert(size: Any) -> Any:
            code, line = sys._getframe(1).f_code, sys._getframe(1).f_lineno
            if "/torch/" not in code.co_filename and not code.co_filename.startswith((OURS, "<")):
                lines.append(f"{code.co_filename}:{line}: {linecache.getline(code.co_filename, line).strip()}")
            return original(size)

        return convert

    for kind, name, original in originals:
        setattr(kind, name, noting(original))
    try:
        yield lines
    finally:
        for kind, name, original in originals:
            setattr(kind, name, original)
