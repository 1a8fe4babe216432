"""The type of a rewrite and of the changes that it reports."""

from collections.abc import Callable
from dataclasses import dataclass

from converter.ir.program import Program


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
