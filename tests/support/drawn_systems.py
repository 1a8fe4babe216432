"""Strategies that draw what moves elements: samplings, pads, blocks, rolls, assignments in place."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

Function = Callable[[Tensor], Tensor]
PADDINGS = ("zeros", "border", "reflection")


class All(nn.Module):
    """Functions and modules of one input, all of their results."""

    def __init__(self, functions: Sequence[Function]):
        super().__init__()
        self.functions = functions
        self.held = nn.ModuleList(f for f in functions if isinstance(f, nn.Module))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(function(x) for function in self.functions)


class Chain(nn.Module):
    def __init__(self, *functions: Function):
        super().__init__()
        self.functions = functions
        self.held = nn.ModuleList(f for f in functions if isinstance(f, nn.Module))

    def forward(self, x: Tensor) -> Tensor:
        for function in self.functions:
            x = function(x)
        return x


# -- grids


KINDS = ("inside", "around", "far", "near pixels")


@dataclass(frozen=True)
class Grid:
    """Grids for images of `shape`, one of each kind; `fixed` if known at conversion and the same for every example."""

    shape: tuple[int, ...]
    values: tuple[Tensor, ...]
    fixed: bool

    @property
    def modes(self) -> tuple[str, ...]:
        return ("bilinear", "nearest", "bicubic") if len(self.shape) == 4 else ("bilinear", "nearest")


@st.composite
def grids(draw) -> Grid:
    rank = draw(st.sampled_from((2, 2, 3)))
    sizes = [draw(st.integers(1, 6)) for _ in range(rank)]
    results = [draw(st.integers(1, 4)) for _ in range(rank)]
    fixed = draw(st.booleans())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shape = (1 if fixed else 2, *results, rank)
    kinds = (draw(st.sampled_from(KINDS)),) if fixed else KINDS * 3
    values = tuple(values_of(kind, shape, sizes, generator) for kind in kinds)
    return Grid((2, draw(st.integers(1, 3)), *sizes), values, fixed)


def values_of(kind: str, shape: tuple[int, ...], sizes: list[int], generator: torch.Generator) -> Tensor:
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    if kind != "near pixels":
        return values * {"inside": 0.4, "around": 1.2, "far": 30}[kind]
    # no nearer to the middle between two than a fifth of a pixel, where the corners' outer edges are at 1
    last = torch.tensor(sizes[::-1], dtype=torch.float64)
    whole = torch.randint(-2, 8, shape, generator=generator)
    return (2 * (whole + 0.1 * values.tanh()) + 1) / last - 1


def sampled_in_every_way(grid: Grid) -> list[Callable[..., Tensor]]:
    ways = itertools.product(grid.modes, PADDINGS, (True, False))
    return [lambda x, g, way=way: F.grid_sample(x, g, *way) for way in ways]


@dataclass(frozen=True)
class Affine:
    shape: tuple[int, ...]
    size: tuple[int, ...]
    align_corners: tuple[bool, bool]
    mode: str
    padding: str

    def __call__(self, x: Tensor, theta: Tensor) -> Tensor:
        grid = F.affine_grid(theta, [x.shape[0], *self.size], align_corners=self.align_corners[0])
        return F.grid_sample(x, grid, self.mode, self.padding, self.align_corners[1])


@st.composite
def affine_samplings(draw) -> Affine:
    rank = draw(st.sampled_from((2, 2, 3)))
    channels = draw(st.integers(1, 3))
    return Affine(
        (2, channels, *(draw(st.integers(1, 6)) for _ in range(rank))),
        (channels, *(draw(st.integers(1, 5)) for _ in range(rank))),
        (draw(st.booleans()), draw(st.booleans())),
        draw(st.sampled_from(("bilinear", "bicubic") if rank == 2 else ("bilinear",))),
        draw(st.sampled_from(PADDINGS)),
    )


# -- pads before a convolution


class PaddedConv(nn.Module):
    def __init__(self, conv: nn.Module, pads: list[int], mode: str, value: float):
        super().__init__()
        self.conv, self.pads, self.mode, self.value = conv, pads, mode, value

    @property
    def mergeable(self) -> bool:
        return self.mode == "constant" and not self.value and min(self.pads) >= 0

    def forward(self, x: Tensor) -> Tensor:
        padded = (
            F.pad(x, self.pads, self.mode, self.value) if self.mode == "constant" else F.pad(x, self.pads, self.mode)
        )
        return self.conv(padded)


@st.composite
def padded_convolutions(draw, count: int) -> tuple[tuple[int, ...], list[PaddedConv]]:
    rank = draw(st.sampled_from((1, 2, 2, 3)))
    channels = draw(st.sampled_from((1, 2, 4)))
    sizes = [draw(st.integers(4, 8)) for _ in range(rank)]
    made = []
    for _ in range(count):
        mode = draw(st.sampled_from(("constant", "constant", "constant", "replicate", "reflect", "circular")))
        low = draw(st.sampled_from((0, 0, -1))) if mode == "constant" else 0
        pads = [draw(st.integers(low, 3)) for _ in range(2 * rank)]
        kernel = [draw(st.integers(1, 4)) for _ in range(rank)]
        most = [max(1, (n + before + behind - 1) // (k - 1)) if k > 1 else 3
                for n, k, before, behind in zip(sizes, kernel, pads[::-2], pads[-2::-2], strict=True)]  # fmt: skip
        dilation = [min(draw(st.integers(1, 2)), m) for m in most]
        fits = all(n + a + b > d * (k - 1) for n, k, d, a, b in
                   zip(sizes, kernel, dilation, pads[::-2], pads[-2::-2], strict=True))  # fmt: skip
        kernel = kernel if fits else [1] * rank
        groups = draw(st.sampled_from([g for g in (1, 2, 4) if channels % g == 0]))
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1](
            channels, groups * draw(st.integers(1, 3)), kernel, [draw(st.integers(1, 3)) for _ in range(rank)],
            [draw(st.integers(0, 1)) for _ in range(rank)], dilation, groups, bias=draw(st.booleans()),
        )  # fmt: skip
        made.append(PaddedConv(conv, pads, mode, draw(st.sampled_from((0, 0.0, 0.0, 1.5)))))
    return (2, channels, *sizes), made


# -- blocks


@dataclass(frozen=True)
class Block:
    """Space to depth by `rows` and `columns`, or back, of an image of `shape`; `order` of the channels of the packed.

    Attributes:
        order: that of slices; of the three factors of the packed channels for views.
        alike: whether it only looks so.
    """

    spelling: str
    shape: tuple[int, int, int, int]
    rows: int
    columns: int
    order: tuple[int, ...] = field(default=())
    alike: bool = False

    @property
    def square(self) -> bool:
        return self.rows == self.columns

    @property
    def offsets(self) -> list[tuple[int, int]]:
        all_of_them = list(itertools.product(range(self.rows), range(self.columns)))
        return [all_of_them[i] for i in self.order]

    def __call__(self, x: Tensor) -> Tensor:
        return SPELLINGS[self.spelling](self, x)


def by_slices(b: Block, x: Tensor) -> Tensor:
    return torch.cat([x[..., r :: b.rows, c :: b.columns] for r, c in b.offsets], 1)


def by_stacked_slices(b: Block, x: Tensor) -> Tensor:
    return torch.stack([x[..., r :: b.rows, c :: b.columns] for r, c in b.offsets], 2).flatten(1, 2)


def by_nested_slices(b: Block, x: Tensor) -> Tensor:
    x = torch.cat([x[:, :, r :: b.rows] for r in range(b.rows)], 1)
    return torch.cat([x[..., c :: b.columns] for c in range(b.columns)], 1)


def by_views(b: Block, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    x = x.reshape(n, c, h // b.rows, b.rows, w // b.columns, b.columns)
    return x.permute(0, *((1, 3, 5)[i] for i in b.order), 2, 4).reshape(n, -1, h // b.rows, w // b.columns)


def by_unfold(b: Block, x: Tensor) -> Tensor:
    n, _, h, w = x.shape
    return F.unfold(x, (b.rows, b.columns), stride=(b.rows, b.columns)).view(n, -1, h // b.rows, w // b.columns)


def by_unfolded_views(b: Block, x: Tensor) -> Tensor:
    n, _, h, w = x.shape
    x = x.unfold(2, b.rows, b.rows).unfold(3, b.columns, b.columns)
    return x.permute(0, *((1, 4, 5)[i] for i in b.order), 2, 3).reshape(n, -1, h // b.rows, w // b.columns)


def by_pixel_unshuffle(b: Block, x: Tensor) -> Tensor:
    return F.pixel_unshuffle(x, b.rows)


def back_by_pixel_shuffle(b: Block, x: Tensor) -> Tensor:
    return F.pixel_shuffle(x, b.rows)


def back_by_views(b: Block, x: Tensor) -> Tensor:
    n, packed, h, w = x.shape
    factors = (packed // (b.rows * b.columns), b.rows, b.columns)
    x = x.view(n, *(factors[i] for i in b.order), h, w)
    c, r, s = (1 + b.order.index(i) for i in range(3))
    return x.permute(0, c, 4, r, 5, s).reshape(n, factors[0], h * b.rows, w * b.columns)


def back_by_fold(b: Block, x: Tensor) -> Tensor:
    size = (x.shape[2] * b.rows, x.shape[3] * b.columns)
    return F.fold(x.flatten(2), size, (b.rows, b.columns), stride=(b.rows, b.columns))


def back_by_assignment(b: Block, x: Tensor) -> Tensor:
    n, packed, h, w = x.shape
    y = x.new_zeros(n, packed // (b.rows * b.columns), h * b.rows, w * b.columns)
    for part, (r, c) in zip(x.chunk(b.rows * b.columns, 1), b.offsets, strict=True):
        y[..., r :: b.rows, c :: b.columns] = part
    return y


def slices_one_missing(b: Block, x: Tensor) -> Tensor:
    return torch.cat([x[..., r :: b.rows, c :: b.columns] for r, c in b.offsets[1:]], 1)


def slices_one_doubled(b: Block, x: Tensor) -> Tensor:
    return torch.cat([x[..., r :: b.rows, c :: b.columns] for r, c in (*b.offsets[1:], b.offsets[-1])], 1)


def slices_of_other_steps(b: Block, x: Tensor) -> Tensor:
    """Tiles in place of strides: the same sizes."""
    h, w = x.shape[2] // b.rows, x.shape[3] // b.columns
    return torch.cat([x[..., r * h : (r + 1) * h, c * w : (c + 1) * w] for r, c in b.offsets], 1)


def slices_of_mixed_channels(b: Block, x: Tensor) -> Tensor:
    parts = [x[..., r :: b.rows, c :: b.columns] for r, c in b.offsets]
    return torch.cat([*parts[:-1], parts[-1].flip(2)], 1)


def by_slices_of_a_part(b: Block, x: Tensor) -> Tensor:
    h, w = x.shape[2] // b.rows * b.rows - b.rows, x.shape[3] // b.columns * b.columns
    return torch.cat([x[..., r : h : b.rows, c : w : b.columns] for r, c in b.offsets], 1)


def slices_joined_in_rows(b: Block, x: Tensor) -> Tensor:
    return torch.cat([x[..., r :: b.rows, c :: b.columns] for r, c in b.offsets], 2)


def views_of_tiles(b: Block, x: Tensor) -> Tensor:
    """Space to depth but for the factors of height: the block is the major one."""
    n, c, h, w = x.shape
    x = x.reshape(n, c, b.rows, h // b.rows, w // b.columns, b.columns)
    return x.permute(0, *((1, 2, 5)[i] for i in b.order), 3, 4).reshape(n, -1, h // b.rows, w // b.columns)


OF_SLICES = (
    by_slices, by_stacked_slices, back_by_assignment, slices_one_missing, slices_one_doubled, slices_of_other_steps,
    slices_of_mixed_channels, by_slices_of_a_part, slices_joined_in_rows,
)  # fmt: skip
OF_VIEWS = (by_views, by_unfolded_views, back_by_views, views_of_tiles)
SPELLINGS = {
    f.__name__: f
    for f in (*OF_SLICES, *OF_VIEWS, by_nested_slices, by_unfold, by_pixel_unshuffle, back_by_pixel_shuffle,
              back_by_fold)
}  # fmt: skip


@st.composite
def blocks(draw, count: int) -> tuple[tuple[int, ...], list[Block]]:
    """Of one image, whose channels and sizes take all of them."""
    rows = draw(st.integers(2, 4))
    columns = draw(st.one_of(st.just(rows), st.integers(1, 4)))
    channels, height, width = (draw(st.integers(1, 3)) for _ in range(3))
    shape = (2, channels * rows * columns, (1 + height) * rows, width * columns)
    made = []
    for _ in range(count):
        name = draw(st.sampled_from([n for n in SPELLINGS if rows == columns or "pixel" not in n]))
        function = SPELLINGS[name]
        size = rows * columns if function in OF_SLICES else 3
        order = tuple(draw(st.permutations(range(size))))
        made.append(Block(name, shape, rows, columns, order, name.startswith(("slices", "views_of"))))
    return shape, made


# -- rolls


@dataclass(frozen=True)
class Roll:
    shifts: tuple[int, ...]
    dims: tuple[int, ...]

    def __call__(self, x: Tensor) -> Tensor:
        return torch.roll(x, self.shifts, self.dims)


@st.composite
def rolls(draw, count: int) -> tuple[tuple[int, ...], list[Roll]]:
    rank = draw(st.integers(2, 5))
    shape = (2, *(draw(st.integers(1, 5)) for _ in range(rank - 1)))
    made = []
    for _ in range(count):
        dims = draw(st.lists(st.integers(1, rank - 1), min_size=1, max_size=3))
        dims = [d - rank if draw(st.booleans()) else d for d in dims]
        made.append(Roll(tuple(draw(st.integers(-7, 7)) for _ in dims), tuple(dims)))
    return shape, made


# -- assignments in place


@dataclass(frozen=True)
class Assignment:
    """`held[target][at] = held[origin][source]`, or with an operator between; both are views of what is held."""

    kind: str
    target: int
    at: tuple[slice, ...]
    origin: int
    source: tuple[slice, ...]


@dataclass(frozen=True)
class InPlace:
    """What is held are a clone of the input and views of it; assignments follow one another; all is returned."""

    views: tuple[tuple[int, str, int, int], ...]
    assignments: tuple[Assignment, ...]

    def __call__(self, x: Tensor) -> Tensor:
        held = [x * 1.0]
        for of, kind, *numbers in self.views:
            held.append(viewed(held[of], kind, *numbers))
        for each in self.assignments:
            source = held[each.origin][each.source]
            if each.kind == "cloned":
                held[each.target][each.at] = source.clone()
            elif each.kind == "assigned":
                held[each.target][each.at] = source
            elif each.kind == "added":
                held[each.target][each.at] += source
            elif each.kind == "multiplied":
                held[each.target][each.at] *= source
            else:
                held[each.target][each.at].fill_(0.5)
        return torch.cat([each.flatten(1) for each in held], 1)


def viewed(x: Tensor, kind: str, first: int, second: int) -> Tensor:
    return {
        "transpose": lambda: x.transpose(first, second),
        "narrow": lambda: x.narrow(
            first, second % x.shape[first], 1 + (x.shape[first] - 1 - second % x.shape[first]) // 2
        ),
        "flip": lambda: x[..., ::2] if x.shape[-1] > 1 else x,
    }[kind]()


@st.composite
def cuts(draw, size: int, count: int) -> slice:
    """A slice of `count` of `size` elements."""
    step = draw(st.integers(1, max(1, (size - 1) // max(1, count - 1)))) if count > 1 else 1
    start = draw(st.integers(0, size - 1 - (count - 1) * step))
    return slice(start, start + (count - 1) * step + 1, step)


@st.composite
def programs_in_place(draw) -> tuple[tuple[int, ...], InPlace]:
    shape = (2, *(draw(st.integers(2, 5)) for _ in range(3)))
    views: list[tuple[int, str, int, int]] = []
    shapes = [torch.empty(shape)]
    for _ in range(draw(st.integers(0, 2))):
        of = draw(st.integers(0, len(shapes) - 1))
        kind = draw(st.sampled_from(("transpose", "narrow", "flip")))
        view = (of, kind, draw(st.integers(1, 3)), draw(st.integers(1, 3)))
        views.append(view)
        shapes.append(viewed(shapes[of], *view[1:]))
    assignments = []
    for _ in range(draw(st.integers(1, 4))):
        target, origin = (draw(st.integers(0, len(shapes) - 1)) for _ in range(2))
        pairs = list(zip(shapes[target].shape[1:], shapes[origin].shape[1:], strict=True))
        counts = [draw(st.integers(1, min(pair))) for pair in pairs]
        at = tuple(draw(cuts(a, n)) for (a, _), n in zip(pairs, counts, strict=True))
        source = tuple(draw(cuts(b, n)) for (_, b), n in zip(pairs, counts, strict=True))
        kind = draw(st.sampled_from(("cloned", "cloned", "assigned", "added", "multiplied", "filled")))
        assignments.append(Assignment(kind, target, (slice(None), *at), origin, (slice(None), *source)))
    return shape, InPlace(tuple(views), tuple(assignments))
