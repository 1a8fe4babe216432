"""Analysis of whether a value may hold infinities, which a multiplication by zero turns into NaN."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, fx

from converter.ir.aten import bound_arguments
from converter.ir.program import Program

# These make infinities from finite numbers that are not too large.
MAKE_INFINITE = {
    "log", "log2", "log10", "log1p", "logit", "special_logit", "true_divide", "floor_divide", "reciprocal", "rsqrt",
    "tan", "atanh", "erfinv", "special_erfinv", "lgamma", "digamma", "log_softmax", "logsumexp", "log_sigmoid",
}  # fmt: skip
REACH = 4000
ZERO_WEIGHTS = "zero_weights"  # in a node's metadata: PyTorch multiplies an input by zero weights there too


def may_be_infinite(program: Program, node: fx.Node, inputs: bool = True) -> bool:
    """Return whether an infinity may reach `node` other than by overflow: as an input that is only moved, or created.

    A graph input counts if nothing is computed between it and `node`: in a network that is given an infinity,
    none of its own numbers survive the first convolution.

    Args:
        inputs: graph inputs count.
    """
    seen, ring = {(node, True)}, [(node, True)]
    while ring:
        value, untouched = ring.pop()
        if len(seen) > REACH:
            return True
        if inputs and value.op == "placeholder" and untouched and value.meta["val"].is_floating_point():
            return True
        if program.is_tensor(value) and not program.query(value, finite):
            return True
        if value.op != "call_function":
            continue
        if makes_infinite(program, value):
            return True
        only_moves = untouched and not computes(value)
        for other in value.all_input_nodes:
            if not {(other, True), (other, only_moves)} & seen:
                seen.add((other, only_moves))
                ring.append((other, only_moves))
    return False


def makes_infinite(program: Program, node: fx.Node) -> bool:
    name = getattr(node.target, "_schema", None)
    name = name.name.removeprefix("aten::").rstrip("_") if name is not None else ""
    if any(not math.isfinite(n) for n in numbers((node.args, node.kwargs))):
        return True
    if name == "div":
        return not nonzero(program, bound_arguments(node).value("other"))
    if name == "pow":
        exponent = bound_arguments(node).value("exponent")
        return not (isinstance(exponent, int | float) and exponent >= 0)
    return name in MAKE_INFINITE


def nonzero(program: Program, divisor: object) -> bool:
    if isinstance(divisor, int | float):
        return divisor != 0
    return program.is_tensor(divisor) and program.query(divisor, lambda held: bool((held != 0).all()))


def numbers(arguments: object) -> Iterable[float]:
    return (a for a in torch.utils._pytree.tree_leaves(arguments) if isinstance(a, float))


def finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def computes(node: fx.Node) -> bool:
    """Return whether the operator computes new numbers from its inputs, weights among them."""
    return any(n.op == "get_attr" for n in node.all_input_nodes)
