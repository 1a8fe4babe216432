"""Write docs/focus.svg: a Focus stem in an ONNX file of PyTorch's exporter and in one of pt-convert.

python docs/generate/focus_picture.py
"""

import contextlib
import io
import sys
import tempfile
from html import escape
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/focus.svg"
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

import converter  # noqa: E402  # found by the line above where this is run as a script

WIDTH, HEIGHT, ACROSS, DOWN = 104, 26, 136, 38  # of a box, and from one box to the next
HEAD = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img"
aria-label="{label}">
<style>
svg {{ background: #fff }} text {{ font: 12px system-ui, sans-serif; fill: #1b1f24 }} .head {{ font-weight: 600 }}
rect {{ fill: #f3f5f7; stroke: #57606a }} .moves {{ fill: #ffe3b8 }} .packs {{ fill: #cdebd0 }}
path {{ stroke: #57606a; fill: none }}
@media (prefers-color-scheme: dark) {{
svg {{ background: #14181d }} text {{ fill: #e6e9ed }}
rect {{ fill: #1d232a }} .moves {{ fill: #6b4500 }} .packs {{ fill: #1f5a2a }}
}}
</style>"""
MOVES, PACKS = ("Slice", "Concat", "Transpose", "Gather"), ("SpaceToDepth",)


class Focus(nn.Module):
    """YOLOv5's: four strided slices of the image, joined, and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(12, 16, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        slices = [image[..., ::2, ::2], image[..., 1::2, ::2], image[..., ::2, 1::2], image[..., 1::2, 1::2]]
        return self.conv(torch.cat(slices, 1))


def document() -> str:
    """The picture."""
    torch.manual_seed(0)
    model = Focus().eval()
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder, "before.onnx"), Path(folder, "after.onnx")
        with contextlib.redirect_stdout(io.StringIO()):  # the exporter says that it is done
            torch.onnx.export(model, (torch.zeros(1, 3, 64, 64),), before, dynamo=True, input_names=["image"])
        report = converter.convert(model, to="onnx", output=after, input_shapes=["1,3,64,64"])
        if report.status != "verified":
            raise SystemExit(f"the artifact is {report.status}")
        graphs = [onnx.load(path).graph for path in (before, after)]
    (order,) = (one.description for one in report.rewrites if one.name == "channel order folded")
    order = order.partition(": ")[2]
    counts = [sum(node.op_type in MOVES for node in graph.node) for graph in graphs]
    heads = [
        f"Before: PyTorch's exporter. {counts[0]} operators move the image on every run.",
        f"After: pt-convert. {counts[1] or 'None'} of them; the weights were permuted once: {order}",
    ]
    parts, top, right = [], 0, 0
    for head, graph in zip(heads, graphs, strict=True):
        drawn, across, down = _drawn(graph, top + 32)
        parts += [f'<text class="head" x="10" y="{top + 20}">{escape(head)}</text>', *drawn]
        top, right = top + 32 + down + 14, max(right, across, 10 + 7 * len(head))
    label = f"{heads[0]} {heads[1]}"
    return "\n".join([HEAD.format(width=right, height=top, label=escape(label)), *parts, "</svg>\n"])


def _drawn(graph: onnx.GraphProto, top: int) -> tuple[list[str], int, int]:
    """Draw the operators in columns by their distance from the input; return the parts, the width and the height."""
    depth = {one.name: 0 for one in graph.input}
    columns: list[list[str]] = [[one.name] for one in graph.input]
    texts = {one.name: one.name for one in graph.input}
    edges = []
    for node in graph.node:
        sources = [name for name in node.input if name in depth]
        if not sources:  # computed of constants
            continue
        (name,) = node.output
        depth[name] = 1 + max(depth[source] for source in sources)
        columns += [[] for _ in range(depth[name] + 1 - len(columns))]
        columns[depth[name]].append(name)
        texts[name] = node.op_type
        edges += [(source, name) for source in sources]
    tallest = max(map(len, columns))
    places = {}
    for number, column in enumerate(columns):
        for row, name in enumerate(column):
            places[name] = (10 + ACROSS * number, top + round(DOWN * (row + (tallest - len(column)) / 2)))
    parts = []
    for source, name in edges:
        (x, y), (to_x, to_y) = places[source], places[name]
        x, y, to_y, half = x + WIDTH, y + HEIGHT // 2, to_y + HEIGHT // 2, (ACROSS - WIDTH) // 2
        parts.append(f'<path d="M{x} {y}C{x + half} {y} {to_x - half} {to_y} {to_x} {to_y}"/>')
    for name, (x, y) in places.items():
        text = texts[name]
        kind = ' class="moves"' if text in MOVES else ' class="packs"' if text in PACKS else ""
        parts.append(f'<rect{kind} x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="4"/>')
        parts.append(f'<text x="{x + WIDTH // 2}" y="{y + 17}" text-anchor="middle">{escape(text)}</text>')
    return parts, 10 + ACROSS * len(columns), DOWN * tallest


if __name__ == "__main__":
    PAGE.write_text(document())
