"""The commands of `convert`: options, messages, exit statuses. What they do is in `converter`."""

import ast
import json
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click
from click.shell_completion import CompletionItem

from converter.artifacts.paths import ENDINGS, output_paths
from converter.errors import OutputError
from converter.interruption import Interrupted, raise_again
from converter.report.failures import SCHEMA, Failure, Report, failure_of, worst_status, write_report
from converter.report.results import ConversionReport, ExplanationKind, VerificationReport

if TYPE_CHECKING:
    from converter.batch.jobs import Job
    from converter.batch.results import Answers, BatchReport
    from converter.terminal import Terminal

RESUMES = "pt-convert.resumes"  # in the context: what has ended is not done again

Command = TypeVar("Command", bound=Callable[..., None])


class ConvertByDefault(click.Group):
    """`convert MODEL ...` is `convert convert MODEL ...`; its help shows the options of that command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        leading = 0
        while leading < len(args) and args[leading] in ("-q", "--quiet", "-v", "--verbose", "--json"):
            leading += 1
        if args[leading : leading + 1] and args[leading] in self.commands:
            args = [args[leading], *args[:leading], *args[leading + 1 :]]
        elif args and args[0] not in ("--help", "--version"):
            args = ["convert", *args]
        return super().parse_args(ctx, args)

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
            again = " The same command goes on where it stopped." if ctx.meta.get(RESUMES) else ""
            click.echo(f"Ended by {asked.signal.name}; what was not put in place is removed.{again}", err=True)
            ctx.exit(asked.exit_status)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The commands, and what `convert` takes, as its name may be left out."""
        convert = self.commands["convert"]
        with convert.make_context("convert", [], parent=ctx, resilient_parsing=True) as inner:
            models = convert.params[0].shell_complete(inner, incomplete) if incomplete[:1] != "-" else []
            return [*models, *convert.shell_complete(inner, incomplete), *super().shell_complete(ctx, incomplete)]

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(ctx.command_path, f"MODEL... --to {'|'.join(ENDINGS)} [OPTIONS]")
        formatter.write_usage(ctx.command_path, "COMMAND [ARGS]...", prefix="       ")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        convert = self.commands["convert"]
        own = [record for option in self.get_params(ctx) if (record := option.get_help_record(ctx))]
        listed = [option for option in convert.params if isinstance(option, click.Option)]
        records = [record for option in listed if (record := option.get_help_record(ctx))]
        with formatter.section("Options"):
            formatter.write_dl(records + own)
        self.format_commands(ctx, formatter)


def json_object(ctx: click.Context, param: click.Parameter, value: str | None) -> dict[str, Any] | None:
    if value is None:
        return None
    try:
        parsed = json.loads(value)
    except ValueError as error:
        raise click.BadParameter(f"this is no JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise click.BadParameter('give an object of keyword arguments, as {"num_classes": 10} is')
    return parsed


def numbers(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    if value is None:
        return None
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError as error:
        raise click.BadParameter("give numbers with commas between, as 0.485,0.456,0.406") from error


def options(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Join option decorators into one."""

    def decorate(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


def factories(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completions of --model: Python files here, what a file defines, and the libraries."""
    file, colon, begun = incomplete.partition(":")
    if not colon:
        here = [f"{path}:" for path in sorted(Path().glob("*.py"))]
        return [CompletionItem(one) for one in (*here, "timm:", "torchvision:") if one.startswith(incomplete)]
    if not file.endswith(".py"):
        return []
    try:
        body = ast.parse(Path(file).read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return []
    defined = [node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return [CompletionItem(f"{file}:{name}") for name in defined if name.startswith(begun)]


def packages(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completions of --trust: packages and Python files of the current folder."""
    found = [path.parent.name for path in sorted(Path().glob("*/__init__.py"))]
    found += [path.name for path in sorted(Path().glob("*.py"))]
    return [CompletionItem(name) for name in found if name.startswith(incomplete)]


def trust_all(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta["pt-convert.trust-all"] = True
        click.echo("WARNING: --trust-all lets the checkpoint run any code on this machine, with your rights.", err=True)


def trusted(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    return (*value, "all") if ctx.meta.get("pt-convert.trust-all") else value


class PathName(click.Path):
    """A path that libraries and reports can hold."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value):
            self.fail("this is empty: give a path", param, ctx)
        try:
            str(value).encode()
        except UnicodeEncodeError:
            self.fail(f"{str(value)!r} is not UTF-8: rename it, or set a locale of UTF-8", param, ctx)
        return super().convert(value, param, ctx)


PATH = PathName(path_type=Path)

architecture_options = options(
    click.option(
        "--model",
        "factory",
        metavar="WHERE:FACTORY",
        shell_complete=factories,
        help="What builds a state dict's architecture: package.module:factory, file.py:factory, timm:NAME, "
        "torchvision:NAME or hf:FOLDER.",
    ),
    click.option(
        "--model-args",
        "factory_args",
        metavar="JSON",
        callback=json_object,
        help="Keyword arguments of the factory, as an object.",
    ),
    click.option(
        "--drop-keys",
        multiple=True,
        metavar="PATTERN",
        help="Leave out keys of the state dict that match, such as 'head.*'; repeatable.",
    ),
    click.option(
        "--input-shape",
        "input_shapes",
        multiple=True,
        metavar="[NAME=]1,3,640,640[:DTYPE]",
        help="Shape of an input, batch first; once for each input.",
    ),
    click.option(
        "--image-size",
        metavar="H[,W]",
        help="Of the only input, in place of --input-shape; its channels are those of the first convolution.",
    ),
    click.option(
        "--outputs",
        multiple=True,
        metavar="MODULE.PATH",
        help="Stop at this module: its outputs are the model's; repeatable.",
    ),
    click.option("--submodule", metavar="MODULE.PATH", help="Convert this module only; shapes are the whole model's."),
    click.option("--input-name", "input_names", multiple=True, metavar="OLD=NEW", help="Rename an input; repeatable."),
    click.option(
        "--output-name", "output_names", multiple=True, metavar="OLD=NEW", help="Rename an output; repeatable."
    ),
    click.option(
        "--freeze-control-flow",
        is_flag=True,
        help="Where forward decides by values, keep what it decides for random inputs; checked on others.",
    ),
    click.option(
        "--strict", is_flag=True, help="Capture by way of Python's bytecode, which torch.export calls strict."
    ),
    click.option(
        "--trust",
        multiple=True,
        metavar="PACKAGE",
        shell_complete=packages,
        callback=trusted,
        help="Allow classes of this package to be unpickled; repeatable.",
    ),
    click.option(
        "--trust-all",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=trust_all,
        help="Allow the file to run any code. Only for files that you made yourself.",
    ),
)
mappings_option = click.option(
    "--mappings",
    multiple=True,
    type=PATH,
    metavar="FILE.py",
    help="Python file with mappings of your own for operators; repeatable.",
)
comparison_options = options(
    click.option(
        "--atol", type=click.FloatRange(min=0), metavar="X", help="Absolute error allowed, in place of our own bound."
    ),
    click.option(
        "--rtol", type=click.FloatRange(min=0), metavar="X", help="Relative error allowed, in place of our own bound."
    ),
    click.option(
        "--seed", type=click.IntRange(min=0), metavar="N", default=0, help="Of the random inputs.  [default: 0]"
    ),
    click.option(
        "--inputs",
        type=PATH,
        metavar="PATH",
        help="Compare on these too: an .npz, with labels for accuracy, an .npy, or a folder of images.",
    ),
    click.option(
        "--image-fit",
        type=click.Choice(["stretch", "crop", "pad"]),
        help="How images come to the input's height and width.  [default: stretch]",
    ),
    click.option("--image-scale", type=float, metavar="X", help="Of pixels from 0 to 255.  [default: 1/255]"),
    click.option("--image-mean", metavar="R,G,B", callback=numbers, help="Taken from the scaled pixels.  [default: 0]"),
    click.option("--image-std", metavar="R,G,B", callback=numbers, help="They are divided by it then.  [default: 1]"),
    click.option("--image-order", type=click.Choice(["rgb", "bgr"]), help="Order of the channels.  [default: rgb]"),
)
conversion_options = options(
    click.option(
        "--layout",
        type=click.Choice(["auto", "nhwc", "nchw"]),
        default="auto",
        help="Layout of inputs and outputs of Keras and TensorFlow artefacts.  [default: auto]",
    ),
    click.option("--fixed-batch", type=click.IntRange(min=1), metavar="N", help="Write a model of this batch only."),
    click.option("--keep-batchnorm", is_flag=True, help="Do not fold batch norms into convolutions."),
    click.option("--opset", type=click.IntRange(min=1), metavar="N", help="ONNX opset."),
    click.option("--exact-shifts", is_flag=True, help="Make shifts of grid samples that interpolate on whole pixels."),
    click.option("--no-verify", is_flag=True, help="Write without proof; the report says so."),
    click.option("--keep-failed", is_flag=True, help="Keep an artefact that does not agree, under another name."),
    click.option("--force", is_flag=True, help="Replace what is in the way, even if it is not ours."),
)
trace_option = click.option("--trace", is_flag=True, help="Show for every module what it computes on both sides.")
report_option = click.option(
    "--report", "report_file", type=PATH, metavar="FILE.json", help="Write the report to this file."
)
message_options = options(
    click.option("--json", "as_json", is_flag=True, help="Print the report as JSON on standard output."),
    click.option("-q", "--quiet", is_flag=True, help="Print only what went wrong."),
    click.option("-v", "--verbose", is_flag=True, help="Show all figures, tracebacks, and what libraries print."),
    click.option("--log-file", type=PATH, metavar="FILE", help="Add all that -v shows to this file, with times."),
)


@click.group(cls=ConvertByDefault, context_settings={"max_content_width": 110})
@click.version_option(package_name="pt-convert", prog_name="pt-convert")
def main() -> None:
    """Convert PyTorch checkpoints to TensorFlow SavedModels, Keras files and ONNX, and prove that the result is the
    same function.

    \b
    Exit status: 0 done, 1 cannot be converted, 2 wrong usage, 3 does not agree or is not proven,
    4 the checkpoint is unreadable or refused; of several models the worst, in the order 3, 4, 1.
    """
    # Threads that spin while they wait slow each other down; TensorFlow logs at import. Read before their import.
    for name, value in {"OMP_WAIT_POLICY": "PASSIVE", "TF_CPP_MIN_LOG_LEVEL": "3"}.items():
        os.environ.setdefault(name, value)


@main.command()
@click.argument("models", nargs=-1, required=True, type=PATH, metavar="MODEL...")
@click.option(
    "--to", multiple=True, required=True, type=click.Choice(list(ENDINGS)), help="Format to write; repeatable."
)
@click.option(
    "-o", "--output", type=PATH, help="File or folder to write; a folder of them for several models or formats."
)
@architecture_options
@conversion_options
@mappings_option
@comparison_options
@trace_option
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
    no_verify: bool,
    **arguments: Any,
) -> None:
    """Convert models and prove that the results are the same functions."""
    import converter
    from converter.verification.image_folder import with_preprocessing

    terminal = terminal_of(quiet, verbose, log_file)
    models, to = tuple(dict.fromkeys(models)), tuple(dict.fromkeys(to))

    def convert_one(model: Path) -> ConversionReport:
        # Of several models each goes into the folder under a name of its own.
        own_output = paths[model, to[0]] if len(models) > 1 and len(to) == 1 else output
        report: ConversionReport = converter.convert(
            model,
            to=to,
            output=own_output,
            verify=not no_verify,
            progress=terminal.progress,
            **with_preprocessing(arguments),
        )
        return report

    planned = attempt(lambda: output_paths(models, to, output), ", ".join(map(str, models)), terminal)
    if isinstance(planned, Failure):
        results: list[Report] = [planned]
    else:
        paths = planned
        results = []
        for model in models:
            terminal.say(f"{model} -> {', '.join(to)}")
            result = attempt(partial(convert_one, model), str(model), terminal)
            if isinstance(result, ConversionReport):
                terminal.show_conversion(result)
            results.append(result)
        if len(models) > 1:
            terminal.show_table(results)
    finish({"schema": SCHEMA, "models": [result.to_dict() for result in results]}, results, as_json, report_file)


def shard_of(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    part, _, parts = value.partition("/")
    if not (part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
        raise click.BadParameter("give the part and how many there are, as 1/8")
    return int(part), int(parts)


@main.command()
@click.argument("places", nargs=-1, required=True, metavar="MANIFEST.toml|FILE|FOLDER|GLOB|-...")
@click.option("--to", multiple=True, type=click.Choice(list(ENDINGS)), help="Format to write; repeatable.")
@click.option("-o", "--output", type=PATH, help="Folder for artefacts, logs, the journal and summary.json.")
@click.option(
    "--check", is_flag=True, help="Say of each model whether it can be converted; -o is not needed, nothing is written."
)
@click.option("-j", "--jobs", type=click.IntRange(min=1), metavar="N", help="Models at once.  [default: what fits]")
@click.option(
    "--timeout", type=click.FloatRange(min=1), default=3600, metavar="S", help="Seconds for a model.  [default: 3600]"
)
@click.option(
    "--memory", type=click.FloatRange(min=0.1), metavar="GIB", help="Memory for a model.  [default: its share]"
)
@click.option("--retry-failed", is_flag=True, help="Begin again what did not end verified.")
@click.option("--fail-fast", is_flag=True, help="Begin no more once one did not end verified.")
@click.option("--shard", callback=shard_of, metavar="I/N", help="Convert only this part of the list, for job arrays.")
@click.option(
    "--scheduler", metavar="ADDRESS", help="Of a Dask scheduler whose workers shall convert, tcp://HOST:8786."
)
@click.option("--dry-run", is_flag=True, help="Show what would be done, and do nothing.")
@architecture_options
@conversion_options
@mappings_option
@comparison_options
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
    no_verify: bool,
    **arguments: Any,
) -> None:
    """Convert many checkpoints, and go on where an earlier batch into the same folder ended."""
    from converter.batch.check import check_many
    from converter.batch.display import BatchDisplay
    from converter.batch.jobs import work_list
    from converter.batch.run import convert_many

    context = click.get_current_context()
    if output is None and not check:
        raise click.MissingParameter(ctx=context, param=next(p for p in context.command.params if p.name == "output"))
    context.meta[RESUMES] = not check
    terminal = terminal_of(quiet, verbose, log_file)
    said = {name: plain(value) for name, value in arguments.items() if not unsaid(value)}
    if no_verify:
        said["verify"] = False

    def listed() -> list["Job"]:
        return work_list(places, to or tuple(ENDINGS if check else ()), said, lines=sys.stdin, part=shard)

    def done(work: list["Job"]) -> "BatchReport | Answers":
        how: dict[str, Any] = {
            "slots": jobs,
            "timeout": timeout,
            "memory": None if memory is None else int(memory * 2**30),
            "fail_fast": fail_fast,
            "scheduler": scheduler,
        }
        report: BatchReport | Answers
        with BatchDisplay(terminal) as display:
            if output is None or check:
                report = check_many(work, watcher=display, **how)
            else:
                report = convert_many(work, output=output, retry_failed=retry_failed, watcher=display, **how)
        display.show_summary(report)
        return report

    work = attempt(listed, ", ".join(places), terminal)
    if isinstance(work, Failure):
        finish(work.to_dict(), [work], as_json, None)
        return
    if dry_run:
        for job in work:
            made = job.to if output is None or check else map(str, job.outputs(output).values())
            click.echo(f"{job.path} -> {', '.join(made)}", err=True)
        content = {"schema": SCHEMA, "models": [{"name": job.name, **job.told()} for job in work]}
        finish(content, [], as_json, None)
        return
    result = attempt(lambda: done(work), ", ".join(places), terminal)
    finish(result.to_dict(), [result], as_json, None)


def unsaid(value: Any) -> bool:
    """Whether an option stands as it does where nothing is said."""
    return value is None or value is False or value == ()


def plain(value: Any) -> Any:
    """An option's value as JSON has it."""
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


@main.command()
@click.argument("model", type=PATH)
@click.argument("artefact", type=PATH)
@architecture_options
@comparison_options
@click.option(
    "--accept",
    multiple=True,
    type=click.Choice(get_args(ExplanationKind)),
    help="Count an artefact as agreeing that agrees after this only; repeatable.",
)
@click.option("--signature", metavar="NAME", help="Of a SavedModel or TFLite file that has several.")
@click.option("--weights", is_flag=True, help="Only find every tensor in the artefact, by its content; run nothing.")
@trace_option
@report_option
@message_options
def verify(
    model: Path,
    artefact: Path,
    report_file: Path | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    log_file: Path | None,
    **arguments: Any,
) -> None:
    """Compare an artefact with the model it was made from; any tool may have made it."""
    import converter
    from converter.verification.image_folder import with_preprocessing

    terminal = terminal_of(quiet, verbose, log_file)
    result = attempt(
        lambda: converter.verify(model, artefact, progress=terminal.progress, **with_preprocessing(arguments)),
        str(model),
        terminal,
    )
    if isinstance(result, VerificationReport):
        terminal.show_verification(result)
    finish(result.to_dict(), [result], as_json, report_file)


@main.command()
@click.argument("model", type=PATH)
@architecture_options
@mappings_option
@click.option("--layout", is_flag=True, help="Show the plan too: how each value lies, and what moves for which reason.")
@click.option(
    "--check", is_flag=True, help="Say whether it can be converted, by the exit status too; nothing is written."
)
@click.option(
    "--to", multiple=True, type=click.Choice(list(ENDINGS)), help="Format to check; repeatable.  [default: all]"
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

    terminal = terminal_of(quiet, verbose, log_file)
    if to and not check:
        raise click.UsageError("--to says which formats to --check; convert MODEL --to writes them")
    formats = (to or tuple(ENDINGS)) if check else ()
    result = attempt(lambda: converter.inspect(model, check=formats, **arguments), str(model), terminal)
    if not isinstance(result, Failure):
        terminal.show_summary(result)
    finish(result.to_dict(), [result], as_json, None)


def terminal_of(quiet: bool, verbose: bool, log_file: Path | None) -> "Terminal":
    from converter.terminal import Terminal

    try:
        terminal = Terminal(quiet, verbose, log_file)
    except OutputError as error:
        raise click.ClickException(str(error)) from error
    terminal.note(f"pt-convert {version('pt-convert')}: {shlex.join(sys.argv)}")
    return terminal


Result = TypeVar("Result")


def attempt(call: Callable[[], Result], source: str, terminal: "Terminal") -> Result | Failure:
    """Do it; what goes wrong is shown, and given back as a failure."""
    try:
        with terminal.quiet_libraries():
            return call()
    except KeyboardInterrupt as error:
        terminal.note("".join(traceback.format_exception(error)))
        raise
    except (Exception, SystemExit) as error:
        raise_again()
        failure = failure_of(error, source)
        terminal.show_failure(failure, "".join(traceback.format_exception(error)))
        return failure


def finish(content: dict[str, Any], results: Sequence[Report], as_json: bool, report_file: Path | None) -> None:
    """Write the report where it was asked for, and exit."""
    try:
        if report_file:
            write_report(report_file, content)
        if as_json:
            print_report(content)
    except OutputError as error:
        raise click.ClickException(str(error)) from error
    click.get_current_context().exit(worst_status(result.exit_status for result in results))


def print_report(content: dict[str, Any]) -> None:
    """On standard output; whoever reads no further, as `head` does, has what was asked for. Raises OutputError."""
    try:
        click.echo(json.dumps(content, indent=2, allow_nan=False))
    except OSError as error:
        with open(os.devnull, "w") as nowhere:  # noqa: PTH123  # what is still held is not written at the end either
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise OutputError(
                f"The report cannot be printed: {error.strerror}.", where="--json", cure="Make room, or use --report."
            ) from error


if __name__ == "__main__":
    main()
