"""Drop operators that return their input.

    relu(clone(x)) -> relu(x)

These are clones, aliases, detaches, casts to the same type and slices of everything.
"""

import torch

from converter.ir.aten import first_input
from converter.ir.program import Program, module_path
from converter.ir.sizes import symbolic_shape
from converter.rewrites.base import Change

aten = torch.ops.aten
COPIES = {
    aten.clone.default,
    aten.alias.default,
    aten.detach.default,
    aten.contiguous.default,
    aten.lift_fresh_copy.default,
}
SAME_IF_UNCHANGED = {aten._to_copy.default, aten.to.dtype, aten.type_as.default, aten.slice.Tensor, aten.expand.default}


def drop_identities(program: Program) -> list[Change]:
    changes = []
    for node in list(program.graph.nodes):
        if node.target not in COPIES | SAME_IF_UNCHANGED:
            continue
        source = first_input(node)
        before, after = source.meta["val"], node.meta["val"]
        if node.target in SAME_IF_UNCHANGED and (before.dtype, symbolic_shape(before)) != (
            after.dtype,
            symbolic_shape(after),
        ):
            continue
        node.replace_all_uses_with(source)
        changes.append(Change("identity dropped", module_path(node), str(node.target), routine=True))
    return changes
