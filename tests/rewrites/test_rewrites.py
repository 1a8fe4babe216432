"""Every rewrite: what it makes of what it was written for, and what it leaves alone though it looks alike.

A picture is the program's operators in their order. After every rewrite the program still runs, computes the same in
float64 at two batch sizes, and the user's module has its own tensors.
"""

import operator
import time
import weakref
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from equivalence import Call, Input, assert_same, captured, examples, in_float64
from multi_head_rows import MULTI_HEAD_FIRES, MULTI_HEAD_LEAVES
from rewrite_rows import (
    AS_CONVOLUTION_FIRES,
    DEFORMABLE_FIRE,
    DEPTHWISE_BIAS_FIRES,
    DEPTHWISE_BIAS_LEAVES,
    FIXED_LEAVE,
    GROUPS_FIRE,
    GROUPS_LEAVE,
    INPUT_SCALE_FIRES,
    INPUT_SCALE_LEAVES,
    LARGE_IMAGE,
    LEARNED_FIRE,
    MORE_SEPARABLE,
    MOVES_FIRE,
    MOVES_LEAVE,
    NORM_FIRES,
    NORM_LEAVES,
    OFFSETS_FIRE,
    OFFSETS_LEAVE,
    PADDING_FIRES,
    PADDING_LEAVES,
    REDUNDANT_BIAS_LEAVES,
    SHIFTS_FIRE,
    SHIFTS_LEAVE,
    SPACE_TO_DEPTH_FIRES,
    SPACE_TO_DEPTH_LEAVES,
    TO_DEPTHWISE_FIRES,
    TO_DEPTHWISE_LEAVES,
    UNSHUFFLE_FIRES,
    UNSHUFFLE_LEAVES,
    VOLUMES_FIRE,
    VOLUMES_LEAVE,
    activated,
    separable,
)
from torch import nn

from converter.errors import ConversionError
from converter.ir.lazy_tensor import LazyTensor
from converter.ir.program import Program
from converter.rewrites.base import Change
from converter.rewrites.constant_offsets import constant_offsets, learned_offsets, remaining_offsets
from converter.rewrites.drop_batch_index import drop_batch_index
from converter.rewrites.drop_dropout import drop_dropout
from converter.rewrites.drop_identities import drop_identities
from converter.rewrites.drop_unread_statistics import drop_unread_statistics
from converter.rewrites.expand_adaptive_pools import expand_adaptive_pools
from converter.rewrites.expand_attention import expand_attention
from converter.rewrites.find_attention import find_attention
from converter.rewrites.find_channel_permutations import find_channel_permutations
from converter.rewrites.find_shifts import find_deformable_shifts, find_shifts, find_trained_shifts
from converter.rewrites.find_space_to_depth import (
    find_fast_space_to_depth,
    find_space_to_depth,
    find_space_to_depth_in_views,
    find_space_to_depth_or_gather,
)
from converter.rewrites.fold_batch_norm import fold_batch_norm
from converter.rewrites.fold_channel_order import fold_channel_order
from converter.rewrites.fold_constants import fold_constants
from converter.rewrites.fold_depthwise_bias import fold_depthwise_bias, fold_redundant_bias
from converter.rewrites.fold_input_scale import fold_input_scale
from converter.rewrites.group_convolutions import (
    group_bare_convolutions,
    group_convolutions,
    group_fast_convolutions,
    group_fast_normalized,
    group_large_convolutions,
    group_large_normalized,
)
from converter.rewrites.keep_small_values import keep_small_values
from converter.rewrites.linear_to_matmul import linear_to_matmul
from converter.rewrites.merge_moves import merge_moves
from converter.rewrites.merge_padding import merge_padding
from converter.rewrites.merge_separable import merge_separable
from converter.rewrites.negative_zero_padding import negative_zero_padding
from converter.rewrites.norm_to_scale import norm_to_scale, norm_to_taken_scale
from converter.rewrites.normalize_pools import normalize_pools
from converter.rewrites.note_split_volumes import note_split_volumes
from converter.rewrites.order_in_pixel_shuffle import order_in_pixel_shuffle
from converter.rewrites.order_in_views import order_in_views
from converter.rewrites.pipelines import REWRITES
from converter.rewrites.run import apply_rewrites
from converter.rewrites.shift_to_depthwise import shift_to_depthwise
from converter.rewrites.space_to_depth_as_convolution import space_to_depth_as_convolution
from converter.rewrites.space_to_depth_as_pixel_unshuffle import space_to_depth_as_pixel_unshuffle
from converter.rewrites.sum_in_float64 import sum_in_float64
from converter.rewrites.tie_embeddings import tie_embeddings
from converter.rewrites.unify_clamp_bounds import unify_clamp_bounds
from converter.rewrites.write_for_litert import write_for_litert
from converter.verification.checked_rewrite import rewrite

aten, ours = torch.ops.aten, torch.ops.converter

SEQUENCE = (2, 6, 11)
IMAGE = (2, 6, 9, 8)
VOLUME = (2, 6, 5, 7, 4)
FOCUS = (2, 3, 8, 12)
ALIKE = (2, 4, 4, 4)
ALIKE6 = (2, 6, 6, 6)
YOLOV5 = [(0, 0), (1, 0), (0, 1), (1, 1)]  # (row, column), joined column by column
ORDER = [3, 1, 4, 0, 5, 2]  # not its own inverse


def recurrent_with(**options) -> nn.Module:
    return Call(lambda self, x: self.lstm(x)[0], lstm=nn.LSTM(11, 4, 2, batch_first=True, **options))


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape))


# -- Focus


def offsets(block: int, shift: int = 0) -> list[tuple[int, int]]:
    """Column by column, or, with `shift`, in an order of no kind."""
    pairs = [(r, c) for c in range(block) for r in range(block)]
    return [pairs[(i * shift + i // 2) % len(pairs)] for i in range(len(pairs))] if shift else pairs


def quadrants(x, order=YOLOV5, step=2):
    return [x[..., r::step, c::step] for r, c in order]


def focus(order=YOLOV5, step=2, dim=1):
    return lambda x: torch.cat(quadrants(x, order, step), dim)


def columns_first(x):
    return torch.cat([x[..., c::2][..., r::2, :] for r, c in YOLOV5], 1)


def negative_dimensions(x):
    parts = [aten.slice.Tensor(aten.slice.Tensor(x, -2, r, 2**63 - 1, 2), -1, c, 2**63 - 1, 2) for r, c in YOLOV5]
    return torch.cat(parts, -3)


def explicit_ends(x):
    return torch.cat([x[:, :, r:8:2, c:12:2] for r, c in YOLOV5], 1)


PACKED_FOCUS = (2, 12, 3, 4)


def assigned(order=YOLOV5, filled=4):
    def forward(x):
        n, c, h, w = x.shape
        y = x.new_zeros(n, c // 4, 2 * h, 2 * w)
        for part, (r, q) in list(zip(x.chunk(4, 1), order, strict=True))[:filled]:
            y[..., r::2, q::2] = part
        return y

    return forward


def one_place_each(channels: int) -> torch.Tensor:
    """The kernel of a pixel shuffle by 2: (4 * channels, channels, 2, 2)."""
    return torch.eye(4 * channels).view(4 * channels, channels, 2, 2)


ANY_ORDER = [(1, 1), (0, 0), (0, 1), (1, 0)]
FOCUS_FIRES = {
    "by column, as YOLOv5 has it": (focus(), FOCUS, "space_to_depth reorder_channels"),
    "by row, as TensorFlow has it": (focus(sorted(YOLOV5)), FOCUS, "space_to_depth"),
    "in an order of no kind": (focus(ANY_ORDER), FOCUS, "space_to_depth reorder_channels"),
    "block 3": (focus(offsets(3), 3), (2, 2, 6, 9), "space_to_depth reorder_channels"),
    "block 4, by row": (focus(sorted(offsets(4)), 4), (2, 2, 8, 12), "space_to_depth"),
    "block 4 of equal sizes": (focus(offsets(4), 4), ALIKE, "space_to_depth reorder_channels"),
    "all sizes alike": (focus(), ALIKE, "space_to_depth reorder_channels"),
    "one channel": (focus(), (2, 1, 6, 8), "space_to_depth reorder_channels"),
    "of one block": (focus(), (2, 1, 2, 2), "space_to_depth reorder_channels"),
    "columns cut before rows": (columns_first, FOCUS, "space_to_depth reorder_channels"),
    "dimensions counted from the end": (negative_dimensions, FOCUS, "space_to_depth reorder_channels"),
    "slices with an end": (explicit_ends, FOCUS, "space_to_depth reorder_channels"),
    "several consumers": (
        lambda x: (lambda y: (y.relu(), y.sigmoid()))(focus()(x)),
        FOCUS,
        "space_to_depth reorder_channels relu sigmoid",
    ),
    "behind another operator": (lambda x: focus()(x.relu()), FOCUS, "relu space_to_depth reorder_channels"),
    "one behind the other": (
        lambda x: focus(sorted(YOLOV5))(focus()(x)), (2, 2, 8, 12), "space_to_depth reorder_channels"
    ),
    "slices that others read too": (
        lambda x: (lambda parts: (torch.cat(parts, 1), parts[1]))(quadrants(x)),
        FOCUS,
        "slice slice space_to_depth reorder_channels",
    ),
    "joined twice": (
        lambda x: torch.cat([torch.cat([x[:, :, r::2] for r in (0, 1)], 1)[..., c::2] for c in (0, 1)], 1),
        FOCUS,
        "space_to_depth reorder_channels",
    ),
    "stacked behind the channels": (
        lambda x: torch.stack(quadrants(x), 2).flatten(1, 2), FOCUS, "space_to_depth reorder_channels"
    ),
    "stacked before the channels": (
        lambda x: torch.stack(quadrants(x), 1).flatten(1, 2), FOCUS, "space_to_depth reorder_channels"
    ),
    "offsets that start beyond the block": (
        focus([(r + 2, c + 2) for r, c in YOLOV5]), FOCUS, "slice slice space_to_depth reorder_channels"
    ),
    "odd sizes, the last row left out": (
        lambda x: torch.cat([x[:, :, r:8:2, c:12:2] for r, c in YOLOV5], 1),
        (2, 3, 9, 13),
        "slice slice space_to_depth reorder_channels",
    ),
    "odd height, the first row left out": (
        lambda x: torch.cat([x[:, :, 1 + r :: 2, c::2] for r, c in YOLOV5], 1),
        (2, 3, 9, 12),
        "slice space_to_depth reorder_channels",
    ),
    "rows only": (
        lambda x: torch.cat([x[:, :, r::4] for r in range(4)], 1), FOCUS, "reshape permute reshape"
    ),
    "rows cut twice": (
        lambda x: torch.cat([x[:, :, r::2][:, :, c::2] for r, c in YOLOV5], 1), FOCUS, "reshape permute reshape"
    ),
    "quadrants assigned in place": (assigned(), PACKED_FOCUS, "reorder_channels depth_to_space"),
    "quadrants assigned in place, by row": (assigned(sorted(YOLOV5)), PACKED_FOCUS, "depth_to_space"),
    "joined by torch.concat": (
        lambda x: torch.concat(quadrants(x), dim=-3), FOCUS, "space_to_depth reorder_channels"
    ),
    "joined by torch.hstack": (lambda x: torch.hstack(quadrants(x)), FOCUS, "space_to_depth reorder_channels"),
    "a fixed 0/1 kernel": (
        lambda x: F.conv2d(x.relu(), one_place_each(3), stride=2), FOCUS, "relu space_to_depth reorder_channels"
    ),
    "a fixed 0/1 kernel for each channel": (
        lambda x: F.conv2d(x.relu(), torch.eye(4).view(4, 1, 2, 2).repeat(3, 1, 1, 1), stride=2, groups=3),
        FOCUS,
        "relu space_to_depth reorder_channels",
    ),
    "its inverse, by a fixed 0/1 kernel": (
        lambda x: F.conv_transpose2d(x.relu(), one_place_each(3), stride=2),
        PACKED_FOCUS,
        "relu reorder_channels depth_to_space",
    ),
    "its inverse, by a fixed 0/1 kernel for each channel": (
        lambda x: F.conv_transpose2d(x.relu(), torch.eye(4).view(4, 1, 2, 2).repeat(3, 1, 1, 1), stride=2, groups=3),
        PACKED_FOCUS,
        "relu reorder_channels depth_to_space",
    ),
}  # fmt: skip
SLOW_IN_ONNX = ("rows", "its inverse, by a fixed")
FOCUS_LEAVES = {
    "a step of 4": (focus(step=4), (2, 3, 8, 12)),
    "joined over the batch": (focus(dim=0), FOCUS),
    "joined over rows": (focus(dim=2), FOCUS),
    "a quadrant missing": (focus(YOLOV5[:3]), FOCUS),
    "a quadrant twice": (focus([(0, 0), (1, 0), (0, 1), (0, 1)]), FOCUS),
    "one quadrant four times": (focus([(0, 0)] * 4), FOCUS),
    "a fifth part": (focus([*YOLOV5, (0, 0)]), FOCUS),
    "odd sizes, quadrants that overlap": (
        lambda x: torch.cat([x[:, :, 2 * r :: 2, 2 * c :: 2][:, :, :3, :5] for r, c in YOLOV5], 1),
        (2, 3, 9, 13),
    ),
    "three quadrants assigned in place": (assigned(filled=3), PACKED_FOCUS),
    "quadrants assigned over each other": (assigned([*YOLOV5[:3], (0, 0)]), PACKED_FOCUS),
    "slices that overlap": (lambda x: torch.cat([x[..., r : r + 3, c : c + 4] for r, c in YOLOV5], 1), FOCUS),
    "windows of one quadrant": (
        lambda x: torch.cat([x[..., r : r + 6 : 2, c : c + 8 : 2] for r, c in [(0, 0), (0, 2), (2, 0), (2, 2)]], 1),
        (2, 3, 9, 13),
    ),
    "quadrants of two values": (
        lambda x: torch.cat([*quadrants(x)[:2], *quadrants(x.relu())[2:]], 1),
        FOCUS,
    ),
    "a quadrant changed on its way": (lambda x: torch.cat([quadrants(x)[0].relu(), *quadrants(x)[1:]], 1), FOCUS),
    "channels cut as well": (lambda x: torch.cat([part[:, :2] for part in quadrants(x)], 1), FOCUS),
    "5-D": (lambda x: torch.cat([x[:, :, r::2, c::2] for r, c in YOLOV5], 1), (2, 3, 4, 6, 5)),
    "3-D": (lambda x: torch.cat([x[:, r::2, c::2] for r, c in YOLOV5], 1), (2, 4, 6)),
    "by a kernel of more than 0 and 1": (
        lambda x: F.conv_transpose2d(x.relu(), 2 * one_place_each(3), stride=2),
        PACKED_FOCUS,
    ),
    "by a kernel whose neighbors overlap": (
        lambda x: F.conv_transpose2d(x.relu(), F.pad(one_place_each(3), (1, 0)), stride=2),
        PACKED_FOCUS,
    ),
    "by a kernel that adds two channels": (
        lambda x: F.conv_transpose2d(x.relu(), one_place_each(3).roll(1, 0) + one_place_each(3), stride=2),
        PACKED_FOCUS,
    ),
    "one slice joined with nothing": (lambda x: torch.cat([x[..., ::1, ::1]], 1), FOCUS),
}

# -- the order of channels


def shuffled(x, groups=3):
    b, c, h, w = x.shape
    return x.view(b, groups, c // groups, h, w).transpose(1, 2).reshape(b, c, h, w)


def reordered(x, order=ORDER):
    return ours.reorder_channels(x, order)


def behind(*layers: nn.Module) -> nn.Module:
    """Layers behind a reordering."""
    return Call(lambda self, x: self.layers(reordered(x)), layers=nn.Sequential(*layers))


def pools(x):
    return F.adaptive_avg_pool2d(F.avg_pool2d(F.max_pool2d(x, 3, 1, 1), 2, 1), (3, 4))


def by_pairs(x):
    """Pairs of channels in another order."""
    return ours.reorder_channels(x, [2, 3, 4, 5, 0, 1])


CHANNEL_ORDER_FIRES = {
    "channels within groups": (
        Call(
            lambda self, x: self.conv(ours.reorder_channels(x, [1, 0, 3, 2, 5, 4])), conv=nn.Conv2d(6, 6, 3, groups=3)
        ),
        IMAGE,
        "conv2d",
    ),
    "groups, and channels within them": (
        Call(
            lambda self, x: self.d(self.conv(ours.reorder_channels(x, [4, 5, 3, 1, 0, 2])).relu()),
            conv=nn.Conv2d(6, 8, 3, groups=2),
            d=nn.Conv2d(8, 4, 1),
        ),
        IMAGE,
        "conv2d relu conv2d",
    ),
    "channels within groups of a transposed convolution": (
        Call(
            lambda self, x: self.conv(ours.reorder_channels(x, [2, 1, 0, 5, 3, 4])),
            conv=nn.ConvTranspose2d(6, 4, 3, groups=2),
        ),
        IMAGE,
        "conv_transpose2d",
    ),
    "made by a transposed convolution in groups": (
        Call(
            lambda self, x: (lambda y: (y, y.relu()))(ours.reorder_channels(self.b(x), [1, 2, 0, 4, 3, 5])),
            b=nn.ConvTranspose2d(6, 6, 3, groups=2),
        ),
        IMAGE,
        "conv_transpose2d relu",
    ),
    "one consumer cannot take it": (
        Call(lambda self, x: (lambda y: (self.conv(y), y.mean(1)))(reordered(x)), conv=nn.Conv2d(6, 4, 3)),
        IMAGE,
        "reorder_channels conv2d mean",
    ),
    "an output too": (
        Call(lambda self, x: (lambda y: (y, self.conv(y)))(reordered(x)), conv=nn.Conv2d(6, 4, 3)),
        IMAGE,
        "reorder_channels conv2d",
    ),
    "in groups of pairs": (
        Call(
            lambda self, x: self.d(self.conv(by_pairs(x)).relu()),
            conv=nn.Conv2d(6, 9, 3, groups=3),
            d=nn.Conv2d(9, 4, 1),
        ),
        IMAGE,
        "conv2d relu conv2d",
    ),
    "depthwise with a multiplier": (
        Call(
            lambda self, x: self.d(self.conv(reordered(x)).relu()),
            conv=nn.Conv2d(6, 12, 3, groups=6),
            d=nn.Conv2d(12, 4, 1),
        ),
        IMAGE,
        "conv2d relu conv2d",
    ),
    "made by a convolution in groups": (
        Call(
            lambda self, x: (lambda y: (y, y.relu()))(by_pairs(self.b(self.a(x)))),
            a=nn.Conv2d(6, 3, 1),
            b=nn.Conv2d(3, 6, 3, groups=3),
        ),
        IMAGE,
        "conv2d conv2d relu",
    ),
    "made by a convolution in groups, within them": (
        Call(
            lambda self, x: ours.reorder_channels(self.b(x), [1, 0, 3, 2, 5, 4]).relu(),
            b=nn.Conv2d(6, 6, 3, groups=3),
        ),
        IMAGE,
        "conv2d relu",
    ),
    "a group norm of pairs": (
        Call(
            lambda self, x: self.conv(self.n(ours.reorder_channels(x, [3, 2, 4, 5, 1, 0]))),
            n=nn.GroupNorm(3, 6),
            conv=nn.Conv2d(6, 4, 1),
        ),
        IMAGE,
        "group_norm conv2d",
    ),
    "a group norm of all channels, without weights": (
        Call(
            lambda self, x: self.conv(self.n(reordered(x))),
            n=nn.GroupNorm(1, 6, affine=False),
            conv=nn.Conv2d(6, 4, 1),
        ),
        IMAGE,
        "group_norm conv2d",
    ),
    "a transposed convolution": (
        Call(lambda self, x: self.conv(reordered(x)), conv=nn.ConvTranspose2d(6, 4, 3)),
        IMAGE,
        "conv_transpose2d",
    ),
    "made by a transposed convolution": (
        Call(lambda self, x: reordered(self.conv(x)), conv=nn.ConvTranspose2d(6, 6, 3)),
        IMAGE,
        "conv_transpose2d",
    ),
    "into a kernel": (behind(nn.Conv2d(6, 4, 3)), IMAGE, "conv2d"),
    "into a kernel of equal sizes": (behind(nn.Conv2d(6, 6, 6)), (2, 6, 6, 6), "conv2d"),
    "into a kernel padded by name": (behind(nn.Conv2d(6, 4, 3, padding="same")), IMAGE, "conv2d"),
    "into a 1-D kernel": (behind(nn.Conv1d(6, 4, 3)), SEQUENCE, "conv1d"),
    "into a 3-D kernel": (behind(nn.Conv3d(6, 4, 2)), VOLUME, "conv3d"),
    "through a norm and an activation": (
        behind(nn.BatchNorm2d(6), nn.SiLU(), nn.Conv2d(6, 4, 1)),
        IMAGE,
        "batch_norm silu conv2d",
    ),
    "through any pointwise operators of one tensor": (
        Call(lambda self, x: self.conv(2 ** reordered(x).clamp(-1, 2).exp()), conv=nn.Conv2d(6, 4, 1)),
        IMAGE,
        "clamp exp pow conv2d",
    ),
    "through a norm without scale and shift": (
        behind(nn.BatchNorm2d(6, affine=False), nn.Conv2d(6, 4, 1)),
        IMAGE,
        "batch_norm conv2d",
    ),
    "through a depthwise convolution and its bias": (
        behind(nn.Conv2d(6, 6, 3, groups=6), nn.ReLU(), nn.Conv2d(6, 4, 1)),
        IMAGE,
        "conv2d relu conv2d",
    ),
    "flattened into a linear layer": (behind(nn.Flatten(), nn.Linear(432, 4)), IMAGE, "flatten linear"),
    "joined with what was not reordered": (
        Call(lambda self, x: self.conv(torch.cat([x, reordered(x).relu()], 1)), conv=nn.Conv2d(12, 4, 1)),
        IMAGE,
        "relu cat conv2d",
    ),
    "two orders joined, one behind the other": (
        Call(
            lambda self, x: self.conv(torch.cat([reordered(x), reordered(x.abs(), ORDER[::-1])], 1).relu()),
            conv=nn.Conv2d(12, 4, 1),
        ),
        IMAGE,
        "abs cat relu conv2d",
    ),
    "cut between the parts that were joined": (
        Call(
            lambda self, x: (lambda y, z: (self.a(y), self.b(z)))(
                *torch.cat([reordered(x), x.relu()], 1).split([6, 6], 1)
            ),
            a=nn.Conv2d(6, 4, 1),
            b=nn.Conv2d(6, 5, 1),
        ),
        IMAGE,
        "relu cat split_with_sizes conv2d conv2d",
    ),
    "into the producers of what is joined": (
        Call(
            lambda self, x: reordered(torch.cat([self.a(x), self.b(x)], 1), [1, 0, 2, 5, 3, 4]).mean(1),
            a=nn.Conv2d(6, 3, 1),
            b=nn.Conv2d(6, 3, 1),
        ),
        IMAGE,
        "conv2d conv2d cat mean",
    ),
    "into the producer of what is cut": (
        Call(
            lambda self, x: (lambda y, z: reordered(y, [2, 0, 1]).mean(1) + z.mean(1))(*self.a(x).split([3, 3], 1)),
            a=nn.Conv2d(6, 6, 1),
        ),
        IMAGE,
        "conv2d split_with_sizes mean mean add",
    ),
    "a shuffle into a kernel": (
        Call(lambda self, x: self.conv(shuffled(x.relu())), conv=nn.Conv2d(6, 4, 1)),
        IMAGE,
        "relu conv2d",
    ),
    "a shuffle back into a kernel, all sizes alike": (
        Call(lambda self, x: shuffled(self.conv(x)).relu(), conv=nn.Conv2d(6, 6, 1)),
        ALIKE6,
        "conv2d relu",
    ),
    "a shuffle of what is cut across behind it": (
        Call(lambda self, x: self.b(shuffled(self.a(x)).chunk(2, 1)[1]), a=nn.Conv2d(6, 6, 1), b=nn.Conv2d(3, 4, 1)),
        IMAGE,
        "conv2d chunk conv2d",
    ),
    "cut, changed apart and joined again": (
        Call(
            lambda self, x: (lambda y, z: self.conv(torch.cat([z.relu(), y], 1)))(
                *reordered(x, [2, 0, 1, 5, 3, 4]).chunk(2, 1)
            ),
            conv=nn.Conv2d(6, 4, 1),
        ),
        IMAGE,
        "chunk relu cat conv2d",
    ),
    "a shuffle of a sequence by permute": (
        Call(
            lambda self, x: self.conv(x.relu().view(-1, 2, 3, 11).permute(0, 2, 1, 3).reshape(-1, 6, 11)),
            conv=nn.Conv1d(6, 4, 1),
        ),
        SEQUENCE,
        "relu conv1d",
    ),
    "through slopes per channel": (behind(nn.PReLU(6), nn.Conv2d(6, 4, 1)), IMAGE, "prelu conv2d"),
    "through one slope for all": (behind(nn.PReLU(), nn.Conv2d(6, 4, 1)), IMAGE, "prelu conv2d"),
    "through pools": (
        Call(lambda self, x: self.conv(pools(reordered(x))), conv=nn.Conv2d(6, 4, 1)),
        IMAGE,
        "max_pool2d avg_pool2d adaptive_avg_pool2d conv2d",
    ),
    "through padding": (behind(nn.ZeroPad2d((1, 0, 2, 3)), nn.Conv2d(6, 4, 3)), IMAGE, "pad conv2d"),
    "through reflected padding": (
        behind(nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect")),
        IMAGE,
        "pad conv2d",
    ),
    "through upsampling and dropout": (
        behind(nn.Dropout(), nn.Upsample(scale_factor=2), nn.Conv2d(6, 4, 1)),
        IMAGE,
        "dropout upsample_nearest2d conv2d",
    ),
    "two consumers": (
        Call(
            lambda self, x: (lambda y: (self.a(y), self.b(y.relu())))(reordered(x)),
            a=nn.Conv2d(6, 4, 3),
            b=nn.Conv2d(6, 5, 1),
        ),
        IMAGE,
        "conv2d relu conv2d",
    ),
    "a kernel that also reads what was not reordered": (
        Call(lambda self, x: (self.conv(reordered(x)), self.conv(x)), conv=nn.Conv2d(6, 4, 3)),
        IMAGE,
        "conv2d conv2d",
    ),
    "a kernel that reads two orders": (
        Call(lambda self, x: (self.conv(reordered(x)), self.conv(reordered(x, ORDER[::-1]))), conv=nn.Conv2d(6, 4, 3)),
        IMAGE,
        "conv2d conv2d",
    ),
    "a norm called twice": (
        Call(
            lambda self, x: self.conv(self.norm(self.norm(reordered(x)).relu())),
            norm=nn.BatchNorm2d(6),
            conv=nn.Conv2d(6, 4, 1),
        ),
        IMAGE,
        "batch_norm relu batch_norm conv2d",
    ),
    "one tensor as scale and shift": (
        Call(
            lambda self, x: self.conv(F.batch_norm(reordered(x), self.mean, self.var, self.scale, self.scale)),
            mean=torch.zeros(6),
            var=torch.ones(6),
            scale=parameter(6),
            conv=nn.Conv2d(6, 4, 1),
        ),
        IMAGE,
        "batch_norm conv2d",
    ),
    "into a kernel of what is read before and behind": (
        Call(
            lambda self, x: (lambda y: (self.b(reordered(y)), self.c(y)))(self.a(x)),
            a=nn.Conv2d(6, 6, 1),
            b=nn.Conv2d(6, 4, 1),
            c=nn.Conv2d(6, 5, 1),
        ),
        IMAGE,
        "conv2d conv2d conv2d",
    ),
    "backwards into a kernel, an output behind": (
        Call(
            lambda self, x: reordered(self.norm(self.conv(x)).relu()), conv=nn.Conv2d(4, 6, 3), norm=nn.BatchNorm2d(6)
        ),
        (2, 4, 9, 8),
        "conv2d batch_norm relu",
    ),
    "backwards over a residual add": (
        Call(
            lambda self, x: self.c(reordered(x) + self.b(self.a(x))),
            a=nn.Conv2d(6, 4, 1),
            b=nn.Conv2d(4, 6, 1),
            c=nn.Conv2d(6, 5, 3),
        ),
        IMAGE,
        "conv2d conv2d add conv2d",
    ),
    "backwards over a gate": (
        Call(
            lambda self, x: (lambda y: self.c(y * self.b(y.mean((2, 3), keepdim=True)).sigmoid()))(reordered(x)),
            b=nn.Conv2d(6, 6, 1),
            c=nn.Conv2d(6, 5, 3),
        ),
        IMAGE,
        "mean conv2d sigmoid mul conv2d",
    ),
    "around a residual block": (
        Call(
            lambda self, x: (lambda y: self.c(y + self.b(y.relu())))(reordered(x)),
            b=nn.Conv2d(6, 6, 3, padding=1),
            c=nn.Conv2d(6, 5, 3),
        ),
        IMAGE,
        "relu conv2d add conv2d",
    ),
    "through a scale per channel": (
        Call(lambda self, x: self.conv(reordered(x) * self.scale), conv=nn.Conv2d(6, 4, 1), scale=parameter(6, 1, 1)),
        IMAGE,
        "mul conv2d",
    ),
    "through a scale over rows, as many as channels": (
        Call(lambda self, x: self.conv(reordered(x) * self.scale), conv=nn.Conv2d(6, 6, 1), scale=parameter(6, 1)),
        (2, 6, 6, 6),
        "mul conv2d",
    ),
    "through a sum with one channel": (
        Call(lambda self, x: self.conv(reordered(x) + x[:, :1]), conv=nn.Conv2d(6, 4, 1)),
        IMAGE,
        "slice add conv2d",
    ),
    "pooled, into a linear layer": (
        Call(lambda self, x: self.linear(reordered(x).mean((2, 3))), linear=nn.Linear(6, 4)),
        IMAGE,
        "mean linear",
    ),
    "pooled and flattened, into a linear layer": (
        behind(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)),
        IMAGE,
        "adaptive_avg_pool2d flatten linear",
    ),
    "one reordering behind the other": (
        Call(lambda self, x: self.conv(reordered(reordered(x).relu())), conv=nn.Conv2d(6, 4, 1)),
        IMAGE,
        "reorder_channels relu conv2d",
    ),
}
CHANNEL_ORDER_LEAVES = {
    "it reaches an output": (lambda x: reordered(x), IMAGE),
    "it reaches an output through a depthwise convolution": (behind(nn.Conv2d(6, 6, 3, groups=6)), IMAGE),
    "groups that a permutation mixes": (
        Call(lambda self, x: self.conv(by_pairs(x)), conv=nn.Conv2d(6, 4, 3, groups=2)),
        IMAGE,
    ),
    "a group norm whose groups a permutation mixes": (
        Call(lambda self, x: self.conv(self.n(by_pairs(x))), n=nn.GroupNorm(2, 6), conv=nn.Conv2d(6, 4, 1)),
        IMAGE,
    ),
    "a transposed convolution in groups": (
        Call(lambda self, x: self.conv(by_pairs(x)), conv=nn.ConvTranspose2d(6, 4, 3, groups=2)),
        IMAGE,
    ),
    "no consumer can take it": (lambda x: (lambda y: (y.mean(1), y.softmax(1)))(reordered(x)), IMAGE),
    "added to what was not reordered": (
        Call(lambda self, x: self.conv(reordered(x).relu() + x), conv=nn.Conv2d(6, 4, 3)),
        IMAGE,
    ),
    "of fewer channels than there were before a view": (
        Call(lambda self, x: self.conv(x.unflatten(1, (3, 2)).flip(1)), conv=nn.Conv3d(3, 4, 1)),
        IMAGE,
    ),
    "flattened with the batch": (
        Call(lambda self, x: self.linear(reordered(x).reshape(-1, 72)), linear=nn.Linear(72, 4)),
        IMAGE,
    ),
    "cut across": (Call(lambda self, x: self.conv(reordered(x).chunk(2, 1)[0]), conv=nn.Conv2d(3, 4, 1)), IMAGE),
    "cut along rows": (Call(lambda self, x: self.conv(reordered(x).chunk(2, 2)[0]), conv=nn.Conv2d(6, 4, 1)), IMAGE),
    "joined along rows": (
        Call(lambda self, x: self.conv(torch.cat([reordered(x), x], 2)), conv=nn.Conv2d(6, 4, 1)),
        ALIKE6,
    ),
    "a shuffle of what was joined and is cut across behind it": (
        Call(
            lambda self, x: self.b(shuffled(torch.cat([self.a(x), x], 1)).chunk(2, 1)[1]),
            a=nn.Conv2d(6, 6, 1),
            b=nn.Conv2d(6, 4, 1),
        ),
        IMAGE,
    ),
    "a view of rows and columns that looks like a shuffle": (
        Call(
            lambda self, x: self.conv(x.view(-1, 6, 3, 2, 6).transpose(2, 3).reshape(-1, 6, 6, 6)),
            conv=nn.Conv2d(6, 4, 1),
        ),
        ALIKE6,
    ),
    "a shuffle that moves rows with the channels": (
        Call(
            lambda self, x: self.conv(x.view(-1, 3, 2, 6, 6).permute(0, 3, 2, 1, 4).reshape(-1, 6, 6, 6)),
            conv=nn.Conv2d(6, 4, 1),
        ),
        ALIKE6,
    ),
    "groups that mix channels": (behind(nn.Conv2d(6, 4, 3, groups=2)), IMAGE),
    "a value of a lower rank": (
        Call(lambda self, x: self.conv(reordered(x) + x.mean(0)), conv=nn.Conv2d(6, 4, 3)),
        (2, 6, 6, 6),
    ),
    "added to the value that it reorders": (
        Call(
            lambda self, x: (lambda y: self.b(reordered(y).relu() + y))(self.a(x)),
            a=nn.Conv2d(6, 6, 1),
            b=nn.Conv2d(6, 4, 1),
        ),
        IMAGE,
    ),
    "added to the value that it reorders, as outputs": (
        Call(lambda self, x: (lambda y: reordered(y).relu() * y.sigmoid())(self.a(x)), a=nn.Conv2d(6, 6, 1)),
        IMAGE,
    ),
    "made of an input, two rows long": (lambda x: reordered(x[:, :, :2]).relu().mean(1), IMAGE),
    "softmax over channels": (Call(lambda self, x: self.conv(reordered(x).softmax(1)), conv=nn.Conv2d(6, 4, 1)), IMAGE),
    "padded channels": (
        Call(lambda self, x: self.conv(F.pad(reordered(x), (0, 0, 0, 0, 1, 0))), conv=nn.Conv2d(7, 4, 1)),
        IMAGE,
    ),
    "a kernel that depends on the input": (
        lambda x: F.conv2d(reordered(x), x.mean((0, 2, 3)).view(1, 6, 1, 1)),
        IMAGE,
    ),
}

PERMUTATION_FIRES = {
    "a list as index": (lambda x: x[:, ORDER], IMAGE, "reorder_channels"),
    "an index counted from the end": (lambda x: x[:, [3, 1, -2, 0, -1, 2]], IMAGE, "reorder_channels"),
    "index_select": (
        Call(lambda self, x: x.index_select(-3, self.order), order=torch.tensor(ORDER)),
        IMAGE,
        "reorder_channels",
    ),
    "a buffer as index, all sizes alike": (
        Call(lambda self, x: x[:, self.order].relu(), order=torch.tensor(ORDER)),
        (2, 6, 6, 6),
        "reorder_channels relu",
    ),
    "flip": (lambda x: x.flip(1), IMAGE, "reorder_channels"),
    "features": (lambda x: x[:, ORDER], (2, 6), "reorder_channels"),
}
PERMUTATION_LEAVES = {
    "a channel twice": (lambda x: x[:, [3, 1, 4, 0, 5, 5]], IMAGE),
    "a channel left out": (lambda x: x[:, [3, 1, 4, 0, 2]], IMAGE),
    "rows": (lambda x: x[:, :, [3, 1, 4, 0, 5, 2]], (2, 6, 6, 6)),
    "an index of two dimensions": (lambda x: x[:, [[3, 1, 4], [0, 5, 2]]], IMAGE),
    "two indices": (lambda x: x[:, ORDER, ORDER], (2, 6, 6, 5)),
    "flip of rows": (lambda x: x.flip(2), IMAGE),
    "flip of channels and rows": (lambda x: x.flip(1, 2), IMAGE),
    "an index made of the input": (lambda x: x.index_select(1, x[0, :, 0, 0].argsort()), IMAGE),
}

# -- batch norm

BATCH_NORM_FIRES = {
    "convolution with a bias": (nn.Sequential(nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4)), IMAGE, "conv2d"),
    "convolution without a bias": (nn.Sequential(nn.Conv2d(6, 4, 3, bias=False), nn.BatchNorm2d(4)), IMAGE, "conv2d"),
    "strided, padded, without a bias": (
        nn.Sequential(nn.Conv2d(6, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4, eps=0.3)),
        IMAGE,
        "conv2d",
    ),
    "output channels scaled along the inputs, sizes alike": (
        nn.Sequential(nn.Conv2d(6, 6, 6, bias=False), nn.BatchNorm2d(6)),
        (2, 6, 6, 6),
        "conv2d",
    ),
    "no scale and shift": (nn.Sequential(nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4, affine=False)), IMAGE, "conv2d"),
    "neither bias, scale nor shift": (
        nn.Sequential(nn.Conv2d(6, 4, 3, bias=False), nn.BatchNorm2d(4, affine=False)),
        IMAGE,
        "conv2d",
    ),
    "grouped": (nn.Sequential(nn.Conv2d(6, 4, 3, groups=2, bias=False), nn.BatchNorm2d(4)), IMAGE, "conv2d"),
    "depthwise with a multiplier": (nn.Sequential(nn.Conv2d(6, 12, 3, groups=6), nn.BatchNorm2d(12)), IMAGE, "conv2d"),
    "padded by name": (nn.Sequential(nn.Conv2d(6, 4, 3, padding="same"), nn.BatchNorm2d(4)), IMAGE, "conv2d"),
    "1-D": (nn.Sequential(nn.Conv1d(6, 4, 3), nn.BatchNorm1d(4)), SEQUENCE, "conv1d"),
    "3-D": (nn.Sequential(nn.Conv3d(6, 4, 2), nn.BatchNorm3d(4)), VOLUME, "conv3d"),
    "transposed": (nn.Sequential(nn.ConvTranspose2d(6, 4, 3, 2), nn.BatchNorm2d(4)), IMAGE, "conv_transpose2d"),
    "transposed, channels in and out alike, without a bias": (
        nn.Sequential(nn.ConvTranspose2d(6, 6, 4, 2, 1, bias=False), nn.BatchNorm2d(6)),
        IMAGE,
        "conv_transpose2d",
    ),
    "transposed in groups with more outputs than inputs": (
        nn.Sequential(nn.ConvTranspose1d(6, 9, 3, groups=3, bias=False), nn.BatchNorm1d(9)),
        SEQUENCE,
        "conv_transpose1d",
    ),
    "transposed volumes in groups": (
        nn.Sequential(nn.ConvTranspose3d(6, 4, 2, groups=2), nn.BatchNorm3d(4)),
        VOLUME,
        "conv_transpose3d",
    ),
    "linear": (nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)), (2, 6), "linear"),
    "linear without a bias": (nn.Sequential(nn.Linear(6, 4, bias=False), nn.BatchNorm1d(4)), (2, 6), "linear"),
    "two norms behind one kernel": (
        Call(
            lambda self, x: (self.a(self.conv(x)), self.b(self.conv(x.relu()))),
            conv=nn.Conv2d(6, 4, 3),
            a=nn.BatchNorm2d(4),
            b=nn.BatchNorm2d(4),
        ),
        IMAGE,
        "conv2d relu conv2d",
    ),
    "two norms behind one kernel without a bias": (
        Call(
            lambda self, x: (self.a(self.conv(x)), self.b(self.conv(x.relu()))),
            conv=nn.Conv2d(6, 4, 3, bias=False),
            a=nn.BatchNorm2d(4),
            b=nn.BatchNorm2d(4),
        ),
        IMAGE,
        "conv2d relu conv2d",
    ),
    "one kernel with a norm here and none there": (
        Call(
            lambda self, x: (self.norm(self.conv(x)), self.conv(x.relu())),
            conv=nn.Conv2d(6, 4, 3),
            norm=nn.BatchNorm2d(4),
        ),
        IMAGE,
        "conv2d relu conv2d",
    ),
    "one norm behind two kernels": (
        Call(
            lambda self, x: self.norm(self.a(x)) + self.norm(self.b(x)),
            a=nn.Conv2d(6, 4, 3),
            b=nn.Conv2d(6, 4, 3, bias=False),
            norm=nn.BatchNorm2d(4),
        ),
        IMAGE,
        "conv2d conv2d add",
    ),
    "one norm behind the other": (
        nn.Sequential(nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)),
        IMAGE,
        "conv2d",
    ),
    "one tensor as bias and shift": (
        Call(
            lambda self, x: F.batch_norm(F.conv2d(x, self.w, self.b), self.mean, self.var, None, self.b),
            w=parameter(4, 6, 3, 3),
            b=parameter(4),
            mean=torch.zeros(4),
            var=torch.full((4,), 2.0),
        ),
        IMAGE,
        "conv2d",
    ),
}
BATCH_NORM_LEAVES = {
    "a norm before the convolution": (nn.Sequential(nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3)), IMAGE),
    "an activation between": (nn.Sequential(nn.Conv2d(6, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)), IMAGE),
    "the convolution is read by others too": (
        Call(
            lambda self, x: (lambda y: self.norm(y) + y)(self.conv(x)), conv=nn.Conv2d(6, 4, 3), norm=nn.BatchNorm2d(4)
        ),
        IMAGE,
    ),
    "the convolution is an output too": (
        Call(
            lambda self, x: (lambda y: (self.norm(y), y))(self.conv(x)), conv=nn.Conv2d(6, 4, 3), norm=nn.BatchNorm2d(4)
        ),
        IMAGE,
    ),
    "statistics of the batch": (
        nn.Sequential(nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
        IMAGE,
    ),
    "a linear layer whose features are not the channels": (
        nn.Sequential(nn.Linear(11, 6), nn.BatchNorm1d(6)),
        SEQUENCE,
    ),
    "a linear layer whose features are as many as the channels": (
        nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)),
        (2, 6, 6),
    ),
    "a kernel that depends on the input": (
        Call(lambda self, x: self.norm(F.conv2d(x, x.mean((0, 2, 3)).view(1, 6, 1, 1))), norm=nn.BatchNorm2d(1)),
        IMAGE,
    ),
    "nothing before it": (nn.BatchNorm2d(6), IMAGE),
}

# -- orders that no weights take


def reordered_packing(order, also=lambda y: ()):
    return lambda x: (lambda y: (ours.reorder_channels(y, order), *also(y)))(ours.space_to_depth(x, 2))


COLUMNS_FIRST = [0, 1, 4, 5, 2, 3, 6, 7]


def shuffled_in(order):
    return lambda x: ours.depth_to_space(ours.reorder_channels(x, order), 2)


ORDERED_FIRES = {
    "columns before rows": (reordered_packing(COLUMNS_FIRST), (2, 2, 6, 4), "reshape permute reshape"),
    "channels first, as pixel_unshuffle has it": (
        reordered_packing([0, 2, 4, 6, 1, 3, 5, 7]), (2, 2, 6, 4), "reshape permute reshape"
    ),
}  # fmt: skip
ORDERED_LEAVES = {
    "any other order": (reordered_packing([1, 0, *range(2, 8)]), (2, 2, 6, 4)),
    "a packing that others read": (reordered_packing(COLUMNS_FIRST, lambda y: (y.relu(),)), (2, 2, 6, 4)),
}

# -- separable convolutions


SEPARABLE_FIRES = MORE_SEPARABLE | {
    "a bias behind": (separable(), IMAGE, "separable_conv2d"),
    "no bias": (separable(pointwise={"bias": False}), IMAGE, "separable_conv2d"),
    "strided and padded": (separable({"stride": 2, "padding": 1}), IMAGE, "separable_conv2d"),
    "dilated, padded on one axis": (separable({"dilation": 2, "padding": (0, 2)}), IMAGE, "separable_conv2d"),
    "a multiplier": (separable(multiplier=3), IMAGE, "separable_conv2d"),
    "a rectangular kernel": (separable({"kernel_size": (1, 4)}), IMAGE, "separable_conv2d"),
    "all sizes alike": (
        nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False), nn.Conv2d(6, 6, 1)),
        (2, 6, 6, 6),
        "separable_conv2d",
    ),
    "two kernels shared by two places": (
        Call(lambda self, x: (self.net(x), self.net(x.relu())), net=separable()),
        IMAGE,
        "separable_conv2d relu separable_conv2d",
    ),
    "a third convolution behind": (
        nn.Sequential(*separable(), nn.Conv2d(4, 3, 1)),
        IMAGE,
        "separable_conv2d conv2d",
    ),
}
SEPARABLE_LEAVES = {
    "a bias of the depthwise part": (separable({"bias": True}), IMAGE),
    "a pointwise part that is none": (separable(pointwise={"kernel_size": 3}), IMAGE),
    "a pointwise part one row high": (separable(pointwise={"kernel_size": (1, 2)}), IMAGE),
    "a pointwise part that is strided": (separable(pointwise={"stride": 2}), IMAGE),
    "a pointwise part that is padded": (separable(pointwise={"padding": 1}), IMAGE),
    "a pointwise part that is grouped": (separable(pointwise={"groups": 2}), IMAGE),
    "a depthwise part that is merely grouped": (separable({"groups": 3}), IMAGE),
    "a depthwise part of one channel": (
        nn.Sequential(nn.Conv2d(1, 1, 3, bias=False), nn.Conv2d(1, 4, 1)),
        (2, 1, 9, 8),
    ),
    "unequal strides": (separable({"stride": (1, 2)}), IMAGE),
    "unequal strides, one result along the wrong axis": (separable({"kernel_size": (3, 6), "stride": (1, 3)}), IMAGE),
    "stride and dilation together": (separable({"stride": 2, "dilation": 2}), IMAGE),
    "a norm between": (
        nn.Sequential(nn.Conv2d(6, 6, 3, groups=6, bias=False), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1)),
        IMAGE,
    ),
    "the depthwise part is read by others too": (
        Call(
            lambda self, x: (lambda y: (self.p(y), y.relu()))(self.d(x)),
            d=nn.Conv2d(6, 6, 3, groups=6, bias=False),
            p=nn.Conv2d(6, 4, 1),
        ),
        IMAGE,
    ),
    "pointwise before depthwise": (
        nn.Sequential(nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 3, groups=6, bias=False)),
        IMAGE,
    ),
}

# -- what does nothing, what is constant, what only ONNX wants

DROPOUT_FIRES = {
    "of elements": (nn.Sequential(nn.Dropout(0.5), nn.ReLU()), IMAGE, "relu"),
    "of channels": (nn.Sequential(nn.ReLU(), nn.Dropout2d(0.5), nn.Sigmoid()), IMAGE, "relu sigmoid"),
    "before an output": (nn.Sequential(nn.ReLU(), nn.Dropout(0.5)), IMAGE, "relu"),
    "twice": (nn.Sequential(nn.ReLU(), nn.Dropout(0.5), nn.Dropout(0.1), nn.Tanh()), IMAGE, "relu tanh"),
    "between the layers of an LSTM": (recurrent_with(dropout=0.5), SEQUENCE, "zeros zeros lstm"),
}
DROPOUT_LEAVES = {
    "no dropout": (nn.Sequential(nn.ReLU(), nn.Sigmoid()), IMAGE),
    "layers without": (recurrent_with(dropout=0.0), SEQUENCE),
}

BOUNDS_FIRE = {
    "an integer above": (lambda x: x.clamp(1e-3, 1), IMAGE, "clamp"),
    "an integer below": (lambda x: x.clamp(-1, 0.5), IMAGE, "clamp"),
    "a hardtanh of integers": (lambda x: F.hardtanh(x, -2, 3), Input(IMAGE, torch.int64), "clamp"),
}
BOUNDS_LEAVE = {
    "two integers": (lambda x: x.clamp(-1, 1), IMAGE),
    "one bound": (lambda x: x.clamp(min=0.5), IMAGE),
    "of integers": (lambda x: x.clamp(-1, 1), Input(IMAGE, torch.int64)),
}


def normalized(training):
    def function(self, x):
        return F.batch_norm(x, self.mean, self.variance, training=training)

    return Call(function, mean=torch.zeros(6), variance=torch.ones(6))


STATISTICS_FIRE = {"of the batch": (normalized(True), IMAGE, "batch_norm")}
STATISTICS_LEAVE = {
    "running ones": (normalized(False), IMAGE),
    "none": (nn.BatchNorm2d(6, track_running_stats=False), IMAGE),
}


def through_batch(x):
    return torch.arange(x.shape[0])


POSITION_FIRES = {
    "a mask read at positions that all examples share": (
        lambda x: x[through_batch(x)[:, None, None], torch.arange(5, -1, -1)[None, None, :]],
        SEQUENCE,
        "arange unsqueeze unsqueeze squeeze index",
    ),
    "two dimensions": (
        lambda x: x[through_batch(x)[:, None], torch.tensor([[1, 4]]), torch.tensor([3, 0])],
        SEQUENCE,
        "clone clone squeeze index",
    ),
    "a position of each example": (
        lambda x: x[through_batch(x), x.mean(2).argmax(1)],
        SEQUENCE,
        "mean argmax remainder unsqueeze unsqueeze expand gather squeeze",
    ),
    "counted from the end": (
        lambda x: x[through_batch(x), x.mean(2).argmax(1) - 6],
        SEQUENCE,
        "mean argmax sub remainder unsqueeze unsqueeze expand gather squeeze",
    ),
    "several of each example": (
        lambda x: x[through_batch(x)[:, None], x.mean(2).topk(3).indices],
        SEQUENCE,
        "mean topk remainder unsqueeze expand gather",
    ),
    "several of each example in one row": (
        lambda x: x[through_batch(x).unsqueeze(-1).repeat(1, 3).view(-1), x.mean(2).topk(3).indices.view(-1)],
        SEQUENCE,
        "mean topk reshape remainder reshape expand gather reshape",
    ),
    "several of each example in one row, counted from the end": (
        lambda x: x[through_batch(x).repeat_interleave(3), (x.mean(2).topk(3).indices - 6).view(-1)],
        SEQUENCE,
        "mean topk sub reshape remainder reshape expand gather reshape",
    ),
}
POSITION_LEAVES = {
    "a mask": (lambda x: torch.where(x > 0, x, 0)[:, [1, 2]], SEQUENCE),
    "backwards through the batch": (lambda x: x[x.shape[0] - 1 - through_batch(x), x.mean(2).argmax(1)], SEQUENCE),
    "a count that is computed with": (lambda x: x[through_batch(x) * 1, x.mean(2).argmax(1)], SEQUENCE),
    "each example several times, in turn": (
        lambda x: x[through_batch(x).repeat(3), x.mean(2).topk(3).indices.view(-1)],
        SEQUENCE,
    ),
    "a dimension of known size": (lambda x: x[:, torch.arange(6)[:, None], torch.tensor([1, 3])], SEQUENCE),
}

TOKENS = Input((2, 5), torch.int64, 0, 7)
TIED_FIRE = {
    "a Linear with the table's weight": (
        Call(lambda self, i: F.linear(self.table(i), self.table.weight), table=nn.Embedding(7, 4)),
        TOKENS,
        "embedding linear",
    ),
    "a product with the table's transpose": (
        Call(lambda self, i: self.table(i) @ self.table.weight.mT, table=nn.Embedding(7, 4)),
        TOKENS,
        "embedding linear",
    ),
}
TIED_LEAVE = {
    "another weight": (
        Call(lambda self, i: self.head(self.table(i)), table=nn.Embedding(7, 4), head=nn.Linear(4, 7)), TOKENS,
    ),
    "a square table itself": (
        Call(lambda self, i: self.table(i) @ self.table.weight, table=nn.Embedding(7, 7)), TOKENS,
    ),
    "a table that is no parameter": (
        Call(lambda self, i: F.linear(F.embedding(i, self.t), self.t), t=torch.zeros(7, 4)), TOKENS,
    ),
}  # fmt: skip

IDENTITIES_FIRES = {
    "copies": (lambda x: x.clone().detach().relu().contiguous().sigmoid(), IMAGE, "relu sigmoid"),
    "a cast to the type that is there": (lambda x: aten._to_copy.default(x, dtype=torch.float32).relu(), IMAGE, "relu"),
    "a slice of everything": (lambda x: x[:, :, 0:, :100].relu(), IMAGE, "relu"),
    "an expansion that changes nothing": (lambda x: x.expand(-1, 6, -1, -1).relu(), IMAGE, "relu"),
    "a copy as output": (lambda x: (x.relu().clone(), x.sigmoid()), IMAGE, "relu sigmoid"),
    "a shuffle undone": (
        lambda x: F.pixel_unshuffle(F.pixel_shuffle(x.repeat(1, 2, 1, 1), 2), 2).relu(),
        IMAGE,
        "repeat relu",
    ),
    "an einsum that permutes": (lambda x: torch.einsum("bchw->bhwc", x).relu(), IMAGE, "permute relu"),
    "a copy behind a permutation": (lambda x: x.permute(0, 2, 3, 1).contiguous().relu(), IMAGE, "permute relu"),
}
IDENTITIES_LEAVES = {
    "a shuffle by another block": (
        lambda x: F.pixel_unshuffle(F.pixel_shuffle(x.repeat(1, 6, 1, 1), 3), 2),
        (2, 6, 8, 10),
    ),
    "an einsum that adds": (lambda x: torch.einsum("bchw->bhc", x), IMAGE),
    "an einsum of a diagonal": (lambda x: torch.einsum("bchh->bch", x.expand(-1, -1, 4, 4)), (2, 3, 1, 1)),
    "a cast to another type": (lambda x: x.double().relu(), IMAGE),
    "a cast there and back": (lambda x: x.int().float(), IMAGE),
    "a slice of a part": (lambda x: x.narrow(1, 1, 5).relu(), IMAGE),
    "a slice by steps": (lambda x: aten.slice.Tensor(x, 1, 0, 6, 6).relu(), IMAGE),
    "an expansion that repeats": (lambda x: x.unsqueeze(1).expand(-1, 3, -1), (2, 6)),
    "an expansion that adds a dimension": (lambda x: x.expand(1, -1, -1).relu(), (2, 6)),
}

CONSTANTS_FIRES = {
    "a parameter rearranged": (Call(lambda self, x: x * self.p.view(6, 1, 1), p=parameter(6)), IMAGE, "mul"),
    "a parameter computed with": (
        Call(lambda self, x: x + (self.p.exp() * 2 + self.q), p=parameter(8), q=parameter(8)),
        IMAGE,
        "add",
    ),
    "a kernel with its norm": (
        nn.utils.parametrizations.weight_norm(nn.Conv2d(6, 4, 3), dim=0),
        IMAGE,
        "conv2d",
    ),
    "one expression twice": (
        Call(lambda self, x: (x + self.p.exp(), x - self.p.exp()), p=parameter(8)),
        IMAGE,
        "add sub",
    ),
    "numbers made on the spot": (lambda x: x * torch.arange(8) / torch.linspace(1, 2, 8), IMAGE, "mul div"),
    "a table cut": (Call(lambda self, x: x + self.p[:, :8].t()[None], p=parameter(9, 11)), (2, 8, 9), "add"),
}
CONSTANTS_FIRES |= {
    "integers divided, in the best precision known": (lambda x: x + torch.arange(8) / 7, IMAGE, "add"),
    "one of several results": (
        lambda x: x + torch.meshgrid(torch.arange(9), torch.arange(8), indexing="ij")[0],
        IMAGE,
        "add",
    ),
    "a number out of a parameter": (
        Call(lambda self, x: x * torch.full((8,), self.p[1].item()), p=parameter(2)),
        IMAGE,
        "mul",
    ),
    "sizes out of a buffer": (
        Call(
            lambda self, x: x.view(x.shape[0], self.n[0].item(), -1).softmax(1).mean((1, 2)) * (2 * self.n[1].item()),
            n=torch.tensor([3, 7]),
        ),
        (2, 6, 8),
        "reshape softmax mean mul",
    ),
}
CONSTANTS_LEAVES = {
    "what depends on the input": (Call(lambda self, x: (x + self.p) * 2, p=parameter(8)), IMAGE),
    "what depends on the batch": (lambda x: x + torch.ones(x.shape[0], 1), (2, 6)),
    "a number out of an input": (lambda x: x * x.sum().item(), IMAGE),
}

MATMUL_FIRES = {
    "of tokens": (nn.Linear(11, 4), SEQUENCE, "matmul add"),
    "without a bias": (nn.Linear(11, 4, bias=False), SEQUENCE, "matmul"),
    "of 4-D, all sizes alike": (nn.Linear(6, 6), (2, 6, 6, 6), "matmul add"),
    "two of them": (
        nn.Sequential(nn.Linear(11, 4), nn.ReLU(), nn.Linear(4, 3)),
        SEQUENCE,
        "matmul add relu matmul add",
    ),
}
MATMUL_LEAVES = {
    "of features": (nn.Linear(6, 4), (2, 6)),
    "a weight read elsewhere as it is": (
        Call(lambda self, x: (self.linear(x), x[:, :4] * self.linear.weight), linear=nn.Linear(11, 4)),
        SEQUENCE,
    ),
    "a weight of two layers": (
        Call(lambda self, x: self.linear(x) + self.linear(x.relu()), linear=nn.Linear(11, 4)),
        SEQUENCE,
    ),
    "a weight that depends on the input": (lambda x: F.linear(x, x.mean(0)[:4]), SEQUENCE),
}

ADAPTIVE_FIRES = {
    "windows that divide": (nn.AdaptiveAvgPool2d((3, 4)), IMAGE, "avg_pool2d"),
    "maxima of windows that divide": (nn.AdaptiveMaxPool2d((3, 4)), IMAGE, "max_pool2d"),
    "windows that overlap, along one axis": (
        nn.AdaptiveAvgPool2d((None, 3)),
        IMAGE,
        "slice mean slice mean slice mean cat",
    ),
    "maxima of windows that overlap": (
        nn.AdaptiveMaxPool2d((2, 5)),
        IMAGE,
        "slice amax slice amax cat slice amax slice amax slice amax slice amax slice amax cat",
    ),
    "one window": (nn.AdaptiveAvgPool3d(1), (2, 4, 5, 7, 6), "mean"),
    "one window, maxima of sequences": (nn.AdaptiveMaxPool1d(1), SEQUENCE, "amax"),
}
ADAPTIVE_LEAVES = {
    "positions that are read": (lambda x: F.adaptive_max_pool2d(x, (4, 3), return_indices=True), IMAGE),
    "a plain pool": (nn.AvgPool2d(2), IMAGE),
}

WINDOWS_FIRE = {
    "rounded up without another window: ONNX would take one that lies outside": (
        nn.MaxPool2d(2, 3, 1, 2, ceil_mode=True), (2, 3, 8, 8), "max_pool2d"
    ),
    "maxima rounded up to another window along columns only": (
        nn.MaxPool2d(2, 3, 1, 2, ceil_mode=True), (2, 3, 8, 9), "max_pool2d max_pool2d"
    ),
    "an average rounded up to another window along rows only, that does not count its padding": (
        nn.AvgPool2d((3, 2), (2, 3), 1, ceil_mode=True, count_include_pad=False), (2, 3, 8, 8), "avg_pool2d avg_pool2d"
    ),
    "the same, that counts it": (
        nn.AvgPool2d((3, 2), (2, 3), 1, ceil_mode=True), (2, 3, 8, 8), "avg_pool2d avg_pool2d"
    ),
    "an average rounded up without another window, along one axis, in the padding": (
        nn.AvgPool2d((3, 2), (2, 3), (1, 0), ceil_mode=True), (2, 3, 9, 9), "avg_pool2d"
    ),
    "maxima with their positions": (
        lambda x: F.max_pool1d(x, 2, 3, ceil_mode=True, return_indices=True), (2, 3, 9), "max_pool1d_with_indices"
    ),
    "a divisor": (nn.AvgPool2d((3, 2), 2, 1, divisor_override=5), IMAGE, "avg_pool2d mul"),
    "a divisor of volumes, rounded up": (
        nn.AvgPool3d(3, 2, 1, ceil_mode=True, divisor_override=3), (2, 3, 8, 9, 6), "constant_pad_nd avg_pool3d mul"
    ),
}  # fmt: skip
WINDOWS_LEAVE = {
    "rounded up to another window": (nn.MaxPool2d(3, 2, 1, ceil_mode=True), (2, 3, 8, 9)),
    "a plain average": (nn.AvgPool2d(3, 2, 1), IMAGE),
}

UNFUSED_FIRE = {
    "zeros before maxima": (
        lambda x: F.max_pool2d(F.pad(x, (0, 1, 0, 1)), 2, 1), IMAGE, "pad max_pool2d"
    ),
    "of a sequence": (nn.Sequential(nn.ConstantPad1d(1, 0), nn.MaxPool1d(3)), SEQUENCE, "pad max_pool1d"),
    "of volumes": (nn.Sequential(nn.ZeroPad3d(1), nn.MaxPool3d(2)), VOLUME, "pad max_pool3d"),
    "dropout between": (
        nn.Sequential(nn.ZeroPad2d(1), nn.Dropout(), nn.MaxPool2d(2)).eval(), IMAGE, "pad dropout max_pool2d"
    ),
    "windows of zeros alone, before which nothing is negative": (
        lambda x: F.max_pool2d(F.pad(x.relu(), (2, 2)), 2, 1), IMAGE, "relu pad max_pool2d"
    ),
    "averages of zeros alone": (lambda x: F.avg_pool2d(F.pad(x, (2, 2)), 2, 1), IMAGE, "pad avg_pool2d"),
    "dilated ones": (
        lambda x: F.max_pool2d(F.pad(x.relu(), (1, 1)), 2, 1, 0, 3), IMAGE, "relu pad max_pool2d"
    ),
}  # fmt: skip
UNFUSED_LEAVE = {
    "nothing is negative": (lambda x: F.max_pool2d(F.pad(F.relu6(x), (1, 1)), 3, 2), IMAGE),
    "another value": (lambda x: F.max_pool2d(F.pad(x, (1, 1), value=-0.5), 2), IMAGE),
    "minus infinity": (lambda x: F.max_pool2d(F.pad(x, (1, 1), value=-torch.inf), 2), IMAGE),
    "reflected": (lambda x: F.max_pool2d(F.pad(x, (1, 1, 1, 1), "reflect"), 2), IMAGE),
    "an average": (lambda x: F.avg_pool2d(F.pad(x, (1, 1)), 2), IMAGE),
    "cut": (lambda x: F.max_pool2d(F.pad(x, (-1, 1)), 2), IMAGE),
}

ATTENTION_FIRES = {
    "a mask of booleans that is made of the input": (
        lambda x: F.scaled_dot_product_attention(x, x, x, x[..., :5] > 2),
        (2, 3, 5, 7),
        "slice gt transpose matmul mul where softmax amax eq where matmul",
    ),
    "a mask of numbers, another scale": (
        lambda x: F.scaled_dot_product_attention(x, x, x, torch.where(x[..., :5] > 2, 0, -torch.inf), scale=0.3),
        (2, 3, 5, 7),
        "slice gt where transpose matmul mul add softmax amax eq where matmul",
    ),
    "no mask": (lambda x: F.scaled_dot_product_attention(x, x, x), (2, 3, 5, 7), "transpose matmul mul softmax matmul"),
    "a constant mask without an empty row": (
        Call(lambda self, x: F.scaled_dot_product_attention(x, x, x, self.m), m=torch.ones(5, 5).tril() > 0),
        (2, 3, 5, 7),
        "transpose matmul mul where softmax matmul",
    ),
    "a constant mask with an empty row": (
        Call(lambda self, x: F.scaled_dot_product_attention(x, x, x, self.m), m=torch.arange(25).view(5, 5) > 7),
        (2, 3, 5, 7),
        "transpose matmul mul where softmax amax eq where matmul",
    ),
}
ATTENTION_LEAVES = {
    "a causal one": (lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True), (2, 3, 5, 7)),
    "shared heads": (lambda x: F.scaled_dot_product_attention(x, x[:, :1], x[:, :1], enable_gqa=True), (2, 2, 5, 7)),
}

LOG1P = "add div mul mul add mul add mul add mul add mul add mul add log abs lt where"
SMALL_FIRES = {
    "expm1": (torch.expm1, (2, 7), "mul tanh exp add mul"),
    "log1p": (torch.log1p, (2, 7), LOG1P),
    "elu": (F.elu, (2, 7), "clamp mul tanh exp add mul gt where"),
    "elu with a factor": (lambda x: F.elu(x, 0.3), (2, 7), "clamp mul tanh exp add mul mul gt where"),
    "celu": (lambda x: F.celu(x, 1.7), (2, 7), "clamp mul mul tanh exp add mul mul gt where"),
    "selu": (F.selu, (2, 7), "clamp mul tanh exp add mul mul mul gt where"),
    "softplus": (F.softplus, (2, 7), f"relu abs neg exp {LOG1P} add gt where"),
    "softplus with beta": (lambda x: F.softplus(x, 3.0), (2, 7), f"mul relu abs neg exp {LOG1P} add div gt where"),
    "log_sigmoid": (F.logsigmoid, (2, 7), f"clamp abs neg exp {LOG1P} sub"),
    "logaddexp": (
        lambda x: torch.logaddexp(x, x.flip(0)), (2, 7), f"flip maximum sub eq where abs neg exp {LOG1P} add"
    ),
}  # fmt: skip
FOR_LITERT_FIRES = {
    "tan": (torch.tan, (2, 7), "sin cos div"),
    "atan": (torch.atan, (2, 7), "full_like atan2"),
    "acos": (lambda x: torch.acos(torch.sin(x)), (2, 7), "sin rsub add mul sqrt atan2"),
    "sinh": (torch.sinh, (2, 7), "mul tanh abs mul exp mul full_like div div mul add add mul"),
    "atanh of integers": (
        lambda x: torch.atanh(x.long() * 0),
        (2, 7),
        "_to_copy mul to abs mul rsub div log1p mul lt neg where",
    ),
    "the sign of integers": (lambda x: x.long().sign(), (2, 7), "_to_copy gt to lt to sub"),
    "a power of integers": (lambda x: x.long() ** 5, (2, 7), "_to_copy mul mul mul"),
}
FOR_LITERT_LEAVES = {
    "integers of 32 bits": (lambda x: (x.int().abs(), x.int() // 3, x.argmax(1)), (2, 7)),
    "a division of floats": (lambda x: torch.div(x, 3, rounding_mode="floor"), (2, 7)),
}
SUMS_FIRE = {
    "a long running sum": (lambda x: x.cumsum(1), (2, 1024), "to cumsum to"),
    "along an axis from the end": (lambda x: torch.sin(x.cumsum(-2)), (2, 1500, 3), "to cumsum to sin"),
}
SUMS_LEAVE = {
    "a short one": (lambda x: x.cumsum(1), (2, 1023)),
    "integers": (lambda x: x.round().long().cumsum(1), (2, 1500)),
    "float64": (lambda x: x.double().cumsum(1), (2, 1500)),
}
SMALL_LEAVES = {"what keeps them": (lambda x: torch.exp(x) - 1, (2, 7))}

TABLES = {
    tie_embeddings: (TIED_FIRE, TIED_LEAVE),
    unify_clamp_bounds: (BOUNDS_FIRE, BOUNDS_LEAVE),
    drop_unread_statistics: (STATISTICS_FIRE, STATISTICS_LEAVE),
    drop_batch_index: (POSITION_FIRES, POSITION_LEAVES),
    note_split_volumes: (VOLUMES_FIRE, VOLUMES_LEAVE),
    space_to_depth_as_pixel_unshuffle: (UNSHUFFLE_FIRES, UNSHUFFLE_LEAVES),
    space_to_depth_as_convolution: (AS_CONVOLUTION_FIRES, UNSHUFFLE_LEAVES),
    find_space_to_depth_in_views: (SPACE_TO_DEPTH_FIRES, SPACE_TO_DEPTH_LEAVES),
    find_space_to_depth_or_gather: (
        SPACE_TO_DEPTH_FIRES,
        {name: row for name, row in SPACE_TO_DEPTH_LEAVES.items() if name != "an order that no weights take"},
    ),
    constant_offsets: (OFFSETS_FIRE, FIXED_LEAVE),
    remaining_offsets: (
        {"of whole pixels": OFFSETS_FIRE["of whole pixels"]},
        {"between pixels": FIXED_LEAVE["between pixels"]},
    ),
    learned_offsets: (LEARNED_FIRE, OFFSETS_LEAVE),
    order_in_views: (ORDERED_FIRES, ORDERED_LEAVES),
    order_in_pixel_shuffle: (
        {"as PyTorch lists channels": (shuffled_in([0, 4, 1, 5, 2, 6, 3, 7]), (2, 8, 3, 4), "pixel_shuffle")},
        {"any other order": (shuffled_in([1, 0, *range(2, 8)]), (2, 8, 3, 4))},
    ),
    group_convolutions: (GROUPS_FIRE, GROUPS_LEAVE),
    group_bare_convolutions: (
        {"parts of their own, joined": GROUPS_FIRE["parts of their own, joined"]},
        {"parts, each before a ReLU": (activated(), LARGE_IMAGE)},
    ),
    group_large_convolutions: (
        {"parts, each before a ReLU": (activated(), LARGE_IMAGE, "conv2d relu")},
        {"small parts, each before a ReLU": (activated(), (2, 32, 9, 9))},
    ),
    group_fast_convolutions: (
        {
            "parts of few channels, each before a ReLU": (activated(2), (2, 8, 9, 9), "conv2d relu"),
            "parts of many channels, each before a ReLU": (activated(16), (2, 64, 9, 9), "conv2d relu"),
        },
        {"parts that fill no block, each before a ReLU": (activated(), LARGE_IMAGE)},
    ),
    group_large_normalized: (
        {"parts, each before a ReLU": (activated(), LARGE_IMAGE, "conv2d relu")},
        {
            "parts, each before a norm": (activated(norm=True), LARGE_IMAGE),
            "halves of a depthwise one, added": GROUPS_FIRE["halves of a depthwise one, added"][:2],
        },
    ),
    group_fast_normalized: (
        {"parts of few channels": (activated(2, plain=True), (2, 8, 9, 9), "conv2d")},
        {"parts that fill no block": (activated(plain=True), LARGE_IMAGE)},
    ),
    merge_padding: (PADDING_FIRES, PADDING_LEAVES),
    fold_depthwise_bias: (DEPTHWISE_BIAS_FIRES, DEPTHWISE_BIAS_LEAVES),
    norm_to_scale: (NORM_FIRES, NORM_LEAVES),
    norm_to_taken_scale: (
        {name: row for name, row in NORM_FIRES.items() if name == "before a convolution"},
        NORM_LEAVES | {name: row[:2] for name, row in NORM_FIRES.items() if name != "before a convolution"},
    ),
    fold_input_scale: (INPUT_SCALE_FIRES, INPUT_SCALE_LEAVES),
    fold_redundant_bias: (
        {name: row for name, row in DEPTHWISE_BIAS_FIRES.items() if name not in REDUNDANT_BIAS_LEAVES},
        DEPTHWISE_BIAS_LEAVES | REDUNDANT_BIAS_LEAVES,
    ),
    find_shifts: (SHIFTS_FIRE, SHIFTS_LEAVE),
    find_deformable_shifts: (
        DEFORMABLE_FIRE,
        {name: SHIFTS_FIRE[name][:2] for name in ("padded, rolled and cropped", "a nearest sample of a constant grid")},
    ),
    shift_to_depthwise: (TO_DEPTHWISE_FIRES, TO_DEPTHWISE_LEAVES),
    find_trained_shifts: (SHIFTS_FIRE, SHIFTS_LEAVE),
    find_space_to_depth: (FOCUS_FIRES, FOCUS_LEAVES),
    find_fast_space_to_depth: (
        {name: row for name, row in FOCUS_FIRES.items() if not name.startswith(SLOW_IN_ONNX)},
        FOCUS_LEAVES | {name: row[:2] for name, row in FOCUS_FIRES.items() if name.startswith(SLOW_IN_ONNX)},
    ),
    find_channel_permutations: (PERMUTATION_FIRES, PERMUTATION_LEAVES),
    fold_channel_order: (CHANNEL_ORDER_FIRES, CHANNEL_ORDER_LEAVES),
    fold_batch_norm: (BATCH_NORM_FIRES, BATCH_NORM_LEAVES),
    merge_separable: (SEPARABLE_FIRES, SEPARABLE_LEAVES),
    drop_dropout: (DROPOUT_FIRES, DROPOUT_LEAVES),
    drop_identities: (IDENTITIES_FIRES, IDENTITIES_LEAVES),
    fold_constants: (CONSTANTS_FIRES, CONSTANTS_LEAVES),
    linear_to_matmul: (MATMUL_FIRES, MATMUL_LEAVES),
    expand_adaptive_pools: (ADAPTIVE_FIRES, ADAPTIVE_LEAVES),
    normalize_pools: (WINDOWS_FIRE, WINDOWS_LEAVE),
    negative_zero_padding: (UNFUSED_FIRE, UNFUSED_LEAVE),
    expand_attention: (ATTENTION_FIRES, ATTENTION_LEAVES),
    merge_moves: (MOVES_FIRE, MOVES_LEAVE),
    find_attention: (MULTI_HEAD_FIRES, MULTI_HEAD_LEAVES),
    keep_small_values: (SMALL_FIRES, SMALL_LEAVES),
    sum_in_float64: (SUMS_FIRE, SUMS_LEAVE),
    write_for_litert: (FOR_LITERT_FIRES, FOR_LITERT_LEAVES),
}


def rows(table: int):
    return [
        pytest.param(change, *row, id=f"{change.__name__}: {name}")
        for change, tables in TABLES.items()
        for name, row in tables[table].items()
    ]


@pytest.mark.parametrize("change, module, shape, picture", rows(0))
def test_fires(change, module, shape, picture):
    before, tensors, program = start(change, module, shape)
    rewritten, changes = apply_rewrites(program, [change])
    assert operators(rewritten) == picture
    assert changes
    assert all(isinstance(c, Change) and c.name for c in changes)
    assert_computes_the_same(program, rewritten, shape)
    assert_tensors_are(before, tensors)


@pytest.mark.parametrize("change, module, shape", rows(1))
def test_leaves_alone(change, module, shape):
    before, tensors, program = start(change, module, shape)
    rewritten, changes = apply_rewrites(program, [change])
    assert changes == []
    assert rewritten.graph_module.code == program.graph_module.code
    assert_tensors_are(before, tensors)


def start(change, module, shape) -> tuple[dict, dict, Program]:
    """The module's tensors, copied and as they are, and its program behind the first rewrites."""
    module = module if isinstance(module, nn.Module) else Call(module)
    program = captured(module, shape)
    tensors = module.state_dict()
    for earlier in (tie_embeddings, drop_batch_index, drop_identities, fold_constants):
        if change is earlier:
            break
        program, _ = apply_rewrites(program, [earlier])
    return {name: t.clone() for name, t in tensors.items()}, tensors, program


def test_a_buffer_whose_indices_cut_groups_is_noted_as_part_of_the_graph():
    def forward(self, x):
        return torch.cat([self.a(x.index_select(1, self.at[0])), self.b(x[:, self.at[1]])], 1)

    module = Call(forward, a=nn.Conv2d(3, 2, 3), b=nn.Conv2d(3, 2, 3), at=torch.arange(6).view(2, 3))
    _, _, program = start(group_convolutions, module, IMAGE)
    rewritten, _ = apply_rewrites(program, [group_convolutions])
    assert operators(rewritten) == "conv2d"
    assert set(rewritten.inlined_sources) == {"at"}


def operators(program: Program) -> str:
    nodes = [node for node in program.graph.nodes if node.op == "call_function"]
    left_out = (aten.sym_size.int, operator.getitem)
    return " ".join(node.target._opname for node in nodes if node.target not in left_out)


def assert_computes_the_same(program: Program, rewritten: Program, shape) -> None:
    for batch in (2, 3):
        inputs = examples([shape], batch)
        results = [p.with_dtype(torch.float64).run(*in_float64(inputs)) for p in (rewritten, program)]
        assert_same(*results, f"batch {batch}")
    for before, after in zip(program.results, rewritten.results, strict=True):
        facts = [(n.meta["val"].dtype, n.meta["val"].dim(), tuple(n.meta["val"].shape)[1:]) for n in (before, after)]
        assert facts[0] == facts[1]


def assert_tensors_are(before: dict, tensors: dict) -> None:
    assert before.keys() == tensors.keys()
    assert all(torch.equal(before[name], tensors[name]) for name in before)


def test_every_rewrite_has_both_tables():
    known = {change for pipeline in REWRITES.values() for change in pipeline}
    assert known - TABLES.keys() == set()
    assert all(fires and leaves for fires, leaves in TABLES.values())


# -- what becomes of weights


@pytest.mark.parametrize(
    "change, module, shape, exact",
    [
        pytest.param(fold_channel_order, behind(nn.Conv2d(6, 4, 3)), IMAGE, True, id="permuted: bit for bit"),
        pytest.param(
            fold_batch_norm, nn.Sequential(nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4)), IMAGE, False, id="folded: computed"
        ),
        pytest.param(fold_constants, *CONSTANTS_FIRES["a parameter rearranged"][:2], True, id="constant rearranged"),
        pytest.param(fold_constants, *CONSTANTS_FIRES["a parameter computed with"][:2], False, id="constant computed"),
        pytest.param(linear_to_matmul, nn.Linear(11, 4), SEQUENCE, True, id="transposed"),
    ],
)
def test_changed_tensors_know_their_sources(change, module, shape, exact):
    *_, program = start(change, module, shape)
    rewritten, _ = apply_rewrites(program, [change])
    originals = set(program.origins)
    for node in rewritten.graph.find_nodes(op="get_attr"):
        origin = rewritten.origins[node.target]
        assert origin.sources
        assert set(origin.sources) <= originals
        new = rewritten.tensor(node)
        if node.target in originals and torch.equal(new, program.graph_module.get_parameter(node.target)):
            continue
        assert origin.exact == exact
        values = [program.graph_module.get_parameter(s) for s in origin.sources if "running" not in s]
        if exact:
            assert torch.equal(new.flatten().sort().values, values[0].flatten().sort().values.to(new.dtype))
        else:
            assert new.dtype == torch.float64, "folded in the best precision known"


def test_one_expression_of_constants_becomes_one_tensor():
    *_, program = start(fold_constants, *CONSTANTS_FIRES["one expression twice"][:2])
    rewritten, _ = apply_rewrites(program, [fold_constants])
    assert len({node.target for node in rewritten.graph.find_nodes(op="get_attr")}) == 1


class Diamonds(nn.Module):
    """A parameter through steps that read it twice each: evaluated by recursion that is 2 ** 60 calls."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5))

    def forward(self, x):
        y = self.weight
        for _ in range(60):
            y = torch.sin(y) + torch.cos(y)
        return x * y


@pytest.mark.slow
@pytest.mark.parametrize("kind", [nn.Parameter, nn.Buffer])
def test_a_chain_of_diamonds_is_folded_in_time_that_grows_with_its_length(kind):
    module = Diamonds()
    del module.weight
    module.weight = kind(torch.randn(5))
    before, tensors, program = start(fold_constants, module, (2, 5))
    started = time.perf_counter()
    rewritten, _ = apply_rewrites(program, [fold_constants])
    (node,) = rewritten.graph.find_nodes(op="get_attr")
    rewritten.tensor(node)
    assert time.perf_counter() - started < 2  # tens of milliseconds
    assert operators(rewritten) == "mul"
    assert_computes_the_same(program, rewritten, (2, 5))
    assert_tensors_are(before, tensors)


@pytest.mark.slow
def test_a_deferred_tensor_computes_every_part_once_and_holds_none_longer_than_it_is_read():
    calls, alive = [], weakref.WeakSet()

    def step(*parts: torch.Tensor) -> torch.Tensor:
        if parts[0].device.type != "meta":
            calls.append(len(alive))
        result = sum(parts) / len(parts) + 1
        alive.add(result)
        return result

    deferred = LazyTensor.of(torch.zeros(3))
    for _ in range(2000):  # deeper than Python recurses
        deferred = LazyTensor.combine(step, deferred, deferred)
    for _ in range(2):
        calls.clear()
        assert deferred.compute().tolist() == [2000.0] * 3
        assert len(calls) == 2000
        assert max(calls) <= 2


# -- the runner


def as_sigmoid(program: Program) -> list[Change]:
    """Wrong by far."""
    for node in program.graph.find_nodes(op="call_function", target=aten.relu.default):
        node.target = aten.sigmoid.default
    return [Change("relu -> sigmoid", "")]


def with_another_epsilon(program: Program) -> list[Change]:
    """Wrong in the sixth digit."""
    for node in program.graph.find_nodes(op="call_function", target=aten.batch_norm.default):
        node.args = (*node.args[:7], 1.1e-5, *node.args[8:])
    return [Change("epsilon", "")]


def without_batch(program: Program) -> list[Change]:
    """Right for the values, wrong in the shape."""
    (result,) = program.results
    with program.graph.inserting_after(result):
        squeezed = program.graph.call_function(aten.unsqueeze.default, (result, 0))
    program.graph.output_node().args = ((squeezed,),)
    return [Change("unsqueezed", "")]


MODEL = nn.Sequential(nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout())


@pytest.mark.parametrize("fault", [as_sigmoid, with_another_epsilon, without_batch])
def test_runner_names_the_rewrite_at_fault(fault):
    program = captured(MODEL, IMAGE)
    program.debug = False
    with pytest.raises(ConversionError, match=f"`{fault.__name__}` changed .*after drop_dropout") as raised:
        rewrite(program, (drop_dropout, fault, drop_identities), examples([IMAGE]))
    assert raised.value.fix


def reshape_to_the_example(program: Program) -> list[Change]:
    node = program.graph.find_nodes(op="call_function", target=aten.relu.default)[0]
    with program.graph.inserting_after(node):
        program.insert_call(aten.reshape.default, (node, [2, 6]), node)
    return [Change("Reshape", "", "")]


def ask_for_the_batch(program: Program) -> list[Change]:
    assert program.placeholders[0].meta["val"].shape[0] == 2
    return [Change("Nothing", "", "")]


@pytest.mark.parametrize("wrong", [reshape_to_the_example, ask_for_the_batch])
def test_a_rewrite_that_fixes_the_free_batch_is_refused(wrong):
    program = captured(torch.relu, (2, 6))
    with pytest.raises(ConversionError, match=r"Dimension 0 of input `.*` was dynamic, and is 2 after"):
        rewrite(program, [wrong], examples([(2, 6)]))


def test_runner_leaves_the_program_it_was_given():
    program = captured(MODEL, IMAGE)
    code, tensors = program.graph_module.code, {n: t.clone() for n, t in program.graph_module.state_dict().items()}
    rewritten, changes = rewrite(program, REWRITES["tf"], examples([IMAGE]))
    assert [c.name for c in changes] == ["Dropout dropped", "BatchNorm folded"]
    assert operators(rewritten) == "conv2d relu"
    assert program.graph_module.code == code
    assert_tensors_are(tensors, program.graph_module.state_dict())


def stem(order: Sequence[tuple[int, int]]) -> nn.Module:
    return Call(
        lambda self, x: self.net(focus(order)(x)),
        net=nn.Sequential(nn.Conv2d(12, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.SiLU()),
    )


@pytest.mark.parametrize(
    "format, picture",
    [
        ("keras", "space_to_depth conv2d batch_norm silu"),
        ("tf", "space_to_depth conv2d silu"),
        ("onnx", "space_to_depth conv2d silu"),
    ],
)
@pytest.mark.parametrize("order", [YOLOV5, sorted(YOLOV5), ANY_ORDER], ids=["by column", "by row", "in any order"])
def test_focus_stem_costs_one_space_to_depth(format, picture, order):
    program = captured(stem(order), FOCUS)
    rewritten, _ = rewrite(program, REWRITES[format], examples([FOCUS]))
    assert operators(rewritten) == picture
    assert_computes_the_same(program, rewritten, FOCUS)


def test_program_of_integers_is_rewritten_and_compared_too():
    program = captured(lambda n: n[:, :].clone() + 1, Input((2, 6), torch.int64))
    rewritten, changes = rewrite(program, (drop_identities,), examples([Input((2, 6), torch.int64)]))
    assert changes
    assert operators(rewritten) == "add"
