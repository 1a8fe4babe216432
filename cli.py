"""The commands of `convert`: options, messages, exit statuses. What they do is in `converter`."""

import json
import os
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click

from converter.errors import ConversionError
from converter.outputs import ENDINGS, output_paths
from converter.report import (
    SCHEMA,
    ConversionReport,
    ExplanationKind,
    Failure,
    Report,
    VerificationReport,
    failure_of,
)

if TYPE_CHECKING:
    from converter.terminal import Terminal

DISAGREES = 3
INTERRUPTED = 130
WORST_FIRST = (DISAGREES, 4, 1, 2, 0)

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
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            ctx.exit(INTERRUPTED)

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


def with_preprocessing(arguments: dict[str, Any]) -> dict[str, Any]:
    """What was said of images as one argument."""
    said = {key.removeprefix("image_"): arguments.pop(key) for key in list(arguments) if key.startswith("image_")}
    said = {key: value for key, value in said.items() if value is not None}
    if not said:
        return arguments
    from converter.verification.images import Preprocessing

    return arguments | {"preprocessing": Preprocessing(**said)}


def options(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Join option decorators into one."""

    def decorate(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


PATH = click.Path(path_type=Path)

architecture_options = options(
    click.option(
        "--model",
        "factory",
        metavar="WHERE:FACTORY",
        help="What builds a state dict's architecture: package.module:factory, file.py:factory, timm:NAME or "
        "torchvision:NAME.",
    ),
    click.option(
        "--model-args",
        "factory_args",
        metavar="JSON",
        callback=json_object,
        help="Keyword arguments of the factory, as an object.",
    ),
    click.option(
        "--input-shape",
        "input_shapes",
        multiple=True,
        metavar="[NAME=]1,3,640,640[:DTYPE]",
        help="Shape of an input, batch first; once for each input.",
    ),
    click.option(
        "--trust", multiple=True, metavar="PACKAGE", help="Allow classes of this package to be unpickled; repeatable."
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
trace_option = click.option("--trace", is_flag=True, help="Show for every module what it computes on both sides.")
report_option = click.option(
    "--report", "report_file", type=PATH, metavar="FILE.json", help="Write the report to this file."
)
message_options = options(
    click.option("--json", "as_json", is_flag=True, help="Print the report as JSON on standard output."),
    click.option("-q", "--quiet", is_flag=True, help="Print only what went wrong."),
    click.option("-v", "--verbose", is_flag=True, help="Show all figures, tracebacks, and what libraries print."),
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
@click.option(
    "--layout",
    type=click.Choice(["auto", "nhwc", "nchw"]),
    default="auto",
    help="Layout of inputs and outputs of Keras and TensorFlow artefacts.  [default: auto]",
)
@click.option("--fixed-batch", type=click.IntRange(min=1), metavar="N", help="Write a model of this batch only.")
@click.option("--keep-batchnorm", is_flag=True, help="Do not fold batch norms into convolutions.")
@click.option("--opset", type=click.IntRange(min=1), metavar="N", help="ONNX opset.")
@click.option("--exact-shifts", is_flag=True, help="Make shifts of grid samples that interpolate on whole pixels.")
@click.option("--no-verify", is_flag=True, help="Write without proof; the report says so.")
@click.option("--keep-failed", is_flag=True, help="Keep an artefact that does not agree, under another name.")
@mappings_option
@comparison_options
@trace_option
@click.option("--force", is_flag=True, help="Replace what is in the way, even if it is not ours.")
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
    no_verify: bool,
    **arguments: Any,
) -> None:
    """Convert models and prove that the results are the same functions."""
    import converter
    from converter.terminal import Terminal

    terminal = Terminal(quiet, verbose)
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
            **with_preprocessing(dict(arguments)),
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
    **arguments: Any,
) -> None:
    """Compare an artefact with the model it was made from; any tool may have made it."""
    import converter
    from converter.terminal import Terminal

    terminal = Terminal(quiet, verbose)
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
@message_options
def inspect(model: Path, as_json: bool, quiet: bool, verbose: bool, **arguments: Any) -> None:
    """Show a model's modules, shapes, weights, and what each becomes."""
    import converter
    from converter.terminal import Terminal

    terminal = Terminal(quiet, verbose)
    result = attempt(lambda: converter.inspect(model, **arguments), str(model), terminal)
    if not isinstance(result, Failure):
        terminal.show_summary(result)
    finish(result.to_dict(), [result], as_json, None)


Result = TypeVar("Result")


def attempt(call: Callable[[], Result], source: str, terminal: "Terminal") -> Result | Failure:
    """Do it; what goes wrong is shown, and given back as a failure."""
    try:
        with terminal.quiet_libraries():
            return call()
    except (Exception, SystemExit) as error:
        failure = describe(error, source)
        terminal.show_failure(failure, "".join(traceback.format_exception(error)))
        return failure


def describe(error: BaseException, source: str) -> Failure:
    """Say what went wrong; what is no `ConversionError` is a fault of ours, unless the model's code ended it all."""
    if isinstance(error, ConversionError):
        return failure_of(error, source)
    if isinstance(error, SystemExit):
        what, cure = f"The model's code ended the program: sys.exit({error.code!r}).", "-v shows the traceback"
    else:
        what = f"{type(error).__name__}: {error}"
        cure = "this is a fault of the converter, please report it; -v shows the traceback"
    return Failure(source, type(error).__name__, what, None, cure, 1)


def finish(content: dict[str, Any], results: Sequence[Report], as_json: bool, report_file: Path | None) -> None:
    """Write the report where it was asked for, and exit."""
    text = json.dumps(content, indent=2, allow_nan=False)
    if as_json:
        click.echo(text)
    if report_file:
        try:
            report_file.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise click.FileError(str(report_file), error.strerror) from error
    statuses = {exit_status(result) for result in results}
    click.get_current_context().exit(next(status for status in WORST_FIRST if status in statuses))


def exit_status(result: Report) -> int:
    if isinstance(result, Failure):
        return result.exit_status
    if isinstance(result, ConversionReport):
        unproven = any(not proof.holds for artefact in result.artefacts for proof in artefact.proofs)
        statuses = {a.failure.exit_status for a in result.artefacts if a.failure}
        if unproven or result.status == "disagrees":
            statuses.add(DISAGREES)
        return next((status for status in WORST_FIRST if status in statuses), 0)
    if isinstance(result, VerificationReport):
        return 0 if result.status == "verified" else DISAGREES
    return 0


if __name__ == "__main__":
    main()
