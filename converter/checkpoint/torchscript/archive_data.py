"""The pickles of a TorchScript file, read as plain data before PyTorch reads them.

PyTorch's own reader is written in C++ and trusts their sizes and types. So the same objects are built here first:
objects with attributes, tensors within their storages, no object inside itself.
"""

import ast
import io
import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

DEEPEST = 100
MOST_OBJECTS = 5_000_000

PurePython: Any = pickle._Unpickler

STORAGES = {
    f"{name}Storage": dtype.itemsize
    for name, dtype in {
        "Float": torch.float32, "Double": torch.float64, "Half": torch.float16, "BFloat16": torch.bfloat16,
        "Byte": torch.uint8, "Char": torch.int8, "Short": torch.int16, "Int": torch.int32, "Long": torch.int64,
        "Bool": torch.bool, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128,
    }.items()
}  # fmt: skip
LISTS = {"build_intlist": int, "build_doublelist": float, "build_boollist": bool}


class Malformed(Exception):
    """The pickle is not one that torch.jit.save writes."""


@dataclass(eq=False)
class ScriptClass:
    """A class declared in the code records."""

    name: str


@dataclass(eq=False)
class ScriptObject:
    kind: ScriptClass
    attributes: dict[str, Any] = field(default_factory=dict)


class ScriptTensor:
    """A stand-in for a tensor whose elements lie within its record."""


NESTED = (list, tuple, dict, ScriptObject)


@dataclass(frozen=True)
class Function:
    """A function that the pickle may call."""

    call: Callable[..., Any]


def read_data(data: bytes, sizes: Mapping[str, int], aside: str) -> Any:
    """Return the content of a pickle of the archive, as the stand-ins of this module.

    Args:
        sizes: of each record of the archive, in bytes.
        aside: the folder of the records that hold its tensors' elements.

    Raises:
        Malformed: it has anything that torch.jit.save does not write, or wrong sizes.
    """
    try:
        value = _Unpickler(io.BytesIO(data), sizes, aside).load()
    except Malformed:
        raise
    except Exception as error:  # a broken pickle can raise anything
        raise Malformed(f"{type(error).__name__}: {error}") from error
    _check_shape(value)
    return value


def misfits(value: Any, declared: Mapping[str, Mapping[str, ast.expr]]) -> Iterator[str]:
    """Yield the places where objects differ from the code's declarations of their classes."""
    seen: set[int] = set()
    pending = [(value, "the model")]
    while pending:
        one, path = pending.pop()
        if isinstance(one, ScriptObject) and id(one) not in seen:
            seen.add(id(one))
            fields = declared.get(one.kind.name)
            if fields is None:
                yield f"{path} is of the class {one.kind.name}, which is not declared"
                continue
            for name, annotation in fields.items():
                if name not in one.attributes:
                    yield f"{path} has no {name}"
                elif not _is(one.attributes[name], annotation):
                    yield f"{path}.{name} is not {ast.unparse(annotation)[:100]}"
            pending.extend((inner, f"{path}.{name}") for name, inner in one.attributes.items())
        elif isinstance(one, list | tuple):
            pending.extend((inner, path) for inner in one)
        elif isinstance(one, dict):
            pending.extend((inner, path) for inner in one.values())


def _is(value: Any, annotation: ast.expr) -> bool:
    match annotation:
        case ast.Name(id="Tensor"):
            return isinstance(value, ScriptTensor)
        case ast.Name(id="NoneType") | ast.Constant(value=None):
            return value is None
        case ast.Name(id=("int" | "float" | "bool" | "str") as name):
            return type(value).__name__ == name
        case ast.Name(id="Device"):
            return isinstance(value, torch.device)
        case ast.Name(id=("number" | "Scalar")):
            return type(value) in (int, float)
        case ast.Subscript(value=ast.Name(id="Optional"), slice=inner):
            return value is None or _is(value, inner)
        case ast.Subscript(value=ast.Name(id="Final"), slice=inner):
            return _is(value, inner)
        case ast.Subscript(value=ast.Name(id="List"), slice=inner):
            return type(value) is list and all(_is(item, inner) for item in value)
        case ast.Subscript(value=ast.Name(id="Dict"), slice=ast.Tuple(elts=[key, inner])):
            return type(value) is dict and all(_is(k, key) and _is(v, inner) for k, v in value.items())
        case ast.Subscript(value=ast.Name(id="Tuple"), slice=ast.Tuple(elts=inners)):
            return type(value) is tuple and len(value) == len(inners) and all(map(_is, value, inners))
        case ast.Subscript(value=ast.Name(id="Tuple"), slice=inner):
            return type(value) is tuple and len(value) == 1 and _is(value[0], inner)
        case ast.Attribute():
            return isinstance(value, ScriptObject) and value.kind.name == ast.unparse(annotation)
    return False


def _check_shape(value: Any) -> None:
    """Refuse data that PyTorch would follow forever: deep nesting, an object inside itself, too many paths to one."""
    open_ids: set[int] = set()
    paths: dict[int, int] = {}
    stack: list[tuple[Any, bool]] = [(value, False)]
    while stack:
        one, leaving = stack.pop()
        if leaving:
            open_ids.discard(id(one))
            paths[id(one)] = 1 + sum(paths[id(part)] for part in _parts(one))
            if paths[id(one)] > MOST_OBJECTS:
                raise Malformed("objects that stand in each other more often than can be gone through")
            continue
        if id(one) in open_ids:
            raise Malformed("an object inside itself")
        if id(one) in paths or not isinstance(one, NESTED):
            continue
        if len(open_ids) > DEEPEST:
            raise Malformed("objects nested too deeply")
        open_ids.add(id(one))
        stack.append((one, True))
        stack.extend((part, False) for part in _parts(one))


def _parts(one: Any) -> list[Any]:
    values = (
        one.attributes.values() if isinstance(one, ScriptObject) else one.values() if isinstance(one, dict) else one
    )
    return [value for value in values if isinstance(value, NESTED)]


class _Unpickler(PurePython):
    """An unpickler of only the instructions that torch.jit.save writes."""

    dispatch: ClassVar[dict[int, Callable]] = {
        code[0]: PurePython.dispatch[code[0]]
        for code in (
            *(pickle.PROTO, pickle.STOP, pickle.MARK, pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.BININT),
            *(pickle.BININT1, pickle.BININT2, pickle.LONG1, pickle.BINFLOAT, pickle.BINUNICODE, pickle.GLOBAL),
            *(pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.EMPTY_LIST),
            *(pickle.APPENDS, pickle.APPEND, pickle.EMPTY_DICT, pickle.SETITEMS, pickle.BINGET, pickle.LONG_BINGET),
            *(pickle.BINPUT, pickle.LONG_BINPUT, pickle.BINPERSID),
        )
    }

    def __init__(self, file: io.BytesIO, sizes: Mapping[str, int], aside: str):
        super().__init__(file)
        self.sizes = sizes
        self.aside = aside
        self.made = 0

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            if module.startswith("__torch__.torch.classes"):
                raise Malformed(f"an object of the compiled class {module}.{name}")
            return ScriptClass(f"{module}.{name}")
        if module == "torch" and name in STORAGES:
            return name
        if module == "torch.jit._pickle" and name in LISTS:
            kind = LISTS[name]
            return Function(lambda items: _list_of(kind, items))
        known: dict[tuple[str, str], Callable[..., Any]] = {
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch.jit._pickle", "build_tensorlist"): lambda items: _list_of(ScriptTensor, items),
            ("torch.jit._pickle", "restore_type_tag"): lambda value, text: value,
            ("collections", "OrderedDict"): dict,
            ("torch", "device"): _device,
        }
        if (module, name) not in known:
            raise Malformed(f"{module}.{name}, which is not part of a model")
        return Function(known[module, name])

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        function = self.stack[-1]
        if not isinstance(function, Function) or type(arguments) is not tuple:
            raise Malformed("a call of what cannot be called")
        self.stack[-1] = function.call(*arguments)
        self._count()

    dispatch[pickle.REDUCE[0]] = load_reduce

    def load_newobj(self) -> None:
        arguments = self.stack.pop()
        kind = self.stack.pop()
        if not isinstance(kind, ScriptClass) or arguments != ():
            raise Malformed("an object that does not belong to a module")
        self.stack.append(ScriptObject(kind))
        self._count()

    dispatch[pickle.NEWOBJ[0]] = load_newobj

    def load_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if not isinstance(target, ScriptObject) or type(state) is not dict or target.attributes:
            raise Malformed("a state of what has none")
        if not all(type(name) is str for name in state):
            raise Malformed("an attribute without a name")
        target.attributes = dict(state)

    dispatch[pickle.BUILD[0]] = load_build

    def load_setitems(self) -> None:
        if type(self.metastack[-1][-1]) is not dict:
            raise Malformed("items of something that is not a dict")
        super().load_setitems()

    dispatch[pickle.SETITEMS[0]] = load_setitems

    def load_appends(self) -> None:
        if type(self.metastack[-1][-1]) is not list:
            raise Malformed("items of something that is not a list")
        super().load_appends()

    dispatch[pickle.APPENDS[0]] = load_appends

    def load_append(self) -> None:
        if type(self.stack[-2]) is not list:
            raise Malformed("items of something that is not a list")
        super().load_append()

    dispatch[pickle.APPEND[0]] = load_append

    def load_binpersid(self) -> None:
        match self.stack.pop():
            case ("storage", str(kind), str(key), str(), int(elements)) if kind in STORAGES:
                stored = self.sizes.get(f"{self.aside}/{key}", -1)
                if not 0 <= elements * STORAGES[kind] <= stored:
                    raise Malformed(f"{elements} elements of {kind} in {stored} bytes")
                self.stack.append((kind, elements))
            case _:
                raise Malformed("a storage that is none")

    dispatch[pickle.BINPERSID[0]] = load_binpersid

    def _count(self) -> None:
        self.made += 1
        if self.made > MOST_OBJECTS:
            raise Malformed("more objects than any model has")

    def _tensor(self, storage: Any, offset: Any, sizes: Any, strides: Any, *rest: Any) -> ScriptTensor:
        match storage:
            case (str(), int(held)):
                pass
            case _:
                raise Malformed("a tensor without a storage")
        if type(sizes) is not tuple or type(strides) is not tuple or len(sizes) != len(strides):
            raise Malformed("a tensor without a shape")
        if any(type(number) is not int or number < 0 for number in (offset, *sizes, *strides)):
            raise Malformed("a tensor of a negative size")
        reach = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
        if all(sizes) and reach >= held:
            raise Malformed(f"a tensor that reaches element {reach} of {held}")
        self._count()
        return ScriptTensor()


def _list_of(kind: type, items: Any) -> list:
    if type(items) is not list or not all(type(item) is kind for item in items):
        raise Malformed(f"a list that is not of {kind.__name__}")
    return items


def _device(name: Any, index: Any = None) -> torch.device:
    return torch.device(name) if index is None else torch.device(name, index)
