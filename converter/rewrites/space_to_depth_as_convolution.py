"""Write space to depth as a part of the convolutions behind it (PyTorch modules, `--focus-as-convolution`).

    conv2d(reorder_channels(space_to_depth(x, b)), W, stride, padding)
    -> conv2d(x, W', stride * b, padding * b)

Kernels become b times as high and wide, of as many numbers in another order: weights [O, b * b * C, k, k] are then
[O, C, b * k, b * k]. Other converters find nothing to move in that. What has other readers becomes a pixel unshuffle.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, fx

from converter.ir import custom_ops
from converter.ir.aten import bound_arguments, first_input
from converter.ir.program import Program, module_path
from converter.rewrites.analysis.convolutions import Convolution, read_convolution
from converter.rewrites.base import Change
from converter.rewrites.find_space_to_depth import erase_unused
from converter.rewrites.space_to_depth_as_pixel_unshuffle import space_to_depth_as_pixel_unshuffle

aten, ours = torch.ops.aten, torch.ops.converter
assert custom_ops  # registers torch.ops.converter


def space_to_depth_as_convolution(program: Program) -> list[Change]:
    return merged(program) + space_to_depth_as_pixel_unshuffle(program)


def merged(program: Program) -> list[Change]:
    changes = []
    for node in program.graph.find_nodes(op="call_function", target=ours.space_to_depth.default):
        image, block = first_input(node), bound_arguments(node).integer("block")
        order, end = list(range(node.meta["val"].shape[1])), node
        if len(node.users) == 1 and (user := next(iter(node.users))).target is ours.reorder_channels.default:
            order, end = bound_arguments(user).integers("order"), user
        takes = sorted(range(len(order)), key=order.__getitem__)
        readers = {user: mergeable(program, end, user) for user in end.users}
        for user, found in readers.items():
            if found is None or any(other is None for other in readers.values()):
                continue
            larger = partial(enlarged, takes=takes, block=block)
            values, origin = program.values(found.weight).map(larger), program.origin(found.weight)
            program.replace_tensor(found.weight, values, origin, [user])
            weight = bound_arguments(user).node("weight")
            stride, padding = ([n * block for n in ns] for ns in (found.stride, found.padding))
            with program.graph.inserting_before(user):
                arguments = (image, weight, found.bias, stride, padding)
                larger_one = program.insert_call(aten.conv2d.default, arguments, like=user)
            user.replace_all_uses_with(larger_one)
            program.graph.erase_node(user)
            size = "x".join(map(str, values.shape[2:]))
            changes.append(Change("SpaceToDepth in a convolution", module_path(user), f"its kernel is now {size}"))
        if not end.users:
            erase_unused(program, end, image)
    return changes


def mergeable(program: Program, end: fx.Node, user: fx.Node) -> Convolution | None:
    """Return the convolution that reads a space to depth, or None if it is no plain one."""
    if user.target is not aten.conv2d.default or bound_arguments(user).node("input") is not end:
        return None
    found = read_convolution(user)
    plain = found is not None and found.groups == 1 and set(found.dilation) == {1} and program.is_tensor(found.weight)
    return found if plain and found is not None and isinstance(found.padding, list) else None


def enlarged(weight: Tensor, takes: list[int], block: int) -> Tensor:
    """Return the weights for the image itself, of the same numbers."""
    outputs, inputs, rows, columns = weight.shape
    channels = inputs // block**2
    apart = weight[:, takes].reshape(outputs, block, block, channels, rows, columns)
    return apart.permute(0, 3, 4, 1, 5, 2).reshape(outputs, channels, rows * block, columns * block)
