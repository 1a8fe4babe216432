"""The plan: what moves in well-known idioms, how inputs and outputs are held, and random programs against PyTorch.

A program drawn at random mixes views, joins, cuts and layers over sizes that are equal on purpose, so that a layout
guessed from sizes is a wrong one. EXAMPLES=50 in the environment makes that many times more of them.
"""

import os
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from equivalence import Call, Input, assert_plan_is_exact, captured, orders, planned
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_programs import moved_channels_first, programs
from torch import Tensor, nn

from converter.plan.builder import PlanBuilder

IMAGE = (2, 6, 8, 12)
CUBE = (2, 6, 6, 6)
TOKENS = (2, 10, 6)
LAST = {3: (0, 2, 1), 4: (0, 2, 3, 1), 5: (0, 2, 3, 4, 1)}


# -- what moves


def conv(channels_in: int, channels_out: int, size: int = 3) -> nn.Module:
    return nn.Conv2d(channels_in, channels_out, size, padding=size // 2)


def unit(channels_in: int, channels_out: int, size: int = 3) -> nn.Module:
    return nn.Sequential(conv(channels_in, channels_out, size), nn.BatchNorm2d(channels_out), nn.SiLU())


class SqueezeExcite(nn.Sequential):
    def __init__(self, channels: int):
        super().__init__(nn.Conv2d(channels, 2, 1), nn.ReLU(), nn.Conv2d(2, channels, 1), nn.Sigmoid())

    def forward(self, x):
        return x * super().forward(x.mean((2, 3), keepdim=True))


class Residual(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


class ConvNeXtBlock(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 8), nn.GELU(), nn.Linear(8, channels))
        self.scale = nn.Parameter(torch.ones(channels))

    def forward(self, x):
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + (self.scale * self.mlp(y)).permute(0, 3, 1, 2)


class PatchEmbedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch, self.norm, self.linear = nn.Conv2d(6, 10, 4, 4), nn.LayerNorm(10), nn.Linear(10, 7)
        self.positions = nn.Parameter(torch.zeros(1, 6, 10))

    def forward(self, x):
        tokens = self.patch(x).flatten(2).transpose(1, 2) + self.positions
        return self.linear(self.norm(tokens)).mean(1)


class CrossStagePartial(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.first, self.inner = unit(channels, channels, 1), unit(channels // 2, channels // 2)
        self.last = unit(channels // 2 * 3, channels, 1)

    def forward(self, x):
        left, right = self.first(x).chunk(2, 1)
        return self.last(torch.cat([left, right, self.inner(right)], 1))


class Pyramid(nn.Module):
    def __init__(self):
        super().__init__()
        self.fine, self.coarse = unit(6, 4), nn.Sequential(nn.MaxPool2d(2), unit(4, 4))
        self.out = unit(8, 5)

    def forward(self, x):
        fine = self.fine(x)
        return self.out(torch.cat([F.interpolate(self.coarse(fine), scale_factor=2), fine], 1))


class Speech(nn.Module):
    """Sequences as (B, C, T) in convolutions, as (B, T, C) in recurrent layers."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv1d(10, 4, 3, padding=1), nn.Conv1d(10, 3, 1)
        self.recurrent = nn.GRU(4, 5, batch_first=True, bidirectional=True)

    def forward(self, x):
        features, _ = self.recurrent(self.first(x).relu().transpose(1, 2))
        return self.last(features.transpose(1, 2))


class DetectionHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(6, 3 * 7, 1)

    def forward(self, x):
        y = self.head(x)
        return y.view(-1, 3, 7, *y.shape[2:]).permute(0, 1, 3, 4, 2)


def unshuffled(x: Tensor, block: int = 2) -> Tensor:
    b, c, h, w = x.shape
    x = x.view(b, c, h // block, block, w // block, block).permute(0, 1, 3, 5, 2, 4)
    return x.reshape(b, c * block**2, h // block, w // block)


def shuffled(x: Tensor, block: int = 2) -> Tensor:
    b, c, h, w = x.shape
    x = x.view(b, c // block**2, block, block, h, w).permute(0, 1, 4, 2, 5, 3)
    return x.reshape(b, c // block**2, h * block, w * block)


def channels_shuffled(x: Tensor, groups: int = 3) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, groups, c // groups, h, w).transpose(1, 2).reshape(b, c, h, w)


def windows(x: Tensor, size: int = 4) -> Tensor:
    """(B, C, H, W) to (windows, pixels of a window, C)."""
    b, c, h, w = x.shape
    x = x.permute(0, 2, 3, 1).view(b, h // size, size, w // size, size, c)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, size * size, c)


def around(function: Callable, before: nn.Module, after: nn.Module) -> nn.Module:
    return Call(lambda self, x: self.after(function(self.before(x))), before=before, after=after)


MOVEMENTS = {
    "tower": (nn.Sequential(conv(6, 4), nn.ReLU(), conv(4, 5)), IMAGE, []),
    "tower, all sizes alike": (nn.Sequential(conv(6, 6), nn.ReLU(), conv(6, 6)), CUBE, []),
    "classifier": (nn.Sequential(unit(6, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)), IMAGE, []),
    "flatten and linear": (nn.Sequential(unit(6, 4), nn.Flatten(), nn.Linear(384, 3)), IMAGE, []),
    "pool to 2 x 3, flatten and linear": (
        nn.Sequential(unit(6, 4), nn.AdaptiveAvgPool2d((2, 3)), nn.Flatten(), nn.Linear(24, 3)),
        IMAGE,
        [],
    ),
    "residual tower": (nn.Sequential(unit(6, 4), Residual(unit(4, 4)), Residual(unit(4, 4))), IMAGE, []),
    "squeeze and excite": (nn.Sequential(unit(6, 4), SqueezeExcite(4), conv(4, 5)), IMAGE, []),
    "separable": (nn.Sequential(nn.Conv2d(6, 12, 3, groups=6), nn.Conv2d(12, 4, 1), nn.ReLU6()), IMAGE, []),
    "inception": (
        Call(
            lambda self, x: torch.cat([b(x) for b in self.branches], 1),
            branches=nn.ModuleList([conv(6, 4), conv(6, 3, 1)]),
        ),
        IMAGE,
        [],
    ),
    "cross stage partial": (CrossStagePartial(6), IMAGE, []),
    "feature pyramid": (Pyramid(), IMAGE, []),
    "softmax over classes of pixels": (nn.Sequential(unit(6, 4), nn.Softmax(1)), IMAGE, []),
    "permute, linear, permute": (
        Call(
            lambda self, x: self.conv(self.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)),
            linear=nn.Linear(6, 4),
            conv=conv(4, 5),
        ),
        IMAGE,
        [],
    ),
    "ConvNeXt": (nn.Sequential(conv(6, 4), ConvNeXtBlock(4), ConvNeXtBlock(4)), IMAGE, []),
    "patches to tokens": (PatchEmbedding(), IMAGE, []),
    "windows to linear": (around(windows, conv(6, 4), nn.Linear(4, 3)), IMAGE, ["Transpose"]),
    "channel shuffle": (around(channels_shuffled, conv(6, 6), conv(6, 5)), IMAGE, []),
    "channel shuffle, all sizes alike": (around(channels_shuffled, conv(6, 6), conv(6, 6)), CUBE, []),
    "channel shuffle and depthwise": (
        around(
            channels_shuffled, conv(6, 6), nn.Sequential(nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d(6), conv(6, 5))
        ),
        IMAGE,
        [],
    ),
    "pixel unshuffle": (around(unshuffled, conv(6, 6), conv(24, 5)), IMAGE, ["SpaceToDepth"]),
    "pixel shuffle": (around(shuffled, conv(6, 8), conv(2, 5)), IMAGE, ["DepthToSpace"]),
    "pixel shuffle by 3 at an output": (nn.Sequential(conv(6, 27), nn.PixelShuffle(3)), IMAGE, ["DepthToSpace"]),
    "channel shuffle of groups of 3 at an output": (nn.Sequential(conv(6, 15), nn.ChannelShuffle(3)), IMAGE, []),
    "detection head": (nn.Sequential(unit(6, 6), DetectionHead()), IMAGE, ["Transpose"]),
    "convolutions around a recurrent layer": (Speech(), TOKENS, []),
    "a volume": (
        nn.Sequential(nn.Conv3d(6, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(4, 5, 1)),
        (2, 6, 4, 8, 6),
        [],
    ),
    "two orders joined into a kernel": (
        Call(
            lambda self, x: self.last(torch.cat([channels_shuffled(self.a(x)), self.b(x)], 1)),
            a=conv(6, 6),
            b=conv(6, 4),
            last=conv(10, 5),
        ),
        IMAGE,
        [],
    ),
    "tokens, convolved, beside the image that they are added to": (
        Call(
            lambda self, x: (
                x
                + self.out(
                    self.conv(self.first(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
                ).permute(0, 3, 1, 2)
            ),
            first=nn.Linear(6, 4),
            conv=conv(4, 5),
            out=nn.Linear(5, 6),
        ),
        IMAGE,
        [],
    ),
    "a value and itself with a dimension more": (
        Call(lambda x: (x.transpose(0, 1).unsqueeze(1) + x.transpose(0, 1), x.transpose(0, 1) * 2)),
        (2, 4, 6, 8),
        ["Transpose"],
    ),
    "a global pool, normed and resized, beside the image that it is of": (
        Call(
            lambda self, x: self.last(
                torch.cat(
                    [
                        self.first(x),
                        F.interpolate(self.pooled(x), size=x.shape[2:], mode="bilinear"),
                        F.interpolate(self.pooled(x * 2), size=x.shape[2:], mode="bicubic", align_corners=True),
                    ],
                    1,
                )
            ),
            first=conv(6, 4),
            pooled=nn.Sequential(nn.AdaptiveAvgPool2d(1), conv(6, 5, 1), nn.BatchNorm2d(5), nn.ReLU()),
            last=conv(14, 5),
        ),
        IMAGE,
        [],
    ),
    "multilayer perceptron on tokens": (
        nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6)),
        TOKENS,
        [],
    ),
}


@pytest.mark.parametrize("module, shape, kinds", MOVEMENTS.values(), ids=MOVEMENTS)
def test_moves_no_more_than(module, shape, kinds):
    program = captured(module, shape)
    plan = assert_plan_is_exact(program, [shape])
    assert [movement.kind for movement in plan.movements] == kinds, plan.movements


@pytest.mark.parametrize(
    "module, layout, kinds",
    [
        pytest.param(
            nn.Sequential(conv(6, 4), conv(4, 5)), "nchw", ["Transpose", "Transpose"], id="an image in and out"
        ),
        pytest.param(nn.Sequential(conv(6, 4), nn.Flatten()), "auto", ["Transpose"], id="features in PyTorch's order"),
        pytest.param(Call(lambda x: x.view(-1, 12, 48) * 2), "auto", [], id="a view across dimensions of what lies so"),
        pytest.param(around(lambda x: x.reshape(-1, 8, 48), conv(6, 4), nn.ReLU()), "auto", ["Transpose"], id="not so"),
    ],
)
def test_moves_where_data_must(module, layout, kinds):
    plan = assert_plan_is_exact(captured(module, IMAGE), [IMAGE], layout)
    assert [movement.kind for movement in plan.movements] == kinds
    assert all(movement.reason and movement.elements for movement in plan.movements)


def test_two_consumers_share_a_movement():
    shared = Call(
        lambda self, x: (lambda y: y.relu() + y.sigmoid())(self.conv(x).flatten(1).view(-1, 2, 192)), conv=conv(6, 4)
    )
    assert len(planned(captured(shared, IMAGE)).movements) <= 1


# -- how inputs and outputs are held

INTERFACES = {
    "an image into a convolution": (conv(6, 4), [IMAGE], [4], [4]),
    "behind an activation and a norm": (nn.Sequential(nn.ReLU(), nn.BatchNorm2d(6), nn.Sigmoid()), [IMAGE], [4], [4]),
    "a sequence": (nn.Conv1d(10, 4, 3), [TOKENS], [3], [3]),
    "a volume": (nn.Conv3d(2, 3, 3), [(2, 2, 4, 5, 6)], [5], [5]),
    "a classifier": (nn.Sequential(conv(6, 4), nn.Flatten(), nn.Linear(384, 3)), [IMAGE], [4], [None]),
    "tokens": (nn.Linear(6, 4), [TOKENS], [None], [None]),
    "an image that is flattened": (nn.Sequential(nn.Flatten(), nn.Linear(576, 3)), [IMAGE], [None], [None]),
    "an image of no operator that cares": (nn.ReLU(), [IMAGE], [None], [None]),
    "an output that was permuted": (
        Call(lambda self, x: self.conv(x).permute(0, 2, 3, 1), conv=conv(6, 4)),
        [IMAGE],
        [4],
        [None],
    ),
    "an output of pooled features": (
        Call(lambda self, x: self.conv(x).mean((2, 3)), conv=conv(6, 4)),
        [IMAGE],
        [4],
        [None],
    ),
    "an output of elementwise operators on an image into a convolution": (
        Call(lambda self, x: (self.conv(x), x * 2), conv=conv(6, 4)),
        [IMAGE],
        [4],
        [4, 4],
    ),
    "two inputs, two outputs": (
        Call(lambda self, x, y: (self.conv(x), self.linear(y)), conv=conv(6, 4), linear=nn.Linear(6, 3)),
        [IMAGE, (2, 6)],
        [4, None],
        [4, None],
    ),
}


@pytest.mark.parametrize("module, shapes, inputs, outputs", INTERFACES.values(), ids=INTERFACES)
def test_layouts_by_rule(module, shapes, inputs, outputs):
    """Channels last where the nearest operator that cares asks for it; as forced from rank 3 to 5; else PyTorch's."""
    program = captured(module, *shapes)
    plan = planned(program)
    assert orders(plan) == [expected(interface, rank) for interface, rank in interfaces(plan, inputs, outputs)]
    forced = planned(program, "nhwc")
    assert orders(forced) == [LAST.get(len(i.order), as_pytorch(i)) for i in (*forced.inputs, *forced.outputs)]
    kept = planned(program, "nchw")
    assert orders(kept) == [as_pytorch(i) for i in (*kept.inputs, *kept.outputs)]


def interfaces(plan: PlanBuilder, inputs, outputs):
    return zip((*plan.inputs, *plan.outputs), (*inputs, *outputs), strict=True)


def as_pytorch(interface) -> tuple[int, ...]:
    return tuple(range(len(interface.order)))


def expected(interface, rank: int | None) -> tuple[int, ...]:
    return LAST[rank] if rank else as_pytorch(interface)


def test_interfaces_bear_the_shapes_of_the_artifact():
    plan = planned(captured(conv(6, 4), IMAGE))
    assert [str(n) for n in plan.inputs[0].shape][1:] == ["8", "12", "6"]
    assert [str(n) for n in plan.outputs[0].shape][1:] == ["8", "12", "4"]
    assert not isinstance(plan.inputs[0].shape[0], int)
    assert (plan.inputs[0].layout, plan.inputs[0].dtype) == ("channels_last", torch.float32)


@pytest.mark.parametrize("layout", ["auto", "nhwc", "nchw"])
def test_integers_and_ranks_beyond_images_are_left_alone(layout):
    module = Call(lambda n, x: (n * 2, x.relu()))
    plan = planned(captured(module, Input((2, 3), torch.int64), (2, 2, 3, 2, 3, 4)), layout)
    assert orders(plan) == [(0, 1), (0, 1, 2, 3, 4, 5)] * 2


@pytest.mark.slow
@settings(
    max_examples=100 * int(os.environ.get("EXAMPLES", "1")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
    report_multiple_bugs=False,
)
@given(programs(), st.sampled_from(["auto", "auto", "nhwc", "nchw"]))
def test_any_program_computes_what_pytorch_does(steps, layout):
    """And moves no more elements than one that holds every value as PyTorch does."""
    program = captured(steps, *steps.shapes)
    plan = assert_plan_is_exact(program, steps.shapes, layout)
    moved = sum(movement.elements for movement in plan.movements)
    assert moved <= moved_channels_first(plan), plan.movements
