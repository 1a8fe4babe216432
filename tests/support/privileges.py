"""Do without root's right to read and write everything, so that tests of permissions work as root and as a user."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

_VERSION, _OVERRIDE, _READ_SEARCH = 0x20080522, 1, 2  # linux/capability.h


@contextmanager
def as_a_user() -> Iterator[None]:
    """Obey the permissions of files in this thread; processes that root starts meanwhile do not."""
    had = (ctypes.c_uint32 * 6)()
    _call("capget", had)
    fewer = (ctypes.c_uint32 * 6)(*had)
    fewer[0] &= ~(1 << _OVERRIDE | 1 << _READ_SEARCH)
    _call("capset", fewer)
    try:
        yield
    finally:
        _call("capset", had)


def _call(name: str, sets: ctypes.Array) -> None:
    header = (ctypes.c_uint32 * 2)(_VERSION, 0)
    if getattr(ctypes.CDLL(None, use_errno=True), name)(header, sets):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
