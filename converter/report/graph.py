"""Draw graphs as SVG: boxes in layers by their distance from the input, joined by curves.

It draws the picture of the README, the rewrites in a report's page, and what `inspect --graph` writes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import chain, pairwise
from typing import TYPE_CHECKING

from converter.errors import escaped

if TYPE_CHECKING:
    from converter.report.results import ModelSummary, PlanRow

MOST_BOXES = 400  # of one picture; beyond it, neighbors of a module become one box
LONGEST_LINE, LONGEST_TEXT = 40, 300  # characters of a line in a box, of a text beside it
LINE, CHARACTER, GAP, BETWEEN, MARGIN = 16, 6.8, 16, 32, 10  # in pixels: of text, then around boxes
SWEEPS = 6  # rounds that order and place the boxes of a layer by their neighbors
COLORS = {  # by kind: light, dark
    "moves": ("#ffe3b8", "#6b4500"), "packs": ("#cdebd0", "#1f5a2a"), "last": ("#cfe3f7", "#1b4470"),
    "other": ("#e6d9f5", "#4a2f70"), "wrong": ("#ffd0cc", "#7a1c17"),
}  # fmt: skip
MEANING = {
    "last": "channels last", "": "PyTorch's order of axes", "other": "another order of axes", "moves": "data moves",
    "wrong": "no mapping",
}  # fmt: skip
STYLE = (
    "svg { background: #fff } text { font: 12px system-ui, sans-serif; fill: #1b1f24 } .head { font-weight: 600 }\n"
    "rect { fill: #f3f5f7; stroke: #57606a } path { stroke: #57606a; fill: none } .thick { stroke-width: 2.5 }\n"
    + " ".join(f".{kind} {{ fill: {light} }}" for kind, (light, _) in COLORS.items())
    + "\n@media (prefers-color-scheme: dark) {\nsvg { background: #14181d } text { fill: #e6e9ed }\n"
    + "rect { fill: #1d232a } "
    + " ".join(f".{kind} {{ fill: {dark} }}" for kind, (_, dark) in COLORS.items())
    + "\n}"
)


@dataclass(frozen=True)
class Box:
    """One box: its lines of text, its kind (a key of `COLORS` or ""), and all that there is to say about it.

    Attributes:
        marked: it has a thick border.
    """

    name: str
    lines: tuple[str, ...]
    kind: str = ""
    says: str = ""
    marked: bool = False

    @property
    def width(self) -> int:
        return round(max(CHARACTER * len(line) for line in self.lines)) + 20

    @property
    def height(self) -> int:
        return LINE * len(self.lines) + 10


@dataclass(frozen=True)
class Drawing:
    """Elements of an SVG, and how much room they take from (0, 0)."""

    elements: tuple[str, ...]
    width: int
    height: int


def draw(boxes: Sequence[Box], edges: Collection[tuple[str, str]], *, across: bool, x: int = 0, y: int = 0) -> Drawing:
    """Draw a graph without cycles, from left to right if `across`, else from top to bottom.

    Args:
        boxes: each after those that it reads.
        edges: names of two boxes each.
        x: where it begins.
        y: where it begins.
    """
    layers = _in_layers(boxes, edges)
    sizes = {box.name: (box.height, box.width) if across else (box.width, box.height) for box in boxes}
    center, span = _places(layers, {name: size[0] for name, size in sizes.items()})
    starts, at = [], 0
    for layer in layers.rows:
        starts.append(at)
        at += max(sizes[name][1] if name in sizes else 0 for name in layer) + BETWEEN

    def point(name: str, end: bool) -> tuple[int, int]:
        """Return the middle of a box's near or far side; what passes by a layer is as long as the layer."""
        level = layers.depth[name]
        length = sizes[name][1] if name in sizes else starts[level + 1] - BETWEEN - starts[level]
        along = starts[level] + (length if end else 0)
        return (x + along, y + center[name]) if across else (x + center[name], y + along)

    elements = []
    for source, target in layers.edges:
        (ax, ay), (bx, by) = point(source, True), point(target, False)
        half = ((bx - ax) if across else (by - ay)) // 2
        bend = f"{ax + half} {ay} {bx - half} {by}" if across else f"{ax} {ay + half} {bx} {by - half}"
        past = "" if target in sizes else "L{} {}".format(*point(target, True))
        elements.append(f'<path d="M{ax} {ay}C{bend} {bx} {by}{past}"/>')
    for box in boxes:
        px, py = point(box.name, False)
        left, top = (px, py - box.height // 2) if across else (px - box.width // 2, py)
        kinds = " ".join(kind for kind in (box.kind, "thick" if box.marked else "") if kind)
        kinds = f' class="{kinds}"' if kinds else ""
        elements.append(f"<g>{f'<title>{_text(box.says, LONGEST_TEXT)}</title>' if box.says else ''}")
        elements.append(f'<rect{kinds} x="{left}" y="{top}" width="{box.width}" height="{box.height}" rx="4"/>')
        for number, line in enumerate(box.lines):
            down = top + LINE * (number + 1) + 1
            elements.append(f'<text x="{left + box.width // 2}" y="{down}" text-anchor="middle">{_text(line)}</text>')
        elements.append("</g>")
    along = max(at - BETWEEN, 0)
    return Drawing(tuple(elements), *((along, span) if across else (span, along)))


def document(elements: Sequence[str], width: int, height: int, label: str, description: str = "") -> str:
    """Return an SVG file with elements, and what it shows in words."""
    described = f"\n<desc>{_text(description, 4 * LONGEST_TEXT)}</desc>" if description else ""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img"',
            f'aria-label="{_text(label, LONGEST_TEXT)}">{described}',
            f"<style>\n{STYLE}\n</style>",
            *elements,
            "</svg>\n",
        ]
    )


def program_picture(summary: ModelSummary, rows: Sequence[PlanRow]) -> str:
    """Return an SVG of a model's operators: the order of their axes as colors, and which of them move data.

    Args:
        summary: of the model.
        rows: of its plan, or of its program if operators have no mapping.
    """
    unsupported = {one.operator.split(".")[-2:][0] for one in summary.unsupported}  # of "aten.relu.default" the middle
    boxes, edges, merged = _program_boxes(rows, unsupported)
    moving = [row for row in rows if row.moves]
    values = [row for row in rows if row.operator not in ("placeholder", "output")]
    count = f"{len(moving)} that move{'s' * (len(moving) == 1)} data" if moving else "none that moves data"
    head = f"{summary.source}: {len(values)} operators, {count}"
    notes = [f"{len(boxes)} boxes: operators of one module that follow each other are one box"] if merged else []
    moved = [f"{row.module or 'the model itself'}: {'; '.join(row.moves)}" for row in moving]
    elements = [f'<text class="head" x="{MARGIN}" y="22">{_text(head, LONGEST_TEXT)}</text>']
    elements += [f'<text x="{MARGIN}" y="{42 + LINE * i}">{_text(note)}</text>' for i, note in enumerate(notes)]
    top = 36 + LINE * len(notes)
    shown = {box.kind for box in boxes}
    at = MARGIN
    for kind, meaning in MEANING.items():
        if kind in shown or (kind == "moves" and moving):
            sample = ' class="thick moves"' if kind == "moves" else f' class="{kind}"' if kind else ""
            elements.append(f'<rect{sample} x="{at}" y="{top}" width="14" height="14" rx="3"/>')
            elements.append(f'<text x="{at + 20}" y="{top + 12}">{_text(meaning)}</text>')
            at += 40 + round(CHARACTER * len(meaning))
    drawn = draw(boxes, edges, across=False, x=MARGIN, y=top + 34)
    width = max(drawn.width + 2 * MARGIN, at, MARGIN + round(7.5 * len(head)))
    description = ". ".join([*notes, *(moved or ["No operator moves data"])])
    return document([*elements, *drawn.elements], width, top + 34 + drawn.height + MARGIN, head, description)


def _program_boxes(
    rows: Sequence[PlanRow], unsupported: Collection[str]
) -> tuple[list[Box], set[tuple[str, str]], bool]:
    """Return a box for each value, or for neighbors of one module where there are too many, and what reads what."""
    groups = [[row] for row in rows]
    depth = max((row.module.count(".") + 1 for row in rows if row.module), default=0)
    while len(groups) > MOST_BOXES and depth:
        groups, depth = _merged(rows, depth), depth - 1
    if len(groups) > MOST_BOXES:
        size = -(-len(rows) // MOST_BOXES)
        groups = [list(rows[start : start + size]) for start in range(0, len(rows), size)]
    home = {row.value: group[0].value for group in groups for row in group}
    edges = {
        (home[name], home[row.value])
        for row in rows
        for name in row.reads
        if name in home and home[name] != home[row.value]
    }
    return [_program_box(group, unsupported) for group in groups], edges, len(groups) < len(rows)


def _merged(rows: Sequence[PlanRow], depth: int) -> list[list[PlanRow]]:
    """Return rows in runs of one module at this depth, which leaves no cycles; inputs and outputs stay alone."""
    groups: list[list[PlanRow]] = []
    before: object = None
    for row in rows:
        alone = row.operator in ("placeholder", "output")
        path: object = row.value if alone else (tuple(row.module.split(".")[:depth]),)
        if path == before:
            groups[-1].append(row)
        else:
            groups.append([row])
        before = path
    return groups


def _program_box(group: Sequence[PlanRow], unsupported: Collection[str]) -> Box:
    first, last = group[0], group[-1]
    kinds = {_kind(row) for row in group}
    wrong = any(row.operator in unsupported for row in group)
    moves = [move for row in group for move in row.moves]
    shape = f"[{', '.join(map(str, last.shape))}]" if last.shape else ""
    if len(group) == 1:
        lines = [first.value if first.operator == "placeholder" else first.operator, first.module, shape, first.axes]
        says = [first.value, first.operator, first.module, shape, f"axes {first.axes}" if first.axes else ""]
    else:
        shared = _shared_path(group)
        lines = [shared or "(model)", f"{len(group)} operators", shape]
        says = [shared, f"{len(group)} operators: {', '.join(dict.fromkeys(row.operator for row in group))}", shape]
    kind = "wrong" if wrong else "moves" if moves else kinds.pop() if len(kinds) == 1 else "other"
    lines += [move.partition(":")[0] for move in moves[:2]] + ["no mapping"] * wrong
    lines += [f"and {len(moves) - 2} more"] * (len(moves) > 2)
    texts = tuple(_cut(line) for line in lines if line)
    return Box(first.value, texts, kind, "; ".join(filter(None, [*says, *moves])), bool(moves))


def _shared_path(group: Sequence[PlanRow]) -> str:
    paths = [row.module.split(".") for row in group]
    shared = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


def _kind(row: PlanRow) -> str:
    """Return the kind of box for an order of axes: "-" has size 1, "1.0 1.1" is two factors of dimension 1."""
    axes = [[atom.split(".") for atom in axis.split() if atom != "-"] for axis in row.axes.split(" | ")]
    atoms = [[(int(dim), *map(int, factor)) for dim, *factor in axis] for axis in axes]
    dims = [{atom[0] for atom in axis} for axis in atoms]
    before = list(chain.from_iterable(atoms[:-1]))
    if len(axes) == len(row.shape) and all(held <= {number} for number, held in enumerate(dims)):
        return ""
    if len(row.shape) > 2 and dims[-1] <= {1} and before == sorted(before) and 1 not in {atom[0] for atom in before}:
        return "last"
    every = [*before, *atoms[-1]]
    return "" if every == sorted(every) else "other"


@dataclass
class _Layers:
    """Names in layers; an edge over several of them bends in each, at names that are numbers."""

    rows: list[list[str]]
    depth: dict[str, int]
    edges: list[tuple[str, str]]


def _in_layers(boxes: Sequence[Box], edges: Collection[tuple[str, str]]) -> _Layers:
    order = {box.name: number for number, box in enumerate(boxes)}
    sources: dict[str, list[str]] = {box.name: [] for box in boxes}
    for source, target in sorted(edges, key=lambda edge: (order[edge[0]], order[edge[1]])):
        sources[target].append(source)
    depth: dict[str, int] = {}
    for box in boxes:
        depth[box.name] = 1 + max((depth[source] for source in sources[box.name]), default=-1)
    # What nothing feeds stands just above its first reader.
    for box in reversed(boxes):
        readers = (
            [depth[target] for target, held in sources.items() if box.name in held] if not sources[box.name] else []
        )
        depth[box.name] = min(readers) - 1 if readers else depth[box.name]
    rows: list[list[str]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    for box in boxes:
        rows[depth[box.name]].append(box.name)
    joined: list[tuple[str, str]] = []
    bends: dict[tuple[str, int], str] = {}  # of one source in one layer: its long edges share them
    for target, held in sources.items():
        for source in held:
            before = source
            for level in range(depth[source] + 1, depth[target]):
                bend = bends.get((source, level))
                if bend is None:
                    bend = bends[source, level] = f"\0{len(bends)}"
                    depth[bend] = level
                    rows[level].append(bend)
                    joined.append((before, bend))
                before = bend
            joined.append((before, target))
    return _Layers(rows, depth, joined)


def _places(layers: _Layers, widths: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """Return the middle of each name across its layer, and the room that all take."""
    above: dict[str, list[str]] = {name: [] for name in layers.depth}
    below: dict[str, list[str]] = {name: [] for name in layers.depth}
    for source, target in layers.edges:
        above[target].append(source)
        below[source].append(target)
    rows = [list(row) for row in layers.rows]
    center: dict[str, float] = {}
    for row in rows:
        _pack(row, dict.fromkeys(row, 0.0), widths, center)
    for sweep in range(SWEEPS):
        near = above if sweep % 2 == 0 else below
        for row in rows if sweep % 2 == 0 else reversed(rows):
            wanted = {n: sum(center[m] for m in near[n]) / len(near[n]) if near[n] else center[n] for n in row}
            row.sort(key=wanted.__getitem__)
            _pack(row, wanted, widths, center)
    left = min((center[name] - widths.get(name, 0) / 2 for name in center), default=0.0)
    right = max((center[name] + widths.get(name, 0) / 2 for name in center), default=0.0)
    return {name: round(at - left) for name, at in center.items()}, round(right - left)


def _pack(row: Sequence[str], wanted: Mapping[str, float], widths: Mapping[str, int], center: dict[str, float]) -> None:
    """Place a layer in its order, each where it is wanted, those that would overlap around their common middle."""
    blocks: list[tuple[float, list[str], list[float]]] = []  # of one block: its first middle, names, distances from it
    for name in row:
        block: tuple[float, list[str], list[float]] = (wanted[name], [name], [0.0])
        while blocks:
            start, names, offsets = blocks[-1]
            apart = (widths.get(names[-1], 0) + widths.get(block[1][0], 0)) / 2 + GAP
            if start + offsets[-1] + apart <= block[0]:
                break
            blocks.pop()
            offsets = [*offsets, *(offsets[-1] + apart + offset for offset in block[2])]
            names = [*names, *block[1]]
            block = (sum(wanted[n] - o for n, o in zip(names, offsets, strict=True)) / len(names), names, offsets)
        blocks.append(block)
    for start, names, offsets in blocks:
        center.update(zip(names, (start + offset for offset in offsets), strict=True))


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_LINE else f"...{text[3 - LONGEST_LINE :]}"


def _text(text: str, longest: int = LONGEST_TEXT) -> str:
    return escape(escaped(text if len(text) <= longest else f"{text[: longest - 3]}..."))


def in_stages(stages: Sequence[Sequence[str]], kinds: Mapping[str, str]) -> tuple[list[Box], list[tuple[str, str]]]:
    """Return boxes and edges of stages, in which each box reads all of the stage before it.

    Args:
        stages: texts of boxes.
        kinds: of boxes, by their texts.
    """
    named = [[f"{number}.{i}" for i in range(len(stage))] for number, stage in enumerate(stages)]
    texts = [
        (name, text)
        for names, stage in zip(named, stages, strict=True)
        for name, text in zip(names, stage, strict=True)
    ]
    edges = [(source, target) for before, after in pairwise(named) for source in before for target in after]
    return [Box(name, (text,), kinds.get(text, "")) for name, text in texts], edges
