"""The registry of operators: how each ATen operator is lowered, decomposed and translated to ONNX."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch._ops import OpOverload

from converter.errors import ConversionError

Function = Callable[..., Any]
Factors = Callable[..., tuple[int, ...]]
VERBS = {"lowering": "mapped", "decomposition": "decomposed", "translation": "translated"}


@dataclass(frozen=True)
class OperatorRecord:
    """What is registered for one operator.

    Attributes:
        lowering: adds the operator to a plan (`maps`).
        decomposition: writes it in terms of other operators (`decomposes`).
        translation: translates it to ONNX (`translates`).
        channels_last, produces, factors: see `maps`.
        owners: the user's file or the package that gave a function, by the function's attribute.
    """

    lowering: Function | None = None
    decomposition: Function | None = None
    translation: Function | None = None
    channels_last: bool = False
    produces: int | None = None
    factors: Factors | None = None
    owners: Mapping[str, str] = field(default_factory=dict)

    def combine(self, added: OperatorRecord, target: OpOverload | str) -> OperatorRecord:
        """Return this record with what `added` has.

        Raises:
            ValueError: both have the same function of the operator.
        """
        changes = {name: value for name, value in vars(added).items() if value is not None}
        for name, verb in VERBS.items():
            held = getattr(self, name)
            if held is not None and changes.get(name, held) is not held:
                raise ValueError(f"{target} is already {verb} by {getattr(held, '__qualname__', '?')}")
        changes["channels_last"] |= self.channels_last
        return replace(self, **changes | {"owners": {**self.owners, **added.owners}})


NOTHING = OperatorRecord()


@dataclass
class Registry:
    """The record of each operator; under its name if this PyTorch lacks it.

    Attributes:
        owner: the user's file or the package that registers here; empty for the built-in registry.
        digests: the SHA-256 of each file of mappings that was added to the built-in ones.
        broken: errors of packages whose mappings could not be loaded.
    """

    records: dict[OpOverload | str, OperatorRecord] = field(default_factory=dict)
    owner: str = ""
    digests: tuple[str, ...] = ()
    broken: list[ConversionError] = field(default_factory=list)

    def __getitem__(self, target: Any) -> OperatorRecord:
        return self.records.get(target, NOTHING)

    def having(self, function: str) -> dict[OpOverload, Function]:
        """Return the functions of one kind, such as "lowering", of all operators that have one."""
        found = {target: getattr(record, function) for target, record in self.records.items()}
        return {t: f for t, f in found.items() if f is not None and isinstance(t, OpOverload)}

    @property
    def absent(self) -> frozenset[str]:
        """Return the operators registered by name that this PyTorch lacks."""
        return frozenset(target for target in self.records if isinstance(target, str))

    def functions(self) -> list[Function]:
        """Return the functions of all records."""
        found = (getattr(record, name) for record in self.records.values() for name in VERBS)
        return [function for function in found if function is not None]

    def minus(self, other: Registry) -> Registry:
        """Return the records that differ from those of `other`."""
        return Registry({t: r for t, r in self.records.items() if r is not other.records.get(t)}, self.owner)

    def copy(self, owner: str = "") -> Registry:
        return Registry(dict(self.records), owner, self.digests, list(self.broken))

    def add(self, record: OperatorRecord, *targets: OpOverload | str) -> None:
        """Add `record` to that of each target, or, if one has such a function already, to none.

        Raises:
            ValueError: a target has one, or its name is malformed.
        """
        if self.owner:
            owners = {name: self.owner for name in VERBS if getattr(record, name) is not None}
            record = replace(record, owners=owners)
        known = [find_operator(target) or str(target) for target in targets]
        self.records.update({target: self[target].combine(record, target) for target in known})

    def include(self, other: Registry) -> None:
        """Add all that `other` has, or nothing.

        Raises:
            ValueError: both have the same function of an operator.
        """
        both = Registry(
            self.records | {target: self[target].combine(record, target) for target, record in other.records.items()}
        )
        both.resolve_absent()
        self.records, self.digests = both.records, self.digests + other.digests

    def resolve_absent(self) -> None:
        """Move the records of operators that a library has brought since to these operators."""
        for name in self.absent:
            if (target := find_operator(name)) is not None:
                self.records[target] = self[target].combine(self[name], target)
                del self.records[name]


BUILT_IN = Registry()
_filled: ContextVar[Registry] = ContextVar("filled", default=BUILT_IN)


@contextmanager
def filling(registry: Registry) -> Iterator[Registry]:
    """Have the decorators of this module register in `registry`; elsewhere they register for all conversions."""
    token = _filled.set(registry)
    try:
        yield registry
    finally:
        _filled.reset(token)


def absent_operators() -> frozenset[str]:
    """Return the operators registered by name, in the registry that is being filled, that this PyTorch lacks."""
    return _filled.get().absent


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


def _registering(record: Callable[[Function], OperatorRecord], *targets: OpOverload | str) -> Callable[[Any], Any]:
    def register(function: Function) -> Function:
        _filled.get().add(record(function), *targets)
        return function

    return register


def maps(
    *targets: OpOverload | str,
    channels_last: bool = False,
    produces: int | None = None,
    factors: Factors | None = None,
) -> Callable[[Function], Function]:
    """Register the decorated function as the Keras translation of `targets`.

    It is called as `function(plan, *args, **kwargs)` with the operator's own arguments, so its parameters follow the
    ATen schema, defaults included. A tensor arrives as a `Value` or, if known at conversion, a `Constant`. It
    returns the result as a `Value` (a list of them for several).

    Args:
        targets: operators, or names of operators that only some versions of PyTorch have, such as `aten::cholesky`. A
            name that this PyTorch lacks is kept until a library brings it (`Registry.absent`).
        channels_last: the operator asks for channels last, which determines the layout of graph inputs before it and of
            graph outputs after it.
        produces: the dimension of its result whose order the plan may choose (`PlanBuilder.choose_channel_order`).
        factors: function of the number of channels and the operator's other arguments that returns the sizes into which
            it splits its channels; for an operator whose result's shape does not show this.

    Raises:
        ValueError: an operator is registered twice, or a name is malformed.
    """
    return _registering(
        lambda function: OperatorRecord(function, channels_last=channels_last, produces=produces, factors=factors),
        *targets,
    )


def decomposes(*targets: OpOverload | str) -> Callable[[Function], Function]:
    """Register the decorated function as the decomposition of `targets` into other PyTorch operators.

    Use it if PyTorch does not decompose an operator, or decomposes it into operators without a mapping. It is called as
    `function(node, *args, **kwargs)` with the operator's own arguments, tensors without values; `node` is None if
    another operator was decomposed to this one. It returns the operator's result, or NotImplemented. None in a tuple
    stands for a result that it does not compute and that must not be used.

    Raises:
        ValueError: an operator is registered twice.
    """
    return _registering(lambda function: OperatorRecord(decomposition=function), *targets)


def translates(*targets: OpOverload | str) -> Callable[[Function], Function]:
    """Register the decorated function as the ONNX translation of `targets`.

    It has the form that `torch.onnx.export` takes in `custom_translation_table`: a function of onnxscript's operators
    with the parameters of the operator's schema.

    Raises:
        ValueError: an operator is registered twice.
    """
    return _registering(lambda function: OperatorRecord(translation=function), *targets)
