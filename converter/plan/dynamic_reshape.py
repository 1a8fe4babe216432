"""Reshapes of arrays with some sizes that are unknown until the model runs.

Keras can reshape to one dynamic size, or to one besides the batch. With more dynamic sizes, an array can still be
reshaped if all of them stay: the axes of known sizes are split and joined one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from converter.ir.sizes import Size, product, quotient
from converter.plan.layout import Move
from converter.plan.lazy_keras import layers, ops


def is_possible(move: Move, interleaved: bool = False) -> bool:
    """Return whether the reshapes that `move` needs are possible; interleaved, by taking elements too."""
    pairs: list[tuple[Sequence[Size], Sequence[Size]]]
    if move.named is not None:
        unpacks = move.named[0] == "DepthToSpace"
        pairs = [(move.given, move.packed) if unpacks else (move.packed, move.merge)]
    elif move.order is None:
        pairs = [(move.given, move.merge)]
    else:
        pairs = [(move.given, move.split), ([move.split[i] for i in move.order], move.merge)]
    return all(can_reshape(*pair) or (interleaved and _in_dynamic_groups(*pair) is not None) for pair in pairs)


def can_reshape(have: Sequence[Size], want: Sequence[Size]) -> bool:
    """Return whether `reshaped` can do it without taking elements by their positions."""
    unknown = _unknown(want)
    return (
        unknown <= 1
        or tuple(have) == tuple(want)
        or _bare(have) == _bare(want)
        or (unknown == 2 and tuple(have[:1]) == tuple(want[:1]))
        or _in_groups(have, want) is not None
    )


def reshaped(array: Any, have: Sequence[Size], want: Sequence[Size]) -> Any:
    """Reshape `array` to `want`. If `want` has more than one dynamic size, `have` must be the array's shape.

    Raises:
        ValueError: it changes more than one dynamic size.
    """
    if _unknown(want) <= 1:
        target = runtime_shape(want)
        held = [n if isinstance(n, int) else None for n in array.shape]
        return array if held == [None if n == -1 else n for n in target] else ops.reshape(array, target)
    if tuple(have) == tuple(want):
        return array
    if _bare(have) == _bare(want):
        bare = array[tuple(0 if n == 1 else slice(None) for n in have)] if 1 in have else array
        ones = [i for i, n in enumerate(want) if n == 1]
        return ops.expand_dims(bare, ones) if ones else bare
    if _unknown(want) == 2 and tuple(have[:1]) == tuple(want[:1]):
        return layers.Reshape(runtime_shape(want[1:]), autocast=False)(array)
    groups = _in_groups(have, want) or _in_dynamic_groups(have, want)
    if groups is None:
        raise ValueError(
            f"a reshape of {tuple(have)} to {tuple(want)} has several sizes that are unknown at conversion"
        )
    axis = 0
    for before, after in groups:
        if before != after:
            array = _split(_joined(array, axis, before), axis, after)
        axis += len(after)
    return array


def runtime_shape(shape: Sequence[Size]) -> list[int]:
    if _unknown(shape) > 1:
        raise ValueError(f"a reshape to {tuple(shape)} has more than one size that is unknown at conversion")
    return [n if isinstance(n, int) else -1 for n in shape]


def _unknown(shape: Sequence[Size]) -> int:
    return sum(not isinstance(n, int) for n in shape)


def _bare(shape: Sequence[Size]) -> list[Size]:
    return [n for n in shape if n != 1]


Groups: TypeAlias = list[tuple[tuple[Size, ...], tuple[Size, ...]]]


def _in_groups(have: Sequence[Size], want: Sequence[Size]) -> Groups | None:
    """Return runs of neighboring axes and the axes that replace them if dynamic sizes stay the same, else None."""
    groups: Groups = []
    before, after = list(have), list(want)
    while before or after:
        if before and after and before[0] == after[0]:
            groups.append(((before.pop(0),), (after.pop(0),)))
            continue
        left: list[int] = []
        right: list[int] = []
        while before and isinstance(before[0], int) and (not left or product(left) != product(right)):
            left.append(before.pop(0))
            while after and isinstance(after[0], int) and product(right) < product(left):
                right.append(after.pop(0))
        while after and after[0] == 1 and not left:
            right.append(after.pop(0))
        if product(left) != product(right) or not (left or right):
            return None
        groups.append((tuple(left), tuple(right)))
    return groups


def _in_dynamic_groups(have: Sequence[Size], want: Sequence[Size]) -> Groups | None:
    """Return runs of neighboring axes and the axes that replace them, at most one on each side dynamic, else None."""
    groups: Groups = []
    before, after = list(have), list(want)
    while before or after:
        left: list[Size] = []
        right: list[Size] = []
        while not (left or right) or product(left) != product(right):
            if after and quotient(product(left), product(right)) is not None and (left or after[0] == 1):
                right.append(after.pop(0))
            elif before and quotient(product(right), product(left)) is not None:
                left.append(before.pop(0))
            else:
                return None
        if _unknown(left) > 1 or _unknown(right) > 1:
            return None
        groups.append((tuple(left), tuple(right)))
    return groups


def _joined(array: Any, axis: int, sizes: Sequence[Size]) -> Any:
    """Join the axes of these sizes, from `axis` on, into one."""
    if not sizes:
        return ops.expand_dims(array, axis)
    first = sizes[0]
    for size in sizes[1:]:
        if isinstance(first, int):
            array = ops.concatenate(ops.unstack(array, axis=axis), axis)
        else:
            array = ops.concatenate(ops.unstack(array, axis=axis + 1), axis)
            array = _turned(array, axis, size, joined=True)
        first = first * size
    return array


def _split(array: Any, axis: int, sizes: Sequence[Size]) -> Any:
    """Split one axis into several of these sizes."""
    if not sizes:
        return ops.squeeze(array, axis)
    for i, size in enumerate(sizes[:-1]):
        if not isinstance(size, int):
            inner = product(sizes[i + 1 :])
            array = ops.stack(ops.split(_turned(array, axis + i, inner, joined=False), inner, axis + i), axis + i + 1)
            return _split(array, axis + i + 1, sizes[i + 1 :])
        array = ops.stack(ops.split(array, size, axis + i), axis + i)
    return array


def _turned(array: Any, axis: int, count: int, joined: bool) -> Any:
    """Transpose what an axis holds, a matrix of `count` rows after another, to one of `count` columns, or back."""
    places, total = counted(along(array, axis), "int32")
    length = ops.floor_divide(total, count)
    inner, outer = (count, length) if joined else (length, count)
    row = ops.floor_divide(places, inner)
    return ops.take(array, (places - inner * row) * outer + row, axis)


def along(array: Any, axis: int) -> Any:
    """Return one line of `array`, along `axis`."""
    return array[(*(0,) * axis, slice(None), *(0,) * (len(array.shape) - axis - 1))]


def counted(line: Any, dtype: str = "float64") -> tuple[Any, Any]:
    """Return the positions 0, 1, ... along `line`, and their number."""
    ones = ops.ones_like(line, dtype=dtype)
    return ops.cumsum(ones) - 1, ops.sum(ones)
