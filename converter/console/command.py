"""What all commands share: the options for messages and reports, the terminal, the exit status."""

from __future__ import annotations

import functools
import json
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from converter.console.next_command import try_next
from converter.console.params import message_options
from converter.console.signals import raise_if_interrupted
from converter.errors import ConversionError, OutputError
from converter.report.ci import append_summary, write_junit
from converter.report.failures import Failure, Report, failure_of, worst_status, write_report

if TYPE_CHECKING:
    from converter.console.terminal import Terminal

Result = TypeVar("Result")


@dataclass
class Console:
    """Where a command's messages and its report go."""

    terminal: Terminal
    as_json: bool
    report_file: Path | None
    junit: Path | None = None
    summary: bool = False

    @property
    def writes_page(self) -> bool:
        """Whether the report is a page."""
        return self.report_file is not None and self.report_file.suffix.lower() == ".html"

    def run(self, call: Callable[[], Result], source: str) -> Result | Failure:
        """Return the result of `call`, or show its error and return it as a failure."""
        try:
            with self.terminal.quiet_libraries():
                return call()
        except KeyboardInterrupt as error:
            self.terminal.note("".join(traceback.format_exception(error)))
            raise
        except (Exception, SystemExit) as error:
            raise_if_interrupted()
            failure = failure_of(error, source)
            again = try_next(failure.fix, failure.code)
            self.terminal.show_failure(failure, "".join(traceback.format_exception(error)), again)
            return failure

    def imported(self, function: Callable[[], Result]) -> Result:
        """Return a function of `converter`; reading its name imports PyTorch, and a terminal shows that."""
        with self.terminal.progress("import PyTorch", told=False):
            return function()

    def exit(self, results: Sequence[Report], content: dict[str, Any] | None = None, pages: Path | None = None) -> None:
        """Write the report (that of the only result, if there is no other content) where it was asked for, and exit.

        Args:
            pages: folder with the reports of a batch's models, whose pages a page of the batch links.
        """
        context = click.get_current_context()
        typed = f"{context.find_root().info_name or ''} {shlex.join(sys.argv[1:])}"  # the first is of several words
        content = {**(results[0].to_dict() if content is None else content), "command": typed}
        try:
            if self.report_file:
                self._write_report(self.report_file, content, pages)
            if self.junit:
                write_junit(self.junit, content)
            if self.summary:
                append_summary(content)
            if self.as_json:
                print_report(content)
        except ConversionError as error:
            raise click.ClickException(str(error)) from error
        context.exit(worst_status(result.exit_status for result in results))

    def _write_report(self, file: Path, content: dict[str, Any], pages: Path | None) -> None:
        if self.writes_page:
            from converter.report.page import write_with_models

            write_with_models(file, content, pages)
            self.terminal.say_line(f"Page: {file}")
        else:
            write_report(file, content)


def with_console(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options for messages, and a `Console` in their place."""

    @message_options
    @functools.wraps(command)
    def wrapped(
        *,
        as_json: bool,
        quiet: bool,
        verbose: bool,
        log_file: Path | None,
        report_file: Path | None = None,
        junit: Path | None = None,
        summary: bool = False,
        **given: Any,
    ) -> None:
        console = Console(_terminal(quiet, verbose, log_file), as_json, report_file, junit, summary)
        if given.get("trace") is False and console.writes_page:
            given["trace"] = True  # a page plots the error of each layer; the terminal shows it if it is asked for
            console.terminal.hide_traces()
        command(console=console, **given)

    return wrapped


def _terminal(quiet: bool, verbose: bool, log_file: Path | None) -> Terminal:
    from converter.console.terminal import Terminal

    try:
        terminal = Terminal(quiet, verbose, log_file)
    except OutputError as error:
        raise click.ClickException(str(error)) from error
    terminal.note(f"pt-convert {version('pt-convert')}: {shlex.join(sys.argv)}")
    return terminal


def print_report(content: dict[str, Any]) -> None:
    """Print the report on standard output, or raise OutputError; a reader that stops early, such as `head`, is fine."""
    try:
        click.echo(json.dumps(content, indent=2, allow_nan=False))
    except OSError as error:
        with open(os.devnull, "w") as nowhere:  # noqa: PTH123  # buffered data is not written at exit either
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise OutputError(
                f"The report cannot be printed: {error.strerror}.",
                code="PTC6036",
                where="--json",
                fix="Free some space, or use --report.",
            ) from error
