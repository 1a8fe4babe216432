"""Lists of rewrites. Each rewrite leaves a program that runs in PyTorch and computes the same function."""

from __future__ import annotations

import itertools

import torch
from torch._ops import OpOverload

from converter.ir import custom_ops
from converter.rewrites.base import Rewrite
from converter.rewrites.constant_offsets import constant_offsets, learned_offsets, remaining_offsets
from converter.rewrites.drop_batch_index import drop_batch_index
from converter.rewrites.drop_dropout import drop_dropout
from converter.rewrites.drop_identities import drop_identities
from converter.rewrites.drop_unread_statistics import drop_unread_statistics
from converter.rewrites.expand_adaptive_pools import expand_adaptive_pools
from converter.rewrites.expand_attention import expand_attention
from converter.rewrites.find_attention import find_attention
from converter.rewrites.find_channel_permutations import find_channel_permutations
from converter.rewrites.find_shifts import (
    find_deformable_and_sampled_shifts,
    find_deformable_shifts,
    find_sampled_shifts,
    find_shifts,
    find_trained_and_sampled_shifts,
    find_trained_shifts,
)
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
from converter.rewrites.shift_to_depthwise import shift_to_depthwise
from converter.rewrites.space_to_depth_as_convolution import space_to_depth_as_convolution
from converter.rewrites.space_to_depth_as_pixel_unshuffle import space_to_depth_as_pixel_unshuffle
from converter.rewrites.sum_in_float64 import sum_in_float64
from converter.rewrites.tie_embeddings import tie_embeddings
from converter.rewrites.unify_clamp_bounds import unify_clamp_bounds
from converter.rewrites.write_for_litert import write_for_litert

ours = torch.ops.converter
assert custom_ops  # registers torch.ops.converter

# The order matters: channels must be permuted before kernels are folded or merged into others.
COMMON: tuple[Rewrite, ...] = (
    drop_identities,
    fold_constants,
    constant_offsets,
    find_shifts,
    group_convolutions,
    find_space_to_depth,
    find_channel_permutations,
    fold_channel_order,
)


def insert_before(rewrites: tuple[Rewrite, ...], later: Rewrite, new: Rewrite) -> tuple[Rewrite, ...]:
    """Insert `new` before `later` in `rewrites`."""
    at = rewrites.index(later)
    return (*rewrites[:at], new, *rewrites[at:])


INFERENCE_VARIANTS: dict[Rewrite, Rewrite] = {find_shifts: find_trained_shifts, constant_offsets: learned_offsets}
FOR_INFERENCE = (
    drop_dropout,
    *(INFERENCE_VARIANTS.get(r, r) for r in COMMON),
    fold_batch_norm,
    group_large_normalized,
    norm_to_scale,
    fold_input_scale,
    merge_padding,
)
KERAS_VARIANTS: dict[Rewrite, Rewrite] = {group_convolutions: group_bare_convolutions}
TF_VARIANTS: dict[Rewrite, Rewrite] = {group_convolutions: group_large_convolutions}
ONNX_VARIANTS: dict[Rewrite, Rewrite] = {
    find_space_to_depth: find_fast_space_to_depth,
    group_convolutions: group_fast_convolutions,
    group_large_normalized: group_fast_normalized,
    norm_to_scale: norm_to_taken_scale,
}
TORCH_VARIANTS: dict[Rewrite, tuple[Rewrite, ...]] = {
    find_shifts: (find_deformable_shifts, remaining_offsets),
    fold_channel_order: (),
}
REWRITES: dict[str, tuple[Rewrite, ...]] = {
    "keras": (
        tie_embeddings,
        drop_batch_index,
        *(KERAS_VARIANTS.get(r, r) for r in COMMON),
        order_in_views,
        order_in_pixel_shuffle,
        find_attention,
        note_split_volumes,
        merge_padding,
        fold_redundant_bias,
        merge_separable,
    ),
    "tf": (
        drop_batch_index,
        *(TF_VARIANTS.get(r, r) for r in FOR_INFERENCE),
        order_in_views,
        order_in_pixel_shuffle,
        note_split_volumes,
        fold_depthwise_bias,
        merge_separable,
    ),
    "onnx": (
        *(
            ONNX_VARIANTS.get(r, r)
            for r in insert_before(FOR_INFERENCE, fold_channel_order, find_space_to_depth_or_gather)
        ),
        order_in_pixel_shuffle,
        drop_unread_statistics,
        expand_attention,
        merge_moves,
        linear_to_matmul,
        expand_adaptive_pools,
        normalize_pools,
        negative_zero_padding,
        unify_clamp_bounds,
        shift_to_depthwise,
    ),
    # Norms and dropouts stay, and shifts as the model spells them if PyTorch has their operators.
    "torch": (
        *itertools.chain(*(TORCH_VARIANTS.get(r, (r,)) for r in COMMON)),
        find_space_to_depth_in_views,
        space_to_depth_as_pixel_unshuffle,
        fold_channel_order,
    ),
}
REWRITES["tflite"] = (*REWRITES["tf"], write_for_litert, keep_small_values)  # its writer takes a SavedModel
REWRITES |= {format: (*REWRITES[format], sum_in_float64) for format in ("keras", "tf", "onnx")}  # LiteRT has no float64
KEEP_BATCHNORM = (fold_batch_norm, norm_to_scale, norm_to_taken_scale)
AS_CONVOLUTION: dict[Rewrite, Rewrite] = {space_to_depth_as_pixel_unshuffle: space_to_depth_as_convolution}
EXACT_SHIFTS: dict[Rewrite, Rewrite] = {
    find_shifts: find_sampled_shifts,
    find_trained_shifts: find_trained_and_sampled_shifts,
    find_deformable_shifts: find_deformable_and_sampled_shifts,
}

PACKING = (ours.space_to_depth.default, ours.depth_to_space.default, ours.reorder_channels.default)
# The custom operators that a rewrite may add.
EMITTED: dict[Rewrite, tuple[OpOverload, ...]] = {
    constant_offsets: (ours.shift.default,),
    learned_offsets: (ours.shift.default,),
    remaining_offsets: (ours.shift.default,),
    find_shifts: (ours.shift.default,),
    find_trained_shifts: (ours.shift.default,),
    find_sampled_shifts: (ours.shift.default,),
    find_deformable_shifts: (ours.shift.default,),
    find_deformable_and_sampled_shifts: (ours.shift.default,),
    find_trained_and_sampled_shifts: (ours.shift.default,),
    group_convolutions: (ours.reorder_channels.default,),
    group_bare_convolutions: (ours.reorder_channels.default,),
    group_large_convolutions: (ours.reorder_channels.default,),
    group_fast_convolutions: (ours.reorder_channels.default,),
    find_channel_permutations: (ours.reorder_channels.default,),
    space_to_depth_as_pixel_unshuffle: PACKING,
    space_to_depth_as_convolution: PACKING,
    find_space_to_depth: PACKING,
    find_fast_space_to_depth: PACKING,
    find_space_to_depth_in_views: PACKING,
    find_space_to_depth_or_gather: PACKING,
    find_attention: (ours.multi_head_attention.default,),
    merge_padding: (ours.padded_conv.default,),
    merge_separable: (ours.separable_conv1d.default, ours.separable_conv2d.default),
    note_split_volumes: (ours.padded_conv.default,),
}  # fmt: skip
