"""The questions of docs/questions/: the code of each page runs, and `inspect` answers them."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import converter
from converter.rewrites.shift_to_depthwise import LARGEST_KERNEL, LARGEST_MAP
from mappings.shift import ELEMENTS_A_GROUP

PAGES = Path(__file__).parents[2] / "docs" / "questions"
BLOCKS = [
    pytest.param(code, id=f"{page.stem}-{number}")
    for page in sorted(PAGES.glob("*.md"))
    for number, code in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE))
]


@pytest.mark.parametrize("code", BLOCKS)
def test_code_of_a_page_runs(code, request):
    if "torchvision" in code:
        request.getfixturevalue("torchvision")
    torch.manual_seed(0)
    exec(code, {})


def test_every_page_has_code_and_is_listed():
    listed = (PAGES / "README.md").read_text()
    pages = [page for page in PAGES.glob("*.md") if page.name != "README.md"]
    assert len(pages) == 5
    assert all(f"({page.name})" in listed and "```python" in page.read_text() for page in pages)


class Conv(nn.Module):
    """YOLOv5's."""

    def __init__(self, c1, c2, k=1, s=1, p=None, g=1, act=True):
        super().__init__()
        self.conv = nn.Conv2d(c1, c2, k, s, k // 2 if p is None else p, groups=g, bias=False)
        self.bn = nn.BatchNorm2d(c2)
        self.act = nn.SiLU() if act is True else nn.Identity()

    def forward(self, x):
        return self.act(self.bn(self.conv(x)))


class Focus(nn.Module):
    # Focus wh information into c-space
    def __init__(self, c1, c2, k=1, s=1, p=None, g=1, act=True):  # ch_in, ch_out, kernel, stride, padding, groups
        super(Focus, self).__init__()  # noqa: UP008  # as the question has it
        self.conv = Conv(c1 * 4, c2, k, s, p, g, act)

    def forward(self, x):  # x(b,c,w,h) -> y(b,4c,w/2,h/2)
        return self.conv(torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1))


def answers(model, topic, *shape):
    summary = converter.inspect(model.eval(), input_shapes=[",".join(map(str, shape))], explain=[topic])
    return summary, {answer.module: "\n".join(answer.lines) for answer in summary.answers}


def code_after(text, mark):
    """The code of the line that has `mark`, without its comment."""
    (line,) = [line for line in text.splitlines() if mark in line]
    return line.partition("once: ")[2].partition("  #")[0] or line.partition("  #")[0]


def test_focus_is_explained_with_lines_that_work():
    model = Focus(3, 32, 3)
    summary, found = answers(model, "focus", 1, 3, 16, 24)
    text = found[""]
    line = "`conv.conv` input channels permuted: weight[:, [0, 1, 2, 6, 7, 8, 3, 4, 5, 9, 10, 11]]"
    assert line in [rewrite.description for rewrite in summary.rewrites]  # as every report has it
    assert "0-2, 6-8, 3-5, 9-11" in text
    assert "weights [32, 3, 6, 6]" in text
    assert "stride 2x2, padding 2x2" in text
    assert "Nothing is lost" in text
    assert "PixelShuffle(2)" in text
    assert "`conv.conv.weight`" in text
    weight, x = model.conv.conv.weight.detach(), torch.randn(2, 3, 16, 24)
    slices = torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)
    before = F.conv2d(slices, weight, padding=1)
    large = eval(code_after(text, "gives them"), {"weight": weight})
    torch.testing.assert_close(F.conv2d(x, large, stride=2, padding=2), before, rtol=1e-4, atol=1e-4)
    held = {"weight": weight}
    exec(code_after(text, "once: "), held)
    by_row = torch.cat([x[..., r::2, c::2] for r in (0, 1) for c in (0, 1)], 1)
    torch.testing.assert_close(F.conv2d(by_row, held["weight"], padding=1), before, rtol=1e-4, atol=1e-4)


def test_convolutions_show_kernel_groups_and_multiplier_also_of_an_exported_program(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.depthwise = nn.Conv2d(4, 8, 3, padding=1, groups=4)
            self.grouped = nn.Conv2d(8, 4, (1, 5), (1, 2), groups=2, dilation=(1, 2))

        def forward(self, x):
            return self.grouped(torch.relu(self.depthwise(x)))

    model, shape = Net().eval(), (1, 4, 12, 30)
    summary, found = answers(model, "depthwise", *shape)
    program = torch.export.export(model, (torch.randn(2, *shape[1:]),))
    torch.export.save(program, tmp_path / "net.pt2")
    exported = converter.inspect(tmp_path / "net.pt2")
    for rows in (summary.rows, exported.rows):
        facts = {row.path: row.convolution for row in rows}
        assert facts["depthwise"] == "kernel 3x3, groups 4, multiplier 2"
        assert facts["grouped"] == "kernel 1x5, stride 1x2, dilation 1x2, groups 2, 4 -> 2 channels each"
    assert {row.path: row.becomes for row in summary.rows}["depthwise"].startswith(
        "DepthwiseConv2D(depth_multiplier=2)"
    )
    weight = model.depthwise.weight.detach()
    filters = eval(code_after(found["depthwise"], "depthwise_conv2d's").partition("= ")[2], {"weight": weight})
    assert filters.shape == (3, 3, 4, 2)
    assert torch.equal(filters[1, 2, 3, 1], weight[3 * 2 + 1, 0, 1, 2])
    assert "fewer outputs than inputs" in found["grouped"]


class SeparableConv2d(nn.Module):
    def __init__(self, in_channels, out_channels, depth, kernel_size, bias=False):
        super(SeparableConv2d, self).__init__()  # noqa: UP008  # as the question has it
        self.depthwise = nn.Conv2d(
            in_channels, out_channels * depth, kernel_size=kernel_size, groups=in_channels, bias=bias
        )
        self.pointwise = nn.Conv2d(out_channels * depth, out_channels, kernel_size=1, bias=bias)

    def forward(self, x):
        out = self.depthwise(x)
        out = self.pointwise(out)
        return out  # noqa: RET504  # as the question has it


class Net(nn.Module):
    def __init__(self):
        super(Net, self).__init__()  # noqa: UP008  # as the question has it
        self.separable_conv = SeparableConv2d(in_channels=32, out_channels=64, depth=1, kernel_size=(1, 16))

    def forward(self, x):
        x = F.pad(x, (8, 7, 0, 0))
        x = self.separable_conv(x)
        return x  # noqa: RET504  # as the question has it


def test_separable_convolution_is_explained():
    summary, found = answers(Net(), "separable", 1, 32, 4, 40)
    text = found["separable_conv.pointwise"]
    assert "SeparableConv2D(64, (1, 16)) with depth_multiplier=2" in text
    assert "7 before and 8 behind" in text
    assert "The model pads (0, 0), (8, 7) itself" in text
    assert "depth_multiplier=2, use_bias=False" in text
    becomes = {row.path: row.becomes for row in summary.rows}
    assert "SeparableConv2D(depth_multiplier=2)" in becomes["separable_conv.pointwise"]


class DirectShift(nn.Module):
    """Method 1 of the article, behind a convolution."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)

    def forward(self, x):
        x = torch.relu(self.conv(x))
        direct_shift = torch.clone(x)
        direct_shift[:, 0:2, :, 1:] = torch.clone(direct_shift[:, 0:2, :, :4])
        direct_shift[:, 2:4, :, :4] = torch.clone(direct_shift[:, 2:4, :, 1:])
        direct_shift[:, 4:6, 1:, :] = torch.clone(direct_shift[:, 4:6, :4, :])
        direct_shift[:, 6:8, :4, :] = torch.clone(direct_shift[:, 6:8, 1:, :])
        return direct_shift


@pytest.mark.slow
def test_choice_for_a_shift_is_explained_with_times():
    _, found = answers(DirectShift(), "shift", 1, 3, 5, 5)
    (text,) = found.values()
    assert "2 by (" in text
    assert "Keras and TensorFlow: slices joined to their border" in text
    assert re.search(r"slices \d+\.\d{3} ms, pad and depthwise convolution \d+\.\d{3} ms", text)
    assert "ONNX: one depthwise convolution, the faster on maps of at most 144 pixels" in text


class Shifted(nn.Module):
    """What every question is about, in one model."""

    def __init__(self, border):
        super().__init__()
        self.focus, self.border = Focus(3, 8, 3), border
        self.depthwise, self.pointwise = nn.Conv2d(8, 16, 3, groups=8, bias=False), nn.Conv2d(16, 4, 1)

    def forward(self, x):
        x = F.pad(self.focus(x), (1, 1, 1, 1), mode=self.border).chunk(4, 1)
        x = torch.cat([part.roll(by, (2, 3)) for part, by in zip(x, FOUR, strict=True)], 1)[..., 1:-1, 1:-1]
        return self.pointwise(self.depthwise(x))


FOUR = ((0, 1), (0, -1), (1, 0), (-1, 0))


def answers_of_a_report(border, side, to, folder):
    report = converter.convert(
        Shifted(border).eval(), to=to, output=folder, input_shapes=[f"1,3,{side},{side}"], verify=False
    )
    told = {(answer.topic, answer.module): "\n".join(answer.lines) for answer in report.answers}
    assert len(told) == len(report.answers)  # one for all formats
    assert [answer["topic"] for answer in report.to_dict()["answers"]] == [answer.topic for answer in report.answers]
    return told


@pytest.mark.slow
def test_report_answers_the_questions_too(tmp_path):
    told = answers_of_a_report("replicate", 64, ["keras", "onnx"], tmp_path)
    assert "weight = weight[:, [0, 1, 2, 6, 7, 8, 3, 4, 5, 9, 10, 11]]" in told["focus", "focus"]
    assert "channel_multiplier 2" in told["depthwise", "depthwise"]
    assert "one SeparableConv2D layer" in told["separable", "pointwise"]
    shift = told["shift", ""]
    assert "2 by (0, 1), 2 by (0, -1), 2 by (1, 0), 2 by (-1, 0); border: replicate" in shift
    assert "Keras and TensorFlow: slices joined to their border" in shift
    assert "ONNX: slices, the faster on maps of more than 144 pixels" in shift
    assert re.search(r"Measured now.* slices \d+\.\d{3} ms", shift)


@pytest.mark.slow
def test_report_of_an_onnx_file_alone_tells_what_a_shift_became(tmp_path):
    shift = answers_of_a_report("constant", 64, "onnx", tmp_path / "net.onnx")["shift", ""]
    assert "border: zeros" in shift
    assert "ONNX: one depthwise convolution, the faster on maps of at most 1,024 pixels" in shift
    assert "Keras" not in shift


@pytest.mark.slow
def test_an_exported_program_is_answered_like_its_module(tmp_path):
    model = Shifted("replicate").eval()
    torch.export.save(torch.export.export(model, (torch.randn(2, 3, 64, 64),)), tmp_path / "net.pt2")
    topics = ["focus", "shift", "depthwise", "separable"]
    of_file = converter.inspect(tmp_path / "net.pt2", explain=topics)
    of_module = converter.inspect(model, input_shapes=["1,3,64,64"], explain=topics)
    told = [
        [(a.topic, a.module, [line for line in a.lines if not line.startswith("Measured now")]) for a in found.answers]
        for found in (of_file, of_module)
    ]
    assert told[0] == told[1]
    assert [topic for topic, *_ in told[0]] == topics


class FixedKernel(nn.Module):
    """Method 4 of the article as it stands there: the first operator of the graph."""

    def forward(self, x):
        kernels = torch.zeros(4, 3, 3)
        for c, (row, column) in enumerate(FOUR):
            kernels[c, 1 - row, 1 - column] = 1
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), kernels.repeat_interleave(2, 0)[:, None], groups=8)


@pytest.mark.slow
def test_a_fixed_kernel_that_stays_a_convolution_is_explained():
    _, found = answers(FixedKernel(), "shift", 1, 8, 5, 5)
    (text,) = found.values()
    assert "it only moves elements. It stays a convolution" in text


def test_limits_on_the_page_of_shifts_are_those_of_the_code():
    page = " ".join((PAGES / "spatial-shift.md").read_text().split())
    assert f"a kernel of at most {LARGEST_KERNEL} elements, or {ELEMENTS_A_GROUP} for each group" in page
    assert f"on maps of at most {LARGEST_MAP['zeros']:,} pixels" in page
    assert f"on maps of at most {LARGEST_MAP['replicate']} pixels" in page


def test_a_topic_that_a_model_has_not_says_so_and_an_unknown_one_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 1))
    assert answers(model, "separable", 1, 3, 4, 4)[1] == {"": "The model has none."}
    with pytest.raises(converter.errors.UsageError, match="Choose from focus, shift, depthwise, separable"):
        answers(model, "winograd", 1, 3, 4, 4)
