"""The plan: what moves in well-known idioms, how inputs and outputs are held, and random programs against PyTorch.

A program drawn at random mixes views, joins, cuts and layers over sizes that are equal on purpose, so that a layout
guessed from sizes is a wrong one. EXAMPLES=50 in the environment makes that many times more of them.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from equivalence import Call, Input, assert_plan_is_exact, captured, orders, planned
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from converter.plan import Plan

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
    "detection head": (nn.Sequential(unit(6, 6), DetectionHead()), IMAGE, ["Transpose"]),
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


def interfaces(plan: Plan, inputs, outputs):
    return zip((*plan.inputs, *plan.outputs), (*inputs, *outputs), strict=True)


def as_pytorch(interface) -> tuple[int, ...]:
    return tuple(range(len(interface.order)))


def expected(interface, rank: int | None) -> tuple[int, ...]:
    return LAST[rank] if rank else as_pytorch(interface)


def test_interfaces_bear_the_shapes_of_the_artefact():
    plan = planned(captured(conv(6, 4), IMAGE))
    assert [str(n) for n in plan.inputs[0].shape][1:] == ["8", "12", "6"]
    assert [str(n) for n in plan.outputs[0].shape][1:] == ["8", "12", "4"]
    assert not isinstance(plan.inputs[0].shape[0], int)
    assert (plan.inputs[0].layout, plan.inputs[0].dtype) == ("channels last", torch.float32)


@pytest.mark.parametrize("layout", ["auto", "nhwc", "nchw"])
def test_integers_and_ranks_beyond_images_are_left_alone(layout):
    module = Call(lambda n, x: (n * 2, x.relu()))
    plan = planned(captured(module, Input((2, 3), torch.int64), (2, 2, 3, 2, 3, 4)), layout)
    assert orders(plan) == [(0, 1), (0, 1, 2, 3, 4, 5)] * 2


# -- random programs

BATCH = 1009  # while a program is drawn: a dimension that this prime divides is the batch, or was merged with it
SIZES = st.sampled_from([2, 2, 3, 4, 4, 6])
MOST = 1000 * BATCH  # elements of a value
POINTWISE = {"relu": F.relu, "tanh": torch.tanh, "abs": torch.abs}
BINARY = {"add": torch.add, "mul": torch.mul, "maximum": torch.maximum, "sub": torch.sub}


@dataclass
class Steps(nn.Module):
    """Operators by name with their arguments, each on values by their position; the last three values are returned."""

    shapes: list[tuple[int, ...]]
    steps: list[tuple]
    tensors: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self):
        super().__init__()
        for name, shape in self.tensors.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)))

    def forward(self, *inputs: Tensor):
        values = list(inputs)
        for step in self.steps:
            values += carry_out(step, values, dict(self.named_parameters()))
        return tuple(values[len(inputs) :][-3:])

    __hash__ = nn.Module.__hash__


def carry_out(step: tuple, values: list[Tensor], tensors: dict[str, Tensor]) -> list[Tensor]:
    name, at, *arguments = step
    x = values[at]
    match name:
        case "permute" | "reshape" | "expand":
            return [getattr(x, name)(arguments[0])]
        case "transpose" | "flatten" | "unsqueeze" | "squeeze" | "select":
            return [getattr(x, name)(*arguments)]
        case "slice":
            dim, start, end, step = arguments
            return [x[(*(slice(None),) * dim, slice(start, end, step))]]
        case "split":
            return list(x.split(*arguments))
        case "cat" | "stack":
            others, dim = arguments
            return [getattr(torch, name)([x, *(values[i] for i in others)], dim)]
        case "mean" | "amax":
            return [getattr(x, name)(arguments[0], keepdim=arguments[1])]
        case "softmax":
            return [x.softmax(arguments[0])]
        case "pad":
            return [F.pad(x, arguments[0], value=0.5)]
        case "parameter":
            return [x * tensors[arguments[0]] + 1]
        case "linear":
            return [F.linear(x, tensors[arguments[0]])]
        case "convolution":
            function = {3: F.conv1d, 4: F.conv2d}[x.dim()]
            return [function(x, tensors[arguments[0]], padding=1, groups=arguments[1])]
        case "max_pool2d":
            return [F.max_pool2d(x, 2, 1)]
        case "layer_norm":
            return [F.layer_norm(x, arguments[0])]
    if name in BINARY:
        return [BINARY[name](x, values[arguments[0]])]
    return [POINTWISE[name](x)]


@st.composite
def programs(draw) -> Steps:
    rank = draw(st.sampled_from([2, 3, 4, 4, 4, 5]))
    first = (BATCH, *(draw(SIZES) for _ in range(rank - 1)))
    shapes = [first]
    if draw(st.booleans()):
        shapes.append((BATCH, *draw(st.permutations(first[1:]))))
    drawn = Drawing(draw, [torch.empty(shape, device="meta") for shape in shapes])
    for _ in range(draw(st.integers(2, 9))):
        drawn.step()
    assume(drawn.steps)
    return Steps([(2, *shape[1:]) for shape in shapes], drawn.steps, drawn.tensors)


class Drawing:
    """A program being drawn, run on meta tensors as it grows."""

    def __init__(self, draw, values: list[Tensor]):
        self.draw, self.values = draw, values
        self.steps: list[tuple] = []
        self.tensors: dict[str, tuple[int, ...]] = {}

    def step(self) -> None:
        at = self.draw(st.sampled_from([len(self.values) - 1, *range(len(self.values))]))
        x = self.values[at]
        dims = [d for d, n in enumerate(x.shape) if n % BATCH]  # without the batch
        kind = self.draw(st.sampled_from(self.possible(x, dims)))
        made = getattr(self, kind)(x, dims)
        if made is None:
            return
        name, *arguments = made
        step = (name, at, *arguments)
        meta = {n: torch.empty(shape, device="meta") for n, shape in self.tensors.items()}
        results = carry_out(step, self.values, meta)
        if all(0 < r.numel() <= MOST and r.dim() <= 7 for r in results):
            self.steps.append(step)
            self.values += results

    @staticmethod
    def possible(x: Tensor, dims: list[int]) -> list[str]:
        kinds = ["permute", "unsqueeze", "pointwise", "binary", "cat", "stack"]
        kinds += ["transpose", "flatten"] * (x.dim() > 1)
        kinds += [
            "split_dim",
            "regroup",
            "squeeze",
            "slice",
            "select",
            "split",
            "reduce",
            "softmax",
            "pad",
            "parameter",
        ] * (len(dims) > 0)
        kinds += ["expand"] * (1 in x.shape)
        last = x.dim() - 1 in dims
        kinds += ["linear"] * last + ["layer_norm"] * (last and x.shape[-1] > 1)
        batch_first = 0 not in dims and dims == list(range(1, x.dim()))
        kinds += ["convolution"] * 3 * (batch_first and x.dim() in (3, 4))
        kinds += ["max_pool2d"] * (batch_first and x.dim() == 4 and min(x.shape[2:]) > 1)
        return kinds

    def dim(self, dims: list[int]) -> int:
        return self.draw(st.sampled_from(dims))

    def tensor(self, *shape: int) -> str:
        name = f"p{len(self.tensors)}"
        self.tensors[name] = shape
        return name

    # -- one way each to draw a step

    def permute(self, x, dims):
        return "permute", tuple(self.draw(st.permutations(range(x.dim()))))

    def transpose(self, x, dims):
        return "transpose", self.dim(range(x.dim())), self.dim(range(-x.dim(), 0))

    def flatten(self, x, dims):
        first = self.dim(range(x.dim() - 1))
        return "flatten", first, self.draw(st.integers(first + 1, x.dim() - 1))

    def split_dim(self, x, dims):
        dim = self.dim(range(x.dim()))
        whole = x.shape[dim] // BATCH if dim not in dims else x.shape[dim]
        factor = self.dim([n for n in (1, 2, 3, 4, 6) if whole % n == 0])
        sizes = self.sizes(x, dims)
        parts = [-1 if dim not in dims else whole // factor, factor]
        if dim in dims and self.draw(st.booleans()):
            parts.reverse()
        return "reshape", (*sizes[:dim], *parts, *sizes[dim + 1 :])

    def regroup(self, x, dims):
        """6 x 4 as 4 x 6, 8 x 3: across the dimensions' boundary."""
        dim = self.dim(dims)
        if dim + 1 not in dims:
            return None
        whole = x.shape[dim] * x.shape[dim + 1]
        factor = self.dim([n for n in (1, 2, 3, 4, 6, 8, 9, 12) if whole % n == 0])
        sizes = self.sizes(x, dims)
        return "reshape", (*sizes[:dim], whole // factor, factor, *sizes[dim + 2 :])

    @staticmethod
    def sizes(x, dims):
        assume(x.dim() - len(dims) <= 1)
        return [n if d in dims else -1 for d, n in enumerate(x.shape)]

    def unsqueeze(self, x, dims):
        return "unsqueeze", self.draw(st.integers(-x.dim() - 1, x.dim()))

    def squeeze(self, x, dims):
        return "squeeze", self.dim(dims)

    def slice(self, x, dims):
        dim = self.dim(dims)
        start = self.draw(st.integers(-x.shape[dim], x.shape[dim] - 1))
        end = self.draw(st.sampled_from([None, x.shape[dim], -1, 100, start % x.shape[dim] + 1]))
        return "slice", dim, start, end, self.draw(st.integers(1, 3))

    def select(self, x, dims):
        dim = self.dim(dims)
        return "select", dim, self.draw(st.integers(-x.shape[dim], x.shape[dim] - 1))

    def split(self, x, dims):
        dim = self.dim(dims)
        return "split", self.draw(st.integers(1, x.shape[dim])), dim

    def cat(self, x, dims):
        dim = self.dim(range(x.dim()))
        others = [i for i, v in enumerate(self.values) if joins(v, x, dim)]
        return "cat", self.draw(st.lists(st.sampled_from(others), min_size=1, max_size=2)), dim

    def stack(self, x, dims):
        others = [i for i, v in enumerate(self.values) if v.shape == x.shape]
        return "stack", [self.dim(others)], self.draw(st.integers(-x.dim() - 1, x.dim()))

    def reduce(self, x, dims):
        some = self.draw(st.lists(st.sampled_from(dims), min_size=1, unique=True))
        return self.draw(st.sampled_from(["mean", "amax"])), some, self.draw(st.booleans())

    def softmax(self, x, dims):
        return "softmax", self.dim(dims)

    def pad(self, x, dims):
        widths = [self.draw(st.integers(0, 2)) if d in dims else 0 for d in range(x.dim() - 1, -1, -1) for _ in (0, 1)]
        return "pad", widths

    def parameter(self, x, dims):
        rank = self.draw(st.integers(1, x.dim()))
        shape = [n if d in dims and self.draw(st.booleans()) else 1 for d, n in enumerate(x.shape)]
        return "parameter", self.tensor(*shape[x.dim() - rank :])

    def linear(self, x, dims):
        return "linear", self.tensor(self.draw(SIZES), x.shape[-1])

    def layer_norm(self, x, dims):
        first = self.draw(st.sampled_from([d for d in dims if set(range(d, x.dim())) <= set(dims)]))
        return "layer_norm", list(x.shape[first:])

    def convolution(self, x, dims):
        depthwise = self.draw(st.booleans())
        channels = x.shape[1]
        out = channels * self.draw(st.integers(1, 2)) if depthwise else self.draw(SIZES)
        kernel = [3] * (x.dim() - 2)
        return "convolution", self.tensor(out, 1 if depthwise else channels, *kernel), channels if depthwise else 1

    def max_pool2d(self, x, dims):
        return ("max_pool2d",)

    def expand(self, x, dims):
        return "expand", [self.draw(SIZES) if n == 1 else -1 for n in x.shape]

    def pointwise(self, x, dims):
        return (self.draw(st.sampled_from(sorted(POINTWISE))),)

    def binary(self, x, dims):
        others = [i for i, v in enumerate(self.values) if broadcasts(v, x)]
        return self.draw(st.sampled_from(sorted(BINARY))), self.dim(others)


def joins(a: Tensor, b: Tensor, dim: int) -> bool:
    return a.dim() == b.dim() and all(n == m or d == dim for d, (n, m) in enumerate(zip(a.shape, b.shape, strict=True)))


def broadcasts(a: Tensor, b: Tensor) -> bool:
    """Whether they do, and no batch meets another."""
    if not all(n == m or 1 in (n, m) for n, m in zip(a.shape[::-1], b.shape[::-1], strict=False)):
        return False
    return sum(n % BATCH == 0 for n in torch.broadcast_shapes(a.shape, b.shape)) <= 1


@settings(
    max_examples=100 * int(os.environ.get("EXAMPLES", "1")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
    report_multiple_bugs=False,
)
@given(programs(), st.sampled_from(["auto", "auto", "nhwc", "nchw"]))
def test_any_program_computes_what_pytorch_does(steps, layout):
    assert_plan_is_exact(captured(steps, *steps.shapes), steps.shapes, layout)
