"""Find the ways to feed a model's inputs to an artifact: under which names, in which layouts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, permutations, product

from converter.artifacts.runner import TensorSpec
from converter.errors import ConversionError
from converter.plan.interface import TensorInterface, sizes_shown
from converter.report.results import ExplanationKind
from converter.verification.explanations import orders
from converter.verification.io_names import counted, fits, kind, pair_names, shown

MOST_BINDINGS = 12  # each costs a run
MOST_PERMUTED = 4  # inputs whose order is tried


@dataclass(frozen=True)
class InputBinding:
    """One way to feed an artifact: for each of the model's inputs, the artifact's name and the axes' order.

    Attributes:
        open: what names and shapes leave open, if this binding is the one that agrees.
    """

    names: tuple[str, ...]
    orders: tuple[tuple[int, ...], ...]
    open: tuple[tuple[ExplanationKind, str, str], ...] = ()


def input_bindings(
    inputs: Sequence[TensorInterface], specs: Sequence[TensorSpec], layouts_known: bool
) -> Iterator[InputBinding]:
    """Yield the bindings of a model's inputs to an artifact's that names, shapes and types allow, the likeliest first.

    Args:
        layouts_known: names and layouts are known, not guessed.

    Raises:
        ConversionError: there is none.
    """
    if len(specs) != len(inputs):
        raise ConversionError(
            f"The model has {counted(len(inputs), 'input')}, the artifact {len(specs)}: "
            f"{', '.join(i.name for i in inputs)} against {', '.join(s.name for s in specs)}.",
            code="PTC5009",
            fix="Compare models with the same inputs.",
        )
    by_name = {s.name: s for s in specs}
    baseline = pair_names([i.name for i in inputs], list(by_name))
    assignments = [baseline]
    if not layouts_known and 1 < len(inputs) <= MOST_PERMUTED:
        assignments += [p for p in permutations(baseline) if p != baseline]
    bindings = []
    for names in assignments:
        each = [_orders(i, by_name[n], layouts_known) for i, n in zip(inputs, names, strict=True)]
        if all(each):
            bindings.append((names, each))
    if not bindings:
        raise _unfit(inputs, [by_name[name] for name in baseline])
    explained = bindings[0][0] == baseline  # names of the baseline are expected, if they fit
    found = (_laid_out(inputs, names, each, baseline if explained else names) for names, each in bindings)
    yield from islice(chain.from_iterable(found), MOST_BINDINGS)


def _laid_out(
    inputs: Sequence[TensorInterface],
    names: Sequence[str],
    orders: Sequence[Sequence[tuple[int, ...]]],
    expected: Sequence[str],
) -> Iterator[InputBinding]:
    """Yield the bindings to these names in all layouts; names other than the expected ones are to be explained."""
    swapped: tuple[tuple[ExplanationKind, str, str], ...] = ()
    if names != expected:
        pairs = ", ".join(f"`{n}` is `{i.name}`" for i, n in zip(inputs, names, strict=True))
        swapped = (("input-order", "", f"its inputs are in another order: {pairs}"),)
    for chosen in product(*orders):
        guessed = tuple(
            ("layout", i.name, f"the artifact takes `{i.name}` channels last, which its shape does not show")
            for i, order, fitting in zip(inputs, chosen, orders, strict=True)
            if order != fitting[0]
        )
        yield InputBinding(tuple(names), chosen, (*swapped, *guessed))  # type: ignore[arg-type]


def _orders(interface: TensorInterface, spec: TensorSpec, layouts_known: bool) -> list[tuple[int, ...]]:
    """Return the layouts in which the artifact's input may hold the model's; none if it is of another type or shape."""
    if kind(spec.dtype) not in (kind(interface.dtype), "f"):
        return []
    if layouts_known:
        return [interface.order]
    return [o for o in orders(len(interface.shape)) if fits([interface.shape[d] for d in o], spec.shape)]


def _unfit(inputs: Sequence[TensorInterface], specs: Sequence[TensorSpec]) -> ConversionError:
    listed = "; ".join(
        f"`{i.name}` is {str(i.dtype).removeprefix('torch.')} {shown(sizes_shown(i.shape))} in the model, "
        f"`{s.name}` is {s.dtype} {shown(s.shape)}"
        for i, s in zip(inputs, specs, strict=True)
    )
    return ConversionError(
        f"The artifact's inputs have other shapes or types than the model's: {listed}.",
        code="PTC5010",
        fix="Give --input-shape with the sizes that the artifact takes, in PyTorch's layout.",
    )
