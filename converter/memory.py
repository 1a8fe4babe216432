"""Free memory early: layers and variables form reference cycles, which wait for the collector."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def swept() -> Iterator[Callable[[], None]]:
    """Free what is made within and no longer needed, on leaving and on each call of the yielded function.

    Older objects are not examined, so that a call takes about a millisecond.
    """
    ours = gc.get_freeze_count() == 0
    if ours:
        gc.collect(1)
        gc.freeze()
    try:
        yield lambda: _collect(ours)
    finally:
        _collect(ours)
        if ours:
            gc.unfreeze()
        trim()


def _collect(cheap: bool) -> None:
    gc.collect(2 if cheap else 1)


def trim() -> None:
    """Return the C library's free memory to the system, where it can (glibc)."""
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if give_back is not None:
        give_back(0)


MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # glibc's parameters of mallopt
LARGEST_REUSED = 2**25  # glibc's maximum for MMAP_THRESHOLD


def return_large_blocks() -> None:
    """Make glibc map each block of a megabyte and more separately, so that freeing one returns it at once.

    By default it raises that size to the largest block that was freed, and keeps smaller ones.
    """
    _set_thresholds(2**20, 2**20)


@contextmanager
def reusing_blocks() -> Iterator[None]:
    """Keep freed memory for the next block, and return it on leaving.

    For running networks: their layers would spend a third of their time on memory that is mapped anew for each.
    """
    _set_thresholds(LARGEST_REUSED, 2**31 - 1)
    try:
        yield
    finally:
        return_large_blocks()
        trim()


def _set_thresholds(mapped: int, trimmed: int) -> None:
    set_parameter = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_parameter is not None:
        set_parameter(MMAP_THRESHOLD, mapped)
        set_parameter(TRIM_THRESHOLD, trimmed)
