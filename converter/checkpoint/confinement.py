"""Keep libraries that read an untrusted folder from opening any other file, any connection and any process."""

from __future__ import annotations

import contextlib
import os
import site
import sys
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

OUTWARD = frozenset(
    {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "ftplib.connect"}
    | {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.startfile"}
)
CODE = (".py", ".pyc", ".pyi", ".pth")
OF_THE_SYSTEM = ("/proc", "/sys", "/dev/null", "/dev/urandom", "/dev/shm", "/etc/mime.types", "/usr/share", "/usr/lib")

_roots: ContextVar[tuple[str, ...] | None] = ContextVar("roots", default=None)


@contextlib.contextmanager
def confined_to(folders: Sequence[Path]) -> Iterator[None]:
    """Raise PermissionError in this thread where Python opens a file outside `folders` and the installed packages."""
    _install()
    packages: list[str | Path] = [
        *folders,
        sys.prefix,
        sys.base_prefix,
        *site.getsitepackages(),
        site.getusersitepackages(),
    ]
    packages += [entry for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]
    token = _roots.set((*(str(Path(root).resolve()) for root in packages), *OF_THE_SYSTEM))
    try:
        yield
    finally:
        _roots.reset(token)


@cache
def _install() -> None:
    sys.addaudithook(_audit)  # for the rest of the process: it costs a look at `_roots` an event


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    roots = _roots.get()
    if roots is None:
        return
    if event in OUTWARD:
        raise PermissionError(f"{event} is not for a model's folder")
    if event != "open" or not isinstance(arguments[0], str | bytes | os.PathLike):
        return
    path = os.path.realpath(os.fsdecode(arguments[0]))
    if not path.endswith(CODE) and not any(path == root or path.startswith(root.rstrip("/") + "/") for root in roots):
        raise PermissionError(f"{path} is outside the model's folder")
