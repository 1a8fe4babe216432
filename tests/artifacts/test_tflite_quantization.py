"""Quantized LiteRT files: what they hold and compute, what is reported of them, and what is refused."""

import copy
import shutil

import numpy as np
import pytest
import torch
from ai_edge_litert.interpreter import Interpreter
from equivalence import with_random_tensors
from PIL import Image
from torch import nn

import converter
from converter.artifacts.runtime.stamp import read_stamp
from converter.artifacts.runtime.tflite_content import stored_tensors
from converter.artifacts.tflite_quantizer import quantize
from converter.capture.random_inputs import InputSpec
from converter.errors import UsageError
from converter.options import ConvertOptions, Preprocessing, QuantizationOptions
from converter.pipeline.quantize import COMPARED, load_calibration
from converter.report.results import Quantization, QuantizedOutput
from converter.verification.quantized import compare_quantized_weights

pytestmark = pytest.mark.slow

SHAPE = (3, 16, 20)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.SiLU(), nn.MaxPool2d(3, 2, 1))
        self.body = nn.Sequential(nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 24, 1), nn.ReLU())
        self.head = nn.Linear(24, 10)

    def forward(self, image):
        return self.head(self.body(self.stem(image)).mean((2, 3)))


def samples(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 1, (count, *SHAPE)).astype(np.float32)


@pytest.fixture(scope="module")
def net():
    return with_random_tensors(Net()).eval()


@pytest.fixture(scope="module")
def quantized(net, tmp_path_factory):
    """An int8 file with a float head, whose inputs are given with labels, which are PyTorch's own."""
    folder = tmp_path_factory.mktemp("quantized")
    given = {"image": samples(12, 1)}
    with torch.no_grad():
        given["labels"] = net(torch.from_numpy(given["image"])).argmax(1).numpy()
    report = converter.convert(
        net, to="tflite", output=f"{folder}/", input_shapes=[f"1,{','.join(map(str, SHAPE))}"], quantize="int8",
        calibrate={"image": samples(20, 0)}, inputs=given, keep_float=["head"], min_sqnr=20, min_accuracy=0.5,
    )  # fmt: skip
    return report, folder / "model_int8.tflite"


@pytest.fixture(scope="module")
def twin(net, tmp_path_factory):
    path = tmp_path_factory.mktemp("twin") / "net.tflite"
    report = converter.convert(net, to="tflite", output=path, input_shapes=[f"1,{','.join(map(str, SHAPE))}"])
    assert report.status == "verified"
    return path


def run(path, image: np.ndarray) -> np.ndarray:
    runner = Interpreter(str(path)).get_signature_runner()
    return np.concatenate([runner(image=one[None].transpose(0, 2, 3, 1))["output"] for one in image])


def decibels(expected: np.ndarray, actual: np.ndarray) -> float:
    return 10 * np.log10(np.sum(expected.astype(np.float64) ** 2) / np.sum((actual - expected) ** 2))


def test_the_report_has_the_figures_of_the_file_and_the_proofs_of_its_twin(net, quantized):
    report, path = quantized
    (artifact,) = report.artifacts
    one = artifact.quantization
    assert report.status == artifact.status == "quantized"
    assert report.exit_status == 0
    assert artifact.path == path
    assert [proof.holds for proof in artifact.proofs] == [True, True, True]
    assert one.calibrated_on == 20
    assert one.compared_on == "12 given samples"
    assert one.failures == ()
    with torch.no_grad():
        expected = net(torch.from_numpy(samples(12, 1))).numpy()
    actual = run(path, samples(12, 1))
    assert one.outputs[0].sqnr_db == pytest.approx(decibels(expected, actual), abs=0.01)
    assert (
        one.outputs[0].top1_agreement == artifact.accuracy.artifact == np.mean(expected.argmax(1) == actual.argmax(1))
    )
    assert artifact.verdict == f"quantized (float twin verified), {one.sqnr_db:.1f} dB"
    assert {layer.module.partition(".")[0] for layer in one.layers} <= {"stem", "body", "head", ""}
    assert read_stamp(path)["quantize"] == "int8"


def test_kept_modules_are_floats_and_others_integers(quantized):
    held = [t for t in stored_tensors(quantized[1].read_bytes()) if t.array.ndim > 1]
    kinds = {t.name.partition("/")[0]: t.array.dtype for t in held}
    assert kinds["head"] == np.float32
    assert kinds["stem.0"] == kinds["body.1"] == np.int8


def test_verify_reports_a_quantized_file_and_asks_what_is_enough(net, quantized, tmp_path):
    path = tmp_path / "net.tflite"
    shutil.copy(quantized[1], path)
    given = {"image": samples(4, 2)}
    enough = converter.verify(net, path, inputs=given, min_sqnr=20)
    assert (enough.status, enough.exit_status) == ("quantized", 0)
    unsaid = converter.verify(net, path, inputs=given)
    assert (unsaid.status, unsaid.exit_status) == ("not verified", 3)
    assert "PTC6511" in {note.code for note in unsaid.notes}
    other = copy.deepcopy(net)
    other.body[1].weight.data[3] *= 1.05
    report = converter.verify(other, path, inputs=given, min_sqnr=-100)
    assert report.status == "disagrees"
    assert any("steps" in failure for failure in report.quantization.failures)


def test_a_file_that_does_not_reach_what_is_demanded_is_not_put_in_place(net, twin, tmp_path):
    report = converter.convert(
        net, to="tflite", output=f"{tmp_path}/", input_shapes=[f"1,{','.join(map(str, SHAPE))}"], quantize="dynamic",
        min_sqnr=90,
    )  # fmt: skip
    assert (report.status, report.exit_status) == ("disagrees", 3)
    assert "is below --min-sqnr 90" in report.artifacts[0].quantization.failures[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "how, options, least, dtype",
    [
        ("float16", {}, 55, np.float32),
        ("dynamic", {}, 25, np.float32),
        ("int8", {"quantize_io": True}, 22, np.int8),
        ("int16x8", {}, 28, np.float32),
        ("int16x8", {"quantize_io": True}, 28, np.int16),
    ],
)
def test_each_kind_of_quantization(net, twin, tmp_path, how, options, least, dtype):
    path = tmp_path / "net.tflite"
    shutil.copy(twin, path)
    calibrated = {"calibrate": "given"} if how.startswith("int") else {}
    image = samples(8, 3)
    batches = {"image": image.transpose(0, 2, 3, 1)[:, None]}
    losses, _ = quantize(path, QuantizationOptions(quantize=how, **calibrated, **options), batches, {"schema": 1})
    told, wrong = compare_quantized_weights(twin.read_bytes(), path.read_bytes())
    assert wrong == []
    assert "each within half a step" in told
    assert all(np.isfinite(loss.sqnr_db) for loss in losses)
    (details,) = Interpreter(str(path)).get_signature_runner().get_input_details().values()
    assert details["dtype"] == dtype
    if not options:
        with torch.no_grad():
            expected = net(torch.from_numpy(image)).numpy()
        assert decibels(expected, run(path, image)) > least


def test_a_changed_weight_of_a_quantized_file_is_found(quantized, twin):
    content = bytearray(quantized[1].read_bytes())
    tensor = next(
        t for t in stored_tensors(bytes(content)) if t.name.startswith("body.1/") and t.array.dtype == np.int8
    )
    content[tensor.start] = (content[tensor.start] + 2) % 128
    _, wrong = compare_quantized_weights(twin.read_bytes(), bytes(content))
    assert len(wrong) == 1
    assert wrong[0].startswith(tensor.name)


def test_an_unknown_module_to_keep_is_refused_with_its_neighbor(twin, tmp_path):
    path = tmp_path / "net.tflite"
    shutil.copy(twin, path)
    options = QuantizationOptions(quantize="float16", keep_float=("body.11",))
    with pytest.raises(UsageError, match=r"no operator of module 'body.11'") as raised:
        quantize(path, options, {"image": samples(1, 0)[:, None]}, {})
    assert "body.1" in raised.value.fix


@pytest.mark.parametrize(
    "options, what",
    [
        ({"quantize": "int8"}, "needs typical inputs"),
        ({"quantize": "int4"}, "Unknown quantization: int4"),
        ({"calibrate": "images"}, "Only int8 and int16x8 are calibrated"),
        ({"quantize": "float16", "quantize_io": True}, "integer inputs and outputs"),
        ({"keep_float": ("head",)}, "Nothing is quantized"),
    ],
)
def test_options_that_do_not_fit_together(options, what):
    with pytest.raises(UsageError, match=what):
        QuantizationOptions(**options)


@pytest.mark.parametrize(
    "to, options, what",
    [
        ("onnx", {"quantize": "float16"}, "Only LiteRT files are quantized"),
        ("keras", {"labels": ("cat", "dog")}, "Only LiteRT files hold the names of the classes"),
        ("tflite", {"min_sqnr": 20}, "Only a quantized file has"),
        (
            "tflite",
            {"quantize": "float16", "min_sqnr": 20, "verify": False},
            "Without verification nothing is compared",
        ),
    ],
)
def test_calls_that_cannot_quantize(net, to, options, what):
    with pytest.raises(UsageError, match=what):
        converter.convert(net, to=to, **options)


class Detector(nn.Module):
    """Boxes in pixels beside scores, joined or in one array."""

    def __init__(self, joined):
        super().__init__()
        self.joined, self.head = joined, nn.Conv2d(3, 9, 4, stride=4)

    def forward(self, image):
        found = self.head(image).flatten(2).sigmoid()
        if self.joined:
            return torch.cat([found[:, :4] * 640, found[:, 4:]], 1)
        return found * torch.tensor([640.0] * 4 + [1.0] * 5)[:, None]


@pytest.mark.slow
@pytest.mark.parametrize("joined", [True, False])
def test_scores_beside_boxes_in_pixels_keep_their_scale_or_are_reported_as_lost(tmp_path, joined):
    torch.manual_seed(0)
    module, path = Detector(joined).eval(), tmp_path / "d_int8.tflite"
    given = {"image": np.random.default_rng(0).random((6, 3, 16, 16), np.float32)}
    how = {"input_shapes": (1, 3, 16, 16), "quantize": "int8", "calibrate": given}
    report = converter.convert(module, to="tflite", output=path, **how)
    one = report.artifacts[0].quantization
    assert one.outputs[0].sqnr_db > 40
    if not joined:
        assert one.outputs[0].lost.place == "[:, 4:9]"
        assert report.artifacts[0].verdict.endswith(f" {one.outputs[0].lost.sqnr_db:.1f} dB")
        assert one.sqnr_db < 10
        strict = converter.convert(module, to="tflite", output=tmp_path / "s.tflite", min_sqnr=30, **how)
        assert strict.status == "disagrees"
        assert "output[:, 4:9]" in strict.artifacts[0].quantization.failures[0]
        return
    assert one.outputs[0].lost is None
    assert "what it joins reaches" in one.in_floats[0]
    detect = Interpreter(str(path)).get_signature_runner()
    for image in given["image"]:
        (found,) = detect(image=image[None].transpose(0, 2, 3, 1)).values()
        with torch.no_grad():
            expected = module(torch.from_numpy(image)[None]).numpy()
        np.testing.assert_allclose(found[:, 4:], expected[:, 4:], atol=0.02)


def test_the_worst_output_gives_the_figure():

    outputs = (QuantizedOutput("a", 40.0, 0.1, None), QuantizedOutput("b", 12.5, 3.0, None))
    assert Quantization("int8", 1, "", "", outputs).sqnr_db == 12.5


def test_images_to_calibrate_on_are_preprocessed_once_and_compared(tmp_path):
    for number in range(3):
        Image.fromarray(np.full((20, 16, 3), 50 * number, np.uint8)).save(tmp_path / f"{number}.png")
    specs = [InputSpec("image", ("batch", *SHAPE))]
    given = {"quantize": "int8", "calibrate": tmp_path, "preprocessing": "mean=0.5 std=0.25"}
    loaded = load_calibration(ConvertOptions.of(**given), specs)
    np.testing.assert_allclose(loaded.quantization.calibrate["image"][1], (50 / 255 - 0.5) / 0.25, rtol=1e-6)
    assert loaded.proof.inputs["image"].shape == (3, *SHAPE)
    assert loaded.boundary.of(loaded.proof.inputs) is None
    embedded = load_calibration(ConvertOptions.of(**given, embed_preprocessing=True), specs)
    assert np.unique(embedded.quantization.calibrate["image"]).tolist() == [0, 50, 100]
    assert embedded.boundary.embedded == Preprocessing(mean=(0.5,), std=(0.25,))
    arrays = {**given, "calibrate": {"image": samples(80, 0)}, "preprocessing": None}
    assert load_calibration(ConvertOptions.of(**arrays), specs).proof.inputs["image"].shape == (COMPARED, *SHAPE)
