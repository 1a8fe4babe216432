"""What the inputs do not exercise is named; too much of it in a foreign artifact is "not verified"."""

import warnings

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import converter
from converter.options import LoadOptions
from converter.pipeline.clock import Clock
from converter.pipeline.load_model import load_model
from converter.report.results import OutputComparison, Proof, status_of
from converter.verification.coverage import unexercised_parameters
from converter.verification.nonfinite import nonfinite_inputs
from converter.verification.output_proofs import compare_artifact, resolution_note, vacuous
from converter.verification.reference import round_tensors, take_reference


def opened(module, *shapes):
    torch.manual_seed(0)
    return load_model(module.eval(), LoadOptions.of(input_shapes=shapes), clock=Clock(None))


def taken(source, **given):
    options = {"inputs": None, "seed": 0, "running": source.running} | given
    return take_reference(source.program, source.module, **options)


class Net(nn.Module):
    """`use(modules, x)` of a few layers."""

    def __init__(self, use, bias=None):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.wide, self.head = nn.Conv2d(3, 4, 3), nn.Linear(6, 12), nn.Linear(12, 5)
        self.table, self.use = nn.Embedding(4000, 6), use
        if bias is not None:
            with torch.no_grad():
                for name, rows in bias.items():
                    getattr(self, name).bias[:rows] = -1e5

    def forward(self, x):
        return self.use(self, x)


def mlp(self, x):
    return self.head(self.wide(x).relu())


UNEXERCISED = {
    "channels that are dead": (Net(lambda m, x: m.conv(x).relu(), {"conv": 1}), "1,3,6,6", "1 of 4 channels of `relu"),
    "units that are dead": (Net(mlp, {"wide": 3}), "1,6", "3 of 12 channels of `relu"),
    "a module that is dead": (Net(lambda m, x: m.conv(x) + (x.mean() - 500).relu()), "1,3,6,6", "never leaves a limit"),
    "a branch that is not taken": (
        Net(lambda m, x: torch.where(x.amax() > 1e6, m.wide(x) * 2, m.wide(x))), "1,6", "is always false"),
    "a limit that is not reached": (Net(lambda m, x: m.wide(x).clamp(-1e7, 1e7)), "1,6", "the limit of `clamp`"),
    "rows of a table": (Net(lambda m, x: m.table(x)), "1,5:int64", " of 4000 rows of `table.weight`"),
}  # fmt: skip


@pytest.mark.parametrize("module, shape, told", UNEXERCISED.values(), ids=UNEXERCISED)
def test_what_the_inputs_do_not_exercise_is_named(module, shape, told):
    (note,) = [note for note in taken(opened(module, shape)).notes if note.code == "PTC5505"]
    assert told in note.text
    assert "--inputs" in note.text


def test_nothing_is_named_where_everything_is_exercised_also_by_the_users_inputs():
    assert not taken(opened(Net(mlp), "1,6")).notes
    rare = Net(lambda m, x: torch.where(x.amax() > 1e6, m.wide(x) * 2, m.wide(x)))
    given = {"x": np.linspace(-1e7, 1e7, 18, dtype=np.float32).reshape(3, 6)}
    assert not taken(opened(rare, "1,6"), inputs=given).notes


@pytest.mark.slow
def test_parameters_behind_what_is_not_exercised_are_counted_by_their_gradients():
    def share(module, shape="1,6"):
        source = opened(module, shape)
        reference = taken(source)
        return unexercised_parameters(source.program, [round_tensors(source.program, r) for r in reference.rounds])

    assert share(Net(mlp)) == 0.0
    assert share(Net(mlp, {"wide": 3})) == pytest.approx(3 * (6 + 1 + 5) / (12 * 7 + 5 * 13))
    assert share(Net(lambda m, x: m.table(x), None), "1,5:int64") > 0.4
    assert share(Net(lambda m, x: m.wide(x).round() * 0.5)) == 0.0  # its derivative is zero
    assert share(Net(lambda m, x: (m.wide(x) * 9).round())) == 0.0
    frozen = Net(mlp, {"wide": 3})
    for layer in (frozen.wide, frozen.head):
        weight = layer.weight.detach()
        del layer.weight
        layer.register_buffer("weight", weight)
    assert share(frozen) == share(Net(mlp, {"wide": 3}))
    masked = Net(lambda m, x: torch.where(mlp(m, x) > 0, mlp(m, x), x.amax() * 0.1), {"wide": 3})
    assert share(masked) == share(Net(mlp, {"wide": 3}))


def exported(module, path, example=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batch = {0: torch.export.Dim("batch", min=1)}
        given = (torch.randn(2, 6) if example is None else example,)
        torch.onnx.export(module.eval(), given, path, dynamo=True, dynamic_shapes=(batch,), verbose=False)
    return path


class Hidden(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        y = self.module(x)
        return torch.where(x.amax((0, 1)) == 0.125, y + 100, y)


@pytest.mark.slow
@pytest.mark.threat(
    "An ONNX file that adds 100 if the largest input is 0.125", "the report names the comparison that never held"
)
def test_foreign_artifacts_of_which_too_much_is_not_exercised_are_not_verified(tmp_path):
    def verify(module, artifact=None):
        return converter.verify(
            module.eval(), exported(artifact or module, tmp_path / "net.onnx"), input_shapes=["1,6"]
        )

    right = verify(Net(mlp))
    assert (right.status, [note.code for note in right.notes]) == ("verified", ["PTC6507"])
    dead = verify(Net(mlp, {"wide": 3}))
    assert dead.status == "not verified"
    assert "of the parameters" in dead.proofs[0].failures[0]
    hidden = verify(Net(mlp), Hidden(Net(mlp)))
    assert "Equal" in next(note.text for note in hidden.notes if note.code == "PTC5507")


@pytest.mark.slow
def test_rows_that_no_input_reads_are_no_loss_where_a_foreign_artifact_holds_their_table(tmp_path):
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.places = nn.Embedding(100_000, 6), nn.Parameter(torch.randn(1, 512, 6))

        def forward(self, x):
            return self.table(x) + self.places[:, : x.shape[1]]

    module, spoiled, example = Positions().eval(), Positions().eval(), torch.ones([2, 5], dtype=torch.int64)
    spoiled.load_state_dict(module.state_dict())
    with torch.no_grad():
        spoiled.table.weight[7:9] *= 1.01
    for each, status in ((module, "verified"), (spoiled, "not verified")):
        path = exported(each, tmp_path / f"{status}.onnx", example)
        assert converter.verify(module, path, input_shapes=["1,5:int64"]).status == status


class Embedded(nn.Embedding):
    """`use(self, ids)` of 32 rows of 8."""

    def __init__(self, use):
        super().__init__(32, 8)
        self.use = use

    def forward(self, x):
        return self.use(super().forward, x)


class Numbers(nn.Linear):
    def __init__(self, use):
        super().__init__(6, 5)
        self.use = use

    def forward(self, x):
        return super().forward(self.use(x))


INTEGERS = {
    "division of negative numbers": (
        Numbers, lambda x: (x // 3).float(), lambda x: torch.div(x, 3, rounding_mode="trunc").float(), "1,6:int64"),
    "numbers above 255": (Numbers, lambda x: (x / 999).sin(), lambda x: (x.to(torch.uint8) / 999).sin(), "1,6:int64"),
    "the sign": (Numbers, lambda x: x.float() * 0.1, lambda x: x.abs().float() * 0.1, "1,6:int8"),
    "ids above one": (
        Embedded, lambda rows, x: rows(x.clamp(0, 31)), lambda rows, x: rows(x.clamp(0, 31).clamp(max=1)), "1,5:int64"),
    "ids of padding": (
        Embedded, lambda rows, x: rows(x.clamp(min=0)) * (x >= 0)[..., None], lambda rows, x: rows(x.clamp(min=0)),
        "1,5:int64"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.threat("An ONNX file that computes otherwise for some integers", "the outputs disagree")
@pytest.mark.parametrize("layer, right, wrong, shape", INTEGERS.values(), ids=INTEGERS)
def test_foreign_artifacts_are_compared_on_integers_of_all_kinds(tmp_path, layer, right, wrong, shape):
    model, artifact = layer(right), layer(wrong)
    artifact.load_state_dict(model.state_dict())
    sizes, _, dtype = shape.partition(":")
    example = torch.ones([2, int(sizes[2:])], dtype=getattr(torch, dtype))
    for module, status in ((model, "verified"), (artifact, "disagrees")):
        path = exported(module, tmp_path / f"{status}.onnx", example)
        assert converter.verify(model.eval(), path, input_shapes=[shape]).status == status


def test_what_a_comparison_cannot_resolve_is_told():
    rng = np.random.default_rng(0)
    reference = [{"y": rng.standard_normal((batch, 40))} for batch in (1, 4, 2)]

    def proof(error):
        own = [{"y": (r["y"] * (1 + error * rng.standard_normal(r["y"].shape))).astype(np.float32)} for r in reference]
        return compare_artifact(reference, own, [{"y": r["y"].astype(np.float32)} for r in reference])

    fine, coarse = proof(0), proof(1e-3)
    assert fine.outputs[0].resolution < 1e-4
    assert not resolution_note(fine)
    assert 0.01 < coarse.outputs[0].resolution < 0.1
    (note,) = resolution_note(coarse)
    assert "`y` below" in note.text
    assert status_of([vacuous(coarse, "it is too coarse")]) == "not verified"
    assert isinstance(coarse, Proof)
    assert all(isinstance(output, OutputComparison) for output in coarse.outputs)


@pytest.mark.parametrize("coarse", range(3))
def test_a_coarse_channel_shows_beside_fine_ones_that_are_larger_or_smaller(coarse):
    """One of a sigmoid, boxes in pixels and something between is computed with three digits."""
    rng = np.random.default_rng(0)
    scales = np.array([1.0, 8.0, 640.0])[:, None]
    reference = [{"y": scales * rng.uniform(0.2, 1, (batch, 3, 40))} for batch in (1, 4, 2)]
    errors = np.where(np.arange(3) == coarse, 1e-3, 1e-7)[:, None]
    own = [{"y": (r["y"] * (1 + errors * rng.standard_normal(r["y"].shape))).astype(np.float32)} for r in reference]
    (output,) = compare_artifact(reference, own, [{"y": r["y"].astype(np.float32)} for r in reference]).outputs
    assert output.resolution > 1e-3


class Kelvin(nn.Sequential):
    def forward(self, x):
        return super().forward(x) * 0.2 + 300


@pytest.mark.slow
def test_a_nearly_constant_output_is_judged_by_what_varies(tmp_path):
    module = Kelvin(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)).eval()
    report = converter.convert(module, to="onnx", output=tmp_path / "own.onnx", input_shapes=["1,6"])
    assert report.status == "verified"
    assert "PTC5506" in [note.code for note in report.notes]
    foreign = converter.verify(module, exported(module, tmp_path / "net.onnx"), input_shapes=["1,6"])
    assert foreign.status == "not verified"
    assert "would not be seen" in foreign.proofs[0].failures[0]


def test_a_difference_on_nan_is_noted_with_the_module():
    source = opened(nn.Sequential(nn.MaxPool1d(2), nn.Linear(4, 3)), "1,2,8")
    given = nonfinite_inputs(source.program, 0)
    (name,) = given.expected
    assert not given.differences(lambda arrays: given.expected, "tf")
    (note,) = given.differences(lambda arrays: {name: np.nan_to_num(given.expected[name])}, "tf")
    assert "differs on NaN" in note.text
    assert "`0` (max_pool" in note.text


@pytest.fixture(scope="module")
def norm(tmp_path_factory):
    torch.manual_seed(0)
    module = nn.Sequential(nn.LayerNorm(12, eps=1e-12), nn.Linear(12, 3)).eval()
    folder = tmp_path_factory.mktemp("norm")
    report = converter.convert(module, to=["tf", "keras", "onnx"], output=folder, input_shapes=["1,5,12"])
    return module, report


@pytest.mark.slow
def test_constant_rows_are_normalized_to_zero(norm):
    import keras
    import tensorflow as tf

    module, report = norm
    assert report.status == "verified"
    paths = {artifact.format: artifact.path for artifact in report.artifacts}
    x = np.broadcast_to(np.random.default_rng(0).uniform(-3, 3, (2, 5, 1)), (2, 5, 12)).astype(np.float32)
    expected = module(torch.from_numpy(x)).detach().numpy()
    signature = tf.saved_model.load(paths["tf"]).signatures["serving_default"]
    (name,) = signature.structured_input_signature[1]
    session = onnxruntime.InferenceSession(paths["onnx"])
    results = {
        "tf": next(iter(signature(**{name: tf.constant(x)}).values())).numpy(),
        "keras": np.asarray(keras.saving.load_model(paths["keras"])(x)),
        "onnx": session.run(None, {session.get_inputs()[0].name: x})[0],
    }
    for format, found in results.items():
        np.testing.assert_allclose(found, expected, atol=1e-3, err_msg=format)


class FreshHead(nn.Module):
    """Two heads of which one starts at zero, as torchvision's ViT has it."""

    def __init__(self, gate=1.0):
        super().__init__()
        self.body, self.head, self.other = nn.Linear(6, 12), nn.Linear(12, 5), nn.Linear(12, 2)
        self.gate = nn.Parameter(torch.full((12,), gate))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.other.bias)

    def forward(self, x):
        y = self.body(x).relu() * self.gate
        return self.head(y), self.other(y)


def zero_notes(module):
    return [note for note in taken(opened(module, "1,6")).notes if note.code == "PTC5509"]


def test_weights_of_zeros_explain_an_output_that_is_always_the_same():
    (note,) = zero_notes(FreshHead())
    assert "All values of `head.weight` are 0, so `output_0` is the same for every input" in note.text
    assert "torch.nn.init.normal_" in note.text
    (note,) = zero_notes(FreshHead(gate=0.0))  # what reads zeros adds nothing to the explanation
    assert "All values of `gate` are 0, so `output_0`, `output_1` is the same" in note.text
    fresh = FreshHead()
    nn.init.normal_(fresh.head.weight)
    assert zero_notes(fresh) == []
