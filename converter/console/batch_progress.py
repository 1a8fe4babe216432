"""Show a batch: a live table in a terminal, a line for each model elsewhere, a summary at the end."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Self

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ..batch.journal import Entry
from ..batch.results import BatchReport, CheckResult, CheckResults
from ..batch.run import SUMMARY
from ..report.failures import REPORTS
from .next_command import caution, program_name, try_one
from .render import COLOURS
from .terminal import Terminal

MOST_ROWS, MOST_NAMES = 20, 3  # of the summary: reasons, and models of each


class BatchDisplay:
    """A watcher of a batch that, without a terminal, prints one line for each model that ends."""

    def __init__(self, terminal: Terminal):
        self._terminal = terminal
        self._console: Console = terminal.console
        self._total = 0
        self._ended: Counter[str] = Counter()
        self._rows: dict[int, tuple[str, str]] = {}
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[rate]}"),
            console=self._console,
        )
        self._task = self._progress.add_task("models", total=None, rate="")
        live = terminal.console.animated and not terminal.quiet
        self._live = Live(console=self._console, refresh_per_second=4, transient=True) if live else None

    def begin(self, total: int, slots: int) -> None:
        self._total = total
        self._progress.update(self._task, total=total)
        self._terminal.say(f"{total} model{'s' * (total != 1)}, {slots} at once")

    def step(self, slot: int, name: str, step: str) -> None:
        self._rows[slot] = (name, step)
        self._terminal.note(f"{name}: {step}")
        self._refresh()

    def ended(self, entry: Entry | CheckResult, slot: int | None) -> None:
        self._ended["skipped" if entry.already_done else entry.state] += 1
        if slot is not None:
            self._rows.pop(slot, None)
        done = sum(self._ended.values())
        task = self._progress.tasks[0]
        rate = f"{60 * done / task.elapsed:.1f} a minute" if task.elapsed else ""
        self._progress.update(self._task, completed=done, rate=rate)
        self._say_line(entry, done)
        self._refresh()

    def show_summary(self, report: BatchReport | CheckResults, folder: Path | None = None) -> None:
        """Show a table: how many models ended in each state, for which reason, how long that took, and what to try.

        Args:
            folder: of the batch, with its reports.
        """
        groups: dict[tuple[str, str], list[Entry | CheckResult]] = {}
        for entry in report.entries:
            groups.setdefault((entry.state, ", ".join(entry.codes) or entry.reason), []).append(entry)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in ("result", "models", "time", "reason"):
            table.add_column(column, overflow="fold", justify="right" if column in ("models", "time") else "left")
        order = sorted(groups.items(), key=lambda group: (list(COLOURS).index(group[0][0]), -len(group[1])))
        for (state, _), entries in order[:MOST_ROWS]:
            lines = _reason(entries[0]).splitlines()
            if entries[0].exit_status:
                names = [entry.name for entry in entries[:MOST_NAMES]]
                lines.append(", ".join(names) + f" and {len(entries) - len(names)} more" * (len(entries) > len(names)))
                what = _to_try(entries[0], folder)
                lines += [f"{caution(what)}: {what}"] if what else []
            seconds = sum(entry.seconds for entry in entries)
            table.add_row(Text(state, COLOURS[state]), str(len(entries)), f"{seconds:.1f} s", Text("\n".join(lines)))
        say = self._terminal.warn if any(entry.exit_status for entry in report.entries) else self._terminal.say
        if groups:
            say(table)
        if len(order) > MOST_ROWS:
            say(f"and {len(order) - MOST_ROWS} more reasons")
        before = sum(entry.already_done for entry in report.entries)
        elsewhere = len(report.elsewhere) if isinstance(report, BatchReport) else 0
        others = [("done before", before), ("elsewhere", elsewhere), ("left", len(report.left))]
        again = sum(entry.already_done and bool(entry.exit_status) for entry in report.entries)
        parts = [
            f"{len(report.entries)} in all",
            *(f"{n} {what}" for what, n in others if n),
            f"{report.seconds:.0f} s",
        ]
        self._terminal.say(Text(", ".join(parts)))
        if again:
            self._terminal.say(Text(f"{again} did not end verified before: --retry-failed tries them again"))
        if folder is not None:
            self._terminal.say_line(f"Report: {folder / SUMMARY}; of each model: {folder / REPORTS}")

    def _say_line(self, entry: Entry | CheckResult, done: int) -> None:
        if entry.already_done and entry.state == "verified":
            return
        time = "before" if entry.already_done else f"{entry.seconds:.1f} s"
        line = Text.assemble(
            (f"[{done}/{self._total}] ", "dim"), (entry.state, COLOURS[entry.state]), f" {entry.name} ", (time, "dim")
        )
        line = line.append(f" {_reason(entry)}") if entry.reason else line
        if self._live is None or entry.state not in ("verified", "converts"):
            self._terminal.say_line(line)
        else:
            self._terminal.note(line)
        if entry.log:
            self._terminal.note(f"  see {entry.log}")

    def _refresh(self) -> None:
        if self._live is None:
            return
        table = Table.grid(padding=(0, 2))
        for slot, (name, step) in sorted(self._rows.items()):
            table.add_row(Text(str(slot + 1), "dim"), name, Text(step, "cyan"))
        told = [Text(f"{self._ended[state]} {state}") for state in (*COLOURS, "skipped") if self._ended[state]]
        self._live.update(Group(table, Text(", ").join(told), self._progress))

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()


def _reason(entry: Entry | CheckResult) -> str:
    codes = ", ".join(dict.fromkeys(entry.codes))
    return f"{entry.reason} [{codes}]" if codes else entry.reason


def _to_try(entry: Entry | CheckResult, folder: Path | None) -> str:
    """Return the command to try for a model that is not verified: the page of one that differs shows where."""
    failures = [check["failure"] for check in entry.checks] if isinstance(entry, CheckResult) else []
    if isinstance(entry, Entry) and folder is not None:
        report = folder / REPORTS / f"{entry.name}.json"
        if not entry.codes:
            return shlex.join([program_name(), "report", str(report)])
        with suppress(OSError, ValueError):  # without a report there is no fix
            found = json.loads(report.read_text())
            failures = [found] if "error" in found else [one["failure"] for one in found.get("artifacts", ())]
    fix = next((one["fix"] for one in failures if one), None)
    return try_one(entry.path, fix, entry.codes[0] if entry.codes else "")
