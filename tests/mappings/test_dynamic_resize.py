"""Images whose height and width are unknown until the model runs, resampled: compared at several sizes."""

import re

import pytest
import tensorflow as tf
import torch
import torch.nn.functional as F
from equivalence import (
    Call,
    assert_float32_rounds_alike,
    assert_same,
    in_float64,
    planned,
    run_in_float64,
    to_artifact,
    to_torch,
    with_random_tensors,
)
from keras.saving import load_model
from torch import nn
from torch.export import Dim

import converter
from converter.capture.import_exported import from_exported
from converter.errors import UnsupportedOperatorsError
from converter.lowering.executor import PlanExecutor

SIZES = ((2, 9, 8), (3, 14, 11), (1, 8, 16))


class Pyramid(nn.Module):
    """The coarse level brought to the size of the fine one, which no factor gives."""

    def __init__(self, mode: str, **options):
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.options = {"mode": mode, **options}

    def forward(self, x):
        fine = self.fine(x)
        return F.interpolate(self.coarse(fine), size=fine.shape[2:], **self.options) + fine


def by_factor(factor, mode, **options):
    return Call(
        lambda self, x: F.interpolate(self.conv(x), scale_factor=factor, mode=mode, **options), conv=nn.Conv2d(3, 4, 3)
    )


def to_size(size, mode, **options):
    return Call(lambda self, x: F.interpolate(self.conv(x), size, mode=mode, **options), conv=nn.Conv2d(3, 4, 1))


def adaptive_maxima(size):
    return Call(lambda self, x: F.adaptive_max_pool2d(self.conv(x), size), conv=nn.Conv2d(3, 4, 3, stride=2))


CASES = {
    "a product of sizes that nothing has": Call(
        lambda self, x: F.interpolate(self.conv(x), (x.shape[2] * x.shape[3], x.shape[3]), mode="bilinear"),
        conv=nn.Conv2d(3, 4, 1),
    ),
    "nearest by 2: a layer": by_factor(2, "nearest"),
    "nearest by a fraction": by_factor((1.5, 0.75), "nearest"),
    "nearest-exact by a fraction": by_factor((1.5, 0.75), "nearest-exact"),
    "nearest to a size": to_size((7, 13), "nearest"),
    "nearest to a size that nothing has": Call(lambda x: F.interpolate(x, (x.shape[2] + 1, 2 * x.shape[3] // 3))),
    "nearest to another value's size": Pyramid("nearest"),
    "bilinear by 2": by_factor(2, "bilinear"),
    "bilinear by a fraction": by_factor((0.6, 2.5), "bilinear"),
    "bilinear, corners aligned": by_factor((3, 2), "bilinear", align_corners=True),
    "bilinear to a size": to_size((7, 13), "bilinear"),
    "bilinear to one more and one less": Call(
        lambda x: F.interpolate(x, size=(x.shape[2] + 1, x.shape[3] // 2 - 1), mode="bilinear")
    ),
    "bilinear to another value's size": Pyramid("bilinear"),
    "bilinear to another value's size, corners aligned": Pyramid("bilinear", align_corners=True),
    "bilinear, the ratio of the sizes for the factor": by_factor(1.3, "bilinear", recompute_scale_factor=True),
    "bicubic by a fraction": by_factor((0.75, 1.5), "bicubic"),
    "bicubic, corners aligned": Pyramid("bicubic", align_corners=True),
    "bilinear, antialiased": to_size((4, 17), "bilinear", antialias=True),
    "bicubic, antialiased, by a fraction": by_factor((0.5, 1.25), "bicubic", antialias=True),
    "area": Pyramid("area"),
    "area to a size": to_size((3, 4), "area"),
    "adaptive maxima": adaptive_maxima((3, 4)),
    "adaptive maxima, more than there are": adaptive_maxima((11, 2)),
    "adaptive maxima of sequences": Call(lambda x: F.adaptive_max_pool1d(x[:, :, 0], 3)),
    "adaptive maxima of volumes": Call(lambda x: F.adaptive_max_pool3d(x[:, None], (2, 3, 5))),
    "linear": Call(lambda x: F.interpolate(x[:, :, 0], scale_factor=1.5, mode="linear")),
    "trilinear": Call(lambda x: F.interpolate(x[:, None], scale_factor=(2, 1.5, 1), mode="trilinear")),
}


def exported(module: nn.Module):
    dynamic = {0: Dim("batch", min=1), 2: Dim("height", min=8, max=64), 3: Dim("width", min=8, max=64)}
    shapes = ((dynamic,),) if isinstance(module, Call) else (dynamic,)
    return from_exported(torch.export.export(module, (torch.randn(2, 3, 9, 8),), dynamic_shapes=shapes))


def images():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, 3, height, width, generator=generator) for batch, height, width in SIZES]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_is_pytorchs_function_at_every_size(case, tmp_path):
    program = exported(with_random_tensors(CASES[case]))
    plan = planned(program)
    raised = program.with_dtype(torch.float64)
    double = [raised.run(*in_float64([x])) for x in images()]
    for results, wanted in zip(run_in_float64(plan, *([x] for x in images())), double, strict=True):
        assert_same(results, wanted, case)

    model = PlanExecutor(plan, stock=True).keras_model()
    model.save(tmp_path / "model.keras")
    reopened = load_model(tmp_path / "model.keras")
    lowered = PlanExecutor(plan).prepare()
    traced = tf.function(lowered.run_named, input_signature=lowered.signature(), autograph=False)
    for x, wanted in zip(images(), double, strict=True):
        (array,) = to_artifact([x], plan.inputs)
        single = program.run(x)
        for name, result in (("file", reopened(array)), ("function", traced(tf.constant(array))[plan.outputs[0].name])):
            assert_float32_rounds_alike(to_torch([result], plan.outputs), single, wanted, f"{case}, {name}")


def test_integer_factors_of_nearest_are_a_layer():
    plan = planned(exported(CASES["nearest by 2: a layer"].eval()))
    assert [type(layer).__name__ for layer in PlanExecutor(plan, stock=True).keras_model().layers][-1] == "UpSampling2D"
    assert not plan.movements


def test_positions_of_adaptive_maxima_are_refused_by_name():
    module = Call(lambda x: F.adaptive_max_pool2d(x, (3, 4), return_indices=True))
    with pytest.raises(UnsupportedOperatorsError, match="the positions of maxima along a dynamic size"):
        planned(exported(module))


@pytest.mark.slow
def test_onnx_keeps_the_free_sizes(tmp_path):
    exported_program = torch.export.export(
        CASES["bilinear to another value's size"].eval(),
        (torch.randn(2, 3, 10, 8),),
        dynamic_shapes=({0: Dim("batch", min=1), 2: Dim("height", min=8, max=64), 3: Dim("width", min=8, max=64)},),
    )
    torch.export.save(exported_program, tmp_path / "net.pt2")
    report = converter.convert(tmp_path / "net.pt2", to=["onnx"], output=tmp_path / "net.onnx")
    assert report.status == "verified"
    sizes = [size for row in report.compared_on.rounds for size in re.findall(r", \S+ (\d+)", row)]
    assert len(set(sizes)) > 2, report.compared_on
