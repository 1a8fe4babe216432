"""Results of a batch as plain data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

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


class _Results(Report):
    """The results of all models: how many ended in each state, and the worst exit status."""

    states: ClassVar[tuple[str, ...]]
    entries: tuple[Any, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Return how many models ended in each state."""
        found = Counter(entry.state for entry in self.entries)
        return {state: found[state] for state in self.states}

    @property
    def exit_status(self) -> int:  # type: ignore[override]
        return worst_status(entry.exit_status for entry in self.entries)

    def __repr__(self) -> str:
        found = ", ".join(f"{count} {state}" for state, count in self.counts.items() if count)
        return f"<{type(self).__name__} {found or 'of no model'}>"

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"counts": self.counts, "exit_status": self.exit_status}


@dataclass(frozen=True, repr=False)
class CheckResults(_Results):
    """The check results of all models, in the order of the work list.

    Attributes:
        left: names of models that were not started.
    """

    states = get_args(CheckState)

    entries: tuple[CheckResult, ...]
    left: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, repr=False)
class BatchReport(_Results):
    """The results of all models of a batch.

    Attributes:
        entries: one for each model that ended, in this batch or before it, in the order of the work list.
        elsewhere: names of models that another batch is converting.
        left: names of models that were not started, or not finished, when the batch stopped.
        seconds: duration of this batch.
    """

    states = get_args(State)

    entries: tuple[Entry, ...]
    elsewhere: tuple[str, ...]
    left: tuple[str, ...]
    seconds: float

    def with_others(self, ended: Iterable[Entry], elsewhere: Iterable[str]) -> BatchReport:
        """Return a report that also has the models of other batches that ended or are under way."""
        own = {*self.left, *(entry.name for entry in self.entries)}
        return replace(
            self,
            entries=(*self.entries, *(entry for entry in ended if entry.name not in own)),
            elsewhere=tuple(elsewhere),
        )
