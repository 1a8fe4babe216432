"""A model trained on in Keras, back in PyTorch."""

import json
import zipfile

import keras
import numpy as np
import pytest
import safetensors.torch
import torch
from mixed_model import FACTORY, SHAPES, Mixed, trained

import converter
from converter.errors import ConversionError
from converter.ir.inverse import CannotInvert, Inverse
from converter.ir.recipe import Kitchen, Recipe, Spec
from converter.ir.record import Recorder, memory_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with a checkpoint, what it becomes, and that after three steps of training."""
    made = tmp_path_factory.mktemp("pull")
    torch.save(trained(0).state_dict(), made / "a.pt")
    converter.convert(made / "a.pt", to="keras", output=made / "a.keras", input_shapes=SHAPES, factory=FACTORY)
    model = keras.saving.load_model(made / "a.keras")
    model.compile(keras.optimizers.SGD(0.005), "mse")
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(12, *model.input_shape[1:])), draw.normal(size=(12, 4))
    model.fit(x, y, batch_size=4, epochs=1, shuffle=False, verbose=0)
    model.save(made / "trained.keras")
    return made


@pytest.mark.slow
@pytest.mark.parametrize("planned", [True, False], ids=["planned again", "by the artifact's recipe"])
def test_pull_gives_the_trained_weights_to_pytorch(folder, tmp_path, planned):
    given = {} if planned else {"artifact": folder / "a.keras"}  # the input shapes are those of a Keras file
    report = converter.pull(
        folder / "trained.keras", folder / "a.pt", output=tmp_path / "new.pt", factory=FACTORY, **given
    )  # fmt: skip
    assert report.status == "verified"
    assert [proof.name for proof in report.proofs] == ["weights", "artifact"]
    before, after = torch.load(folder / "a.pt"), torch.load(tmp_path / "new.pt")
    assert after.keys() == before.keys()
    same = [name for name in before if torch.equal(before[name], after[name])]
    assert set(same) == {
        "norm.num_batches_tracked", "recurrent.bias_hh_l0", "recurrent.bias_hh_l0_reverse",
        # Weight norm's direction keeps the length that it is given.
    }  # fmt: skip


@pytest.mark.slow
def test_without_the_model_the_weights_alone_are_compared_and_the_report_says_so(folder, tmp_path):
    file = tmp_path / "new.safetensors"
    report = converter.pull(folder / "trained.keras", folder / "a.pt", output=file, artifact=folder / "a.keras")
    assert report.status == "verified"
    assert [note.code for note in report.notes] == ["PTC6520"]
    net = Mixed()
    net.load_state_dict(safetensors.torch.load_file(file))
    synced = tmp_path / "synced.keras"
    converter.sync(file, folder / "a.keras", output=synced)
    both = (keras.saving.load_model(path).get_weights() for path in (synced, folder / "trained.keras"))
    for one, other in zip(*both, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_the_original_may_be_what_a_conversion_to_pytorch_wrote(folder, tmp_path):
    source, factory = tmp_path / "net", f"{tmp_path / 'net/model.py'}:Model"
    converter.convert(folder / "a.pt", to="torch", output=source, input_shapes=SHAPES, factory=FACTORY, verify=False)
    given = {"factory": factory, "input_shapes": SHAPES}
    converter.convert(source / "weights.pt", to="keras", output=tmp_path / "net.keras", verify=False, **given)
    model = keras.saving.load_model(tmp_path / "net.keras")
    model.set_weights([np.abs(value) * 1.1 for value in model.get_weights()])
    model.save(tmp_path / "trained.keras")
    report = converter.pull(
        tmp_path / "trained.keras", source / "weights.pt", output=tmp_path / "new.pt", artifact=tmp_path / "net.keras",
        factory=factory,
    )  # fmt: skip
    assert report.status == "verified"
    assert [proof.name for proof in report.proofs] == ["weights", "artifact"]


@pytest.mark.slow
def test_what_is_there_is_not_replaced_without_force(folder, tmp_path):
    (tmp_path / "new.pt").write_text("precious")
    given = {"output": tmp_path / "new.pt", "artifact": folder / "a.keras"}
    with pytest.raises(ConversionError, match="already exists"):
        converter.pull(folder / "trained.keras", folder / "a.pt", **given)
    assert (tmp_path / "new.pt").read_text() == "precious"
    converter.pull(folder / "trained.keras", folder / "a.pt", force=True, **given)
    assert (tmp_path / "new.pt").read_bytes() != b"precious"


@pytest.mark.slow
def test_other_layers_are_refused_by_name(folder, tmp_path):
    model = keras.saving.load_model(folder / "trained.keras")
    more = keras.Model(model.input, keras.layers.Dense(4, name="adapter")(model.output))
    less = keras.Model(model.input, model.get_layer("normed").output)
    for changed, name in ((more, "added layers: adapter"), (less, "removed layers: .*head")):
        changed.save(tmp_path / "changed.keras")
        with pytest.raises(ConversionError, match=name):
            converter.pull(
                tmp_path / "changed.keras", folder / "a.pt", output=tmp_path / "n.pt", artifact=folder / "a.keras"
            )
    with zipfile.ZipFile(folder / "trained.keras") as source, zipfile.ZipFile(tmp_path / "w.keras", "w") as target:
        for member in source.namelist():
            content = source.read(member)
            if member == "config.json":
                config = json.loads(content)
                for layer in config["config"]["layers"]:
                    if layer["class_name"] == "BatchNormalization":
                        layer["config"]["epsilon"] = 0.1
                content = json.dumps(config).encode()
            target.writestr(member, content)
    with pytest.raises(ConversionError, match="layers of another configuration: norm"):
        converter.pull(tmp_path / "w.keras", folder / "a.pt", output=tmp_path / "n.pt", artifact=folder / "a.keras")


def inverted(compute, **state):
    """Record what `compute` does with tensors, and return what they must be for twice its result."""
    recorder = Recorder({memory_of(tensor): name for name, tensor in state.items()})
    formula = recorder.formula(lambda: compute(**state))
    recipe = Recipe({n: Spec(tuple(t.shape), t.dtype) for n, t in state.items()}, literals=recorder.literals)
    recipe = Recipe.decode(recipe.encode())
    inverse = Inverse(Kitchen(recipe, dict(state), 100))
    inverse.take(formula, 2 * compute(**state).double())
    return inverse.kitchen.state


A, B = torch.randn(6, 4), torch.randn(6, 4)
MOVED = {
    "transposed": lambda a: a.t(),
    "a part": lambda a: a[1:4, ::2],
    "reordered": lambda a: a[torch.tensor([3, 1, 0, 5, 4, 2])],
    "gates": lambda a: torch.cat([a.chunk(3)[i] for i in (2, 0, 1)]),
    "heads": lambda a: a.reshape(2, 3, 4).permute(2, 0, 1).contiguous(),
    "flipped": lambda a: a.flip(1),
    "repeated": lambda a: a.repeat(2, 1),
    "scaled": lambda a: a.double() / 3,
    "in two places": lambda a: torch.stack([a, a.flip(0).flip(0)]),
}


@pytest.mark.parametrize("compute", MOVED.values(), ids=MOVED)
def test_what_moves_is_moved_back(compute):
    new = inverted(compute, a=A.clone())["a"]
    assert torch.allclose(compute(new).double(), 2 * compute(A).double())
    whole = compute(torch.arange(24.0).reshape(6, 4)).numel() >= 24
    assert torch.allclose(new, 2 * A) or not whole


def test_of_a_sum_the_first_tensor_takes_the_difference():
    new = inverted(lambda a, b: (a.double() + b).t(), a=A.clone(), b=B.clone())
    assert torch.equal(new["b"], B)
    assert torch.allclose(new["a"], 2 * A + B)
    state = {"a": A.clone(), "b": B.clone(), "c": A[0] + 1}
    state = {"a": A.clone(), "b": B.clone(), "c": A[0] + 1}
    carried = inverted(lambda a, b, c: a.double() @ c.double() + b.double()[:, 0], **state)
    assert torch.allclose(carried["b"][:, 0], 2 * B[:, 0] + A @ (A[0] + 1), atol=1e-5)
    assert torch.equal(carried["b"][:, 1:], B[:, 1:])


def test_weight_norm_is_split_into_direction_and_magnitude():
    magnitude = A.norm(dim=1, keepdim=True)
    new = inverted(lambda a, g: torch._weight_norm(a, g, 0), a=A.clone(), g=magnitude)
    assert torch.allclose(new["a"], 2 * A)
    assert torch.allclose(new["g"], 2 * magnitude)


@pytest.mark.parametrize(
    "compute",
    [
        lambda a, b: a.relu(),
        lambda a, b: a * b,
        lambda a, b: a.relu() + b.relu(),
        lambda a, b: a @ b.t(),
        lambda a, b: a + a * b,
    ],
)
def test_what_does_not_determine_its_tensors_is_refused(compute):
    with pytest.raises(CannotInvert):
        inverted(compute, a=A.clone(), b=B.clone())
