"""Trace a TensorFlow function with its variables, to save it as a SavedModel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tensorflow as tf


def trace(function: Callable[..., Mapping[str, tf.Tensor]], signature: Sequence[tf.TensorSpec]) -> Any:
    """Return the concrete function that `save` takes.

    Args:
        function: takes one tensor per entry of `signature`, in that order, and returns its outputs by name.
        signature: each entry has a name, which the input keeps: letters, digits and underscores, no digit first.
    """
    import tensorflow as tf

    for spec in signature:
        if not (spec.name and spec.name.isidentifier() and spec.name.isascii()):
            raise ValueError(f"TensorFlow would rename the input {spec.name!r}")

    def serving(*tensors: tf.Tensor) -> dict[str, tf.Tensor]:
        return dict(function(*tensors))

    return tf.function(serving, input_signature=list(signature), autograph=False).get_concrete_function()


@dataclass(frozen=True)
class Saved:
    """The parts shared by SavedModels of one function whose variables have other values.

    Attributes:
        graph: the content of `saved_model.pb`.
        objects: the checkpoint's own record of which object is part of which.
        digest: of the function's operators, attributes and constants.
    """

    graph: bytes
    objects: bytes
    digest: str
