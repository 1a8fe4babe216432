"""A digest of how the nodes of a TensorFlow function are wired, independent of the names of nodes and functions.

Every value is given the digest of what computes it: the operator, its attributes, and the digests of its inputs in
their order. Calls are seen through; loops and branches have the digests of their functions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

_CALLS = ("PartitionedCall", "StatefulPartitionedCall")
_PASSING = ("Identity", "IdentityN", "StopGradient")
_MOST_NODES = 5_000_000  # of a call's function as often as it is called

Attributes = Callable[[Any], bytes]  # of a node, without functions and names


def output_digests(function: Any, names: Mapping[int, str], attributes: Attributes) -> list[bytes]:
    """Return the digest of each output of a `ConcreteFunction`, in order.

    Args:
        names: of the variables, by the `id` of their handle.
    """
    graph = function.graph
    captured = function.captured_inputs
    given = graph.inputs[: len(graph.inputs) - len(captured)]
    ranks = {name: str(rank) for rank, name in enumerate(sorted(tensor.op.name for tensor in given))}
    arguments = {tensor.op.name: _digest("input", ranks[tensor.op.name]) for tensor in given}
    for tensor, handle in zip(graph.inputs[len(given) :], captured, strict=True):
        arguments[tensor.op.name] = _digest("variable", names.get(id(handle), "constant"))
    definition = graph.as_graph_def()
    wiring = _Wiring({f.signature.name: f for f in definition.library.function}, attributes)
    return wiring.values(definition.node, arguments, [tensor.name for tensor in graph.outputs])


class _Wiring:
    def __init__(self, functions: Mapping[str, Any], attributes: Attributes):
        self._functions, self._attributes = functions, attributes
        self._bodies: dict[str, bytes] = {}
        self._seen = 0

    def values(self, nodes: Iterable[Any], known: Mapping[str, bytes], results: Sequence[str]) -> list[bytes]:
        """Return the digests of `results` in a graph, whose arguments `known` gives by name."""
        by_name = {node.name: node for node in nodes}
        found: dict[str, list[bytes]] = {name: [digest] for name, digest in known.items()}
        pending = [_node(result) for result in results]
        begun: set[str] = set()
        while pending:
            name = pending[-1]
            if name in found:
                pending.pop()
                continue
            node = by_name[name]
            inputs = [reference for reference in node.input if not reference.startswith("^")]
            missing = [_node(reference) for reference in inputs if _node(reference) not in found]
            if missing and name not in begun:
                begun.add(name)
                pending += missing
                continue
            pending.pop()
            self._seen += 1
            if self._seen > _MOST_NODES:
                raise ValueError("its functions call each other without measure")
            if missing:  # a loop of the first TensorFlow: its back edge
                found[name] = [_digest("loop", node.op)] * 64
                continue
            found[name] = self._outputs(node, [self._at(found, by_name, reference) for reference in inputs])
        return [self._at(found, by_name, result) for result in results]

    def _at(self, found: Mapping[str, list[bytes]], nodes: Mapping[str, Any], reference: str) -> bytes:
        name, *place = reference.split(":")
        values = found[name]
        if len(place) == 2:  # in a function: the name of an output and the position in it
            position = _offset(nodes[name], place[0], self._functions) + int(place[1])
        else:
            position = int(place[0]) if place else 0
        return values[position]

    def _outputs(self, node: Any, inputs: list[bytes]) -> list[bytes]:
        called = node.op if node.op in self._functions else node.attr["f"].func.name if node.op in _CALLS else ""
        if called in self._functions:
            function = self._functions[called]
            arguments = [argument.name for argument in function.signature.input_arg]
            results = [function.ret[result.name] for result in function.signature.output_arg]
            return self.values(function.node_def, dict(zip(arguments, inputs, strict=True)), results)
        if node.op in _PASSING:
            return inputs
        parts = [node.op.encode(), self._attributes(node), *inputs]
        for key, value in sorted(node.attr.items()):
            for called in [value.func, *value.list.func]:
                if called.name in self._functions:
                    parts += [key.encode(), self._body(called.name)]
        whole = _digest(*parts)
        return [_digest(whole, str(position)) for position in range(_count(node))]

    def _body(self, name: str) -> bytes:
        if name not in self._bodies:
            self._bodies[name] = b""  # a function that calls itself
            function = self._functions[name]
            arguments = {arg.name: _digest("argument", str(i)) for i, arg in enumerate(function.signature.input_arg)}
            results = [function.ret[result.name] for result in function.signature.output_arg]
            self._bodies[name] = _digest(*self.values(function.node_def, arguments, results))
        return self._bodies[name]


def _sizes(node: Any) -> dict[str, int]:
    """Return how many tensors each output of an operator has, by its name."""
    from tensorflow.python.framework import op_def_registry

    definition = op_def_registry.get(node.op)
    sizes = {}
    for output in definition.output_arg if definition is not None else ():
        if output.number_attr:
            sizes[output.name] = int(node.attr[output.number_attr].i)
        else:
            sizes[output.name] = len(node.attr[output.type_list_attr].list.type) if output.type_list_attr else 1
    return sizes


def _count(node: Any) -> int:
    return sum(_sizes(node).values())


def _offset(node: Any, output: str, functions: Mapping[str, Any]) -> int:
    if node.op in functions:
        return [result.name for result in functions[node.op].signature.output_arg].index(output)
    offset = 0
    for name, size in _sizes(node).items():
        if name == output:
            return offset
        offset += size
    raise ValueError(f"{node.op} has no output {output!r}")


def _node(reference: str) -> str:
    return reference.partition(":")[0]


def _digest(*parts: bytes | str) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return digest.digest()
