"""Artifacts of other tools, and written by hand: which verify, what is said of those that need an explanation, and that
a wrong one never passes for a right one."""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import converter
from converter.artifacts.runner import Runner
from converter.artifacts.runtime.formats import Format
from converter.errors import ConversionError, UsageError
from converter.options import ExplanationKind
from converter.report.results import VerificationReport

SHAPE = ["1,3,12,10"]


class Classifier(nn.Module):
    """Convolution, norm, convolution, flatten, Linear: every layout matters."""

    def __init__(self, activation: Callable[[Tensor], Tensor] | None = None):
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 3)
        self.norm = nn.BatchNorm2d(5)
        self.body = nn.Conv2d(5, 4, 3, stride=2)
        self.head = nn.Linear(4 * 4 * 3, 6)
        self.activation = activation

    def forward(self, image: Tensor) -> Tensor:
        x = self.body(self.norm(self.stem(image)).relu()).relu()
        x = self.head(x.flatten(1))
        return x if self.activation is None else self.activation(x)


class Detector(nn.Module):
    """Two outputs, boxes in pixels and scores; of equal shapes by default."""

    def __init__(self, boxes: bool = True, classes: int = 4):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.first = nn.Linear(8, 4)
        self.second = nn.Linear(8, classes)
        self.boxes = boxes

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(image).relu().mean(2).transpose(1, 2)
        return self.first(x) * (10 if self.boxes else 1), self.second(x)


@pytest.fixture(scope="module")
def runners():
    """A process for each format, opened once: verification in itself takes a fresh one each time."""
    opened: dict[Format, Runner] = {}
    yield lambda format: opened.setdefault(format, Runner(format))
    for runner in opened.values():
        runner.close()


@pytest.fixture
def verify(monkeypatch, runners):
    class Kept:
        def __init__(self, format: Format):
            self.runner = runners(format)

        def __enter__(self) -> Runner:
            return self.runner

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr("converter.pipeline.verify.Runner", Kept)

    def run(model: nn.Module, artifact: Path, **options) -> VerificationReport:
        options.setdefault("input_shapes", SHAPE)
        return converter.verify(model, artifact, **options)

    return run


def seeded(module: nn.Module) -> nn.Module:
    """With norm statistics and biases that matter."""
    torch.manual_seed(0)
    for tensor in (*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())):
        with torch.no_grad():
            tensor.copy_(torch.rand(tensor.shape) * 0.5 + 0.1 if tensor.ndim == 1 else torch.randn(tensor.shape) * 0.2)
    return module.eval()


def weights(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy().copy() for name, tensor in module.state_dict().items()}


def nothing(held: dict[str, np.ndarray]) -> None:
    """Leaves the weights as they are."""


def one_value(held: dict[str, np.ndarray]) -> None:
    held["body.weight"][1, 2, 0, 1] *= 1.05


def flatten_order(held: dict[str, np.ndarray]) -> None:
    """As though the flattened map were channels first."""
    held["head.weight"] = held["head.weight"].reshape(6, 4, 4, 3).transpose(0, 2, 3, 1).reshape(6, 48)


def equal_weights_swapped(held: dict[str, np.ndarray]) -> None:
    held["norm.running_mean"], held["norm.bias"] = held["norm.bias"], held["norm.running_mean"]


def keras_classifier(held: dict[str, np.ndarray], activation: str | None = None):
    """By hand, with a model within the model and outputs as a dict."""
    import keras

    image = keras.Input((12, 10, 3), name="photo")
    stem, norm = keras.layers.Conv2D(5, 3), keras.layers.BatchNormalization(epsilon=1e-5)
    inner_image = keras.Input((12, 10, 3))
    inner = keras.Model(inner_image, keras.layers.ReLU()(norm(stem(inner_image))), name="inner")
    body, head = keras.layers.Conv2D(4, 3, strides=2, activation="relu"), keras.layers.Dense(6, activation=activation)
    x = keras.layers.Flatten()(body(inner(image)))
    model = keras.Model(image, {"scores": head(x)})
    columns = held["head.weight"].reshape(6, 4, 4, 3).transpose(0, 2, 3, 1).reshape(6, 48)
    stem.set_weights([held["stem.weight"].transpose(2, 3, 1, 0), held["stem.bias"]])
    norm.set_weights([held["norm.weight"], held["norm.bias"], held["norm.running_mean"], held["norm.running_var"]])
    body.set_weights([held["body.weight"].transpose(2, 3, 1, 0), held["body.bias"]])
    head.set_weights([columns.T, held["head.bias"]])
    return model


def write_keras(module: nn.Module, held: dict[str, np.ndarray], path: Path, **options) -> Path:
    keras_classifier(held, **options).save(path / "by_hand.keras")
    return path / "by_hand.keras"


def write_saved_model(module: nn.Module, held: dict[str, np.ndarray], path: Path) -> Path:
    """Plain TensorFlow: variables, a folded norm, two signatures."""
    import tensorflow as tf

    scale = held["norm.weight"] / np.sqrt(held["norm.running_var"] + 1e-5)
    columns = held["head.weight"].reshape(6, 4, 4, 3).transpose(2, 3, 1, 0)

    class ByHand(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = tf.Variable(held["stem.weight"].transpose(2, 3, 1, 0) * scale)
            self.shift = tf.Variable((held["stem.bias"] - held["norm.running_mean"]) * scale + held["norm.bias"])
            self.body = tf.Variable(held["body.weight"].transpose(2, 3, 1, 0))
            self.body_bias = tf.Variable(held["body.bias"])
            self.head = tf.Variable(columns.reshape(48, 6))
            self.head_bias = tf.Variable(held["head.bias"])

        @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.float32, "pixels")])
        def features(self, pixels):
            x = tf.nn.relu(tf.nn.conv2d(pixels, self.kernel, 1, "VALID") + self.shift)
            return {"map": tf.nn.relu(tf.nn.conv2d(x, self.body, 2, "VALID") + self.body_bias)}

        @tf.function(input_signature=[tf.TensorSpec([None, 12, 10, 3], tf.float32, "pixels")])
        def classify(self, pixels):
            x = tf.reshape(self.features(pixels)["map"], [-1, 48])
            return {"logits": x @ self.head + self.head_bias}

    model = ByHand()
    signatures = {"features": model.features, "classify": model.classify}
    tf.saved_model.save(model, str(path / "by_hand"), signatures=signatures)
    return path / "by_hand"


def write_tflite(module: nn.Module, held: dict[str, np.ndarray], path: Path) -> Path:
    import tensorflow as tf

    (path / "by_hand.tflite").write_bytes(tf.lite.TFLiteConverter.from_keras_model(keras_classifier(held)).convert())
    return path / "by_hand.tflite"


def loaded(module: nn.Module, held: dict[str, np.ndarray]) -> nn.Module:
    changed = seeded(type(module)())
    changed.load_state_dict({name: torch.from_numpy(array) for name, array in held.items()})
    return changed


def write_onnx(module: nn.Module, held: dict[str, np.ndarray], path: Path) -> Path:
    torch.onnx.export(
        loaded(module, held), (torch.rand(1, 3, 12, 10),), path / "plain.onnx", dynamo=True, verbose=False
    )
    return path / "plain.onnx"


def write_old_onnx(module: nn.Module, held: dict[str, np.ndarray], path: Path) -> Path:
    return export(loaded(module, held), path)


WRITERS = {
    "torch.onnx.export": (write_onnx, {}),
    "torch.onnx.export before dynamo": (write_old_onnx, {}),
    "Keras by hand": (write_keras, {}),
    "TensorFlow by hand": (write_saved_model, {"signature": "classify"}),
    "TFLite": (write_tflite, {}),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "writer, change",
    [
        *((writer, change) for writer in WRITERS for change in (nothing, one_value)),
        ("torch.onnx.export before dynamo", equal_weights_swapped),
        ("Keras by hand", flatten_order),
        ("Keras by hand", equal_weights_swapped),
    ],
)
def test_artifact_of_another_tool_verifies_until_a_weight_is_disturbed(verify, tmp_path: Path, writer: str, change):
    module = seeded(Classifier())
    held = weights(module)
    change(held)
    write, options = WRITERS[writer]
    artifact = write(module, held, tmp_path)
    report = verify(module, artifact, **options)
    assert report.status == ("verified" if change is nothing else "disagrees"), report.proofs
    assert not report.explanations
    assert any(note.code == "PTC6507" for note in report.notes)
    by_content = verify(module, artifact, weights=True, input_shapes=[], **options)
    wrong = {match.tensor for match in by_content.weights if match.found in ("changed", "missing")}
    assert by_content.status == ("disagrees" if wrong else "verified")
    # The order within a tensor and the role of one of several are not told by content, but by what is computed.
    assert wrong == {"body.weight"} if change is one_value else not wrong or change is equal_weights_swapped


# What needs an explanation


class After(nn.Module):
    """A model with something done to its inputs or to what it returns."""

    def __init__(self, model: nn.Module, after: Callable = lambda x: x, before: Callable = lambda *x: x):
        super().__init__()
        self.model, self.after, self.before = model, after, before

    def forward(self, *images: Tensor):
        return self.after(self.model(*self.before(*images)))


class Classifier2d(nn.Module):
    """A score for every pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)

    def forward(self, image: Tensor) -> Tensor:
        return self.conv(image)


class Confident(nn.Module):
    """Its scores are so large that a sigmoid gives 0 and 1 only."""

    def __init__(self, factor: float = 1e4):
        super().__init__()
        self.model, self.factor = Classifier(), factor

    def forward(self, image: Tensor) -> Tensor:
        return self.model(image) * self.factor


class Weighted(nn.Module):
    """Two inputs of one shape that are not treated alike."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(7, 4), nn.Linear(7, 4)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.left(left) - self.right(right).relu()


class Cube(nn.Module):
    """An image whose channels, height and width are equal."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        return self.conv(image).relu()


def normalized(width: float, height: float):
    return lambda results: (results[0] / torch.tensor([width, height, width, height]), results[1])


def swapped(results):
    return results[1], results[0]


def softmax(x: Tensor) -> Tensor:
    return x.softmax(1)


def export(module: nn.Module, path: Path, shapes: list[str] = SHAPE, **options) -> Path:
    """By the exporter that is fast."""
    inputs = tuple(torch.rand([int(n) for n in shape.rpartition("=")[2].split(",")]) for shape in shapes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this exporter is deprecated
        torch.onnx.export(module, inputs, path / "model.onnx", dynamo=False, **options)
    return path / "model.onnx"


EXPLAINED = {
    "a softmax added": (Classifier(), lambda m: After(m, softmax), SHAPE, {"softmax"}),
    "a softmax missing": (After(Classifier(), softmax), lambda m: m.model, SHAPE, {"softmax"}),
    "a softmax over channels": (Classifier2d(), lambda m: After(m, softmax), SHAPE, {"softmax"}),
    "a sigmoid added": (Classifier(), lambda m: After(m, torch.sigmoid), SHAPE, {"sigmoid"}),
    "a sigmoid missing": (After(Classifier(), torch.sigmoid), lambda m: m.model, SHAPE, {"sigmoid"}),
    "boxes in units of the image": (Detector(), lambda m: After(m, normalized(10, 12)), SHAPE, {"boxes"}),
    "boxes in pixels": (After(Detector(), normalized(10, 12)), lambda m: m.model, SHAPE, {"boxes"}),
    "equal-shaped outputs swapped": (Detector(), lambda m: After(m, swapped), SHAPE, {"output-order"}),
    "outputs swapped, boxes normalized": (
        Detector(), lambda m: After(After(m, normalized(10, 12)), swapped), SHAPE, {"output-order", "boxes"},
    ),
    "equal-shaped inputs swapped": (
        Weighted(), lambda m: After(m, before=lambda a, b: (b, a)), ["1,7", "1,7"], {"input-order"},
    ),
    "channels last of equal sizes": (
        Cube(),
        lambda m: After(m, lambda y: y.permute(0, 2, 3, 1), lambda x: (x.permute(0, 3, 1, 2),)),
        ["1,4,4,4"],
        {"layout"},
    ),
}  # fmt: skip


def disturbed(module: nn.Module) -> nn.Module:
    changed = copy.deepcopy(module)
    with torch.no_grad():
        next(changed.parameters())[0, 0, 1, 1] += 0.05
    return changed


WRONG = {
    "a softmax over the wrong dimension": (Classifier2d(), lambda m: After(m, lambda y: y.softmax(2)), SHAPE),
    "a softmax of twice the scores": (Classifier(), lambda m: After(m, lambda y: (2 * y).softmax(1)), SHAPE),
    "a softmax of another model": (Classifier(), lambda m: After(disturbed(m), softmax), SHAPE),
    "a sigmoid of another model": (Classifier(), lambda m: After(disturbed(m), torch.sigmoid), SHAPE),
    "a sigmoid that hides the difference": (Confident(), lambda m: After(Confident(2e4), torch.sigmoid), SHAPE),
    "boxes divided by another size": (Detector(), lambda m: After(m, normalized(12, 12)), SHAPE),
    "boxes and scores divided": (Detector(), lambda m: After(m, lambda y: (y[0] / 12, y[1] / 12)), SHAPE),
    "boxes with x and y swapped": (Detector(), lambda m: After(m, lambda y: (y[0][..., [1, 0, 3, 2]], y[1])), SHAPE),
    "outputs swapped, one of another model": (Detector(), lambda m: After(disturbed(m), swapped), SHAPE),
    "boxes beside scores of another length": (Detector(classes=6), disturbed, SHAPE),
    "one output twice": (Detector(), lambda m: After(m, lambda y: (y[0], y[0] + 0)), SHAPE),
    "height and width swapped": (
        Cube(), lambda m: After(m, lambda y: y.permute(0, 1, 3, 2), lambda x: (x.permute(0, 1, 3, 2),)), ["1,4,4,4"],
    ),
    "shifted by a pixel": (Cube(), lambda m: After(m, lambda y: y, lambda x: (x.roll(1, 3),)), ["1,4,4,4"]),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("row", EXPLAINED)
def test_what_explains_a_difference_is_said_and_must_be_accepted(verify, tmp_path: Path, row: str):
    module, other, shapes, kinds = EXPLAINED[row]
    file = export(other(seeded(module)).eval(), tmp_path, shapes)
    refused = verify(module, file, input_shapes=shapes)
    assert refused.status == "disagrees"
    assert {explanation.kind for explanation in refused.explanations} == kinds
    assert not any(explanation.accepted for explanation in refused.explanations)
    assert refused.proofs[0].summary.startswith("agrees only after")
    accepted = verify(module, file, input_shapes=shapes, accept=sorted(kinds))
    assert accepted.status == "verified", accepted.proofs
    assert all(explanation.accepted for explanation in accepted.explanations)


@pytest.mark.slow
@pytest.mark.parametrize("row", WRONG)
def test_no_explanation_makes_a_wrong_model_right(verify, tmp_path: Path, row: str):
    module, other, shapes = WRONG[row]
    file = export(other(seeded(module)).eval(), tmp_path, shapes)
    report = verify(module, file, input_shapes=shapes, accept=get_args(ExplanationKind))
    assert report.status == "disagrees"
    assert not report.explanations


# Outputs that hold several magnitudes


class BoxesBesideScores(nn.Module):
    """Boxes in pixels beside scores in one output: one row a sample, or rows or columns of positions."""

    def __init__(self, order: str, off: float = 0.0):
        super().__init__()
        self.stem, self.boxes, self.scores = nn.Conv2d(3, 8, 3), nn.Linear(8, 4), nn.Linear(8, 20)
        self.order, self.off = order, off

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image).relu()
        x = x.mean((2, 3)) if self.order == "a sample" else x.flatten(2).transpose(1, 2)
        y = torch.cat([self.boxes(x).exp() * 900, self.scores(x).sigmoid() + self.off], -1)
        return y.transpose(1, 2) if self.order == "columns" else y


class Masked(nn.Module):
    """Logits of which a mask that depends on the input hides a third."""

    def __init__(self, fill: float, added: bool = False):
        super().__init__()
        self.first, self.second = nn.Linear(12, 16), nn.Linear(16, 24)
        self.fill, self.added = fill, added

    def forward(self, x: Tensor) -> Tensor:
        y, hidden = self.second(self.first(x).relu()), x.repeat(1, 2) > 0.4
        return y + self.fill * hidden if self.added else y.masked_fill(hidden, self.fill)


class Joined(nn.Module):
    """Two heads of different magnitude, along the last axis or the one before."""

    def __init__(self, axis: int):
        super().__init__()
        self.first, self.second, self.axis = nn.Linear(12, 6), nn.Linear(12, 6), axis

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.first(x), self.second(x) * 1e-3], self.axis)


def off_by(share: float, *names: str) -> Callable[[nn.Module], nn.Module]:
    """Return another module whose weights of these names are off."""

    def change(module: nn.Module) -> nn.Module:
        changed = copy.deepcopy(module)
        with torch.no_grad():
            for name in names:
                changed.get_parameter(name).mul_(1 + share)
        return changed

    return change


def scores_off(module: nn.Module) -> nn.Module:
    changed = copy.deepcopy(module)
    changed.off = 4e-4
    return changed


LOWEST = torch.finfo(torch.float32).min
MAGNITUDES = {
    **{f"boxes beside scores, {order}": (BoxesBesideScores(order), scores_off, SHAPE)
       for order in ("a sample", "rows", "columns")},
    **{f"logits masked by {fill:.0e}": (Masked(fill), off_by(1e-3, "second.weight"), ["1,12"])
       for fill in (-torch.inf, -1e4, 1e4, -1e9, LOWEST)},
    "a mask that is added": (Masked(-1e9, True), off_by(1e-3, "second.weight"), ["1,12"]),
    "heads beside each other": (Joined(2), off_by(1e-3, "second.weight"), ["1,7,12"]),
    "heads behind each other": (Joined(1), off_by(1e-3, "second.weight"), ["1,7,12"]),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("row", MAGNITUDES)
def test_large_values_of_an_output_hide_no_fault_of_small_ones(verify, tmp_path: Path, row: str):
    module, change, shapes = MAGNITUDES[row]
    seeded(module)
    batch = {"input_names": ["x"], "dynamic_axes": {"x": {0: "batch"}}}
    right = verify(module, export(module, tmp_path, shapes, **batch), input_shapes=shapes)
    assert right.status == "verified", right.proofs
    wrong = verify(module, export(change(module), tmp_path, shapes, **batch), input_shapes=shapes)
    assert wrong.status == "disagrees", wrong.proofs


SMALL = {
    "log1p": (torch.log1p, lambda x: torch.log(1 + x)),
    "expm1": (torch.expm1, lambda x: torch.exp(x) - 1),
    "elu": (lambda x: torch.nn.functional.elu(-x), lambda x: torch.exp(-x) - 1),
    "hypot": (lambda x: torch.hypot(x, x * 0.5), lambda x: torch.sqrt(x * x * 1.25 + 1e-9)),
}


class Through(nn.Module):
    """Small numbers through a function."""

    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function, self.scale = function, nn.Parameter(torch.linspace(0.5, 1.5, 16))

    def forward(self, x: Tensor) -> Tensor:
        return self.function((x * self.scale).abs())


@pytest.mark.parametrize("row", SMALL)
def test_a_function_that_loses_the_digits_of_small_numbers_is_caught(verify, tmp_path: Path, row: str):
    right, wrong = map(Through, SMALL[row])
    batch = {"input_names": ["x"], "dynamic_axes": {"x": {0: "batch"}}}
    report = verify(right, export(wrong, tmp_path, ["1,8,16"], **batch), input_shapes=["1,8,16"])
    assert report.status == "disagrees", report.proofs


class Unclean(nn.Module):
    def __init__(self, clean: bool):
        super().__init__()
        self.head, self.clean = nn.Linear(12, 5), clean

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x.nan_to_num(0.0) if self.clean else x).relu())


def test_a_difference_on_nan_is_no_failure_but_noted(verify, tmp_path: Path):
    module, other = Unclean(False).eval(), Unclean(True).eval()
    other.load_state_dict(module.state_dict())
    alike = verify(module, export(module, tmp_path, ["1,12"]), input_shapes=["1,12"])
    assert (alike.status, [n for n in alike.notes if n.code == "PTC5508"]) == ("verified", [])
    report = verify(module, export(other, tmp_path, ["1,12"]), input_shapes=["1,12"])
    assert report.status == "verified"
    (note,) = [note for note in report.notes if note.code == "PTC5508"]
    assert "differs on NaN or infinities in the inputs: `output`" in note.text


# What cannot be compared, or is not what it says


@pytest.mark.slow
def test_outputs_beyond_the_models_are_noted_and_missing_ones_differ(verify, tmp_path: Path):
    one, both = seeded(After(Detector(), lambda y: y[0])), seeded(Detector())
    more = verify(one, export(both, tmp_path, output_names=["output", "more"]))
    assert more.status == "verified"
    assert "The artifact has outputs that the model lacks: more." in map(str, more.notes)
    fewer = verify(both, export(one, tmp_path))
    assert fewer.status == "disagrees"
    assert "output_1: the artifact has no such output" in fewer.proofs[0].failures


def test_fixed_batch_is_kept_to_and_said(verify, tmp_path: Path):
    module = seeded(Classifier())
    report = verify(module, export(module, tmp_path))
    assert report.status == "verified"
    assert "The artifact takes only batch 1." in map(str, report.notes)


class Table(nn.Module):
    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        return torch.tanh(x @ table)


def test_the_first_axis_of_an_input_without_a_batch_is_not_the_batch(tmp_path: Path):
    given, batch = (torch.rand(3, 5), torch.rand(5, 4)), torch.export.Dim("batch")
    torch.export.save(torch.export.export(Table(), given, dynamic_shapes=({0: batch}, None)), tmp_path / "table.pt2")
    names = {"input_names": ["x", "table"], "dynamic_axes": {"x": {0: "batch"}}}
    report = converter.verify(tmp_path / "table.pt2", export(Table(), tmp_path, ["3,5", "5,4"], **names))
    assert report.status == "verified"
    assert not any("batch" in str(note) for note in report.notes)
    assert any("batch 1" in each for each in report.compared_on.rounds)


@pytest.mark.slow
def test_a_missing_input_shape_is_taken_from_the_artifact(verify, tmp_path: Path):
    module = seeded(Classifier())
    artifact = export(module, tmp_path, input_names=["image"])
    report = verify(module, artifact, input_shapes=[])
    assert report.status == "verified"
    assert any("those of the artifact: 1,3,12,10:float32" in str(note) for note in report.notes)
    module.default_cfg = {"input_size": (3, 12, 12)}  # of timm; the artifact takes nothing else than its own
    assert verify(module, artifact, input_shapes=[]).status == "verified"
    with pytest.raises(UsageError, match=r"The artifact takes `image` \[1, 3, 12, 10\]"):
        verify(nn.Linear(3, 2), artifact, input_shapes=[])


@pytest.mark.parametrize(
    "shapes, message",
    [
        pytest.param(["1,3,14,10"], r"`image` is float32 \[batch, 3, 14, 10\] in the model", id="another size"),
        pytest.param(["1,3,12,10:int64"], "fails on an input", id="another type"),
    ],
)
def test_inputs_that_do_not_fit_are_an_error_with_both_shapes(verify, tmp_path: Path, shapes, message: str):
    module = seeded(Classifier())
    module.head = nn.LazyLinear(6) if "14" in shapes[0] else module.head
    if "14" in shapes[0]:
        file = export(seeded(Classifier()), tmp_path)
        module(torch.rand(1, 3, 14, 10))
    else:
        file = export(module, tmp_path)
    with pytest.raises(ConversionError, match=message):
        verify(module.eval(), file, input_shapes=shapes)


@pytest.mark.slow
def test_signatures_are_named_where_there_are_several(verify, tmp_path: Path):
    module = seeded(Classifier())
    folder = write_saved_model(module, weights(module), tmp_path)
    with pytest.raises(ConversionError, match=r"\['classify', 'features'\].*--signature"):
        verify(module, folder)
    with pytest.raises(ConversionError, match="no signature 'other'"):
        verify(module, folder, signature="other")


def lambda_layer(path: Path) -> Path:
    import keras

    image = keras.Input((12, 10, 3))
    keras.Model(image, keras.layers.Lambda(lambda x: x * 2)(image)).save(path / "lambda.keras")
    return path / "lambda.keras"


def class_of_the_users(path: Path) -> Path:
    import keras

    class Own(keras.layers.Layer):
        def call(self, x):
            return x * 2

    image = keras.Input((12, 10, 3))
    keras.Model(image, Own()(image)).save(path / "own.keras")
    return path / "own.keras"


def writes_a_file(path: Path) -> Path:
    import tensorflow as tf

    class Writes(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 12, 10, 3])])
        def __call__(self, x):
            tf.io.write_file(str(path / "written"), "by the artifact")
            return {"y": x}

    module = Writes()
    tf.saved_model.save(module, str(path / "writes"), signatures={"serving_default": module.__call__})
    return path / "writes"


def calls_python(path: Path) -> Path:
    import tensorflow as tf

    class Calls(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 12, 10, 3])])
        def __call__(self, x):
            return {"y": tf.numpy_function(lambda a: a, [x], tf.float32)}

    module = Calls()
    tf.saved_model.save(module, str(path / "calls"), signatures={"serving_default": module.__call__})
    return path / "calls"


def without_signature(path: Path) -> Path:
    import tensorflow as tf

    tf.saved_model.save(tf.Module(), str(path / "empty"))
    return path / "empty"


def cut_off(path: Path) -> Path:
    file = export(seeded(Classifier()), path)
    file.write_bytes(file.read_bytes()[:-200])
    return file


def tflite_of_nothing(path: Path) -> Path:
    (path / "nothing.tflite").write_bytes(b"\x1c\0\0\0TFL3" + bytes(range(200)))
    return path / "nothing.tflite"


def pickle_by_name(path: Path) -> Path:
    torch.save({"a": torch.ones(1)}, path / "pickle.onnx")
    return path / "pickle.onnx"


def data_elsewhere(path: Path) -> Path:
    """Weights that the file says are in a file outside its folder."""
    import onnx

    file = export(seeded(Classifier()), path)
    model = onnx.load(file)
    (path / "secret.bin").write_bytes(bytes(10_000))
    (path / "inner").mkdir()
    tensor = next(t for t in model.graph.initializer if t.name == "head.weight")
    tensor.ClearField("float_data")
    tensor.raw_data = b""
    onnx.external_data_helper.set_external_data(tensor, "../secret.bin", length=4 * 6 * 48)
    tensor.ClearField("raw_data")
    (path / "inner" / "model.onnx").write_bytes(model.SerializeToString())
    return path / "inner" / "model.onnx"


@pytest.mark.slow
@pytest.mark.parametrize(
    "write, message",
    [
        (lambda_layer, "was refused: .*[Ll]ambda"),
        (class_of_the_users, "was refused: .*Own"),
        (writes_a_file, "was refused: .* beyond the model: WriteFile"),
        (calls_python, "was refused: .* beyond the model: (Eager)?PyFunc"),
        (without_signature, "it has no signature"),
        (cut_off, "not an artifact of a known format|does not open"),
        (tflite_of_nothing, "does not open"),
        (pickle_by_name, "not an artifact of a known format"),
        (data_elsewhere, "was refused: .*secret.bin"),
    ],
)
def test_hostile_or_broken_artifacts_are_explained_and_run_nothing(verify, tmp_path: Path, write, message: str):
    with pytest.raises(ConversionError, match=message):
        verify(seeded(Classifier()), write(tmp_path))
    assert not (tmp_path / "written").exists()
