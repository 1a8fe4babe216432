"""Show what a model consists of, and what each module becomes."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from converter.checkpoint.import_isolation import UserCode
from converter.errors import UnsupportedOperatorsError, UsageError
from converter.ir.program import Program, module_path
from converter.ir.sizes import symbolic_shape
from converter.options import ArtifactOptions, InspectCall, InspectOptions, takes_model
from converter.pipeline.build import build, summarize_changes
from converter.pipeline.check import check_formats
from converter.pipeline.clock import Clock, Progress
from converter.pipeline.explain import convolution_facts
from converter.pipeline.explain import explain as explain_topics
from converter.pipeline.load_model import LoadedModel, Source, load_with_mappings
from converter.plan.builder import PlanBuilder
from converter.plan.interface import facts, sizes_shown, symbol_names
from converter.plan.steps import CallStep, LayerStep, Value, topological_order
from converter.plan.text import operator_name
from converter.report.failures import UnsupportedOperator, write_text
from converter.report.graph import program_picture
from converter.report.results import LayerRow, ModelSummary, PlanRow, Rewrite, Shape, TensorFacts
from converter.verification.prove import tensors_read


@takes_model
def inspect(
    model: Source,
    /,
    *,
    check: Sequence[str] = (),
    plan: bool = False,
    explain: Sequence[str] = (),
    graph: str | Path | None = None,
    progress: Progress | None = None,
    **keywords: Unpack[InspectCall],
) -> ModelSummary:
    """Return the module tree with shapes, weights, and what each module becomes in a Keras file.

    Operators that cannot be converted are listed, not raised.

    Args:
        check: formats to check whether the model can be converted to them; nothing is written.
        plan: include the plan: every value with its axes and every movement with its reason.
        explain: topics to answer from the model's graph: "focus", "shift", "depthwise", "separable".
        progress: called with a step's name; returns a context that lasts as long as the step.
        graph: an SVG file to write: the operators, with the order of their axes as colors, and what moves data.
        keywords: those of `converter.options.InspectOptions`: `factory`, `input_shapes`, `layout`, ...

    Raises:
        ConversionError: the model cannot be read, or does not run on the given inputs; the picture cannot be written.

    Examples:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU())
        >>> summary = converter.inspect(model, input_shapes=(1, 3, 8, 8))
        >>> [(row.path, row.becomes) for row in summary.rows[1:]]
        [('0', 'Conv2D'), ('1', 'Activation')]
    """
    options = InspectOptions.of(**keywords)
    picture = graph_path(graph)
    clock = Clock(progress)
    source, artifact_options = load_with_mappings(model, options, clock)
    checks = check_formats(source, check, artifact_options, options.capture.seed, clock)
    made = summary(source, artifact_options, plan or picture is not None, clock, explain)
    if picture is not None:
        write_text(picture, program_picture(made, made.plan or program_rows(source.program)))
    return replace(
        made, plan=made.plan if plan else (), checks=checks, notes=options.report.shown(made.notes)
    )  # fmt: skip


def summary(
    source: LoadedModel, options: ArtifactOptions, with_plan: bool, clock: Clock, topics: Sequence[str] = ()
) -> ModelSummary:
    unsupported: tuple[UnsupportedOperator, ...] = ()
    inputs: tuple[TensorFacts, ...] = ()
    outputs: tuple[TensorFacts, ...] = ()
    becomes: dict[str, str] = {}
    plan: tuple[PlanRow, ...] = ()
    rewrites: tuple[Rewrite, ...] = ()
    planned: PlanBuilder | None = None
    convolutions = convolution_facts(source.program)
    try:
        built = build(source, "keras", options, clock)
        if built.plan is None:
            raise AssertionError("a Keras file is planned")
        planned = built.plan
        becomes = what_becomes(planned)
        rewrites = tuple(summarize_changes(built.changes))
        plan = plan_rows(built.plan) if with_plan else ()
        names = symbol_names(source.program)
        inputs, outputs = (tuple(facts(i, names) for i in held) for held in (built.inputs, built.outputs))
    except UnsupportedOperatorsError as error:
        unsupported = tuple(UnsupportedOperator(*row) for row in error.operators)
    rows: list[LayerRow] = []
    if source.module is not None:
        shapes = module_shapes(source.module, source.examples, source.code)
        read = tensors_read(source.program)
        for path, module in source.module.named_modules():
            own = sum(p.numel() for p in module.parameters(recurse=False))
            shape_in, shape_out = shapes.get(path, (None, None))
            made = becomes.get(path, _nothing(path, module, read)) if not unsupported else ""
            rows.append(
                LayerRow(path, type(module).__name__, shape_in, shape_out, own, made, convolutions.get(path, ""))
            )
    else:
        if not becomes and not unsupported:
            raise UsageError(
                "The program is empty.",
                code="PTC6028",
                fix="There is nothing to convert: the model returns its inputs.",
            )
        order = dict.fromkeys(module_path(node) for node in source.program.graph.nodes)
        held = becomes if unsupported else dict.fromkeys(convolutions, "in another layer") | becomes
        paths = [path for path in (*order, *(held.keys() - order.keys())) if path in held]
        rows = [LayerRow(path, "", None, None, 0, held[path], convolutions.get(path, "")) for path in paths]
    return ModelSummary(
        source=source.name,
        rows=tuple(rows),
        unsupported=unsupported,
        notes=(*source.notes, *source.program.notes),
        inputs=inputs,
        outputs=outputs,
        plan=plan,
        rewrites=rewrites,
        answers=explain_topics(source.program, planned, topics),
    )


def graph_path(graph: str | Path | None) -> Path | None:
    """Return the path of the picture to write, or None. Raises UsageError if its name does not end in .svg."""
    if graph is None or Path(graph).suffix.lower() == ".svg":
        return None if graph is None else Path(graph)
    raise UsageError(
        "A picture's name ends in .svg.",
        code="PTC6100",
        where=str(graph),
        fix=f"Name it {Path(graph).with_suffix('.svg')}.",
    )


def plan_rows(plan: PlanBuilder) -> tuple[PlanRow, ...]:
    """Return every value of the plan, in the program's order."""
    rows = []
    names = symbol_names(plan.program)
    for node, value in plan.values.items():
        if node.target is operator.getitem:
            continue
        moves = tuple(f"{m.kind} of {m.elements} elements: {m.reason}" for m in plan.movements if m.asked_by is node)
        for i, each in enumerate(value if isinstance(value, list | tuple) else [value]):
            if isinstance(each, Value):
                shape = sizes_shown(each.shape, names)
                name = node.name if each is value else f"{node.name}[{i}]"
                target = node.op if node.op == "placeholder" else operator_name(node)
                rows.append(PlanRow(name, target, module_path(node), shape, str(each.layout), moves, _reads(node)))
        if node.op == "output":
            rows.append(PlanRow("output", "output", "", (), "", moves, _reads(node)))
    return tuple(rows)


def program_rows(program: Program) -> tuple[PlanRow, ...]:
    """Return the values of a program as a plan has them, without layouts, in the program's order."""
    names = symbol_names(program)
    rows = []
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if node.op == "output":
            rows.append(PlanRow("output", "output", "", (), "", (), _reads(node)))
        elif node.op != "get_attr" and node.target is not operator.getitem:
            for i, each in enumerate(value if isinstance(value, list | tuple) else [value]):
                if isinstance(each, Tensor):
                    name = node.name if each is value else f"{node.name}[{i}]"
                    target = node.op if node.op == "placeholder" else operator_name(node)
                    shape = sizes_shown(symbolic_shape(each), names)
                    rows.append(PlanRow(name, target, module_path(node), shape, "", (), _reads(node)))
    return tuple(rows)


def _reads(node: fx.Node) -> tuple[str, ...]:
    """Return the names of the values that a node reads, an item by its tuple's name and its number."""
    return tuple(
        f"{one.args[0]}[{one.args[1]}]" if one.target is operator.getitem else one.name for one in node.all_input_nodes
    )


def what_becomes(plan: PlanBuilder) -> dict[str, str]:
    """Return the Keras layers and operators made for each module, by path."""
    found: dict[str, list[str]] = {}
    for step in topological_order(plan.results):
        if isinstance(step, LayerStep):
            multiplier = step.config.get("depth_multiplier")
            name = step.kind.__name__ + (f"(depth_multiplier={multiplier})" if multiplier else "")
            found.setdefault(module_path(step.node), []).append(name)
        elif isinstance(step, CallStep):
            found.setdefault(module_path(step.node), []).append(operator_name(step.node))
    return {path: " + ".join(_counted(names)) for path, names in found.items()}


def _counted(names: Sequence[str]) -> list[str]:
    return [f"{names.count(n)} {n}" if names.count(n) > 1 else n for n in dict.fromkeys(names)]


def _nothing(path: str, module: nn.Module, read: set[str]) -> str:
    """Describe a module without layers or operators of its own; `read` are the tensors that the program reads."""
    if next(module.children(), None) is not None:
        return ""
    own = [f"{path}.{name}" for name, _ in module.named_parameters()]
    if not own:
        return "nothing"
    return "in another layer" if read.intersection(own) else "not used"


def module_shapes(
    module: nn.Module, inputs: Sequence[Tensor], code: UserCode
) -> dict[str, tuple[Shape | None, Shape | None]]:
    """Return the shapes of each module's first input and output tensors, with the batch named."""
    shapes: dict[str, tuple[Shape | None, Shape | None]] = {}
    with ExitStack() as hooks, code, torch.no_grad():
        for path, child in module.named_modules():

            def note(_: nn.Module, args: Any, result: Any, path: str = path) -> None:
                shapes.setdefault(path, (_first_shape(args), _first_shape(result)))

            if not isinstance(child, torch.jit.ScriptModule):  # it takes no hooks
                hooks.enter_context(child.register_forward_hook(note))
        module(*(x.clone() for x in inputs))
    return shapes


def _first_shape(values: Any) -> Shape | None:
    tensors = [v for v in tree_leaves(values) if isinstance(v, Tensor)]
    return ("batch", *tensors[0].shape[1:]) if tensors and tensors[0].ndim else None
