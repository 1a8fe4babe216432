"""Artifacts that take pixels and return classes: against the preprocessing computed here, and the module as it is."""

import numpy as np
import onnxruntime
import pytest
import torch
from equivalence import with_random_tensors
from torch import nn

import converter
from converter.artifacts.runtime.stamp import read_stamp
from converter.errors import ConversionError, UsageError
from converter.options import BoundaryOptions, Preprocessing

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


class Net(nn.Module):
    def __init__(self, padding: int = 0):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 3, padding=padding), nn.Linear(16, 5)

    def forward(self, image):
        return self.head(self.stem(image).relu().mean((2, 3)))


def made(padding: int = 0) -> nn.Module:
    return with_random_tensors(Net(padding)).eval()


def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (4, 3, 12, 10)).astype(np.uint8)


def expected(net: nn.Module, order: str = "rgb") -> np.ndarray:
    image = pixels()[:, ::-1] if order == "bgr" else pixels()
    image = (image / 255 - MEAN.reshape(3, 1, 1)) / STD.reshape(3, 1, 1)
    with torch.no_grad():
        return net.double()(torch.from_numpy(image)).numpy()


def run(path) -> np.ndarray:
    return onnxruntime.InferenceSession(path).run(None, {"image": pixels()})[0]


@pytest.mark.slow
@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_an_artifact_takes_pixels(tmp_path, order):
    net = made()
    report = converter.convert(
        net, to=["onnx", "tf"], output=tmp_path, input_shapes=["1,3,12,10"], embed_preprocessing=True,
        preprocessing=f"imagenet order={order}", input_type="uint8",
    )  # fmt: skip
    assert report.status == "verified"
    onnx, saved = report.artifacts
    assert (onnx.inputs[0].dtype, onnx.outputs[0].dtype) == ("uint8", "float32")
    np.testing.assert_allclose(run(onnx.path), expected(net, order), rtol=1e-4, atol=1e-5)
    # Factors, means and the order of channels are in the kernel.
    assert not {"Sub", "AddV2", "Mul", "Gather", "GatherV2", "ReverseV2", "Transpose"} & set(saved.operators)
    assert not {"Sub", "Mul", "Gather", "Transpose", "Slice"} & set(onnx.operators)
    stamp = read_stamp(onnx.path)
    assert stamp["part"]["embed_preprocessing"] is True
    again = converter.verify(net.float(), onnx.path)
    assert again.status == "verified"


@pytest.mark.slow
def test_padding_leaves_one_subtraction(tmp_path):
    report = converter.convert(
        made(1), to="tf", output=tmp_path / "net", input_shapes=["1,3,12,10"], embed_preprocessing=True,
        preprocessing="imagenet",
    )  # fmt: skip
    assert report.status == "verified"
    counts = report.artifacts[0].operators
    assert (counts.get("Sub", 0), counts.get("Mul", 0), counts.get("RealDiv", 0)) == (1, 0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["softmax", "sigmoid", "argmax"])
def test_what_is_appended(tmp_path, what):
    net, path = made(), tmp_path / "net.onnx"
    report = converter.convert(net, to="onnx", output=path, input_shapes=["1,3,12,10"], append=what)
    assert report.status == "verified"
    with torch.no_grad():
        scores = net(torch.from_numpy(pixels() / np.float32(255)))
    wanted = scores.argmax(1) if what == "argmax" else getattr(scores, what)(*([1] if what == "softmax" else []))
    actual = onnxruntime.InferenceSession(path).run(None, {"image": pixels() / np.float32(255)})[0]
    np.testing.assert_allclose(actual, wanted.numpy(), rtol=1e-5, atol=1e-6)


def test_the_callers_module_stays_as_it_was(tmp_path):
    net = made()
    converter.inspect(net, input_shapes=["1,3,12,10"], append="softmax", embed_preprocessing=True)
    assert "forward" not in vars(net)


@pytest.mark.parametrize(
    "module, options, what",
    [
        (nn.Linear(4, 3), {"embed_preprocessing": True, "input_shapes": ["1,4"]}, "Only an image of floats"),
        (made(), {"embed_preprocessing": True, "preprocessing": "mean=1,2"}, "does not fit 3 channels"),
        (made(), {"embed_preprocessing": True, "submodule": "stem"}, "Only a whole PyTorch module"),
        (nn.LSTM(4, 3), {"append": "softmax", "input_shapes": ["7,1,4"]}, "does not return one tensor"),
        (made(), {"preprocessing": "mena=3"}, "'mena=3' is unknown"),
        (made(), {"preprocessing": "scale=1/0"}, "must be finite numbers"),
        (made(), {"input_type": "uint8"}, "Only an artifact that preprocesses takes pixels"),
    ],
)
def test_what_cannot_be_done_is_refused(module, options, what):
    with pytest.raises(ConversionError, match=what):
        converter.inspect(module, **{"input_shapes": ["1,3,12,10"]} | options)


@pytest.mark.parametrize("text", ["imagenet", "imagenet fit=crop order=bgr", "mean=127.5 std=127.5 scale=1", ""])
def test_the_text_of_a_preprocessing_reads_as_the_same(text):
    made = Preprocessing.parse(text)
    assert Preprocessing.parse(made.text) == made


def test_images_of_an_artifact_that_preprocesses_stay_pixels(tmp_path):
    embedding = BoundaryOptions(preprocessing="imagenet fit=pad order=bgr", embed_preprocessing=True)
    assert embedding.of(tmp_path) == Preprocessing(fit="pad", scale=1.0)
    assert embedding.of("arrays.npz") is None
    assert BoundaryOptions(preprocessing="imagenet").of(tmp_path) == Preprocessing.parse("imagenet")


def test_a_preprocessing_by_number_and_name():
    assert Preprocessing.parse("imagenet mean=0.5 scale=1/127.5") == Preprocessing(
        mean=(0.5,), std=tuple(STD), scale=1 / 127.5
    )
    with pytest.raises(UsageError, match="order to rgb or bgr"):
        Preprocessing.parse("order=grb")
