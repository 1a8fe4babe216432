"""Recognize a grouped convolution that is written out.

cat([conv(part, W) for part, W in zip(split(x), kernels)])     each part by its own convolution
-> conv(x, cat(kernels), groups)

a, b = split(conv(x, D, groups=channels)); a + b               a depthwise one, whose halves are added
-> conv(reorder_channels(x), W, groups=channels / 2)           channel i is grouped with channel i + channels / 2
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from converter.ir import custom_ops
from converter.ir.lazy_tensor import LazyTensor
from converter.ir.program import Origin, Program, module_path
from converter.rewrites.base import Change

aten, ours = torch.ops.aten, torch.ops.converter
CONVOLUTIONS = {aten.conv1d.default, aten.conv2d.default, aten.conv1d.padding, aten.conv2d.padding}
SPLITS = {aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default}
GROUPS = 6  # position among a convolution's arguments
DEFAULTS = (None, None, None, [1], [0], [1], 1)
assert custom_ops  # registers torch.ops.converter


def group_convolutions(program: Program) -> list[Change]:
    changes = []
    for node in list(program.graph.nodes):
        if node.target is aten.cat.default:
            found = joined(program, node)
        elif node.target is aten.add.Tensor:
            found = added(program, node)
        else:
            continue
        if found is not None:
            changes.append(found)
    return changes


def joined(program: Program, cat: fx.Node) -> Change | None:
    """Group convolutions of all parts of one value whose results are concatenated."""
    convs, dim = list(cat.args[0]), cat.args[1] if len(cat.args) > 1 else 0
    if dim not in (1, 1 - cat.meta["val"].dim()) or len(convs) < 2 or len(set(convs)) < len(convs):
        return None
    if any(c.target not in CONVOLUTIONS or len(c.users) > 1 or not weights_known(program, c) for c in convs):
        return None
    source = whole([c.args[0] for c in convs])
    geometry = {(c.target, repr(complete(c)[3:]), c.args[1].meta["val"].shape) for c in convs}
    biased = {complete(c)[2] is not None for c in convs}
    if source is None or len(geometry) > 1 or len(biased) > 1 or len({c.args[1].target for c in convs}) < len(convs):
        return None
    first = convs[0]
    weight = together(program, [c.args[1] for c in convs], cat)
    bias = together(program, [c.args[2] for c in convs], cat) if biased == {True} else None
    rest = complete(first)[3:-1]
    with program.graph.inserting_before(cat):
        groups = len(convs) * complete(first)[GROUPS]
        grouped = program.insert_call(first.target, (source, weight, bias, *rest, groups), like=first)
    cat.replace_all_uses_with(grouped)
    return Change("grouped convolution", module_path(first), f"{len(convs)} convolutions of a part each, joined")


def together(program: Program, tensors: Sequence[fx.Node], before: fx.Node) -> fx.Node:
    value = LazyTensor.combine(lambda *parts: torch.cat(parts), *(program.values(n) for n in tensors))
    origins = [program.origins[n.target] for n in tensors]
    origin = Origin(tuple(dict.fromkeys(s for o in origins for s in o.sources)), all(o.exact for o in origins))
    name = f"{tensors[0].target}_grouped"
    return program.new_tensor(name, value, before, origin, trainable=any(program.trainable(n) for n in tensors))


def added(program: Program, add: fx.Node) -> Change | None:
    """Group a depthwise convolution whose result is cut into equal parts that are added."""
    if any(user.target is aten.add.Tensor and part_of_sum(user) for user in add.users):
        return None  # a sum of more parts ends later
    parts = terms(add)
    conv = whole(parts) if parts and len(parts) > 1 else None
    if conv is None or conv.target not in CONVOLUTIONS or not weights_known(program, conv):
        return None
    if any(user not in {cut(part) for part in parts} for user in conv.users) or any(len(p.users) > 1 for p in parts):
        return None
    channels, count = conv.args[0].meta["val"].shape[1], len(parts)
    weight = conv.args[1]
    out, per_group, *size = weight.meta["val"].shape
    if not isinstance(channels, int) or per_group != 1 or complete(conv)[GROUPS] != channels or channels % count:
        return None
    groups, multiplier = channels // count, out // channels
    order = [i + p * groups for i in range(groups) for p in range(count)]
    held = program.values(weight).map(lambda w: w.reshape(count, groups, multiplier, *size).movedim(0, 2))
    bias = complete(conv)[2]
    origin = program.origins[weight.target]
    grouped_weight = held.map(lambda w: w.reshape(groups * multiplier, count, *size))
    program.replace_tensor(weight, grouped_weight, origin, [conv])
    if bias is not None:
        summed = program.values(bias).map(lambda b: b.double().reshape(count, -1).sum(0))
        program.replace_tensor(bias, summed, Origin(program.origins[bias.target].sources, exact=False), [conv])
    with program.graph.inserting_before(add):
        x = program.insert_call(ours.reorder_channels.default, (conv.args[0], order), like=conv)
        arguments = (x, conv.args[1], complete(conv)[2], *complete(conv)[3:-1], groups)
        grouped = program.insert_call(conv.target, arguments, like=conv)
    add.replace_all_uses_with(grouped)
    description = f"a depthwise one whose {count} parts are added: {groups} groups of {count} channels"
    return Change("grouped convolution", module_path(conv), description)


def part_of_sum(add: fx.Node) -> bool:
    parts = terms(add)
    return bool(parts) and whole(parts) is not None


def terms(node: fx.Node) -> list[fx.Node]:
    """Return the summands, or an empty list if one is scaled or a number."""
    if node.target is not aten.add.Tensor:
        return [node]
    if node.kwargs or not all(isinstance(a, fx.Node) for a in node.args):
        return []
    left, right = terms(node.args[0]), terms(node.args[1])
    return [*left, *right] if left and right else []


def whole(parts: Sequence[fx.Node]) -> fx.Node | None:
    """Return the value that `parts` cut, in order and completely, into equal parts along dimension 1, or None."""
    cuts = [found for part in parts if (found := bounds(part)) is not None]
    if not parts or len(cuts) < len(parts):
        return None
    sources = {source for source, _, _ in cuts}
    if len(sources) != 1:
        return None
    (source,) = sources
    channels, size = source.meta["val"].shape[1], parts[0].meta["val"].shape[1]
    expected = [(source, i * size, (i + 1) * size) for i in range(len(parts))]
    return source if cuts == expected and channels == size * len(parts) else None


def bounds(part: fx.Node) -> tuple[Any, int, Any] | None:
    """Return the value that a part of channels is cut from, its first channel and the one after its last, or None."""
    if part.op != "call_function":
        return None
    if part.target is operator.getitem and part.args[0].target in SPLITS:
        split = part.args[0]
        dim = split.args[2] if len(split.args) > 2 else 0
        sizes = [v.shape[1] for v in split.meta["val"]]
        if dim not in (1, 1 - split.args[0].meta["val"].dim()) or not all(isinstance(n, int) for n in sizes):
            return None
        first = sum(sizes[: part.args[1]])
        return split.args[0], first, first + sizes[part.args[1]]
    if part.target is aten.slice.Tensor and len(part.args) < 5 and part.args[1:2] in ((1,), (1 - rank(part),)):
        size, start = part.args[0].meta["val"].shape[1], (*part.args, None, None)[2] or 0
        if isinstance(size, int) and isinstance(start, int):
            start = start + size if start < 0 else start
            return part.args[0], start, start + part.meta["val"].shape[1]
    return None


def cut(part: fx.Node) -> Any:
    """Return the operator that cut a part off."""
    return part.args[0] if part.target is operator.getitem else part


def rank(node: fx.Node) -> int:
    return node.meta["val"].dim()


def weights_known(program: Program, conv: fx.Node) -> bool:
    _, weight, bias, *_ = complete(conv)
    return program.is_tensor(weight) and (bias is None or program.is_tensor(bias))


def complete(conv: fx.Node) -> tuple:
    """Return the arguments with the defaults that capture omits, one number per axis."""
    args = (*conv.args, *DEFAULTS[len(conv.args) :])
    axes = conv.meta["val"].dim() - 2
    return tuple([*a] * (axes // len(a)) if isinstance(a, list | tuple) and len(a) < axes else a for a in args)
