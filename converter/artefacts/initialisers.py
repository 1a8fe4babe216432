"""What the initialisers of an ONNX file must be: the rewritten program's tensors, as PyTorch's exporter names them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import torch

from converter.artefacts.rearranged_weights import rearranged_weights
from converter.artefacts.recurrent_weights import recurrent_weights
from converter.program import Program
from converter.verification.weights import Expected


def expected_initialisers(program: Program, tensors: Mapping[str, np.ndarray]) -> dict[str, Expected]:
    """Those of `tensors` that a tensor of the program explains; the exporter may transpose a matrix."""
    expected = _named(program, tensors)
    _add_renamed(program, expected, tensors)
    _add_merged(program, expected)
    return _with_rearranged(program, expected, tensors)


def refillable(program: Program, tensors: Mapping[str, np.ndarray]) -> dict[str, Expected] | None:
    """The same, to fill the file with other weights; None where more than names, shapes and order hangs on values.

    The exporter keeps one of equal initialisers, and leaves out what changes nothing (a bias of zeros).
    """
    expected = _named(program, tensors)
    _add_renamed(program, expected, tensors)
    expected = _with_rearranged(program, expected, tensors)
    held = [source for one in expected.values() for source in one.sources]
    for node in program.graph.find_nodes(op="get_attr"):
        floats = node.meta["val"].is_floating_point()
        if node.users and floats and not set(program.origins[node.target].sources) <= set(held):
            return None
    unexplained = [name for name, tensor in tensors.items() if name not in expected and not is_exporters(tensor)]
    return None if unexplained else expected


def _named(program: Program, tensors: Mapping[str, np.ndarray]) -> dict[str, Expected]:
    expected = {}
    nodes = {node.target: node for node in reversed(program.graph.find_nodes(op="get_attr"))}
    for target, name in _names(program).items():
        if name not in tensors or target not in nodes:
            continue
        values, origin = program.values(nodes[target]), program.origins[target]
        if len(values.shape) == 2 and values.shape != tensors[name].shape == values.shape[::-1]:
            values = values.then(torch.t)
        expected[name] = Expected(values, origin.sources, origin.exact)
    return expected


def _names(program: Program) -> dict[str, str]:
    """How the exporter calls each tensor: one that is returned, as the output."""
    returned = {n.target: name for name, n in zip(program.outputs, program.results, strict=True) if n.op == "get_attr"}
    return {target: returned.get(target, target) for target in program.origins}


def _with_rearranged(
    program: Program, expected: dict[str, Expected], tensors: Mapping[str, np.ndarray]
) -> dict[str, Expected]:
    expected = expected | recurrent_weights(program, {n: t for n, t in tensors.items() if n not in expected})
    known = {target for target, name in _names(program).items() if name in expected}
    return expected | rearranged_weights(program, {n: t for n, t in tensors.items() if n not in expected}, known)


def _add_renamed(program: Program, expected: dict[str, Expected], tensors: Mapping[str, np.ndarray]) -> None:
    """The exporter reshapes some under names of its own, as the slopes of PReLU: they hold the same bytes."""
    named = {source for one in expected.values() for source in one.sources}
    for node in program.graph.find_nodes(op="get_attr"):
        origin = program.origins[node.target]
        if not node.users or node.target in expected or named.issuperset(origin.sources):
            continue
        array = program.tensor(node).detach().numpy()
        for name, tensor in tensors.items():
            if name not in expected and tensor.size == array.size and _same_bytes(array, tensor):
                shaped = program.values(node).then(partial(torch.reshape, shape=tensor.shape))
                expected[name] = Expected(shaped, origin.sources, origin.exact)
                break


def _add_merged(program: Program, expected: dict[str, Expected]) -> None:
    """The exporter keeps one of equal initialisers, as the biases of two fresh norms: it then comes from both."""
    for node in program.graph.find_nodes(op="get_attr"):
        if not node.users or node.target in expected:
            continue
        array, origin = program.tensor(node).detach().numpy(), program.origins[node.target]
        for name, one in expected.items():
            kept = np.asarray(one.array)
            if kept.shape == array.shape and _same_bytes(kept, array):
                sources = tuple(dict.fromkeys((*one.sources, *origin.sources)))
                expected[name] = Expected(one.array, sources, one.exact and origin.exact)
                break


def is_exporters(tensor: np.ndarray) -> bool:
    """Shapes, axes, and what is one number throughout, as the scale of a norm that has none: the digest covers them."""
    return tensor.dtype.kind != "f" or tensor.size <= 1 or bool((tensor == tensor.flat[0]).all())


def _same_bytes(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and one.tobytes() == other.tobytes()
