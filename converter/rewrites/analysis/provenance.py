"""Trace where the elements of a value come from, through operators that only move them.

A region of such operators runs once on the positions of its source's elements in place of their values. Its
result then says, for every element, which one it is, in whatever form the move is written. Zero stands for a zero.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import sympy
import torch
from torch import Tensor, fx

from converter.ir import custom_ops
from converter.ir.aten import bound_arguments, first_input
from converter.ir.program import Program
from converter.ir.sizes import Size, example_shape, symbolic_shape
from converter.rewrites.analysis.selection_ops import (
    FIXED_ONLY,
    Allowed,
    constant_behind,
    is_kernel,
    is_mask,
    is_selecting,
    selected,
    tensors_behind,
)
from converter.rewrites.fold_constants import FILLING, is_filling

aten, ours = torch.ops.aten, torch.ops.converter
assert custom_ops  # registers torch.ops.converter

MOVING = {
    aten.slice.Tensor, aten.select.int, aten.cat.default, aten.stack.default, aten.split.Tensor,
    aten.split_with_sizes.default, aten.chunk.default, aten.roll.default, aten.slice_scatter.default,
    aten.select_scatter.default, aten.clone.default, aten.alias.default, aten.contiguous.default, aten.permute.default,
    aten.transpose.int, aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints,
    aten.unflatten.int, aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims,
    aten.flip.default, aten.im2col.default, aten.col2im.default, aten.pixel_shuffle.default,
    aten.pixel_unshuffle.default, aten.channel_shuffle.default, aten.pad.default, aten.constant_pad_nd.default,
    aten.replication_pad1d.default, aten.replication_pad2d.default, aten.replication_pad3d.default,
    aten.reflection_pad1d.default, aten.reflection_pad2d.default, aten.reflection_pad3d.default,
    aten.copy.default, aten.unbind.int, aten.unfold.default, ours.space_to_depth.default, ours.depth_to_space.default,
    aten.as_strided.default, ours.reorder_channels.default, ours.shift.default, operator.getitem,
}  # fmt: skip
ZEROS = {aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default, aten.zero.default}
FILLS = ZEROS | {aten.fill.Scalar, aten.fill.Tensor, *FILLING}
# These choose elements by other tensors; here the arguments whose elements the result holds.
CHOOSING: dict[object, tuple[str, ...]] = {
    aten.index_select.default: ("self",), aten.index.Tensor: ("self",), aten.gather.default: ("self",),
    aten.where.self: ("self", "other"), aten.masked_fill.Scalar: ("self",),
}  # fmt: skip
EXAMPLES = 2  # two show whether a region moves anything from one to the other
MOST_ELEMENTS = 2**24  # of a source; float64 can count further
MOST_OPERATORS = 400  # of a region


def is_moving(program: Program, node: fx.Node, allowed: Allowed = FIXED_ONLY) -> bool:
    """Return whether every element of the result is an element of an input, or zero."""
    if node.op != "call_function":
        return False
    if node.target in FILLS:
        return is_zero(program, node)
    if node.target is aten.mul.Tensor:
        return is_mask(program, node)
    if node.target in CHOOSING:
        fills = node.target is aten.masked_fill.Scalar and bound_arguments(node).value("value") != 0
        return not fills and all(is_known(program, n) for n in choice(node))
    if node.target not in MOVING:
        return is_selecting(program, node, allowed)
    if node.target in (aten.pad.default, aten.constant_pad_nd.default):
        arguments = bound_arguments(node)
        constant = node.target is aten.constant_pad_nd.default or arguments.text("mode") == "constant"
        return not constant or arguments.value("value") in (None, 0)
    if node.target is aten.col2im.default:  # without overlaps, which are added
        arguments = bound_arguments(node)
        tiles = zip(*(arguments.integers(name) for name in ("kernel_size", "dilation", "stride")), strict=True)
        return all(dilation * (size - 1) < stride for size, dilation, stride in tiles)
    if node.target is aten.copy.default:
        before, after = bound_arguments(node).node("src").meta["val"], node.meta["val"]
        return before.dtype == after.dtype and before.shape == after.shape
    return True


def is_zero(program: Program, node: fx.Node) -> bool:
    """Return whether all elements are known to be zero."""
    if program.is_tensor(node):
        tensor = program.tensor(node)
        return not program.trainable(node) and not bool(tensor.any())
    if node.target in ZEROS:
        return True
    if node.target in (aten.fill.Scalar, aten.fill.Tensor):
        value = bound_arguments(node).value("value")
        return is_zero(program, value) if isinstance(value, fx.Node) else bool(value == 0)
    filled = node.target in (aten.full_like.default, aten.new_full.default) and is_filling(node)
    return filled and bool(bound_arguments(node).value("fill_value") == 0)


def moved_inputs(node: fx.Node) -> list[fx.Node]:
    """Return the inputs whose elements the result may hold."""
    if node.target is aten.copy.default:
        return [bound_arguments(node).node("src")]
    if node.target in FILLS:
        return []
    if node.target is aten.mul.Tensor:
        return [n for n in node.all_input_nodes if n.op != "get_attr"]
    if is_kernel(node):
        return [first_input(node)]
    if node.target in CHOOSING:
        return [bound_arguments(node).node(name) for name in CHOOSING[node.target]]
    return [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor | list | tuple)]


def choice(node: fx.Node) -> list[fx.Node]:
    """Return the tensors by which an operator chooses."""
    moved = moved_inputs(node)
    return [n for n in node.all_input_nodes if n not in moved and isinstance(n.meta.get("val"), Tensor)]


def is_known(program: Program, node: fx.Node) -> bool:
    """Return whether a tensor to choose by is the same for all inputs."""
    constant = constant_behind(node)
    if not program.is_tensor(constant) or program.trainable(constant):
        return False
    return node.target is not aten.repeat.default or constant.meta["val"].shape[0] == 1


def moved_regions(
    program: Program, end: fx.Node, allowed: Allowed = FIXED_ONLY
) -> Iterator[tuple[fx.Node, list[fx.Node]]]:
    """Yield every value that alone suffices to move `end` together, with the operators that do it, in order.

    The nearest comes first. Everything else in `end` is zero.
    """
    region: dict[fx.Node, None] = {}
    frontier = {end}
    while frontier and len(region) < MOST_OPERATORS:
        node = max(frontier)
        if region and len(frontier) == 1 and isinstance(node.meta.get("val"), Tensor):
            yield node, sorted(region)
        frontier.discard(node)
        if not is_moving(program, node, allowed):
            if (node.op == "get_attr" or node.target in ZEROS) and is_zero(program, node):
                region[node] = None
                continue
            return
        region[node] = None
        frontier.update(moved_inputs(node))


def shape_of_examples(node: fx.Node, source: fx.Node, size: int) -> tuple[int, ...]:
    """Return the shape of `node` for two examples, with `size` for other dynamic sizes of `source`."""
    return example_shape(node.meta["val"].shape, _numbers(source, size))


def _numbers(source: fx.Node, size: int) -> dict[sympy.Symbol, int]:
    batch, *others = symbolic_shape(source.meta["val"])
    return dict.fromkeys(_symbols(others), size) | dict.fromkeys(_symbols([batch]), EXAMPLES)


def _symbols(sizes: Iterable[Size]) -> set[sympy.Symbol]:
    return {symbol for n in sizes for symbol in getattr(n, "free_symbols", ())}


def trace(
    program: Program, source: fx.Node, region: list[fx.Node], end: fx.Node, size: int = EXAMPLES
) -> np.ndarray | None:
    """Return, for each element of `end` in one example, its position in `source`, -1 for a zero.

    Args:
        size: what to take for dynamic sizes of `source` besides the batch.

    Returns None if a region's sizes depend on more than the batch, or if it moves elements between examples.
    """
    result = trace_elements(program, source, region, end, size)
    if result is None or result.dim() < 2:
        return None
    count, *_ = shape = shape_of_examples(source, source, size)
    if result.shape[0] != count:
        return None
    positions = result.long().flatten(1) - 1
    before = torch.arange(count)[:, None] * math.prod(shape[1:])
    within = torch.where(positions >= 0, positions - before, positions)
    return within[0].reshape(result.shape[1:]).numpy() if bool((within == within[0]).all()) else None


def trace_elements(
    program: Program, source: fx.Node, region: list[fx.Node], end: fx.Node, size: int = EXAMPLES
) -> Tensor | None:
    """Return, for each element of `end`, its position in `source`, counted from 1, 0 for a zero.

    Covers all examples, two if the batch is dynamic. Returns None if a region's sizes depend on more than the batch.
    """
    numbers = _numbers(source, size) if source.meta["val"].dim() else {}

    def known(shape: Sequence[Any]) -> tuple[int, ...]:
        return example_shape(shape, numbers)

    shape = known(source.meta["val"].shape)
    count = int(np.prod(shape))
    if not shape or count > MOST_ELEMENTS:
        return None
    values: dict[fx.Node, Any] = {source: 1 + torch.arange(count, dtype=torch.float64).reshape(shape)}

    def value(node: fx.Node) -> Any:
        if node in values:
            return values[node]
        held = node.meta.get("val")
        if isinstance(held, Tensor):
            return torch.empty((), dtype=torch.float64).expand(known(held.shape))  # read for its shape only
        return known([held])[0]

    for node in region:
        if is_zero(program, node):
            values[node] = torch.zeros(known(node.meta["val"].shape), dtype=torch.float64)
            continue
        if is_kernel(node):
            values[node] = selected(program, node, values[first_input(node)])
            continue
        if node.target is aten.mul.Tensor:
            for n in tensors_behind(program, node):
                values[n] = program.tensor(n).detach().double()
        if node.target in CHOOSING:
            for n in choice(node):
                values[n] = program.tensor(constant_behind(n)).detach().expand(known(n.meta["val"].shape))
        args, kwargs = torch.utils._pytree.tree_map_only(fx.Node, value, (node.args, node.kwargs))
        assert callable(node.target)
        if node.target is aten.as_strided.default and args[0].stride() != first_input(node).meta["val"].stride():
            return None
        result = node.target(*args, **kwargs)
        if isinstance(result, Tensor) and tuple(result.shape) != known(node.meta["val"].shape):
            return None  # a size that does not follow from this batch
        values[node] = result
    return values[end]
