"""Compute the expected initializers of an ONNX file: the rewritten program's tensors under the exporter's names."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from converter.artifacts.folded_constants import FoldedConstants, Literal
from converter.artifacts.runtime.protocol import Tensors
from converter.ir.program import Origin, Program
from converter.verification.onnx_rearranged import rearranged_weights
from converter.verification.onnx_rnn_weights import recurrent_weights
from converter.verification.weight_proof import Expected, is_as_expected


def expected_initializers(
    program: Program, tensors: Mapping[str, np.ndarray], folded: Callable[[], FoldedConstants]
) -> dict[str, Expected]:
    """Return what those of `tensors` must be that a tensor or a constant of the program explains.

    Args:
        folded: what the optimizer evaluates when this program is exported; asked only for what nothing else explains.
    """
    expected = _named(program, tensors)
    _add_renamed(program, expected, tensors)
    _add_merged(program, expected)
    expected = _with_rearranged(program, expected, tensors)
    unexplained = _others(tensors, [name for name in tensors if name in expected or is_exporters(tensors[name])])
    if unexplained or _left_out(program, expected):
        constants = _Constants(program, folded())
        constants.explain(unexplained, expected)
        if left_out := _left_out(program, expected):
            constants.account_for(left_out, expected, tensors)
    return expected


def _left_out(program: Program, expected: Mapping[str, Expected]) -> set[str]:
    """Return the checkpoint's tensors that parameters are made of and nothing expected is."""
    used = {source for one in expected.values() for source in one.sources}
    read = [node for node in program.graph.find_nodes(op="get_attr") if node.users and program.trainable(node)]
    return {source for node in read for source in program.origins[node.target].sources if source not in used}


class _Constants:
    """The constants that the optimizer evaluated, computed again from the program's tensors."""

    def __init__(self, program: Program, folded: FoldedConstants):
        self._program, self._folded = program, folded
        nodes = {node.target: node for node in program.graph.find_nodes(op="get_attr")}
        self._nodes = {name: nodes[target] for target, name in _names(program).items() if target in nodes} | nodes

    def explain(self, unexplained: Mapping[str, np.ndarray], expected: dict[str, Expected]) -> None:
        """Add what each must be: what has its name, else (another version may give other names) what has its values."""
        for name, tensor in unexplained.items():
            found = self._named(name) or next((one for one in self._alike(tensor) if is_as_expected(one, tensor)), None)
            if found:
                expected[name] = found

    def _named(self, name: str) -> Expected | None:
        if name in self._folded.literals:
            return Expected(self._folded.literals[name].array, (), exact=True)
        return self._made(name) if name in self._folded.folded else None

    def _alike(self, tensor: np.ndarray) -> Iterator[Expected]:
        """Yield what a tensor of this shape may be."""
        for name in (*self._folded.literals, *self._folded.folded):
            if self._folded.shapes.get(name, tensor.shape) == tensor.shape and (found := self._named(name)):
                yield found

    def account_for(self, sources: set[str], expected: dict[str, Expected], tensors: Mapping[str, np.ndarray]) -> None:
        """Add the sources of what was merged with an equal tensor, which then comes from both."""
        for folded in self._folded.folded:
            if not sources.intersection(self._sources(folded)):
                continue
            shape = self._folded.shapes.get(folded)
            alike = [name for name, tensor in tensors.items() if shape in (None, tensor.shape)]
            merged = self._made(folded) if alike else None
            for name in alike:
                if merged and is_as_expected(merged, tensors[name]):
                    one = expected.get(name, merged)
                    expected[name] = replace(one, sources=tuple(dict.fromkeys((*one.sources, *merged.sources))))
                    break

    def _origins(self, name: str) -> list[Origin]:
        weights = self._folded.folded[name].weights
        return [self._program.origins[self._nodes[weight].target] for weight in weights if weight in self._nodes]

    def _sources(self, name: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(source for origin in self._origins(name) for source in origin.sources))

    def _made(self, name: str) -> Expected | None:
        """Return what a folded result must be, or None if it was not folded, or of tensors that the program lacks."""
        if not self._nodes.keys() >= set(self._folded.folded[name].weights):
            return None
        rounded = self._folded.value(name, self._array, raised=False)
        raised = self._folded.value(name, self._array, raised=True)
        if rounded is None or raised is None:
            return None
        if self._folded.folded[name].moves and all(origin.exact for origin in self._origins(name)):
            return Expected(rounded, self._sources(name), exact=True)
        return Expected(raised, self._sources(name), exact=False, rounded=rounded)

    def _array(self, name: str) -> np.ndarray:
        return self._program.tensor(self._nodes[name]).detach().numpy()


def refillable(
    program: Program, tensors: Mapping[str, np.ndarray], literals: Mapping[str, Literal]
) -> dict[str, Expected] | None:
    """Return the expected initializers for filling the file with other weights, or None if its graph depends on values.

    The exporter keeps one of several equal initializers, and omits those without effect (a bias of zeros).

    Args:
        literals: the tensors that operators' translations hold.
    """
    expected = _named(program, tensors)
    _add_renamed(program, expected, tensors)
    expected = _with_rearranged(program, expected, tensors)
    held = {source for one in expected.values() for source in one.sources}
    for node in program.graph.find_nodes(op="get_attr"):
        floats = node.meta["val"].is_floating_point()
        if node.users and floats and not held.issuperset(program.origins[node.target].sources):
            return None
    unexplained = [
        name
        for name, tensor in tensors.items()
        if not (name in expected or is_exporters(tensor) or name in literals)
        or (name in literals and not np.array_equal(literals[name].array, tensor))
    ]
    return None if unexplained else expected


def named(program: Program) -> set[str]:
    """Return the exporter's names of the program's tensors."""
    return set(_names(program).values())


def _named(program: Program, tensors: Mapping[str, np.ndarray]) -> dict[str, Expected]:
    expected = {}
    nodes = {node.target: node for node in reversed(program.graph.find_nodes(op="get_attr"))}
    for target, name in _names(program).items():
        if name not in tensors or target not in nodes:
            continue
        values, origin = program.values(nodes[target]), program.origins[target]
        if len(values.shape) == 2 and values.shape != tensors[name].shape == values.shape[::-1]:
            values = values.map(torch.t)
        expected[name] = Expected(values, origin.sources, origin.exact)
    return expected


def _names(program: Program) -> dict[str, str]:
    """Return the exporter's name of each tensor: the output's name if it is returned."""
    returned = {n.target: name for name, n in zip(program.outputs, program.results, strict=True) if n.op == "get_attr"}
    return {target: returned.get(target, target) for target in program.origins}


def _with_rearranged(
    program: Program, expected: dict[str, Expected], tensors: Mapping[str, np.ndarray]
) -> dict[str, Expected]:
    expected = expected | recurrent_weights(program, _others(tensors, expected))
    known = {target for target, name in _names(program).items() if name in expected}
    return expected | rearranged_weights(program, _others(tensors, expected), known)


def _others(tensors: Mapping[str, np.ndarray], known: Container[str]) -> Mapping[str, np.ndarray]:
    """Return the tensors that are not known, without reading any."""
    return Tensors((name for name in tensors if name not in known), tensors.__getitem__)


def _add_renamed(program: Program, expected: dict[str, Expected], tensors: Mapping[str, np.ndarray]) -> None:
    """Add initializers that the exporter reshapes and renames, such as PReLU's slopes: they hold the same bytes."""
    named = {source for one in expected.values() for source in one.sources}
    left: dict[bytes, list[str]] = {}
    for name, tensor in _others(tensors, expected).items():
        left.setdefault(_content(tensor), []).append(name)
    for node in program.graph.find_nodes(op="get_attr") if left else ():
        origin = program.origins[node.target]
        if not node.users or node.target in expected or named.issuperset(origin.sources):
            continue
        if names := left.get(_content(program.tensor(node).detach().numpy())):
            shaped = program.values(node).map(partial(torch.reshape, shape=tensors[names[0]].shape))
            expected[names.pop(0)] = Expected(shaped, origin.sources, origin.exact)


def _add_merged(program: Program, expected: dict[str, Expected]) -> None:
    """Add the sources of merged initializers: the exporter keeps one of equal ones, such as two fresh norms' biases."""
    left = [node for node in program.graph.find_nodes(op="get_attr") if node.users and node.target not in expected]
    kept: dict[tuple, str] = {}
    for name, one in expected.items() if left else ():
        array = np.asarray(one.array)
        kept.setdefault((array.shape, _content(array)), name)
    for node in left:
        array, origin = program.tensor(node).detach().numpy(), program.origins[node.target]
        if same := kept.get((array.shape, _content(array))):
            one = expected[same]
            sources = tuple(dict.fromkeys((*one.sources, *origin.sources)))
            expected[same] = Expected(one.array, sources, one.exact and origin.exact)


def is_exporters(tensor: np.ndarray) -> bool:
    """Tell whether the exporter may have added a tensor: shapes, axes, one repeated number; the digest covers those."""
    return tensor.dtype.kind != "f" or tensor.size <= 1 or bool((tensor == tensor.flat[0]).all())


def _content(array: np.ndarray) -> bytes:
    """Return a digest that arrays of the same bytes and dtype have, whatever their shapes."""
    return hashlib.sha256(array.dtype.str.encode() + array.tobytes()).digest()
