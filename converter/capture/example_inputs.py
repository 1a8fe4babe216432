"""How a module is called: tensors of the requested shapes, bound to the parameters of its forward."""

from __future__ import annotations

import contextlib
import inspect
import json
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from converter.capture.dynamic_shapes import LEAST, limits_of
from converter.capture.input_shapes import BATCH, FreeSize, InputShape
from converter.errors import CaptureError, UsageError

# Sizes to try where the user gives names: multiples of 32, as most strided networks need, then others.
TRIED = (64, 32, 128, 224, 256, 16, 8, 512)
OF_SEQUENCES = (2048, 16384)  # for audio, where no input has two dynamic sizes
APART = 32
INTEGERS = ("int8", "int16", "int32", "int64", "uint8")
MOST_COLUMNS = 64
aten = torch.ops.aten
BAGS = {aten._embedding_bag, aten._embedding_bag_forward_only}
INDEXING = {aten.embedding, aten.index, aten.index_select, aten.gather, *BAGS}


@dataclass(frozen=True)
class CallSpec:
    """The example inputs of a module.

    Attributes:
        shapes: of each input, in the order in which forward takes them.
        names: the parameters that take them by keyword, with `.KEY` for an entry of a dictionary and `.0` for an item
            of a list; () if all are given by position.
        sizes: the numbers used for dynamic sizes.
        lowest: the lowest integer of each input of integers, by its place, or of each place of its last axis; 0 if it
            is not there.
    """

    shapes: tuple[InputShape, ...]
    names: tuple[str, ...] = ()
    sizes: Mapping[str, int] | None = None
    lowest: Mapping[int, tuple[int, ...]] = field(default_factory=dict)

    @property
    def free(self) -> tuple[dict[int, FreeSize], ...]:
        return tuple(shape.free for shape in self.shapes)

    @property
    def batch_first(self) -> bool:
        """Return whether the first size of each input is the batch."""
        return all(shape.batch_first for shape in self.shapes)

    def examples(self, batch: int | None, seed: int) -> list[Tensor]:
        """Return seeded random tensors; integers are 0 and 1, which any embedding table has, above the lowest."""
        generator = torch.Generator().manual_seed(seed)
        drawn = [_example(shape, dict(self.sizes or {}), batch, generator) for shape in self.shapes]
        lowest = {place: torch.tensor(integers, dtype=drawn[place].dtype) for place, integers in self.lowest.items()}
        return [x + lowest[place] if place in lowest else x for place, x in enumerate(drawn)]

    def bind(self, module: nn.Module) -> None:
        """Make `module` take the inputs by position, as all callers pass them."""
        if self.names:
            forward = module.forward
            names = [re.sub(r"\W", "_", name) for name in self.names]
            set_positional_forward(module, names, lambda *given: forward(**_grouped(self.names, given)))


def _grouped(names: Sequence[str], given: Sequence[Any]) -> dict[str, Any]:
    """Group `a.b` and `a.c` into a dictionary `a`, `a.0` and `a.1` into a list."""
    grouped: dict[str, Any] = {}
    for name, value in zip(names, given, strict=True):
        *outer, last = name.split(".")
        within = grouped
        for part in outer:
            within = within.setdefault(part, {})
        within[last] = value
    return {name: _listed(value) for name, value in grouped.items()}


def _listed(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    held = {key: _listed(item) for key, item in value.items()}
    return list(held.values()) if list(held) == [str(i) for i in range(len(held))] else held


def set_positional_forward(module: nn.Module, names: Sequence[str], forward: Callable[..., Any]) -> None:
    """Give this instance a forward with these parameters."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = inspect.Signature([inspect.Parameter(name, kind) for name in names])
    forward.__signature__ = signature  # type: ignore[attr-defined]
    module.forward = forward


def fix_values(module: nn.Module, pairs: Sequence[str]) -> None:
    """Make `module` take these values for parameters of its forward, which it then no longer has.

    Args:
        pairs: `NAME=VALUE`; a value is JSON, or else a text.

    Raises:
        UsageError: forward does not have a parameter of a name.
    """
    if not pairs:
        return
    values = {name.strip(): _value(text) for name, _, text in (pair.partition("=") for pair in pairs)}
    forward = module.forward
    whole = inspect.signature(forward)
    for name in values:
        if name not in whole.parameters:
            raise UsageError(
                f"Forward does not have a parameter `{name}`; it takes {', '.join(whole.parameters) or 'nothing'}.",
                code="PTC2044",
                where="--input-value",
                fix="Write NAME=VALUE with one of these names.",
            )
    rest = whole.replace(parameters=[p for name, p in whole.parameters.items() if name not in values])

    def filled(*args: Any, **kwargs: Any) -> Any:
        given = {**rest.bind(*args, **kwargs).arguments, **values}
        bound = inspect.BoundArguments(whole, OrderedDict((n, given[n]) for n in whole.parameters if n in given))
        return forward(*bound.args, **bound.kwargs)

    filled.__signature__ = rest  # type: ignore[attr-defined]
    module.forward = filled


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return {"True": True, "False": False, "None": None}.get(text.strip(), text)


def bind_shapes(module: nn.Module, shapes: Sequence[InputShape]) -> CallSpec:
    """Order the shapes by forward's parameters.

    Shapes without names are for the first parameters; with names, parameters with a default may be left out, and
    keyword-only ones given. `batch.image` is in a dictionary that the parameter `batch` takes, `xs.0` in a list.

    Raises:
        UsageError: forward does not have a name, or a parameter gets no shape.
    """
    named = {str(shape.name): shape for shape in shapes if shape.name is not None}
    if not named:
        return CallSpec(tuple(shapes))
    if len(named) < len(shapes):
        raise UsageError(
            "Some input shapes have a name and some do not, or two have the same one.",
            code="PTC2010",
            fix="Name every --input-shape, as in NAME=1,3,224,224, or none of them.",
            where="--input-shape",
        )
    parameters = inspect.signature(module.forward).parameters
    variadic = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    taken = [p for p in parameters.values() if p.kind not in variadic]
    any_keyword = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    first = {name: name.partition(".")[0] for name in named}
    unknown = [name for name in named if first[name] not in {p.name for p in taken}]
    missing = [p.name for p in taken if p.default is p.empty and p.name not in first.values()]
    if missing or (unknown and not any_keyword):
        asked = f", and nothing for {', '.join(missing)}" if missing else ""
        raise UsageError(
            f"Forward takes {', '.join(p.name for p in taken) or 'nothing by name'}; shapes were given "
            f"for {', '.join(named)}{asked}.",
            code="PTC2011",
            where="--input-shape",
            fix="Give one shape for each parameter without a default, or --input-value NAME=VALUE if it is no tensor.",
        )
    order = [name for p in taken for name in named if first[name] == p.name] + unknown
    ordered = tuple(named[name] for name in order)
    by_position = [p.name for p in taken if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    if order == by_position[: len(order)]:
        return CallSpec(ordered)
    return CallSpec(ordered, tuple(order))


def choose_sizes(calling: CallSpec, runs: Callable[[list[Tensor]], None], batch: int | None, seed: int) -> CallSpec:
    """Return the call spec with numbers for its dynamic sizes, at which the model runs.

    If other sizes were too small, take twice the first that runs: near a model's minimum, a feature map has one
    element, which torch.export turns into a constant.

    Args:
        runs: raises CaptureError for inputs that the model does not take.
    """
    first: CaptureError | None = None
    tried = []
    limits = limits_of(calling.free)
    for sizes in (_limited(sizes, limits) for sizes in _tried(calling.free)):
        candidate = replace(calling, sizes=sizes)
        try:
            runs(candidate.examples(batch, seed))
            break
        except CaptureError as error:
            first = first or error
            tried.append(", ".join(f"{name}={size}" for name, size in sizes.items()))
    else:
        if first is None:
            return calling
        raise CaptureError(
            f"No sizes were found at which the model runs. With the first sizes tried: {first.what}",
            code="PTC2012",
            where=first.where,
            fix=f"Give numbers, or multiples as in 1,3,48*H,48*W. Tried: {'; '.join(tried)}.",
        )
    if first is not None:
        with contextlib.suppress(CaptureError):  # then keep the first
            twice = replace(calling, sizes=_limited({n: 2 * size for n, size in sizes.items()}, limits))
            runs(twice.examples(batch, seed))
            return twice
    return candidate


def choose_integers(calling: CallSpec, runs: Callable[[list[Tensor]], None], batch: int | None, seed: int) -> CallSpec:
    """Return the call spec with integers that the model takes: `table(year - 1950)` takes no 0 and 1.

    Where nothing does, or what fails is no index, it is returned as it is.

    Args:
        runs: raises CaptureError for inputs that the model does not take.
    """
    places = [place for place, shape in enumerate(calling.shapes) if shape.dtype in INTEGERS]
    sizes = next((_limited(sizes, limits_of(calling.free)) for sizes in _tried(calling.free)), None)

    def tried(lowest: Mapping[int, tuple[int, ...]]) -> Indices:
        seen = Indices()
        with contextlib.suppress(CaptureError), seen:
            runs(replace(calling, sizes=sizes, lowest=lowest).examples(batch, seed))
            seen.count, seen.last = seen.count + 1, 0  # further than any index
            seen.ended = True
        return seen

    lowest: dict[int, tuple[int, ...]] = {}
    reached = tried(lowest) if places else Indices()
    for place in (place for place in places if len(calling.shapes[place].shape) == 1 and not reached.ended):
        further = tried(lowest | {place: (-1,)})  # zeros, for offsets of bags
        if further.ended or further.count > reached.count:
            lowest, reached = lowest | {place: (-1,)}, further
    for place in places:
        shape, limits = calling.shapes[place], torch.iinfo(getattr(torch, calling.shapes[place].dtype))
        columns = shape.shape[-1] if len(shape.shape) > 1 and isinstance(shape.shape[-1], int) else 1
        each_column = [(column, False) for column in range(columns if 1 < columns <= MOST_COLUMNS else 0)]
        for column, to_the_end in ((None, True), *each_column, (None, False)):
            for first in (-reached.last, *(10**power for power in range(7))) if reached.last < 0 else ():
                known = lowest.get(place, (0,) * columns)
                held = [first if column in (None, each) else before for each, before in enumerate(known)]
                fits = limits.min <= first < limits.max
                further = tried(lowest | {place: tuple(held)}) if fits else reached
                if further.ended or (further.count > reached.count and not to_the_end):
                    lowest, reached = lowest | {place: tuple(held)}, further
                    break
    return replace(calling, lowest=lowest)


class Indices(TorchDispatchMode):
    """Counts the operators with indices, and notes the lowest index that the last of them was called with."""

    count, last, ended = 0, 0, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in INDEXING:
            held = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.dtype == torch.int64]
            self.count, self.last = self.count + 1, min((int(x.min()) for x in held if x.numel()), default=0)
        return func(*args, **(kwargs or {}))


def _limited(sizes: Mapping[str, int], limits: Mapping[str, tuple[int, int]]) -> dict[str, int]:
    """Return sizes within the user's limits, multiples of a power of two where they were outside."""
    found = dict(sizes)
    for i, (name, (least, most)) in enumerate(limits.items()):
        if not least <= found[name] <= most:
            step = max(2**n for n in range(7) if 4 * 2**n <= most - least or n == 0)
            base = max(least, min((least + most) // 2, TRIED[3]))
            found[name] = min(-(-base // step) * step + i * step, most)
    return found


def _tried(free: Sequence[Mapping[int, FreeSize]]) -> Iterator[dict[str, int]]:
    """Give numbers for the names: no two sizes alike, then all alike."""
    factors: dict[str, int] = {}
    for size in (size for sizes in free for size in sizes.values()):
        factors[size.name] = max(size.factor, factors.get(size.name, 1))
    batch = {BATCH: LEAST} if factors.pop(BATCH, None) else {}
    if not factors:
        yield from [batch] if batch else []
        return
    longer = OF_SEQUENCES if all(len({n.name for n in sizes.values()} - {BATCH}) < 2 for sizes in free) else ()
    for apart in (APART, 0) if len(factors) > 1 else (0,):
        for base in (*TRIED, *longer):
            step = min(apart, base)
            yield batch | {
                name: max(2, (base + i * step) // factor) + (i if apart and factor >= base else 0)
                for i, (name, factor) in enumerate(factors.items())
            }


def _example(shape: InputShape, sizes: dict[str, int], batch: int | None, generator: torch.Generator) -> Tensor:
    numbers = shape.at(sizes, 1)
    if batch is not None and numbers and shape.batch_first:
        numbers = (batch, *numbers[1:])
    dtype: torch.dtype = getattr(torch, shape.dtype)
    if dtype.is_floating_point:
        return torch.randn(numbers, generator=generator).to(dtype)
    if len(numbers) == 1 and dtype != torch.bool:
        return torch.ones(numbers, dtype=dtype)  # a length or a class: 0 is no length
    return torch.randint(0, 2, numbers, generator=generator).to(dtype)
