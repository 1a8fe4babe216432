"""A forward that reads its tensors' values: captured all the same, or explained by its line; frozen if asked for."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from equivalence import assert_plan_is_exact, planned, with_random_tensors
from torch import nn

import cli
from converter.capture.diagnostics import kind_of, needs_values
from converter.capture.export import capture
from converter.capture.import_exported import from_exported
from converter.errors import CaptureError, UnsupportedOperatorsError
from converter.options import CaptureOptions
from converter.pipeline.program_cache import ProgramCache
from converter.rewrites.fold_constants import NUMBERS
from converter.rewrites.pipelines import REWRITES
from converter.verification.checked_rewrite import rewrite


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


@pytest.mark.slow
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
    indexed: ["depends on tensor values", "index_select"],
    listed: ["depends on tensor values", "Keep it a tensor"],
    guarded: ["a branch on a tensor's value", "--freeze-control-flow"],
}


@pytest.mark.slow
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
    "for i in range(n.item()):": "a loop whose length",
    "scale = float(x.max())": "a Python number",
    "y = x and z": "a branch",
    "y = f(x)": None,
}


@pytest.mark.parametrize("line", LINES)
def test_lines_tell_what_they_need_values_for(line):
    kind = kind_of(line)
    assert (kind is None) == (LINES[line] is None)
    assert kind is None or kind.what.startswith(LINES[line])


@pytest.mark.slow
def test_frozen_where_other_inputs_decide_the_same():
    program = captured(guarded, how=CaptureOptions(freeze_control_flow=True))
    assert program.frozen_flow
    assert program.fixed_batch is None
    (note,) = program.notes
    assert note.code == "PTC2504"
    assert "if x.abs().max() > 1e9:" in note.text
    x = torch.randn(3, 4)
    torch.testing.assert_close(program.run(x)[0], with_random_tensors(Layer(guarded))(x).detach())


@pytest.mark.slow
@pytest.mark.parametrize("function", [branched, chosen, shrunk, indexed], ids=lambda f: f.__name__)
def test_not_frozen_where_other_inputs_decide_otherwise(function):
    with pytest.raises(CaptureError, match="take other branches") as refused:
        captured(function, how=CaptureOptions(freeze_control_flow=True))
    assert __file__ in refused.value.where


def test_freezing_leaves_alone_what_needs_none():
    assert not captured(lambda linear, x: linear(x), how=CaptureOptions(freeze_control_flow=True)).notes


class Constants(nn.Module):
    """Holds tensors in every way that a module can, for a forward that takes numbers out of them."""

    def __init__(self, function):
        super().__init__()
        self.linear, self.function = nn.Linear(4, 12), function
        self.plain = torch.tensor([4.0, 8.0])
        self.listed = [torch.tensor(3), torch.tensor(4)]
        self.sizes = nn.Buffer(torch.tensor([2, 6]))
        self.scale = nn.Parameter(torch.tensor([1.5, 0.5]))
        self.array = np.array([3.5, 0.25], dtype=np.float32)

    def forward(self, x):
        return self.function(self, self.linear(x))


def looped(m, x):
    for _ in range(int(m.sizes[0])):
        x = x.sin() + 1
    return x


TAKEN = {
    "full of an element of a plain tensor": lambda m, x: x * torch.cat([torch.full((6,), s) for s in m.plain]),
    "full of an element of a parameter": lambda m, x: x + torch.full((12,), m.scale[1].detach()),
    "full of a buffer's item": lambda m, x: x + x.new_full((12,), m.sizes[1].item()),
    "full of an element of an array": lambda m, x: x + torch.full((12,), m.array[1]),
    "factors and terms": lambda m, x: x * m.scale[0].item() / float(m.plain[1]) - int(m.sizes[1]) * m.array[0],
    "arange": lambda m, x: x.view(-1, 2, 6) + torch.arange(int(m.sizes[1])),
    "arange to a tensor": lambda m, x: x.view(-1, 3, 4) + torch.arange(m.listed[1]),
    "linspace": lambda m, x: x + torch.linspace(-m.plain[0].item(), m.plain[1].item(), 12),
    "view": lambda m, x: x.view(x.shape[0], m.sizes[0].item(), m.sizes[1].item()).softmax(-1),
    "view of tensors": lambda m, x: x.view(x.shape[0], m.sizes[0], -1).softmax(-1),
    "view of what is computed": lambda m, x: x.view(-1, int(m.listed[0]), int((m.sizes * 2).sum()) // 4).softmax(-1),
    "slices": lambda m, x: x[:, int(m.sizes[0]) : int(m.sizes[1])],
    "an index": lambda m, x: x[:, m.sizes[0]],
    "split": lambda m, x: torch.cat(x.split([m.listed[0].item(), 9], 1)[::-1], 1),
    "sizes of an image": lambda m, x: nn.functional.interpolate(x.view(-1, 1, 3, 4), m.sizes.tolist()),
    "bounds": lambda m, x: x.clamp(-m.scale[1].item(), m.scale[0].item()),
    "a branch": lambda m, x: x * 2 if m.scale[0] > 1 else x,
    "a loop": looped,
}


@pytest.mark.slow
@pytest.mark.parametrize("function", TAKEN.values(), ids=TAKEN)
@pytest.mark.parametrize("exported", [False, True], ids=["module", "exported"])
def test_numbers_out_of_the_models_own_tensors_are_known(function, exported):
    torch.manual_seed(0)
    module = Constants(function).eval()
    x = torch.randn(5, 4)
    if exported:
        shapes = ({0: torch.export.Dim("batch")},)
        try:
            file = torch.export.export(module, (x,), dynamic_shapes=shapes)
        except Exception as error:
            assert needs_values(error)  # noqa: PT017 -- PyTorch does not export it: there is no such file
            return
        program = from_exported(file)
    else:
        program = capture(module, [torch.randn(2, 4)])
    assert program.fixed_batch is None
    torch.testing.assert_close(program.run(x)[0], module(x).detach())
    rewritten, _ = rewrite(program, REWRITES["keras"], [x])
    assert not any(node.target in NUMBERS for node in rewritten.graph.nodes)
    assert all(isinstance(n, int) for node in rewritten.results for n in node.meta["val"].shape[1:])
    assert_plan_is_exact(rewritten, [(5, 4)])


def test_a_program_with_numbers_out_of_weights_serves_no_other_weights():
    def branched(m, x):
        return x * 2 if m.scale[0] > 1 else x

    module = Constants(branched).eval()
    program = capture(module, [torch.randn(2, 4)])
    assert program.values_read
    assert ProgramCache().capture("key", module, lambda: program) == (program, None)


@pytest.mark.slow
def test_a_tensor_that_forward_overwrites_has_no_known_value():
    def overwritten(m, x):
        seen = m.sizes.clone()
        seen[0] = x.sum().long()
        return x[:, : int(seen[0])]

    with pytest.raises((CaptureError, UnsupportedOperatorsError)):
        planned(capture(Constants(overwritten).eval(), [torch.ones(2, 4)]))


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


@pytest.mark.slow
def test_the_command_freezes_and_warns_and_verifies_again(folder):
    refused = run("net.pt --model net.py:Guarded --input-shape 1,4 --to onnx")
    assert refused.exit_code == 1
    assert "--freeze-control-flow" in refused.stderr
    made = run("net.pt --model net.py:Guarded --input-shape 1,4 --to onnx --freeze-control-flow")
    assert made.exit_code == 0, made.stderr
    assert "Control flow that depends on values is frozen" in made.stderr
    again = run("verify net.pt net.onnx --model net.py:Guarded")
    assert again.exit_code == 0, again.stderr


@pytest.mark.slow
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


@pytest.mark.slow
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
