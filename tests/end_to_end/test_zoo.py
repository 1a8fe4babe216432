"""Whole architectures of torchvision to every format, opened again by the tools of a user. The large ones: -m zoo."""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from user_tools import Reopened, reopen

import converter
from converter.report.results import ConversionReport
from sample_models.calibration import calibrate

pytestmark = pytest.mark.slow

FORMATS = ("tf", "keras", "onnx")
TENSORFLOW = ("tf", "keras")
BATCHES = (1, 4)


@dataclass
class Converted:
    model: nn.Module
    report: ConversionReport
    opened: Reopened
    images: dict[int, np.ndarray]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(("mobilenet_v2", 64), id="mobilenet_v2-64"),
        pytest.param(("squeezenet1_1", 64), id="squeezenet1_1-64", marks=pytest.mark.zoo),
        pytest.param(("resnet50", 224), id="resnet50", marks=pytest.mark.zoo),
        pytest.param(("mobilenet_v2", 224), id="mobilenet_v2", marks=pytest.mark.zoo),
        pytest.param(("mobilenet_v3_large", 224), id="mobilenet_v3_large", marks=pytest.mark.zoo),
        pytest.param(("vgg11_bn", 224), id="vgg11_bn", marks=pytest.mark.zoo),
    ],
)
def converted(request, torchvision, tmp_path_factory) -> Converted:
    name, size = request.param
    folder = tmp_path_factory.mktemp(name)
    torch.manual_seed(0)
    model = calibrate(getattr(torchvision.models, name)(weights=None), torch.randn(1, 3, size, size))
    report = converter.convert(model, to=FORMATS, output=folder / "artifacts", input_shapes=[f"1,3,{size},{size}"])
    assert report.status == "verified", [a.proofs for a in report.artifacts]
    rng = np.random.default_rng(0)
    images = {batch: rng.standard_normal((batch, 3, size, size), dtype=np.float32) for batch in BATCHES}
    paths = {artifact.format: artifact.path for artifact in report.artifacts if artifact.path}
    opened = reopen(folder, paths, {str(batch): {"x": array} for batch, array in images.items()})
    return Converted(model, report, opened, images)


def test_proof_in_float64_is_ten_orders_from_a_fault(converted: Converted):
    for artifact in converted.report.artifacts:
        proof = artifact.proofs[0]
        assert proof.name == "function"
        assert all(output.max_abs < 1e-10 * output.scale for output in proof.outputs), (artifact.format, proof.summary)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("format", FORMATS)
def test_one_artifact_takes_every_batch(converted: Converted, format: str, batch: int):
    with torch.inference_mode():
        expected = converted.model(torch.from_numpy(converted.images[batch])).numpy()
    (logits,) = converted.opened.outputs(format, str(batch)).values()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("format", TENSORFLOW)
def test_no_activation_is_transposed_or_gathered(converted: Converted, format: str):
    counts = converted.opened.counts(format)
    assert not [name for name in counts if name.startswith(("Transpose", "Gather", "XlaCall"))]
    (artifact,) = (artifact for artifact in converted.report.artifacts if artifact.format == format)
    assert artifact.movements == ()


def test_report_counts_what_is_in_the_graph(converted: Converted):
    for artifact in converted.report.artifacts:
        counts = converted.opened.counts(artifact.format)
        for name in ("Conv2D", "Conv", "DepthwiseConv2dNative", "Transpose", "MatMul", "Gemm"):
            assert artifact.operators.get(name, 0) == counts[name], (artifact.format, name)


def test_saved_model_holds_no_function_compiled_by_xla(converted: Converted):
    assert converted.opened.facts["tf"]["xla"] == []


def test_keras_file_trains_every_parameter(converted: Converted):
    parameters = sum(p.numel() for p in converted.model.parameters())
    assert converted.opened.facts["keras"]["trainable"] == parameters


def test_configuration_of_the_keras_file_is_small(converted: Converted):
    path = next(artifact.path for artifact in converted.report.artifacts if artifact.format == "keras")
    weights = sum(p.numel() * p.element_size() for p in converted.model.parameters())
    with zipfile.ZipFile(path) as archive:
        assert archive.getinfo("config.json").file_size < max(0.05 * weights, 1_000_000)


def test_saved_model_is_hardly_larger_than_its_weights(converted: Converted):
    folder = next(artifact.path for artifact in converted.report.artifacts if artifact.format == "tf")
    size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    weights = sum(p.numel() * p.element_size() for p in converted.model.parameters())
    layers = sum(isinstance(part, nn.Conv2d | nn.Linear) for part in converted.model.modules())
    assert size <= 1.02 * weights + 10_000 * layers
