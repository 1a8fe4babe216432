"""Spellings of Focus and its inverse: what is left of them in each format, and that it computes the same."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from equivalence import Call, examples
from systems_in_formats import in_format, program_of, rewritten
from torch import nn

from converter.options import LoadOptions
from converter.pipeline.clock import Clock
from converter.pipeline.load_model import load_model

YOLOV5 = ((0, 0), (1, 0), (0, 1), (1, 1))
IMAGE = (2, 3, 8, 12)
FORMATS = ("tf", "keras", "onnx")
SPACE_TO_DEPTH, DEPTH_TO_SPACE, MOVE = (
    {format: {name: 1} for format in FORMATS} for name in ("SpaceToDepth", "DepthToSpace", "Transpose")
)
NOTHING: dict[str, dict[str, int]] = {format: {} for format in FORMATS}
# ONNX Runtime transposes blocks with channels first slower than it gathers or slices them
GATHERED, SLICED = {"onnx": {"SpaceToDepth": 1, "Gather": 1}}, {"onnx": {"Concat": 1}}
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


def selected(x):
    rows, columns = ([torch.arange(i, x.shape[d], 2) for i in (0, 1)] for d in (2, 3))
    return torch.cat([x.index_select(2, rows[r])[..., columns[c]] for r, c in YOLOV5], 1)


def gathered(x):
    at = torch.arange(x.shape[2] * x.shape[3]).view(x.shape[2:])
    places = [at[r::2, c::2].flatten().expand(*x.shape[:2], -1) for r, c in YOLOV5]
    packed = torch.cat([x.flatten(2).gather(2, each) for each in places], 1)
    return packed.unflatten(2, (x.shape[2] // 2, x.shape[3] // 2))


def masked(x):
    rows, columns = (torch.arange(n) % 2 for n in x.shape[2:])
    return torch.cat([x[:, :, rows == r][..., columns == c] for r, c in YOLOV5], 1)


def strided(x):
    b, c, h, w = x.shape
    return x.as_strided((b, c, 2, 2, h // 2, w // 2), (c * h * w, h * w, w, 1, 2 * w, 2)).flatten(1, 3)


def one_place_each(channels):
    """The kernel of a pixel shuffle by 2, that of a pixel unshuffle too."""
    return torch.eye(4 * channels).view(4 * channels, channels, 2, 2)


def in_branches(x, branches):
    return torch.cat([branch(part) for branch, part in zip(branches, x.chunk(len(branches), 1), strict=True)], 1)


class Branches(nn.Module):
    """Convolutions of parts, each before a norm and an activation."""

    def __init__(self):
        super().__init__()
        self.stem, self.out = nn.Conv2d(3, 32, 1), nn.Conv2d(64, 4, 1)
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(16, 32, 3, bias=False), nn.BatchNorm2d(32), nn.SiLU()) for _ in range(2)
        )

    def forward(self, x):
        return self.out(in_branches(self.stem(x), self.branches))


def rectangles(x):
    return torch.cat([x[..., i::2, j::3] for j in range(3) for i in range(2)], 1)


def of_a_sequence(x):
    return torch.cat([x[..., i::4] for i in (0, 2, 1, 3)], 1)


def of_a_volume(x):
    return torch.cat([x[..., i::2, j::2, k::2] for k in (0, 1) for j in (0, 1) for i in (0, 1)], 1)


class PatchMerging(nn.Module):
    """Swin's, as published: an image of tokens, channels last."""

    def __init__(self, dim, resolution):
        super().__init__()
        self.resolution = resolution
        self.embed = nn.Linear(dim, dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim)

    def forward(self, x):
        (h, w), (b, _, c) = self.resolution, x.shape
        x = self.embed(x).view(b, h, w, c)
        x0 = x[:, 0::2, 0::2, :]
        x1 = x[:, 1::2, 0::2, :]
        x2 = x[:, 0::2, 1::2, :]
        x3 = x[:, 1::2, 1::2, :]
        x = torch.cat([x0, x1, x2, x3], -1)
        x = x.view(b, -1, 4 * c)
        return self.reduction(self.norm(x))


class ImageMerging(PatchMerging):
    """The same of an image that needs no view, as torchvision has it."""

    def __init__(self, dim):
        super().__init__(dim, None)

    def forward(self, x):
        x = self.embed(x)
        x = torch.cat([x[..., i::2, j::2, :] for j in (0, 1) for i in (0, 1)], -1)
        return self.reduction(self.norm(x))


class Shuffled(nn.Module):
    """Two convolutions and what they read, added, then a pixel shuffle."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(n, 64, 3, padding=1) for n in (3, 64, 64))
        self.d = nn.Conv2d(16, 5, 3)

    def forward(self, x):
        a = self.a(x)
        return self.d(F.pixel_shuffle(self.b(a.relu()) + self.c(a) + a, 2))


def unshuffled_by_columns(x):
    """Columns of a block before its rows, in a view."""
    b, c, h, w = x.shape
    return x.view(b, 2, 2, c // 4, h, w).permute(0, 3, 4, 2, 5, 1).reshape(b, c // 4, 2 * h, 2 * w)


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
    "selected rows and columns": (before(nn.Conv2d(12, 8, 3), packed=selected), IMAGE, SPACE_TO_DEPTH),
    "gathered positions": (before(nn.Conv2d(12, 8, 3), packed=gathered), IMAGE, SPACE_TO_DEPTH),
    "masks of rows and columns": (before(nn.Conv2d(12, 8, 3), packed=masked), IMAGE, SPACE_TO_DEPTH),
    "a view by strides": (before(nn.Conv2d(12, 8, 3), packed=strided), IMAGE, SPACE_TO_DEPTH),
    "a fixed kernel": (
        before(nn.Conv2d(12, 8, 3), packed=lambda x: F.conv2d(x, one_place_each(3), stride=2)), IMAGE, SPACE_TO_DEPTH
    ),
    "windows of one pixel": (
        before(nn.Conv2d(12, 8, 3), packed=lambda x: F.fold(F.unfold(x, 2, stride=2), (4, 6), 1)), IMAGE, SPACE_TO_DEPTH
    ),
    "an inverse by a fixed kernel": (
        nn.Sequential(
            nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.ReLU(),
            Call(lambda self, x: F.conv_transpose2d(x, self.kernel, stride=2), kernel=one_place_each(3)),
            nn.Conv2d(3, 4, 3),
        ), IMAGE, DEPTH_TO_SPACE | {"onnx": {}}
    ),
    "an inverse by a fixed kernel of many channels": (
        nn.Sequential(
            nn.Conv2d(3, 68, 3), nn.ReLU(),
            Call(lambda self, x: F.conv_transpose2d(x, self.kernel, stride=2), kernel=one_place_each(17)),
            nn.Conv2d(17, 4, 3),
        ), IMAGE, DEPTH_TO_SPACE
    ),
    "an inverse by a fixed kernel, of an input": (
        nn.Sequential(Call(lambda x: F.conv_transpose2d(x, one_place_each(3), stride=2)), nn.Conv2d(3, 4, 3)),
        (2, 12, 4, 6), MOVE | {"onnx": {}}
    ),
    "an inverse by fold": (
        nn.Sequential(
            nn.Conv2d(3, 12, 1), Call(lambda x: F.fold(x.flatten(2), (16, 24), 2, stride=2)), nn.Conv2d(3, 4, 3)
        ), IMAGE, DEPTH_TO_SPACE
    ),
    "a channel shuffle": (
        nn.Sequential(nn.Conv2d(3, 12, 1), nn.ReLU(), nn.ChannelShuffle(3), nn.Conv2d(12, 4, 3)), IMAGE, NOTHING
    ),
    "branches with norms": (
        Branches(), (2, 3, 18, 18), NOTHING | {"keras": {"ConcatV2": 1, "SplitV": 1}}
    ),
    "channels exchanged within groups": (
        Call(
            lambda self, x: self.d(self.c(x)[:, [2, 0, 1, 5, 4, 3]]),
            c=nn.Conv2d(3, 6, 1), d=nn.Conv2d(6, 4, 3, groups=2),
        ), IMAGE, NOTHING
    ),
    "slices with stops": (
        before(nn.Conv2d(12, 8, 3), packed=lambda x: focus(x, ends=(8, 10))), (2, 3, 11, 14), SPACE_TO_DEPTH
    ),
    "slices with an offset": (
        before(nn.Conv2d(12, 8, 3), packed=lambda x: focus(x, first=(1, 2))), (2, 3, 9, 14), SPACE_TO_DEPTH
    ),
    "a convolution in groups of columns": (
        before(nn.Conv2d(12, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 5, 1)), IMAGE, MOVE | GATHERED
    ),
    "a pixel unshuffle before groups": (
        nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 8, 3, groups=2)), IMAGE, MOVE | GATHERED
    ),
    "a group norm over columns": (before(nn.GroupNorm(2, 12), nn.Conv2d(12, 8, 3)), IMAGE, MOVE | GATHERED),
    "blocks of unequal sides": (before(nn.Conv2d(18, 8, 3), packed=rectangles), IMAGE, MOVE | SLICED),
    "a sequence": (before(nn.Conv1d(12, 8, 3), packed=of_a_sequence), (2, 3, 24), MOVE | {"tf": {}, "keras": {}}),
    "a volume": (before(nn.Conv3d(24, 8, 1), packed=of_a_volume), (2, 3, 4, 6, 8), MOVE | SLICED),
    "PatchMerging": (PatchMerging(16, (8, 12)), (2, 96, 16), MOVE),
    # In a SavedModel the linear layer before it has rows and columns on one axis.
    "PatchMerging of an image": (ImageMerging(16), (2, 8, 12, 16), MOVE | {"keras": {"SpaceToDepth": 1}}),
    "a shuffle, then a norm": (
        nn.Sequential(
            nn.Conv2d(3, 64, 3), nn.PixelShuffle(2), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 4, 3)
        ), IMAGE, DEPTH_TO_SPACE
    ),
    "a shuffle between slopes": (
        nn.Sequential(
            nn.Conv2d(3, 36, 3), nn.BatchNorm2d(36), nn.PReLU(36), nn.PixelShuffle(3), nn.PReLU(4), nn.Conv2d(4, 3, 3)
        ), IMAGE, DEPTH_TO_SPACE
    ),
    "a shuffle of a depthwise convolution": (
        nn.Sequential(
            nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=16), nn.PixelShuffle(2), nn.Conv2d(4, 3, 3)
        ), IMAGE, DEPTH_TO_SPACE
    ),
    "a shuffle of a convolution in groups": (
        nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3, groups=2), nn.PixelShuffle(2), nn.Conv2d(4, 3, 3)),
        IMAGE, MOVE | {"onnx": {"DepthToSpace": 1}}
    ),
    "a shuffle of a sum": (Shuffled(), IMAGE, DEPTH_TO_SPACE),
    "a shuffle in other views": (
        nn.Sequential(nn.Conv2d(3, 20, 3), Call(unshuffled_by_columns), nn.Conv2d(5, 4, 3)), IMAGE, DEPTH_TO_SPACE
    ),
    "assigned slices": (
        Call(lambda self, x: self.b(assigned(self.a(x))), a=nn.Conv2d(3, 12, 3), b=nn.Conv2d(3, 5, 3)),
        IMAGE,
        DEPTH_TO_SPACE,
    ),
}  # fmt: skip


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("row", ROWS)
def test_one_operator_moves_elements(row, format, tmp_path):
    module, shape, expected = ROWS[row]
    program = program_of(module, [shape])
    inputs = examples([shape])
    run, moves = in_format(rewritten(program, format, inputs, False), format, inputs, tmp_path / "a.onnx")
    allowed = CUTS | {"DepthwiseConv2dNative", "Pad"}  # ConvTranspose crops in TensorFlow
    assert {name: n for name, n in moves.items() if name not in allowed} == expected[format]
    assert sum(moves.get(name, 0) for name in CUTS) <= (14 if expected[format] == SLICED["onnx"] else 2)
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


def viewed(x):
    b, c, h, w = x.shape
    return x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(b, 4 * c, h // 2, w // 2)


@pytest.mark.slow
@pytest.mark.parametrize("packed", [focus, viewed, lambda x: F.pixel_unshuffle(x, 2)])
def test_an_image_of_any_even_size_is_packed_by_one_operator(packed, tmp_path):
    model = before(nn.Conv2d(12, 8, 3), packed=packed).eval()
    program = load_model(model, LoadOptions.of(input_shapes=["1,3,H,W"]), clock=Clock(None)).program
    assert all(any(f"Size {n} must be a multiple of 2" in note.text for note in program.notes) for n in "HW")
    inputs = examples([IMAGE])
    for format in FORMATS:
        _, moves = in_format(rewritten(program, format, inputs, False), format, inputs, tmp_path / "a.onnx")
        assert moves == {"SpaceToDepth": 1}
