"""Differences from PyTorch when a Keras file is trained: where Keras' layers behave differently in training only."""

from __future__ import annotations

from collections.abc import Callable

import torch

from converter.ir.aten import bound_arguments
from converter.ir.program import Program
from converter.plan.builder import PlanBuilder
from converter.plan.steps import LayerStep, topological_order

aten = torch.ops.aten
NAMED = 3
RECURRENT = ("LSTM", "SimpleRNN")  # for these Keras has one bias; its GRU has both


def training_remarks(plan: PlanBuilder) -> tuple[str, ...]:
    """Return a sentence for each way in which a training step differs, with the layers concerned."""
    layers = [step for step in topological_order(plan.results) if isinstance(step, LayerStep)]
    remarks = []
    for says, concerns in REMARKS.items():
        names = list(dict.fromkeys(step.name for step in layers if concerns(step, plan.program)))
        if names:
            remarks.append(f"{says}: {listed(names)}")
    return tuple(remarks)


def listed(names: list[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:NAMED])
    return shown if len(names) <= NAMED else f"{shown} and {len(names) - NAMED} more"


def has_running_variance(step: LayerStep, _: Program) -> bool:
    return is_batch_norm(step) and step.trainable and step.config["momentum"] != 1


def has_frozen_statistics(step: LayerStep, _: Program) -> bool:
    return is_batch_norm(step) and not step.trainable and any(weight.trainable for weight in step.weights)


def keeps_statistics(step: LayerStep, _: Program) -> bool:
    return is_batch_norm(step) and step.trainable and step.config["momentum"] == 1


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


REMARKS: dict[str, Callable[[LayerStep, Program], bool]] = {
    "PyTorch's running variance takes in n / (n - 1) times what Keras' does of n values": has_running_variance,
    "momentum=None averages the statistics of all batches in PyTorch; here they stay as they are": keeps_statistics,
    "frozen, so Keras normalizes with the running statistics and keeps them, as in eval mode": has_frozen_statistics,
    "the only bias is the sum of PyTorch's two: with both trained alike, that sum moves twice as far": has_one_bias,
    "grouped convolutions have gradients in float32 only on a CPU, where Keras has XLA compile them": is_grouped,
    "the row of padding_idx has no gradient in PyTorch, and has one here": has_padding_row,
    "some of its parameters ask for no gradient in PyTorch; Keras trains a layer as a whole": is_partly_frozen,
    "what PyTorch computes from parameters is a variable of its own here": trains_what_is_computed,
}
