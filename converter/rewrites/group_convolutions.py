"""Recognize a grouped convolution that is written out.

cat([conv(part, W) for part, W in zip(split(x), kernels)])     each part by its own convolution
-> conv(x, cat(kernels), groups)
cat([relu(conv(part, W)) for part, W in zip(split(x), kernels)])   the same pointwise operators after each
-> relu(conv(x, cat(kernels), groups))                         where that is faster

a, b = split(conv(x, D, groups=channels)); a + b               a depthwise one, whose halves are added, or stacked
                                                               and summed
-> conv(reorder_channels(x), W, groups=channels / 2)           channel i is grouped with channel i + channels / 2
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from converter.ir import custom_ops
from converter.ir.aten import bound_arguments, first_input, is_pointwise, read_item
from converter.ir.lazy_tensor import LazyTensor
from converter.ir.program import Program, module_path, tensor_name
from converter.ir.sizes import symbolic_shape
from converter.rewrites.analysis.convolutions import Convolution, read_convolution
from converter.rewrites.base import Change

aten, ours = torch.ops.aten, torch.ops.converter
CONVOLUTIONS = {aten.conv1d.default, aten.conv2d.default, aten.conv1d.padding, aten.conv2d.padding}
SPLITS = {aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default}
JOINS = {aten.cat.default, aten.stack.default}
VIEWS = {aten.view.default, aten.reshape.default, aten.unflatten.int, aten.flatten.using_ints}
assert custom_ops  # registers torch.ops.converter


LARGE = 2**13  # elements of a result, below which parts are faster in TensorFlow: 7x7x96: 0.41 ms against 0.52
SMALL_KERNEL = 16  # inputs times outputs of a group
BLOCK = 16  # channels, which ONNX Runtime computes together
Worthwhile = Callable[[fx.Node, Convolution], bool]  # asked of what is joined, and of a part's convolution


def group_convolutions(program: Program) -> list[Change]:
    return joins(program, lambda result, part: True) + sums(program)


def group_bare_convolutions(program: Program) -> list[Change]:
    """Leave parts with operators behind them (Keras): XLA compiles its grouped convolution, 1.2 to 8 times as slow."""
    return joins(program, lambda result, part: False) + sums(program)


def group_large_convolutions(program: Program) -> list[Change]:
    """Leave small parts with operators behind them (TensorFlow)."""
    return joins(program, is_large) + sums(program)


def group_fast_convolutions(program: Program) -> list[Change]:
    """Leave parts with operators behind them where ONNX Runtime has no fast grouped convolution."""
    return joins(program, is_fast) + sums(program)


def group_large_normalized(program: Program) -> list[Change]:
    """Group parts whose norms have been folded, if they are large (TensorFlow)."""
    return joins(program, is_large, bare=False)


def group_fast_normalized(program: Program) -> list[Change]:
    """Group parts whose norms have been folded, if ONNX Runtime has a fast grouped convolution for them."""
    return joins(program, is_fast, bare=False)


def is_large(result: fx.Node, part: Convolution) -> bool:
    """Return whether an example of a result, if its size is known, is large."""
    sizes = result.meta["val"].shape[1:]
    return not all(isinstance(n, int) for n in sizes) or math.prod(sizes) > LARGE


def is_fast(result: fx.Node, part: Convolution) -> bool:
    """Return whether groups take 0.7 to 1 of the time of parts; others, which fill no block, take up to 1.4 times."""
    outputs, inputs = part.weight.meta["val"].shape[:2]
    return min(inputs, outputs) >= BLOCK or (set(part.stride) == {1} and inputs * outputs <= SMALL_KERNEL)


def joins(program: Program, worthwhile: Worthwhile, bare: bool = True) -> list[Change]:
    """Group convolutions whose results are joined.

    Args:
        bare: parts without operators behind them are grouped in any case.
    """
    nodes = [node for node in program.graph.nodes if node.target in JOINS]
    return [change for node in nodes if (change := joined(program, node, worthwhile, bare)) is not None]


def sums(program: Program) -> list[Change]:
    nodes = [node for node in program.graph.nodes if node.target in (aten.add.Tensor, aten.sum.dim_IntList)]
    return [change for node in nodes if (change := added(program, node)) is not None]


def joined(program: Program, cat: fx.Node, worthwhile: Worthwhile, bare: bool) -> Change | None:
    """Group convolutions of all parts of one value whose results are concatenated, or stacked and flattened."""
    parts, dim = bound_arguments(cat).nodes("tensors"), bound_arguments(cat).integer("dim")
    if dim not in (1, 1 - cat.meta["val"].dim()) or len(parts) < 2 or len(set(parts)) < len(parts):
        return None
    convs, after = behind_pointwise(parts)
    if cat.target is aten.stack.default:
        flat, *others = [*cat.users, cat]
        if len(others) > 1 or flat.target not in VIEWS or unstacked(cat, flat) is None:
            return None
        cat = flat
    given = [conv for c in convs if len(c.users) == 1 and (conv := known_convolution(program, c)) is not None]
    if len(given) < len(convs) or not ((bare and not after) or worthwhile(cat, given[0])):
        return None
    source, weights = whole(program, [c.x for c in given]), [c.weight for c in given]
    kinds = {
        (node.target, repr((c.stride, c.padding, c.dilation, c.groups)), c.weight.meta["val"].shape)
        for node, c in zip(convs, given, strict=True)
    }
    biases = [c.bias for c in given if c.bias is not None]
    if source is None or len(kinds) > 1 or len({w.target for w in weights}) < len(convs):
        return None
    if biases and len(biases) < len(convs):
        return None
    note_indices(program, [c.x for c in given])
    first = given[0]
    weight = together(program, weights, cat)
    bias = together(program, biases, cat) if biases else None
    with program.graph.inserting_before(cat):
        arguments = (source, weight, bias, first.stride, first.padding, first.dilation, len(convs) * first.groups)
        grouped = program.insert_call(convs[0].target, arguments, like=convs[0])
        for operator in after:
            grouped = program.insert_call(operator.target, (grouped, *operator.args[1:]), like=operator)
    cat.replace_all_uses_with(grouped)
    return Change("grouped convolution", module_path(convs[0]), f"{len(convs)} convolutions of a part each, joined")


def behind_pointwise(parts: Sequence[fx.Node]) -> tuple[list[fx.Node], list[fx.Node]]:
    """Return what is before the pointwise operators that all parts end with alike, and those of the first in order."""
    held, after = list(parts), list[fx.Node]()
    while all(
        is_pointwise(n.target)
        and n.target == held[0].target
        and n.args[1:] == held[0].args[1:]
        and not n.kwargs
        and len(n.all_input_nodes) == 1
        and n.args[0] is n.all_input_nodes[0]
        and len(n.users) == 1
        for n in held
    ):
        after.insert(0, held[0])
        held = [first_input(n) for n in held]
    return held, after


def together(program: Program, tensors: Sequence[fx.Node], before: fx.Node) -> fx.Node:
    value = LazyTensor.combine(lambda *parts: torch.cat(parts), *(program.values(n) for n in tensors))
    name, origin = f"{tensor_name(tensors[0])}_grouped", program.merged_origin(tensors, exact=True)
    return program.new_tensor(name, value, before, origin, trainable=any(program.trainable(n) for n in tensors))


def added(program: Program, add: fx.Node) -> Change | None:
    """Group a depthwise convolution whose result is cut into equal parts that are added."""
    if any(user.target is aten.add.Tensor and part_of_sum(program, user) for user in add.users):
        return None  # a sum of more parts ends later
    parts = terms(add)
    conv = whole(program, parts) if parts and len(parts) > 1 else None
    given = known_convolution(program, conv) if conv is not None else None
    if conv is None or given is None:
        return None
    if any(user not in {cut(part) for part in parts} for user in conv.users) or any(len(p.users) > 1 for p in parts):
        return None
    channels, count = given.x.meta["val"].shape[1], len(parts)
    weight, bias = given.weight, given.bias
    out, per_group, *size = weight.meta["val"].shape
    if not isinstance(channels, int) or per_group != 1 or given.groups != channels or channels % count:
        return None
    note_indices(program, parts)
    groups, multiplier = channels // count, out // channels
    order = [i + p * groups for i in range(groups) for p in range(count)]
    held = program.values(weight).map(lambda w: w.reshape(count, groups, multiplier, *size).movedim(0, 2))
    grouped_weight = held.map(lambda w: w.reshape(groups * multiplier, count, *size))
    program.replace_tensor(weight, grouped_weight, program.origin(weight), [conv])
    if bias is not None:
        summed = program.values(bias).map(lambda b: b.double().reshape(count, -1).sum(0))
        program.replace_tensor(bias, summed, program.merged_origin([bias]), [conv])
    with program.graph.inserting_before(add):
        x = program.insert_call(ours.reorder_channels.default, (given.x, order), like=conv)
        weight, held_bias = bound_arguments(conv).node("weight"), bound_arguments(conv).optional_node("bias")
        arguments = (x, weight, held_bias, given.stride, given.padding, given.dilation, groups)
        grouped = program.insert_call(conv.target, arguments, like=conv)
    add.replace_all_uses_with(grouped)
    description = f"a depthwise one whose {count} parts are added: {groups} groups of {count} channels"
    return Change("grouped convolution", module_path(conv), description)


def part_of_sum(program: Program, add: fx.Node) -> bool:
    parts = terms(add)
    return bool(parts) and whole(program, parts) is not None


def terms(node: fx.Node, inner: bool = False) -> list[fx.Node]:
    """Return the summands, or an empty list if one is scaled or a number; an inner sum that others read is one."""
    if inner and len(node.users) > 1:
        return [node]
    if node.target is aten.sum.dim_IntList:
        arguments = bound_arguments(node)
        stack, dims = arguments.node("self"), arguments.value("dim")
        if stack.target is not aten.stack.default or len(stack.users) > 1 or not dims or len(dims) > 1:
            return [node]
        along = bound_arguments(stack).integer("dim") % rank(stack)
        plain = dims[0] % rank(stack) == along and not arguments.flag("keepdim") and arguments.value("dtype") is None
        return bound_arguments(stack).nodes("tensors") if plain else [node]
    if node.target is not aten.add.Tensor:
        return [node]
    arguments = bound_arguments(node)
    if arguments.value("other") == 0:
        return terms(arguments.node("self"), inner=True)  # as Python's sum begins
    if arguments.value("alpha") != 1 or not isinstance(arguments.value("other"), fx.Node):
        return []
    left, right = (terms(arguments.node(name), inner=True) for name in ("self", "other"))
    return [*left, *right] if left and right else []


def whole(program: Program, parts: Sequence[fx.Node]) -> fx.Node | None:
    """Return the value that `parts` cut, in order and completely, into equal parts along dimension 1, or None."""
    cuts = [found for part in parts if (found := bounds(program, part)) is not None]
    if not parts or len(cuts) < len(parts):
        return None
    sources = {source for source, _, _ in cuts}
    if len(sources) != 1:
        return None
    (source,) = sources
    channels, size = source.meta["val"].shape[1], parts[0].meta["val"].shape[1]
    expected = [(source, i * size, (i + 1) * size) for i in range(len(parts))]
    return source if cuts == expected and channels == size * len(parts) else None


def bounds(program: Program, part: fx.Node) -> tuple[fx.Node, int, Any] | None:
    """Return the value that a part of channels is cut from, its first channel and the one after its last, or None."""
    if part.op != "call_function":
        return None
    item = read_item(part)
    if item is not None and item[0].target in SPLITS:
        split, position = item
        x, dim = bound_arguments(split).node("self"), bound_arguments(split).integer("dim")
        sizes = [v.shape[1] for v in split.meta["val"]]
        if dim not in (1, 1 - rank(x)) or not all(isinstance(n, int) for n in sizes):
            return None
        first = sum(sizes[:position])
        return x, first, first + sizes[position]
    stack, position = item if item is not None else (part, 0)
    if stack.target in (aten.unbind.int, aten.select.int):
        arguments = bound_arguments(stack)
        groups = arguments.node("self")
        if arguments.integer("dim") != 1 or groups.target not in VIEWS:
            return None
        x, count = first_input(groups), groups.meta["val"].shape[1]
        size = unstacked(groups, x)
        position = (arguments.integer("index") if item is None else position) % count
        return None if size is None else (x, position * size, (position + 1) * size)
    if (index := channel_index(part)) is not None:
        first = program.query(index, first_of_run) if program.is_tensor(index) else None
        return None if first is None else (first_input(part), first, first + part.meta["val"].shape[1])
    if part.target is not aten.slice.Tensor:
        return None
    arguments = bound_arguments(part)
    if arguments.value("step") != 1 or arguments.integer("dim") not in (1, 1 - rank(part)):
        return None
    x, start = arguments.node("self"), arguments.value("start") or 0
    size = x.meta["val"].shape[1]
    if not isinstance(size, int) or not isinstance(start, int):
        return None
    start = start + size if start < 0 else start
    return x, start, start + part.meta["val"].shape[1]


def channel_index(part: fx.Node) -> fx.Node | None:
    """Return what channels are chosen by, or None if they are not."""
    if part.target is aten.index_select.default:
        arguments = bound_arguments(part)
        return arguments.node("index") if arguments.integer("dim") in (1, 1 - rank(part)) else None
    indices = bound_arguments(part).value("indices") if part.target is aten.index.Tensor else []
    return indices[1] if len(indices) == 2 and indices[0] is None else None


def note_indices(program: Program, parts: Sequence[fx.Node]) -> None:
    for part in parts:
        if (index := channel_index(part)) is not None:
            program.inline_sources(index, "became groups")


def first_of_run(index: Tensor) -> int | None:
    """Return where an index starts that counts up by one, or None if it is another."""
    counts_up = index.dim() == 1 and index.dtype in (torch.int64, torch.int32) and bool((index.diff() == 1).all())
    return int(index[0]) if counts_up and int(index[0]) >= 0 else None


def unstacked(stack: fx.Node, flat: fx.Node) -> int | None:
    """Return the channels in each group of `stack`, whose groups `flat` has side by side, or None if it has not."""
    (_, *grouped), (_, *channels) = (symbolic_shape(n.meta["val"]) for n in (stack, flat))
    if len(grouped) < 2 or not all(isinstance(n, int) for n in grouped[:2]):
        return None
    return grouped[1] if [grouped[0] * grouped[1], *grouped[2:]] == channels else None


def cut(part: fx.Node) -> fx.Node:
    """Return the operator that cut a part off."""
    item = read_item(part)
    return part if item is None else item[0]


def rank(node: fx.Node) -> int:
    return int(node.meta["val"].dim())


def known_convolution(program: Program, node: fx.Node) -> Convolution | None:
    """Return the arguments of a convolution whose weights and geometry are known, or None."""
    conv = read_convolution(node) if node.target in CONVOLUTIONS else None
    return conv if conv is not None and conv.has_known_weights(program) else None
