"""How much of the current step is done: the step counts, and the terminal reads it from a thread of its own."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

_under_way: list[tuple[int, int]] = []  # done and total of the loops that run now, the innermost last


def counted(items: Sequence[T]) -> Iterator[T]:
    """Yield the items of a loop, and let `share_done` tell how many of them are done."""
    place = len(_under_way)
    _under_way.append((0, len(items)))
    try:
        for number, item in enumerate(items):
            _under_way[place] = (number, len(items))
            yield item
    finally:
        del _under_way[place:]


def share_done() -> float | None:
    """Return the share of the current step that is done, 0 to 1, or None if no step counts."""
    share, weight = 0.0, 1.0
    found = list(_under_way)
    for done, total in found:
        share += weight * done / max(total, 1)
        weight /= max(total, 1)
    return share if found else None
