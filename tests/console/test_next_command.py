"""The command to try after a refusal, and what a step says while it runs."""

import json
import re
import shlex
import threading
from collections import Counter
from io import StringIO
from pathlib import Path
from typing import ClassVar

import click
import pytest
import torch
from torch import nn

import cli
from converter.batch.journal import Entry
from converter.batch.results import BatchReport
from converter.console.batch_progress import BatchDisplay
from converter.console.current_step import running_module
from converter.console.next_command import caution, command_to_try, try_one
from converter.console.params import ARGUMENTS, TYPED
from converter.console.terminal import Terminal
from converter.progress import counted, share_done
from converter.report.failures import Failure
from converter.report.results import LayerRow, ModelSummary, TensorFacts


@pytest.mark.parametrize(
    "fix, code, typed, tried",
    [
        ("Add --trust models.", "PTC1053", "net.pt --to tf", "net.pt --to tf --trust models"),
        ("with --trust nets --trust cells.", "PTC1053", "n.pt --trust c", "n.pt --trust c --trust nets --trust cells"),
        ("Leave out --to onnx.", "PTC4006", "net.pt --to onnx --to=tf", "net.pt --to=tf"),
        ("Leave out --to onnx, or try another --opset.", "PTC4006", "net.pt --to onnx", "net.pt --to onnx --opset N"),
        ("As in --preprocessing 'imagenet fit=crop'.", "PTC6062", "a.pt", "a.pt --preprocessing 'imagenet fit=crop'"),
        (
            "Give every input the shape, as in --input-shape 1,3,224,224, batch first.",
            "PTC2005", "net.pt --input-shape 3,4 --to tf", "net.pt --to tf --input-shape 1,3,224,224",
        ),
        (
            "Give a shape, as in --input-shape 1,3,224,224, batch first.",
            "PTC2005", "net.pt --image-size 65 --to tf", "net.pt --to tf --input-shape 1,3,224,224",
        ),
        ("Did you mean Net?", "PTC1015", "w.pt --model nets.py:Nett --to tf", "w.pt --model nets.py:Net --to tf"),
        ("Did you mean net.pt or nat.pt?", "PTC1023", "nett.pt --to tf", "net.pt --to tf"),
        ("Name it with --model.", "PTC1050", "w.pt --to tf", "w.pt --to tf --model WHERE:FACTORY"),
        ("Leave out --model-args.", "PTC1020", "w.pt --model-args '{}' --to tf", "w.pt --to tf"),
        ("Give your own inputs with --inputs.", "PTC2030", "net.pt", "net.pt --inputs PATH"),
        ("Give --inputs an .npz with an array.", "PTC5016", "net.pt", "net.pt --inputs PATH"),
        ("Give another -o, or replace it with --force.", "PTC4010", "net.pt -o net", "net.pt -o PATH"),
        ("Give a file that --report wrote.", "PTC6093", "net.pt", None),
        ("Convert the file again.", "PTC1005", "net.pt --to tf", "net.pt --to tf -v"),
        (None, "PTC1005", "'a b.pt' --to tf", "'a b.pt' --to tf -v"),
    ],
)  # fmt: skip
def test_the_option_that_the_fix_names_is_added(fix, code, typed, tried):
    shown = command_to_try(fix, code, cli.main.commands["convert"], "pt-convert", shlex.split(typed))
    options = re.sub(r"(?<=--inputs ).*|(?<=-o ).*", "PATH", shown)
    assert options == (f"pt-convert {tried}" if tried else "pt-convert convert --help")


def test_a_missing_package_is_installed_and_a_fault_of_the_system_diagnosed():
    batch = cli.main.commands["batch"]
    install = 'Install it: pip install "pt-convert[tflite]". Or leave out --to tflite.'
    assert command_to_try(install, "PTC4001", batch, "convert", ["runs"]) == 'pip install "pt-convert[tflite]"'
    assert command_to_try("Free some memory.", "PTC9001", batch, "convert", ["runs"]) == "convert doctor"
    assert command_to_try("Look.", "PTC2001", batch, "convert", ["runs"]) == "convert batch runs -v"


def test_every_error_has_a_command():
    for page in (Path(__file__).parents[2] / "docs/errors").glob("*.md"):
        fixes = re.findall(r"^- (.*)$", page.read_text().partition("**Fix:**")[2].partition("**Kind:**")[0], re.M)
        for fix in fixes:
            shown = command_to_try(
                fix.replace("…", "x"), page.stem, cli.main.commands["convert"], "convert", ["net.pt"]
            )
            assert len(shown.splitlines()) == 1
            assert shown.startswith(("convert", "pip install"))


class Inner(nn.Module):
    seen: ClassVar[list[tuple[str | None, float | None]]] = []

    def forward(self, x):
        self.seen.append((running_module(threading.get_ident()), share_done()))
        return x + 1


class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.stages = nn.Sequential(nn.ReLU(), Inner())

    def forward(self, x):
        return self.stages(x)


def test_the_module_that_runs_is_known_during_capture_too():
    Inner.seen.clear()
    for _ in counted([1, 2]):
        Outer()(torch.zeros(2))
    torch.export.export(Outer(), (torch.zeros(2),))
    assert [share for _, share in Inner.seen[:2]] == [0.0, 0.5]
    assert {path for path, _ in Inner.seen} == {"stages.1"}
    assert running_module(threading.get_ident()) is None
    assert share_done() is None


def test_loops_within_loops_count_together():
    seen = [share_done() for _ in counted("ab") for _ in counted("cd")]
    assert seen == [0.0, 0.25, 0.5, 0.75]


def written(width: int, show) -> str:
    file = StringIO()
    terminal = Terminal(file=file)
    terminal.console.width = width
    show(terminal)
    return file.getvalue()


LONG = "backbone.stages.3.blocks.12.attention.projection"
FAILURE = Failure("net.pt", "CaptureError", "PTC2005", "The model fails. " * 9, LONG, "Do --this. " * 12, 1)
SUMMARY = ModelSummary(
    "net.pt",
    tuple(LayerRow(LONG[:n], "ConvNormActivation" * 2, ("b", 123, 456, 789), ("b", 9), 10**9, "Conv2D, " * 5, "3x3")
          for n in (8, 15, len(LONG))),
    (), (), (TensorFacts("x" * 50, ("batch", 3, 224, 224), "float32", "channels_last"),), (),
)  # fmt: skip


@pytest.mark.parametrize(
    "show",
    [
        pytest.param(lambda terminal: terminal.show_failure(FAILURE, "", "convert " + "x " * 90), id="a failure"),
        pytest.param(lambda terminal: terminal.show_summary(SUMMARY), id="a tree"),
        pytest.param(lambda terminal: terminal.show_table([FAILURE, FAILURE]), id="several models"),
        pytest.param(lambda terminal: BatchDisplay(terminal).show_summary(BATCH, Path("out")), id="a batch"),
    ],
)
def test_a_narrow_terminal_shows_the_same(show):
    narrow, wide = (Counter(re.sub(r"[\s─-╿]", "", written(width, show))) for width in (80, 200))
    assert narrow == wide


ENTRIES = (
    *(Entry(f"fine{i}", f"fine{i}.pt", "verified", 0, "", {}, "", 2.0, 1) for i in range(28)),
    Entry("off", "off.pt", "disagrees", 3, "tf: 1 of 1 output differs", {}, "", 3.0, 1),
    *(Entry(n, f"{n}.pt", "failed", 4, f"{n} asks for code", {}, "", 0.5, 1, codes=("PTC1053",)) for n in "abcde"),
)
BATCH = BatchReport(ENTRIES, (), ("left",), 61.0)


def test_a_batch_ends_with_a_table_of_results_and_reasons(tmp_path):
    report = tmp_path / "reports/a.json"
    report.parent.mkdir()
    report.write_text(json.dumps({"error": "CheckpointError", "fix": "If you trust its maker, add --trust models."}))
    command = cli.main.commands["batch"]
    with click.Context(cli.main, info_name="pt-convert") as root, click.Context(command, root, "batch") as context:
        context.meta[ARGUMENTS] = ["runs/", "-o", "out", "--to", "tf"]
        context.meta[TYPED] = {"output": "out", "to": ["tf"], "slots": "2", "report_file": "page.html"}
        assert try_one("a.pt", "Allow more time with --timeout.", "PTC6003").endswith("-o out --to tf --timeout S")
        said = written(200, lambda terminal: BatchDisplay(terminal).show_summary(BATCH, tmp_path))
    rows = [
        re.split(r" {2,}", line.strip())
        for line in said.splitlines()
        if re.match(r" *(verified|disagrees|failed)", line)
    ]
    assert rows == [
        ["verified", "28", "56.0 s"],
        ["disagrees", "1", "3.0 s", "tf: 1 of 1 output differs"],
        ["failed", "5", "2.5 s", "a asks for code [PTC1053]"],
    ]
    assert "a, b, c and 2 more" in said
    assert "try, if you trust the file's maker: pt-convert a.pt --to tf --trust models" in said
    assert f"try: pt-convert report {tmp_path}/reports/off.json" in said
    assert "34 in all, 1 left, 61 s" in said
    assert f"Report: {tmp_path}/summary.json" in said


def test_trust_is_asked_for_only_where_it_is_new():
    assert caution("convert a.pt --to tf --trust models") == "try, if you trust the file's maker"
    assert caution("convert a.pt --trust models --to tf -v") == "try"
    with click.Context(cli.main.commands["convert"], info_name="convert") as context:
        context.meta[ARGUMENTS] = ["a.pt", "--trust", "models"]
        assert caution("convert a.pt --trust models --image-size 64") == "try"
        assert caution("convert a.pt --trust models --trust nets") == "try, if you trust the file's maker"
