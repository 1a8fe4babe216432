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
    """Of one model.

    Attributes:
        reason: what is in the way, the formats named; "" if it can be converted to all of them.
        checks: of each format, as `FormatCheck`; none where the model cannot be read or captured.
    """

    before: ClassVar[bool] = False  # as of a journal's entry
    log: ClassVar[str] = ""

    name: str
    path: str
    state: CheckState
    exit_status: int
    reason: str
    checks: tuple[Mapping[str, Any], ...]
    seconds: float


@dataclass(frozen=True)
class CheckResults(Report):
    """Of all models, in the order of the work list.

    Attributes:
        left: names of those that were not begun.
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
    """What became of all models of a batch.

    Attributes:
        entries: one for each model that ended, in this batch or before it, in the order of the work list.
        elsewhere: names of those that another batch has under way.
        left: names of those that were not begun, or not ended, as the batch was stopped.
        seconds: of this batch.
    """

    entries: tuple[Entry, ...]
    elsewhere: tuple[str, ...]
    left: tuple[str, ...]
    seconds: float

    @property
    def counts(self) -> dict[str, int]:
        """How many models ended in each state."""
        found = Counter(entry.state for entry in self.entries)
        return {state: found[state] for state in STATES}

    @property
    def exit_status(self) -> int:  # type: ignore[override]
        return worst_status(entry.exit_status for entry in self.entries)

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"counts": self.counts, "exit_status": self.exit_status}
