"""Write a linear layer on more than two dimensions as in ONNX: a product with the transposed weight.

    linear(x, W, b) -> add(matmul(x, W^T), b), W^T under W's name

The exporter would transpose W itself and lose its name.
"""

import torch
from torch import fx

from converter.ir.aten import bound_arguments
from converter.ir.program import Program, module_path
from converter.rewrites.base import Change

aten = torch.ops.aten


def linear_to_matmul(program: Program) -> list[Change]:
    changes = []
    for linear in program.graph.find_nodes(op="call_function", target=aten.linear.default):
        arguments = bound_arguments(linear)
        x, weight, bias = arguments.node("input"), arguments.node("weight"), arguments.optional_node("bias")
        if x.meta["val"].dim() < 3 or not program.is_tensor(weight):
            continue
        readers = [user for node in twins(program, weight) for user in node.users]
        if any(user.target is not aten.linear.default for user in readers) or len(readers) > 1:
            continue  # the untransposed weight is read elsewhere too
        transposed = program.values(weight).map(lambda tensor: tensor.t().contiguous())
        program.replace_tensor(weight, transposed, program.origin(weight), [linear])
        with program.graph.inserting_before(linear):
            product = program.insert_call(aten.matmul.default, (x, bound_arguments(linear).node("weight")), like=linear)
            if bias is not None:
                product = program.insert_call(aten.add.Tensor, (product, bias), like=linear)
        linear.replace_all_uses_with(product)
        changes.append(Change("Linear -> MatMul", module_path(linear), routine=True))
    return changes


def twins(program: Program, node: fx.Node) -> list[fx.Node]:
    """Return all nodes that read the same tensor."""
    return [n for n in program.graph.find_nodes(op="get_attr") if n.target == node.target]
