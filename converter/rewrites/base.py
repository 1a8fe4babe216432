"""The type of a rewrite and of the changes that it reports."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import fx

from converter.ir.aten import set_arguments
from converter.ir.lazy_tensor import LazyTensor
from converter.ir.program import Origin, Program, tensor_name


@dataclass(frozen=True)
class Change:
    """One place where a rewrite fired.

    Attributes:
        name: the change, for example "Focus -> SpaceToDepth".
        module: path of the module where it happened.
        description: what happened to the weights.
        routine: of no interest to most users.
    """

    name: str
    module: str
    description: str = ""
    routine: bool = False


Rewrite = Callable[[Program], list[Change]]


def set_bias(
    program: Program, layer: fx.Node, weight: fx.Node, bias: fx.Node | None, values: LazyTensor, origin: Origin
) -> None:
    """Give a convolution or linear layer other biases, as a new tensor beside its weight if it has no `bias`."""
    if bias is not None:
        program.replace_tensor(bias, values, origin, [layer])
        return
    name = f"{tensor_name(weight).rpartition('.')[0]}.bias".lstrip(".")
    added = program.new_tensor(name, values, layer, origin, trainable=program.trainable(weight))
    set_arguments(layer, bias=added)
