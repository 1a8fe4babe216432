"""Apply a list of rewrites to a program."""

from __future__ import annotations

from collections.abc import Sequence

from converter.ir.program import Program
from converter.rewrites.base import Change, Rewrite
from converter.rewrites.pipelines import EMITTED


def apply_rewrites(program: Program, rewrites: Sequence[Rewrite]) -> tuple[Program, list[Change]]:
    copied = program.copy()
    changes: list[Change] = []
    for i, apply in enumerate(rewrites):
        found = apply(copied)
        if found:
            copied.cleanup()
            if copied.debug:
                emitted = [operator for r in rewrites[: i + 1] for operator in EMITTED.get(r, ())]
                copied.verify(f"The rewrite `{apply.__name__}`", program, emitted)
        changes += found
    return copied, changes
