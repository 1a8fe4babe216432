"""Cache captured programs and plans for later models of the same architecture.

A later model's weights replace the earlier one's in the tensors that the program and all lazy tensors read. A plan is
made again only if a query of values that it depends on has another answer now. Whether the program computes what the
later model does is still checked: its reference is computed with its own module.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from converter.ir.lazy_tensor import ValueQueries, digest
from converter.ir.module_tensors import named_tensors
from converter.ir.program import Program, read_attribute


class Planned(Protocol):
    """What depends on tensors' values only as its queries say."""

    queries: ValueQueries


T = TypeVar("T", bound=Planned)
MOST = 16  # architectures to keep, with a program and one set of weights each,
MOST_PARAMETERS = 60_000_000  # as long as they have no more than this together; the last one is always kept
MOST_BESIDE = 30_000_000  # elements of a program's weights up to which its layers and variables are kept too
_OWN = set(vars(nn.Module()))  # the names of every module's own state
_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.Size, torch.device, type)


class Unknown(Exception):
    """Raised for a module whose state cannot be compared with another's."""


@dataclass
class CachedProgram(Generic[T]):
    """A captured program whose weights can be replaced, and what was made of it.

    Attributes:
        tensors: the module's own, by name; the program's share their memory.
    """

    program: Program
    tensors: Mapping[str, Tensor]
    _made: dict[Hashable, T] = field(default_factory=dict)

    @property
    def elements(self) -> int:
        return sum(tensor.numel() for tensor in self.tensors.values())

    @property
    def is_small(self) -> bool:
        """Tell whether layers and variables with these weights may be kept beside them."""
        return self.elements <= MOST_BESIDE

    def reuse(self, key: Hashable, make: Callable[[], T], fits: Callable[[T], bool]) -> T:
        """Return what was made before under this key, if it fits and all values that it asked for are the same now.

        Otherwise make it.
        """
        made = self._made.get(key)
        if made is None or not fits(made) or not made.queries.hold():
            made = self._made[key] = make()
        return made


class ProgramCache(Generic[T]):
    """The captured programs of the last few architectures.

    Attributes:
        hits: how often one served a later model.
    """

    def __init__(self) -> None:
        self._cached: OrderedDict[str, CachedProgram[T]] = OrderedDict()
        self.hits = 0

    def capture(
        self, key: str | None, module: nn.Module, capture: Callable[[], Program]
    ) -> tuple[Program, CachedProgram[T] | None]:
        """Return the program of an earlier module of this architecture with this one's weights, or capture this one.

        Args:
            key: the module's `architecture`.

        Returns:
            The program, and what is cached of it: None if it has copies of the weights or depends on their values.
        """
        tensors = named_tensors(module)
        if key is not None and key in self._cached:
            self._cached.move_to_end(key)
            self.hits += 1
            cached = self._cached[key]
            for name, tensor in tensors.items():
                cached.tensors[name].copy_(tensor)
            return cached.program, cached
        program = capture()
        if key is None or program.values_read or not _shares(program, tensors):
            return program, None
        self._cached[key] = cached = CachedProgram(program, tensors)
        while len(self._cached) > MOST or (len(self._cached) > 1 and self._elements() > MOST_PARAMETERS):
            self._cached.popitem(last=False)
        return program, cached

    def _elements(self) -> int:
        return sum(cached.elements for cached in self._cached.values())

    def clear(self) -> None:
        self._cached.clear()


def _shares(program: Program, tensors: Mapping[str, Tensor]) -> bool:
    """Tell whether the program's weights share memory with the module's."""
    held = {name: tensor.untyped_storage().data_ptr() for name, tensor in tensors.items()}
    for target, origin in program.origins.items():
        memory = read_attribute(program.graph_module, target).untyped_storage().data_ptr()
        if any(name in held and held[name] != memory for name in origin.sources):
            return False
    return True


def architecture(module: nn.Module, *settings: Hashable) -> str | None:
    """Return a digest that is the same for modules that differ only in the values of parameters and buffers.

    It covers classes and their source files, state other than tensors, names, shapes, types, and which tensors are
    shared.

    Args:
        settings: what else decides how the module is captured.

    Returns:
        None for a module whose state cannot be compared.
    """
    told = hashlib.sha256()
    try:
        for part in _parts(module, settings):
            told.update(repr(part).encode())
    except Unknown:
        return None
    return told.hexdigest()


def _parts(module: nn.Module, settings: Sequence[Hashable]) -> Iterator[Any]:
    yield settings
    numbers = _numbered(module)
    for path, one in module.named_modules(remove_duplicate=False):
        kind = type(one)
        yield path, numbers[id(one)], kind.__module__, kind.__qualname__, _code_of(kind), one.training
        for name, tensor in (*one._parameters.items(), *one._buffers.items()):
            if tensor is None:
                yield name
                continue
            yield name, numbers[id(tensor)], tuple(tensor.shape), tensor.dtype, tensor.stride(), tensor.requires_grad
        yield sorted((name, _told(value, numbers)) for name, value in vars(one).items() if name not in _OWN)
        for hooks in (one._forward_pre_hooks, one._forward_hooks):
            yield [_told(hook, numbers) for hook in hooks.values()]


def _numbered(module: nn.Module) -> dict[int, int]:
    """Return a number for each module, parameter and buffer, by `id`."""
    parts = [part for one in module.modules() for part in (one, *one._parameters.values(), *one._buffers.values())]
    return {identity: number for number, identity in enumerate(dict.fromkeys(id(p) for p in parts if p is not None))}


def _told(value: Any, numbers: dict[int, int], depth: int = 0) -> str:
    """Return a value of a module's state as text, or raise Unknown for one that may hold anything."""
    if depth > 20:
        raise Unknown
    if id(value) in numbers:
        return f"number {numbers[id(value)]}"
    if isinstance(value, _PLAIN):
        return f"{type(value).__name__} {value!r}"
    if isinstance(value, weakref.ref):
        return f"reference to {_told(value(), numbers, depth + 1)}"
    if isinstance(value, Tensor):
        return f"tensor {tuple(value.shape)} {value.dtype} {digest(value).hex()}"
    if isinstance(value, list | tuple | set | frozenset):
        items = [_told(item, numbers, depth + 1) for item in value]
        return f"{type(value).__name__} {sorted(items) if isinstance(value, set | frozenset) else items}"
    if isinstance(value, Mapping):
        items = [_told(key, numbers, depth + 1) + _told(item, numbers, depth + 1) for key, item in value.items()]
        return f"{type(value).__name__} {items}"
    if isinstance(value, types.FunctionType | types.BuiltinFunctionType) and value.__name__ != "<lambda>":
        if getattr(value, "__closure__", None):
            raise Unknown
        return f"function {value.__module__}.{value.__qualname__} {_code_of(value)}"
    if isinstance(value, functools.partial):
        return f"partial {_told((value.func, value.args, value.keywords), numbers, depth + 1)}"
    kind = type(value)
    code = _code_of(kind)
    if not code or not hasattr(value, "__dict__") or any("__slots__" in vars(base) for base in kind.__mro__[:-1]):
        raise Unknown
    return f"{kind.__module__}.{kind.__qualname__} {code} {_told(vars(value), numbers, depth + 1)}"


@functools.cache
def _file_digest(path: str, size: int, modified: int) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _code_of(thing: Any) -> str:
    """Return a digest of the source file of a class or function."""
    try:
        path = inspect.getsourcefile(thing)
    except TypeError:  # built in
        if getattr(thing, "__module__", None) in ("builtins", "collections", "_operator", "math"):
            return ""
        raise Unknown from None
    if path is None or not Path(path).is_file():
        raise Unknown
    found = Path(path).stat()
    return _file_digest(path, found.st_size, found.st_mtime_ns)
