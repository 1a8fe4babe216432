"""Where forward turns a dynamic size into a number."""

from __future__ import annotations

import contextlib
import functools
import linecache
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from converter.compat.patches import NUMBERS

OURS = str(Path(__file__).parents[1])


@contextlib.contextmanager
def noting_numbers() -> Iterator[list[str]]:
    """Give a list that every line outside torch joins which turns a size of torch.export into a number or a branch."""
    lines: list[str] = []

    def noting(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
        @functools.wraps(original)
        def convert(size: Any) -> Any:
            code, line = sys._getframe(1).f_code, sys._getframe(1).f_lineno
            if "/torch/" not in code.co_filename and not code.co_filename.startswith((OURS, "<")):
                lines.append(f"{code.co_filename}:{line}: {linecache.getline(code.co_filename, line).strip()}")
            return original(size)

        return convert

    with contextlib.ExitStack() as applied:
        for patch in NUMBERS:
            applied.enter_context(patch.applied(noting))
        yield lines
