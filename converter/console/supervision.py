"""Leave a small parent process behind that can end the command, whatever the command does.

A model that holds the interpreter (`sum(range(10**13))`) keeps Python's own signal handlers from running. The parent
only waits: it passes the first signal on, ends the command on a second one, and ends what the command leaves behind.
"""

import contextlib
import ctypes
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Set

from converter.console import signals

_PDEATHSIG, _CHILD_SUBREAPER = 1, 36  # linux/prctl.h
_PATIENCE = 5.0  # seconds in which a command that got two signals at once must have noticed one
_GRACE = 1.0  # seconds in which what the command leaves behind may end by itself


def supervise() -> None:
    """Return in a new process, while this one waits for it and ends what it leaves behind.

    Return in this process where the system cannot do that (it is not Linux) and where threads run already.
    """
    if not sys.platform.startswith("linux") or threading.active_count() > 1:
        return
    prctl = ctypes.CDLL(None).prctl
    watched = {number for number in signals.SIGNALS if signal.getsignal(number) != signal.SIG_IGN}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*watched, signal.SIGCHLD})
    noticed, notice = os.pipe()
    parent, command = os.getpid(), os.fork()
    if command == 0:
        os.close(noticed)
        prctl(_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it has ended already
            os._exit(1)
        signals.notice_in(notice)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    os.close(notice)
    prctl(_CHILD_SUBREAPER, 1)  # what the command starts becomes this process's child once its own parent has gone
    status = _wait(command, watched, noticed)
    _end_children()
    _end_as(status)


def _wait(command: int, watched: Set[signal.Signals], noticed: int) -> int:
    """Return the exit status of the command, as `subprocess` has it, or that of the signal that ended it from here."""
    received: list[tuple[int, float]] = []
    while (status := _reap(command)) is None:
        # Two signals at once are an echo (a terminal and a wrapper both send one) if the command has noticed one.
        echoed = len(received) > 1 and not select.select([noticed], [], [], 0)[0]
        left = received[-1][1] + _PATIENCE - time.monotonic() if echoed else 60.0
        found = signal.sigtimedwait({*watched, signal.SIGCHLD}, max(0.0, left))
        if found is not None and found.si_signo in watched:  # after a stop, it may be no signal at all
            received.append((found.si_signo, time.monotonic()))
            if len(received) == 1:
                os.kill(command, found.si_signo)
        impatient = len(received) > 1 and received[-1][1] - received[0][1] > signals.IMPATIENT
        if impatient or (echoed and left <= 0):
            os.kill(command, signal.SIGKILL)
            os.waitpid(command, 0)
            asked = signal.Signals(received[-1][0])
            said = f"Ended at once by {asked.name}; the next conversion into that folder removes unfinished output.\n"
            with contextlib.suppress(OSError):
                os.write(2, said.encode())
            return -asked
    return status


def _reap(command: int) -> int | None:
    """Reap all children that have ended, and return the exit status of the command if it is one of them."""
    status = None
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == command:
                status = os.waitstatus_to_exitcode(ended[1])
    return status


def _end_children() -> None:
    """End everything that the command started and left behind, grandchildren too: they become children one by one."""
    begun = time.monotonic()
    with contextlib.suppress(ChildProcessError):
        while (lasted := time.monotonic() - begun) < 2 * _GRACE:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
            if lasted > _GRACE:
                import psutil  # rarely needed

                for child in psutil.Process().children():
                    with contextlib.suppress(psutil.Error):  # it has ended, or runs as another user
                        child.kill()
            time.sleep(0.02)


def _end_as(status: int) -> None:
    """End this process as the command has ended: with its exit status, or by the same signal."""
    if status < 0:
        with contextlib.suppress(OSError):  # SIGKILL cannot be handled
            signal.signal(-status, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {-status})
        os.kill(os.getpid(), -status)
    os._exit(status if status >= 0 else 128 - status)  # signals do not end the first process of a container
