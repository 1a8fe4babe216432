"""Make a plan: run the mappings over a program and choose the layouts of inputs and outputs."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch.utils._pytree import tree_map_only

from converter.errors import ConversionError, Note, UnsupportedOperatorsError, wrap_unexpected
from converter.ir.aten import has_tag
from converter.ir.program import Program, module_path, operator_rows, tensor_name
from converter.ir.sizes import size_of, symbolic_shape
from converter.lowering.decompose import decompose
from converter.lowering.io_layout import _feeds_channels_last, _follows_channels_last
from converter.lowering.layout_search import TooCostly, search_layouts
from converter.lowering.user_lowerings import call_lowering, with_built_in
from converter.plan.builder import Choices, Cost, PlanBuilder
from converter.plan.interface import TensorInterface
from converter.plan.layout import Layout
from converter.plan.registry import Registry
from converter.plan.steps import Constant, InputStep, Step, Unsupported, Value
from converter.rewrites.fold_constants import NUMBERS, fold_constants


def make_plan(
    program: Program,
    layout: str = "auto",
    known: Mapping[str, Any] | None = None,
    added: Registry | None = None,
    stock: bool = True,
) -> PlanBuilder:
    """Map every operator of `program` so that little data moves.

    Args:
        layout: "auto" (inputs and outputs channels last if an operator near them asks for it), "nhwc" (all of rank
            3 to 5), "nchw" (PyTorch's own).
        known: the choices of a plan of the same program, `Choices.by_name`, which replace the search.
        added: mappings besides the built-in ones (`load_mappings`).
        stock: for a Keras file (`PlanBuilder.stock`).

    Raises:
        UnsupportedOperatorsError: all operators without a mapping.
    """
    registry = with_built_in(added)
    try:
        plan = lower_program(program, layout, Choices(), registry, stock)
    except UnsupportedOperatorsError as error:
        plan = plan_with_decompositions(program, layout, error, registry, stock)
    program.refuse_fixed_sizes("planning")
    if not plan.movements:
        return plan
    chosen = Choices.from_names(program, known) if known else None
    if chosen is not None:
        return lower_program(program, layout, chosen, registry, stock)

    def again(choices: Choices, below: Cost) -> PlanBuilder:
        return lower_program(program, layout, choices, registry, stock, below)

    plan = search_layouts(plan, again)
    if plan.impossible:
        raise _all_unsupported({f"{node.target} (a view of several dynamic sizes)": [node] for node in plan.impossible})
    return plan


def plan_with_decompositions(
    program: Program, layout: str, error: UnsupportedOperatorsError, registry: Registry, stock: bool
) -> PlanBuilder:
    """Decompose the operators of `program` that a mapping rejects with these arguments, and plan it.

    Raises:
        UnsupportedOperatorsError: the given error, if not all of them can be decomposed.
    """
    left: Sequence[fx.Node] = error.nodes
    for _ in range(DEPTH):
        try:
            written = [decompose(program, node, registry) for node in left]
        except ConversionError as fault:  # PyTorch's decomposition is for one batch size only
            raise error from fault
        if not any(written):
            break
        program.cleanup()
        fold_constants(program)
        program.cleanup()
        if program.debug:
            program.verify("The decomposition of operators")
        try:
            return lower_program(program, layout, Choices(), registry, stock)
        except UnsupportedOperatorsError as further:
            left = further.nodes
    raise error


DEPTH = 5  # of nested decompositions
VALUES = (
    "the number of elements in the result depends on values: use an operator of fixed size, such as torch.where or topk"
)


def lower_program(
    program: Program,
    layout: str,
    choices: Choices,
    registry: Registry,
    stock: bool = True,
    below: Cost | None = None,
) -> PlanBuilder:
    """Run the mappings over a program.

    Raises:
        UnsupportedOperatorsError: all operators without a mapping.
        TooCostly: the plan does not cost less than `below`.
    """
    from mappings.dynamic_resize import opened

    plan = PlanBuilder(program, layout, choices, opened, registry, stock)
    unsupported: dict[str, list[fx.Node]] = {}
    for node in program.graph.nodes:
        plan.node = node
        try:
            value = _map_node(plan, node)
            if node in choices.eager_moves and isinstance(value, Value):
                value = plan.in_torch_order(value, "several consumers ask for it")
        except Unsupported as reason:
            target = f"{node.target}" + (f" ({reason})" if str(reason) else "")
            unsupported.setdefault(target, []).append(node)
            value = _placeholder_result(node)
        except ConversionError:
            raise
        except Exception as error:
            raise wrap_unexpected(error, f"module `{module_path(node)}`, {node.target}") from error
        plan.values[node] = value
        if below is not None and plan.cost >= below:
            raise TooCostly
    if unsupported:
        raise _all_unsupported(unsupported)
    return plan


def _all_unsupported(found: dict[str, list[fx.Node]]) -> UnsupportedOperatorsError:
    rows = operator_rows(found)
    listed = "\n".join(f"    {target} x{count} in {paths}  {line}" for target, count, paths, line in rows)
    return UnsupportedOperatorsError(
        f"{len(rows)} operator{'s' * (len(rows) > 1)} cannot be converted:\n{listed}",
        rows,
        [node for nodes in found.values() for node in nodes],
        code="PTC3001",
        fix="Convert a submodel without them, or give a mapping for each: --mappings my_ops.py.",
    )


def _map_node(plan: PlanBuilder, node: fx.Node) -> Any:
    if node.op == "placeholder":
        return _map_input(plan, node)
    if node.op == "get_attr":
        name, origin = tensor_name(node), plan.program.origin(node)
        return Constant(
            plan.program.values(node),
            node.meta["val"].dtype,
            (name,),
            origin.exact,
            plan.program.trainable(node),
            name,
            plan.program.is_frozen(node),
        )
    if node.op == "output":
        return _map_outputs(plan, node)
    if node.target in NUMBERS and not isinstance(node.meta["val"], int | float | bool):
        raise Unsupported("a number read from a tensor: keep it a tensor, without .item(), .tolist(), float() or int()")
    if isinstance(node.meta.get("val"), (torch.SymInt, torch.SymBool, torch.SymFloat, int, float, bool)):
        value = node.meta["val"]
        return size_of(value) if isinstance(value, torch.SymInt) else value
    args = tree_map_only(fx.Node, lambda n: plan.values[n], node.args)
    kwargs = tree_map_only(fx.Node, lambda n: plan.values[n], node.kwargs)
    if node.target is operator.getitem:
        return args[0][args[1]]
    is_mapped = plan.registry[node.target].lowering is not None
    if not is_mapped and has_tag(node.target, torch.Tag.dynamic_output_shape):
        raise Unsupported(VALUES)
    return call_lowering(plan, node.target, args, kwargs)


def _placeholder_result(node: fx.Node) -> Any:
    """Stand in for the result of an operator that cannot be mapped, so that one run finds all of them."""
    return tree_map_only(
        torch.Tensor, lambda v: Value(Layout.of(symbolic_shape(v)), v.dtype, Step((), node)), node.meta.get("val")
    )


def _map_input(plan: PlanBuilder, node: fx.Node) -> Value:
    name = plan.program.inputs[len(plan.inputs)]
    shape = symbolic_shape(node.meta["val"])
    dtype = node.meta["val"].dtype
    rank = len(shape)
    last = 3 <= rank <= 5 and (
        plan.layout == "nhwc"
        or (
            plan.layout == "auto"
            and (_feeds_channels_last(plan.registry, node) or node in plan.choices.channels_last_inputs)
        )
    )
    order = (0, *range(2, rank), 1) if last else tuple(range(rank))
    layout = Layout.of(shape, order)
    step = InputStep((), node, name, layout.physical_shape, dtype)
    plan.inputs.append(TensorInterface(name, layout.physical_shape, dtype, order))
    plan.input_steps.append(step)
    return Value(layout, dtype, step)


def _map_outputs(plan: PlanBuilder, node: fx.Node) -> list[Step]:
    source = next((v for v in plan.values.values() if isinstance(v, Value)), None)
    for name, result in zip(plan.program.outputs, plan.program.results, strict=True):
        value = plan.values[result]
        if isinstance(value, Constant):
            if source is None:
                raise ConversionError(
                    "The model's outputs do not depend on any input.",
                    code="PTC3002",
                    fix="There is nothing to convert: the outputs are constants.",
                )
            plan.program.notes.append(Note(f"Output `{name}` does not depend on the input.", code="PTC3501"))
            value = plan.as_value(value, source)
        rank = len(value.shape)
        last = (0, *range(2, rank), 1) if rank > 1 else tuple(range(rank))
        move = value.layout.to(value.layout.in_order(last))[1]
        lies = (move.named is not None and len(move.merge) == 4) or (
            move.order is None and _follows_channels_last(plan, result)
        )
        wants_last = 3 <= rank <= 5 and (plan.layout == "nhwc" or (plan.layout == "auto" and lies))
        order = last if wants_last else tuple(range(rank))
        value = plan.relayout(value, value.layout.in_order(order), f"layout of output `{name}`")
        plan.outputs.append(TensorInterface(name, value.layout.physical_shape, value.dtype, order))
        plan.results.append(value.step)
    return plan.results
