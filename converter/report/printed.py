"""Escape and cut what libraries and models print, before it reaches a log or a terminal.

Run as a script, `python -P printed.py`, it does so from standard input to standard output until nobody can write to
its input any more: in a process of its own, because what prints may hold the interpreter.
"""

from __future__ import annotations

import codecs
import os
import signal
import sys
from pathlib import Path

_CHUNK = 1 << 16
_LONGEST_LINE, _LARGEST = 20_000, 1 << 26  # characters


def escape_stream(source: int, target: int) -> None:
    """Copy a descriptor's text to another: what a terminal would act on escaped, long lines cut, the end left out."""
    from converter.errors import escaped

    decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
    column, left = 0, _LARGEST
    while chunk := os.read(source, _CHUNK):
        if left <= 0:
            continue  # whoever prints must not wait
        shown = []
        for part in decoder.decode(chunk).splitlines(keepends=True):
            kept = escaped(part)[: max(0, _LONGEST_LINE - column)]
            column += len(part)
            if column > _LONGEST_LINE and kept:
                kept += "... [cut]"
            if part.endswith("\n"):
                kept, column = kept.removesuffix("\n") + "\n", 0
            shown.append(kept)
        text = "".join(shown)
        left -= len(text)
        if left <= 0:
            text = "\n[The rest of what is printed is left out.]\n"
        try:
            _write(target, text.encode("utf-8", "backslashreplace"))
        except OSError:  # the disk is full, or the reader has gone
            left = 0


def escape_file(file: Path) -> None:
    """Replace a log by what may be shown of it."""
    from converter.report.failures import open_own

    temporary = file.with_name(f".{file.name}.new")
    with file.open("rb") as source, open_own(temporary) as target:
        escape_stream(source.fileno(), target.fileno())
    temporary.replace(file)


def _write(target: int, content: bytes) -> None:
    while content:
        content = content[os.write(target, content) :]


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # it ends with those who print
        signal.signal(number, signal.SIG_IGN)
    root = str(Path(__file__).resolve().parents[2])
    if root not in sys.path:  # not installed
        sys.path.append(root)
    escape_stream(0, 1)
