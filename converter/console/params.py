"""The options of the commands for click; those of a conversion are made from `converter.options`."""

import ast
import difflib
import os
import re
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import click
from click.shell_completion import CompletionItem

from converter.options import Flag, Group, json_type, options_of

Command = TypeVar("Command", bound=Callable[..., None])


def complete_factory(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete --model: Python files here, the definitions of a file, and the libraries."""
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
    """Complete --trust: packages and Python files of the current folder."""
    found = [path.parent.name for path in sorted(Path().glob("*/__init__.py"))]
    found += [path.name for path in sorted(Path().glob("*.py"))]
    return [CompletionItem(name) for name in found if name.startswith(incomplete)]


def trust_all(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    """Remember --trust-all, and warn."""
    if value:
        ctx.meta["pt-convert.trust-all"] = True
        click.echo("WARNING: --trust-all lets the checkpoint run any code on this machine, with your rights.", err=True)


def trusted(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    """Return the trusted names, including "all" for --trust-all."""
    return (*value, "all") if ctx.meta.get("pt-convert.trust-all") else value


class PathName(click.Path):
    """A path that libraries and reports can hold."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path, or fail for an empty one and for one that is not UTF-8."""
        if not str(value):
            self.fail("this is empty: give a path", param, ctx)
        try:
            str(value).encode()
        except UnicodeEncodeError:
            self.fail(f"{str(value)!r} is not UTF-8: rename it, or set a locale of UTF-8", param, ctx)
        return super().convert(value, param, ctx)


PATH = PathName(path_type=Path, readable=False)  # what reads it says so, with its own exit status


class OutputName(PathName):
    """A path to write; it stays a text if a slash at its end says that it is a folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path, or the text."""
        path = super().convert(value, param, ctx)
        return str(value) if str(value).endswith(("/", os.sep)) else path


OUTPUT = OutputName(path_type=Path, readable=False)

MEANT = {"savedmodel": "tf", "tensorflow": "tf", "pb": "tf", "h5": "keras", "hdf5": "keras", "onnxruntime": "onnx"}


class FormatName(click.Choice[str]):
    """A format to write; other names of one are explained."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the format, or fail with the ones that are probably meant."""
        parts = [part.strip() for part in str(value).split(",")]
        names = [MEANT.get(re.sub(r"[^a-z0-9]", "", part.lower())) or self._near(part) for part in parts]
        if value not in self.choices and all(names):
            meant = " ".join(f"--to {name}" for name in names)
            self.fail(f"{str(value)!r} is not a format. Did you mean {meant}?", param, ctx)
        return super().convert(value, param, ctx)

    def _near(self, text: str) -> str | None:
        return next(iter(difflib.get_close_matches(text.lower().lstrip("."), self.choices, n=1)), None)


GROUPS = (*get_args(Group), "Batch", "Messages")  # the headings of the help, in order


ARGUMENTS = "pt-convert.arguments"  # in the context: the words behind the command's name
TYPED = "pt-convert.typed"  # in the context: the options that were given, by their keywords


class GroupedOption(click.Option):
    """An option that the help lists under a heading."""

    def __init__(self, *names: Any, group: str, **settings: Any):
        super().__init__(*names, **settings)
        self.group = group


def group_of(option: click.Option) -> str:
    """Return the heading of an option."""
    return option.group if isinstance(option, GroupedOption) else "Messages"


def in_group(group: str, *names: str, **settings: Any) -> Callable[[Command], Command]:
    """Add an option of one command alone, under a heading."""
    return click.option(*names, cls=GroupedOption, group=group, **settings)


class GroupedCommand(click.Command):
    """A command whose help lists options by group, with or without a context of the group of commands.

    Args:
        examples: arguments of two calls, which the help shows behind the name that was typed.
    """

    def __init__(self, *arguments: Any, examples: tuple[str, ...], **settings: Any):
        super().__init__(*arguments, **settings)
        self.examples = examples

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Remember the options as they were typed, too."""
        ctx.meta[TYPED] = self.make_parser(ctx).parse_args(list(args))[0]
        ctx.meta[ARGUMENTS] = list(args)
        return super().parse_args(ctx, args)

    def get_help_option_names(self, ctx: click.Context) -> list[str]:
        return ["-h", "--help"]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the groups in their order; options without a group come last."""
        write_groups(ctx, formatter, self.get_params(ctx))
        write_examples(ctx, formatter, self.examples)


def typed_for(command: click.Command, *arguments: str) -> str:
    """Return a call of another command with the options that were typed for this one and that a stamp does not hold."""
    kept = [
        param
        for param in command.params
        if isinstance(param, click.Option)
        and (param.name == "preprocessing" or (group_of(param) in ("Model", "Verification") and param.name != "trace"))
    ]
    context = click.get_current_context()
    return f"{context.find_root().info_name} {shlex.join([command.name or '', *arguments, *typed_options(kept)])}"


def typed_options(params: Iterable[click.Option]) -> list[str]:
    """Return those of these options that were typed for the command that runs, with their values."""
    typed = click.get_current_context().meta[TYPED]
    words = []
    for param in params:
        value = typed.get(param.name)
        for one in value if isinstance(value, list) else [] if value is None else [value]:
            words += [param.opts[0]] if isinstance(one, bool) else [param.opts[0], one]
    return words


def write_examples(ctx: click.Context, formatter: click.HelpFormatter, examples: tuple[str, ...]) -> None:
    """Write calls, each on a line of its own."""
    typed = ctx.find_root().info_name or "convert"
    with formatter.section("Examples"):
        formatter.write("".join(f"  {typed} {example}\n" for example in examples))


def write_groups(ctx: click.Context, formatter: click.HelpFormatter, params: list[click.Parameter]) -> None:
    """Write the help of options, grouped."""
    groups: dict[str, list[tuple[str, str]]] = {name: [] for name in GROUPS}
    for param in params:
        if isinstance(param, click.Option) and (record := param.get_help_record(ctx)):
            groups[group_of(param)].append(record)
    for name, records in groups.items():
        if records:
            with formatter.section(name):
                formatter.write_dl(records)


_COMPLETIONS = {"factory": complete_factory, "package": complete_package}


def options(kind: type) -> Callable[[Command], Command]:
    """Give a command all options of a class of `converter.options`."""

    def decorate(command: Command) -> Command:
        for keyword, hint, field in reversed(options_of(kind)):
            flag: Flag | None = field.metadata.get("flag")
            if flag is None:
                continue
            command = click_option(keyword, hint, flag, field.default)(command)
            if keyword == "trust":
                command = _trust_all(command)
        return command

    return decorate


def click_option(keyword: str, hint: Any, flag: Flag, default: Any) -> Callable[[Command], Command]:
    """Return the decorator of one option, whose value is None, False, or an empty tuple if it is not given."""
    settings: dict[str, Any] = {"cls": GroupedOption, "group": flag.group, "metavar": flag.metavar}
    settings["hidden"] = flag.hidden
    text = flag.help
    literal = next((one for one in (hint, *get_args(hint)) if get_origin(one) is Literal), None)
    if json_type(hint) is bool:
        settings |= {"is_flag": True, "flag_value": not default, "default": default}
    else:
        if shown := flag.default or (default if default not in (None, ()) else ""):
            text += f"  [default: {shown}]"
        settings |= {"type": _type(hint, literal, flag), "multiple": get_origin(hint) is tuple and flag.parse is None}
    if flag.parse is not None:
        settings["callback"] = _parsed(flag.parse)
    if flag.completes is not None:
        settings["shell_complete"] = _COMPLETIONS[flag.completes]
    if keyword == "trust":
        settings["callback"] = trusted
    return click.option(flag.name, keyword, help=text, **settings)


def _type(hint: Any, literal: Any, flag: Flag) -> Any:
    if literal is not None:
        return click.Choice(get_args(literal))
    if flag.is_path:
        return PATH
    match json_type(hint):
        case kind if kind is int:
            return click.IntRange(min=None if flag.minimum is None else int(flag.minimum))
        case (_, _):
            return click.FLOAT if flag.minimum is None else click.FloatRange(min=flag.minimum)
    return str


def _parsed(parse: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    def callback(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
        try:
            return None if value is None else parse(value)
        except ValueError as error:
            raise click.BadParameter(str(error)) from error

    return callback


_trust_all = in_group(
    "Model",
    "--trust-all",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=trust_all,
    help="Allow the file to run any code. Only for files that you made yourself.",
)


def joined(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Join option decorators into one."""

    def decorate(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


report_option = joined(
    in_group(
        "Output", "--report", "report_file", type=PATH, metavar="FILE.json|FILE.html",
        help="Write the report to this file, as JSON or as a page that a browser shows.",
    ),
    in_group("Output", "--junit", type=PATH, metavar="FILE.xml", help="Write the results as JUnit XML."),
    in_group("Output", "--summary", is_flag=True, help="Append a table to the file that GITHUB_STEP_SUMMARY names."),
)  # fmt: skip


message_options = joined(
    in_group("Output", "--json", "as_json", is_flag=True, help="Print the report as JSON on standard output."),
    click.option("-q", "--quiet", is_flag=True, help="Print only what went wrong."),
    click.option("-v", "--verbose", is_flag=True, help="Show all figures, tracebacks, and what libraries print."),
    click.option("--log-file", type=PATH, metavar="FILE", help="Add all that -v shows to this file, with times."),
)


def shard_of(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """Parse `I/N`."""
    if value is None:
        return None
    part, _, parts = value.partition("/")
    if not (part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
        raise click.BadParameter("give the part and how many there are, as 1/8")
    return int(part), int(parts)


def bytes_of(ctx: click.Context, param: click.Parameter, value: float | None) -> int | None:
    """Convert GiB."""
    return None if value is None else int(value * 2**30)
