"""Giving memory back early: layers and variables hang together in cycles, which wait for the collector."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def swept() -> Iterator[Callable[[], None]]:
    """What is made within and no longer needed is freed on leaving, and whenever the yielded function is called.

    Objects that are older are not looked at, so that a call takes about a millisecond.
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
    """Give what the C library holds free back to the system, where it can (glibc)."""
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if give_back is not None:
        give_back(0)


MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # glibc's parameters of mallopt
LARGEST_REUSED = 2**25  # the most that glibc takes for MMAP_THRESHOLD


def return_large_blocks() -> None:
    """Have glibc map blocks of a megabyte and more each for itself, so that freeing one gives it back at once.

    By itself it raises that size to the largest block that was freed, and keeps what lies below.
    """
    _set_thresholds(2**20, 2**20)


@contextmanager
def reusing_blocks() -> Iterator[None]:
    """Within, what is freed is kept for the next block, and given back on leaving: for running networks, whose layers
    would spend a third of their time on memory that is mapped anew for each."""
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
