"""Align the operands of elementwise operators on common axes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, groupby

from converter.plan.layout import Layout, Run, Runs

_MOST_BROADCASTS = 5  # runs of axes along which TensorFlow's kernels can broadcast differently


def _insert_before(order: Run, atom: int, new: int) -> Run:
    at = order.index(atom)
    return (*order[:at], new, *order[at:])


def _own_axis(axes: Runs, atom: int) -> Runs:
    result: list[Run] = []
    for axis in axes:
        if atom in axis and len(axis) > 1:
            at = axis.index(atom)
            result += [run for run in (axis[:at], (atom,), axis[at + 1 :]) if run]
        else:
            result.append(axis)
    return tuple(result)


def _broadcasts(axes: Runs, layouts: Sequence[Layout]) -> int:
    """Count the runs of neighboring axes along which the same values are broadcast."""
    along = [tuple(any(a in layout.size and layout.size[a] != 1 for a in axis) for layout in layouts) for axis in axes]
    return len(list(groupby(values for values in along if any(values))))


def _disorder(axes: Runs, layouts: Sequence[Layout]) -> int:
    """Count the pairs of atoms, never both in one value, that lie in another order than their dimensions."""
    rank = max(len(layout.dims) for layout in layouts)
    dims = {a: rank - len(x.dims) + d for x in layouts for d, run in enumerate(x.dims) for a in run}
    together = {frozenset(pair) for x in layouts for pair in combinations(x.size, 2)}
    pairs = combinations((a for axis in axes for a in axis), 2)
    return sum(dims[a] > dims[b] for a, b in pairs if frozenset((a, b)) not in together)


def _skeleton(axes: Runs, layout: Layout) -> Runs:
    """Return `axes` as held by a value that broadcasts along some of them: leading axes that it lacks are omitted."""
    runs = [tuple(a for a in axis if a in layout.size) for axis in axes]
    while runs and not runs[0]:
        runs.pop(0)
    return tuple(runs)
