"""The click group of `convert`: `convert MODEL` without a command converts."""

import difflib
import signal
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from converter.artifacts.paths import SUFFIXES
from converter.console.params import GroupedCommand, write_examples, write_groups
from converter.console.signals import Interrupted

RESUMES = "pt-convert.resumes"  # in the context: the same command resumes where it stopped


class ConvertByDefault(click.Group):
    """A group in which `convert MODEL ...` means `convert convert MODEL ...`; its help shows that command's options."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        leading = 0
        while leading < len(args) and args[leading] in ("-q", "--quiet", "-v", "--verbose", "--json"):
            leading += 1
        if args[leading : leading + 1] and args[leading] in self.commands:
            args = [args[leading], *args[:leading], *args[leading + 1 :]]
        elif args and args[0] not in ("-h", "--help", "--version"):
            self._refuse_mistyped(ctx, args[leading:])
            args = ["convert", *args]
        return super().parse_args(ctx, args)

    def _refuse_mistyped(self, ctx: click.Context, args: list[str]) -> None:
        """Fail for a first word that is no file and almost a command."""
        near = difflib.get_close_matches(args[0], self.commands, n=1, cutoff=0.7) if args else []
        if near and "." not in args[0] and not Path(args[0]).exists():
            raise click.UsageError(f"{args[0]!r} is neither a file nor a command. Did you mean {near[0]}?", ctx)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            name = ctx.invoked_subcommand
            if name and Path(name).exists():
                hint = f"{name!r} is a command here; for the file of that name write ./{name}"
                raise click.UsageError(f"{error.format_message()}\n{hint}", error.ctx) from error
            raise
        except KeyboardInterrupt as error:
            asked = error if isinstance(error, Interrupted) else Interrupted(signal.SIGINT)
            again = " Run the same command again to resume." if ctx.meta.get(RESUMES) else ""
            click.echo(f"Ended by {asked.signal.name}; unfinished output was removed.{again}", err=True)
            ctx.exit(asked.exit_status)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete the commands and the arguments of `convert`, whose name may be omitted."""
        convert = self.commands["convert"]
        with convert.make_context("convert", [], parent=ctx, resilient_parsing=True) as inner:
            models = convert.params[0].shell_complete(inner, incomplete) if incomplete[:1] != "-" else []
            return [*models, *convert.shell_complete(inner, incomplete), *super().shell_complete(ctx, incomplete)]

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(ctx.command_path, f"MODEL... --to {'|'.join(SUFFIXES)} [OPTIONS]")
        formatter.write_usage(ctx.command_path, "COMMAND [ARGS]...", prefix="       ")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        convert = self.commands["convert"]
        write_groups(ctx, formatter, [*convert.params, *self.get_params(ctx)])
        self.format_commands(ctx, formatter)
        if isinstance(convert, GroupedCommand):
            write_examples(ctx, formatter, convert.examples)
