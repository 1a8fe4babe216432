"""Tables of Markdown, from rows that `benchmarks/` measured and recorded as JSON."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

DOCS = Path(__file__).resolve().parents[1]


def recorded(name: str) -> Any:
    """Return the recorded data of a page, `docs/NAME.json`."""
    return json.loads((DOCS / f"{name}.json").read_text(encoding="utf-8"))


def record(name: str, data: Any) -> None:
    """Record the data of a page."""
    (DOCS / f"{name}.json").write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], right: Iterable[str] = ()) -> str:
    """Return a table whose columns in `right` are aligned to the right."""
    aligned = ["right" if column in set(right) else None for column in columns]
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    return tabulate(cells, columns, "pipe", colalign=aligned, disable_numparse=True) + "\n"
