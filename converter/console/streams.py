"""Direct messages: a private standard error, a log file, and the descriptors that libraries print to."""

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.segment import Segment

from ..errors import OutputError, escaped
from ..report import printed

WIDTH_WITHOUT_TERMINAL = 120
_PATIENCE = 2.0  # seconds to show what libraries printed


class Screen(Console):
    """A console without markup that keeps working when its reader is gone or its disk is full.

    In a pipe, in a dumb terminal, or with NO_COLOR there are no control characters.

    Attributes:
        animated: output may be drawn over, as progress bars are: in a terminal, but not in CI.
    """

    def __init__(self, file: IO[str]):
        super().__init__(
            file=file,
            width=None if file.isatty() else WIDTH_WITHOUT_TERMINAL,
            highlight=False,
            markup=False,
            emoji=False,
            color_system=None if os.environ.get("NO_COLOR") else "auto",
        )
        self.animated = file.isatty() and not self.is_dumb_terminal and not os.environ.get("CI")

    def render(self, *arguments: Any, **options: Any) -> Iterator[Segment]:
        """Escape what a terminal would act on in all texts: they hold names from files of strangers."""
        for segment in super().render(*arguments, **options):
            yield segment if segment.control else segment._replace(text=escaped(segment.text))

    def on_broken_pipe(self) -> None:
        self.quiet = True

    def print(self, *objects: Any, **options: Any) -> None:
        try:
            super().print(*objects, **options)
        except OSError:
            self.quiet = True


class LogFile(io.TextIOBase):
    """A file to which messages are appended, each line with the time; stops when it cannot be written any more.

    Raises:
        OutputError: it cannot be opened.
    """

    def __init__(self, path: Path):
        self.path = path
        self.failed: OSError | None = None
        self._begins_line = True
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a", encoding="utf-8", errors="backslashreplace", buffering=1)
        except OSError as error:
            raise OutputError(
                f"The log cannot be written: {error.strerror}.",
                code="PTC6023",
                where=str(path),
                fix="Give another --log-file.",
            ) from error

    def fileno(self) -> int:
        """Return the descriptor for what libraries print, which appears between the messages, without times."""
        return self._file.fileno()

    def write(self, text: str) -> int:
        if self.failed is None:
            try:
                for line in text.splitlines(keepends=True):
                    if self._begins_line:
                        self._file.write(f"{datetime.now().isoformat(' ', 'milliseconds')}  ")
                    self._file.write(line)
                    self._begins_line = line.endswith("\n")
            except OSError as error:
                self.failed = error
        return len(text)

    def flush(self) -> None:
        if self.failed is None:
            try:
                self._file.flush()
            except OSError as error:
                self.failed = error

    def isatty(self) -> bool:
        return False


def own_stderr() -> IO[str]:
    """Return a separate copy of standard error, so that descriptor 2 can be closed to libraries."""
    try:
        if sys.stderr.fileno() == 2:
            return os.fdopen(os.dup(2), "w", encoding=sys.stderr.encoding, errors="backslashreplace", buffering=1)
    except (OSError, io.UnsupportedOperation):
        pass
    return sys.stderr


@contextmanager
def escaping(target: int) -> Iterator[int]:
    """Yield a descriptor to print to, from which a process copies to the target what a terminal or a log may show."""
    source, sink = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-P", printed.__file__], stdin=source, stdout=target, stderr=subprocess.DEVNULL
    ) as copying:
        os.close(source)
        try:
            yield sink
        finally:
            os.close(sink)
            try:
                copying.wait(_PATIENCE)
            except subprocess.TimeoutExpired:  # a process that the model started can still print
                copying.kill()


@contextmanager
def redirect_fd(number: int, target: int) -> Iterator[None]:
    """Redirect a file descriptor to another one within the context."""
    kept = os.dup(number)
    os.dup2(target, number)
    try:
        yield
    finally:
        os.dup2(kept, number)
        os.close(kept)
