"""The table of mappings: one function per ATen operator, keyed by the operator itself."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._ops import OpOverload

Mapping = Callable[..., object]
MAPPINGS: dict[OpOverload, Mapping] = {}
CHANNELS_LAST: set[OpOverload] = set()
PRODUCERS: dict[OpOverload, int] = {}
FACTORS: dict[OpOverload, Callable[..., tuple[int, ...]]] = {}
DECOMPOSITIONS: dict[OpOverload, Callable[..., object]] = {}
TRANSLATIONS: dict[OpOverload, Callable[..., object]] = {}  # to ONNX
OWNERS: dict[OpOverload, str] = {}  # the file that a user's mapping comes from
ABSENT: set[str] = set()  # operators registered by name that this PyTorch lacks
TABLES: tuple[Any, ...] = (
    MAPPINGS, CHANNELS_LAST, PRODUCERS, FACTORS, DECOMPOSITIONS, TRANSLATIONS, OWNERS, ABSENT,
)  # fmt: skip  # in the order in which user_mappings.py takes them apart


def snapshot() -> tuple[Any, ...]:
    """Return a copy of every table, for `restore`."""
    return tuple(table.copy() for table in TABLES)


def restore(tables: tuple[Any, ...]) -> None:
    """Set every table to what it was when `snapshot` was called."""
    for table, held in zip(TABLES, tables, strict=True):
        table.clear()
        table.update(held)


@contextmanager
def all_or_nothing() -> Iterator[None]:
    """Undo every registration made in the block if the block raises."""
    before = snapshot()
    try:
        yield
    except BaseException:
        restore(before)
        raise


def find_operator(target: OpOverload | str) -> OpOverload | None:
    """Return the operator named `namespace::name` or `namespace::name.overload`, or None if this PyTorch lacks it.

    Raises:
        ValueError: the name is malformed.
    """
    if isinstance(target, OpOverload):
        return target
    named = re.fullmatch(r"(\w+)::(\w+)(?:\.(\w+))?", target)
    if named is None:
        raise ValueError(f"{target!r} is not the name of an operator, `namespace::name` or `namespace::name.overload`")
    namespace, name, overload = named.groups(default="default")
    found = getattr(getattr(getattr(torch.ops, namespace), name, None), overload, None)
    return found if isinstance(found, OpOverload) else None


def _add(table: dict[OpOverload, Any], targets: tuple[OpOverload | str, ...], function: Any, verb: str) -> list[Any]:
    """Register `function` for all targets or, if one is taken, for none. Return those that this PyTorch has."""
    found = {target: find_operator(target) for target in targets}
    present = [target for target in found.values() if target is not None]
    for target in present:
        if target in table:
            raise ValueError(f"{target} is already {verb} by {getattr(table[target], '__qualname__', '?')}")
    table.update(dict.fromkeys(present, function))
    ABSENT.update(str(target) for target, known in found.items() if known is None)
    return present


def maps(
    *targets: OpOverload | str,
    channels_last: bool = False,
    produces: int | None = None,
    factors: Callable[..., tuple[int, ...]] | None = None,
) -> Callable[[Mapping], Mapping]:
    """Register the decorated function as the Keras translation of `targets`.

    It is called as `function(plan, *args, **kwargs)` with the operator's own arguments, so its parameters follow the
    ATen schema, defaults included. A tensor arrives as a `Value` or, if known at conversion, a `Constant`. It
    returns the result as a `Value` (a list of them for several).

    Args:
        targets: operators, or names of operators that only some versions of PyTorch have, such as `aten::cholesky`. A
            name that this PyTorch lacks is added to `ABSENT`.
        channels_last: the operator asks for channels last, which determines the layout of graph inputs before it and of
            graph outputs after it.
        produces: the dimension of its result whose order the plan may choose (`PlanBuilder.produced`).
        factors: function of the number of channels and the operator's other arguments that returns the sizes into which
            it splits its channels; for an operator whose result's shape does not show this.

    Raises:
        ValueError: an operator is registered twice, or a name is malformed.
    """

    def register(function: Mapping) -> Mapping:
        for target in _add(MAPPINGS, targets, function, "mapped"):
            if channels_last:
                CHANNELS_LAST.add(target)
            if produces is not None:
                PRODUCERS[target] = produces
            if factors is not None:
                FACTORS[target] = factors
        return function

    return register


def decomposes(*targets: OpOverload | str) -> Callable[[Mapping], Mapping]:
    """Register the decorated function as the decomposition of `targets` into other PyTorch operators.

    Use it if PyTorch does not decompose an operator, or decomposes it into operators without a mapping. It is called as
    `function(node, *args, **kwargs)` with the operator's own arguments, tensors without values; `node` is None if
    another operator was decomposed to this one. It returns the operator's result, or NotImplemented. None in a tuple
    stands for a result that it does not compute and that must not be used.

    Raises:
        ValueError: an operator is registered twice.
    """

    def register(function: Mapping) -> Mapping:
        _add(DECOMPOSITIONS, targets, function, "decomposed")
        return function

    return register


def translates(*targets: OpOverload | str) -> Callable[[Mapping], Mapping]:
    """Register the decorated function as the ONNX translation of `targets`.

    It has the form that `torch.onnx.export` takes in `custom_translation_table`: a function of onnxscript's operators
    with the parameters of the operator's schema.

    Raises:
        ValueError: an operator is registered twice.
    """

    def register(function: Mapping) -> Mapping:
        _add(TRANSLATIONS, targets, function, "translated")
        return function

    return register
