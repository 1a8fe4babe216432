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
from converter.report.graph import Box, draw  # noqa: E402
from converter.report.graph import document as svg  # noqa: E402

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
        drawn = draw(*_in_boxes(graph), across=True, x=10, y=top + 32)
        parts += [f'<text class="head" x="10" y="{top + 20}">{escape(head)}</text>', *drawn.elements]
        top, right = top + 32 + drawn.height + 14, max(right, 20 + drawn.width, 10 + 7 * len(head))
    return svg(parts, right, top, " ".join(heads))


def _in_boxes(graph: onnx.GraphProto) -> tuple[list[Box], list[tuple[str, str]]]:
    """Return the inputs and the operators that depend on them, and which reads which."""
    boxes = {one.name: Box(one.name, (one.name,)) for one in graph.input}
    edges = []
    for node in graph.node:
        sources = [name for name in node.input if name in boxes]
        if sources:  # else it is computed of constants
            (name,) = node.output
            kind = "moves" if node.op_type in MOVES else "packs" if node.op_type in PACKS else ""
            boxes[name] = Box(name, (node.op_type,), kind)
            edges += [(source, name) for source in sources]
    return list(boxes.values()), edges


if __name__ == "__main__":
    PAGE.write_text(document())
