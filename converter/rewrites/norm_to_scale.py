"""Write a batch norm that no convolution before it took as a factor and a term (inference artifacts).

batch_norm(x, gamma, beta, mean, var) -> x * s + t,  s = gamma / sqrt(var + eps),  t = beta - mean * s
the same before a convolution that pads -> (x + t / s) * s, where no channel has s = 0

Both are computed at conversion, as PyTorch computes them on each run. `fold_input_scale` then has the convolution or
linear layer behind take what it can: all of it without padding, the factor with padding.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, fx

from converter.ir.aten import bound_arguments
from converter.ir.lazy_tensor import LazyTensor
from converter.ir.program import Program, module_path, tensor_name
from converter.rewrites.base import Change
from converter.rewrites.fold_batch_norm import STATISTICS, scale_of, shifted
from converter.rewrites.fold_input_scale import is_unpadded, takes_scale

aten = torch.ops.aten
VECTORS = ("gamma", "beta", "mean", "var")


def norm_to_scale(program: Program) -> list[Change]:
    return _written(program, lambda norm: True)


def norm_to_taken_scale(program: Program) -> list[Change]:
    """Leave what no layer behind takes whole: ONNX Runtime's norm is as fast as a product and a sum."""
    return _written(program, lambda norm: (layer := _layer_behind(norm)) is not None and is_unpadded(layer))


def _written(program: Program, chosen: Callable[[fx.Node], bool]) -> list[Change]:
    changes = []
    for norm in program.graph.find_nodes(op="call_function", target=aten.batch_norm.default):
        arguments = bound_arguments(norm)
        given = [arguments.value(name) for name in STATISTICS]
        if (
            not chosen(norm)
            or arguments.flag("training")
            or any(not (n is None or program.is_tensor(n)) for n in given)
        ):
            continue
        held = {name: node for name, node in zip(VECTORS, given, strict=True) if node is not None}
        if "mean" not in held:
            continue
        _replace(program, norm, arguments.node("input"), held, arguments.number("eps"))
        changes.append(Change("BatchNorm as factor and term", module_path(norm), routine=True))
    return changes


def _replace(program: Program, norm: fx.Node, x: fx.Node, held: dict[str, fx.Node], eps: float) -> None:
    owner = tensor_name(held["mean"]).rpartition(".")[0]
    shape = (-1, *[1] * (norm.meta["val"].dim() - 2))
    given = [program.values(node) for node in held.values()]
    trainable = any(program.trainable(node) for node in held.values())
    origin = program.merged_origin(held.values())

    def tensor(name: str, divides: bool = False) -> fx.Node:
        compute = partial(_vector, which=name, divides=divides, eps=eps, names=tuple(held), shape=shape)
        values = LazyTensor.combine(compute, *given)
        return program.new_tensor(f"{owner}.{name}".lstrip("."), values, norm, origin, trainable=trainable)

    with program.graph.inserting_before(norm):
        factor = tensor("factor")
        layer = _layer_behind(norm)
        padded = layer is not None and not is_unpadded(layer)
        if padded and program.query(term := tensor("term", divides=True), _is_finite):
            y = program.insert_call(aten.add.Tensor, (x, term), like=norm)
            y = program.insert_call(aten.mul.Tensor, (y, factor), like=norm)
        else:
            y = program.insert_call(aten.mul.Tensor, (x, factor), like=norm)
            y = program.insert_call(aten.add.Tensor, (y, tensor("term")), like=norm)
    norm.replace_all_uses_with(y)
    program.graph.erase_node(norm)


def _layer_behind(norm: fx.Node) -> fx.Node | None:
    """Return the only user if it is a layer whose kernel can take the factor."""
    layer = next(iter(norm.users)) if len(norm.users) == 1 else None
    return layer if layer is not None and takes_scale(layer) else None


def _vector(
    *vectors: Tensor, which: str, divides: bool, eps: float, names: tuple[str, ...], shape: tuple[int, ...]
) -> Tensor:
    scale = scale_of(dict(zip(names, vectors, strict=True)), eps)
    if which == "factor":
        return scale.reshape(shape)
    term = shifted(*vectors, eps=eps, names=names)
    return (term / scale if divides else term).reshape(shape)


def _is_finite(term: Tensor) -> bool:
    return bool(term.float().isfinite().all())
