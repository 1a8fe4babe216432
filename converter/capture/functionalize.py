"""Make an exported graph functional without tracing it again.

`run_decompositions` traces the whole program twice more to do so. Most models mutate only the fresh result of the
previous operator (`relu_` after a convolution); there the functional operator replaces it. Anything less simple is left
to PyTorch.
"""

from __future__ import annotations

import operator

import torch
from torch import fx
from torch._ops import OpOverload

from converter.ir.aten import ASSERTIONS, first_input, is_mutating, is_view, parameters

aten = torch.ops.aten

# Composite operators to keep whole, as `run_decompositions({})` does.
WHOLE = {
    aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default,
    aten.batch_norm.default, aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.conv1d.padding,
    aten.conv2d.padding, aten.conv3d.padding, aten.conv_transpose1d.default, aten.conv_transpose2d.input,
    aten.conv_transpose3d.input, aten.flatten.using_ints, aten.gelu.default, aten.group_norm.default,
    aten.layer_norm.default, aten.linear.default, aten.matmul.default, aten.max_pool1d.default,
    aten.max_pool2d.default, aten.max_pool3d.default, aten.reshape.default, aten.unflatten.int,
    aten.scaled_dot_product_attention.default, aten.softmax.int, aten.upsample_nearest2d.vec, aten.prelu.default,
    aten.sym_size.int, aten.chunk.default, aten.contiguous.default, aten.relu6.default, aten.silu.default,
    aten.pixel_shuffle.default, aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input,
    aten.einsum.default,
}  # fmt: skip


def make_functional(graph_module: fx.GraphModule) -> bool:
    """Replace in-place operators by functional ones, if all are plain; return False, with nothing changed, if not."""
    calls = [n for n in graph_module.graph.nodes if n.op == "call_function" and n.target not in ASSERTIONS]
    if not all(n.op in ("placeholder", "get_attr", "call_function", "output") for n in graph_module.graph.nodes):
        return False
    mutating = [n for n in calls if is_mutating(n)]
    if not all(is_plain(n) for n in calls if n not in set(mutating)):
        return False
    if not all(can_be_functional(n) for n in mutating):
        return False
    names: dict[fx.Node, list[fx.Node]] = {}  # nodes for each mutated tensor, so far
    for node, root in [(node, fresh(node)) for node in mutating]:
        for name in names.setdefault(root, [root]):
            name.replace_all_uses_with(node, delete_user_cb=node.__lt__)
        names[root].append(node)
    for node in mutating:
        assert isinstance(node.target, OpOverload)
        target = functional(node.target)
        assert target is not None  # `can_be_functional`
        node.target = target
    graph_module.recompile()
    return True


def is_plain(node: fx.Node) -> bool:
    """Return whether run_decompositions would leave this operator as it is."""
    target = node.target
    if not isinstance(target, OpOverload):
        return target is operator.getitem or getattr(target, "__module__", "") in ("_operator", "math", "torch")
    return is_kept(target)


def is_kept(target: OpOverload) -> bool:
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(target.name(), "CompositeImplicitAutograd")
    return not composite or target in WHOLE


def functional(target: OpOverload) -> OpOverload | None:
    """Return the functional operator of an in-place one, `relu` for `relu_`, in the same overload."""
    name = target._schema.name.removeprefix("aten::")
    packet = getattr(aten, name.removesuffix("_"), None) if name.endswith("_") else None
    return getattr(packet, target._overloadname, None)


def can_be_functional(node: fx.Node) -> bool:
    """Return whether it mutates another operator's fresh result, which has no views, and keeps its type."""
    assert isinstance(node.target, OpOverload)
    written = [i for i, parameter in enumerate(parameters(node.target)) if parameter.written]
    target = functional(node.target)
    if written != [0] or target is None or not is_kept(target):
        return False
    root = fresh(node)
    if root.op != "call_function" or not isinstance(root.target, OpOverload) or is_view(root):
        return False
    if any(is_view(user) for name in all_names(root) for user in name.users):
        return False
    value = root.meta["val"]
    same = [n.meta["val"].dtype == value.dtype for n in node.all_input_nodes if isinstance(n.meta["val"], torch.Tensor)]
    return value.is_floating_point() and all(same)


def fresh(node: fx.Node) -> fx.Node:
    """Return the operator that made the tensor which `node` mutates."""
    while is_mutating(node):
        node = first_input(node)
    return node


def all_names(root: fx.Node) -> list[fx.Node]:
    """Return the nodes that stand for the same tensor: its origin and its mutations."""
    names = [root]
    for name in names:
        names += [user for user in name.users if is_mutating(user) and user.args[0] is name and user not in names]
    return names
