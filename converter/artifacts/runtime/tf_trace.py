"""Trace the results of every operator of a TensorFlow function."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from .graph_ops import BOOKKEEPING, behind
from .protocol import Value, fingerprint

_AT_ONCE = 48  # values held in memory together; each group is another run of the graph


def trace_function(function: Any, arrays: Mapping[str, np.ndarray]) -> Iterator[Value]:
    """Yield the values between the inputs and outputs of a `ConcreteFunction`, called with `arrays` by input name.

    Functions are inlined and variables made constants. The inside of loops and branches is not shown.
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    frozen = convert_variables_to_constants_v2(function)
    given = [tensor.op.name for tensor in frozen.inputs]
    dependent = {node.name for node in behind(frozen.graph.as_graph_def().node, given)}
    values = [
        tensor
        for operator in frozen.graph.get_operations()
        if operator.name in dependent and operator.type not in BOOKKEEPING
        for tensor in operator.outputs
        if tensor.dtype.is_floating or tensor.dtype.is_integer or tensor.dtype.is_bool
    ]
    feeds = [tf.constant(arrays[name]) for name in given]
    for start in range(0, len(values), _AT_ONCE):
        group = values[start : start + _AT_ONCE]
        results = frozen.prune(frozen.inputs, group)(*feeds)
        for tensor, result in zip(group, results, strict=True):
            array = result.numpy()
            yield tensor.op.name, tensor.op.type, list(array.shape), fingerprint(array)
