"""Find embedding tables that a Linear shares as its weight, as in language models: Keras has one layer for both.

embedding(W, i), linear(x, W)         -> the same, and W is known to be tied
embedding(W, i), matmul(x, permute(W)) -> embedding(W, i), linear(x, W), and W is known to be tied
"""

import torch
from torch import fx

from converter.ir.program import Program, module_path
from converter.rewrites.base import Change

aten = torch.ops.aten
TRANSPOSING = {aten.permute.default, aten.transpose.int, aten.t.default, aten.numpy_T.default}


def tie_embeddings(program: Program) -> list[Change]:
    changes = []
    tables = {n.args[0].target for n in program.graph.find_nodes(op="call_function", target=aten.embedding.default)
              if program.is_tensor(n.args[0]) and program.trainable(n.args[0])}  # fmt: skip
    for product in program.graph.find_nodes(op="call_function", target=aten.matmul.default):
        x, transposed = product.args
        if x.meta["val"].dim() > 1 and is_transposed(program, transposed, tables):
            with program.graph.inserting_before(product):
                linear = program.insert_call(aten.linear.default, (x, transposed.args[0]), like=product)
            product.replace_all_uses_with(linear)
    for linear in program.graph.find_nodes(op="call_function", target=aten.linear.default):
        x, weight = linear.args[:2]
        if x.meta["val"].dim() > 1 and program.is_tensor(weight) and weight.target in tables:
            program.tied.add(weight.target)
            changes.append(Change("Linear tied to an embedding", module_path(linear), f"`{weight.target}`"))
    return changes


def is_transposed(program: Program, node: object, tables: set[str]) -> bool:
    """Return whether `node` is a table's transpose."""
    if not isinstance(node, fx.Node) or node.target not in TRANSPOSING or not program.is_tensor(node.args[0]):
        return False
    table = node.args[0]
    return table.target in tables and node.meta["val"].shape == table.meta["val"].shape[::-1]
