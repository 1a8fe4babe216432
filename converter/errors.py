"""Every error that a user can cause or meet, with one base class, caught once, in `cli.py`."""

import errno
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

NoteCode = Literal[
    "PTC1501", "PTC1502", "PTC1503", "PTC1504", "PTC1505", "PTC1506", "PTC1507", "PTC1508", "PTC1509",
    "PTC1510", "PTC1511", "PTC1512", "PTC1513", "PTC1514", "PTC1515", "PTC1516", "PTC1517", "PTC1518",
    "PTC2501", "PTC2502", "PTC2503", "PTC2504", "PTC2505", "PTC2506", "PTC2507", "PTC2508", "PTC2509",
    "PTC2510", "PTC2511", "PTC2512", "PTC2513", "PTC2514", "PTC2515", "PTC3501", "PTC3502", "PTC3503",
    "PTC3504", "PTC3505", "PTC3506", "PTC3507", "PTC3508", "PTC3509", "PTC3510", "PTC3511", "PTC4501", "PTC4502",
    "PTC4503", "PTC5501", "PTC5502", "PTC5503", "PTC5504", "PTC5505", "PTC5506", "PTC5507", "PTC5508",
    "PTC5509", "PTC5540", "PTC6501", "PTC6502", "PTC6503", "PTC6504", "PTC6505", "PTC6506", "PTC6507", "PTC6508",
    "PTC6509", "PTC6510", "PTC6511", "PTC6512", "PTC6520",
]  # fmt: skip


@dataclass(frozen=True)
class Note:
    """A sentence that a user should read, which `--silence` leaves out by its code."""

    text: str
    code: NoteCode

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", printable(self.text))

    def __str__(self) -> str:
        return self.text


RUNTIMES = frozenset({"torch", "tensorflow", "keras", "onnx", "onnxscript", "onnxruntime"})
LONGEST_TEXT, LONGEST_WORD = 20_000, 1000  # characters of a message, and of what has no space in it
UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})  # controls, bidirectional overrides, zero widths, surrogates


def printable(text: str) -> str:
    """Return a text with names of strangers in it as it may be shown: nothing a terminal acts on, and not too long."""
    text = escaped(text)
    text = re.sub(rf"\S{{{LONGEST_WORD},}}", lambda word: _cut(word[0], LONGEST_WORD), text)
    return _cut(text, LONGEST_TEXT)


def escaped(text: str) -> str:
    """Return a text with an escape in the place of every character that a terminal would act on or not show."""
    if text.isprintable():  # without blanks but the common one
        return text
    return "".join(
        letter.encode("unicode_escape").decode("ascii")
        if letter not in "\n\t" and unicodedata.category(letter) in UNPRINTABLE
        else letter
        for letter in text
    )


def _cut(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    return f"{text[: longest * 2 // 3]}... [{len(text)} characters] ...{text[-longest // 10 :]}"


class ConversionError(Exception):
    """Says what is wrong, where, and how to fix it.

    Attributes:
        what: one sentence.
        code: `PTC` and four digits, the name of its page in docs/errors.
        where: the file, module path and source line, or option, if any.
        fix: what the user can do, if anything.
        exit_status: the exit status of `convert`.
    """

    exit_status = 1

    def __init__(self, what: str, *, code: str, where: str | None = None, fix: str | None = None):
        what = printable(what)
        super().__init__(what)
        self.what, self.code = what, code
        self.where, self.fix = (text if text is None else printable(text) for text in (where, fix))

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how to copy the error to another process, which keyword arguments alone would prevent."""
        return type(self).__new__, (type(self), *self.args), vars(self)

    def __str__(self) -> str:
        lines = [f"{self.code}: {self.what}"]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)


class UsageError(ConversionError):
    """The call itself is wrong: an option, a shape, a factory that does not exist."""

    exit_status = 2


class CheckpointError(ConversionError):
    """The checkpoint cannot be read, or needs something that is not trusted."""

    exit_status = 4


class CaptureError(ConversionError):
    """The model ran or could be traced only in part."""


class UnsupportedOperatorsError(ConversionError):
    """Operators without a mapping, all of them at once.

    Attributes:
        operators: (operator, count, module paths, source line) of each.
        nodes: their nodes in the program's graph.
    """

    def __init__(
        self,
        what: str,
        operators: Sequence[tuple[str, int, str, str]],
        nodes: Sequence[Any] = (),
        *,
        code: str,
        fix: str | None = None,
    ):
        super().__init__(what, code=code, fix=fix)
        self.operators = list(operators)
        self.nodes = list(nodes)


class OutputError(ConversionError):
    """The artifact cannot be written: taken path, full disk, no permission."""


class MemoryLimitError(ConversionError):
    """The system, or a limit on the process, gave no more memory."""


_NO_MEMORY = (
    "allocate memory", "bad_alloc", "bad allocation", "out of memory", "OOM when allocating",  # of libraries
    "can't start new thread", "pthread_create", "thread creation failed",  # each thread needs memory for its stack
)  # fmt: skip
_NOT_MAPPED = "failed to map segment from shared object"  # of the loader, which appends any other reason


def is_out_of_memory(error: BaseException | None) -> bool:
    """Tell whether an error, or one that it was raised from, means that memory ran out, also if a library raised it."""
    while error is not None:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
            return True
        if isinstance(error, Exception) and any(words.lower() in str(error).lower() for words in _NO_MEMORY):
            return True
        if isinstance(error, ImportError) and str(error).endswith(_NOT_MAPPED):
            return True
        error = error.__cause__ or error.__context__
    return False


def wrap_unexpected(error: BaseException, where: str | None = None) -> ConversionError:
    """Return the error to raise from an unforeseen `error`: a refusal of the system, or a bug of the converter."""
    if is_out_of_memory(error):
        return MemoryLimitError(
            "Out of memory.",
            code="PTC9001",
            where=where,
            fix="End other programs or raise the limit (ulimit -v, the container's); convert to one format "
            "at a time, with a smaller --input-shape.",
        )
    if "BFloat16" in str(error):
        return ConversionError(
            "The model computes in bfloat16, for example in torch.autocast inside forward.",
            code="PTC9002",
            where=where,
            fix="Remove autocast from forward, or pass it enabled=False: artifacts compute in float32.",
        )
    if isinstance(error, OSError) and error.errno is not None:
        return ConversionError(
            f"The system reported an error: {error.strerror}.",
            code="PTC9003",
            where=str(error.filename) if error.filename is not None else where,
            fix="-v shows the traceback. Temporary files are in the folder that TMPDIR names.",
        )
    if isinstance(error, ImportError) and (name := (error.name or "").partition(".")[0]) in RUNTIMES:
        return ConversionError(
            f"{name} cannot be imported: {error}",
            code="PTC9006",
            where=where,
            fix=f"Run pip install {name}. `pt-convert doctor` shows what works here.",
        )
    lines = [line for line in str(error).splitlines() if line.strip()]
    return ConversionError(
        f"{type(error).__name__}: {lines[0].strip() if lines else 'without a message'}",
        code="PTC9004",
        where=where,
        fix="This is a bug in pt-convert. Please report it with the model; -v shows the traceback.",
    )
