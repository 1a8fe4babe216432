"""Weights are read, written and compared one at a time; what need not run does not; formats with limits say so."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from converter import convert
from converter.artifacts import onnx_writer, tflite_writer
from converter.artifacts.runner import Runner
from converter.artifacts.runtime import onnx_file
from converter.artifacts.runtime.onnx import Reader as OnnxReader
from converter.artifacts.runtime.protocol import Tensors
from converter.artifacts.runtime.saved_model import Reader as SavedModelReader
from converter.capture import random_inputs
from converter.capture.export import capture
from converter.capture.random_inputs import Drawn, InputSpec, rounds
from converter.errors import ConversionError
from converter.ir import banded_convolutions
from converter.ir.banded_convolutions import conv2d_in_bands
from converter.verification import checked_rewrite, prove

READERS = {"onnx": OnnxReader, "tf": SavedModelReader}


class Deep(nn.Module):
    """Matrices, which the exporter transposes and renames, a convolution and a norm that is folded, and a table."""

    def __init__(self, size=48):
        super().__init__()
        self.table = nn.Embedding(50, size)
        self.layers = nn.Sequential(*(nn.Sequential(nn.Linear(size, size), nn.GELU()) for _ in range(12)))
        self.conv, self.norm = nn.Conv1d(size, size, 3), nn.BatchNorm1d(size)

    def forward(self, tokens):
        x = self.table(tokens)
        for layer in self.layers:
            x = x + layer(x)
        return self.norm(self.conv(x.mT)).mean(-1)


@pytest.fixture(scope="module")
def module():
    torch.manual_seed(0)
    return Deep().eval()


@pytest.fixture(scope="module")
def written(module, tmp_path_factory):
    report = convert(module, to=["onnx", "tf"], output=tmp_path_factory.mktemp("memory"), input_shapes=["1,9:int64"])
    assert report.status == "verified"
    return {artifact.format: artifact.path for artifact in report.artifacts}


@pytest.mark.slow
def test_an_onnx_file_written_from_parts_has_the_bytes_of_one_written_whole(module, written, monkeypatch, tmp_path):
    monkeypatch.setattr(onnx_file, "LARGE", 64)
    report = convert(module, to="onnx", output=tmp_path / "parts.onnx", input_shapes=["1,9:int64"], verify=False)
    whole, parts = written["onnx"].read_bytes(), report.artifacts[0].path.read_bytes()
    assert parts == whole == onnx.load(written["onnx"]).SerializeToString()
    assert [path.name for path in tmp_path.iterdir()] == ["parts.onnx"]


@pytest.mark.slow
def test_an_onnx_file_is_read_without_its_large_weights(written, monkeypatch):
    monkeypatch.setattr(onnx_file, "LARGE", 64)
    whole, file = onnx.load(written["onnx"]), onnx_file.OnnxFile(written["onnx"])
    assert file.model.ByteSize() < whole.ByteSize() / 4
    assert file.model.graph.node == whole.graph.node
    for one, other in zip(file.model.graph.initializer, whole.graph.initializer, strict=True):
        array, expected = file.array(one), onnx.numpy_helper.to_array(other)
        assert (one.name, array.dtype) == (other.name, expected.dtype)
        np.testing.assert_array_equal(array, expected, strict=True)


@pytest.mark.slow
@pytest.mark.parametrize("format", READERS)
def test_one_weight_at_a_time_is_in_memory(written, format, monkeypatch):
    monkeypatch.setattr(onnx_file, "LARGE", 64)
    reader = READERS[format]()
    reader.open(written[format], trusted=True)
    tensors = reader.tensors()
    assert isinstance(tensors, Tensors)
    alive: list[weakref.ref] = []
    for name in tensors:
        array = tensors[name]
        assert isinstance(array, np.ndarray)
        alive.append(weakref.ref(array))
        del array
    gc.collect()
    assert len(alive) > 12
    assert not any(one() is not None for one in alive)


@pytest.mark.slow
def test_the_proof_of_weights_holds_few_of_them(module, written, monkeypatch, tmp_path):
    most = 0

    def noted(names, read, kept=0):
        def counted(name):
            nonlocal most
            array = read(name)
            if array.nbytes > 1000:
                held.add(array.__array_interface__["data"][0])
                weakref.finalize(array, held.discard, array.__array_interface__["data"][0])
            most = max(most, len(held))
            return array

        held: set[int] = set()
        return Tensors(names, counted, kept)

    monkeypatch.setattr(prove, "KEPT", 0)
    monkeypatch.setattr(Runner, "tensors", _counting(Runner.tensors, noted))
    report = convert(module, to="onnx", output=tmp_path / "a.onnx", input_shapes=["1,9:int64"])
    assert report.status == "verified"
    assert 0 < most <= 3


def _counting(before, noted):
    def tensors(self):
        fetched = before(self)
        return noted(fetched, fetched.__getitem__)

    return tensors


@pytest.mark.slow
def test_without_verification_nothing_runs_the_rewritten_program(module, monkeypatch, tmp_path):
    ran = []
    before = checked_rewrite.run_in_float64
    monkeypatch.setattr(checked_rewrite, "run_in_float64", lambda *given: ran.append(1) or before(*given))
    convert(module, to="onnx", output=tmp_path / "a.onnx", input_shapes=["1,9:int64"], verify=False)
    assert not ran
    convert(module, to="onnx", output=tmp_path / "b.onnx", input_shapes=["1,9:int64"])
    assert ran


@pytest.mark.parametrize(
    "stride, padding, dilation, groups, kernel",
    [
        ((1, 1), (0, 0), (1, 1), 1, (3, 3)),
        ((2, 3), (1, 2), (1, 1), 2, (5, 4)),
        ((1, 2), (4, 3), (3, 2), 4, (3, 3)),
        ([2], [7], [1], 1, (7, 1)),
    ],
)
def test_a_convolution_in_bands_is_the_same(monkeypatch, stride, padding, dilation, groups, kernel):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 8, 19, 23, generator=generator, dtype=torch.float64)
    weight = torch.randn(8, 8 // groups, *kernel, generator=generator, dtype=torch.float64)
    bias = torch.randn(8, generator=generator, dtype=torch.float64)
    given = (x, weight, bias, stride, padding, dilation, groups)
    expected = torch.ops.aten.conv2d.default(*given)
    for elements in (1, 12_000, 40_000):
        monkeypatch.setattr(banded_convolutions, "AT_ONCE", elements)
        torch.testing.assert_close(conv2d_in_bands(*given), expected, rtol=1e-13, atol=1e-13)


def test_large_rounds_are_drawn_again_and_have_fewer_samples(monkeypatch):
    spec = InputSpec("image", ("batch", 3, 40, 40))
    small = list(rounds([spec], 0))
    monkeypatch.setattr(random_inputs, "LARGE", 1000)
    large = list(rounds([spec], 0, most=2))
    assert [one.samples for one in small] == [1, 3, 1, 1, 2, 2]
    assert [one.samples for one in large] == [1, 2, 1, 1, 2, 2]
    assert large[1].description == "normal, batch 2"
    for one, other in zip(small, large, strict=True):
        assert isinstance(other.arrays, Drawn)
        if one.samples == other.samples:
            np.testing.assert_array_equal(one.arrays["image"], other.arrays["image"])


def test_a_float64_program_takes_large_convolutions_in_bands(monkeypatch):
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2)).eval()
    x = torch.randn(2, 3, 20, 20)
    program = capture(net, [x])
    expected = program.with_dtype(torch.float64).run(x.double())
    monkeypatch.setattr(banded_convolutions, "AT_ONCE", 500)
    raised = program.with_dtype(torch.float64)
    assert [node.target for node in raised.graph.nodes].count(conv2d_in_bands) == 2
    torch.testing.assert_close(raised.run(x.double()), expected, rtol=1e-13, atol=1e-13)
    assert not any(node.target is conv2d_in_bands for node in program.with_dtype(torch.float32).graph.nodes)


@pytest.mark.slow
def test_a_model_too_large_for_litert_is_refused_before_it_is_run(module, monkeypatch, tmp_path):
    monkeypatch.setattr(tflite_writer, "LARGEST", 1000)
    monkeypatch.setattr(onnx_writer, "LARGEST", 1000)
    seen = []
    with pytest.raises(ConversionError, match="has room for") as error:
        convert(module, to=["onnx", "tflite"], output=tmp_path, input_shapes=["1,9:int64"], progress=_noting(seen))
    assert error.value.code == "PTC4046"
    assert "run PyTorch" not in seen
    assert not list(tmp_path.iterdir())


def _noting(seen):
    from contextlib import nullcontext

    def progress(name):
        seen.append(name)
        return nullcontext()

    return progress
