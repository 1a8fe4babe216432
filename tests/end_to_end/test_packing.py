"""Spellings of Focus and its inverse: what is left of them in each format, and that it computes the same."""

import numpy as np
import pytest
import torch
from equivalence import Call, examples
from systems_in_formats import in_format, program_of, rewritten
from torch import nn

YOLOV5 = ((0, 0), (1, 0), (0, 1), (1, 1))
IMAGE = (2, 3, 8, 12)
SPACE_TO_DEPTH, DEPTH_TO_SPACE = {"SpaceToDepth": 1}, {"DepthToSpace": 1}
CUTS = {"StridedSlice", "Slice"}  # of the image, or of a shape


def focus(x, first=(0, 0), ends=(None, None)):
    (r, c), (height, width) = first, ends
    return torch.cat([x[..., r + i : height : 2, c + j : width : 2] for i, j in YOLOV5], 1)


def nested(x):
    return torch.cat([torch.cat([x[:, :, r::2] for r in (0, 1)], 1)[..., c::2] for c in (0, 1)], 1)


def stacked(x):
    return torch.stack([x[..., r::2, c::2] for r, c in YOLOV5], 2).flatten(1, 2)


def unfolded(x):
    n, c, h, w = x.shape
    return x.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 1, 4, 5, 2, 3).reshape(n, 4 * c, h // 2, w // 2)


def assigned(x):
    n, c, h, w = x.shape
    y = x.new_zeros(n, c // 4, 2 * h, 2 * w)
    for part, (r, q) in zip(x.chunk(4, 1), YOLOV5, strict=True):
        y[..., r::2, q::2] = part
    return y


def before(*layers, packed=focus):
    return Call(lambda self, x: self.layers(packed(x)), layers=nn.Sequential(*layers))


ROWS = {
    "a convolution": (before(nn.Conv2d(12, 8, 3)), IMAGE, SPACE_TO_DEPTH),
    "a convolution in groups": (
        before(nn.Conv2d(12, 8, 3, groups=4), nn.ReLU(), nn.Conv2d(8, 5, 1)), IMAGE, SPACE_TO_DEPTH
    ),
    "a depthwise convolution with a multiplier": (
        before(nn.Conv2d(12, 24, 3, groups=12), nn.ReLU(), nn.Conv2d(24, 5, 1)), IMAGE, SPACE_TO_DEPTH
    ),
    "a group norm": (before(nn.GroupNorm(4, 12), nn.Conv2d(12, 8, 3)), IMAGE, SPACE_TO_DEPTH),
    "a transposed convolution": (before(nn.ConvTranspose2d(12, 8, 3)), IMAGE, SPACE_TO_DEPTH),
    "nested slices": (before(nn.Conv2d(12, 8, 3), packed=nested), IMAGE, SPACE_TO_DEPTH),
    "stacked slices": (before(nn.Conv2d(12, 8, 3), packed=stacked), IMAGE, SPACE_TO_DEPTH),
    "Tensor.unfold": (before(nn.Conv2d(12, 8, 3), packed=unfolded), IMAGE, SPACE_TO_DEPTH),
    "slices with stops": (
        before(nn.Conv2d(12, 8, 3), packed=lambda x: focus(x, ends=(8, 10))), (2, 3, 11, 14), SPACE_TO_DEPTH
    ),
    "slices with an offset": (
        before(nn.Conv2d(12, 8, 3), packed=lambda x: focus(x, first=(1, 2))), (2, 3, 9, 14), SPACE_TO_DEPTH
    ),
    "assigned slices": (
        Call(lambda self, x: self.b(assigned(self.a(x))), a=nn.Conv2d(3, 12, 3), b=nn.Conv2d(3, 5, 3)),
        IMAGE,
        DEPTH_TO_SPACE,
    ),
}  # fmt: skip


@pytest.mark.parametrize("format", ["tf", "keras", "onnx"])
@pytest.mark.parametrize("row", ROWS)
def test_one_operator_moves_elements(row, format, tmp_path):
    module, shape, expected = ROWS[row]
    program = program_of(module, [shape])
    inputs = examples([shape])
    run, moves = in_format(rewritten(program, format, inputs, False), format, inputs, tmp_path / "a.onnx")
    allowed = CUTS | {"DepthwiseConv2dNative", "Pad"}  # ConvTranspose crops in TensorFlow
    assert {name: n for name, n in moves.items() if name not in allowed} == expected
    assert sum(moves.get(name, 0) for name in CUTS) <= 2
    (exact,) = program.with_dtype(torch.float64).run(*[x.double() for x in inputs])
    np.testing.assert_allclose(run(inputs)[0], exact.numpy(), rtol=0, atol=2e-6 * float(exact.abs().max()))


@pytest.mark.parametrize("format", ["tf", "keras"])
def test_only_an_output_that_shows_the_order_is_gathered(format, tmp_path):
    module = Call(lambda self, x: (lambda y: (self.conv(y), y))(focus(x)), conv=nn.Conv2d(12, 8, 3))
    program = program_of(module, [IMAGE])
    inputs = examples([IMAGE])
    ready = rewritten(program, format, inputs, False)
    (reordered,) = ready.graph.find_nodes(op="call_function", target=torch.ops.converter.reorder_channels.default)
    assert [user.op for user in reordered.users] == ["output"]
    _, moves = in_format(ready, format, inputs, tmp_path / "a.onnx")
    assert {name: n for name, n in moves.items() if name not in CUTS} == {"GatherV2": 1, "SpaceToDepth": 1}
