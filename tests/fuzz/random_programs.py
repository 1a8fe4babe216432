"""Programs drawn at random: views, joins, cuts and layers over sizes that are equal on purpose."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from converter.ir.sizes import per_example, product, symbolic_shape
from converter.plan.builder import PlanBuilder

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
        case "permute" | "reshape" | "expand" | "repeat" | "flip":
            return [getattr(x, name)(arguments[0])]
        case "transpose" | "movedim" | "flatten" | "unsqueeze" | "squeeze" | "select" | "roll" | "cumsum":
            return [getattr(x, name)(*arguments)]
        case "index_select":
            return [x.index_select(arguments[0], torch.tensor(arguments[1], device=x.device))]
        case "topk":
            return [x.topk(*arguments).values]
        case "unbind" | "chunk":
            return list(getattr(x, name)(*arguments))
        case "matmul":
            other = values[arguments[0]]
            return [x @ (other.transpose(-1, -2) if arguments[1] else other)]
        case "einsum":
            return [torch.einsum(arguments[1], x, values[arguments[0]])]
        case "pixel_shuffle" | "pixel_unshuffle":
            return [getattr(F, name)(x, 2)]
        case "upsample":
            return [F.interpolate(x, scale_factor=2)]
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
        kinds += ["repeat", "flip", "roll", "cumsum", "index_select", "topk", "chunk", "unbind"] * (len(dims) > 0)
        kinds += ["movedim"] * (x.dim() > 1) + ["einsum"] + ["matmul"] * 2 * (x.dim() > 2)
        kinds += ["expand"] * (1 in x.shape)
        last = x.dim() - 1 in dims
        kinds += ["linear"] * last + ["layer_norm"] * (last and x.shape[-1] > 1)
        batch_first = 0 not in dims and dims == list(range(1, x.dim()))
        kinds += ["convolution"] * 3 * (batch_first and x.dim() in (3, 4))
        image = batch_first and x.dim() == 4
        kinds += ["max_pool2d"] * (image and min(x.shape[2:]) > 1) + ["upsample"] * image
        kinds += ["pixel_shuffle"] * 2 * (image and x.shape[1] % 4 == 0)
        kinds += ["pixel_unshuffle"] * 2 * (image and x.shape[2] % 2 == x.shape[3] % 2 == 0)
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

    def upsample(self, x, dims):
        return ("upsample",)

    def pixel_shuffle(self, x, dims):
        return ("pixel_shuffle",)

    def pixel_unshuffle(self, x, dims):
        return ("pixel_unshuffle",)

    def movedim(self, x, dims):
        return "movedim", self.dim(range(x.dim())), self.dim(range(-x.dim(), 0))

    def repeat(self, x, dims):
        return "repeat", [self.draw(st.integers(1, 2)) if d in dims else 1 for d in range(x.dim())]

    def flip(self, x, dims):
        return "flip", self.draw(st.lists(st.sampled_from(dims), min_size=1, unique=True))

    def roll(self, x, dims):
        some = self.draw(st.lists(st.sampled_from(dims), min_size=1, unique=True))
        return "roll", [self.draw(st.integers(-4, 4)) for _ in some], some

    def cumsum(self, x, dims):
        return "cumsum", self.dim(dims)

    def index_select(self, x, dims):
        dim = self.dim(dims)
        return "index_select", dim, self.draw(st.lists(st.integers(0, x.shape[dim] - 1), min_size=1, max_size=6))

    def topk(self, x, dims):
        dim = self.dim(dims)
        return "topk", self.draw(st.integers(1, x.shape[dim])), dim

    def chunk(self, x, dims):
        return "chunk", self.draw(st.integers(1, 3)), self.dim(dims)

    def unbind(self, x, dims):
        return "unbind", self.dim(dims)

    def matmul(self, x, dims):
        pairs = [
            (i, flipped)
            for i, v in enumerate(self.values)
            for flipped in (False, True)
            if v.dim() == x.dim() and v.shape[:-2] == x.shape[:-2] and not {x.dim() - 1, x.dim() - 2} - set(dims)
            and v.shape[-1 if flipped else -2] == x.shape[-1]
        ]  # fmt: skip
        return ("matmul", *self.draw(st.sampled_from(pairs))) if pairs else None

    def einsum(self, x, dims):
        """The batch stays; of the others some are summed, what is left comes in any order."""
        letters = "abcdefg"[: x.dim()]
        others = [i for i, v in enumerate(self.values) if v.shape == x.shape]
        kept = [n for d, n in enumerate(letters) if d not in dims or self.draw(st.booleans())]
        result = "".join(self.draw(st.permutations(kept)))
        return "einsum", self.dim(others), f"{letters},{letters}->{result}"

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


aten = torch.ops.aten
VIEWS_THAT_MOVE = {aten.permute.default, aten.transpose.int, aten.t.default}
ON_IMAGES = {
    aten.conv1d.default, aten.conv2d.default, aten.conv1d.padding, aten.conv2d.padding, aten.max_pool2d.default,
    aten.upsample_nearest2d.vec,
}  # fmt: skip
SHUFFLES = {aten.pixel_shuffle.default, aten.pixel_unshuffle.default}


def moved_channels_first(plan: PlanBuilder) -> int:
    """Elements, for one example, that move if every value is held as PyTorch holds it.

    A permutation then is a transpose, an operator whose kernel takes channels last only (or sorts along the last axis
    only) has one before and one behind it, and so have the inputs and outputs that `plan` holds otherwise.
    """
    program = plan.program

    def count(node: fx.Node) -> int:
        return per_example(product(symbolic_shape(node.meta["val"])))

    total = 0
    for node in program.graph.nodes:
        if node.target in VIEWS_THAT_MOVE:
            total += count(node) * moves(node)
        elif node.target in ON_IMAGES:
            total += count(node.args[0]) + count(node)
        elif node.target in SHUFFLES:
            total += count(node)
        elif node.target is aten.index_select.default:
            total += count(node.args[0])
        elif node.target is aten.topk.default and node.args[2] not in (-1, node.args[0].meta["val"].dim() - 1):
            total += count(node.args[0]) + per_example(product(symbolic_shape(node.meta["val"][0])))
        elif node.target is aten.einsum.default:
            total += count(node.args[1][0]) + count(node.args[1][1]) + count(node)
    for interfaces, nodes in ((plan.inputs, program.placeholders), (plan.outputs, program.results)):
        for interface, node in zip(interfaces, nodes, strict=True):
            total += count(node) * (interface.layout != "pytorch")
    return total


def moves(node: fx.Node) -> bool:
    """Whether a permutation changes the order of more than dimensions of size 1."""
    shape = node.args[0].meta["val"].shape
    order = list(range(len(shape)))
    if node.target is aten.permute.default:
        order = [d % len(shape) for d in node.args[1]]
    else:
        i, j = node.args[1:] if node.target is aten.transpose.int else (0, 1)
        order[i], order[j] = order[j], order[i]
    order = [d for d in order if shape[d] != 1]
    return order != sorted(order)
