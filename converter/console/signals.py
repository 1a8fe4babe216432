"""End the command in order on a signal, once, with an exit status that names the signal.

SIGINT, SIGTERM and SIGHUP raise an exception wherever the program is, so that unfinished work is undone on the way out.
If library or model code swallows it, it is raised again at the next step of the conversion.
"""

import contextlib
import os
import signal
import time
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
IMPATIENT = 1.0  # seconds after which a second signal is not an echo of the first
_notice: list[int] = []  # descriptors to write to when a signal is handled
_received: list[tuple[signal.Signals, float]] = []


class Interrupted(KeyboardInterrupt):
    """The process was asked to end.

    Attributes:
        exit_status: 128 plus the signal's number, as in shells.
    """

    def __init__(self, number: int):
        super().__init__()
        self.signal = signal.Signals(number)
        self.exit_status = 128 + number


def install_signal_handlers() -> None:
    """Let the signals raise `Interrupted`, except those that the parent process had ignored (nohup)."""
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _on_signal)


def notice_in(descriptor: int) -> None:
    """Write to a pipe once a signal is handled, so that its reader sees that the interpreter runs."""
    _notice.append(descriptor)


def ignore_echoes() -> None:
    """Keep the exit status once a signal has been handled: a wrapper may pass the same one on after that."""
    if _received:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # which Python keeps at its end, unlike handlers


def raise_if_interrupted() -> None:
    """Raise Interrupted if a signal came and its exception was swallowed."""
    if _received:
        raise Interrupted(_received[0][0])


def _on_signal(number: int, frame: FrameType | None) -> None:
    now = time.monotonic()
    while _notice:
        with contextlib.suppress(OSError):
            os.write(_notice.pop(), b"!")
    if _received:
        if now - _received[0][1] > IMPATIENT:  # second request: end at once; the next run sweeps
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        return
    _received.append((signal.Signals(number), now))
    raise Interrupted(number)
