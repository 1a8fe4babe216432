"""Drop operators that return their input.

    relu(clone(x)) -> relu(x)
    pixel_shuffle(pixel_unshuffle(x, b), b) -> x
    einsum("bchw->bhwc", x) -> permute(x)

These are clones, aliases, detaches, casts to the same type, slices of everything and pairs that undo each other. An
einsum of one tensor that only permutes is written so, for the rewrites behind.
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
INVERSE: dict[object, object] = {
    aten.pixel_shuffle.default: aten.pixel_unshuffle.default,
    aten.pixel_unshuffle.default: aten.pixel_shuffle.default,
}


def drop_identities(program: Program) -> list[Change]:
    changes = []
    for node in list(program.graph.nodes):
        if node.target is aten.einsum.default and (order := permutation(*node.args[:2])) is not None:
            with program.graph.inserting_before(node):
                permuted = program.insert_call(aten.permute.default, (node.all_input_nodes[0], order), like=node)
            node.replace_all_uses_with(permuted)
            changes.append(Change("einsum -> permute", module_path(node), str(node.args[0]), routine=True))
            continue
        undone = INVERSE.get(node.target)
        if undone is not None and (before := first_input(node)).target is undone and before.args[1:] == node.args[1:]:
            node.replace_all_uses_with(first_input(before))
            changes.append(Change("identity dropped", module_path(node), str(node.target), routine=True))
            continue
        if node.target not in COPIES | SAME_IF_UNCHANGED:
            continue
        source = first_input(node)
        held, after = source.meta["val"], node.meta["val"]
        if node.target in SAME_IF_UNCHANGED and (held.dtype, symbolic_shape(held)) != (
            after.dtype,
            symbolic_shape(after),
        ):
            continue
        node.replace_all_uses_with(source)
        changes.append(Change("identity dropped", module_path(node), str(node.target), routine=True))
    return changes


def permutation(equation: object, tensors: object) -> list[int] | None:
    """Return the order of dimensions if an einsum only permutes one tensor, else None."""
    before, arrow, after = str(equation).replace(" ", "").partition("->")
    if not isinstance(tensors, list | tuple) or len(tensors) != 1 or not arrow or not before.isalpha():
        return None
    if len(set(before)) < len(before) or sorted(before) != sorted(after):
        return None
    return [before.index(label) for label in after]
