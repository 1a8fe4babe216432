"""Orders of channels as text, and as code of NumPy and PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

MOST_NUMBERS = 16  # of an order that is listed; a longer one is given as ranges


def channel_order(order: Sequence[int]) -> str:
    """Return an order of channels as ranges: 0-2, 6-8, 3-5, 9-11."""
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in _runs(order))


def index_text(order: Sequence[int]) -> str:
    """Return an order as an index of NumPy and PyTorch."""
    runs = _runs(order)
    if len(order) <= MOST_NUMBERS or len(runs) > len(order) // 2:
        return str(list(order))
    return f"numpy.r_[{', '.join(f'{first}:{last + 1}' for first, last in runs)}]"


def _runs(order: Sequence[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for n in order:
        if runs and n == runs[-1][1] + 1:
            runs[-1] = runs[-1][0], n
        else:
            runs.append((n, n))
    return runs
