"""The commands of `convert`: options, messages, exit statuses; `converter` does their work."""

import math
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.artifacts.paths import SUFFIXES, default_formats, output_paths
from converter.compat.keras_extras import hide_keras_extras
from converter.console.app import RESUMES, ConvertByDefault
from converter.console.command import Console, with_console
from converter.console.params import (
    OUTPUT,
    PATH,
    FormatName,
    GroupedCommand,
    bytes_of,
    in_group,
    options,
    report_option,
    shard_of,
    typed_for,
)
from converter.options import (
    ConvertOptions,
    InspectOptions,
    IntoOptions,
    PullOptions,
    SyncOptions,
    VerifyOptions,
    options_of,
    to_json,
)
from converter.report.failures import REPORTS, SCHEMA, Failure, Report
from converter.report.results import ArtifactReport, ConversionReport, IntoReport, VerificationReport

if TYPE_CHECKING:
    from converter.batch.jobs import Job
    from converter.batch.results import BatchReport, CheckResults
    from converter.report.results import ModelSummary

FORMAT = FormatName(list(SUFFIXES))


@click.group(cls=ConvertByDefault, context_settings={"max_content_width": 110, "help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pt-convert", prog_name="pt-convert")
def main() -> None:
    """Convert PyTorch models to TensorFlow, Keras, ONNX and LiteRT, and check that each computes the same function.

    \b
    Exit status: 0 done, 1 cannot be converted, 2 wrong usage, 3 the artifact
    differs or is not verified, 4 the checkpoint is unreadable or refused; with
    several models the worst, in the order 3, 4, 1, 2.
    """
    # Threads that spin while they wait slow each other down; TensorFlow logs on import. Both read these on import.
    for name, value in {"OMP_WAIT_POLICY": "PASSIVE", "TF_CPP_MIN_LOG_LEVEL": "3"}.items():
        os.environ.setdefault(name, value)
    hide_keras_extras()


@main.command(
    cls=GroupedCommand,
    examples=(
        "net.pt --to onnx --input-shape 1,3,224,224",
        "weights.pt --model nets.py:Net --to tf --input-shape 1,3,H,W",
    ),
)
@click.argument("models", nargs=-1, required=True, type=PATH, metavar="MODEL...")
@in_group("Output", "--to", multiple=True, required=True, type=FORMAT, help="Format to write; repeatable.")
@in_group(
    "Output",
    "-o",
    "--output",
    type=OUTPUT,
    help="File or folder to write; a folder of them for several models or formats, or if it exists or ends in /.",
)
@options(ConvertOptions)
@report_option
@with_console
def convert(
    models: tuple[Path, ...], to: tuple[str, ...], output: str | Path | None, console: Console, **arguments: Any
) -> None:
    """Convert models and prove that the results are the same functions."""
    import converter
    from converter.pipeline.preflight import check_call

    models, to = tuple(dict.fromkeys(models)), tuple(dict.fromkeys(to))

    def convert_one(model: Path) -> ConversionReport:
        # Each of several models goes into the folder under its own name.
        own_output: str | Path | None = paths[model, to[0]] if len(models) > 1 and len(to) == 1 else output
        check_call(model, ConvertOptions.of(**arguments))
        return console.imported(lambda: converter.convert)(
            model, to=to, output=own_output, progress=console.terminal.progress, **arguments
        )

    planned = console.run(lambda: output_paths(models, to, output, arguments["quantize"]), ", ".join(map(str, models)))
    if isinstance(planned, Failure):
        results: list[Report] = [planned]
    else:
        paths = planned
        results = []
        for model in models:
            console.terminal.say(f"{model} -> {', '.join(to)}")
            result = console.run(partial(convert_one, model), str(model))
            if isinstance(result, ConversionReport):
                console.terminal.show_conversion(result)
                for one in result.artifacts:
                    if one.path is not None and one.status in ("verified", "quantized"):
                        again = typed_for(verify, str(model), str(one.path), *enough(one))
                        console.terminal.say_line(f"To verify again: {again}")
            results.append(result)
        if len(models) > 1:
            console.terminal.show_table(results)
    console.exit(results, {"schema": SCHEMA, "models": [result.to_dict() for result in results]})


def enough(artifact: ArtifactReport) -> list[str]:
    """Return the options that say what a quantized file must reach, if none were given: a decibel less than it does."""
    least = artifact.quantization.sqnr_db if artifact.quantization is not None else math.inf
    typed = click.get_current_context().params
    if not math.isfinite(least) or typed["min_sqnr"] is not None or typed["min_accuracy"] is not None:
        return []
    return ["--min-sqnr", f"{math.floor(least) - 1}"]


@main.command(
    cls=GroupedCommand,
    examples=(
        "batch runs/ --to tf --input-shape 1,3,224,224 -o converted",
        "batch manifest.toml --to onnx -o converted --report page.html",
    ),
)
@click.argument("places", nargs=-1, required=True, metavar="MANIFEST.toml|FILE|FOLDER|GLOB|-...")
@in_group("Output", "--to", multiple=True, type=FORMAT, help="Format to write; repeatable.")
@in_group("Output", "-o", "--output", type=PATH, help="Folder for artifacts, logs, the journal and summary.json.")
@in_group(
    "Output", "--check", is_flag=True,
    help="Check whether each model can be converted; write nothing. -o is not needed.",
)  # fmt: skip
@in_group(
    "Batch", "-j", "--jobs", "slots", type=click.IntRange(min=1), metavar="N",
    help="Models at once.  [default: what fits]",
)  # fmt: skip
@in_group(
    "Batch", "--timeout", type=click.FloatRange(min=1), default=3600, metavar="S",
    help="Seconds for a model.  [default: 3600]",
)  # fmt: skip
@in_group(
    "Batch", "--memory", type=click.FloatRange(min=0.1), callback=bytes_of, metavar="GIB",
    help="Memory for a model.  [default: its share]",
)  # fmt: skip
@in_group("Batch", "--retry-failed", is_flag=True, help="Retry models that did not end verified.")
@in_group("Batch", "--fail-fast", is_flag=True, help="Stop at the first model that is not verified.")
@in_group(
    "Batch", "--shard", callback=shard_of, metavar="I/N", help="Convert only this part of the list, for job arrays."
)
@in_group(
    "Batch",
    "--scheduler",
    metavar="ADDRESS",
    help="Convert on the workers of this Dask scheduler, such as tcp://HOST:8786.",
)
@in_group("Batch", "--sync", is_flag=True, help="Put the checkpoints' weights into the artifacts that -o has already.")
@in_group("Batch", "--dry-run", is_flag=True, help="Show what would be done, and do nothing.")
@options(ConvertOptions)
@report_option
@with_console
def batch(
    places: tuple[str, ...],
    to: tuple[str, ...],
    output: Path | None,
    check: bool,
    retry_failed: bool,
    shard: tuple[int, int] | None,
    sync: bool,
    dry_run: bool,
    console: Console,
    **arguments: Any,
) -> None:
    """Convert many checkpoints, and go on where an earlier batch into the same folder ended."""
    from converter.batch.check import check_many
    from converter.batch.jobs import work_list
    from converter.batch.refresh import refreshed
    from converter.batch.run import convert_many
    from converter.console.batch_progress import BatchDisplay

    context = click.get_current_context()
    defaults = {name: field.default for name, _, field in options_of(ConvertOptions)}
    if output is None and not check:
        raise click.MissingParameter(ctx=context, param=next(p for p in context.command.params if p.name == "output"))
    if dry_run and (console.writes_page or console.junit or console.summary):
        raise click.UsageError("--dry-run has no results for --report FILE.html, --junit and --summary; leave them out")
    context.meta[RESUMES] = not check
    how = {name: arguments.pop(name) for name in ("slots", "timeout", "memory", "fail_fast", "scheduler")}
    said = {name: to_json(value) for name, value in arguments.items() if value not in (None, (), defaults[name])}

    def listed() -> list["Job"]:
        formats = to or (default_formats() if check else tuple(SUFFIXES) if sync else ())
        return work_list(places, formats, said, lines=sys.stdin, part=shard)

    def done(work: list["Job"]) -> "BatchReport | CheckResults":
        report: BatchReport | CheckResults
        with BatchDisplay(console.terminal) as display:
            if output is None or check:
                report = check_many(work, watcher=display, **how)
            else:
                report = convert_many(work, output=output, retry_failed=retry_failed, watcher=display, **how)
        display.show_summary(report, None if check else output)
        return report

    work = console.run(listed, ", ".join(places))
    if isinstance(work, Failure):
        console.exit([work])
        return
    if dry_run:
        for job in work:
            made = job.to if output is None or check else map(str, job.outputs(output).values())
            click.echo(f"{job.path} -> {', '.join(made)}", err=True)
        console.exit([], {"schema": SCHEMA, "models": [{"name": job.name, **job.to_json()} for job in work]})
        return
    if sync and output is not None:
        results: list[Report] = []
        for report in refreshed(work, output):
            if isinstance(report, Failure):
                console.terminal.show_failure(report, "")
            else:
                console.terminal.show_verification(report)
            results.append(report)
        console.exit(results, {"schema": SCHEMA, "models": [result.to_dict() for result in results]})
        return
    result = console.run(lambda: done(work), ", ".join(places))
    console.exit([result], pages=output / REPORTS if output is not None else None)


@main.command(
    cls=GroupedCommand,
    examples=(
        "verify net.pt net.onnx",
        "verify net.pt theirs.onnx --input-shape 1,3,224,224",
    ),
)
@click.argument("model", type=PATH)
@click.argument("artifact", type=PATH)
@options(VerifyOptions)
@report_option
@with_console
def verify(model: Path, artifact: Path, console: Console, **arguments: Any) -> None:
    """Compare an artifact with the model it was made from; any tool may have made it."""
    import converter
    from converter.pipeline.preflight import check_call

    def compare() -> VerificationReport:
        check_call(model, VerifyOptions.of(**arguments), artifact)
        return console.imported(lambda: converter.verify)(
            model, artifact, progress=console.terminal.progress, **arguments
        )

    result = console.run(compare, str(model))
    if isinstance(result, VerificationReport):
        console.terminal.show_verification(result)
    console.exit([result])


@main.command(cls=GroupedCommand, examples=("sync better.pt net.keras", "sync better.pt net.onnx -o better.onnx"))
@click.argument("model", type=PATH, metavar="NEW")
@click.argument("artifact", type=PATH)
@in_group("Output", "-o", "--output", type=PATH, help="File or folder to write.  [default: replace ARTIFACT]")
@options(SyncOptions)
@report_option
@with_console
def sync(model: Path, artifact: Path, output: Path | None, console: Console, **arguments: Any) -> None:
    """Put the weights of NEW, a checkpoint of the same architecture, into an artifact; --model compares outputs too."""
    import converter

    result = console.run(
        lambda: console.imported(lambda: converter.sync)(
            model, artifact, output=output, progress=console.terminal.progress, **arguments
        ),
        str(model),
    )
    if isinstance(result, VerificationReport):
        console.terminal.show_verification(result)
    console.exit([result])


@main.command(
    cls=GroupedCommand,
    examples=(
        "pull trained.keras net.pt -o trained.pt",
        "pull trained.keras net.pt --artifact net.keras -o trained.pt",
    ),
)
@click.argument("trained", type=PATH)
@click.argument("original", type=PATH)
@in_group("Output", "-o", "--output", type=PATH, required=True, help="State dict to write, .pt or .safetensors.")
@in_group("Model", "--artifact", type=PATH, help="Keras file that ORIGINAL was converted to; its model is not needed.")
@options(PullOptions)
@report_option
@with_console
def pull(
    trained: Path, original: Path, output: Path, artifact: Path | None, console: Console, **arguments: Any
) -> None:
    """Write a state dict with the weights of TRAINED, a Keras file trained after its conversion from ORIGINAL."""
    import converter

    def take() -> VerificationReport:
        progress = console.terminal.progress
        return console.imported(lambda: converter.pull)(
            trained, original, output=output, artifact=artifact, progress=progress, **arguments
        )

    result = console.run(take, str(trained))
    if isinstance(result, VerificationReport):
        console.terminal.show_verification(result)
        if result.verified:
            read = "safetensors.torch.load_file" if output.suffix == ".safetensors" else "torch.load"
            console.terminal.say_line(f"To load it: model.load_state_dict({read}({str(output)!r}))")
    console.exit([result])


@main.command(
    cls=GroupedCommand,
    examples=(
        "into net.pt keras_net.py:build --input-shape 1,3,224,224",
        "into net.pt keras_app:ResNet50 --input-shape 1,3,224,224",
    ),
)
@click.argument("model", type=PATH)
@click.argument("builder", metavar="FILE.py:FUNCTION|keras_app:NAME")
@in_group(
    "Output", "-o", "--output", type=PATH, help="The .keras or .weights.h5 file to write.  [default: MODEL.keras]"
)
@options(IntoOptions)
@report_option
@with_console
def into(model: Path, builder: str, output: Path | None, console: Console, **arguments: Any) -> None:
    """Put a PyTorch model's weights into a hand-written Keras model, matched by the values that flow."""
    import converter
    from converter.pipeline.preflight import check_call

    def filled() -> IntoReport:
        check_call(model, IntoOptions.of(**arguments), builder=builder)
        return console.imported(lambda: converter.into)(
            model, builder, output=output, progress=console.terminal.progress, **arguments
        )

    result = console.run(filled, str(model))
    if isinstance(result, IntoReport):
        console.terminal.show_into(result)
    console.exit([result])


@main.command(
    cls=GroupedCommand,
    examples=(
        "inspect net.pt --graph net.svg --input-shape 1,3,224,224",
        "inspect net.pt --check --to tf --input-shape 1,3,224,224",
    ),
)
@click.argument("model", type=PATH)
@options(InspectOptions)
@in_group("Output", "--plan", is_flag=True, help="Show the plan too: the layout of each value, and what moves and why.")
@in_group(
    "Output", "--graph", type=PATH, metavar="FILE.svg",
    help="Draw the operators, with the order of their axes as colors, and what moves data.",
)  # fmt: skip
@in_group(
    "Output",
    "--check",
    is_flag=True,
    help="Say whether it can be converted, by the exit status too; nothing is written.",
)
@in_group(
    "Output", "--to", multiple=True, type=FORMAT, help="Format to check; repeatable.  [default: all that are installed]"
)
@in_group(
    "Output",
    "--explain",
    multiple=True,
    type=click.Choice(["focus", "shift", "depthwise", "separable"]),
    help="Say what the model's packings or convolutions are elsewhere, in numbers; repeatable.",
)
@with_console
def inspect(
    model: Path,
    plan: bool,
    graph: Path | None,
    explain: tuple[str, ...],
    check: bool,
    to: tuple[str, ...],
    console: Console,
    **arguments: Any,
) -> None:
    """Show a model's modules, shapes, weights, and what each becomes."""
    import converter
    from converter.pipeline.preflight import check_call

    if to and not check:
        raise click.UsageError("--to says which formats to --check; convert MODEL --to writes them")
    formats = (to or default_formats()) if check else ()

    def describe() -> "ModelSummary":
        check_call(model, InspectOptions.of(**arguments))
        progress = console.terminal.progress
        return console.imported(lambda: converter.inspect)(
            model, check=formats, plan=plan, explain=explain, graph=graph, progress=progress, **arguments
        )

    result = console.run(describe, str(model))
    if not isinstance(result, Failure):
        console.terminal.show_summary(result)
        if graph is not None:
            console.terminal.say_line(f"Drawing: {graph}")
    console.exit([result])


@main.command(cls=GroupedCommand, examples=("report report.json -o page.html", "report converted/summary.json"))
@click.argument("report_json", type=PATH, metavar="REPORT.json")
@in_group("Output", "-o", "--output", type=PATH, metavar="FILE.html", help="Page to write.  [default: REPORT.html]")
@with_console
def report(report_json: Path, output: Path | None, console: Console) -> None:
    """Write a page of a JSON report, or of a batch's summary.json, that a browser shows without a network."""
    from converter.report.page import write_page

    result = console.run(lambda: write_page(report_json, output), str(report_json))
    if not isinstance(result, Failure):
        console.terminal.say(result.path)
    console.exit([result])


@main.command(cls=GroupedCommand, examples=("sample", "sample examples"))
@click.argument("folder", type=PATH, default=Path())
@with_console
def sample(folder: Path, console: Console) -> None:
    """Write the trained sample model into FOLDER/sample_models: a checkpoint, its code, and held-back images."""
    from converter.console.sample import WrittenSample, write_sample

    result = console.run(lambda: write_sample(folder), str(folder))
    if isinstance(result, WrittenSample):
        console.terminal.show_sample(result)
    console.exit([result])


@main.command(cls=GroupedCommand, examples=("doctor", "doctor --to onnx --json"))
@in_group("Output", "--to", multiple=True, type=FORMAT, help="Format to try; repeatable.  [default: all]")
@with_console
def doctor(to: tuple[str, ...], console: Console) -> None:
    """Show what works here: versions, formats, missing extras, and what is known to go wrong."""
    from converter.console.doctor import Diagnosis, diagnose

    result = console.run(lambda: diagnose(to, console.terminal.progress), "doctor")
    if isinstance(result, Diagnosis):
        console.terminal.show_diagnosis(result)
    console.exit([result])


if __name__ == "__main__":
    main()
