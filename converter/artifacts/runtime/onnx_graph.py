"""Walk an ONNX model: the main graph, the branches and loops in it, and the local functions, each once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any


def nested_graphs(*roots: Any) -> Iterator[Any]:
    """Yield these graphs and functions, and each graph that an attribute of their operators holds."""
    pending = deque(roots)
    while pending:
        graph = pending.popleft()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                pending.extend([attribute.g] if attribute.HasField("g") else [])
                pending.extend(attribute.graphs)


def all_graphs(model: Any) -> Iterator[Any]:
    """Yield every graph and local function of a model."""
    return nested_graphs(model.graph, *model.functions)


def initializers(graph: Any) -> Any:
    """Return the initializers of a graph; a function has none."""
    return getattr(graph, "initializer", ())
