"""Samplings, pads, blocks, rolls and assignments drawn at random: rewritten and lowered, all compute what PyTorch does.

EXAMPLES=50 in the environment makes that many times more of them.
"""

import os

import numpy as np
import pytest
import torch
from drawn_systems import (
    All,
    Chain,
    affine_samplings,
    blocks,
    grids,
    padded_convolutions,
    programs_in_place,
    rolls,
    sampled_in_every_way,
)
from equivalence import Call, assert_computes_the_same, captured
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from converter.errors import CaptureError

ours = torch.ops.converter
FORMATS = ("tf", "keras", "onnx")
LOWERED = ("tf", "keras")  # PyTorch's exporter writes grids in ONNX
JOINED = ("by_slices", "by_stacked_slices", "by_nested_slices", "by_slices_of_a_part", "back_by_assignment")
PACKED = (ours.space_to_depth.default, ours.depth_to_space.default)


def drawn(count: int):
    return settings(
        max_examples=count * int(os.environ.get("EXAMPLES", "1")),
        deadline=None,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )


def images(shape, batch: int = 2) -> Tensor:
    return torch.randn(batch, *shape[1:], generator=torch.Generator().manual_seed(7))


@pytest.mark.slow
@drawn(2)
@given(grids(), st.sampled_from(LOWERED))
def test_any_grid_in_every_way(grid, format):
    ways = sampled_in_every_way(grid)
    if grid.fixed:
        (held,) = grid.values

        def sampled(x):
            return tuple(way(x, held.to(x.dtype).expand(x.shape[0], *held.shape[1:])) for way in ways)

        assert_computes_the_same(Call(sampled), [images(grid.shape)], format)
    else:
        module = Call(lambda x, g: tuple(way(x, g) for way in ways))
        first, *more = [[images(grid.shape), values.float()] for values in grid.values]
        assert_computes_the_same(module, first, format, more=more)


@pytest.mark.slow
@drawn(2)
@given(affine_samplings(), st.sampled_from(LOWERED))
def test_any_affine_grid(sampling, format):
    rank = len(sampling.shape) - 2
    theta = torch.randn(2, rank, rank + 1, generator=torch.Generator().manual_seed(3))
    assert_computes_the_same(Call(sampling), [images(sampling.shape), theta], format)


@pytest.mark.slow
@drawn(2)
@given(padded_convolutions(8), st.sampled_from(FORMATS))
def test_any_pad_before_a_convolution(drawn_convolutions, format):
    shape, convolutions = drawn_convolutions
    for each in convolutions:
        try:
            each(images(shape))
        except RuntimeError:
            assume(False)  # PyTorch refuses a kernel larger than what it gets
    rewritten = assert_computes_the_same(All(convolutions), [images(shape)], format)
    if format != "onnx":
        left = rewritten.graph.find_nodes(op="call_function", target=torch.ops.aten.pad.default)
        left += rewritten.graph.find_nodes(op="call_function", target=torch.ops.aten.constant_pad_nd.default)
        assert len(left) <= sum(not each.mergeable for each in convolutions)


@pytest.mark.slow
@drawn(2)
@given(blocks(8), st.sampled_from(FORMATS))
def test_any_block_moves_elements_only(drawn_blocks, format):
    shape, all_blocks = drawn_blocks
    assert_computes_the_same(All(all_blocks), [images(shape)], format, moving=True)


@pytest.mark.slow
@drawn(2)
@given(blocks(8), st.sampled_from(FORMATS), st.booleans())
def test_any_block_between_convolutions(drawn_blocks, format, before):
    shape, all_blocks = drawn_blocks
    chains = []
    for block in all_blocks:
        first = nn.Conv2d(shape[1], shape[1], 1) if before else nn.Identity()
        chains.append(Chain(first, block, nn.Conv2d(block(images(shape)).shape[1], 5, 1)))
    rewritten = assert_computes_the_same(All(chains), [images(shape)], format)
    packed = [node for node in rewritten.graph.nodes if node.target in PACKED]
    if all(block.alike for block in all_blocks):
        assert not packed
    slices = [b for b in all_blocks if b.spelling in JOINED and b.square]
    assert len(packed) >= len(slices)


@pytest.mark.slow
@drawn(2)
@given(rolls(40), st.sampled_from(FORMATS))
def test_any_roll(drawn_rolls, format):
    shape, all_rolls = drawn_rolls
    assert_computes_the_same(All(all_rolls), [images(shape)], format, moving=True)


@pytest.mark.slow
@drawn(4)
@given(programs_in_place(), st.sampled_from(FORMATS))
def test_any_assignment_in_place_follows_pytorchs_aliasing_or_is_refused(drawn_program, format):
    shape, function = drawn_program
    x = images(shape)
    expected = function(x)
    try:
        program = captured(Call(function), shape)
    except CaptureError:
        for each in function.assignments:
            if each.kind in ("assigned", "added", "multiplied"):
                return  # refused, as PyTorch does not say what copying onto itself gives
        raise
    np.testing.assert_array_equal(program.with_dtype(torch.float32).run(x)[0].numpy(), expected.numpy())
    assert_computes_the_same(program, [x], format)
