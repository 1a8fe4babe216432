"""A forward that reads its tensors' values: captured all the same, or explained by its line; frozen if asked for."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from equivalence import planned, with_random_tensors
from torch import nn

import cli
from converter.capture import capture
from converter.errors import CaptureError, UnsupportedOperatorsError
from converter.uncapturable import kind_of


class Layer(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.linear, self.function = nn.Linear(4, 3), function

    def forward(self, x):
        return self.function(self.linear, x)


def captured(function, **options):
    return capture(with_random_tensors(Layer(function)), [torch.randn(2, 4)], **options)


def numpy_within(linear, x):
    return linear(x) + torch.from_numpy(np.tanh(x.detach().numpy())).mean()


def printed(linear, x):
    print(f"mean {x.mean():.3f}")
    return linear(x)


def asserted(linear, x):
    assert x.abs().max() < 1e6
    return linear(x)


def made_of_numbers(linear, x):
    return linear(x) + torch.tensor([x.mean(), 1.0])[0]


@pytest.mark.parametrize("function", [numpy_within, printed, made_of_numbers])
def test_values_that_decide_nothing_are_captured(function):
    program = captured(function)
    assert program.fixed_batch is None
    assert not program.frozen_flow
    x = torch.randn(5, 4)
    torch.testing.assert_close(program.run(x)[0], with_random_tensors(Layer(function))(x).detach())
    planned(program)


def branched(linear, x):
    if x.sum() > 0:
        return linear(x) * 2
    return linear(x)


def chosen(linear, x):
    return linear(x) if x.min() > 0 else linear(-x)


def shrunk(linear, x):
    while x.abs().max() > 1:
        x = x / 2
    return linear(x)


def indexed(linear, x):
    column = int(x.abs().sum()) % 3
    return linear(x)[:, column]


def listed(linear, x):
    sizes = [int(v) for v in x[0].abs().tolist()]
    return linear(x).repeat(1, *sizes[:1])


def guarded(linear, x):
    if x.abs().max() > 1e9:
        x = x / 1e9
    return linear(x)


EXPLAINED = {
    asserted: ["an assertion on a tensor's values", "is_exporting()"],  # pytest makes a branch of it
    branched: ["a branch on a tensor's value", "if x.sum() > 0:", "torch.where(x.sum() > 0, a, b)"],
    chosen: ["a branch on a tensor's value", "if x.min() > 0 else"],
    shrunk: ["a loop that a tensor's value ends", "while x.abs().max() > 1:", "fixed number of steps"],
    indexed: ["by the values of tensors", "index_select"],
    listed: ["by the values of tensors", "keep it a tensor"],
    guarded: ["a branch on a tensor's value", "--freeze-control-flow"],
}


@pytest.mark.parametrize("function", EXPLAINED, ids=lambda f: f.__name__)
def test_what_decides_by_values_is_explained_by_its_line(function):
    with pytest.raises((CaptureError, UnsupportedOperatorsError)) as refused:
        planned(captured(function))
    for words in [__file__, *EXPLAINED[function]]:
        assert words in str(refused.value)


LINES = {
    "assert x.max() < 3, x": "an assertion",
    "while not done.all():": "a loop that a tensor's value ends",
    "y = np.clip(x.numpy(), 0, 1)": "NumPy",
    "elif mask.any():": "a branch",
    "return a if s > 0 else b": "a branch",
    "sizes = lengths.tolist()": "a list of Python numbers",
    'print("mean", x.mean())': "a text",
    "for i in range(n.item()):": "a loop over",
    "scale = float(x.max())": "a Python number",
    "y = x and z": "a branch",
    "y = f(x)": None,
}


@pytest.mark.parametrize("line", LINES)
def test_lines_tell_what_they_need_values_for(line):
    kind = kind_of(line)
    assert (kind is None) == (LINES[line] is None)
    assert kind is None or kind.what.startswith(LINES[line])


def test_frozen_where_other_inputs_decide_the_same():
    program = captured(guarded, freeze=True)
    assert program.frozen_flow
    assert program.fixed_batch is None
    (note,) = program.notes
    assert "control flow was frozen" in note
    assert "if x.abs().max() > 1e9:" in note
    x = torch.randn(3, 4)
    torch.testing.assert_close(program.run(x)[0], with_random_tensors(Layer(guarded))(x).detach())


@pytest.mark.parametrize("function", [branched, chosen, shrunk, indexed], ids=lambda f: f.__name__)
def test_not_frozen_where_other_inputs_decide_otherwise(function):
    with pytest.raises(CaptureError, match="otherwise for other inputs") as refused:
        captured(function, freeze=True)
    assert __file__ in refused.value.where


def test_freezing_leaves_alone_what_needs_none():
    assert not captured(lambda linear, x: linear(x), freeze=True).notes


NET = """
import torch
from torch import nn


class Guarded(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        if x.abs().max() > 1e9:
            x = x / 1e9
        return self.linear(x)


class Asserting(Guarded):
    def forward(self, x):
        assert x.abs().max() < 1e9
        return self.linear(x)


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        return torch.special.i0e(self.linear(x))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    torch.save({"linear.weight": torch.randn(3, 4), "linear.bias": torch.randn(3)}, "net.pt")
    return tmp_path


def run(line):
    return CliRunner().invoke(cli.main, line.split())


def test_the_command_freezes_and_warns_and_verifies_again(folder):
    refused = run("net.pt --model net.py:Guarded --input-shape 1,4 --to onnx")
    assert refused.exit_code == 1
    assert "--freeze-control-flow" in refused.stderr
    made = run("net.pt --model net.py:Guarded --input-shape 1,4 --to onnx --freeze-control-flow")
    assert made.exit_code == 0, made.stderr
    assert "control flow was frozen" in made.stderr
    again = run("verify net.pt net.onnx --model net.py:Guarded")
    assert again.exit_code == 0, again.stderr


def test_the_command_captures_by_the_bytecode_only_if_asked_and_verifies_again(folder, monkeypatch):
    ways = []
    export = torch.export.export

    def watched(*arguments, strict=False, **named):
        ways.append(strict)
        return export(*arguments, strict=strict, **named)

    monkeypatch.setattr(torch.export, "export", watched)
    made = run("net.pt --model net.py:Asserting --input-shape 1,4 --to onnx --strict")
    assert made.exit_code == 0, made.stderr
    assert ways
    assert ways[0] is True
    first = len(ways)
    again = run("verify net.pt net.onnx --model net.py:Asserting")
    assert again.exit_code == 0, again.stderr
    assert ways[first] is True


CHECKS = {
    "one that can": ("Guarded --freeze-control-flow --to keras --to onnx", 0, {"keras": None, "onnx": None}),
    "an assertion on values": ("Asserting --to tf --to onnx", 0, {"tf": None, "onnx": None}),
    "an operator without a mapping": (
        "Odd --to tf --to onnx", 1, {"tf": ["aten.special_i0e.default"], "onnx": ["aten.special_i0e.default"]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("what, status, expected", CHECKS.values(), ids=CHECKS)
def test_check_answers_by_the_exit_status_and_writes_nothing(folder, what, status, expected):
    before = sorted(path.name for path in folder.iterdir() if path.name != "__pycache__")
    checked = run(f"inspect net.pt --input-shape 1,4 --check --json --model net.py:{what}")
    assert checked.exit_code == status, checked.stderr
    checks = json.loads(checked.stdout)["checks"]
    found = {c["format"]: c["failure"] and [row["operator"] for row in c["failure"]["operators"]] for c in checks}
    assert found["onnx" if status == 0 else "tf"] == expected["onnx" if status == 0 else "tf"]
    assert set(found) == set(expected)
    assert sorted(path.name for path in folder.iterdir() if path.name != "__pycache__") == before


def test_formats_without_check_are_wrong_usage(folder):
    refused = run("inspect net.pt --model net.py:Odd --input-shape 1,4 --to tf")
    assert refused.exit_code == 2
    assert "--check" in refused.stderr
