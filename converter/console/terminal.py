"""Write progress, messages and reports to the terminal."""

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import IO, TYPE_CHECKING, Concatenate, ParamSpec

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from converter.console.current_step import CurrentStep
from converter.console.next_command import caution
from converter.console.render import (
    COLOURS,
    FORMATS,
    MOST_LINES,
    PROOFS,
    _accuracy,
    _add_tensors,
    _answers,
    _artifact_title,
    _at,
    _checks,
    _counted,
    _divergence,
    _figures,
    _grid,
    _heading,
    _more,
    _next,
    _notes,
    _operators,
    _pairs,
    _plan,
    _quantization,
    _rewrites,
    _seconds,
    _trace,
    _tree,
    _weights,
)

from ..report.failures import Failure, Report
from ..report.results import (
    ArtifactReport,
    ConversionReport,
    IntoReport,
    ModelSummary,
    Proof,
    Quantization,
    VerificationReport,
)
from .signals import raise_if_interrupted
from .streams import LogFile, Screen, escaping, own_stderr, redirect_fd

if TYPE_CHECKING:
    from converter.console.doctor import Diagnosis
    from converter.console.sample import WrittenSample

P = ParamSpec("P")
BLOCKING = ("missing", "not allowed")  # states of a package without which nothing can be converted


def logged(show: "Callable[Concatenate[Terminal, P], None]") -> "Callable[Concatenate[Terminal, P], None]":
    """Decorate a method of Terminal to show its output in the log too, in full."""

    @wraps(show)
    def both(terminal: "Terminal", *arguments: P.args, **options: P.kwargs) -> None:
        if terminal.log is not None:
            show(terminal.log, *arguments, **options)
        show(terminal, *arguments, **options)

    return both


EXPLAINED = ("focus", "shift")  # topics that are shown unasked


class Terminal:
    """Standard error, separate from what libraries print there.

    Args:
        quiet: show only what went wrong.
        verbose: show every figure, tracebacks, and what libraries print.
        log_file: append all of that to this file, with times; the output of libraries goes there instead.
        file: replaces standard error.

    Raises:
        OutputError: the log file cannot be opened.
    """

    def __init__(
        self, quiet: bool = False, verbose: bool = False, log_file: Path | None = None, file: IO[str] | None = None
    ):
        self.quiet, self.verbose = quiet, verbose
        self.console = Screen(file or own_stderr())
        self.log: Terminal | None = None
        self._log_file = LogFile(log_file) if log_file is not None else None
        if self._log_file is not None:
            self.log = Terminal(verbose=True, file=self._log_file)  # type: ignore[arg-type]
        self._bars: Progress | None = None
        self._traces = True

    def hide_traces(self) -> None:
        """Show no table of layers, here and in the log."""
        self._traces = False
        if self.log is not None:
            self.log.hide_traces()

    @contextmanager
    def quiet_libraries(self) -> Iterator[None]:
        """Send all printed output, including that of C++ and child processes, to the log.

        Without a log it goes to standard error if verbose, else nowhere. Standard output is for results. What is shown
        is escaped and cut, as names of strangers are.
        """
        sys.stdout.flush()
        sys.stderr.flush()
        with contextlib.ExitStack() as stack:
            if self._log_file is not None:
                sink = stack.enter_context(escaping(self._log_file.fileno()))
            elif self.verbose:
                sink = stack.enter_context(escaping(2))
            else:
                sink = stack.enter_context(tempfile.TemporaryFile()).fileno()
            for number in (1, 2):
                stack.enter_context(redirect_fd(number, sink))
            stream = os.fdopen(os.dup(sink), "w", encoding="utf-8", errors="backslashreplace", buffering=1)
            stack.enter_context(stream)
            stack.enter_context(contextlib.redirect_stdout(stream))
            stack.enter_context(contextlib.redirect_stderr(stream))
            yield
        if self._log_file is not None and self._log_file.failed is not None:
            self.console.print(f"The log could not be written to its end: {self._log_file.failed.strerror}.")

    @contextmanager
    def progress(self, step: str, *, told: bool = True) -> Iterator[None]:
        """Show a step while it runs, and, if it is to be `told`, how long it took."""
        raise_if_interrupted()
        self.note(f"  {step} begins")
        started, outermost, mark, style = time.perf_counter(), self._bars is None, "✗", "red"
        bars = self._bars
        if bars is None:
            bars = self._bars = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                TimeElapsedColumn(),
                CurrentStep(),
                console=self.console,
                transient=True,
            )
            if not self.quiet and self.console.animated:
                bars.start()
        task = bars.add_task(step, total=None)
        try:
            yield
            mark, style = "✓", "green"
        finally:
            bars.remove_task(task)
            if outermost:
                if bars.live.is_started:  # `stop` may print an empty line even if not started
                    bars.stop()
                self._bars = None
            if told:
                taken = _seconds(time.perf_counter() - started)
                self.say(Text.assemble("  ", (mark, style), f" {step} ", (taken, "dim")))

    @logged
    def say(self, message: RenderableType) -> None:
        if not self.quiet:
            self.console.print(message)

    @logged
    def say_line(self, text: str | Text) -> None:
        """Print a line that can be copied: the terminal wraps it, and a file has it whole."""
        if not self.quiet:
            self.console.print(text if isinstance(text, Text) else Text(text), soft_wrap=True)

    @logged
    def warn(self, message: RenderableType) -> None:
        """Print a message, even if quiet."""
        self.console.print(message)

    def note(self, message: RenderableType) -> None:
        """Write a message to the log only."""
        if self.log is not None:
            self.log.say(message)

    @logged
    def show_failure(self, failure: Failure, trace: str, again: str = "") -> None:
        # The message lists operators for readers without the table.
        what = failure.what.partition("\n")[0] if failure.operators else failure.what
        self.console.print(Text.assemble((f"error[{failure.code}]: ", "bold red"), what), soft_wrap=True)
        if failure.operators:
            self.console.print(_operators(failure.operators))
        for label, text in (("where", failure.where), ("fix", failure.fix), (caution(again), again)):
            if text:
                self.console.print(Text.assemble((f"  {label}: ", "bold"), text), soft_wrap=True)
        if self.verbose:
            self.console.print(Text(trace, style="dim"), soft_wrap=True)

    @logged
    def show_conversion(self, report: ConversionReport) -> None:
        failed = any(artifact.failure for artifact in report.artifacts)
        if self.quiet and not failed and all(p.holds for artifact in report.artifacts for p in artifact.proofs):
            return
        batch = "dynamic batch" if report.batch == "dynamic" else f"batch {report.batch} only"
        parts: list[RenderableType] = [Text(f"{report.kind}, {report.parameters:,} parameters, {batch}")]
        if report.rewrites:
            parts += [_heading("Rewritten"), _rewrites(report.rewrites)]
        answers = [answer for answer in report.answers if self.verbose or answer.topic in EXPLAINED]
        if answers:
            shown = answers if self.verbose else answers[:MOST_LINES]
            parts += [_heading("Explained"), _answers(shown)]
            parts += [_more(len(answers) - len(shown))] if len(answers) > len(shown) else []
        for artifact in report.artifacts:
            parts += [_heading(_artifact_title(artifact)), self._artifact(artifact)]
            if artifact.trace and self._traces:
                parts += [_heading("Output of each module, in float64"), _trace(artifact.trace)]
        parts += [*_notes(report.notes), *_next(report.artifacts)]
        seconds = sum(report.timings.values())
        self._panel(parts, report.source, f"{report.status}, {_seconds(seconds)}" if seconds else None, report.status)

    @logged
    def show_verification(self, report: VerificationReport) -> None:
        if self.quiet and report.status == "verified":
            return
        grid = _grid()
        self._add_proofs(grid, report.proofs)
        self._add_quantization(grid, report.quantization)
        if report.accuracy:
            grid.add_row("accuracy", _accuracy(report.accuracy))
        title = f"{report.artifact} against {report.source}"
        parts: list[RenderableType] = [grid]
        if report.weights:
            parts += [_heading("Tensors of the checkpoint"), _weights(report.weights)]
        if report.trace and self._traces:
            parts += [_heading("Output of each module"), _trace(report.trace)]
        self._panel([*parts, *_notes(report.notes)], title, report.status, report.status)

    @logged
    def show_into(self, report: IntoReport) -> None:
        if self.quiet and report.status == "verified":
            return
        grid = _grid()
        if report.unused:
            grid.add_row("not used", Text(", ".join(report.unused)))
        if report.kept:
            grid.add_row("kept as built", Text(", ".join(report.kept)))
        self._add_proofs(grid, report.proofs)
        if report.accuracy:
            grid.add_row("accuracy", _accuracy(report.accuracy))
        parts: list[RenderableType] = [_pairs(report.pairs), grid, *_notes(report.notes)]
        written = report.artifact or "nothing written"
        self._panel(parts, f"{report.source} into {report.builder}", f"{report.status}, {written}", report.status)

    @logged
    def show_summary(self, summary: ModelSummary) -> None:
        parts: list[RenderableType] = []
        if summary.inputs or summary.outputs:
            grid = _grid()
            _add_tensors(grid, summary.inputs, summary.outputs)
            parts += [grid, Text()]
        parts.append(_tree(summary.rows))
        if summary.rewrites:
            parts += [_heading("Rewritten"), _rewrites(summary.rewrites)]
        if summary.answers:
            parts += [_heading("Explained"), _answers(summary.answers)]
        if summary.plan:
            parts += [_heading("Layout: PyTorch's dimension of each axis"), _plan(summary.plan)]
        if summary.unsupported:
            parts += [_heading("Operators without a mapping"), _operators(summary.unsupported)]
        if summary.checks:
            parts += [_heading("Can it be converted?"), _checks(summary.checks)]
        parts += _notes(summary.notes)
        status = "failed" if summary.unsupported or summary.exit_status else "verified"
        if not self.quiet or status == "failed":
            self._panel(parts, summary.source, None, status)

    def show_sample(self, sample: "WrittenSample") -> None:
        for path in sample.written or ("The sample is there already.",):
            self.say(Text(path))
        where = "" if sample.folder == "." else f" in {sample.folder}"
        command = sample.command.replace(" --trust", " \\\n    --trust")
        self.say(Text(f"To convert it, run{where}:\n{command}"))

    @logged
    def show_diagnosis(self, found: "Diagnosis") -> None:
        grid = _grid()
        for package in found.packages:
            good = package.state in ("tested", "found")
            tested = f", tested with {', '.join(package.tested)}" if package.tested and not good else ""
            allowed = f", allowed {package.allowed}" if package.allowed else ""
            text = f"{package.found or 'missing'}{allowed}{tested}"
            style = COLOURS["verified" if good else "failed" if package.state in BLOCKING else "not verified"]
            grid.add_row(package.name, Text.assemble(text, "  ", (package.state, style)))
        formats = _grid()
        for trial in found.formats:
            if trial.works:
                formats.add_row(FORMATS[trial.format], Text(f"works, {_seconds(trial.seconds)}", COLOURS["verified"]))
            else:
                lines = "\n".join(line for line in (trial.reason, trial.fix) if line)
                style = COLOURS["failed" if trial.format in found.needed else "not verified"]
                formats.add_row(FORMATS[trial.format], Text(f"does not work: {lines}", style))
        machine = _grid()
        machine.add_row("cores", str(found.cores))
        machine.add_row("memory", f"{found.memory / 2**30:.1f} GiB, {found.memory_available / 2**30:.1f} available")
        machine.add_row(
            "temporary files", Text(f"{found.temporary_folder}, {found.temporary_space / 2**30:.1f} GiB free")
        )
        machine.add_row("cache", "none: nothing is kept between commands")
        machine.add_row("convert", Text(found.convert_command or "not on PATH"))
        parts: list[RenderableType] = [
            _heading("Versions"), grid, _heading("Formats, tried with a small network"), formats,
            _heading("Machine"), machine,
        ]  # fmt: skip
        if found.extras:
            extras = _grid()
            for extra in found.extras:
                extras.add_row(extra.name, Text(f"{extra.command}  adds {', '.join(extra.missing)}"))
            parts += [_heading("Not installed"), extras]
        if found.problems:
            parts += [_heading("Problems"), *(Text(f"- {problem}") for problem in found.problems)]
        status = "failed" if found.exit_status else "verified"
        if not self.quiet or found.exit_status:
            result = "cannot convert to all formats" if found.exit_status else "ready"
            self._panel(parts, f"pt-convert {found.pt_convert} on {found.system}", result, status)

    @logged
    def show_table(self, results: Sequence[Report]) -> None:
        """Show one row for each model of several."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in ("model", "result", "written"):
            table.add_column(column, overflow="fold")
        for result in results:
            if isinstance(result, ConversionReport):
                written = ", ".join(str(artifact.path) for artifact in result.artifacts if artifact.path) or "nothing"
                table.add_row(Text(result.source), Text(result.status, COLOURS[result.status]), Text(written))
            elif isinstance(result, Failure):
                table.add_row(Text(result.source), Text("failed", COLOURS["failed"]), Text(result.what))
        if not self.quiet:
            self.console.print(table)

    def _artifact(self, artifact: ArtifactReport) -> RenderableType:
        grid = _grid()
        if artifact.failure:
            failure = artifact.failure
            for label, text in (
                ("error", f"{failure.what} [{failure.code}]"),
                ("where", failure.where),
                ("fix", failure.fix),
            ):
                if text:
                    grid.add_row(label, Text(text, "red" if label == "error" else ""))
            return grid
        _add_tensors(grid, artifact.inputs, artifact.outputs)
        self._add_proofs(grid, artifact.proofs)
        if not artifact.proofs:
            grid.add_row("proofs", Text("none: not verified", "yellow"))
        self._add_quantization(grid, artifact.quantization)
        if artifact.accuracy:
            grid.add_row("accuracy", _accuracy(artifact.accuracy))
        shown = artifact.movements if self.verbose else artifact.movements[:MOST_LINES]
        for number, movement in enumerate(shown):
            elements = f"{movement.elements:,}" if isinstance(movement.elements, int) else movement.elements
            what = f"{movement.kind} of {elements} elements: {movement.reason}"
            grid.add_row("" if number else "data movement", _at(movement.module, what))
        if len(artifact.movements) > len(shown):
            grid.add_row("", _more(len(artifact.movements) - len(shown)))
        if not artifact.movements:
            grid.add_row("data movement", "none")
        remarks = artifact.training if self.verbose else artifact.training[:MOST_LINES]
        for number, remark in enumerate(remarks):
            grid.add_row("" if number else "training differences", Text(f"{remark} [{remark.code}]"))
        if self.verbose and artifact.operators:
            grid.add_row("operators", _counted(artifact.operators))
        return grid

    def _add_quantization(self, grid: Table, one: Quantization | None) -> None:
        for label, text in _quantization(one) if one else ():
            grid.add_row(label, Text(text, "red" if label == "too far off" else ""))

    def _add_proofs(self, grid: Table, proofs: Sequence[Proof]) -> None:
        for proof in proofs:
            mark, style = ("✓", "green") if proof.holds else ("?", "yellow") if proof.proves_nothing else ("✗", "red")
            grid.add_row(PROOFS[proof.name], Text.assemble((f"{mark} ", style), proof.summary))
            if proof.first_difference:
                grid.add_row("", Text.assemble("  differs first in ", (proof.first_difference, "cyan")))
            if proof.divergence:
                for line in _divergence(proof.divergence):
                    grid.add_row("", Text(f"    {line}"))
            failures = proof.failures if self.verbose else proof.failures[:MOST_LINES]
            # The summary can be the only failure.
            for failure in failures if proof.failures != (proof.summary,) else ():
                grid.add_row("", Text(f"  {failure}", style))
            if len(proof.failures) > len(failures):
                grid.add_row("", _more(len(proof.failures) - len(failures)))
            if proof.proves_nothing:
                grid.add_row("", Text("  give --inputs with samples that the model responds to", style))
            outputs = proof.outputs if self.verbose or proof.name == "artifact" else ()
            shown = outputs if self.verbose else outputs[:MOST_LINES]
            for output in shown:
                grid.add_row("", Text(f"  {output.name}: {_figures(output, self.verbose)}", "dim"))
                for note in output.notes if proof.holds else ():
                    grid.add_row("", Text(f"    {note}", "dim"))
            if len(outputs) > len(shown):
                grid.add_row("", _more(len(outputs) - len(shown)))

    def _panel(self, parts: Sequence[RenderableType], title: str, subtitle: str | None, status: str) -> None:
        self.console.print(
            Panel(
                Group(*parts),
                title=Text(title, "bold"),
                subtitle=Text(subtitle) if subtitle else None,
                title_align="left",
                subtitle_align="left",
                border_style=COLOURS[status],
                padding=(0, 1),
            )
        )
