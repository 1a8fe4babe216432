"""Fold a factor before a convolution into its kernel, and a difference where nothing is padded (inference artifacts).

A linear layer is one of these, whose channels come last. Several layers behind one factor each take it.

conv(x * s, W, b) -> conv(x, W * s, b)
conv(x + c, W, b) -> conv(x, W, b + sum(W * c)), without padding

s and c are one number, or one for each channel: the normalization of an image at the beginning of forward. One number
also passes through what only moves pixels, as a Focus does.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, fx

from converter.ir.aten import bound_arguments, first_input
from converter.ir.lazy_tensor import LazyTensor
from converter.ir.program import Origin, Program, module_path
from converter.rewrites.base import Change, set_bias

aten, ours = torch.ops.aten, torch.ops.converter
LAYERS = (
    aten.conv1d.default, aten.conv2d.default, aten.conv3d.default,
    aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding, aten.linear.default,
)  # fmt: skip
MOVES = (ours.space_to_depth.default, ours.reorder_channels.default)
FACTORS = {aten.mul.Tensor: False, aten.div.Tensor: True}  # whether the constant divides
TERMS = {aten.add.Tensor: 1.0, aten.sub.Tensor: -1.0}


def fold_input_scale(program: Program) -> list[Change]:
    layers = [n for target in LAYERS for n in program.graph.find_nodes(op="call_function", target=target)]
    changes: list[Change] = []
    while found := [change for layer in layers for change in _folded(program, layer)]:
        changes += found  # what two layers read is free for the first only when the second has taken its part
    return changes


def takes_scale(node: fx.Node) -> bool:
    """Return whether a node is a layer over the channels in dimension 1."""
    return node.target in LAYERS and (node.target is not aten.linear.default or node.meta["val"].dim() == 2)


def _has_own_weights(program: Program, layer: fx.Node) -> bool:
    arguments = bound_arguments(layer)
    bias = arguments.optional_node("bias")
    return program.is_tensor(arguments.node("weight")) and (bias is None or program.is_tensor(bias))


def _takes(program: Program, layer: fx.Node, node: fx.Node) -> bool:
    """Return whether a layer's weights take the factor or the difference that `node` is."""
    return (
        layer.target in LAYERS
        and bound_arguments(layer).node("input") is node
        and _has_own_weights(program, layer)
        and _operands(program, node, layer) is not None
        and (node.target in FACTORS or is_unpadded(layer))
    )


def _folded(program: Program, conv: fx.Node) -> Iterator[Change]:
    while True:
        arguments = bound_arguments(conv)
        weight, bias = arguments.node("weight"), arguments.optional_node("bias")
        node, moved = _behind_moves(arguments.node("input"))
        if not _has_own_weights(program, conv) or node.target not in {**FACTORS, **TERMS}:
            return
        if len(node.users) > 1 and not all(_takes(program, user, node) for user in node.users):
            return
        found = _operands(program, node, conv)
        if found is None or (moved and _count(found[1]) > 1):
            return
        source, constant = found
        groups = 1 if conv.target is aten.linear.default else arguments.integer("groups")
        if node.target in FACTORS:
            scale = partial(_scaled, groups=groups, divides=FACTORS[node.target])
            values = _combined(program, scale, [weight], constant)
            program.replace_tensor(weight, values, _origin(program, [weight], constant), [conv])
            what = "factor"
        elif not moved and is_unpadded(conv):
            shift = partial(_shifted, groups=groups, sign=TERMS[node.target])
            held = [weight] if bias is None else [weight, bias]
            values = _combined(program, shift, held, constant)
            set_bias(program, conv, weight, bias, values, _origin(program, held, constant))
            what = "difference"
        else:
            return
        for user in (conv,) if len(node.users) > 1 else tuple(node.users):
            user.replace_input_with(node, source)
        if not node.users:
            program.graph.erase_node(node)
        yield Change(f"{what} folded", module_path(node), f"into the weights of `{module_path(conv)}`", routine=True)


def _behind_moves(node: fx.Node) -> tuple[fx.Node, bool]:
    moved = False
    while node.target in MOVES and len(node.users) == 1:
        node, moved = first_input(node), True
    return node, moved


def _operands(program: Program, node: fx.Node, layer: fx.Node) -> tuple[fx.Node, float | fx.Node] | None:
    """Return what is scaled or shifted, and the number or tensor: one element, or one for each channel of a layer."""
    arguments = bound_arguments(node)
    left, right = arguments.value("self"), arguments.value("other")
    if node.target in TERMS and arguments.value("alpha") != 1:
        return None
    if node.target in (aten.mul.Tensor, aten.add.Tensor) and isinstance(left, fx.Node) and program.is_tensor(left):
        left, right = right, left
    if not isinstance(left, fx.Node) or left.meta["val"].dtype != node.meta["val"].dtype:
        return None
    if isinstance(right, int | float) and not isinstance(right, bool):
        return left, float(right)
    if not isinstance(right, fx.Node) or not program.is_tensor(right):
        return None
    shape, rank = right.meta["val"].shape, left.meta["val"].ndim
    channels = rank - 1 if layer.target is aten.linear.default else 1
    by_channel = [size for axis, size in enumerate((1,) * (rank - len(shape)) + tuple(shape)) if axis != channels]
    if len(shape) > rank or any(size != 1 for size in by_channel):
        return None
    widened = left.meta["val"].shape[channels] != node.meta["val"].shape[channels]  # one channel becomes several
    return None if widened else (left, right)


def _count(constant: float | fx.Node) -> int:
    return constant.meta["val"].numel() if isinstance(constant, fx.Node) else 1


def is_unpadded(conv: fx.Node) -> bool:
    if conv.target is aten.linear.default:
        return True
    padding = bound_arguments(conv).value("padding")
    return padding == "valid" if isinstance(padding, str) else all(side == 0 for side in padding)


def _combined(
    program: Program, compute: Callable[..., Tensor], held: list[fx.Node], constant: float | fx.Node
) -> LazyTensor:
    given = [program.values(node) for node in held]
    if isinstance(constant, fx.Node):
        return LazyTensor.combine(partial(_with_tensor, compute), *given, program.values(constant))
    return LazyTensor.combine(partial(_with_number, compute, constant), *given)


def _with_tensor(compute: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    *held, constant = tensors
    return compute(constant.double().flatten(), *held)


def _with_number(compute: Callable[..., Tensor], number: float, *held: Tensor) -> Tensor:
    return compute(held[0].new_full((1,), number, dtype=torch.float64), *held)


def _origin(program: Program, held: list[fx.Node], constant: float | fx.Node) -> Origin:
    return program.merged_origin([*held, *([constant] if isinstance(constant, fx.Node) else [])])


def _for_kernel(constant: Tensor, weight: Tensor, groups: int) -> Tensor:
    """Return one number for each output and input channel of a kernel (out, in / groups, ...), to multiply with it."""
    channels = constant.expand(groups * weight.shape[1]).reshape(groups, 1, -1)
    of_outputs = channels.expand(groups, weight.shape[0] // groups, -1).flatten(0, 1)
    return of_outputs.reshape(*of_outputs.shape, *[1] * (weight.dim() - 2))


def _scaled(constant: Tensor, weight: Tensor, *, groups: int, divides: bool) -> Tensor:
    factors = _for_kernel(constant, weight, groups)
    return weight.double() / factors if divides else weight.double() * factors


def _shifted(constant: Tensor, weight: Tensor, bias: Tensor | None = None, *, groups: int, sign: float) -> Tensor:
    carried = sign * (weight.double() * _for_kernel(constant, weight, groups)).flatten(1).sum(1)
    return carried if bias is None else carried + bias.double()
