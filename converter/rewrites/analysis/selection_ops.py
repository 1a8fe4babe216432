"""Convolutions and samplings that compute nothing: each element of their result is one of their input, or zero.

They are a one-hot kernel, also of a transposed convolution, a deformable convolution with offsets of whole pixels, a
grid on whole pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from converter.ir.aten import bound_arguments
from converter.ir.program import Program

aten = torch.ops.aten

CONVOLUTIONS = {
    aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.conv1d.padding, aten.conv2d.padding,
    aten.conv3d.padding,
}  # fmt: skip
TRANSPOSED = {aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input}
NEAREST = 1
NEARLY = 1e-12  # of a size in pixels: the float64 error of a whole pixel
SAFE = 0.25  # of a pixel: this close to a whole pixel, float32 rounding cannot select another


@dataclass(frozen=True)
class Allowed:
    """Concessions that a shift may make: a kernel's trainability, the rounding of an interpolation."""

    trainable: bool = False
    interpolated: bool = False


FIXED_ONLY = Allowed()


def is_deformable(node: fx.Node) -> bool:
    return str(node.target) == "torchvision.deform_conv2d.default"


def is_sampling(node: fx.Node) -> bool:
    return node.target is aten.grid_sampler.default


def is_kernel(node: fx.Node) -> bool:
    """Return whether the operator is of a kind that may select."""
    return node.op == "call_function" and (
        node.target in CONVOLUTIONS | TRANSPOSED or is_sampling(node) or is_deformable(node)
    )


def assumes_finite(node: fx.Node) -> bool:
    """Return whether an operator that selects multiplies by zero what it leaves out."""
    return is_kernel(node) or node.target is aten.mul.Tensor


def is_mask(program: Program, node: fx.Node) -> bool:
    """Return whether a multiplication is by fixed zeros and ones."""
    known = tensors_behind(program, node)
    return (
        len(known) == 1
        and len(node.all_input_nodes) == 2
        and fixed(program, known[0])
        and program.query(known[0], lambda held: bool(((held == 0) | (held == 1)).all()))
    )


def is_selecting(program: Program, node: fx.Node, allowed: Allowed) -> bool:
    if not is_kernel(node) or not all(allowed.trainable or fixed(program, n) for n in tensors_behind(program, node)):
        return False
    if is_sampling(node):
        return samples_pixels(program, node, allowed)
    arguments = bound_arguments(node)
    weight, bias = arguments.node("weight"), arguments.optional_node("bias")
    if not (bias is None or vanishes(program, bias)):
        return False
    if node.target in TRANSPOSED:
        return places_each_once(program, node)
    if not is_one_hot(program, weight):
        return False
    return node.target in CONVOLUTIONS or (not arguments.flag("use_mask") and has_whole_offsets(program, node))


def tensors_behind(program: Program, node: fx.Node) -> list[fx.Node]:
    """Return the tensors that determine what is selected."""
    if node.target is aten.mul.Tensor:
        return [n for n in node.all_input_nodes if program.is_tensor(n)]
    arguments = bound_arguments(node)
    if is_sampling(node):
        found = [constant_behind(arguments.node("grid"))]
    elif is_deformable(node):
        found = [arguments.node("weight"), constant_behind(arguments.node("offset"))]
    else:
        found = [arguments.node("weight")]
    return [n for n in found if program.is_tensor(n)]


def fixed(program: Program, tensor: fx.Node) -> bool:
    return not program.trainable(tensor) or program.is_frozen(tensor)


def is_one_hot(program: Program, weight: object) -> bool:
    """Return whether every output of a kernel is one input."""
    return program.is_tensor(weight) and program.query(weight, has_one_hot_rows)


def has_one_hot_rows(weight: Tensor) -> bool:
    rows = weight.detach().flatten(1)
    if bool((rows[0] != 0).sum() != 1):  # the first row rules out most kernels
        return False
    return bool(((rows != 0).sum(1) == 1).all()) and bool((rows.sum(1) == 1).all())


def places_each_once(program: Program, node: fx.Node) -> bool:
    """Return whether a transposed convolution puts at most one element, unchanged, at each place of its result."""
    arguments = bound_arguments(node)
    weight, groups = arguments.node("weight"), arguments.integer("groups")
    stride, sizes = arguments.integers("stride"), weight.meta["val"].shape[2:]
    steps = tuple(stride) * (len(sizes) if len(stride) == 1 else 1)
    if max(arguments.integers("dilation")) > 1 or any(n > step for n, step in zip(sizes, steps, strict=True)):
        return False  # neighbors may fall on each other

    def selects(held: Tensor) -> bool:
        kernel = held.detach()
        if bool(((kernel != 0) & (kernel != 1)).any()):
            return False
        return bool((kernel.unflatten(0, (groups, -1)).sum(1) <= 1).all())

    return program.is_tensor(weight) and program.query(weight, selects)


def vanishes(program: Program, tensor: object) -> bool:
    return (
        program.is_tensor(tensor)
        and not program.trainable(tensor)
        and not program.query(tensor, lambda held: bool(held.any()))
    )


def constant_behind(node: fx.Node) -> fx.Node:
    """Return the value that was repeated along the batch to give `node`."""
    while node.target in (aten.expand.default, aten.repeat.default):
        before, after = bound_arguments(node).node("self"), node.meta["val"].shape
        sizes = before.meta["val"].shape
        if node.target is aten.repeat.default and any(
            n not in (1, size) for n, size in zip(sizes[1:], after[1:], strict=False)
        ):
            break
        node = before
    return node


def fixed_example(program: Program, node: fx.Node) -> Tensor | None:
    """Return one example, in float64, of a value known at conversion and the same for all examples, or None."""
    constant = constant_behind(node)
    if not program.is_tensor(constant):
        return None
    tensor, shape = program.tensor(constant).detach(), node.meta["val"].shape
    if tensor.dim() == len(shape) and tensor.shape[0] == 1 and tuple(tensor.shape[1:]) == tuple(shape[1:]):
        return tensor.double()
    if tensor.dim() == len(shape) and tensor.shape[0] == 1:  # of size 1 along other dimensions too
        known = [n for n in shape[1:] if isinstance(n, int)]
        return tensor.double().expand(1, *known) if len(known) == len(shape) - 1 else None
    return None


def has_whole_offsets(program: Program, node: fx.Node) -> bool:
    offset = fixed_example(program, bound_arguments(node).node("offset"))
    return offset is not None and bool((offset == offset.round()).all())


def samples_pixels(program: Program, node: fx.Node, allowed: Allowed) -> bool:
    arguments = bound_arguments(node)
    grid, sizes = fixed_example(program, arguments.node("grid")), arguments.node("input").meta["val"].shape
    if grid is None or not all(isinstance(n, int) for n in sizes[1:]):
        return False
    mode, padding = arguments.integer("interpolation_mode"), arguments.integer("padding_mode")
    align_corners = arguments.flag("align_corners")
    if mode != NEAREST and not allowed.interpolated:
        return False
    for i, size in enumerate(reversed(sizes[2:])):
        p = (grid[..., i] + 1) * (size - 1) / 2 if align_corners else ((grid[..., i] + 1) * size - 1) / 2
        inside = (p > -1) & (p < size) if padding == 0 else (p >= 0) & (p <= size - 1)
        off = (p - p.round()).abs()[inside]
        if not bool(torch.isfinite(p).all()) or bool((off > (SAFE if mode == NEAREST else NEARLY * size)).any()):
            return False
    return True


def selected(program: Program, node: fx.Node, x: Tensor) -> Tensor:
    """Return the operator's result for whole numbers `x` in float64, which is exact."""
    assert callable(node.target)
    arguments = bound_arguments(node)
    given = {**arguments.values, "input": x}
    if is_sampling(node):
        grid = fixed_example(program, arguments.node("grid"))
        assert grid is not None
        given |= {"grid": grid.expand(x.shape[0], *grid.shape[1:]), "interpolation_mode": NEAREST}
        return node.target(**given)
    weight = program.tensor(arguments.node("weight")).detach().double()
    given |= {"weight": weight, "bias": None}
    if node.target in CONVOLUTIONS | TRANSPOSED:
        return node.target(**given)
    offset = fixed_example(program, arguments.node("offset"))
    assert offset is not None
    given |= {
        "input": x.contiguous(),
        "offset": offset.expand(x.shape[0], *offset.shape[1:]).contiguous(),
        "mask": x.new_zeros(x.shape[0], 1),
        "bias": x.new_zeros(weight.shape[0]),
    }
    return node.target(**given)
