"""The options and arguments of the commands, as click has them."""

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

Command = TypeVar("Command", bound=Callable[..., None])


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


def parse_floats(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[float, ...] | None:
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


def complete_factory(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
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


def complete_package(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
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
        shell_complete=complete_factory,
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
        shell_complete=complete_package,
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
    click.option(
        "--image-mean", metavar="R,G,B", callback=parse_floats, help="Taken from the scaled pixels.  [default: 0]"
    ),
    click.option(
        "--image-std", metavar="R,G,B", callback=parse_floats, help="They are divided by it then.  [default: 1]"
    ),
    click.option("--image-order", type=click.Choice(["rgb", "bgr"]), help="Order of the channels.  [default: rgb]"),
)


conversion_options = options(
    click.option(
        "--layout",
        type=click.Choice(["auto", "nhwc", "nchw"]),
        default="auto",
        help="Layout of inputs and outputs of Keras and TensorFlow artifacts.  [default: auto]",
    ),
    click.option("--fixed-batch", type=click.IntRange(min=1), metavar="N", help="Write a model of this batch only."),
    click.option("--keep-batchnorm", is_flag=True, help="Do not fold batch norms into convolutions."),
    click.option("--opset", type=click.IntRange(min=1), metavar="N", help="ONNX opset."),
    click.option("--exact-shifts", is_flag=True, help="Make shifts of grid samples that interpolate on whole pixels."),
    click.option("--no-verify", is_flag=True, help="Write without proof; the report says so."),
    click.option("--keep-failed", is_flag=True, help="Keep an artifact that does not agree, under another name."),
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


def shard_of(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    part, _, parts = value.partition("/")
    if not (part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
        raise click.BadParameter("give the part and how many there are, as 1/8")
    return int(part), int(parts)
