"""Reshapes of arrays with some sizes that are unknown until the model runs.

Keras can reshape to one dynamic size, or to one besides the batch. With more dynamic sizes, an array can still be
reshaped if all of them stay: the axes of known sizes are split and joined one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from converter.ir.sizes import Size, product
from converter.plan.layout import Move
from converter.plan.lazy_keras import layers, ops


def is_possible(move: Move) -> bool:
    """Return whether the reshapes that `move` needs are possible."""
    if move.named is not None:
        unpacks = move.named[0] == "DepthToSpace"
        return can_reshape(move.given, move.packed) if unpacks else can_reshape(move.packed, move.merge)
    if move.order is None:
        return can_reshape(move.given, move.merge)
    return can_reshape(move.given, move.split) and can_reshape([move.split[i] for i in move.order], move.merge)


def can_reshape(have: Sequence[Size], want: Sequence[Size]) -> bool:
    """Return whether `reshaped` can do it."""
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
    groups = _in_groups(have, want)
    if groups is None:
        raise ValueError(
            f"a reshape of {tuple(have)} to {tuple(want)} has several sizes that are unknown at conversion"
        )
    axis = 0
    for before, after in groups:
        if before != after:
            array = _split(_joined(array, axis, len(before)), axis, after)
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


def _in_groups(have: Sequence[Size], want: Sequence[Size]) -> list[tuple[tuple[int, ...], tuple[int, ...]]] | None:
    """Return runs of neighboring axes and the axes that replace them if dynamic sizes stay the same, else None."""
    groups: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
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


def _joined(array: Any, axis: int, count: int) -> Any:
    """Join `count` axes from `axis` on into one."""
    if not count:
        return ops.expand_dims(array, axis)
    for _ in range(count - 1):
        array = ops.concatenate(ops.unstack(array, axis=axis), axis)
    return array


def _split(array: Any, axis: int, sizes: Sequence[int]) -> Any:
    """Split one axis into several of these sizes."""
    if not sizes:
        return ops.squeeze(array, axis)
    for i, size in enumerate(sizes[:-1]):
        array = ops.stack(ops.split(array, size, axis + i), axis + i)
    return array
