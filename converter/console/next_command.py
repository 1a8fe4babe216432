"""Name the command to try after a refusal: the one that was typed, with the option that its fix names."""

import re
import shlex
from collections.abc import Sequence
from difflib import get_close_matches

import click

from converter.console.params import ARGUMENTS, TYPED, typed_options

OPTION = re.compile(r"(?<![\w-])(--?[a-z][a-z-]*)(?: ('[^']*'|\"[^\"]*\"|[^\s;()]+))?")
INSTALL = re.compile(r"pip install (?:(?:-\S+ )*)(?:\"[^\"]+\"|'[^']+'|[^\s,;]+)")
OF_THE_BATCH = {"output", "report_file", "junit", "summary", "as_json"}  # what it writes
MEANT = re.compile(r"Did you mean ([\w./-]+)(?: or [\w./-]+)*\?")
NOT_VALUES = {"a", "an", "and", "for", "if", "in", "only", "or", "out", "that", "to", "with", "wrote"}
LEAVE = re.compile(r"(?:leave|leave out|only with|without)\s*$", re.IGNORECASE)


def program_name() -> str:
    """Return the name by which this program was called."""
    context = click.get_current_context(silent=True)
    return (context.find_root().info_name if context else None) or "convert"


def try_next(fix: str | None, code: str) -> str:
    """Return the command to try after an error of the command that runs; "" if none runs."""
    context = click.get_current_context(silent=True)
    if context is None or ARGUMENTS not in context.meta:
        return ""
    return command_to_try(fix, code, context.command, program_name(), context.meta[ARGUMENTS])


def try_one(path: str, fix: str | None, code: str) -> str:
    """Return the command to try after an error of a batch's model: that model alone, unless the batch is at fault."""
    context = click.get_current_context(silent=True)
    root = context.find_root() if context is not None else None
    if context is None or root is None or TYPED not in context.meta or not isinstance(root.command, click.Group):
        return ""
    convert = root.command.get_command(root, "convert")
    assert convert is not None
    options = [param for param in convert.params if isinstance(param, click.Option) and param.name not in OF_THE_BATCH]
    own = {name for param in options for name in param.opts}
    named = {found.group(1) for found in OPTION.finditer(fix or "")}
    if named & {name for param in context.command.params for name in param.opts} - own:
        return try_next(fix, code)
    return command_to_try(fix, code, convert, program_name(), [path, *typed_options(options)])


def caution(command: str) -> str:
    """Return what stands before a command to try."""
    context = click.get_current_context(silent=True)
    typed = context.meta.get(ARGUMENTS, ()) if context is not None else ()
    more = command.count(" --trust") > sum(word.startswith("--trust") for word in typed)
    asks_for_trust = more and not command.endswith(" -v")  # with -v: what was typed, told at length
    return "try, if you trust the file's maker" if asks_for_trust else "try"


def command_to_try(fix: str | None, code: str, command: click.Command, program: str, typed: Sequence[str]) -> str:
    """Return a command line.

    Args:
        fix: of the error.
        code: of the error.
        command: that was typed.
        program: the name that it was typed by.
        typed: the arguments behind the command's name.
    """
    taken = {name: param for param in command.params if isinstance(param, click.Option) for name in param.opts}
    words = [program, *([] if command.name == "convert" else [str(command.name)])]
    if meant := MEANT.search(fix or ""):
        corrected = _corrected(typed, meant.group(1))
        if corrected is not None:
            return shlex.join([*words, *corrected])
    install = INSTALL.search(fix or "")
    options = list(OPTION.finditer(fix or ""))
    if install and (not options or install.start() < options[0].start()):
        return install.group().rstrip(".")
    for found in options:
        name = found.group(1)
        before = (fix or "")[: found.start()]
        if name not in taken or before.rstrip().endswith((" that", " which")):
            continue
        if LEAVE.search(before) or found.group(2) in ("out", "only"):
            kept = _without(typed, taken[name], found.group(2))
            if len(kept) < len(typed) and not (taken[name].required and not _names(kept) & {*taken[name].opts}):
                return shlex.join([*words, *kept])
            continue
        return shlex.join([*words, *_with(typed, fix or "", found.start(), taken)])
    if code.startswith("PTC9") or {"-v", "--verbose"} & set(typed):
        return f"{program} doctor"
    if code.startswith("PTC6"):
        return f"{program} {command.name} --help"
    return shlex.join([*words, *typed, "-v"])


def _with(typed: Sequence[str], fix: str, start: int, taken: dict[str, click.Option]) -> list[str]:
    """Return the arguments with the option that stands in a text, and with others right behind it."""
    kept, added = list(typed), list[str]()
    while (found := OPTION.match(fix, start)) and (option := taken.get(found.group(1))):
        value = (found.group(2) or "").rstrip(".,:'\"`").lstrip("'\"`")
        if not option.multiple or option.name == "input_shapes":
            kept = _without(kept, option)
        if option.name == "input_shapes" and "--image-size" in taken:  # only one of them is taken
            kept = _without(kept, taken["--image-size"])
        if option.is_flag:
            added.append(found.group(1))
            break
        known = value and value not in NOT_VALUES and not value.startswith("-")
        added += [found.group(1), value if known else _metavar(option)]
        start = found.end() + 1
        if not known or (found.group(2) or "")[-1:] in ".,:":
            break
    return [*kept, *added]


def _corrected(typed: Sequence[str], meant: str) -> list[str] | None:
    """Return the arguments with the part that is most like a name replaced by it, or None if none is like it."""
    parts = [(number, part) for number, word in enumerate(typed) for part in re.split(r"[:=,]", word)]
    near = get_close_matches(meant, [part for _, part in parts if part != meant], 1)
    for number, part in parts:
        if near and part == near[0]:
            return [*typed[:number], typed[number].replace(part, meant), *typed[number + 1 :]]
    return None


def _metavar(option: click.Option) -> str:
    choices = option.type.choices if isinstance(option.type, click.Choice) else ()
    return option.metavar or "|".join(choices) or option.type.name.upper()


def _without(typed: Sequence[str], option: click.Option, value: str | None = None) -> list[str]:
    """Return the arguments without an option and its values; if it can have several, and one is given, without that."""
    kept: list[str] = []
    words = list(typed)
    while words:
        word = words.pop(0)
        name, equals, held = word.partition("=")
        if name not in option.opts:
            kept.append(word)
            continue
        given = [] if option.is_flag or equals else words[:1]
        del words[: len(given)]
        if option.multiple and value and (given[0] if given else held) != value.rstrip(".,:"):
            kept += [word, *given]
    return kept


def _names(typed: Sequence[str]) -> set[str]:
    return {word.partition("=")[0] for word in typed}
