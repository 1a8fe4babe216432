"""Options of a conversion."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """What decides the bytes of an artifact, besides the model.

    Attributes:
        mappings: the SHA-256 of each file of the user's mappings.
    """

    layout: str = "auto"
    fixed_batch: int | None = None
    keep_batchnorm: bool = False
    opset: int | None = None
    exact_shifts: bool = False
    mappings: tuple[str, ...] = ()
