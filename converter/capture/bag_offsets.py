"""Inputs that hold where bags of embeddings begin: which numbers they may hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import sympy
import torch
from torch import fx

from converter.capture.sequence_lengths import NamedSizes, keeps_values, named_sizes, symbol_values
from converter.ir.aten import bound_arguments, first_input
from converter.ir.program import Program

aten = torch.ops.aten
BAGS = (aten.embedding_bag.default, aten.embedding_bag.padding_idx)


@dataclass(frozen=True)
class BagOffsets:
    """What an input of `EmbeddingBag`'s offsets may hold: it ascends from 0 to at most the number of indices.

    Attributes:
        indices: the number of indices.
        size: that of the input.
        named: the program's named sizes.
        ends: the last offset is the number of indices (`include_last_offset`).
    """

    indices: int | sympy.Expr
    size: int | sympy.Expr
    named: NamedSizes
    ends: bool

    def draw(self, shape: Sequence[int], dtype: str, sizes: Mapping[str, int], rng: np.random.Generator) -> np.ndarray:
        """Draw offsets; some bags are empty by chance."""
        known = symbol_values(self.named, sizes)
        if isinstance(self.size, sympy.Symbol):  # the batch has no name
            known[self.size] = sympy.Integer(shape[0])
        count = int(sympy.sympify(self.indices).subs(known))
        offsets = np.sort(rng.integers(0, count + 1, tuple(shape)))
        offsets[:1] = 0
        if self.ends:
            offsets[-1:] = count
        return offsets.astype(dtype)


def offsets_of_bags(program: Program, node: fx.Node) -> BagOffsets | None:
    """Return what an input may hold if it is the offsets of bags, or None."""
    for target in BAGS:
        for bag in program.graph.find_nodes(op="call_function", target=target):
            arguments = bound_arguments(bag)
            offsets = arguments.node("offsets")
            while keeps_values(offsets):
                offsets = first_input(offsets)
            if offsets is node:
                sizes = (arguments.node("indices").meta["val"].shape[0], node.meta["val"].shape[0])
                indices, size = (n if isinstance(n, int) else n.node.expr for n in sizes)
                return BagOffsets(indices, size, named_sizes(program), arguments.flag("include_last_offset"))
    return None
