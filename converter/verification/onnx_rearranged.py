"""Recognize tensors that PyTorch's exporter only rearranged and renamed: transposed matrices, reshaped slopes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import permutations

import numpy as np
import torch

from converter.ir.program import Program
from converter.verification.array_arrangement import comparable, digest
from converter.verification.weight_proof import Expected

MOST_DIMENSIONS = 5


def rearranged_weights(program: Program, tensors: Mapping[str, np.ndarray], known: set[str]) -> dict[str, Expected]:
    """Return those of `tensors` that are a tensor of the program, bit for bit, with its dimensions in another order.

    Args:
        known: the program's tensors that are accounted for; if several operators read one, such as an embedding table
            that is also the classifier, the exporter may write another copy.
    """
    found: dict[str, Expected] = {}
    alike: dict[tuple[int, int], list[str]] = {}
    for name, tensor in tensors.items():
        if tensor.size == 1 or (tensor.size and (tensor != tensor.flat[0]).any()):
            alike.setdefault(digest(comparable(tensor)), []).append(name)
    sizes = {size for size, _ in alike}
    nodes = program.graph.find_nodes(op="get_attr")
    readers = Counter(node.target for node in nodes for _ in node.users)
    for node in sorted(nodes, key=lambda node: node.target in known):
        if not node.users or (node.target in known and readers[node.target] < 2):
            continue
        array, origin = program.tensor(node).detach().numpy(), program.origins[node.target]
        for name in alike.get(digest(comparable(array)), ()) if array.size in sizes else ():
            if name in found:
                continue
            tensor = tensors[name]
            order = next((o for o in orders(array.ndim) if _is(array.transpose(o), tensor)), None)
            if order is not None:
                arranged = partial(_arranged, order=order, shape=tensor.shape)
                found[name] = Expected(program.values(node).map(arranged), origin.sources, origin.exact)
                break
    return found


def orders(rank: int) -> Iterator[tuple[int, ...]]:
    """Return every order of `rank` dimensions, or nothing above `MOST_DIMENSIONS`."""
    return permutations(range(rank)) if rank <= MOST_DIMENSIONS else iter(())


def _is(array: np.ndarray, tensor: np.ndarray) -> bool:
    """Tell whether both are the same bit for bit, apart from dimensions of size 1 and merged ones."""
    same_kind = array.dtype.kind == tensor.dtype.kind
    return same_kind and np.array_equal(array.reshape(tensor.shape).astype(tensor.dtype), tensor)


def _arranged(values: torch.Tensor, order: tuple[int, ...], shape: tuple[int, ...]) -> torch.Tensor:
    return values.permute(order).reshape(shape)
