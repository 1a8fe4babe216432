"""Drop an index that counts through the batch, and apply the other indices within each example.

    x[arange(batch)[:, None], i] -> x[:, i]             i the same for all examples
    x[arange(batch), i]          -> gather(x, 1, i)     i one or several for each example
    x[each of arange(batch) k times, i.view(-1)] -> gather(x, 1, i).flatten(0, 1)     i is k for each example

The batch size is dynamic, so nothing can be read at arange(batch).
"""

import torch
from torch import fx

from converter.ir.aten import bound_arguments, first_input
from converter.ir.program import Program, module_path
from converter.ir.sizes import symbolic_shape
from converter.rewrites.base import Change

aten = torch.ops.aten
INDEXING = {aten.index.Tensor, aten._unsafe_index.Tensor}
# These keep what is at each place, but for the type and dimensions of one.
KEEPING_PLACES = {
    aten.slice.Tensor, aten.unsqueeze.default, aten.reshape.default, aten.view.default, aten.alias.default,
    aten._to_copy.default, aten.to.dtype, aten.clone.default, aten.expand.default,
}  # fmt: skip

SAME_SHAPE = {aten.alias.default, aten._to_copy.default, aten.to.dtype, aten.clone.default}


def drop_batch_index(program: Program) -> list[Change]:
    changes = []
    for node in [n for target in INDEXING for n in program.graph.find_nodes(op="call_function", target=target)]:
        x, indices = bound_arguments(node).node("self"), bound_arguments(node).value("indices")
        others = [i for i in indices[1:] if i is not None and i.meta["val"].dtype != torch.bool]
        first = indices[0]
        if first is None or not others or len(others) < len(indices) - 1:
            continue
        if counts_through(first, x):
            replacement = of_each_example(program, node, x, others, first.meta["val"].dim())
        elif len(others) == 1 and (copies := copies_of_each(first, x)):
            replacement = of_examples_in_a_row(program, node, x, others[0], copies)
        else:
            continue
        if replacement is not None:
            node.replace_all_uses_with(replacement)
            changes.append(Change("index through the batch dropped", module_path(node), routine=True))
    return changes


def counts_through(index: fx.Node, x: fx.Node) -> bool:
    """Return whether `index` is 0, 1, 2, ... along the dynamic batch of `x`; its other dimensions must be 1."""
    (length, *ones), size = symbolic_shape(index.meta["val"]), symbolic_shape(x.meta["val"])[0]
    if isinstance(size, int) or length != size or any(n != 1 for n in ones):
        return False
    while index.target in KEEPING_PLACES:
        index = first_input(index)
        if size not in symbolic_shape(index.meta["val"]):
            return False
    if index.target is aten.arange.default:
        return True
    if index.target is aten.arange.start:
        return bool(bound_arguments(index).value("start") == 0)
    if index.target is aten.arange.start_step:
        return (bound_arguments(index).value("start"), bound_arguments(index).value("step")) == (0, 1)
    return False


def copies_of_each(index: fx.Node, x: fx.Node) -> int | None:
    """Return how often `index` has each of 0, 1, 2, ... in turn, along the dynamic batch of `x`, or None."""
    while index.target in SAME_SHAPE:
        index = first_input(index)
    if index.target is aten.repeat_interleave.self_int and counts_through(first_input(index), x):
        copies = bound_arguments(index).value("repeats")
        return copies if isinstance(copies, int) else None
    if index.target not in (aten.reshape.default, aten.view.default) or index.meta["val"].dim() != 1:
        return None
    table = first_input(index)
    while table.target in SAME_SHAPE:
        table = first_input(table)
    if table.target not in (aten.repeat.default, aten.expand.default) or table.meta["val"].dim() != 2:
        return None
    (rows, copies), size = symbolic_shape(table.meta["val"]), symbolic_shape(x.meta["val"])[0]
    whole = rows == size and isinstance(copies, int) and counts_through(first_input(table), x)
    return copies if whole else None


def of_examples_in_a_row(program: Program, node: fx.Node, x: fx.Node, chosen: fx.Node, copies: int) -> fx.Node | None:
    """Build the replacement of `node`, which reads `copies` elements of each example, or return None."""
    size, width, *rest = symbolic_shape(x.meta["val"])
    if not all(isinstance(n, int) for n in (width, *rest)) or symbolic_shape(chosen.meta["val"]) != (copies * size,):
        return None
    with program.graph.inserting_before(node):
        chosen = program.insert_call(aten.remainder.Scalar, (chosen, width), like=node)
        chosen = program.insert_call(aten.reshape.default, (chosen, [-1, copies, *(1,) * len(rest)]), like=node)
        chosen = program.insert_call(aten.expand.default, (chosen, [-1, -1, *rest]), like=node)
        taken = program.insert_call(aten.gather.default, (x, 1, chosen), like=node)
        return program.insert_call(aten.reshape.default, (taken, [-1, *rest]), like=node)


def of_each_example(program: Program, node: fx.Node, x: fx.Node, others: list[fx.Node], rank: int) -> fx.Node | None:
    """Build the replacement of `node`, or return None; `rank` is that of the index through the batch."""
    shapes = [symbolic_shape(i.meta["val"]) for i in others]
    with program.graph.inserting_before(node):
        if all(len(shape) < rank or (len(shape) == rank and shape[0] == 1) for shape in shapes):
            alike = [
                program.insert_call(aten.squeeze.dim, (i, 0), like=node) if len(shape) == rank else i
                for i, shape in zip(others, shapes, strict=True)
            ]
            return program.insert_call(aten.index.Tensor, (x, [None, *alike]), like=node)
        width, *rest = symbolic_shape(x.meta["val"])[1:]
        own = len(others) == 1 and len(shapes[0]) == rank <= 2 and shapes[0][0] == symbolic_shape(x.meta["val"])[0]
        if not own or not all(isinstance(n, int) for n in (width, *rest)):
            return None
        chosen = program.insert_call(
            aten.remainder.Scalar, (others[0], width), like=node
        )  # negatives count from the end
        for _ in range(1 + len(rest) - (rank - 1)):
            chosen = program.insert_call(aten.unsqueeze.default, (chosen, chosen.meta["val"].dim()), like=node)
        chosen = program.insert_call(aten.expand.default, (chosen, [-1, -1, *rest]), like=node)
        taken = program.insert_call(aten.gather.default, (x, 1, chosen), like=node)
        return taken if rank == 2 else program.insert_call(aten.squeeze.dim, (taken, 1), like=node)
