"""A part of a model: stopped at modules, one module of it, under other names; in all formats, and verified again."""

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from equivalence import with_random_tensors
from torch import nn

import cli
from converter.errors import CaptureError, UsageError
from converter.options import LoadOptions
from converter.pipeline.clock import Clock
from converter.pipeline.load_model import load_model


def opened(module, *shapes, freeze_control_flow=False, **part):
    return load_model(
        module, LoadOptions.of(input_shapes=shapes, **part, freeze_control_flow=freeze_control_flow), clock=Clock(None)
    )


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 2, 1)
        self.stages = nn.ModuleList([nn.Conv2d(4, 5, 3, 2, 1), nn.Conv2d(5, 6, 3, 2, 1)])

    def forward(self, x, *, scale=1.0):
        x = self.stem(x)
        found = []
        for stage in self.stages:
            x = stage(x * scale)
            found.append(x)
        return found


class Mean(nn.Module):
    def forward(self, features, weights=None):
        """Of maps, weighted; NumPy in between, which cannot be captured."""
        means = [f.mean((2, 3)) for f in features["maps"]]
        return sum(means) * torch.from_numpy(weights.numpy() + 1)


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.head, self.mean = Backbone(), nn.Conv2d(5, 2, 1), Mean()
        self.spare = nn.Linear(2, 2)

    def forward(self, image):
        low, high = self.backbone(image, scale=2.0)
        large = F.interpolate(high, low.shape[2:])
        both = self.head(low), self.head(large[:, :5])
        return self.mean({"maps": both, "name": "both"}, weights=both[0].mean((0, 2, 3)))


def features(detector, x):
    return detector.backbone(x, scale=2.0)


def maps(detector, x):
    low, high = features(detector, x)
    return [detector.head(low), detector.head(F.interpolate(high, low.shape[2:])[:, :5])]


IMAGE = torch.randn(3, 3, 32, 24)
CUTS = {
    "a tuple of outputs": ({"outputs": ["backbone"]}, ["backbone_0", "backbone_1"], features),
    "a part of a list, in front of what fails": (
        {"outputs": ["backbone.stages.0"]}, ["backbone_stages_0"], lambda d, x: features(d, x)[:1],
    ),
    "two of them, in the order asked for": (
        {"outputs": ["backbone.stages.1", "backbone.stages.0"]}, ["backbone_stages_1", "backbone_stages_0"],
        lambda d, x: features(d, x)[::-1],
    ),
    "a module called twice": ({"outputs": ["head"]}, ["head_0", "head_1"], maps),
    "other names": (
        {"outputs": ["head"], "output_names": {"head_0": "low", "head_1": "high"}, "input_names": ["image=photo"]},
        ["low", "high"], maps,
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("part, names, wanted", CUTS.values(), ids=CUTS)
def test_stops_at_modules(part, names, wanted):
    detector = with_random_tensors(Detector())
    program = opened(detector, "1,3,H,W", **part).program
    assert program.outputs == names
    assert program.inputs == (["photo"] if "input_names" in part else ["image"])
    with torch.no_grad():
        for result, expected in zip(program.run(IMAGE), wanted(detector, IMAGE), strict=True):
            torch.testing.assert_close(result, expected)


@pytest.mark.slow
def test_a_submodule_is_called_as_the_model_calls_it():
    """With the keyword that it is given, free sizes that follow, and its own names."""
    detector = with_random_tensors(Detector())
    source = opened(detector, "1,3,H,W", submodule="backbone")
    assert source.program.inputs == ["x"]
    assert set(source.tensor_names) == set(dict(detector.backbone.named_parameters()))
    with torch.no_grad():
        for result, expected in zip(source.program.run(IMAGE), features(detector, IMAGE), strict=True):
            torch.testing.assert_close(result, expected)


def test_a_submodule_of_a_feature_map_has_its_sizes():
    source = opened(Detector().eval(), "1,3,H,40", submodule="backbone.stages.1")
    (node,) = source.program.placeholders
    assert [n if isinstance(n, int) else "?" for n in node.meta["val"].shape] == ["?", 5, "?", 10]


class Fusing(nn.Module):
    def __init__(self):
        super().__init__()
        self.fuse = nn.ModuleDict({"it": Fuse()})

    def forward(self, x):
        return self.fuse["it"]({"a": x[..., ::4], "b": [x[..., ::2], 3]})


class Fuse(nn.Module):
    def forward(self, parts):
        a, (b, times) = parts["a"], parts["b"]
        return torch.cat([a, a], -1) + b * times


def test_a_submodule_of_nested_inputs_and_numbers_takes_the_tensors_and_keeps_the_numbers():
    source = opened(Fusing().eval(), "1,3,4*T", submodule="fuse.it")
    assert source.program.inputs == ["parts_a", "parts_b_0"]
    a, b = torch.randn(2, 3, 5), torch.randn(2, 3, 10)
    torch.testing.assert_close(source.program.run(a, b)[0], torch.cat([a, a], -1) + b * 3)


def test_outputs_within_a_submodule_have_the_models_paths():
    source = opened(Detector().eval(), "1,3,32,24", submodule="backbone", outputs="backbone.stem")
    assert source.program.outputs == ["stem"]


REFUSED = {
    "a path that there is not": ({"outputs": ["backbone.stage"]}, UsageError, ["`backbone.stage`", "stages"]),
    "a submodule that there is not": ({"submodule": "backbon"}, UsageError, ["a module `backbon`", "backbone"]),
    "a module that forward does not call": ({"outputs": ["spare"]}, CaptureError, ["does not call the module `spare`"]),
    "a submodule that forward does not call": ({"submodule": "spare"}, CaptureError, ["does not call", "`spare`"]),
    "an output outside of the submodule": (
        {"submodule": "backbone", "outputs": ["head"]}, UsageError, ["`head` is not inside `backbone`"],
    ),
    "a name that there is not": (
        {"outputs": ["head"], "output_names": ["tail=x"]}, UsageError, ["`tail` cannot be renamed", "`head_1`"],
    ),
    "a name that formats do not take": (
        {"outputs": ["head"], "output_names": ["head_0=low/map"]}, UsageError, ["`low/map` is not a valid name"],
    ),
    "one of two names": (
        {"outputs": ["head"], "output_names": ["head_0=a", "head_0=b"]}, UsageError, ["`head_0` is renamed twice"],
    ),
    "a name twice": (
        {"outputs": ["head"], "output_names": ["head_0=image"]}, UsageError, ["Two inputs or outputs", "`image`"],
    ),
    "no new name": ({"outputs": ["head"], "input_names": ["image"]}, UsageError, ["`` is not a valid name"]),
}  # fmt: skip


@pytest.mark.parametrize("part, error, said", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_named(part, error, said):
    with pytest.raises(error) as refused:
        opened(Detector().eval(), "1,3,32,24", **part)
    for words in said:
        assert words in str(refused.value)


class Named(nn.Module):
    """Three outputs, of which only `boxes` needs `refine`."""

    def __init__(self):
        super().__init__()
        self.body, self.refine, self.score = nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x):
        features = self.body(x)
        return {"boxes": self.refine(features), "scores": self.score(features).sigmoid(), "count": 3}


@pytest.mark.parametrize(
    "wanted, names", [(["scores"], ["scores"]), (["scores", "body"], ["scores", "body"]), (["refine"], ["refine"])]
)
def test_outputs_are_chosen_by_name_and_what_only_others_need_is_dropped(wanted, names):
    module = Named().eval()
    source = opened(module, "1,4", outputs=wanted)
    assert source.program.outputs == names
    x = torch.randn(5, 4)
    results = {**module(x), "body": module.body(x), "refine": module.refine(module.body(x))}
    for result, name in zip(source.program.run(x), names, strict=True):
        torch.testing.assert_close(result, results[name])
    assert any("refine" in str(node.target) for node in source.program.graph.nodes) == ("refine" in wanted)


def test_outputs_without_names_are_chosen_by_their_numbers():
    source = opened(Backbone().eval(), "1,3,16,16", outputs=["output_1"], output_names=["output_1=low"])
    x = torch.randn(2, 3, 16, 16)
    assert source.program.outputs == ["low"]
    torch.testing.assert_close(source.program.run(x)[0], source.module(x)["output_1"])


def test_an_unknown_output_is_named_beside_the_ones_that_there_are():
    with pytest.raises(UsageError, match="does not have a module or an output `score_`") as refused:
        opened(Named().eval(), "1,4", outputs=["score_"])
    assert "scores" in str(refused.value)
    with pytest.raises(UsageError, match="`count`"):  # a number, which is no output of a converted model
        opened(Named().eval(), "1,4", outputs=["count"])


def test_outputs_of_an_exported_program_are_chosen_by_name(tmp_path):
    module = Named().eval()
    torch.export.save(torch.export.export(module, (torch.rand(2, 4),)), tmp_path / "net.pt2")
    source = opened(tmp_path / "net.pt2", outputs=["scores"])
    x = torch.randn(2, 4)
    assert source.program.outputs == ["scores"]
    torch.testing.assert_close(source.program.run(x)[0], module(x)["scores"])
    assert not any("refine" in str(node.target) for node in source.program.graph.nodes)
    with pytest.raises(UsageError, match="does not have an output `refine`"):
        opened(tmp_path / "net.pt2", outputs=["refine"])


def test_an_exported_program_is_renamed_but_not_cut(tmp_path):
    exported = torch.export.export(nn.Sequential(nn.Linear(4, 3)), (torch.rand(2, 4),))
    torch.export.save(exported, tmp_path / "net.pt2")
    source = opened(tmp_path / "net.pt2", input_names=["input=x"], output_names=["output=y"])
    assert (source.program.inputs, source.program.outputs) == (["x"], ["y"])
    with pytest.raises(UsageError, match="does not have modules to select"):
        opened(tmp_path / "net.pt2", submodule="0")


NET = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3))
        self.head = nn.Linear(5, 2)

    def forward(self, image):
        return self.head(self.body(image).mean((2, 3)))
"""


@pytest.mark.slow
def test_the_command_writes_a_cut_model_which_verifies_again_without_a_word(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    parts = nn.ModuleDict(
        {"body": nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3)), "head": nn.Linear(5, 2)}
    )
    torch.save(parts.state_dict(), "net.pt")
    line = (
        "net.pt --model net.py:Net --image-size 9,8 --submodule body --outputs body.0 --outputs body.2 "
        "--input-name input=photo --output-name output_2=features --to tf --to keras --to onnx -o out"
    )
    made = CliRunner().invoke(cli.main, line.split())
    assert made.exit_code == 0, made.stderr
    for words in ("photo float32 [batch, 9, 8, 3]", "output_0 float32", "features float32 [batch, 5, 4, 5]"):
        assert words in " ".join(made.stderr.split()), made.stderr
    again = CliRunner().invoke(cli.main, ["verify", "net.pt", "out/net.onnx", "--model", "net.py:Net"])
    assert again.exit_code == 0, again.stderr
