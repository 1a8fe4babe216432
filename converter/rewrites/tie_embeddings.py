"""Find embedding tables that a Linear shares as its weight, as in language models: Keras has one layer for both.

embedding(W, i), linear(x, W)         -> the same, and W is known to be tied
embedding(W, i), matmul(x, permute(W)) -> embedding(W, i), linear(x, W), and W is known to be tied
"""

import torch
from torch import fx

from converter.ir.aten import bound_arguments, first_input
from converter.ir.program import Program, module_path, tensor_name
from converter.rewrites.base import Change

aten = torch.ops.aten
TRANSPOSING = {aten.permute.default, aten.transpose.int, aten.t.default, aten.numpy_T.default}


def tie_embeddings(program: Program) -> list[Change]:
    changes = []
    embeddings = program.graph.find_nodes(op="call_function", target=aten.embedding.default)
    weights = [bound_arguments(node).node("weight") for node in embeddings]
    tables = {tensor_name(weight) for weight in weights if program.is_tensor(weight) and program.trainable(weight)}
    for product in program.graph.find_nodes(op="call_function", target=aten.matmul.default):
        x, transposed = bound_arguments(product).node("self"), bound_arguments(product).node("other")
        if x.meta["val"].dim() > 1 and is_transposed(program, transposed, tables):
            with program.graph.inserting_before(product):
                linear = program.insert_call(aten.linear.default, (x, first_input(transposed)), like=product)
            product.replace_all_uses_with(linear)
    for linear in program.graph.find_nodes(op="call_function", target=aten.linear.default):
        x, weight = bound_arguments(linear).node("input"), bound_arguments(linear).node("weight")
        if x.meta["val"].dim() > 1 and program.is_tensor(weight) and weight.target in tables:
            program.tied.add(tensor_name(weight))
            changes.append(Change("Linear tied to an embedding", module_path(linear), f"`{weight.target}`"))
    return changes


def is_transposed(program: Program, node: fx.Node, tables: set[str]) -> bool:
    """Return whether `node` is a table's transpose."""
    if node.target not in TRANSPOSING or not program.is_tensor(first_input(node)):
        return False
    table = first_input(node)
    return table.target in tables and bool(node.meta["val"].shape == table.meta["val"].shape[::-1])
