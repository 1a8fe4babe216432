"""Differences from PyTorch when a Keras file is trained: where Keras' layers behave differently in training only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from converter.errors import Note
from converter.ir.aten import bound_arguments
from converter.ir.program import Program, module_path
from converter.plan.builder import PlanBuilder
from converter.plan.steps import LayerStep, topological_order

aten = torch.ops.aten
NAMED = 3
RECURRENT = ("LSTM", "SimpleRNN")  # for these Keras has one bias; its GRU has both


def training_notes(plan: PlanBuilder) -> tuple[Note, ...]:
    """Return a note for each way in which a training step differs, with the layers concerned."""
    layers = [step for step in topological_order(plan.results) if isinstance(step, LayerStep)]
    notes = []
    for note, concerns in NOTES:
        names = list(dict.fromkeys(step.name for step in layers if concerns(step, plan.program)))
        if names:
            notes.append(replace(note, text=f"{note.text} Concerns {listed(names)}."))
    return tuple(notes)


def listed(names: list[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:NAMED])
    return shown if len(names) <= NAMED else f"{shown} and {len(names) - NAMED} more"


def has_running_variance(step: LayerStep, _: Program) -> bool:
    return is_batch_norm(step) and step.trainable and step.config["momentum"] != 1


def has_frozen_statistics(step: LayerStep, _: Program) -> bool:
    return is_batch_norm(step) and not step.trainable and any(weight.trainable for weight in step.weights)


def keeps_statistics(step: LayerStep, program: Program) -> bool:
    averages = program.averaging is None or module_path(step.node) in program.averaging
    return is_batch_norm(step) and step.trainable and step.config["momentum"] == 1 and averages


def has_one_bias(step: LayerStep, _: Program) -> bool:
    return step.kind.__name__ in RECURRENT and step.config["use_bias"] and step.trainable


def is_grouped(step: LayerStep, _: Program) -> bool:
    return step.config.get("groups", 1) > 1 and "Conv" in step.kind.__name__


def has_padding_row(step: LayerStep, _: Program) -> bool:
    if step.node.target is not aten.embedding.default or not step.kind.__name__.endswith("Embedding"):
        return False
    return step.trainable and bound_arguments(step.node).integer("padding_idx") >= 0


def is_partly_frozen(step: LayerStep, _: Program) -> bool:
    return step.trainable and any(weight.trainable and weight.frozen for weight in step.weights)


def trains_what_is_computed(step: LayerStep, program: Program) -> bool:
    if not step.trainable or step.kind.__name__ in RECURRENT:
        return False
    return any(w.learns and not w.exact and any(program.origins[s].sources for s in w.sources) for w in step.weights)


def is_batch_norm(step: LayerStep) -> bool:
    return step.kind.__name__ == "BatchNormalization"


NOTES: tuple[tuple[Note, Callable[[LayerStep, Program], bool]], ...] = (
    (
        Note("For n values, PyTorch updates the running variance by n / (n - 1) times as much.", code="PTC3502"),
        has_running_variance,
    ),
    (
        Note(
            "With momentum=None, PyTorch averages the statistics of all batches; Keras keeps them as they are.",
            code="PTC3503",
        ),
        keeps_statistics,
    ),
    (
        Note("A frozen Keras layer normalizes with the running statistics, as in eval mode.", code="PTC3504"),
        has_frozen_statistics,
    ),
    (
        Note("The only bias is the sum of PyTorch's two; it moves twice as far in a step.", code="PTC3505"),
        has_one_bias,
    ),
    (
        Note("Grouped convolutions train in float32 only on a CPU, where Keras compiles with XLA.", code="PTC3506"),
        is_grouped,
    ),
    (
        Note("The row of padding_idx has a gradient, which it does not have in PyTorch.", code="PTC3507"),
        has_padding_row,
    ),
    (
        Note("Keras trains all parameters of the layer; PyTorch keeps some of them frozen.", code="PTC3508"),
        is_partly_frozen,
    ),
    (
        Note("A tensor that PyTorch computes from parameters is a variable of its own in Keras.", code="PTC3509"),
        trains_what_is_computed,
    ),
)
