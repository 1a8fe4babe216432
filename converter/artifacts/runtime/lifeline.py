"""Bind a process to the life of the one that started it, by a pipe whose other end only that process holds."""

import fcntl
import os
import select
import signal
import threading

_SET_SIGNAL = 10  # F_SETSIG of linux/fcntl.h


def end_with_parent(pipe: int, *, group: bool = False) -> None:
    """Have this process, or its whole group, killed once nobody can write to the pipe any more.

    On Linux the kernel does it, even if the process holds the interpreter; elsewhere a thread waits.
    """
    owner = -os.getpgid(0) if group else os.getpid()
    try:
        fcntl.fcntl(pipe, fcntl.F_SETOWN, owner)
        fcntl.fcntl(pipe, _SET_SIGNAL, signal.SIGKILL)
        fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)
    except OSError:  # not Linux
        threading.Thread(target=_wait, args=(pipe, owner), daemon=True).start()
    else:
        _wait(pipe, owner, seconds=0)  # it may have happened before


def _wait(pipe: int, owner: int, seconds: float | None = None) -> None:
    watched = select.poll()
    watched.register(pipe, 0)  # only the hang-up
    if watched.poll(seconds):
        os.killpg(-owner, signal.SIGKILL) if owner < 0 else os.kill(owner, signal.SIGKILL)
