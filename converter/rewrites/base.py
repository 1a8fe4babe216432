"""What a rewrite says of itself."""

from collections.abc import Callable
from dataclasses import dataclass

from converter.ir.program import Program


@dataclass(frozen=True)
class Change:
    """One place where a rewrite fired.

    Attributes:
        name: what became what, "Focus -> SpaceToDepth".
        module: path of the module it happened in.
        description: what became of the weights.
        minor: of no interest to most users.
    """

    name: str
    module: str
    description: str = ""
    minor: bool = False


Rewrite = Callable[[Program], list[Change]]
