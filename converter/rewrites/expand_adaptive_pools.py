"""Write adaptive pools as operators that ONNX has: pools of one window size, means and maxima of slices.

adaptive_avg_pool2d(x, (3, 4)) of 6 x 8       -> avg_pool2d(x, (2, 2), (2, 2))
adaptive_max_pool2d(x, (3, 4)) of 7 x 8, rows -> cat(amax(x[:, :, 0:3]), amax(x[:, :, 2:5]), amax(x[:, :, 4:7]))
"""

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from converter.ir.aten import first_input, read_item
from converter.ir.program import Program, module_path
from converter.ir.sizes import symbolic_shape
from converter.rewrites.base import Change

aten = torch.ops.aten
AVERAGE: dict[object, tuple[int, OpOverload]] = {
    aten.adaptive_avg_pool1d.default: (1, aten.avg_pool1d.default),
    aten.adaptive_avg_pool2d.default: (2, aten.avg_pool2d.default),
    aten._adaptive_avg_pool2d.default: (2, aten.avg_pool2d.default),
    aten.adaptive_avg_pool3d.default: (3, aten.avg_pool3d.default),
    aten._adaptive_avg_pool3d.default: (3, aten.avg_pool3d.default),
}
MAXIMUM: dict[object, tuple[int, OpOverload]] = {
    aten.adaptive_max_pool1d.default: (1, aten.max_pool1d.default),
    aten.adaptive_max_pool2d.default: (2, aten.max_pool2d.default),
    aten.adaptive_max_pool3d.default: (3, aten.max_pool3d.default),
}


def expand_adaptive_pools(program: Program) -> list[Change]:
    changes = []
    for node in list(program.graph.nodes):
        if node.target in AVERAGE:
            pooled = written_out(program, node, node.meta["val"], *AVERAGE[node.target], aten.mean.dim)
            readers = [node]
        elif node.target in MAXIMUM:
            readers = [user for user in node.users if read_item(user) == (node, 0)]
            if len(readers) < len([user for user in node.users if user.users]):
                continue  # the positions are read
            pooled = written_out(program, node, node.meta["val"][0], *MAXIMUM[node.target], aten.amax.default)
        else:
            continue
        if pooled is None:
            continue
        for reader in readers:
            reader.replace_all_uses_with(pooled)
        changes.append(Change("adaptive pool written out", module_path(node), routine=True))
    return changes


def written_out(
    program: Program, node: fx.Node, result: Tensor, rank: int, pool: OpOverload, reduce: OpOverload
) -> fx.Node | None:
    """Build the pool from operators that ONNX has, or return None if an output size is dynamic."""
    x = first_input(node)
    have, want = symbolic_shape(x.meta["val"])[-rank:], symbolic_shape(result)[-rank:]
    if any(not isinstance(m, int) and n != m for n, m in zip(have, want, strict=True)):
        return None
    known = all(isinstance(n, int) for n in have)
    first = x.meta["val"].dim() - rank
    with program.graph.inserting_before(node):
        if all(n == 1 for n in want):
            return program.insert_call(reduce, (x, list(range(first, first + rank)), True), node)
        if known and all(n % m == 0 for n, m in zip(have, want, strict=True)):
            window = [n // m for n, m in zip(have, want, strict=True)]
            return program.insert_call(pool, (x, window, window), node)
        for dim, (size, out) in enumerate(zip(have, want, strict=True), start=first):
            if size != out:
                parts = []
                for begin, end in windows(program, node, x, dim, out):
                    part = program.insert_call(aten.slice.Tensor, (x, dim, begin, end), node)
                    parts.append(program.insert_call(reduce, (part, [dim], True), node))
                x = program.insert_call(aten.cat.default, (parts, dim), node)
    return x


def windows(program: Program, node: fx.Node, x: fx.Node, dim: int, out: int) -> Iterator[tuple[Any, Any]]:
    """Yield the begin and end of each of `out` windows along `dim`: floor(i size / out), ceil((i + 1) size / out).

    If the size is dynamic, the graph computes them.
    """
    size = symbolic_shape(x.meta["val"])[dim]
    if isinstance(size, int):
        yield from ((i * size // out, -(-(i + 1) * size // out)) for i in range(out))
        return
    held = program.insert_call(aten.sym_size.int, (x, dim), node)

    def share(i: int, more: int) -> fx.Node:
        whole = program.insert_call(operator.add, (program.insert_call(operator.mul, (held, i), node), more), node)
        return program.insert_call(operator.floordiv, (whole, out), node)

    for i in range(out):
        yield share(i, 0), share(i + 1, out - 1)
