"""Results of a batch as plain data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ..report.failures import Report, worst_status
from .journal import Entry, State

CheckState = Literal["converts", "failed"]


@dataclass(frozen=True)
class CheckResult:
    """The check result of one model.

    Attributes:
        reason: what prevents conversion, by format; "" if all formats are possible.
        checks: one for each format, as `FormatCheck`; empty if the model cannot be read or captured.
        codes: of the errors.
    """

    already_done: ClassVar[bool] = False  # as in a journal's entry
    log: ClassVar[str] = ""

    name: str
    path: str
    state: CheckState
    exit_status: int
    reason: str
    checks: tuple[Mapping[str, Any], ...]
    seconds: float
    codes: tuple[str, ...] = ()


@dataclass(frozen=True)
class CheckResults(Report):
    """The check results of all models, in the order of the work list.

    Attributes:
        left: names of models that were not started.
    """

    entries: tuple[CheckResult, ...]
    left: tuple[str, ...]
    seconds: float

    @property
    def counts(self) -> dict[str, int]:
        found = Counter(entry.state for entry in self.entries)
        return {"converts": found["converts"], "failed": found["failed"]}

    @property
    def exit_status(self) -> int:  # type: ignore[override]
        return worst_status(entry.exit_status for entry in self.entries)

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"counts": self.counts, "exit_status": self.exit_status}


STATES: tuple[State, ...] = ("verified", "not verified", "disagrees", "failed")


@dataclass(frozen=True)
class BatchReport(Report):
    """The results of all models of a batch.

    Attributes:
        entries: one for each model that ended, in this batch or before it, in the order of the work list.
        elsewhere: names of models that another batch is converting.
        left: names of models that were not started, or not finished, when the batch stopped.
        seconds: duration of this batch.
    """

    entries: tuple[Entry, ...]
    elsewhere: tuple[str, ...]
    left: tuple[str, ...]
    seconds: float

    @property
    def counts(self) -> dict[str, int]:
        """Return how many models ended in each state."""
        found = Counter(entry.state for entry in self.entries)
        return {state: found[state] for state in STATES}

    @property
    def exit_status(self) -> int:  # type: ignore[override]
        return worst_status(entry.exit_status for entry in self.entries)

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"counts": self.counts, "exit_status": self.exit_status}
