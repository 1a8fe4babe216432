"""Write a plan as text: its steps in order, their layouts and weights, its inputs, outputs and movements."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from torch import fx
from torch._ops import OpOverload

from converter.ir.program import Program, module_path
from converter.ir.sizes import Size
from converter.plan.interface import TensorInterface, sizes_shown, symbol_names
from converter.plan.layout import Move
from converter.plan.steps import (
    CallStep,
    Constant,
    ConstantStep,
    InputStep,
    ItemStep,
    LayerStep,
    MoveStep,
    Step,
    topological_order,
)

if TYPE_CHECKING:
    from converter.plan.builder import PlanBuilder

MOST_NUMBERS = 16  # of an index to write; more are shortened and end with their checksum


def plan_text(plan: PlanBuilder) -> str:
    """Return the plan as text, the same for the same plan.

    A line is a step: its number, what it does, the steps that it takes, and the shape and layout of its array. A layout
    lists the array's axes by PyTorch's dimensions: `0 | 2 | 3 | 1` is channels last, `1.0` the first factor of
    dimension 1. Below a layer are its weights, in the layer's order, with what rearranges or computes them.
    """
    order = topological_order(plan.results)
    numbers = {id(step): str(number) for number, step in enumerate(order)}
    names = symbol_names(plan.program)

    def shape(sizes: Sequence[Size]) -> str:
        return f"({', '.join(map(str, sizes_shown(sizes, names)))})"

    def interface(kind: str, one: TensorInterface) -> str:
        dtype = str(one.dtype).removeprefix("torch.")
        return f"{kind} {one.name}: {shape(one.shape)} {dtype}, axes {' | '.join(map(str, one.order))}, {one.layout}"

    def lines() -> Iterator[str]:
        for step in order:
            taken = ", ".join(numbers[id(i)] for i in step.inputs)
            held = f" -> {shape(step.layout.physical_shape)} as {step.layout}" if step.layout else ""
            yield f"{numbers[id(step)]:>3} {step_text(step, shape)}{f' of {taken}' if taken else ''}{held}"
            if isinstance(step, LayerStep):
                yield from (f"      {constant_text(w, plan.program)}" for w in step.weights)
            if isinstance(step, ConstantStep):
                yield f"      {constant_text(step.constant, plan.program)}"
        yield from (interface("input", one) for one in plan.inputs)
        for step, one in zip(plan.results, plan.outputs, strict=True):
            yield f"{interface('output', one)}, of {numbers[id(step)]}"
        for m in plan.movements:
            yield f"{m.kind} of {m.elements} elements in {m.module or '(model)'}: {m.reason}"
        if not plan.movements:
            yield "no movements"
        yield from (f"{name}: {chosen}" for name, chosen in plan.choices.by_name().items() if chosen)

    return "".join(f"{line}\n" for line in lines())


def step_text(step: Step, shape: Callable[[Sequence[Size]], str]) -> str:
    match step:
        case InputStep():
            return f"input {step.name}"
        case LayerStep():
            return f"{step.name}: {step.kind.__name__}({config_text(step.config | step.arguments)})"
        case CallStep():
            return f"{module_path(step.node) or '(model)'}: {operator_name(step.node)}"
        case MoveStep():
            return move_text(step.move, shape)
        case ItemStep():
            return f"item {step.position}"
        case _:
            return "constant"


def move_text(move: Move, shape: Callable[[Sequence[Size]], str]) -> str:
    if move.named is not None:
        return "{}({})".format(*move.named)
    return "Reshape" if move.order is None else f"Transpose {shape(move.split)} by {move.order}"


def config_text(config: dict[str, Any]) -> str:
    """Return the arguments of a layer that are plain values."""
    return ", ".join(f"{name}={value!r}" for name, value in config.items() if is_plain(value))


def is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return isinstance(value, bool | int | float | str | None)


def constant_text(constant: Constant, program: Program) -> str:
    """Return a constant's sources and shape, and what rearranges it."""
    steps = [f".{step}" for step in rearranging_steps(constant, program)]
    made = []
    for name in constant.sources:
        origin = program.origins[name]
        sources = "" if origin.sources == (name,) else ", ".join(origin.sources)
        made.append(f"{name} = {'rearranged' if origin.exact else 'folded'}({sources})" if sources else name)
    frozen = ", frozen" if constant.frozen else ""
    computed = "" if constant.exact else ", computed"
    return f"{' + '.join(made) or 'a constant'}{''.join(steps)} -> {constant.shape}{computed}{frozen}"


def rearranging_steps(constant: Constant, program: Program) -> list[str]:
    """Return what rearranges a constant, in order, such as "permute(2, 3, 1, 0)"."""
    key: Hashable = constant.key
    steps: list[str] = []
    while isinstance(key, tuple) and len(key) > 1 and isinstance(key[1], str) and key[1] not in program.origins:
        arguments = key[2] if len(key) == 3 and isinstance(key[2], tuple) else key[2:]
        steps.insert(0, f"{key[1]}({', '.join(map(numbers_text, arguments))})")
        key = key[0]
    return steps


def numbers_text(value: Any) -> str:
    if not isinstance(value, tuple) or len(value) <= MOST_NUMBERS:
        return str(value)
    shown = ", ".join(map(str, value[:MOST_NUMBERS]))
    return f"({shown}, ... {len(value)} in all, {zlib.crc32(repr(value).encode()):08x})"


def operator_name(node: fx.Node) -> str:
    return node.target._opname if isinstance(node.target, OpOverload) else str(node.target)
