"""Choose common axes for several values, so that little data moves: operands that broadcast, parts to concatenate."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, groupby

from converter.plan.layout import Layout, Run, Runs, cut_axes, joint_order
from converter.plan.steps import elements

_MOST_BROADCASTS = 5  # runs of axes along which TensorFlow's kernels can broadcast differently


def align_axes(layouts: Sequence[Layout], values: Sequence[int]) -> tuple[list[Runs], Layout]:
    """Choose axes on which operands with common atoms broadcast.

    Args:
        values: the positions of the operands that are not constants: only these move.

    Returns:
        The axes of each operand, and the layout of the result.
    """
    rank = max(len(layout.dims) for layout in layouts)
    dims = tuple(next((layout.dims[d] for layout in layouts if layout.dims[d]), ()) for d in range(rank))
    orders: list[tuple[Run, Sequence[Layout]]] = []
    for i in sorted(values, key=lambda i: -len(layouts[i].size)):
        first = [layouts[i], *(layouts[j] for j in (*values, *range(len(layouts))) if j != i)]
        orders.append((joint_order([layout.atoms for layout in first]), first))
    arrangements = []
    for order, kept in [*orders, (tuple(a for run in dims for a in run), layouts)]:  # last, as PyTorch orders them
        axes = cut_axes(order, kept)
        wanted = [_skeleton(axes, layout) for layout in layouts]
        cost = elements(layouts[j].to(wanted[j])[1] for j in values)
        refused = _broadcasts(axes, layouts) > _MOST_BROADCASTS
        arrangements.append((refused, cost, _disorder(axes, layouts), axes, wanted))
    *_, axes, wanted = min(arrangements, key=lambda a: a[:3])
    return wanted, Layout(dims, axes, {a: n for layout in layouts for a, n in layout.size.items()})


def join_axes(layouts: Sequence[Layout], dim: int) -> tuple[list[Runs], int, Layout]:
    """Choose axes on which values that have common atoms, but for `dim`, can be concatenated along it.

    Returns:
        The axes of each value, the axis to concatenate along, and the layout of the result.
    """
    joint = next((layout.dims[dim][0] for layout in layouts if layout.dims[dim]), None)
    if joint is None:
        joint = max((a for layout in layouts for a in layout.size), default=-1) + 1
    arrangements = []
    for base in sorted(layouts, key=lambda layout: joint not in layout.size):
        order = joint_order([base.atoms, *(layout.atoms for layout in layouts)])
        if joint not in order:
            following = next((a for d in range(dim + 1, len(base.dims)) for a in base.dims[d]), None)
            order = (*order, joint) if following is None else _insert_before(order, following, joint)
        axes = _own_axis(cut_axes(order, [base]), joint)
        wanted = [tuple(tuple(a for a in axis if a in layout.size) for axis in axes) for layout in layouts]
        cost = elements(layout.to(w)[1] for layout, w in zip(layouts, wanted, strict=True))
        arrangements.append((cost, axes, wanted))
    _, axes, wanted = min(arrangements, key=lambda a: a[0])
    dims = tuple((joint,) if d == dim else run for d, run in enumerate(layouts[0].dims))
    total = sum((layout.extent(layout.dims[dim]) for layout in layouts), start=0)
    size = {a: n for layout in layouts for a, n in layout.size.items()} | {joint: total}
    return wanted, next(i for i, axis in enumerate(axes) if joint in axis), Layout(dims, axes, size)


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
