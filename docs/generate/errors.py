"""Every error that the program can end with, read from its source, and what to do about it.

    python docs/generate/errors.py [--write docs/ERRORS.md]

A message stands in the source where it is raised, mostly with its fix. What is filled in when it is raised is `…`
here. `EXPLAINED` holds the fixes of those that have none there, or only one that is filled in.
"""

import ast
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import click

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from converter import errors  # noqa: E402

HOLE = "…"
# Functions that make a failure without raising it, and the positions of message and fix among their arguments.
FAILURES = {"failure": (1, 2), "Failure": (2, 4)}
FAILED = "Failure"
DEEPEST = 6  # names looked up one after another

TITLES = {
    "UsageError": "Wrong usage",
    "CheckpointError": "The checkpoint is unreadable or refused",
    "CaptureError": "The model cannot be captured",
    "UnsupportedOperatorsError": "Operators without a mapping",
    "OutputError": "The artifact cannot be written",
    "MemoryLimitError": "Memory",
    "ConversionError": "Other reasons",
    FAILED: "In a batch, and in the model's own code",
}
HEAD = f"""# Errors and their fixes

Written by `python docs/generate/errors.py --write docs/ERRORS.md` from the program's source; a test holds the two
together. `{HOLE}` is what a message fills in: a name, a size, what a library said. An error names also where it is: a
file, an option, a module of the model with its source line. `-v` shows the traceback, `--log-file` keeps it.

Status 3 is no error: the artifact was made, and does not agree with the model or proves nothing; README, "What is
verified, and how". Signals end with 128 and their number, see [FAULTS.md](FAULTS.md). Options that do not exist, or
lack a value, are told by the command line itself, with status 2.
"""

Scope = ast.FunctionDef | ast.Module


@dataclass(frozen=True)
class Place:
    """A statement, and the innermost function around it."""

    scope: Scope
    statement: ast.stmt


@dataclass
class Found:
    """A message and its fixes, wherever it is raised."""

    kind: str
    message: str
    fixes: list[str] = field(default_factory=list)


class Source:
    """One file, and what its names stand for."""

    constants: ClassVar[dict[str, ast.expr]] = {}  # of all files: they import them from each other

    def __init__(self, path: Path):
        self.tree = ast.parse(path.read_text(encoding="utf-8"))
        self.functions = {node.name: node for node in ast.walk(self.tree) if isinstance(node, ast.FunctionDef)}
        for node in self.tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                self.constants.setdefault(node.targets[0].id, node.value)

    def calls(self) -> Iterator[tuple[ast.Call, Place]]:
        """Every call, and where it stands."""

        def visit(node: ast.AST, place: Place) -> Iterator[tuple[ast.Call, Place]]:
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.Call):
                    yield child, place
                inner = place
                if isinstance(child, ast.FunctionDef):
                    inner = Place(child, child)
                elif isinstance(child, ast.stmt):
                    inner = Place(place.scope, child)
                yield from visit(child, inner)

        yield from visit(self.tree, Place(self.tree, self.tree.body[0]))

    def texts(self, node: ast.expr | None, place: Place, depth: int = 0) -> list[str]:
        """What an expression may be, `…` where that is known when it runs only."""
        if node is None or depth > DEEPEST:
            return [HOLE]
        match node:
            case ast.Constant(value=str(text)):
                return [text]
            case ast.Constant(value=None):
                return []
            case ast.JoinedStr():
                return ["".join(part.value if isinstance(part, ast.Constant) else HOLE for part in node.values)]
            case ast.BinOp(op=ast.Add()):
                left, right = (self.texts(side, place, depth + 1) for side in (node.left, node.right))
                return [a + b for a in left for b in right]
            case ast.IfExp():
                return [*self.texts(node.body, place, depth + 1), *self.texts(node.orelse, place, depth + 1)]
            case ast.BoolOp():
                return [text for value in node.values for text in self.texts(value, place, depth + 1)]
            case ast.Name():
                return self._named(node.id, place, depth + 1)
            case ast.Call(func=ast.Attribute(value=text, attr="strip" | "rstrip")):
                return self.texts(text, place, depth + 1)
            case ast.Call(func=ast.Name(id=name)) if name in self.functions:
                function = self.functions[name]
                returned = [r for r in ast.walk(function) if isinstance(r, ast.Return)]
                return [text for r in returned for text in self.texts(r.value, Place(function, r), depth + 1)]
        return [HOLE]

    def _named(self, name: str, place: Place, depth: int) -> list[str]:
        found = [
            text
            for statement, value in _assigned(name, place)
            for text in self.texts(value, Place(place.scope, statement), depth)
        ]
        if found or not isinstance(place.scope, ast.FunctionDef):
            return found or [HOLE]
        parameters = [argument.arg for argument in (*place.scope.args.args, *place.scope.args.kwonlyargs)]
        if name in parameters:
            given = [
                text
                for call, outer in self.calls()
                if _name_of(call) == place.scope.name
                for text in self.texts(_argument(call, parameters.index(name), name), outer, depth)
            ]
            return given or [HOLE]
        if name not in self.constants:
            return [HOLE]
        return self.texts(self.constants[name], Place(self.tree, self.tree.body[0]), depth)


def _assigned(name: str, place: Place) -> list[tuple[ast.stmt, ast.expr]]:
    """What is assigned to a name before it is used: last, or in branches after that."""
    found: list[tuple[ast.stmt, ast.expr]] = []
    for node in ast.walk(place.scope):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name) and target.id == name:
                    found.append((node, node.value))
                elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    pairs = zip(target.elts, node.value.elts, strict=True)
                    found += [(node, given) for one, given in pairs if isinstance(one, ast.Name) and one.id == name]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            found += [(node, node.value)] * (node.target.id == name)
    before = sorted((one for one in found if one[0].lineno < place.statement.lineno), key=lambda one: -one[0].lineno)
    may_be = []
    for one in before:
        may_be.append(one)
        if one[0].col_offset <= place.statement.col_offset:  # in no branch of its own
            break
    return may_be[::-1]


def _name_of(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else ""


def _argument(call: ast.Call, position: int, name: str) -> ast.expr | None:
    for keyword in call.keywords:
        if keyword.arg == name:
            return keyword.value
    return call.args[position] if position < len(call.args) else None


def _given(call: ast.Call, position: int, name: str) -> bool:
    return position < len(call.args) or any(keyword.arg == name for keyword in call.keywords)


def _one_line(text: str) -> str:
    """As it stands in a table: one line, one hole where several stand beside each other."""
    line = " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
    while f"{HOLE}{HOLE}" in line:
        line = line.replace(f"{HOLE}{HOLE}", HOLE)
    return line.strip()


def error_classes() -> dict[str, int]:
    """Every class of ours with its exit status."""
    classes = {
        name: one.exit_status
        for name, one in vars(errors).items()
        if isinstance(one, type) and issubclass(one, errors.ConversionError)
    }
    return classes | {FAILED: 1}


def our_files() -> list[Path]:
    return [*sorted((ROOT / "converter").rglob("*.py")), *sorted((ROOT / "mappings").rglob("*.py")), ROOT / "cli.py"]


def found_errors(files: Sequence[Path]) -> list[Found]:
    """Every error in the source, in the order of `TITLES`, then of messages."""
    sources = [Source(file) for file in files]
    classes = error_classes()
    found: dict[tuple[str, str], Found] = {}
    for source in sources:
        for call, place in source.calls():
            name = _name_of(call)
            if name in FAILURES and isinstance(place.scope, ast.FunctionDef) and place.scope.name in FAILURES:
                continue  # its callers say what
            if name in FAILURES:
                kind, (at, fix_at) = FAILED, FAILURES[name]
            elif name in classes:
                kind, at, fix_at = name, 0, len(call.args) + 1
            else:
                continue
            fixes = source.texts(_argument(call, fix_at, "fix"), place) if _given(call, fix_at, "fix") else []
            for text in source.texts(_argument(call, at, "what"), place):
                message = _one_line(text)
                if name == FAILED and message == HOLE:  # of an error that was raised elsewhere
                    continue
                entry = found.setdefault((kind, message), Found(kind, message))
                entry.fixes += [c for fix in fixes if (c := _one_line(fix)) not in (*entry.fixes, HOLE, "")]
    order = list(TITLES)
    return sorted(found.values(), key=lambda one: (order.index(one.kind), one.message.lower()))


def explained(one: Found) -> str:
    """What to do: as the error says itself, and what `EXPLAINED` adds."""
    return "; or: ".join([*one.fixes, *([EXPLAINED[one.message]] if one.message in EXPLAINED else [])])


def document() -> str:
    parts, classes = [HEAD], error_classes()
    listed = found_errors(our_files())
    for kind, title in TITLES.items():
        rows = [one for one in listed if one.kind == kind]
        parts.append(f"\n## {title}\n\n`{kind}`, status {classes[kind]}.\n\n| message | what to do |\n|---|---|\n")
        parts += [f"| {one.message} | {explained(one)} |\n" for one in rows if one.message != HOLE]
    return "".join(parts)


EXPLAINED: dict[str, str] = {
    "… imports …, which is not installed": "install it, or run from the folder that holds it",
    "A folder of images fits a model with one input (batch, channels, height, width).": "give --inputs an .npz with an "
    "array for each input",
    "either all input shapes have a name or none, each its own": "name every --input-shape, NAME=1,3,224,224, or none",
    "Inputs of dtype … cannot be drawn.": "give your own with --inputs",
    "No such preprocessing of images: …, ….": "`fit` is stretch, crop or pad, `order` rgb or bgr",
    "Scale, mean and std are to be numbers, std not 0.": "as in --image-mean 0.485,0.456,0.406",
    "The cluster does not answer: ….": "see that the scheduler runs at this address, and at least one worker",
    "the factory's result is no torch.nn.Module but of type …": "name the class, or a function that returns the model: "
    "--model file.py:build",
    "The image cannot be read: …": "take it out of the folder, or save it again",
    "The inputs fill different numbers of batches: ….": "give every array as many samples",
    "The inputs have different numbers of samples: ….": "give every array as many samples",
    "The manifest cannot be read: ….": 'mend what it says: a manifest is TOML, see README, "Convert many"',
    "the program is empty": "the model gives back what it is given: there is nothing to convert",
    "This is no JSON: ….": "write one JSON object a line",
    "… cannot be ….": "give the option a value as on the command line",
    "… is a module itself and takes no arguments": "leave --model-args away",
    "… is a …, not a class, a function or a module": "name the class, or a function that returns the model",
    "… is to be one number, or ….": "give one number for all channels, or one for each",
    "the file cannot be read: …": "the system says why: permissions, a disk that fails",
    "… is larger than any model's": "do not trust this file, or export it again",
    "the program holds `…`, which is no tensor (…)": "make it a tensor, or a constant of forward",
    "Nothing was written.": "this is a fault of the converter: please report it with the model",
    "The batch was closed.": "the same command goes on where it stopped",
    "ONNX's checker refuses the exported model: …": "a fault of PyTorch's exporter or of ours: please report it; "
    "another --opset may help",
    "the artifact has … inputs and … outputs, the model … and …": "give the model that the artifact was made from",
    "The artifact takes the inputs …, not ….": "name the inputs as the artifact does",
    "the artifact was made from another model: it has the inputs … and outputs …, the model … and …": "give the model "
    "that it was made from",
    "The artifact …: …": "convert again; another tool's artifact: see whether its runtime opens it",
    "The artifact …: the process that opened it ….…": "what it wrote says why; convert again, or report it",
    "the artifact's inputs are not those of the model": "rename the inputs of one of them",
    "the mapping of … in … failed: …: …": "mend your mapping: -v shows where it failed",
    "the model's outputs do not depend on any input": "there is nothing to convert: its results are constants",
    "the model's own code failed: …: …": "mend that code, or install what it needs: -v shows where it failed",
    "There is no such artifact.": "give the path that `convert` said it wrote",
    "… failed: …: …": "mend the code that is named: -v shows where it failed",
    "… is not a Python file": "name a file that ends in .py, as in --model net.py:build",
}


@click.command()
@click.option("--write", "file", type=click.Path(path_type=Path))
def main(file: Path | None) -> None:
    """Print the table, or write it; and name what has no fix."""
    if file is None:
        click.echo(document())
    else:
        file.write_text(document(), encoding="utf-8")
    for one in found_errors(our_files()):
        if one.message != HOLE and not explained(one):
            click.echo(f"no fix: {one.kind}: {one.message}", err=True)


if __name__ == "__main__":
    main()
