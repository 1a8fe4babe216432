"""The table of systems: what each moves, how it is written, and a network around it.

torchvision must be importable for those with a deformable convolution.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from converter.options import AcceptedKind
from sample_models.convolutions import (
    Deck,
    InParts,
    Multiplier,
    QuestionedSeparable,
    Separable,
    SeparableSequence,
    SizedPadding,
)
from sample_models.packing import (
    BY_COLUMN,
    BY_ROW,
    Blocks,
    PatchMerging,
    Quadrants,
    ShuffledSum,
    Slices,
    Stem,
    Upscaler,
    Views,
    Windows,
)
from sample_models.sampling import AlignedAggregation, DeformableBlock, FlowAlignment, SpatialTransformer
from sample_models.shifts import (
    ActiveShift,
    AliasedShift,
    AtInput,
    AxialShift,
    ConvolvedShift,
    CycleFC,
    CycleShift,
    CyclicShift,
    DeformedTaps,
    FourConnectedShift,
    GroupedShift,
    Mixing,
    RolledShift,
    SampledShift,
    ShiftedWindows,
    SliceShift,
    SparseShift,
    SpatialMLP,
)
from sample_models.spellings import (
    Branches,
    ClampedShift,
    ClearedShift,
    Filled,
    Gathered,
    HalfFocus,
    Interleaved,
    JoinedShift,
    Masked,
    MaskedShift,
    Patches,
    PlacedByKernel,
    Selected,
    TemporalShift,
    TokenShift,
    Unbound,
)

Shape = tuple[int, ...]


@dataclass(frozen=True)
class System:
    """A system that a paper names.

    Attributes:
        name: of the system; with `spelling`, how its movement is written, it names a row.
        build: a network that uses it, between layers with weights.
        shapes: of the network's inputs.
        movement: what moves elements and nothing else, and the shape of its input, where it can be had alone.
        exact_shifts: whether the option of that name is given.
        accept: what `--accept` is given.
    """

    name: str
    spelling: str
    build: Callable[[], nn.Module]
    shapes: tuple[Shape, ...]
    movement: tuple[Callable[[], nn.Module], Shape] | None = None
    exact_shifts: bool = False
    accept: tuple[AcceptedKind, ...] = ()

    @property
    def title(self) -> str:
        return f"{self.name}: {self.spelling}"


MAP = (1, 8, 9, 7)
IMAGE = (1, 3, 16, 24)


def shift(name: str, spelling: str, make: Callable[[], nn.Module], channels: int = 8, exact: bool = False) -> System:
    shape = (1, channels, 9, 7)
    return System(name, spelling, lambda: Mixing(make(), channels), (shape,), (make, shape), exact)


def stem(name: str, spelling: str, make: Callable[[], nn.Module], block: int, kernel: int = 1) -> System:
    return System(name, spelling, lambda: Stem(make(), 3 * block**2, kernel), (IMAGE,), (make, IMAGE))


SYSTEMS = (
    stem("Focus", "slices by column", lambda: Slices(BY_COLUMN), 2, 3),
    stem("Focus", "slices by row", lambda: Slices(BY_ROW), 2, 3),
    stem("TResNet stem", "view, permute, view", lambda: Views(4), 4),
    stem("TResNet stem", "slices", lambda: Slices(tuple((r, c) for r in range(4) for c in range(4)), 4), 4),
    stem("TResNet stem", "unfold", lambda: Windows(4), 4),
    stem("TResNet stem", "pixel_unshuffle", lambda: nn.PixelUnshuffle(4), 4),
    System("Focus", "blocks of 2x3", lambda: Stem(Blocks(2, 3), 18), (IMAGE,), (lambda: Blocks(2, 3), IMAGE)),
    System("Focus", "of a sequence", lambda: nn.Sequential(Blocks(4), nn.Conv1d(12, 8, 3)), ((1, 3, 24),)),
    System("Focus", "of a volume", lambda: nn.Sequential(Blocks(2, 2, 2), nn.Conv3d(24, 8, 1)), ((1, 3, 4, 8, 6),)),
    System(
        "Focus",
        "before groups of columns",
        lambda: nn.Sequential(Slices(BY_COLUMN), nn.Conv2d(12, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 5, 1)),
        (IMAGE,),
    ),
    System(
        "Focus",
        "before a group norm over columns",
        lambda: nn.Sequential(Slices(BY_COLUMN), nn.GroupNorm(2, 12), nn.Conv2d(12, 8, 3)),
        (IMAGE,),
    ),
    System(
        "Focus",
        "its inverse, assigned",
        lambda: nn.Sequential(nn.Conv2d(3, 12, 3), Quadrants(), nn.Conv2d(3, 5, 3)),
        (IMAGE,),
        (Quadrants, (1, 8, 5, 6)),
    ),
    System("Swin", "PatchMerging", lambda: PatchMerging(16, (8, 12)), ((1, 96, 16),)),
    System("ESPCN", "a sum, pixel_shuffle, a norm", ShuffledSum, (IMAGE,)),
    System("ESPCN", "pixel_shuffle", Upscaler, (IMAGE,), (lambda: nn.PixelShuffle(3), (1, 18, 5, 7))),
    System("S2-MLP", "slices assigned in place", lambda: SpatialMLP(8), (MAP,), (SliceShift, MAP)),
    System(
        "S2-MLP",
        "without a copy, --accept aliased-shift",
        lambda: SpatialMLP(8, AliasedShift()),
        (MAP,),
        (AliasedShift, MAP),
        accept=("aliased-shift",),
    ),
    shift("AS-MLP", "pad, roll rows, crop", lambda: AxialShift(2), 10),
    shift("AS-MLP", "pad, roll columns, crop", lambda: AxialShift(3, 5, "replicate"), 10),
    shift("spatial shift", "replicate, roll in four directions, crop", RolledShift),
    shift("spatial shift", "one-hot depthwise convolution", lambda: ConvolvedShift(8)),
    shift("spatial shift", "grid_sample, nearest", lambda: SampledShift("nearest")),
    shift("spatial shift", "grid_sample, bilinear", lambda: SampledShift("bilinear")),
    shift("spatial shift", "grid_sample, bilinear, --exact-shifts", lambda: SampledShift("bilinear"), 8, True),
    System(
        "CycleMLP",
        "deform_conv2d, constant offsets",
        lambda: Mixing(CycleFC(8), 8),
        (MAP,),
        (lambda: CycleShift(8), MAP),
    ),
    shift("Grouped Shift", "nine groups, one-hot depthwise", lambda: GroupedShift(9), 9),
    shift("4-connected shift", "slices into zeros", FourConnectedShift, 10),
    shift("Sparse Shift", "one-hot depthwise", lambda: SparseShift(8)),
    System("Active Shift", "deform_conv2d, learned offsets", lambda: Mixing(ActiveShift(8), 8), (MAP,)),
    System(
        "Swin",
        "roll, windows, mask",
        lambda: ShiftedWindows(8, (8, 12)),
        ((1, 8, 8, 12),),
        (lambda: CyclicShift(-2), MAP),
    ),
    System("spatial shift", "of an input, roll", lambda: AtInput(RolledShift(), 8), (MAP,)),
    System(
        "spatial shift", "of an input, one-hot depthwise convolution", lambda: AtInput(ConvolvedShift(8), 8), (MAP,)
    ),
    System("spatial shift", "of an input, deform_conv2d", lambda: AtInput(CycleShift(8), 8), (MAP,)),
    System("spatial shift", "of an input, grid_sample, nearest", lambda: AtInput(SampledShift("nearest"), 8), (MAP,)),
    shift("spatial shift", "reflect, roll in four directions, crop", lambda: RolledShift("reflect")),
    System("CycleMLP", "3x3 deform_conv2d, constant whole offsets", lambda: Mixing(DeformedTaps(8, (9, 7)), 8), (MAP,)),
    shift("Grouped Shift", "25 groups, one-hot depthwise", lambda: GroupedShift(25, 2), 25),
    stem("Focus", "rows and columns selected", Selected, 2, 3),
    stem("Focus", "pixels gathered", Gathered, 2, 3),
    stem("Focus", "views and selections", Unbound, 2, 3),
    stem("Focus", "assigned to an empty tensor", Filled, 2, 3),
    stem("Focus", "masks of rows and columns", Masked, 2, 3),
    System("Focus", "of half the channels", HalfFocus, ((1, 6, 16, 24),)),
    System("patches", "an einsum, a Linear", lambda: Patches(3, 4, 10), (IMAGE,)),
    System(
        "ESPCN",
        "stacks of quadrants",
        lambda: nn.Sequential(nn.Conv2d(3, 12, 3), Interleaved(), nn.Conv2d(3, 5, 1)),
        (IMAGE,),
        (Interleaved, (1, 8, 5, 7)),
    ),
    System(
        "ESPCN",
        "a fixed kernel, transposed",
        lambda: nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), PlacedByKernel(3), nn.Conv2d(3, 5, 1)),
        (IMAGE,),
        (lambda: PlacedByKernel(2), (1, 8, 5, 7)),
    ),
    System(
        "ESPCN",
        "pixel_shuffle of a depthwise convolution",
        lambda: nn.Sequential(
            nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=16), nn.PixelShuffle(2), nn.Conv2d(4, 5, 1)
        ),
        (IMAGE,),
    ),
    System(
        "ESPCN",
        "pixel_shuffle of a grouped convolution",
        lambda: nn.Sequential(
            nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=2), nn.PixelShuffle(2), nn.Conv2d(4, 5, 1)
        ),
        (IMAGE,),
    ),
    shift("spatial shift", "rolls and masks", MaskedShift),
    shift("spatial shift", "rolls, what wraps cleared", ClearedShift),
    shift("spatial shift", "clamped positions as indices", ClampedShift),
    shift("spatial shift", "narrowed groups, joined to their borders", JoinedShift),
    System("S2-MLP", "channels last, assigned in place", lambda: TokenShift(8), ((1, 6, 7, 8),)),
    System("TSM", "a part of the channels from frame to frame", lambda: TemporalShift(8), ((1, 4, 8, 6, 7),)),
    System("STN", "affine_grid, grid_sample", lambda: SpatialTransformer(3, (16, 24)), (IMAGE,)),
    System("Semantic Flow", "grid_sample by a flow", lambda: FlowAlignment(8, 5), (MAP, (1, 5, 5, 4))),
    System("AlignSeg", "grid_sample by two flows", lambda: AlignedAggregation(8), (MAP, (1, 8, 5, 4))),
    System("Deformable ConvNets v1", "deform_conv2d", lambda: DeformableBlock(3, 6, False), ((1, 3, 12, 10),)),
    System("Deformable ConvNets v2", "with a mask", lambda: DeformableBlock(3, 6, True, 2), ((1, 3, 12, 10),)),
    System("grouped convolution", "multiplier; fewer outputs", Multiplier, ((1, 4, 9, 7),)),
    System("grouped convolution", "split deck", lambda: Deck(6, True), ((1, 6, 9, 7),)),
    System("grouped convolution", "split deck of an input", lambda: Deck(6, False), ((1, 6, 9, 7),)),
    System("grouped convolution", "parts, joined", lambda: InParts(5), ((1, 5, 9, 7),)),
    System(
        "grouped convolution", "parts, each before a ReLU, joined", lambda: InParts(5, activate=True), ((1, 5, 56, 56),)
    ),
    System("grouped convolution", "branches with norms", lambda: Branches(2, 16), ((1, 3, 32, 32),)),
    System("SeparableConv1D", "both with a bias", SeparableSequence, ((1, 6, 32),)),
    System("SeparableConv2D", "pads (7, 8)", Separable, ((1, 6, 5, 32),)),
    System("SeparableConv2D", "pads (8, 7), bias", lambda: Separable((8, 7), True), ((1, 6, 5, 32),)),
    System("SeparableConv2D", "outputs * depth", lambda: QuestionedSeparable(6, 12, 2), ((1, 6, 5, 32),)),
    System("SAME", "pads computed from the size", SizedPadding, ((1, 3, 16, 23),)),
)
