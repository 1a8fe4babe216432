"""Helpers of the proofs that an artifact computes the same function as its model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from converter.ir.program import Program


def tensors_read(program: Program) -> set[str]:
    """Return the checkpoint's tensors that some operator of the program reads."""
    nodes = [node for node in program.graph.find_nodes(op="get_attr") if node.users]
    return {s for node in nodes for s in program.origins[node.target].sources}


def _raised(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64) if array.dtype == np.float32 else array


def _eager(array: np.ndarray) -> Any:
    import tensorflow as tf

    return tf.constant(array)


def groups(rounds: Sequence[list[np.ndarray]]) -> Iterator[list[list[np.ndarray]]]:
    """Group rounds to run side by side, with no more samples together than the largest round has."""
    samples = [max((array.shape[0] for array in arrays if array.ndim), default=1) for arrays in rounds]
    most = max(samples, default=1)
    group: list[list[np.ndarray]] = []
    held = 0
    for arrays, count in zip(rounds, samples, strict=True):
        if group and held + count > most:
            yield group
            group, held = [], 0
        group.append(arrays)
        held += count
    if group:
        yield group
