"""Record the operators by which lazy tensors are computed, and the values of the checkpoint that code depends on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from converter.ir.lazy_tensor import digest
from converter.ir.recipe import EXITS, OPERATORS, SETTINGS, Condition, Formula, Step

READS = frozenset({"numpy", "tolist", "__array__", "__dlpack__"})  # of Tensor: they give values to code outside PyTorch
Memory = tuple[Any, ...]


class CannotRecord(Exception):
    """Raised where a computation cannot be stored; says why."""


def memory_of(tensor: Tensor) -> Memory:
    """Return what identifies a tensor's values while it is held: two tensors of the same memory have the same."""
    place = tensor.untyped_storage().data_ptr() if tensor.numel() else 0
    return place, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype


@dataclass
class Recorder:
    """Records computations from the tensors of a checkpoint.

    Attributes:
        sources: the keys of the checkpoint's tensors, by their memory.
        literals: other tensors that formulas read.
        conditions: what the recorded computations learned about values.
    """

    sources: Mapping[Memory, str]
    literals: list[Tensor] = field(default_factory=list)
    conditions: list[Condition] = field(default_factory=list)
    _numbers: dict[tuple[Any, ...], int] = field(default_factory=dict)

    def formula(self, compute: Callable[[], Tensor]) -> Formula:
        """Return the formula of the tensor that `compute` returns, and note the values on which it depends."""
        with self._recording() as tape:
            result = compute()
            number = tape.number(result)
        return self._pruned(tape.nodes, tape.writes, number)

    def note(self, question: Callable[[], Any]) -> None:
        """Note the values that `question` learns."""
        with self._recording():
            question()

    def note_value(self, compute: Callable[[], Tensor]) -> None:
        """Note the whole value of a tensor."""
        with self._recording() as tape:
            tape.learn(compute())

    @contextmanager
    def _recording(self) -> Iterator[_Tape]:
        tape = _Tape(self.sources)
        try:
            with torch.no_grad(), tape, _Reads(tape):
                yield tape
        except CannotRecord:
            raise
        except Exception as error:  # a mapping's code may do anything with a tensor
            raise CannotRecord(f"{type(error).__name__}: {error}".partition("\n")[0]) from error
        for number, answer, until in tape.learned:
            formula = self._pruned(tape.nodes[:until], tape.writes, number, isinstance(answer, str))
            condition = Condition(formula, answer)
            if formula.keys and condition not in self.conditions:
                self.conditions.append(condition)

    def _pruned(self, nodes: Sequence[_Node], writes: bool, result: int, is_tensor: bool = True) -> Formula:
        """Return what the result needs, renumbered; all, in order, if a step writes into a tensor."""
        needed = {result}
        for node in reversed(nodes):
            if needed.intersection(node.results) or writes:
                needed.update(node.results, _numbers_in(node.args), _numbers_in(node.kwargs))
        nodes = [node for node in nodes if needed.intersection(node.results) or (writes and not node.results)]
        reads, steps = [n for n in nodes if n.read is not None], [n for n in nodes if n.read is None]
        numbers: dict[int, int] = {}
        for node in (*reads, *steps):
            for one in node.results:
                numbers[one] = len(numbers)
        for step in steps:
            if step.operator not in OPERATORS:
                raise CannotRecord(f"it is computed with {step.operator}")
        return Formula(
            tuple(node.read if isinstance(node.read, str) else self._literal(node.read) for node in reads),
            tuple(
                Step(s.operator, _renumbered(s.args, numbers), _renumbered(s.kwargs, numbers), s.wide) for s in steps
            ),
            numbers[result] if is_tensor else None,
        )

    def _literal(self, tensor: Tensor | None) -> int:
        assert tensor is not None
        key = tuple(tensor.shape), tensor.dtype, digest(tensor)
        if key not in self._numbers:
            self._numbers[key] = len(self.literals)
            self.literals.append(tensor)
        return self._numbers[key]


@dataclass
class _Node:
    """A tensor that is read, a key or a literal, or a call with its results' numbers."""

    read: str | Tensor | None
    results: tuple[int, ...]
    operator: str = ""
    args: list[Any] = field(default_factory=list)
    kwargs: dict[str, Any] = field(default_factory=dict)
    wide: bool = field(default_factory=lambda: torch.get_default_dtype() == torch.float64)


class _Tape(TorchDispatchMode):
    def __init__(self, sources: Mapping[Memory, str]):
        super().__init__()
        self._sources = sources
        self._known: dict[Memory, int] = {}
        self._held: list[Tensor] = []  # memory that is freed could be given to another tensor
        self._read: set[int] = set()  # memory of what is read
        self._count = 0
        self._paused = False
        self.nodes: list[_Node] = []
        self.learned: list[tuple[int, Any, int]] = []  # a number, its value, and how many nodes there were
        self.writes = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._paused:
            return func(*args, **kwargs)
        operator = str(func).removeprefix("aten.")
        name = operator.partition(".")[0]
        given = [self._encoded(arg) for arg in args]
        named = {key: self._encoded(arg) for key, arg in kwargs.items() if key not in ("device", "pin_memory")}
        result = func(*args, **kwargs)
        if name in EXITS and not isinstance(result, Tensor):
            if not isinstance(result, bool | int | float):
                raise CannotRecord(f"a {type(result).__name__} is read")
            self.nodes.append(_Node(None, (self._new(),), operator, given, named))
            self.learned.append((self._count - 1, result, len(self.nodes)))
            return result
        written = isinstance(func, OpOverload) and func._schema.is_mutable
        if written and args[0].untyped_storage().data_ptr() in self._read:
            raise CannotRecord("a tensor is changed that was there before")
        self.writes |= written
        results = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if written:
            self.nodes.append(_Node(None, tuple(self._new() for _ in results), operator, given, named))
            return result
        if not all(memory_of(one) in self._known for one in results):
            numbers = []
            for one in results:
                self._held.append(one)
                numbers.append(self._new())
                self._known[memory_of(one)] = numbers[-1]
            self.nodes.append(_Node(None, tuple(numbers), operator, given, named))
        if name in EXITS:
            self.learn(result)
        return result

    def number(self, tensor: Tensor) -> int:
        """Return the number of a tensor's value; one that no recorded operator made is read."""
        memory = memory_of(tensor)
        if memory not in self._known:
            self._held.append(tensor)
            self._read.add(tensor.untyped_storage().data_ptr())
            self._known[memory] = self._new()
            key = self._sources.get(memory)
            self.nodes.append(_Node(key if key is not None else tensor, (self._known[memory],)))
        return self._known[memory]

    def learn(self, tensor: Tensor) -> None:
        """Note that code depends on the values of a tensor."""
        number = self.number(tensor)
        self._paused = True
        try:
            self.learned.append((number, digest(tensor).hex(), len(self.nodes)))
        finally:
            self._paused = False

    def _new(self) -> int:
        self._count += 1
        return self._count - 1

    def _encoded(self, arg: Any) -> Any:
        if isinstance(arg, Tensor):
            return {"t": self.number(arg)}
        if isinstance(arg, list | tuple):
            return [self._encoded(item) for item in arg]
        for kind, held in SETTINGS.items():
            if isinstance(arg, held):
                return {kind: str(arg).removeprefix("torch.")}
        if isinstance(arg, torch.device):
            return None
        if arg is None or isinstance(arg, bool | int | float | str):
            return arg
        raise CannotRecord(f"an operator takes a {type(arg).__name__}")


class _Reads(TorchFunctionMode):
    """Notes each tensor whose values are given to code outside PyTorch."""

    def __init__(self, tape: _Tape):
        super().__init__()
        self._tape = tape

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in READS and isinstance(args[0], Tensor) and not self._tape._paused:
            self._tape.learn(args[0])
        return func(*args, **kwargs or {})


def _numbers_in(part: Any) -> set[int]:
    if isinstance(part, dict):
        return {part["t"]} if "t" in part else {n for item in part.values() for n in _numbers_in(item)}
    return {n for item in part for n in _numbers_in(item)} if isinstance(part, list) else set()


def _renumbered(part: Any, numbers: Mapping[int, int]) -> Any:
    if isinstance(part, dict):
        if "t" in part:
            return {"t": numbers[part["t"]]}
        return {key: _renumbered(item, numbers) for key, item in part.items()}
    return [_renumbered(item, numbers) for item in part] if isinstance(part, list) else part
