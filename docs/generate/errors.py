"""Write docs/errors, a page for each code of an error or a note, and their index docs/ERRORS.md, from the source.

    python docs/generate/errors.py [--write]

A code stands in the source where its error is raised or its note is made, as `code="PTC0123"`, beside the message and
the fix. Without `--write`, print the next free code of each range.
"""

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from converter import errors  # noqa: E402

HOLE = "…"
VARIES = "The message says what to do; it depends on the case."
CODE = re.compile(r"PTC\d{4}")
FIRST_NOTE = 500  # in each range, notes follow the errors
RANGES = {
    1: "Reading a checkpoint",
    2: "Capturing the model",
    3: "Rewriting and lowering",
    4: "Writing and opening artifacts",
    5: "Verification",
    6: "Usage, batches and reports",
    9: "The system, and unexpected errors",
}
HEAD = f"""# Errors and notes

`python docs/generate/errors.py --write` writes this page and those that it links to from the source. `{HOLE}` stands
for what a message fills in. A note can be left out of the terminal and the report with `--silence CODE`.

Exit status 3 is not an error: the artifact was written, and differs from the model or was not proven; see
[VERIFICATION.md](VERIFICATION.md). For signals, the status is 128 and their number; see [FAULTS.md](FAULTS.md). The
command line itself reports unknown options and missing values, with status 2 and without a code.
"""

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Coded:
    """An error or a note: its code, its class, what it may say, and where it stands."""

    code: str
    kind: str
    messages: list[str]
    fixes: list[str]
    file: Path
    function: Function | None

    @property
    def message(self) -> str:
        return " / ".join(self.messages)

    @property
    def status(self) -> int | None:
        """The exit status, or None for a note."""
        kind = getattr(errors, self.kind, errors.ConversionError)  # `failure` makes one of a batch
        return getattr(kind, "exit_status", None)


@dataclass(frozen=True)
class Place:
    """A statement, and the innermost function around it."""

    statement: ast.stmt
    function: Function | None


class Source:
    """A file, and what the names in it stand for."""

    def __init__(self, path: Path):
        self.path, self.tree = path, ast.parse(path.read_text(encoding="utf-8"))
        self.functions = {node.name: node for node in ast.walk(self.tree) if isinstance(node, Function)}

    def coded(self) -> Iterator[Coded]:
        """List every call with a literal code."""
        for call, place in self._calls(self.tree, Place(self.tree.body[0], None)):
            given = {keyword.arg: keyword.value for keyword in call.keywords}
            match given.get("code"):
                case ast.Constant(value=str(code)) if CODE.fullmatch(code):
                    name = ast.unparse(call.func).rpartition(".")[2]
                    of_task = name == "failure"  # failure(task, what, fix)
                    messages = self.texts(call.args[1 if of_task else 0], place)
                    fixes = self.texts(call.args[2] if of_task else given.get("fix", ast.Constant(None)), place)
                    yield Coded(
                        code, name, messages, [VARIES if f == HOLE else f for f in fixes], self.path, place.function
                    )

    def _calls(self, node: ast.AST, place: Place) -> Iterator[tuple[ast.Call, Place]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Call):
                yield child, place
            function = child if isinstance(child, Function) else place.function
            yield from self._calls(child, Place(child, function) if isinstance(child, ast.stmt) else place)

    def texts(self, node: ast.expr | None, place: Place, seen: frozenset[str] = frozenset()) -> list[str]:
        """List what an expression may be, with `…` for what is only known at run time; `seen` are names on the way."""

        def every(*nodes: ast.expr | None) -> list[str]:
            return list(dict.fromkeys(text for node in nodes for text in self.texts(node, place, seen)))

        match node:
            case ast.Constant(value=str(text)):
                return [_one_line(text)]
            case ast.Constant(value=None):
                return []
            case ast.JoinedStr():
                parts = [part.value if isinstance(part, ast.Constant) else HOLE for part in node.values]
                return [_one_line("".join(map(str, parts)))]
            case ast.BinOp(op=ast.Add()):
                return [_one_line(left + right) for left in every(node.left) for right in every(node.right)]
            case ast.IfExp():
                return every(node.body, node.orelse)
            case ast.BoolOp():
                return every(*node.values)
            case ast.Name(id=name) if name not in seen:
                seen = seen | {name}
                assigned = _assigned(name, place.function, place.statement) or _assigned(name, self.tree, None)
                return every(*assigned) or [HOLE]
            case ast.Call(func=ast.Name(id=name)) if name in self.functions and name not in seen:
                seen = seen | {name}
                returns = [r for r in ast.walk(self.functions[name]) if isinstance(r, ast.Return)]
                places = [Place(r, self.functions[name]) for r in returns]
                return [t for r, at in zip(returns, places, strict=True) for t in self.texts(r.value, at, seen)]
        return [HOLE]


def _assigned(name: str, scope: ast.AST | None, before: ast.stmt | None) -> list[ast.expr]:
    """List what is assigned to a name before a statement: last, or in branches after that."""
    found = [
        node
        for node in (ast.walk(scope) if scope else ())
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name
        if before is None or node.lineno < before.lineno
    ]
    values = []
    for node in sorted(found, key=lambda node: -node.lineno):
        values.append(node.value)
        if before is not None and node.col_offset <= before.col_offset:  # not in a branch of its own
            break
    return values[::-1]


def _one_line(text: str) -> str:
    return re.sub(rf"{HOLE}{HOLE}+", HOLE, " ".join(text.split(" ")).replace("\n", " "))


def coded() -> list[Coded]:
    """List all errors and notes by their codes."""
    files = [*(ROOT / "converter").rglob("*.py"), *(ROOT / "mappings").rglob("*.py"), ROOT / "cli.py"]
    return sorted((one for file in files for one in Source(file).coded()), key=lambda one: one.code)


def next_free(listed: list[Coded]) -> Iterator[tuple[str, str, str]]:
    """List each range with the next code of an error and of a note."""
    for number, title in RANGES.items():
        used = [int(one.code[4:]) for one in listed if one.code[3] == str(number)]
        error = max((n for n in used if n <= FIRST_NOTE), default=0) + 1
        note = max((n for n in used if n > FIRST_NOTE), default=FIRST_NOTE) + 1
        yield title, f"PTC{number}{error:03d}", f"PTC{number}{note:03d}"


def pages() -> dict[Path, str]:
    """Return the text of every page, by its path below docs."""
    listed = coded()
    index = [HEAD]
    for number, title in RANGES.items():
        index.append(f"\n## {title}\n\n| code | message |\n|---|---|\n")
        index += [
            f"| [{one.code}](errors/{one.code}.md) | {one.message.replace('|', chr(92) + '|')} |\n"
            for one in listed
            if one.code[3] == str(number)
        ]
    return {Path("ERRORS.md"): "".join(index)} | {Path(f"errors/{one.code}.md"): page(one) for one in listed}


def page(one: Coded) -> str:
    """Return the page of a code: its messages, when it happens, what to do, the exit status."""
    file = one.file.relative_to(ROOT).as_posix()
    where = f"[`{file}`](../../{file})" + (f", `{one.function.name}`" if one.function else "")
    doc = ast.get_docstring(one.function) if one.function else None
    does = f': "{doc.splitlines()[0]}"' if doc else ""
    messages, fixes = ("".join(f"- {text}\n" for text in texts) for texts in (one.messages, one.fixes))
    status = f"`{one.kind}`, exit status {one.status}" if one.status is not None else "a note; the exit status stays"
    return (
        f"# {one.code}\n\n{messages}\n"
        f"**When:** {RANGES[int(one.code[3])].lower()}, in {where}{does}\n\n"
        + (f"**Fix:**\n\n{fixes}\n" if fixes else f"To leave it out: `--silence {one.code}`.\n\n")
        + f"**Kind:** {status}.\n\n[All codes](../ERRORS.md)\n"
    )


@click.command()
@click.option("--write", is_flag=True, help="Write the pages.")
def main(write: bool) -> None:
    """Print the next free code of each range, or write the pages."""
    if not write:
        for title, error, note in next_free(coded()):
            click.echo(f"{error} for an error, {note} for a note: {title}")
        return
    written = pages()
    (ROOT / "docs/errors").mkdir(exist_ok=True)
    for path in (ROOT / "docs/errors").glob("*.md"):
        if path.relative_to(ROOT / "docs") not in written:
            path.unlink()
    for path, text in written.items():
        (ROOT / "docs" / path).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
