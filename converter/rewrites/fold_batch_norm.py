"""Fold batch norm into the convolution, transposed convolution or linear layer before it (inference artifacts).

batch_norm(conv(x, W, b), gamma, beta, mean, var)
-> conv(x, W * s, beta + (b - mean) * s),  s = gamma / sqrt(var + eps)
"""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, fx

from converter.ir.aten import bound_arguments
from converter.ir.lazy_tensor import LazyTensor
from converter.ir.program import Program, module_path
from converter.rewrites.base import Change, set_bias

aten = torch.ops.aten
FOLDABLE = {
    aten.conv1d.default,
    aten.conv2d.default,
    aten.conv3d.default,
    aten.conv1d.padding,
    aten.conv2d.padding,
    aten.conv3d.padding,
    aten.linear.default,
}
TRANSPOSED = {aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input}
STATISTICS = ("weight", "bias", "running_mean", "running_var")
VECTORS = ("var", "mean", "gamma", "beta", "bias")


def fold_batch_norm(program: Program) -> list[Change]:
    changes = []
    for norm in program.graph.find_nodes(op="call_function", target=aten.batch_norm.default):
        arguments = bound_arguments(norm)
        producer = arguments.node("input")
        if not foldable(program, producer, norm):
            continue
        gamma, beta, mean, var = (arguments.optional_node(name) for name in STATISTICS)
        eps = arguments.number("eps")
        weight, bias = bound_arguments(producer).node("weight"), bound_arguments(producer).optional_node("bias")
        given = {name: program.values(n) for name, n in zip(VECTORS, (var, mean, gamma, beta, bias), strict=True) if n}
        names = tuple(given)
        scale = partial(scaled, eps=eps, names=names, transposed=transposed_groups(producer))
        folded = LazyTensor.combine(scale, program.values(weight), *given.values())
        shift = LazyTensor.combine(partial(shifted, eps=eps, names=names), *given.values())

        statistics = [n for n in (gamma, beta, mean, var) if n is not None]
        origin = program.merged_origin(n for n in (weight, gamma, var) if n is not None)
        program.replace_tensor(weight, folded, origin, [producer])
        origin = program.merged_origin(n for n in (bias, *statistics) if n is not None)
        set_bias(program, producer, weight, bias, shift, origin)
        norm.replace_all_uses_with(producer)
        program.graph.erase_node(norm)
        changes.append(
            Change(
                "BatchNorm folded", module_path(norm), f"into the weights of `{module_path(producer)}`", routine=True
            )
        )
    return changes


def transposed_groups(producer: fx.Node) -> int:
    """Return the groups of a transposed convolution, 0 for other operators."""
    return bound_arguments(producer).integer("groups") if producer.target in TRANSPOSED else 0


def scaled(weight: Tensor, *vectors: Tensor, eps: float, names: Sequence[str], transposed: int) -> Tensor:
    """Scale a kernel (out, in / groups, ...), or (in, out / groups, ...) if `transposed`, the groups, is not 0."""
    scale = scale_of(dict(zip(names, vectors, strict=True)), eps)
    if not transposed:
        return weight * scale.reshape(-1, *[1] * (weight.dim() - 1))
    grouped = weight.unflatten(0, (transposed, -1)) * scale.reshape(transposed, 1, -1, *[1] * (weight.dim() - 2))
    return grouped.flatten(0, 1)


def shifted(*vectors: Tensor, eps: float, names: Sequence[str]) -> Tensor:
    given = dict(zip(names, vectors, strict=True))
    shift = (given["bias"].double() - given["mean"] if "bias" in given else -given["mean"].double()) * scale_of(
        given, eps
    )
    return shift + given["beta"] if "beta" in given else shift


def scale_of(vectors: Mapping[str, Tensor], eps: float) -> Tensor:
    scale = (vectors["var"].double() + eps).rsqrt()
    return scale * vectors["gamma"] if "gamma" in vectors else scale


def foldable(program: Program, producer: fx.Node, norm: fx.Node) -> bool:
    if producer.target not in FOLDABLE | TRANSPOSED or len(producer.users) > 1:
        return False
    if producer.target is aten.linear.default and producer.meta["val"].dim() != 2:
        return False
    given, arguments = bound_arguments(producer), bound_arguments(norm)
    tensors = [given.value("weight"), given.value("bias"), *(arguments.value(name) for name in STATISTICS)]
    return not arguments.flag("training") and all(n is None or program.is_tensor(n) for n in tensors)
