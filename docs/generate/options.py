"""Write docs/OPTIONS.md from the commands of `cli.py`.

python docs/generate/options.py
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/OPTIONS.md"
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

import cli  # noqa: E402  # found by the line above where this is run as a script
from converter.console.params import GROUPS, group_of  # noqa: E402

HEAD = """# Options

`python docs/generate/options.py` writes this page from `converter/options.py` and the commands; `--help` says the same,
but for `--debug`, which is for reports of faults.
In a manifest of `convert batch` the key of an option is its name without the dashes (`verify = false` for
`--no-verify`); in Python it is the keyword.
"""
TABLE = "| option | of | in Python | what it does |\n|---|---|---|---|"


def document() -> str:
    """The page: a table for each group."""
    options: dict[str, tuple[click.Option, list[str]]] = {}
    for name, command in cli.main.commands.items():
        for param in command.params:
            if isinstance(param, click.Option):
                options.setdefault(_row(param, ""), (param, []))[1].append(name)
    parts = [HEAD]
    for group in GROUPS:
        rows = [_row(option, ", ".join(of)) for option, of in options.values() if group_of(option) == group]
        if rows:
            parts.append("\n".join([f"## {group}\n", TABLE, *rows]) + "\n")
    return "\n".join(parts)


def _row(option: click.Option, of: str) -> str:
    names = ", ".join(f"`{name}`" for name in option.opts)
    keyword = f"`{option.name}`" if option.expose_value and option.name in _keywords() else ""
    value = option.metavar or (option.type.name.upper() if not option.is_flag else "")
    if isinstance(option.type, click.Choice) and option.metavar is None:
        value = "\\|".join(map(str, option.type.choices))
    return f"| {names}{f' `{value}`' if value else ''} | {of} | {keyword} | {option.help} |"


def _keywords() -> Iterator[str]:
    from converter.options import ConvertOptions, VerifyOptions, options_of

    for kind in (ConvertOptions, VerifyOptions):
        yield from (name for name, *_ in options_of(kind))


if __name__ == "__main__":
    PAGE.write_text(document(), encoding="utf-8")
