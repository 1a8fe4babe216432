"""Choose the layout of a model's inputs and outputs."""

from __future__ import annotations

import torch
from torch import fx

from converter.plan.builder import PlanBuilder
from converter.plan.registry import Registry

aten = torch.ops.aten


PASSED_THROUGH = 64  # operators between a graph input and the one that determines its layout


def _feeds_channels_last(registry: Registry, node: fx.Node) -> bool:
    """Return whether the nearest operator that depends on the layout asks for channels last."""
    seen, ring = {node}, [node]
    for _ in range(PASSED_THROUGH):
        users = [user for n in ring for user in n.users if user not in seen]
        if any(registry[user.target].channels_last for user in users):
            return True
        ring = [u for u in users if u.op == "call_function" and _keeps_dimensions(u)]
        seen.update(ring)
        if not ring:
            return False
    return False


def _follows_channels_last(plan: PlanBuilder, node: fx.Node) -> bool:
    """Return whether it comes, over operators that keep dimensions, from a channels-last operator or input."""
    held = {
        step.node
        for step, i in zip(plan.input_steps, plan.inputs, strict=True)
        if i.order != tuple(range(len(i.order)))
    }
    seen, ring = {node}, [node]
    for _ in range(PASSED_THROUGH):
        if any(plan.registry[n.target].channels_last or n in held for n in ring):
            return True
        ring = [
            m
            for n in ring
            if n.op == "call_function" and _keeps_dimensions(n)
            for m in n.all_input_nodes
            if m not in seen and (m.op == "call_function" or m in held)
        ]
        seen.update(ring)
        if not ring:
            return False
    return False


MIXING = {
    aten.view.default, aten.reshape.default, aten.permute.default, aten.transpose.int, aten.flatten.using_ints,
    aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.linear.default, aten.matmul.default,
}  # fmt: skip


def _keeps_dimensions(node: fx.Node) -> bool:
    return node.target not in MIXING
