"""The Python API as a notebook has it: what it takes, what it returns, and what a wrong argument says."""

import inspect
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import converter
from converter.errors import CheckpointError, UsageError
from converter.options import ConvertOptions, shape_texts, with_example_shapes
from converter.testing import assert_equivalent


class Net(nn.Module):
    def __init__(self, channels: int = 3):
        super().__init__()
        self.conv, self.out = nn.Conv2d(channels, 4, 3), nn.Linear(4, 5)

    def forward(self, image: Tensor, scale: Tensor) -> Tensor:
        return self.out(self.conv(image).relu().mean((2, 3))) * scale


IMAGE, SCALE = (1, 3, 8, 9), (1, 5)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A network, its ONNX file, and the result of its conversion from examples."""
    torch.manual_seed(0)
    net, path = Net().eval(), tmp_path_factory.mktemp("api") / "net.onnx"
    examples = (torch.randn(IMAGE), torch.rand(SCALE))
    return net, path, converter.convert(net, to="onnx", output=path, inputs=examples)


@pytest.mark.parametrize(
    "given, texts",
    [
        ("1,3,H,W", ("1,3,H,W",)),
        (["1,3,8,8", "m=1,5"], ("1,3,8,8", "m=1,5")),
        ((1, 3, 8, 8), ("1,3,8,8",)),
        ([1, 3, "H", "32*W"], ("1,3,H,32*W",)),
        (torch.Size([1, 3]), ("1,3",)),
        ([(1, 3), [1, 5]], ("1,3", "1,5")),
        ({"x": (1, 3), "ids": "1,T:int64"}, ("x=1,3", "ids=1,T:int64")),
        (torch.zeros(1, 7, dtype=torch.int64), ("1,7:int64",)),
        ([np.zeros((1, 3), np.float32), (1, 5)], ("1,3:float32", "1,5")),
        ((), ()),
    ],
)
def test_shapes_are_texts_sizes_or_examples(given, texts):
    assert shape_texts(given) == texts
    assert ConvertOptions.of(input_shapes=given).capture.input_shapes == texts


@pytest.mark.parametrize(
    "given, said",
    [
        (3, "input_shapes takes '1,3,224,224', (1, 3, 224, 224)"),
        ([1, None], "in which None is neither an integer nor a name of a size"),
        ([(1, 3), 2.5], "input_shapes takes '1,3,224,224'"),
        ((1, 3, 8.0, 8), "in which 8.0 is neither an integer"),
        ({"x": 3.5}, "input_shapes takes '1,3,224,224'"),
        ({"N": 1, "C": 3, "H": 8}, "not ['N', 'C', 'H'] to sizes; write (1, 3, 8)"),
        ((True, 3), "in which True is neither"),
    ],
)
def test_what_is_not_a_shape_says_what_is(given, said):
    with pytest.raises(TypeError, match=re.escape(said)):
        shape_texts(given)


@pytest.mark.parametrize(
    "keywords, said",
    [
        ({"input_shape": "1,3"}, "unknown option input_shape, did you mean input_shapes?"),
        ({"layout": "NHWC"}, "Choose from 'auto', 'nhwc', 'nchw'"),
        ({"verify": "no"}, "verify takes True or False, not 'no'"),
        ({"fixed_batch": "4"}, "fixed_batch takes a number, not '4'"),
        ({"atol": True}, "atol takes a number, not True"),
        ({"inputs": {"image": 3}}, "image takes a path, tensors or arrays"),
    ],
)
def test_a_wrong_argument_says_which_and_what_it_takes(keywords, said):
    with pytest.raises((TypeError, UsageError)) as caught:
        ConvertOptions.of(**keywords)
    assert said in str(caught.value)


def test_examples_give_shapes_unless_shapes_are_given():
    assert with_example_shapes({"inputs": {"x": torch.zeros(2, 3)}})["input_shapes"] == ("x=2,3:float32",)
    for keywords in (
        {"inputs": {"x": np.zeros(3)}},
        {"inputs": "x.npz"},
        {"inputs": torch.zeros(3), "image_size": "8"},
    ):
        assert with_example_shapes(keywords) == keywords


@pytest.mark.slow
def test_a_result_shows_itself(written):
    _, path, result = written
    assert result.verified
    assert result.artifacts["onnx"] is result.artifacts[0]
    assert result.artifacts["onnx"].path == path
    with pytest.raises(KeyError, match="the formats are onnx"):
        result.artifacts["tf"]
    assert repr(result) == f"<ConversionReport Net: verified; onnx {path}>"
    assert json.dumps(result.report)
    shown = result._repr_html_()
    for part in ("verified", str(path), "same function", "\N{CHECK MARK}"):
        assert part in shown
    assert [tuple(one.shape) for one in result.artifacts["onnx"].inputs] == [("batch", 3, 8, 9), ("batch", 5)]
    assert any("given" in one for one in result.compared_on.rounds)


@pytest.mark.slow
@pytest.mark.parametrize(
    "model, keywords",
    [
        pytest.param(lambda net: lambda: net, {}, id="a function that builds it"),
        pytest.param(lambda net: net.state_dict(), {"model": Net}, id="a state dict and its class"),
        pytest.param(
            lambda net: {"state_dict": net.state_dict(), "epoch": 3}, {"model": Net}, id="a training checkpoint"
        ),
        pytest.param(lambda net: net.state_dict(), {"factory": lambda: Net(3)}, id="a state dict and a function"),
    ],
)
def test_a_model_is_whatever_holds_or_builds_it(written, model, keywords):
    net, path, _ = written
    before = {name: value.clone() for name, value in net.state_dict().items()}
    result = converter.verify(model(net), path, **keywords)
    assert result.verified
    assert repr(result).startswith("<VerificationReport ")
    assert str(path) in result._repr_html_()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.slow
def test_a_path_with_a_class_and_the_keyword_of_before(written, tmp_path):
    net, path, _ = written
    torch.save(net.state_dict(), tmp_path / "net.pt")
    assert_equivalent(tmp_path / "net.pt", path, model=Net, factory_args={"channels": 3})
    assert converter.verify(net.state_dict(), path, weights=True).weights
    summary = converter.inspect(model=net, input_shapes=[IMAGE, SCALE])
    assert summary.rows


@pytest.mark.parametrize(
    "model, error, said",
    [
        (3, UsageError, "An object of type int is not a model"),
        ({"conv.weight": torch.zeros(1)}, CheckpointError, "in Python model=Net"),
        ({"epoch": 3}, CheckpointError, ""),
    ],
)
def test_what_is_not_a_model_says_what_is(model, error, said):
    with pytest.raises(error) as caught:
        converter.inspect(model)
    assert said in str(caught.value)


def test_the_package_lists_what_it_has():
    listed = dir(converter)
    assert {*converter.__all__, "errors", "report", "registry", "testing"} <= set(listed)
    for name in (*converter.__all__, "errors", "report", "registry", "testing"):
        found = getattr(converter, name)
        assert found.__doc__
    assert list(inspect.signature(converter.convert).parameters)[:3] == ["model", "to", "output"]
    with pytest.raises(AttributeError, match=r"no attribute 'transform'; it has .*convert"):
        converter.transform  # noqa: B018
    assert (Path(converter.__file__).parent / "py.typed").exists()


def test_an_error_that_names_options_has_their_keywords_in_its_traceback(tmp_path: Path):
    with pytest.raises(UsageError) as refused:
        converter.convert(nn.Linear(3, 2), to="onnx", output=tmp_path / "net.onnx")
    assert "--input-shape" in str(refused.value)
    assert refused.value.__notes__ == ["In Python, --input-shape is input_shapes=."]
    with pytest.raises(UsageError) as refused:
        converter.convert(nn.Linear(3, 2), to="onnx", input_shapes=(1, 3), quantize="float16")
    assert refused.value.__notes__ == ["In Python, --quantize is quantize=, --to is to=."]
