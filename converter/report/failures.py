"""The report file, and failures as data."""

import contextlib
import dataclasses
import errno
import json
import math
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import TextIOWrapper
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from ..errors import (
    ConversionError,
    MemoryLimitError,
    OutputError,
    UnsupportedOperatorsError,
    is_out_of_memory,
    wrap_unexpected,
)

SCHEMA = 1
REPORTS = "reports"  # folder of a batch's output, with a report for each model


DISAGREES = 3  # exit statuses


WORST_FIRST = (DISAGREES, 4, 1, 2, 0)


def worst_status(statuses: Iterable[int]) -> int:
    """Return the most severe of the exit statuses."""
    met = {0, *statuses}
    return next(status for status in WORST_FIRST if status in met)


class Report:
    """A report that is written as JSON with a schema number.

    Attributes:
        exit_status: the exit status of a command with this result.
    """

    exit_status: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; a figure that is not finite is None, a path is a string."""
        return {"schema": SCHEMA, **_jsonable(self)}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)


@dataclass(frozen=True)
class Failure(Report):
    """A model that could not be converted, compared or read; `operators` are those without a mapping."""

    source: str
    error: str
    code: str
    what: str
    where: str | None
    fix: str | None
    exit_status: int
    operators: tuple["UnsupportedOperator", ...] = ()


def failure_of(error: BaseException, source: str) -> Failure:
    """Return an error as a failure; if not a `ConversionError`, it is a bug of ours or an exit by the model's code."""
    kind, cause = type(error).__name__, error.__cause__
    if isinstance(error, SystemExit):
        error = ConversionError(
            f"The model's code ended the program: sys.exit({error.code!r}).",
            code="PTC9005",
            fix="-v shows the traceback.",
        )
    if not isinstance(error, ConversionError):
        error = wrap_unexpected(error)
    elif cause is not None and is_out_of_memory(cause):  # mistaken for something else where it was caught
        error = wrap_unexpected(cause, error.where)
    if isinstance(error, MemoryLimitError):
        kind = type(error).__name__
    rows = error.operators if isinstance(error, UnsupportedOperatorsError) else []
    operators = tuple(UnsupportedOperator(*row) for row in rows)
    return Failure(source, kind, error.code, error.what, error.where, error.fix, error.exit_status, operators)


def open_own(file: Path) -> TextIOWrapper:
    """Open a file of this program's to write it anew, each line at once; raise OSError if its name is a link."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    found = os.fstat(descriptor)
    if not os.path.samestat(found, Path(os.devnull).stat()):
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            os.close(descriptor)
            raise OSError(errno.EMLINK, "it has another name too, or is not a file", str(file))
        os.ftruncate(descriptor, 0)
    return os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace", buffering=1)


def write_report(file: Path, content: Mapping[str, Any]) -> None:
    """Write all of the report or nothing, or raise OutputError."""
    write_text(file, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_text(file: Path, text: str) -> None:
    """Write all of a report's text or nothing, or raise OutputError."""
    temporary = file.with_name(f".{file.name}.new")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open_own(temporary) as opened:
            opened.write(text)
        temporary.replace(file)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise OutputError(
            f"The report cannot be written: {error.strerror}.",
            code="PTC6035",
            where=str(file),
            fix="Give another path, or free some space.",
        ) from error


@dataclass(frozen=True)
class UnsupportedOperator:
    """An operator without a mapping; fields as in `errors.UnsupportedOperatorsError.operators`."""

    operator: str
    count: int
    modules: str
    source_line: str


def _jsonable(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _jsonable(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, PathLike):
        return fspath(value)
    if hasattr(value, "item"):  # a number of numpy's
        return _jsonable(value.item())
    return value
