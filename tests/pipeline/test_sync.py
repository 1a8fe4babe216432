"""New weights in a written artifact, without its model, against a conversion of the new checkpoint."""

import copy
import json
import shutil
import zipfile

import numpy as np
import pytest
import torch
from fresh_process import run_commands
from mixed_model import FACTORY, SHAPES, trained
from torch import nn

import converter
from converter.artifacts import onnx_writer
from converter.artifacts.runtime.stamp import ZIP_MEMBER
from converter.errors import ConversionError
from converter.ir.recipe import DamagedRecipe, Formula, Kitchen, Recipe, Spec, Step

SUFFIXES = {"keras": ".keras", "tf": "_saved_model", "onnx": ".onnx", "torch": "_torch", "tflite": ".tflite"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with two checkpoints, `a` and `b`, and what they become."""
    made = tmp_path_factory.mktemp("sync")
    for seed, name in enumerate("ab"):
        torch.save(trained(seed).state_dict(), made / f"{name}.pt")
        outputs = {format: made / f"{name}{suffix}" for format, suffix in SUFFIXES.items()}
        converter.convert(
            made / f"{name}.pt", to=list(outputs), output=outputs, input_shapes=SHAPES, factory=FACTORY, verify=False
        )
    return made


def contents(path):
    if path.suffix == ".keras":
        return keras_contents(path)
    if path.is_file():
        return {path.suffix: path.read_bytes()}
    files = [file for file in path.rglob("*") if file.is_file()]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def keras_contents(path):
    """Return the members, and the weights by path: Keras numbers layers within layers by how many a process had."""
    import h5py

    found = {}
    with zipfile.ZipFile(path) as archive:
        held = {name: archive.read(name) for name in archive.namelist() if not name.endswith("h5")}
        with archive.open("model.weights.h5") as file, h5py.File(file) as opened:
            opened.visititems(lambda name, part: found.update({name: part}) if hasattr(part, "dtype") else None)
            return held | {name: part[()].tobytes() for name, part in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize("format", SUFFIXES)
def test_sync_writes_what_a_conversion_of_the_new_checkpoint_writes(folder, tmp_path, format):
    suffix = SUFFIXES[format]
    report = converter.sync(folder / "b.pt", folder / f"a{suffix}", output=tmp_path / f"c{suffix}")
    assert report.status == "verified"
    assert contents(tmp_path / f"c{suffix}") == contents(folder / f"b{suffix}")
    assert contents(tmp_path / f"c{suffix}") != contents(folder / f"a{suffix}")


@pytest.mark.slow
def test_tensorflow_is_imported_for_a_saved_model_only(folder, tmp_path):
    suffixes = [SUFFIXES[format] for format in ("keras", "onnx", "tflite", "torch")]
    new = str(folder / "b.pt")
    commands = [["sync", new, str(folder / f"a{suffix}"), "-o", str(tmp_path / f"c{suffix}")] for suffix in suffixes]
    for status, _, output, imported in run_commands(tmp_path, *commands):
        assert status == 0, output
        assert not {"tensorflow", "keras"} & {*imported}


@pytest.mark.slow
def test_with_the_model_the_outputs_are_compared_too(folder, tmp_path):
    given = {"output": tmp_path / "c.onnx", "factory": FACTORY}
    report = converter.sync(folder / "b.pt", folder / "a.onnx", **given)
    assert [proof.name for proof in report.proofs][-2:] == ["artifact", "weights"]
    assert report.status == "verified"


@pytest.mark.slow
def test_the_weights_beside_an_onnx_file_are_replaced(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_writer, "LARGEST", 0)
    for name in "ab":
        (tmp_path / name).mkdir()
        converter.convert(
            folder / f"{name}.pt", to="onnx", output=tmp_path / name / "net.onnx", input_shapes=SHAPES,
            factory=FACTORY, verify=False,
        )  # fmt: skip
    (tmp_path / "c").mkdir()
    assert converter.sync(folder / "b.pt", tmp_path / "a/net.onnx", output=tmp_path / "c/net.onnx").status == "verified"
    assert contents(tmp_path / "c") == contents(tmp_path / "b")
    assert len(contents(tmp_path / "c")) == 2


class Shifted(nn.Module):
    """Biases of zeros that a converter may drop, a division that it inverts, and one table in two places."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(12, 6)
        self.hidden, self.shift = nn.Linear(6, 6), nn.Parameter(torch.zeros(6))

    def forward(self, ids):
        x = self.hidden(self.table(ids)) + self.shift
        return nn.functional.hardsigmoid(x) @ self.table.weight.t()


@pytest.mark.slow
def test_a_weight_that_the_converter_leaves_out_decides(tmp_path):
    net = Shifted().eval()
    converter.convert(net, to="tflite", output=tmp_path / "a.tflite", input_shapes=["1,5:int64"])
    trained_on = copy.deepcopy(net)
    trained_on.table.weight.data.normal_()
    converter.convert(trained_on, to="tflite", output=tmp_path / "b.tflite", input_shapes=["1,5:int64"], verify=False)
    assert converter.sync(trained_on, tmp_path / "a.tflite", output=tmp_path / "c.tflite").status == "verified"
    assert (tmp_path / "b.tflite").read_bytes() == (tmp_path / "c.tflite").read_bytes()
    trained_on.shift.data.fill_(3)
    with pytest.raises(ConversionError, match=r"depended on values of `shift`|Other weights are equal"):
        converter.sync(trained_on, tmp_path / "a.tflite", output=tmp_path / "d.tflite")


class Summed(nn.Module):
    """Two tensors that the converter adds up: the reshape between them changes nothing."""

    def __init__(self):
        super().__init__()
        self.relative = nn.Parameter(torch.randn(2, 5, 5))
        self.register_buffer("mask", torch.randn(3, 1, 5, 5))

    def forward(self, x):
        return ((x + self.relative).view(-1, 3, 2, 5, 5) + self.mask).softmax(-1)


@pytest.mark.slow
def test_two_weights_that_the_converter_adds_up_are_found_and_synced(tmp_path):
    nets = [Summed().eval() for _ in range(2)]
    for name, net in zip("ab", nets, strict=True):
        report = converter.convert(
            net, to="tflite", output=tmp_path / f"{name}.tflite", input_shapes=["3,2,5,5"], fixed_batch=3
        )
        assert report.status == "verified"
        assert report.artifacts[0].operators["ADD"] == 1
    assert converter.sync(nets[1], tmp_path / "a.tflite", output=tmp_path / "c.tflite").status == "verified"
    assert (tmp_path / "b.tflite").read_bytes() == (tmp_path / "c.tflite").read_bytes()


@pytest.mark.slow
def test_what_does_not_fit_is_refused_by_name_and_changes_nothing(folder, tmp_path):
    artifact = folder / "a.keras"
    before = artifact.read_bytes()
    state = torch.load(folder / "b.pt")

    def refused(changed, drop=()):
        file = tmp_path / "changed.pt"
        torch.save({name: value for name, value in (state | changed).items() if name not in drop}, file)
        with pytest.raises(ConversionError) as error:
            converter.sync(file, artifact)
        return str(error.value)

    assert "keys missing from the file (1):\n      head.bias" in refused({}, ["head.bias"])
    assert "keys the model does not have (1):\n      extra" in refused({"extra": torch.ones(2)})
    assert "head.bias is (5,) in the file, (4,) in the model" in refused({"head.bias": torch.ones(5)})
    assert "different types" in refused({"head.bias": torch.ones(4, dtype=torch.complex64)})
    assert artifact.read_bytes() == before
    assert not list(folder.glob(".converter-*"))


@pytest.mark.slow
def test_a_checkpoint_under_wrappers_and_in_half_precision_is_read_as_a_conversion_reads_it(folder, tmp_path):
    state = {f"module.{name}": value.half() for name, value in torch.load(folder / "b.pt").items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "wrapped.pt")
    torch.save({name.removeprefix("module."): value.float() for name, value in state.items()}, tmp_path / "plain.pt")
    for name in ("wrapped", "plain"):
        converter.sync(tmp_path / f"{name}.pt", folder / "a.keras", output=tmp_path / f"{name}.keras")
    first, second = (contents(tmp_path / f"{name}.keras") for name in ("wrapped", "plain"))
    assert first.pop(ZIP_MEMBER) != second.pop(ZIP_MEMBER)
    assert first == second


@pytest.mark.slow
def test_a_folder_of_artifacts_takes_the_weights_of_a_folder_of_checkpoints(folder, tmp_path):
    for name in ("run", "other"):
        (tmp_path / "runs").mkdir(exist_ok=True)
        shutil.copyfile(folder / "b.pt", tmp_path / "runs" / f"{name}.pt")
    (tmp_path / "out").mkdir()
    shutil.copyfile(folder / "a.keras", tmp_path / "out/run.keras")
    reports = converter.sync_many(tmp_path / "runs", output=tmp_path / "out", to=["keras", "onnx"])
    assert [getattr(report, "status", None) or report.code for report in reports] == ["PTC6091", "verified"]
    assert contents(tmp_path / "out/run.keras") == contents(folder / "b.keras")


class OneHot(nn.Module):
    """A kernel that selects is a shift, unless it is trained into something else."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)
        self.register_buffer("number", torch.tensor(2.0))
        self.head = nn.Conv2d(1, 4, 1)

    def forward(self, x):
        return self.head(self.conv(x)) * self.number


@pytest.mark.slow
def test_a_value_that_decided_the_plan_may_not_differ(tmp_path):
    net = OneHot().eval()
    with torch.no_grad():
        net.conv.weight.zero_()[0, 0, 0, 1] = 1
    converter.convert(net, to="tf", output=tmp_path / "a", input_shapes=["1,1,6,6"])
    moved = copy.deepcopy(net)
    moved.head.weight.data.normal_()
    assert converter.sync(moved, tmp_path / "a", output=tmp_path / "b").status == "verified"
    moved.conv.weight.data.normal_()
    with pytest.raises(ConversionError, match=r"depended on values of `conv.weight`"):
        converter.sync(moved, tmp_path / "a")
    other = copy.deepcopy(net)
    other.number.fill_(3)
    with pytest.raises(ConversionError, match=r"depended on values of `number`"):
        converter.sync(other, tmp_path / "a")


@pytest.mark.slow
def test_an_artifact_that_was_changed_or_has_no_recipe_is_refused(folder, tmp_path):
    def rewritten(name, change):
        path = tmp_path / name
        with zipfile.ZipFile(folder / "a.keras") as source, zipfile.ZipFile(path, "w") as target:
            for member in source.namelist():
                target.writestr(member, change(member, source.read(member)))
        return path

    def without_recipe(member, content):
        if member != ZIP_MEMBER:
            return content
        return json.dumps({k: v for k, v in json.loads(content).items() if k != "recipe"})

    def with_other_graph(member, content):
        return content.replace(b"1e-05", b"2e-05") if member == "config.json" else content

    with pytest.raises(ConversionError, match="has no recipe"):
        converter.sync(folder / "b.pt", rewritten("a.keras", without_recipe))
    with pytest.raises(ConversionError, match="was changed after pt-convert wrote it: its graph"):
        converter.sync(folder / "b.pt", rewritten("b.keras", with_other_graph))


def kitchen(*steps, shape=(4,), reads=("w",)):
    recipe = Recipe({"w": Spec(shape, torch.float32)}, literals=[torch.arange(3)])
    numbered = tuple(Step(name, list(args), kwargs) for name, args, kwargs in steps)
    return Kitchen(recipe, {"w": torch.ones(shape)}, 4), Formula(reads, numbered, len(reads))


T0 = {"t": 0}
HOSTILE = {
    "an operator that is not listed": ("from_file.default", ["/etc/passwd", False, 4], {}),
    "a name that leads elsewhere": ("__class__.mro", [], {}),
    "memory without end": ("ones.default", [[1 << 20, 1 << 20]], {}),
    "a size that overflows": ("zeros.default", [[1 << 40, 1 << 40]], {}),
    "a value that is not there": ("add.Tensor", [T0, {"t": 7}], {}),
    "a place outside": ("select.int", [T0, 0, 9], {}),
    "a change of the checkpoint": ("zero_.default", [T0], {}),
    "a change of the checkpoint through out": ("add.Tensor", [T0, T0], {"out": T0}),
    "arguments of another kind": ("view.default", ["w", 1], {}),
    "a dtype that is code": ("_to_copy.default", [T0], {"dtype": {"dtype": "load"}}),
}


@pytest.mark.parametrize("step", HOSTILE.values(), ids=HOSTILE)
def test_a_recipe_of_strangers_computes_nothing_else(step):
    cook, formula = kitchen(step)
    with pytest.raises(DamagedRecipe):
        cook.compute(formula)


def test_a_recipe_of_strangers_computes_within_a_budget():
    square = ("mm.default", [{"t": 1}, {"t": 1}], {})
    cook, formula = kitchen(("ones.default", [[2000, 2000]], {}), *[square] * 1000)
    with pytest.raises(DamagedRecipe, match="too much"):
        cook.compute(formula)


@pytest.mark.parametrize(
    "damage",
    [lambda t: t[:-9], lambda t: "x" + t, lambda t: "", lambda t: t[:20] + ("0" if t[20] != "0" else "1") + t[21:]],
)
def test_a_damaged_recipe_is_refused(damage):
    text = Recipe({"w": Spec((4,), torch.float32)}, tensors={"k": Formula(("w",), (), 0)}).encode()
    assert Recipe.decode(text).tensors["k"].keys == ("w",)
    with pytest.raises(DamagedRecipe):
        Recipe.decode(damage(text))


def test_a_text_that_inflates_without_end_is_refused():
    import base64
    import zlib

    with pytest.raises(DamagedRecipe, match="too long"):
        Recipe.decode(base64.b85encode(zlib.compress(b" " * (1 << 25))).decode())


@pytest.mark.parametrize(
    "tensor",
    [
        torch.full((3, 4), 2.5), torch.arange(12).reshape(3, 4), torch.randn(5), torch.tensor([True, False]),
        torch.zeros(0, 3), torch.tensor(float("nan")), torch.randn(3, dtype=torch.float64), torch.tensor([-5, 2**40]),
        torch.tensor([3, 200], dtype=torch.uint8),
    ],
)  # fmt: skip
def test_literals_are_stored_as_they_are(tensor):
    recipe = Recipe({}, literals=[tensor])
    (read,) = Recipe.decode(recipe.encode()).literals
    assert (read.dtype, read.shape) == (tensor.dtype, tensor.shape)
    assert np.array_equal(read.numpy().tobytes(), tensor.numpy().tobytes())
