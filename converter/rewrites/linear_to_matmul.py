"""Write a linear layer on more than two dimensions as in ONNX: a product with the transposed weight.

    linear(x, W, b) -> add(matmul(x, W^T), b), W^T under W's name

The exporter would transpose W itself and lose its name.
"""

import torch
from torch import fx

from converter.ir.program import Origin, Program, module_path
from converter.rewrites.base import Change

aten = torch.ops.aten


def linear_to_matmul(program: Program) -> list[Change]:
    changes = []
    for linear in program.graph.find_nodes(op="call_function", target=aten.linear.default):
        x, weight, bias = (*linear.args, None)[:3]
        if x.meta["val"].dim() < 3 or not program.is_tensor(weight):
            continue
        readers = [user for node in twins(program, weight) for user in node.users]
        if any(user.target is not aten.linear.default for user in readers) or len(readers) > 1:
            continue  # the untransposed weight is read elsewhere too
        origin = program.origins[weight.target]
        transposed = program.values(weight).map(lambda tensor: tensor.t().contiguous())
        program.replace_tensor(weight, transposed, Origin(origin.sources, origin.exact), [linear])
        with program.graph.inserting_before(linear):
            product = program.insert_call(aten.matmul.default, (x, linear.args[1]), like=linear)
            if bias is not None:
                product = program.insert_call(aten.add.Tensor, (product, bias), like=linear)
        linear.replace_all_uses_with(product)
        changes.append(Change("Linear -> MatMul", module_path(linear), routine=True))
    return changes


def twins(program: Program, node: fx.Node) -> list[fx.Node]:
    """Return all nodes that read the same tensor."""
    return [n for n in program.graph.find_nodes(op="get_attr") if n.target == node.target]
