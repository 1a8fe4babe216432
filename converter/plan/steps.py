"""The parts of a plan: values with their layouts, constants, and the steps that make arrays.

A step says how an array is made from others; the executor gives each kind its meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, fx

from converter.ir.lazy_tensor import LazyTensor
from converter.ir.sizes import Size, per_example
from converter.plan.layout import Layout, Move, Runs
from converter.plan.lazy_keras import LazyMember

T = TypeVar("T")


class Unsupported(Exception):
    """Raised by a mapping that knows the operator, but not with these arguments."""


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor known at conversion: a weight, or a tensor computed from weights.

    Attributes:
        values: in the best known precision, dimensions in PyTorch's order.
        dtype: its type in the program.
        sources: the program's tensors that it was made of.
        exact: it holds the values of its source, at most rearranged.
        trainable: it is a parameter, or a rearranged parameter.
        key: equal for equal ways of making it, so that a module called twice becomes one layer.
        frozen: it is a parameter with `requires_grad=False`.
    """

    values: LazyTensor
    dtype: torch.dtype
    sources: tuple[str, ...]
    exact: bool
    trainable: bool
    key: Hashable
    frozen: bool = False

    @property
    def learns(self) -> bool:
        """Return whether training changes it."""
        return self.trainable and not self.frozen

    @property
    def tensor(self) -> Tensor:
        return self.values.compute()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def query(self, question: Callable[[Tensor], T]) -> T:
        """Return the answer of `question` about its values; unlike a read, it can be repeated for other weights."""
        return self.values.query(question)

    def rearranged(self, function: Callable[[Tensor], Tensor], *step: Hashable) -> Constant:
        """Rearrange the values with `function`, which computes nothing; `step` describes it as a part of the key."""
        return replace(self, values=self.values.map(function), key=(self.key, *step))

    def permute(self, *order: int) -> Constant:
        return self.rearranged(lambda tensor: tensor.permute(order), "permute", order)

    def reshape(self, *shape: int) -> Constant:
        return self.rearranged(lambda tensor: tensor.reshape(shape), "reshape", shape)

    def index_select(self, dim: int, index: np.ndarray) -> Constant:
        """Permute `dim`, or select a part of it: position i of the result is position index[i]."""
        if np.array_equal(index, np.arange(self.shape[dim])):
            return self
        chosen = torch.from_numpy(np.ascontiguousarray(index))
        return self.rearranged(
            lambda tensor: tensor.index_select(dim, chosen.to(tensor.device)),
            "index_select",
            dim,
            tuple(index.tolist()),
        )

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.values, dtype)

    def array(self) -> np.ndarray:
        """Return its values, computed and made contiguous at each call."""
        return np.asarray(self.values)

    def scalar(self) -> float | int | bool:
        return self.tensor.item()

    @property
    def is_scalar(self) -> bool:
        return self.values.numel() == 1 and not self.trainable


# -- steps: how arrays are made. The executor gives each kind its meaning.


@dataclass(eq=False)
class Step:
    """One operation on arrays.

    Attributes:
        inputs: the steps that make its input arrays.
        node: the operator that it serves.
        layout: that of the first value that it makes; views of it have others.
    """

    inputs: tuple[Step, ...] = field(repr=False)  # the repr of a deep graph would be endless
    node: fx.Node
    layout: Layout | None = field(default=None, init=False)


@dataclass(eq=False)
class InputStep(Step):
    name: str
    shape: tuple[Size, ...]
    dtype: torch.dtype


@dataclass(eq=False)
class CallStep(Step):
    function: Callable


@dataclass(eq=False)
class LayerStep(Step):
    """A Keras layer of class `kind` with `weights` in the order in which the layer creates its own.

    Attributes:
        arguments: arguments of this call besides arrays.
        extra_inputs: the shapes of the last arrays, by the layer's names for them; those between the first array and
            these are the initial states of a recurrent layer.
    """

    kind: type | LazyMember
    config: dict[str, Any]
    weights: tuple[Constant, ...]
    name: str
    input_shape: tuple[Size, ...]
    trainable: bool
    arguments: dict[str, Any] = field(default_factory=dict)
    extra_inputs: dict[str, tuple[Size, ...]] = field(default_factory=dict)

    @cached_property
    def key(self) -> Hashable:
        """Return a key, equal for calls of one layer; modules that share all weights are one, to keep them tied."""
        config = tuple(sorted((k, repr(v)) for k, v in self.config.items()))
        fixed = tuple(n for n in self.input_shape[1:]) if not self.weights else ()
        return self.kind, config, tuple(w.key for w in self.weights), fixed, "" if self.weights else self.name


@dataclass(eq=False)
class ConstantStep(Step):
    """A constant as an array; `inputs` holds one step whose array it may be derived from in a Keras model."""

    constant: Constant
    name: str


@dataclass(eq=False)
class MoveStep(Step):
    move: Move


@dataclass(eq=False)
class ItemStep(Step):
    position: int


def topological_order(results: Sequence[Step], done: Iterable[int] = ()) -> list[Step]:
    """Return the steps that `results` need, each after its inputs, without those whose ids are in `done`."""
    order: list[Step] = []
    seen = set(done)
    stack = [(step, False) for step in reversed(results)]
    while stack:
        step, ready = stack.pop()
        if ready:
            order.append(step)
        elif id(step) not in seen:
            seen.add(id(step))
            stack.append((step, True))
            stack.extend((i, False) for i in reversed(step.inputs) if id(i) not in seen)
    return order


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor of the program in the plan: its layout, its PyTorch type, and the step that makes its array."""

    layout: Layout
    dtype: torch.dtype
    step: Step

    def __post_init__(self) -> None:
        self.step.layout = self.step.layout or self.layout

    @property
    def shape(self) -> tuple[Size, ...]:
        return self.layout.shape


@dataclass(frozen=True)
class Movement:
    """An activation that has to move.

    Attributes:
        kind: "Transpose" or "Gather".
        module: path of the module that asked for it.
        reason: what it asked for.
        elements: how many elements move, per example if the batch is dynamic.
        cost: its cost in a plan.
        asked_by: the operator that asked for it.
    """

    kind: str
    module: str
    reason: str
    elements: int
    cost: float = field(default=0.0, compare=False)
    asked_by: fx.Node | None = field(default=None, compare=False, repr=False)


def arrange(constant: Constant, layout: Layout, axes: Runs) -> tuple[Constant, Layout]:
    """Rearrange `constant`, whose dimensions are `layout.dims`, into `axes`."""
    atoms = tuple(a for run in layout.dims for a in run)
    factored = constant.reshape(*(int(layout.size[a]) for a in atoms))
    order = [atoms.index(a) for axis in axes for a in axis]
    moved = factored.permute(*order) if order != sorted(order) else factored
    return moved.reshape(*(int(layout.extent(axis)) for axis in axes)), Layout(layout.dims, axes, layout.size)


def elements(moves: Iterable[Move]) -> int:
    """Count the moved elements of one example."""
    return sum(per_example(move.elements) for move in moves)
