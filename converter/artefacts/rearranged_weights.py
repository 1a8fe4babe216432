"""What PyTorch's exporter only rearranges and renames: matrices transposed, slopes given more dimensions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import permutations

import numpy as np

from converter.program import Program
from converter.verification.weights import Expected

MOST_DIMENSIONS = 5


def rearranged_weights(program: Program, tensors: Mapping[str, np.ndarray], known: set[str]) -> dict[str, Expected]:
    """Those of `tensors` that are a tensor of the program, bit for bit, its dimensions in another order.

    Args:
        known: the program's tensors that are accounted for; of those that several operators read, as of a table that is
            a classifier too, the exporter may write another copy.
    """
    found: dict[str, Expected] = {}
    nodes = program.graph.find_nodes(op="get_attr")
    readers = Counter(node.target for node in nodes for _ in node.users)
    for node in sorted(nodes, key=lambda node: node.target in known):
        if not node.users or (node.target in known and readers[node.target] < 2):
            continue
        array, origin = program.tensor(node).detach().numpy(), program.origins[node.target]
        for name, tensor in tensors.items():
            if (
                name not in found
                and tensor.size == array.size
                and (array.size == 1 or (tensor != tensor.flat[0]).any())
            ):
                held = next(
                    (a for a in orders(array, tensor.shape) if np.array_equal(a.astype(tensor.dtype), tensor)), None
                )
                if held is not None:
                    found[name] = Expected(held, origin.sources, origin.exact)
                    break
    return found


def orders(array: np.ndarray, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """`array` in every order of its dimensions that gives `shape`, dimensions of one element and merged ones aside."""
    if array.ndim <= MOST_DIMENSIONS:
        for order in permutations(range(array.ndim)):
            yield array.transpose(order).reshape(shape)
