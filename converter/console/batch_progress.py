"""Show a batch: a live table in a terminal, a line for each model elsewhere, a summary at the end."""

from __future__ import annotations

from collections import Counter
from typing import Self

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ..batch.journal import Entry
from ..batch.results import BatchReport, CheckResult, CheckResults
from .render import COLOURS
from .terminal import Terminal

MOST_ROWS = 20  # of the summary, of models that are not verified


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

    def show_summary(self, report: BatchReport | CheckResults) -> None:
        """Show the counts, and the models that are not verified, or cannot be converted, with their reasons."""
        before = sum(entry.already_done for entry in report.entries)
        counts = [(f"{count} {state}", COLOURS[state]) for state, count in report.counts.items() if count]
        elsewhere = len(report.elsewhere) if isinstance(report, BatchReport) else 0
        others = [("elsewhere", elsewhere), ("left", len(report.left)), ("done before", before)]
        parts = [Text(text, style) for text, style in counts] + [Text(f"{n} {what}") for what, n in others if n]
        self._terminal.say(Text(", ").join([*parts, Text(f"{report.seconds:.0f} s", "dim")]))
        bad = [entry for entry in report.entries if entry.exit_status]
        if bad:
            table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
            for column in ("model", "state", "reason"):
                table.add_column(column, overflow="fold")
            for entry in bad[:MOST_ROWS]:
                table.add_row(entry.name, Text(entry.state, COLOURS[entry.state]), Text(_reason(entry)))
            self._terminal.warn(table)
            if len(bad) > MOST_ROWS:
                where = "summary.json" if isinstance(report, BatchReport) else "--json"
                self._terminal.warn(f"and {len(bad) - MOST_ROWS} more, in {where}")

    def _say_line(self, entry: Entry | CheckResult, done: int) -> None:
        if entry.already_done and entry.state == "verified":
            return
        time = "before" if entry.already_done else f"{entry.seconds:.1f} s"
        line = Text.assemble(
            (f"[{done}/{self._total}] ", "dim"), (entry.state, COLOURS[entry.state]), f" {entry.name} ", (time, "dim")
        )
        line = line.append(f" {_reason(entry)}") if entry.reason else line
        if self._live is None or entry.state not in ("verified", "converts"):
            self._terminal.say(line)
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
