"""Signals that ask the command to end: it ends in order, once, and its exit status says which it was.

SIGINT, SIGTERM and SIGHUP are raised as an exception wherever the program is, so that what is half done is undone on
the way out. One that library or model code swallowed is raised again at the next step of the conversion.
"""

import os
import signal
import time
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_IMPATIENT = 1.0  # seconds after which a second signal is no echo of the first
_received: list[tuple[signal.Signals, float]] = []


class Interrupted(KeyboardInterrupt):
    """The process was asked to end.

    Attributes:
        exit_status: 128 and the signal's number, as shells have it.
    """

    def __init__(self, number: int):
        super().__init__()
        self.signal = signal.Signals(number)
        self.exit_status = 128 + number


def install_signal_handlers() -> None:
    """Let the signals raise `Interrupted`, but for those that whoever started the process has ignored (nohup)."""
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _on_signal)


def raise_if_interrupted() -> None:
    """Raises Interrupted if a signal came, and what it raised got lost."""
    if _received:
        raise Interrupted(_received[0][0])


def _on_signal(number: int, frame: FrameType | None) -> None:
    now = time.monotonic()
    if _received:
        if now - _received[0][1] > _IMPATIENT:  # asked again: at once, and the next run sweeps
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        return
    _received.append((signal.Signals(number), now))
    raise Interrupted(number)
