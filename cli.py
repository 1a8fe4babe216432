"""The commands of `convert`: options, messages, exit statuses; `converter` does their work."""

import json
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from converter.artifacts.paths import SUFFIXES, output_paths
from converter.console.app import RESUMES, ConvertByDefault
from converter.console.params import PATH, GroupedCommand, in_group, message_options, options, report_option, shard_of
from converter.console.signals import raise_if_interrupted
from converter.errors import OutputError
from converter.options import ConvertOptions, InspectOptions, VerifyOptions, options_of
from converter.report.failures import SCHEMA, Failure, Report, failure_of, worst_status, write_report
from converter.report.results import ConversionReport, VerificationReport

if TYPE_CHECKING:
    from converter.batch.jobs import Job
    from converter.batch.results import BatchReport, CheckResults
    from converter.console.terminal import Terminal


@click.group(cls=ConvertByDefault, context_settings={"max_content_width": 110})
@click.version_option(package_name="pt-convert", prog_name="pt-convert")
def main() -> None:
    """Convert PyTorch models to TensorFlow, Keras and ONNX, and check that the result computes the same function.

    \b
    Exit status: 0 done, 1 cannot be converted, 2 wrong usage, 3 does not agree or is not proven,
    4 the checkpoint is unreadable or refused; of several models the worst, in the order 3, 4, 1.
    """
    # Threads that spin while they wait slow each other down; TensorFlow logs on import. Both read these on import.
    for name, value in {"OMP_WAIT_POLICY": "PASSIVE", "TF_CPP_MIN_LOG_LEVEL": "3"}.items():
        os.environ.setdefault(name, value)


@main.command(cls=GroupedCommand)
@click.argument("models", nargs=-1, required=True, type=PATH, metavar="MODEL...")
@in_group(
    "Output",
    "--to",
    multiple=True,
    required=True,
    type=click.Choice(list(SUFFIXES)),
    help="Format to write; repeatable.",
)
@in_group(
    "Output",
    "-o",
    "--output",
    type=PATH,
    help="File or folder to write; a folder of them for several models or formats.",
)
@options(ConvertOptions)
@report_option
@message_options
def convert(
    models: tuple[Path, ...],
    to: tuple[str, ...],
    output: Path | None,
    report_file: Path | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    log_file: Path | None,
    **arguments: Any,
) -> None:
    """Convert models and prove that the results are the same functions."""
    import converter

    terminal = make_terminal(quiet, verbose, log_file)
    models, to = tuple(dict.fromkeys(models)), tuple(dict.fromkeys(to))

    def convert_one(model: Path) -> ConversionReport:
        # Each of several models goes into the folder under its own name.
        own_output = paths[model, to[0]] if len(models) > 1 and len(to) == 1 else output
        report: ConversionReport = converter.convert(
            model,
            to=to,
            output=own_output,
            progress=terminal.progress,
            **arguments,
        )
        return report

    planned = run_or_report(lambda: output_paths(models, to, output), ", ".join(map(str, models)), terminal)
    if isinstance(planned, Failure):
        results: list[Report] = [planned]
    else:
        paths = planned
        results = []
        for model in models:
            terminal.say(f"{model} -> {', '.join(to)}")
            result = run_or_report(partial(convert_one, model), str(model), terminal)
            if isinstance(result, ConversionReport):
                terminal.show_conversion(result)
            results.append(result)
        if len(models) > 1:
            terminal.show_table(results)
    write_report_and_exit(
        {"schema": SCHEMA, "models": [result.to_dict() for result in results]}, results, as_json, report_file
    )


@main.command(cls=GroupedCommand)
@click.argument("places", nargs=-1, required=True, metavar="MANIFEST.toml|FILE|FOLDER|GLOB|-...")
@in_group("Output", "--to", multiple=True, type=click.Choice(list(SUFFIXES)), help="Format to write; repeatable.")
@in_group("Output", "-o", "--output", type=PATH, help="Folder for artifacts, logs, the journal and summary.json.")
@in_group(
    "Output",
    "--check",
    is_flag=True,
    help="Say of each model whether it can be converted; -o is not needed, nothing is written.",
)
@in_group(
    "Batch", "-j", "--jobs", type=click.IntRange(min=1), metavar="N", help="Models at once.  [default: what fits]"
)
@in_group(
    "Batch",
    "--timeout",
    type=click.FloatRange(min=1),
    default=3600,
    metavar="S",
    help="Seconds for a model.  [default: 3600]",
)
@in_group(
    "Batch", "--memory", type=click.FloatRange(min=0.1), metavar="GIB", help="Memory for a model.  [default: its share]"
)
@in_group("Batch", "--retry-failed", is_flag=True, help="Begin again what did not end verified.")
@in_group("Batch", "--fail-fast", is_flag=True, help="Begin no more once one did not end verified.")
@in_group(
    "Batch", "--shard", callback=shard_of, metavar="I/N", help="Convert only this part of the list, for job arrays."
)
@in_group(
    "Batch", "--scheduler", metavar="ADDRESS", help="Of a Dask scheduler whose workers shall convert, tcp://HOST:8786."
)
@in_group("Batch", "--dry-run", is_flag=True, help="Show what would be done, and do nothing.")
@options(ConvertOptions, batch=True)
@message_options
def batch(
    places: tuple[str, ...],
    to: tuple[str, ...],
    output: Path | None,
    check: bool,
    jobs: int | None,
    timeout: float,
    memory: float | None,
    retry_failed: bool,
    fail_fast: bool,
    shard: tuple[int, int] | None,
    scheduler: str | None,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    log_file: Path | None,
    **arguments: Any,
) -> None:
    """Convert many checkpoints, and go on where an earlier batch into the same folder ended."""
    from converter.batch.check import check_many
    from converter.batch.jobs import work_list
    from converter.batch.run import convert_many
    from converter.console.batch_progress import BatchDisplay

    context = click.get_current_context()
    defaults = {name: field.default for name, _, field in options_of(ConvertOptions)}
    if output is None and not check:
        raise click.MissingParameter(ctx=context, param=next(p for p in context.command.params if p.name == "output"))
    context.meta[RESUMES] = not check
    terminal = make_terminal(quiet, verbose, log_file)
    said = {name: plain(value) for name, value in arguments.items() if value not in (None, (), defaults[name])}

    def listed() -> list["Job"]:
        return work_list(places, to or tuple(SUFFIXES if check else ()), said, lines=sys.stdin, part=shard)

    def done(work: list["Job"]) -> "BatchReport | CheckResults":
        how: dict[str, Any] = {
            "slots": jobs,
            "timeout": timeout,
            "memory": None if memory is None else int(memory * 2**30),
            "fail_fast": fail_fast,
            "scheduler": scheduler,
        }
        report: BatchReport | CheckResults
        with BatchDisplay(terminal) as display:
            if output is None or check:
                report = check_many(work, watcher=display, **how)
            else:
                report = convert_many(work, output=output, retry_failed=retry_failed, watcher=display, **how)
        display.show_summary(report)
        return report

    work = run_or_report(listed, ", ".join(places), terminal)
    if isinstance(work, Failure):
        write_report_and_exit(work.to_dict(), [work], as_json, None)
        return
    if dry_run:
        for job in work:
            made = job.to if output is None or check else map(str, job.outputs(output).values())
            click.echo(f"{job.path} -> {', '.join(made)}", err=True)
        content = {"schema": SCHEMA, "models": [{"name": job.name, **job.to_json()} for job in work]}
        write_report_and_exit(content, [], as_json, None)
        return
    result = run_or_report(lambda: done(work), ", ".join(places), terminal)
    write_report_and_exit(result.to_dict(), [result], as_json, None)


def plain(value: Any) -> Any:
    """Return an option's value in its JSON form."""
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


@main.command(cls=GroupedCommand)
@click.argument("model", type=PATH)
@click.argument("artifact", type=PATH)
@options(VerifyOptions)
@report_option
@message_options
def verify(
    model: Path,
    artifact: Path,
    report_file: Path | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    log_file: Path | None,
    **arguments: Any,
) -> None:
    """Compare an artifact with the model it was made from; any tool may have made it."""
    import converter

    terminal = make_terminal(quiet, verbose, log_file)
    result = run_or_report(
        lambda: converter.verify(model, artifact, progress=terminal.progress, **arguments),
        str(model),
        terminal,
    )
    if isinstance(result, VerificationReport):
        terminal.show_verification(result)
    write_report_and_exit(result.to_dict(), [result], as_json, report_file)


@main.command(cls=GroupedCommand)
@click.argument("model", type=PATH)
@options(InspectOptions)
@in_group("Output", "--plan", is_flag=True, help="Show the plan too: the layout of each value, and what moves and why.")
@in_group(
    "Output",
    "--check",
    is_flag=True,
    help="Say whether it can be converted, by the exit status too; nothing is written.",
)
@in_group(
    "Output",
    "--to",
    multiple=True,
    type=click.Choice(list(SUFFIXES)),
    help="Format to check; repeatable.  [default: all]",
)
@message_options
def inspect(
    model: Path,
    check: bool,
    to: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    verbose: bool,
    log_file: Path | None,
    **arguments: Any,
) -> None:
    """Show a model's modules, shapes, weights, and what each becomes."""
    import converter

    terminal = make_terminal(quiet, verbose, log_file)
    if to and not check:
        raise click.UsageError("--to says which formats to --check; convert MODEL --to writes them")
    formats = (to or tuple(SUFFIXES)) if check else ()
    result = run_or_report(lambda: converter.inspect(model, check=formats, **arguments), str(model), terminal)
    if not isinstance(result, Failure):
        terminal.show_summary(result)
    write_report_and_exit(result.to_dict(), [result], as_json, None)


def make_terminal(quiet: bool, verbose: bool, log_file: Path | None) -> "Terminal":
    from converter.console.terminal import Terminal

    try:
        terminal = Terminal(quiet, verbose, log_file)
    except OutputError as error:
        raise click.ClickException(str(error)) from error
    terminal.note(f"pt-convert {version('pt-convert')}: {shlex.join(sys.argv)}")
    return terminal


Result = TypeVar("Result")


def run_or_report(call: Callable[[], Result], source: str, terminal: "Terminal") -> Result | Failure:
    """Return the result of `call`, or show its error and return it as a failure."""
    try:
        with terminal.quiet_libraries():
            return call()
    except KeyboardInterrupt as error:
        terminal.note("".join(traceback.format_exception(error)))
        raise
    except (Exception, SystemExit) as error:
        raise_if_interrupted()
        failure = failure_of(error, source)
        terminal.show_failure(failure, "".join(traceback.format_exception(error)))
        return failure


def write_report_and_exit(
    content: dict[str, Any], results: Sequence[Report], as_json: bool, report_file: Path | None
) -> None:
    """Write the report to the requested places, and exit."""
    try:
        if report_file:
            write_report(report_file, content)
        if as_json:
            print_report(content)
    except OutputError as error:
        raise click.ClickException(str(error)) from error
    click.get_current_context().exit(worst_status(result.exit_status for result in results))


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
                fix="Make room, or use --report.",
            ) from error


if __name__ == "__main__":
    main()
