"""Kinds of networks that people come with: exact in float64; with -m zoo converted to all formats with all proofs."""

import warnings

import pytest
import torch
import transformers_rows
from equivalence import assert_same, planned, run_in_float64
from torch import Tensor, nn

import converter
from converter.capture.export import capture
from converter.errors import CaptureError, ConversionError, UnsupportedOperatorsError
from converter.rewrites.pipelines import REWRITES
from converter.verification.checked_rewrite import rewrite
from sample_models.calibration import calibrate
from sample_models.kinds import KINDS, Kind

FORMATS = ("tf", "keras", "onnx")
BOUND = 1e-10  # as the product's first proof has it: these are deep


def built(kind: Kind) -> nn.Module:
    torch.manual_seed(0)
    return calibrate(kind.build(), torch.randn(2, *kind.shape[1:]))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.title)
def test_kind_is_exact_in_float64(kind: Kind):
    model = built(kind)
    example = torch.randn(2, *kind.shape[1:])
    program = capture(model, [example])
    assert program.fixed_batch is None, program.notes
    rewritten, _ = rewrite(program, REWRITES["keras"], [example])
    inputs = torch.randn(3, *kind.shape[1:])
    expected = program.with_dtype(torch.float64).run(inputs.double())
    assert all(result.std() > 0 for result in expected if result.is_floating_point())
    (results,) = run_in_float64(planned(rewritten), [inputs])
    assert_same(results, expected, kind.title, BOUND)


def assert_verified(model: nn.Module, folder, shapes: list[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = converter.convert(model, to=FORMATS, output=folder / "artifacts", input_shapes=shapes)
    assert report.batch == "dynamic"
    told = [(a.format, a.failure, [p.summary for p in a.proofs if not p.holds]) for a in report.artifacts]
    assert report.status == "verified", told


@pytest.mark.zoo
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.title)
def test_kind_is_verified_in_every_format(kind: Kind, tmp_path):
    assert_verified(built(kind), tmp_path, [",".join(map(str, kind.shape))])


@pytest.mark.zoo
@pytest.mark.parametrize("name", transformers_rows.ENCODERS)
def test_encoder_is_verified_in_every_format(name: str, torchvision, tmp_path):
    transformers = pytest.importorskip("transformers")  # which imports torchvision, if it is there
    model, inputs = transformers_rows.encoder(transformers, name)
    shapes = [
        f"{','.join(map(str, tensor.shape))}:{str(tensor.dtype).removeprefix('torch.')}" for tensor in inputs.values()
    ]
    assert_verified(model, tmp_path, shapes)


# -- what is refused


class Within(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Outside(nn.Module):
    """Has `function` as a module of its own, so that an error has one to name."""

    def __init__(self, function):
        super().__init__()
        self.conv, self.inner = nn.Conv1d(3, 4, 3), Within(function)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.conv(x))


@torch.library.custom_op("tests_of_kinds::accelerated", mutates_args=())
def accelerated(x: Tensor) -> Tensor:
    return x * 2


@accelerated.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("tests_of_kinds::shapeless", mutates_args=())
def shapeless(x: Tensor) -> Tensor:
    return x * 2


OPERATORS = {
    "a transform to complex numbers": (lambda x: torch.view_as_real(torch.fft.rfft(x)), "aten.fft_rfft.default"),
    "a spectrogram": (
        lambda x: torch.stft(x[:, 0], 8, window=torch.ones(8), return_complex=True).abs(), "aten.stft.default",
    ),
    "complex numbers": (lambda x: torch.polar(x, x).real, "aten.polar.default"),
    "as many as are not zero": (lambda x: x.nonzero(), "aten.nonzero.default"),
    "as many as a mask says": (lambda x: x[x > 0], "aten.index.Tensor"),
    "as many as there are different ones": (torch.unique, "aten._unique2.default"),
    "an operator of an extension": (
        lambda x: torch.ops.tests_of_kinds.accelerated(x), "tests_of_kinds.accelerated.default",
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATORS)
def test_operator_is_refused_by_name_with_its_module(name, tmp_path):
    function, operator = OPERATORS[name]
    with pytest.raises(UnsupportedOperatorsError) as raised:
        converter.convert(Outside(function).eval(), to=["keras"], output=tmp_path / "m.keras", input_shapes=["1,3,20"])
    (named,) = [row for row in raised.value.operators if row[0].startswith(operator)]
    assert named[2] == "inner"
    assert "test_kinds.py" in named[3]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_forward_that_branches_by_values_is_refused_with_its_module_and_line(tmp_path):
    model = Outside(lambda x: x * 2 if x.sum() > 0 else x).eval()
    with pytest.raises(CaptureError, match="depends on tensor values") as raised:
        converter.convert(model, to=["onnx"], output=tmp_path / "m", input_shapes=["1,3,20"])
    assert raised.value.where.startswith("module `inner` (Within), ")
    assert "test_kinds.py" in raised.value.where


@pytest.mark.slow
def test_a_size_that_hangs_on_values_is_computed_in_onnx_and_refused_elsewhere(tmp_path):
    model = Outside(lambda x: x[:, :, : int(x.abs().sum()) % 5 + 1]).eval()
    options = {"input_shapes": ["1,3,20"]}
    assert converter.convert(model, to=["onnx"], output=tmp_path / "m.onnx", **options).status == "verified"
    for format, name in (("tf", "m"), ("keras", "m.keras")):
        with pytest.raises(UnsupportedOperatorsError) as raised:
            converter.convert(model, to=[format], output=tmp_path / name, **options)
        (item,) = [row for row in raised.value.operators if row[0].startswith("aten.item.default")]
        assert item[2] == "inner"
        assert "test_kinds.py" in item[3]


def test_an_operator_without_a_shape_says_what_to_register(tmp_path):
    model = Outside(lambda x: torch.ops.tests_of_kinds.shapeless(x)).eval()
    with pytest.raises(CaptureError, match="tests_of_kinds::shapeless") as raised:
        converter.convert(model, to=["onnx"], output=tmp_path / "m", input_shapes=["1,3,20"])
    assert "register_fake" in raised.value.fix
    assert "`inner`" in raised.value.where


@pytest.mark.zoo
@pytest.mark.parametrize("name", ["fasterrcnn_mobilenet_v3_large_320_fpn", "ssdlite320_mobilenet_v3_large"])
def test_detectors_that_return_as_many_boxes_as_they_find_are_refused(name, torchvision, tmp_path):
    model = torchvision.models.get_model(f"{name}", weights=None, weights_backbone=None).eval()
    with pytest.raises(ConversionError, match="depends on tensor values"):
        converter.convert(model, to=["tf"], output=tmp_path / "m", input_shapes=["1,3,64,64"])
