"""Pictures of graphs: what `inspect --graph` writes, and what a report's page draws of a rewrite."""

import ast
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import cli
import converter
from converter.errors import UsageError
from converter.report import page
from converter.report.graph import BETWEEN, GAP, MOST_BOXES, Box, draw, in_stages, program_picture
from converter.report.results import ModelSummary, PlanRow

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "<script>alert(1)</script>\x1b[31m" + "x" * 10_000
REWRITES = Path(page.__file__).parents[1] / "rewrites"


def row(value: str, operator: str, *reads: str, module: str = "", axes: str = "0 | 1", moves=()) -> PlanRow:
    return PlanRow(value, operator, module, ("batch", 3, 4, 5)[: axes.count("|") + 1], axes, moves, reads)


def picture(rows: list[PlanRow]) -> ElementTree.Element:
    return ElementTree.fromstring(program_picture(ModelSummary("net.pt", (), (), ()), rows))


def boxes_of(svg: ElementTree.Element) -> list[ElementTree.Element]:
    return [group for group in svg.iter(f"{SVG}g") if group.find(f"{SVG}rect") is not None]


def lines(box: ElementTree.Element) -> list[str]:
    return [text.text or "" for text in box.iter(f"{SVG}text")]


@pytest.mark.parametrize("across", [False, True])
def test_boxes_do_not_cover_each_other(across: bool):
    boxes, edges = in_stages([["image"], ["a", "a long text", "b"], ["c", "d"], ["e"]], {})
    drawn = draw(boxes, [*edges, ("0.0", "3.0")], across=across)
    rects = [
        tuple(int(found) for found in re.findall(r' (?:x|y|width|height)="(-?\d+)"', element))
        for element in drawn.elements
        if element.startswith("<rect")
    ]
    assert len(rects) == 7
    for i, (x, y, width, height) in enumerate(rects):
        assert 0 <= x <= x + width <= drawn.width
        assert 0 <= y <= y + height <= drawn.height
        for other_x, other_y, other_width, other_height in rects[:i]:
            apart = (
                max(other_x - x - width, x - other_x - other_width),
                max(other_y - y - height, y - other_y - other_height),
            )
            assert max(apart) >= min(GAP, BETWEEN) - 1


def test_an_edge_past_a_layer_goes_around_its_box():
    boxes, edges = in_stages([["a"], ["between"], ["c"]], {})
    drawn = draw(boxes, [*edges, ("0.0", "2.0")], across=False)
    (past,) = (element for element in drawn.elements if "L" in element)
    (rect,) = (drawn.elements[i - 1] for i, element in enumerate(drawn.elements) if ">between<" in element)
    left, width = (int(re.findall(rf' {name}="(\d+)"', rect)[0]) for name in ("x", "width"))
    beside = int(re.findall(r"L(\d+) ", past)[0])
    assert not left <= beside <= left + width


@pytest.mark.parametrize(
    "axes, shape, kind",
    [
        pytest.param("0 | 2 | 3 | 1", (1, 3, 4, 5), "last", id="an image"),
        pytest.param("0 | 2 | 3 | -", (1, 1, 4, 5), "last", id="of one channel"),
        pytest.param("0 | 2 | 3 | 1.0 1.1", (1, 12, 4, 5), "last", id="channels of two factors"),
        pytest.param("0 | 2.0 | 2.1 | 1", (1, 3, 20), "last", id="pixels of two factors"),
        pytest.param("0 | 1 | 2 | 3", (1, 3, 4, 5), "", id="as PyTorch"),
        pytest.param("0 | - | - | 1", (1, 64), "", id="axes of size 1 between"),
        pytest.param("0 | 1.0 | 1.1 | 2", (1, 16, 8), "", id="split, in its order"),
        pytest.param("0 | 3 | 2 | 1", (1, 8, 4, 4), "other", id="transposed"),
        pytest.param("0 | 1.1 | 1.0", (1, 8), "other", id="split, in another order"),
        pytest.param("1 | 0.0 0.1 | 2", (16, 1, 8), "other", id="batch second"),
        pytest.param("", (), "", id="a number"),
    ],
)
def test_layouts_have_colors(axes: str, shape: tuple[int, ...], kind: str):
    (box,) = boxes_of(picture([PlanRow("x", "placeholder", "", shape, axes, ())]))
    rect = box.find(f"{SVG}rect")
    assert rect is not None
    assert rect.get("class", "") == kind


def test_what_moves_is_marked_and_said():
    rows = [row("x", "placeholder"), row("y", "view", "x", module="head", moves=("Transpose of 6 elements: a view",))]
    svg = picture([*rows, row("output", "output", "y")])
    drawn = {lines(box)[0]: box for box in boxes_of(svg)}
    assert lines(drawn["view"]) == ["view", "head", "[batch, 3]", "0 | 1", "Transpose of 6 elements"]
    assert drawn["view"].find(f"{SVG}rect").get("class") == "moves thick"
    assert drawn["view"].find(f"{SVG}title").text.endswith("Transpose of 6 elements: a view")
    assert svg.find(f"{SVG}desc").text == "head: Transpose of 6 elements: a view"
    assert svg.get("aria-label") == "net.pt: 1 operators, 1 that moves data"


def test_names_of_strangers_are_text_and_cut():
    text = program_picture(
        ModelSummary(HOSTILE, (), (), ()), [row(HOSTILE, "placeholder"), row("y", "relu", module=HOSTILE)]
    )
    assert ElementTree.fromstring(text).tag == f"{SVG}svg"
    assert "<script" not in text
    assert "\x1b" not in text
    assert len(text) < 8000


@pytest.mark.parametrize(
    "module",
    [
        pytest.param(lambda i: f"stages.{i // 100}.{i // 10}.{i}", id="modules of modules"),
        pytest.param(lambda i: f"layer{i}", id="more modules than boxes"),
        pytest.param(lambda i: "", id="no modules"),
        pytest.param(lambda i: f"both.{i % 2}", id="modules that take turns"),
    ],
)
def test_a_big_graph_is_drawn_by_modules(module):
    rows = [row("v0", "placeholder")] + [
        row(f"v{i}", "relu", f"v{i - 1}", "v0", module=module(i)) for i in range(1, 5000)
    ]
    svg = picture([*rows, row("output", "output", "v4999")])
    boxes = boxes_of(svg)
    assert 2 < len(boxes) <= MOST_BOXES
    assert "boxes: operators" in (svg.find(f"{SVG}desc").text or "")
    counts = [int(found) for box in boxes for found in re.findall(r"^(\d+) operators$", "\n".join(lines(box)), re.M)]
    assert sum(counts) >= 4900


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4 * 6 * 7, 5)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        return self.head(x.flatten(1)), x.transpose(1, 3).reshape(x.shape[0], -1)


class Odd(nn.Module):
    def forward(self, x):
        return torch.linalg.eigvals(torch.relu(x))


@pytest.mark.slow
def test_the_command_draws_a_model_and_a_submodel(tmp_path):
    torch.manual_seed(0)
    (tmp_path / "net.py").write_text("")
    torch.save(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()).eval(), tmp_path / "net.pt")
    arguments = ["inspect", str(tmp_path / "net.pt"), "--input-shape", "1,3,8,9", "--json", "-q", "--graph"]
    run = CliRunner().invoke(cli.main, [*arguments, str(tmp_path / "whole.svg"), "--plan"])
    assert run.exit_code == 0
    reads = {one["value"]: one["reads"] for one in json.loads(run.stdout)["plan"]}
    assert set(reads["output"]) < set(reads)
    run = CliRunner().invoke(cli.main, [*arguments, str(tmp_path / "part.svg"), "--submodule", "0"])
    assert run.exit_code == 0
    assert json.loads(run.stdout)["plan"] == []
    whole, part = (boxes_of(ElementTree.parse(tmp_path / f"{name}.svg").getroot()) for name in ("whole", "part"))
    operators = [lines(box)[0] for box in whole]
    assert "conv2d" in operators
    assert "flatten" in operators
    assert "flatten" not in [lines(box)[0] for box in part]
    assert any("Transpose" in line for box in whole for line in lines(box))  # PyTorch flattens channels first


@pytest.mark.slow
def test_operators_without_a_mapping_are_drawn(tmp_path):
    summary = converter.inspect(Odd(), input_shapes=["1,4,4"], graph=tmp_path / "odd.svg")
    assert summary.unsupported
    drawn = {lines(box)[0]: lines(box) for box in boxes_of(ElementTree.parse(tmp_path / "odd.svg").getroot())}
    assert drawn["linalg_eigvals"][-1] == "no mapping"
    assert drawn["relu"] == ["relu", "[batch, 4, 4]"]


def test_a_picture_of_another_kind_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"\.svg") as caught:
        converter.inspect(Net(), input_shapes=["1,3,8,9"], graph=tmp_path / "net.png")
    assert str(tmp_path / "net.svg") in (caught.value.fix or "")


def test_every_kind_of_rewrite_is_drawn():
    """A name that a variable completes is drawn by its beginning or its end."""
    names = set()
    for file in REWRITES.glob("*.py"):
        for call in ast.walk(ast.parse(file.read_text())):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "Change":
                first = call.args[0]
                if isinstance(first, ast.Constant):
                    names.add(first.value)
                elif isinstance(first, ast.JoinedStr):
                    names.add("".join(part.value for part in first.values if isinstance(part, ast.Constant)))
    assert len(names) > 25
    left = {name for name in names if not page._drawing(name)[0]} - {" folded"}  # a factor or a difference
    assert left == set()
    for drawn in page.DRAWINGS:
        source = "\n".join(file.read_text() for file in REWRITES.glob("*.py"))
        assert drawn.split(" -> ")[0].split(" ")[0] in source
    (before, _), words = page._drawing("Focus -> SpaceToDepth")
    assert before[1].height > 4 * Box("", ("slice",)).height
    assert words.startswith("before: slice, slice, slice, slice > concat > conv; after: space_to_depth > conv")
