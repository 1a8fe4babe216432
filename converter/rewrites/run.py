"""Apply a list of rewrites to a program."""

from __future__ import annotations

from collections.abc import Sequence

from converter.ir.program import Program
from converter.rewrites.base import Change, Rewrite


def apply_rewrites(program: Program, rewrites: Sequence[Rewrite]) -> tuple[Program, list[Change]]:
    copied = program.copy()
    changes: list[Change] = []
    for apply in rewrites:
        found = apply(copied)
        if found:
            copied.cleanup()
        changes += found
    return copied, changes
