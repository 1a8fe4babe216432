"""The main job: a trained checkpoint through the real command, and the artifacts opened again as a user would."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor, nn
from user_tools import Reopened, reopen

import cli
from sample_models.calibration import calibrate
from sample_models.detect_head import build

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
FORMATS = ("tf", "keras", "onnx")
ENDINGS = {"tf": "_saved_model", "keras": ".keras", "onnx": ".onnx"}
COMMAND = Path(sys.executable).with_name("convert")
DIGITS = ("sample_models/digits_focus.pt", "--trust", "sample_models")
SHAPE = ("--input-shape", "1,1,16,16")
DETECTOR = ("sample_models/detect_head.safetensors", "--model", "sample_models/detect_head.py:build")


@dataclass
class Job:
    """A run of the command and what other tools found in the artifacts."""

    folder: Path
    name: str
    run: subprocess.CompletedProcess[str]
    opened: Reopened

    @property
    def report(self) -> dict[str, Any]:
        (model,) = json.loads(self.run.stdout)["models"]
        return model

    def artifact(self, format: str) -> Path:
        return self.folder / (self.name + ENDINGS[format])

    def outputs(self, format: str) -> dict[str, np.ndarray]:
        """By the names in the report; a Keras model's own are its layers', but their order is the same."""
        given = self.opened.outputs(format, "0")
        (artifact,) = (artifact for artifact in self.report["artifacts"] if artifact["format"] == format)
        names = [output["name"] for output in artifact["outputs"]]
        return dict(zip(names, given.values(), strict=True)) if format == "keras" else given

    def facts(self, format: str) -> dict[str, Any]:
        return self.opened.facts[format]

    def counts(self, format: str) -> Counter[str]:
        return self.opened.counts(format)


def real_run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMAND, *arguments], cwd=folder, capture_output=True, text=True, check=False)


def convert_all(folder: Path, name: str, arrays: dict[str, np.ndarray], *arguments: str) -> Job:
    (folder / "sample_models").symlink_to(REPOSITORY / "sample_models")
    to = [part for format in FORMATS for part in ("--to", format)]
    run = real_run(folder, *arguments, *to, "--json")
    assert run.returncode == 0, run.stderr
    work = folder.with_name(f"{folder.name}-reopened")
    work.mkdir()
    opened = reopen(work, {format: folder / (name + ENDINGS[format]) for format in FORMATS}, {"0": arrays})
    return Job(folder, name, run, opened)


@pytest.fixture(scope="module")
def holdback() -> dict[str, np.ndarray]:
    with np.load(REPOSITORY / "sample_models/digits_holdback.npz") as archive:
        return dict(archive)


@pytest.fixture(scope="module")
def digits(tmp_path_factory, holdback) -> Job:
    options = (*DIGITS, *SHAPE, "--inputs", "sample_models/digits_holdback.npz")
    return convert_all(tmp_path_factory.mktemp("digits"), "digits_focus", holdback, *options)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).random((3, 3, 64, 96), dtype=np.float32)


@pytest.fixture(scope="module")
def detector(tmp_path_factory, images) -> Job:
    options = (*DETECTOR, "--input-shape", "1,3,64,96")
    return convert_all(tmp_path_factory.mktemp("detector"), "detect_head", {"images": images}, *options)


# The trained classifier


@pytest.mark.parametrize("format", FORMATS)
def test_every_held_back_digit_is_taken_for_the_same_as_by_pytorch(digits: Job, holdback, format: str):
    model = torch.load(REPOSITORY / DIGITS[0], weights_only=False)
    with torch.inference_mode():
        expected = model(torch.from_numpy(holdback["images"])).numpy()
    logits = digits.outputs(format)["output"]
    assert logits.shape == (360, 10)
    assert (logits.argmax(1) == expected.argmax(1)).all()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * abs(expected).max())
    assert (logits.argmax(1) == holdback["labels"]).mean() > 0.98


@pytest.mark.parametrize("format", FORMATS)
def test_focus_is_one_space_to_depth_before_the_first_convolution(digits: Job, format: str):
    stem = [operator for operator in digits.facts(format)["stem"] if operator != "Placeholder"]
    assert stem == ["SpaceToDepth"]
    assert digits.counts(format)["SpaceToDepth"] == 1


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_moves_data_but_the_blocks_own_concatenations(digits: Job, format: str):
    counts = digits.counts(format)
    moving = ("StridedSlice", "Slice", "Transpose", "Gather", "GatherV2", "GatherNd", "DepthToSpace")
    assert not {operator: counts[operator] for operator in moving if counts[operator]}
    assert counts["ConcatV2"] + counts["Concat"] == 3, "one for each CSP and SPPF block"


@pytest.mark.parametrize("format, channels", [("tf", -1), ("keras", -1), ("onnx", 1)])
def test_image_has_its_channels_where_the_format_wants_them(digits: Job, format: str, channels: int):
    shape = digits.facts(format)["inputs"]["images"]
    assert shape[channels] == 1
    assert sorted(n for n in shape if isinstance(n, int)) == [1, 16, 16], "the batch is free"


def test_keras_file_holds_stock_layers_with_pytorchs_names_and_parameters(digits: Job):
    facts = digits.facts("keras")
    model = torch.load(REPOSITORY / DIGITS[0], weights_only=False)
    paths = [name for name, part in model.named_modules() if list(part.parameters(recurse=False))]
    weighted = {path.replace(".", "_") for path in paths}
    separable = {"stages_2_depthwise", "stages_2_pointwise"}  # one layer, under the name of the second
    assert weighted - {"stages_2_depthwise"} <= set(facts["layers"])
    assert separable & set(facts["layers"]) == {"stages_2_pointwise"}
    assert facts["trainable"] == sum(p.numel() for p in model.parameters())
    assert all(module.startswith("keras.") for module in facts["classes"])
    assert not facts["xla"]


def test_inference_graphs_hold_no_batch_norm(digits: Job):
    assert digits.counts("tf")["Rsqrt"] == 0
    assert digits.counts("onnx")["BatchNormalization"] == 0


def test_folder_holds_the_artifacts_and_nothing_else(digits: Job):
    written = {f"digits_focus{ending}" for ending in ENDINGS.values()}
    assert {p.name for p in digits.folder.iterdir()} == {"sample_models"} | written


def test_report_tells_the_whole_story(digits: Job):
    report = digits.report
    assert (report["schema"], report["status"], report["batch"]) == (1, "verified", "dynamic")
    assert report["parameters"] == 36634
    named = {(rewrite["name"], rewrite["module"]) for rewrite in report["rewrites"]}
    assert ("Focus -> SpaceToDepth", "stem") in named
    assert any("stem.unit.conv" in rewrite["description"] for rewrite in report["rewrites"])
    assert [artifact["format"] for artifact in report["artifacts"]] == list(FORMATS)
    for artifact in report["artifacts"]:
        assert artifact["status"] == "verified"
        assert Path(artifact["path"]) == Path(f"digits_focus{ENDINGS[artifact['format']]}")
        assert [(proof["name"], proof["holds"]) for proof in artifact["proofs"]] == [
            ("function", True), ("artifact", True), ("weights", True),
        ]  # fmt: skip
        assert artifact["accuracy"]["samples"] == artifact["accuracy"]["same_predictions"] == 360
        assert artifact["accuracy"]["source"] == artifact["accuracy"]["artifact"]
        assert artifact["operators"]["SpaceToDepth"] == 1
        assert artifact["movements"] == []
        (output,) = artifact["outputs"]
        assert (output["name"], output["shape"], output["dtype"]) == ("output", ["batch", 10], "float32")
    channels_last, _, as_pytorch = ((a["inputs"][0]["shape"], a["inputs"][0]["layout"]) for a in report["artifacts"])
    assert channels_last == (["batch", 16, 16, 1], "channels_last")
    assert as_pytorch == (["batch", 1, 16, 16], "pytorch")


def test_person_reads_on_standard_error_what_came_of_it(digits: Job):
    for part in ("verified", "all of 360 predictions the same", "Focus -> SpaceToDepth", "images", "channels last"):
        assert part in digits.run.stderr
    assert "Traceback" not in digits.run.stderr


# The detector


@pytest.mark.parametrize("format", FORMATS)
def test_detector_gives_every_output_under_its_name(detector: Job, images, format: str):
    from safetensors.torch import load_file

    model = build().eval()
    model.load_state_dict(load_file(REPOSITORY / DETECTOR[0]))
    with torch.inference_mode():
        boxes, raw = model(torch.from_numpy(images))
    expected = {"output_0": boxes, "output_1_0": raw[0], "output_1_1": raw[1], "output_1_2": raw[2]}
    given = detector.outputs(format)
    assert set(given) == set(expected)
    for name, tensor in expected.items():
        scale = tensor.abs().max().item()
        np.testing.assert_allclose(given[name], tensor.numpy(), rtol=0, atol=1e-3 * scale, err_msg=name)


@pytest.mark.parametrize("format", FORMATS)
def test_detectors_focus_is_one_space_to_depth(detector: Job, format: str):
    assert [op for op in detector.facts(format)["stem"] if op not in ("Placeholder", "Pad")] == ["SpaceToDepth"]


def test_detectors_backbone_moves_nothing(detector: Job):
    for artifact in detector.report["artifacts"]:
        assert {movement["module"] for movement in artifact["movements"]} <= {"detect", ""}, (
            "only the head, and outputs"
        )


# `convert verify`


@pytest.fixture
def command(monkeypatch, digits: Job) -> Callable[..., Result]:
    """The command within this process, where the digits were converted."""
    monkeypatch.chdir(digits.folder)
    return lambda *arguments: CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def change_saved_model(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    import tensorflow as tf

    prefix = str(path / "variables/variables")
    reader = tf.train.load_checkpoint(prefix)
    values = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    (stem,) = (name for name in values if "stem..unit..conv..weight" in name)  # its escape of a dot
    values[stem] = change(values[stem])
    tf.raw_ops.SaveV2(
        prefix=prefix, tensor_names=list(values), shape_and_slices=[""] * len(values), tensors=list(values.values())
    )


def change_keras_file(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    import io

    import h5py

    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    weights = io.BytesIO(members["model.weights.h5"])
    with h5py.File(weights, "r+") as file:
        stem = file["layers/conv2d/vars/0"]  # the first convolution; groups are numbered by class
        assert stem.shape == (3, 3, 4, 16)
        stem[...] = change(stem[...])
    members["model.weights.h5"] = weights.getvalue()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def change_onnx_file(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    model = onnx.load(path)
    first = next(node for node in model.graph.node if node.op_type == "Conv").input[1]
    (stem,) = (tensor for tensor in model.graph.initializer if tensor.name == first)
    kernel = onnx.numpy_helper.to_array(stem).transpose(2, 3, 1, 0)
    changed = np.ascontiguousarray(change(kernel).transpose(3, 2, 0, 1))
    stem.CopyFrom(onnx.numpy_helper.from_array(changed, stem.name))
    onnx.save(model, path)


CHANGES = {"tf": change_saved_model, "keras": change_keras_file, "onnx": change_onnx_file}


def one_ulp(kernel: np.ndarray) -> np.ndarray:
    """Nothing that outputs would show."""
    kernel = kernel.copy()
    kernel[1, 1, 0, 0] = np.nextafter(kernel[1, 1, 0, 0], np.float32(np.inf))
    return kernel


def sixteen_ulp(kernel: np.ndarray) -> np.ndarray:
    for _ in range(16):
        kernel = one_ulp(kernel)
    return kernel


def focus_order(kernel: np.ndarray) -> np.ndarray:
    """As though the input channels had stayed in the order of PyTorch's Focus."""
    return kernel[:, :, [0, 2, 1, 3]]


def copied(artifact: Path, to: Path) -> Path:
    return Path(shutil.copytree(artifact, to) if artifact.is_dir() else shutil.copy2(artifact, to))


@pytest.mark.parametrize("format", FORMATS)
def test_verify_agrees_with_what_convert_wrote(command, digits: Job, format: str):
    result = command(
        "verify", *DIGITS, digits.artifact(format), "--inputs", "sample_models/digits_holdback.npz", "--json"
    )
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert [proof["name"] for proof in report["proofs"]] == ["artifact", "weights"]
    assert report["status"] == "verified"
    assert report["accuracy"]["same_predictions"] == 360


@pytest.mark.parametrize(
    "format, change, failing",
    [
        pytest.param("tf", focus_order, {"artifact", "weights"}, id="tf: Focus not permuted"),
        pytest.param("keras", focus_order, {"artifact", "weights"}, id="keras: Focus not permuted"),
        pytest.param("onnx", focus_order, {"artifact", "weights"}, id="onnx: Focus not permuted"),
        pytest.param("tf", sixteen_ulp, {"weights"}, id="tf: one folded weight, 16 ulp"),
        pytest.param("keras", one_ulp, {"weights"}, id="keras: one weight, its last bit"),
        pytest.param("onnx", sixteen_ulp, {"weights"}, id="onnx: one folded weight, 16 ulp"),
    ],
)
def test_verify_finds_a_disturbed_weight(command, digits: Job, tmp_path: Path, format, change, failing):
    artifact = copied(digits.artifact(format), tmp_path / f"disturbed{ENDINGS[format]}")
    CHANGES[format](artifact, change)
    result = command("verify", *DIGITS, artifact, "--json")
    assert result.exit_code == 3, result.stderr
    report = json.loads(result.stdout)
    assert {proof["name"] for proof in report["proofs"] if not proof["holds"]} == failing
    assert report["status"] == "disagrees"
    assert "verified" not in result.stderr


def test_verify_takes_the_artifact_of_pytorchs_own_exporter(command, tmp_path: Path):
    model = torch.load(REPOSITORY / DIGITS[0], weights_only=False)
    file = tmp_path / "plain.onnx"
    torch.onnx.export(model, (torch.rand(2, 1, 16, 16),), file, dynamo=True, verbose=False)
    result = command("verify", *DIGITS, file, *SHAPE, "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert [proof["name"] for proof in report["proofs"]] == ["artifact"]
    assert any("only batch 2" in note["text"] for note in report["notes"])
    assert any(note["code"] == "PTC6507" for note in report["notes"])


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(12, 5, 3)
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        focus = torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)
        return self.head(self.conv(focus).relu().mean((2, 3)))


@pytest.mark.parametrize("in_order, status", [(True, 0), (False, 3)], ids=["right", "input channels not permuted"])
def test_verify_judges_a_model_written_by_hand(command, tmp_path: Path, in_order: bool, status: int):
    import keras

    torch.manual_seed(0)
    torch_model = Tiny()
    torch.save(torch_model.state_dict(), tmp_path / "tiny.pt")
    kernel = torch_model.conv.weight.detach().numpy().transpose(2, 3, 1, 0)
    if in_order:
        blocks = kernel.reshape(3, 3, 4, 3, 5)
        kernel = blocks[:, :, [0, 2, 1, 3]].reshape(3, 3, 12, 5)
    image = keras.Input((18, 14, 3))
    squares = keras.ops.reshape(image, (-1, 9, 2, 7, 2, 3))
    squares = keras.ops.reshape(keras.ops.transpose(squares, (0, 1, 3, 2, 4, 5)), (-1, 9, 7, 12))
    conv, head = keras.layers.Conv2D(5, 3, activation="relu"), keras.layers.Dense(4)
    model = keras.Model(image, head(keras.layers.GlobalAveragePooling2D()(conv(squares))))
    conv.set_weights([kernel, torch_model.conv.bias.detach().numpy()])
    head.set_weights([torch_model.head.weight.detach().numpy().T, torch_model.head.bias.detach().numpy()])
    model.save(tmp_path / "by_hand.keras")
    result = command(
        "verify", tmp_path / "tiny.pt", tmp_path / "by_hand.keras",
        "--model", f"{Path(__file__)}:Tiny", "--input-shape", "1,3,18,14",
    )  # fmt: skip
    assert result.exit_code == status, result.stderr


# What does not agree


@pytest.mark.parametrize("kept", [False, True], ids=["not kept", "--keep-failed"])
def test_what_does_not_agree_is_not_put_in_place(command, digits: Job, tmp_path: Path, kept: bool):
    before = digits.artifact("onnx").read_bytes()
    target = copied(digits.artifact("onnx"), tmp_path / "digits.onnx")
    strict = ("--inputs", "sample_models/digits_holdback.npz", "--atol", "0", "--rtol", "0")
    keep = ("--keep-failed",) if kept else ()
    result = command(*DIGITS, *SHAPE, "--to", "onnx", "-o", target, "--json", *strict, *keep)
    assert result.exit_code == 3, result.stderr
    (model,) = json.loads(result.stdout)["models"]
    (artifact,) = model["artifacts"]
    assert artifact["status"] == "disagrees"
    assert [proof["holds"] for proof in artifact["proofs"]] == [True, False, True]
    assert target.read_bytes() == before
    expected = {"digits.onnx", "digits.onnx.failed"} if kept else {"digits.onnx"}
    assert {p.name for p in tmp_path.iterdir()} == expected
    assert artifact["path"] == (str(tmp_path / "digits.onnx.failed/digits.onnx") if kept else None)


def test_verify_to_the_last_bit_fails_on_the_same_artifact(command, digits: Job):
    result = command("verify", *DIGITS, digits.artifact("tf"), "--atol", "0", "--rtol", "0")
    assert result.exit_code == 3


def test_converting_again_gives_the_same_bytes(command, digits: Job):
    before = {path: path.read_bytes() for path in files(digits.artifact("tf"))}
    result = command(*DIGITS, *SHAPE, "--to", "tf", "--no-verify")
    assert result.exit_code == 0, result.stderr
    assert "not verified" in result.stderr
    assert {path: path.read_bytes() for path in files(digits.artifact("tf"))} == before


@pytest.mark.parametrize("keep, left", [((), 0), (("--keep-batchnorm",), 3)], ids=["folded", "kept"])
def test_norms_of_every_kind_are_folded_or_kept_as_asked(tmp_path, monkeypatch, keep, left):
    """In ONNX, whose exporter would fold those that we leave."""
    monkeypatch.chdir(tmp_path)
    decoder = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.ConvTranspose2d(8, 6, 4, 2, groups=2, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4), nn.BatchNorm1d(4),
    )  # fmt: skip
    calibrate(decoder, torch.randn(8, 3, 9, 11))
    torch.save(decoder.eval(), "decoder.pt")
    result = CliRunner().invoke(cli.main, ["decoder.pt", "--to", "onnx", "--input-shape", "1,3,9,11", *keep])
    assert result.exit_code == 0, result.stderr
    operators = Counter(node.op_type for node in onnx.load("decoder.onnx").graph.node)
    assert operators["BatchNormalization"] == left
    assert operators["ConvTranspose"] == operators["Conv"] == 1


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_command_stands_under_both_names():
    assert os.access(COMMAND, os.X_OK)
    assert os.access(COMMAND.with_name("pt-convert"), os.X_OK)
