"""The code records of a TorchScript file, checked as text before PyTorch compiles them."""

import ast
from collections.abc import Iterator

from converter.checkpoint.torchscript.op_allowlist import ALLOWED

LONGEST = 1 << 26  # characters of one record
DEEPEST = 90  # nested expressions and statements; PyTorch's parser recurses for each
NAMESPACES = ("torch", "ops", "__torch__", "CONSTANTS")
# The forms of class declarations that only hold data and methods.
BASES = {"Module", "NamedTuple", "Interface", "ModuleInterface"}


class Unreadable(Exception):
    """The text is not TorchScript, or nests deeper than any model's."""


class Declared:
    """The classes of a code record.

    Attributes:
        classes: the annotated attributes of each class, by its full name.
    """

    def __init__(self) -> None:
        self.classes: dict[str, dict[str, ast.expr]] = {}


def record_module(record: str) -> str:
    """Return the dotted name of a code record: `code/__torch__/net.py` is `__torch__.net`."""
    return record.removeprefix("code/").removesuffix(".py").replace("/", ".")


def odd_code(record: str, data: bytes, declared: Declared) -> Iterator[str]:
    """Yield what is not allowed in a code record, each as `what (record:line)`; add its classes to `declared`.

    Raises:
        Unreadable: it cannot be parsed.
    """
    tree = _parsed(record, data)
    for statement in tree.body:
        match statement:
            case ast.ClassDef():
                yield from _odd_class(record, statement)
                fields = {
                    inner.target.id: inner.annotation
                    for inner in statement.body
                    if isinstance(inner, ast.AnnAssign) and isinstance(inner.target, ast.Name) and inner.value is None
                }
                declared.classes[f"{record_module(record)}.{statement.name}"] = fields
            case ast.FunctionDef():
                pass
            case _:
                yield f"a statement outside of functions ({record}:{statement.lineno})"
    for node, parent in _nodes(record, tree):
        for what in _odd_node(node, parent):
            yield f"{what} ({record}:{getattr(node, 'lineno', '?')})"


def _parsed(record: str, data: bytes) -> ast.Module:
    if len(data) > LONGEST:
        raise Unreadable(f"{record} has {len(data)} bytes")
    try:
        return ast.parse(data.decode("utf-8"))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise Unreadable(f"{record}: {type(error).__name__}: {str(error)[:200]}") from error


def _odd_class(record: str, statement: ast.ClassDef) -> Iterator[str]:
    place = f"({record}:{statement.lineno})"
    bases = [base.id if isinstance(base, ast.Name) else "?" for base in statement.bases]
    if len(bases) != 1 or bases[0] not in BASES or statement.keywords or statement.decorator_list:
        yield f"the class {statement.name}, which is not a module {place}"
    for inner in statement.body:
        if isinstance(inner, ast.FunctionDef) and inner.name in ("__setstate__", "__getstate__"):
            yield f"{statement.name}.{inner.name}, which would run while the file is read {place}"
        elif not isinstance(inner, ast.FunctionDef | ast.Assign | ast.AnnAssign):
            yield f"a statement in the class {statement.name} {place}"


def _nodes(record: str, tree: ast.Module) -> Iterator[tuple[ast.AST, ast.AST | None]]:
    pending: list[tuple[ast.AST, ast.AST | None, int]] = [(tree, None, 0)]
    while pending:
        node, parent, depth = pending.pop()
        if depth > DEEPEST:
            raise Unreadable(f"{record}:{getattr(node, 'lineno', '?')}: nested too deeply")
        yield node, parent
        pending.extend((child, node, depth + 1) for child in ast.iter_child_nodes(node))


def _odd_node(node: ast.AST, parent: ast.AST | None) -> Iterator[str]:
    match node:
        case ast.Attribute():
            operator = _operator(node)
            if operator and not isinstance(parent, ast.Attribute) and operator not in ALLOWED:
                yield f"the operator {operator}"
        case ast.Name(id=name) if name in NAMESPACES:
            if not isinstance(parent, ast.Attribute):
                yield f"the name {name} by itself"
        case ast.Call(func=ast.Name(id=name)) if name in ("fork", "awaitable", "rpc_async", "rpc_sync", "rpc_remote"):
            yield f"the operator {name}"
        case (
            ast.Import() | ast.ImportFrom() | ast.Global() | ast.Nonlocal() | ast.Lambda() | ast.Await() | ast.Yield()
            | ast.AsyncFunctionDef() | ast.Try() | ast.NamedExpr() | ast.JoinedStr() | ast.Delete() | ast.With()
        ):  # fmt: skip
            yield f"a {type(node).__name__}"


def _operator(node: ast.Attribute) -> str | None:
    """Return `aten::conv2d` for `torch.conv2d`, `ns::name` for `ops.ns.name`; None if it is not an operator."""
    parts: list[str] = []
    inner: ast.expr = node
    while isinstance(inner, ast.Attribute):
        parts.insert(0, inner.attr)
        inner = inner.value
    if not isinstance(inner, ast.Name):
        return None
    if inner.id == "torch":
        return f"aten::{'.'.join(parts)}"
    if inner.id == "ops":
        return f"{parts[0]}::{'.'.join(parts[1:])}"
    if inner.id == "__torch__" and parts[:2] == ["torch", "classes"]:
        return f"torch.classes.{'.'.join(parts[2:])}"
    return None
