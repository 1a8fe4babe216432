"""Search the free choices of a plan for those that save movement: try each on the whole graph, keep cheaper plans.

Three things are free. A graph input whose layout no nearby operator determines may be held channels last. A convolution
or a Linear may emit its channels in any order, which its consumers may prefer (heads, a pixel shuffle). And a value
whose dimensions were permuted may be moved at once, which pays if several consumers would each move what they derived
from it. The same applies to any value before several movements. Finally everything is tried in PyTorch's own order, so
no plan moves more than that.
Similar places are decided alike, so a deep network needs no more trials than a shallow one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, permutations
from typing import TypeAlias

import torch
from torch import fx

from converter.errors import UnsupportedOperatorsError
from converter.ir.aten import bound_arguments
from converter.ir.sizes import product, symbolic_shape
from converter.plan.builder import Choices, Cost, PlanBuilder
from converter.plan.layout import Layout, NeedsMerge
from converter.plan.registry import Registry

aten = torch.ops.aten
TRIALS = 40
MOST_FACTORS = 3
REACH = 60  # operators between a movement and the choice that caused it
PERMUTING = {aten.permute.default, aten.transpose.int, aten.t.default}


class TooCostly(Exception):
    """Raised as soon as a plan costs as much as another."""


Again: TypeAlias = Callable[[Choices, Cost], PlanBuilder]


def search_layouts(plan: PlanBuilder, again: Again) -> PlanBuilder:
    """Return the cheapest plan found; `again` makes one with other choices that costs less, or raises TooCostly."""
    tried = [plan.choices]
    for candidate in islice(candidates(plan), TRIALS):
        if not plan.movements:
            break
        made = plan.choices
        choices = Choices(
            made.eager_moves | candidate.eager_moves,
            made.channels_last_inputs | candidate.channels_last_inputs,
            {**made.channel_orders, **candidate.channel_orders},
        )
        if choices not in tried:
            tried.append(choices)
            plan = _cheaper(plan, again, choices)
    if plan.movements:
        plan = _cheaper(plan, again, Choices(eager_moves=frozenset(plan.program.graph.nodes)))
    return plan


def _cheaper(plan: PlanBuilder, again: Again, choices: Choices) -> PlanBuilder:
    try:
        return again(choices, plan.cost)
    except (TooCostly, UnsupportedOperatorsError):  # unsupported: a view of several dynamic sizes
        return plan


def candidates(plan: PlanBuilder) -> Iterator[Choices]:
    """Yield choices that may save some of the movements, similar places together."""
    behind = [ancestors(plan.registry, m.asked_by) for m in plan.movements if m.asked_by is not None]
    reached = dict.fromkeys(node for nodes in behind for node in nodes)
    if plan.layout == "auto":
        for node in plan.program.placeholders:
            if node in reached and 3 <= node.meta["val"].dim() <= 5 and leads_to_channels_last(plan.registry, node):
                yield Choices(channels_last_inputs=frozenset({node}))
    for places in group_equivalent(n for n in reached if n.target in PERMUTING):
        yield Choices(eager_moves=frozenset(places))
    yield Choices(eager_moves=frozenset(n for n in reached if n.target in PERMUTING))
    shared = Counter(node for nodes in behind for node in nodes)
    for places in group_equivalent(n for n, count in shared.items() if count > 1 and n.target not in PERMUTING):
        yield Choices(eager_moves=frozenset(places))
    producers: dict[int, dict[fx.Node, tuple[int, ...]]] = {}
    for node in reached:
        factors = factors_asked(plan.registry, node)
        if factors is not None:
            producers.setdefault(len(factors), {})[node] = factors
    for count, found in producers.items():
        groups = group_equivalent(found)
        for places in [*groups, list(found)] if len(groups) > 1 else groups:
            for order in list(permutations(range(count)))[1:]:
                yield Choices(channel_orders={node: (found[node], order) for node in places})


def group_equivalent(nodes: Iterable[fx.Node]) -> list[list[fx.Node]]:
    """Group nodes by their operator and the operators of their users."""
    groups: dict[tuple, list[fx.Node]] = {}
    for node in nodes:
        plain = tuple(a for a in node.args[1:] if not isinstance(a, fx.Node) and node.target in PERMUTING)
        key = (node.target, repr(plain), tuple(sorted(str(u.target) for u in node.users)))
        groups.setdefault(key, []).append(node)
    return list(groups.values())


def ancestors(registry: Registry, node: fx.Node) -> list[fx.Node]:
    """Return the ancestors of the operator, back to the operators that produce channels."""
    seen: dict[fx.Node, None] = {}
    ring = [node]
    while ring and len(seen) < REACH:
        ring = [
            n
            for user in ring
            if user is node or not emits_channels(registry, user)
            for n in user.all_input_nodes
            if n.op in ("call_function", "placeholder") and n not in seen
        ]
        seen.update(dict.fromkeys(ring))
    return list(seen)


def leads_to_channels_last(registry: Registry, node: fx.Node) -> bool:
    """Return whether an operator that asks for channels last comes later."""
    seen, ring = {node}, [node]
    while ring and len(seen) < REACH:
        ring = [user for n in ring for user in n.users if user not in seen and user.op == "call_function"]
        if any(registry[user.target].channels_last for user in ring):
            return True
        seen.update(ring)
    return False


def emits_channels(registry: Registry, node: fx.Node) -> bool:
    """Return whether the operator makes channels of its own; a depthwise convolution keeps those that it reads."""
    if registry[node.target].produces is None:
        return False
    arguments = bound_arguments(node).values
    weight = arguments.get("weight")
    if "groups" not in arguments or not isinstance(weight, fx.Node):
        return True
    return list(weight.meta["val"].shape[:2]) != [arguments["groups"], 1]


def factors_asked(registry: Registry, producer: fx.Node) -> tuple[int, ...] | None:
    """Return the sizes into which later views split the channels that an operator produces, or None."""
    produced = registry[producer.target].produces
    if produced is None or not emits_channels(registry, producer):
        return None
    value = producer.meta["val"]
    dim = produced % value.dim()
    channels = symbolic_shape(value)[dim]
    ring, seen = [producer], {producer}
    while ring and len(seen) < REACH:
        ring = [u for n in ring for u in n.users if u not in seen and u.op == "call_function"]
        seen.update(ring)
        for user in list(ring):
            after, record = user.meta.get("val"), registry[user.target]
            if emits_channels(registry, user) or not isinstance(after, torch.Tensor):
                ring.remove(user)
                continue
            held = user.all_input_nodes[0].meta.get("val")
            if not isinstance(held, torch.Tensor) or held.dim() != value.dim():
                continue
            before, now = symbolic_shape(held), symbolic_shape(after)
            if before[dim] != channels:
                continue
            if record.factors:
                factors = record.factors(int(channels), *user.args[1:])
                return factors if min(factors) > 1 else None
            if now != before and product(now) == product(before):
                try:
                    layout = Layout.of(before).reshape(now)
                except (NeedsMerge, ValueError):
                    ring.remove(user)
                    continue
                factors = tuple(int(layout.size[a]) for a in layout.axes[dim])
                if 2 <= len(factors) <= MOST_FACTORS:
                    return factors
                ring.remove(user)
    return None
