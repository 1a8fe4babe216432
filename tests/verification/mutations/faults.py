"""The faults of mappings and rewrites, planted in the program that they are given."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from converter.ir.program import Program
from mutations.planting import (
    PROGRAM_FAULTS,
    argument,
    aten,
    both,
    called,
    change_tensor,
    fault,
    has,
    is_floating,
    on_argument,
    on_result,
    set_argument,
    shape,
    with_argument,
    with_target,
    with_tensor,
)

__all__ = ["PROGRAM_FAULTS"]

CONVOLUTIONS = (aten.conv1d, aten.conv2d, aten.conv3d)
TRANSPOSED = (aten.conv_transpose1d, aten.conv_transpose2d)
NORMS = (aten.batch_norm, aten.layer_norm, aten.group_norm, aten.instance_norm)
WEIGHTED = (*CONVOLUTIONS, *TRANSPOSED, aten.linear)
RECURRENT = (aten.lstm, aten.gru, aten.rnn_tanh)
Found = Iterator[tuple[fx.Node, Any]]

# name: operators, argument, the faulty value of the right one (None: no fault here)
ARGUMENTS: dict[str, tuple[tuple, str, Any]] = {
    "epsilon of Keras' default": (NORMS, "eps", lambda v, n: 1e-3 if v != 1e-3 else 1e-5),
    "epsilon off by a tenth": (NORMS, "eps", lambda v, n: 1.1 * v),
    "padding counted in the average": (
        (aten.avg_pool2d,), "count_include_pad", lambda v, n: v != any(argument(n, "padding")),
    ),
    "corners aligned or not": (
        (aten.upsample_bilinear2d, aten.upsample_bicubic2d), "align_corners", lambda v, n: not v,
    ),
    "GELU by tanh or by erf": ((aten.gelu,), "approximate", lambda v, n: "none" if v == "tanh" else "tanh"),
    "slope of LeakyReLU": ((aten.leaky_relu,), "negative_slope", lambda v, n: 0.3),
    "softmax along another axis": (
        (aten.softmax, aten._softmax, aten.log_softmax, aten._log_softmax), "dim",
        lambda v, n: v - 1 if len(shape(n)) + min(v, 0) > 1 else v,
    ),
    "mask off by one": ((aten.triu, aten.tril), "diagonal", lambda v, n: v + 1),
    "scale of attention": ((aten.scaled_dot_product_attention,), "scale", lambda v, n: 1.0),
    "truncated for floored": ((aten.div,), "rounding_mode", lambda v, n: "trunc" if v == "floor" else v),
    "upper bound of a clip": ((aten.hardtanh, aten.clamp), "max_val", lambda v, n: v + 0.5),
    "lower bound of a clip": ((aten.hardtanh,), "min_val", lambda v, n: v - 0.5),
    "biased for unbiased variance": ((aten.var, aten.std), "unbiased", lambda v, n: False),
    "rolled the other way": ((aten.roll,), "shifts", lambda v, n: [-s for s in v]),
    "groups of a norm": ((aten.group_norm,), "num_groups", lambda v, n: 1 if v > 1 else v),
    "alpha of ELU": ((aten.elu,), "alpha", lambda v, n: v * 1.01),
    "beta of softplus": ((aten.softplus,), "beta", lambda v, n: 2),
    "summed along another axis": ((aten.cumsum,), "dim", lambda v, n: 0),
}  # fmt: skip


def _by_argument(packets: tuple, name: str, faulty: Any) -> Any:
    def sites(program: Program) -> Found:
        for node in called(program, *packets):
            if has(node, name) and argument(node, name) != (value := faulty(argument(node, name), node)):
                yield node, with_argument(name, value)

    return sites


for _name, _row in ARGUMENTS.items():
    fault(_name)(_by_argument(*_row))

TARGETS: dict[str, tuple[tuple, Any]] = {
    "nearest by rounding for by floor": (
        (aten.upsample_nearest2d,), lambda n: getattr(aten._upsample_nearest_exact2d, n.target._overloadname),
    ),
    "remainder with the dividend's sign": ((aten.remainder,), lambda n: getattr(aten.fmod, n.target._overloadname)),
    "ReLU for a clipped one": ((aten.relu6, aten.hardtanh), lambda n: None),
    "hard swish for SiLU": ((aten.silu,), lambda n: aten.hardswish.default),
    "SiLU for hard swish": ((aten.hardswish,), lambda n: aten.silu.default),
    "sigmoid for its hard form": ((aten.hardsigmoid,), lambda n: aten.sigmoid.default),
    "ELU for SELU": ((aten.selu,), lambda n: aten.elu.default),
    "softmax for log softmax": ((aten.log_softmax,), lambda n: aten.softmax.int),
    "least for greatest": ((aten.argmax,), lambda n: aten.argmin.default),
    "plus for minus": ((aten.sub,), lambda n: getattr(aten.add, n.target._overloadname)),
}  # fmt: skip


def _by_target(packets: tuple, faulty: Any) -> Any:
    def sites(program: Program) -> Found:
        for node in called(program, *packets):
            target = faulty(node)
            if target is not None:
                yield node, with_target(target)
            elif node.target in (aten.relu6.default, aten.hardtanh.default) and _starts_at_zero(node):
                yield node, _as_relu

    return sites


def _starts_at_zero(node: fx.Node) -> bool:
    return node.target is aten.relu6.default or argument(node, "min_val") == 0


def _as_relu(program: Program, node: fx.Node) -> None:
    node.target, node.args, node.kwargs = aten.relu.default, node.args[:1], {}


for _name, _targets in TARGETS.items():
    fault(_name)(_by_target(*_targets))

# -- weights, as a mapping gets them wrong


def _weights(name: str, packets: tuple, change: Any, fits: Any = lambda w: True) -> None:
    @fault(name)
    def sites(program: Program) -> Found:
        for node in called(program, *packets):
            weight = argument(node, "weight")
            if program.is_tensor(weight) and fits(program.tensor(weight)):
                yield node, with_tensor(change)


def _square(dim: int) -> Any:
    return lambda w: w.ndim > dim + 1 and w.shape[dim] == w.shape[dim + 1] > 1


_weights("kernel flipped", (*CONVOLUTIONS, *TRANSPOSED), lambda w: w.flip(-1), lambda w: w.shape[-1] > 1)
_weights("height and width of a kernel swapped", CONVOLUTIONS, lambda w: w.transpose(2, 3), _square(2))
_weights("in and out of a square kernel swapped", WEIGHTED, lambda w: w.transpose(0, 1), _square(0))
_weights("channels of the input rotated", WEIGHTED, lambda w: w.roll(1, 1), lambda w: w.shape[1] > 1)
_weights("rows of an embedding shifted", (aten.embedding,), lambda w: w.roll(1, 0))
_weights("padding row of an embedding zeroed", (aten.embedding,), lambda w: torch.cat((w[:1] * 0, w[1:])))
_weights("slopes of PReLU in another order", (aten.prelu,), lambda w: w.flip(0), lambda w: w.numel() > 1)
_weights("scale of a norm in another order", NORMS, lambda w: w.roll(1, 0))
_weights(
    "one weight off by a thousandth", WEIGHTED,
    lambda w: torch.cat((w.flatten()[:1] * 1.001, w.flatten()[1:])).reshape(w.shape),
)  # fmt: skip
_weights("weight through float16", WEIGHTED, lambda w: w.half().float())


@fault("gates in another order")
def gates(program: Program) -> Found:
    for node in called(program, aten.lstm, aten.gru):
        yield node, _recurrent(lambda w: torch.cat((w[len(w) // 2 :], w[: len(w) // 2])), position=0)


@fault("a recurrent layer's second bias lost")
def second_bias(program: Program) -> Found:
    for node in called(program, *RECURRENT):
        yield node, _recurrent(torch.zeros_like, position=3)


@fault("directions of a recurrent layer swapped")
def directions(program: Program) -> Found:
    for node in called(program, aten.lstm):
        held = argument(node, "params")
        if argument(node, "bidirectional"):
            yield node, with_argument("params", [*held[4:8], *held[:4], *held[8:]])


def _recurrent(change: Any, position: int) -> Any:
    def plant(program: Program, node: fx.Node) -> None:
        change_tensor(program, argument(node, "params")[position], node, change)

    return plant


@fault("bias dropped")
def bias_dropped(program: Program) -> Found:
    for node in called(program, *WEIGHTED):
        if argument(node, "bias") is not None:
            yield node, with_argument("bias", None)


@fault("running mean for running variance")
def statistics(program: Program) -> Found:
    for node in called(program, aten.batch_norm):
        yield node, with_tensor(lambda w: w.roll(1, 0), "running_var")


@fault("depth multiplier in another order")
def depth_multiplier(program: Program) -> Found:
    for node in called(program, aten.conv2d):
        groups, weight = argument(node, "groups"), argument(node, "weight")
        out, depth, *kernel = shape(weight)
        if groups > 1 and depth == 1 and out > groups:
            yield (
                node,
                with_tensor(
                    lambda w, g=groups, s=(out // groups, *kernel): w.reshape(g, *s).transpose(0, 1).reshape(w.shape)
                ),
            )


@fault("groups of a convolution swapped")
def swapped_groups(program: Program) -> Found:
    for node in called(program, aten.conv2d):
        groups = argument(node, "groups")
        if groups > 1:
            yield node, with_tensor(lambda w, g=groups: w.roll(len(w) // g, 0))


@fault("two equal-shaped weights swapped")
def swapped_weights(program: Program) -> Found:
    seen: dict[tuple, fx.Node] = {}
    for node in called(program, *WEIGHTED, *NORMS):
        weight = argument(node, "weight")
        if not program.is_tensor(weight):
            continue
        other = seen.setdefault((node.target, shape(weight)), node)
        if other is not node and argument(other, "weight") is not weight:
            yield node, lambda program, n, other=other.name: _swap(program, n, other)


def _swap(program: Program, node: fx.Node, name: str) -> None:
    other = next(n for n in program.graph.nodes if n.name == name)
    mine, theirs = argument(node, "weight"), argument(other, "weight")
    value = program.tensor(theirs).detach()
    change_tensor(program, theirs, other, lambda _: program.tensor(mine).detach())
    change_tensor(program, mine, node, lambda _: value)


# -- structure


@fault("two equal-shaped outputs swapped")
def swapped_outputs(program: Program) -> Found:
    for i, first in enumerate(program.results):
        for j in range(i + 1, len(program.results)):
            a, b = first.meta["val"], program.results[j].meta["val"]
            if shape(first) == shape(program.results[j]) and a.dtype == b.dtype:
                yield program.graph.output_node(), _swap_outputs(i, j)


def _swap_outputs(i: int, j: int) -> Any:
    def plant(program: Program, output: fx.Node) -> None:
        results = list(output.args[0])
        results[i], results[j] = results[j], results[i]
        output.args = (tuple(results),)

    return plant


@fault("height and width swapped")
def swapped_sizes(program: Program) -> Found:
    for node in called(program, *CONVOLUTIONS, aten.max_pool2d, aten.cat, aten.add):
        sizes = shape(node)
        if len(sizes) == 4 and sizes[2] == sizes[3] > 1:
            yield node, on_result((aten.transpose.int, 2, 3))


@fault("flattened in another order")
def flattened(program: Program) -> Found:
    for node in called(program, aten.flatten, aten.reshape):
        given = shape(node.args[0])
        if len(given) == 4 and len(shape(node)) == 2 and given[0] == 0:
            yield node, on_argument(
                node.target._schema.arguments[0].name,
                (aten.permute.default, [0, 2, 3, 1]), (aten.reshape.default, [-1, *given[1:]]),
            )  # fmt: skip


@fault("joined in another order")
def joined(program: Program) -> Found:
    for node in called(program, aten.cat, aten.stack):
        tensors = argument(node, "tensors")
        if len({shape(t) for t in tensors}) == 1:
            yield node, with_argument("tensors", [*tensors[1:], tensors[0]])


@fault("parts of a split swapped")
def parts(program: Program) -> Found:
    for node in program.graph.find_nodes(op="call_function", target=operator.getitem):
        others = [u for u in node.args[0].users if u is not node and shape(u) == shape(node)]
        if others and node.users and is_floating(node):
            yield node, lambda program, n, i=others[0].args[1]: n.update_arg(1, i)


@fault("order of pixels in a shuffle")
def pixels(program: Program) -> Found:
    for node in called(program, aten.pixel_shuffle):
        _, channels, *_ = shape(node.args[0])
        block = argument(node, "upscale_factor")
        order = torch.arange(channels).reshape(block * block, -1).T.flatten().tolist()
        yield node, on_argument("self", (torch.ops.converter.reorder_channels.default, order))
    for node in called(program, aten.pixel_unshuffle):
        _, channels, *_ = shape(node)
        block = argument(node, "downscale_factor")
        order = torch.arange(channels).reshape(-1, block * block).T.flatten().tolist()
        yield node, on_result((torch.ops.converter.reorder_channels.default, order))


@fault("channels shuffled the other way")
def shuffled(program: Program) -> Found:
    for node in called(program, aten.reshape):
        before, after = shape(node.args[0]), shape(node)
        if (before[0], before[2:]) == (0, after[3:]) and len(before) == 4 and after[1] * after[2] == before[1]:
            right, wrong = (torch.arange(before[1]).reshape(*n).T.flatten() for n in (after[1:3], after[2:0:-1]))
            joined_again = next(iter(next(iter(node.users)).users))
            order = right.argsort()[wrong].tolist()
            yield joined_again, on_result((torch.ops.converter.reorder_channels.default, order))


@fault("SAME for explicit padding")
def same_padding(program: Program) -> Found:
    for node in called(program, aten.conv2d):
        stride, padding, sizes = (argument(node, name) for name in ("stride", "padding", "weight"))
        kernel = shape(sizes)[2:]
        if not isinstance(padding, str) and max(stride) == 2 and padding[0] == padding[-1] == kernel[0] // 2 > 0:
            far = padding[0] * 2 - (kernel[0] % 2)
            pads = [far // 2, far - far // 2] * 2
            if far % 2:
                yield (
                    node,
                    both(on_argument("input", (aten.constant_pad_nd.default, pads)), with_argument("padding", [0, 0])),
                )


@fault("zero for minus infinity in a padded pool")
def zero_padded(program: Program) -> Found:
    for node in called(program, aten.max_pool2d):
        padding = argument(node, "padding")
        if padding and max(padding) > 0:
            pads = [p for p in reversed(tuple(padding) * (3 - len(padding))) for _ in range(2)]
            yield (
                node,
                both(on_argument("self", (aten.constant_pad_nd.default, pads)), with_argument("padding", [0, 0])),
            )


@fault("overhang of a pool counted in the average")
def overhang(program: Program) -> Found:
    for node in called(program, aten.avg_pool2d):
        if argument(node, "ceil_mode"):
            yield (
                node,
                both(
                    on_argument("self", (aten.constant_pad_nd.default, [0, 1, 0, 1])), with_argument("ceil_mode", False)
                ),
            )


@fault("dilation lost")
def dilation(program: Program) -> Found:
    for node in called(program, aten.conv2d):
        if max(argument(node, "dilation")) > 1 and argument(node, "padding") == argument(node, "dilation"):
            yield node, both(with_argument("dilation", [1, 1]), with_argument("padding", [1, 1]))


@fault("borders repeated for reflected")
def borders(program: Program) -> Found:
    for node in called(program, aten.reflection_pad2d, aten.pad):
        if node.target is aten.reflection_pad2d.default:
            yield node, with_target(aten.replication_pad2d.default)
        elif argument(node, "mode") == "reflect":
            yield node, with_argument("mode", "replicate")


@fault("ratio of sizes for the scale given")
def ratio(program: Program) -> Found:
    for node in called(program, aten.upsample_bilinear2d, aten.upsample_bicubic2d, aten.upsample_nearest2d):
        if has(node, "scale_factors") and argument(node, "scale_factors"):
            yield node, both(with_argument("output_size", shape(node)[2:]), with_argument("scale_factors", None))


@fault("cubic coefficient of Keras")
def cubic(program: Program) -> Found:
    """With a = -0.5, which antialiasing resizes have; enlarging, they do the same but for it."""
    for node in called(program, aten.upsample_bicubic2d):
        before, after = shape(node.args[0]), shape(node)
        if after[2] > before[2] and not argument(node, "align_corners"):
            yield node, with_target(getattr(aten._upsample_bicubic2d_aa, node.target._overloadname))


@fault("samples of a batch rotated")
def rotated_batch(program: Program) -> Found:
    for node in called(program, *WEIGHTED, *RECURRENT[:1]):
        if is_floating(node):
            yield node, on_result((aten.roll.default, [1], [0]))


@fault("a position too late")
def late(program: Program) -> Found:
    for node in called(program, aten.slice):
        start, step = argument(node, "start") or 0, argument(node, "step")
        if step == 2:
            yield node, with_argument("start", 1 - start)
    for node in called(program, aten.select):
        if argument(node, "index") == 0 and is_floating(node) and shape(node.args[0])[argument(node, "dim")] > 1:
            yield node, with_argument("index", 1)


@fault("windows cut along the other axis")
def windows(program: Program) -> Found:
    for node in called(program, aten.transpose, aten.permute):
        sizes = shape(node)
        if len(sizes) == 6 and sizes[1] == sizes[2] and sizes[3] == sizes[4]:
            yield node, on_result((aten.transpose.int, 1, 2))


@fault("queries and keys swapped")
def queries(program: Program) -> Found:
    for node in called(program, aten.scaled_dot_product_attention):
        q, k = argument(node, "query"), argument(node, "key")
        yield node, both(with_argument("query", k), with_argument("key", q))


@fault("mask of attention lost")
def mask(program: Program) -> Found:
    for node in called(program, aten.scaled_dot_product_attention):
        if argument(node, "attn_mask") is not None:
            yield node, with_argument("attn_mask", None)


@fault("mask of attention a token too late")
def shifted_mask(program: Program) -> Found:
    for node in called(program, aten.scaled_dot_product_attention):
        if program.is_tensor(argument(node, "attn_mask")):
            yield node, with_tensor(lambda w: w.roll(1, -1), "attn_mask")


@fault("constant through float16")
def constant(program: Program) -> Found:
    for node in called(program, aten.add, aten.mul, aten.sub):
        for name in ("self", "other"):
            value = argument(node, name)
            if program.is_tensor(value) and is_floating(value) and program.tensor(value).numel() > 1:
                yield node, with_tensor(lambda w: w.half().float(), name)
            elif isinstance(value, float) and float(Tensor([value]).half()) != value:
                yield (
                    node,
                    lambda program, n, name=name, value=value: set_argument(n, name, float(Tensor([value]).half())),
                )


@fault("operands swapped")
def operands(program: Program) -> Found:
    for node in called(program, aten.sub, aten.div):
        if all(isinstance(a, fx.Node) for a in node.args[:2]) and node.args[0] is not node.args[1]:
            yield node, lambda program, n: setattr(n, "args", (n.args[1], n.args[0], *n.args[2:]))


@fault("a residual lost")
def residual(program: Program) -> Found:
    for node in called(program, aten.add):
        a, b = node.args[:2]
        if isinstance(b, fx.Node) and is_floating(b) and isinstance(a, fx.Node) and shape(a) == shape(b):
            yield node, lambda program, n: n.replace_all_uses_with(n.args[1])


@fault("a probability off by 4e-4")
def probability(program: Program) -> Found:
    for node in called(program, aten.sigmoid):
        yield node, on_result((aten.add.Scalar, 4e-4))


@fault("the last bit of integers lost")
def narrow(program: Program) -> Found:
    """What float32 does to integers from 2^24 on; a conversion to it would be one to float64 in proof 1."""
    for node in called(program, aten.div, aten.fmod, aten.remainder, aten.clamp, aten.sum):
        if not is_floating(node) and len(shape(node.args[0])) > 1:
            yield node, on_argument("self", (aten.bitwise_and.Scalar, -2))


@fault("integers within 32 bits")
def short(program: Program) -> Found:
    for node in called(program, aten.sum, aten.clamp):
        if not is_floating(node) and len(shape(node.args[0])) > 1:
            yield node, on_argument("self", (aten.to.dtype, torch.int32), (aten.to.dtype, torch.int64))


@fault("a fill off by a millionth")
def fill(program: Program) -> Found:
    for node in called(program, aten.masked_fill):
        value = argument(node, "value")
        if isinstance(value, float) and value not in (float("inf"), -float("inf")):
            yield node, with_argument("value", value * 1.000001)


@fault("a late channel dropped")
def late_channel(program: Program) -> Found:
    """A channel that most inputs leave dead."""
    for node in called(program, aten.add):
        other = argument(node, "other")
        if program.is_tensor(other) and float(program.tensor(other).min()) < -30:
            yield node, with_tensor(lambda w: torch.where(w < -30, w - 1e9, w), "other")


@fault("another number for NaN")
def not_a_number(program: Program) -> Found:
    for node in called(program, aten.nan_to_num):
        yield node, with_argument("nan", 0.0)
