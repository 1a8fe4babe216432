"""A module in each format within one process: rewritten, lowered or exported, run."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import tensorflow as tf
import torch
from equivalence import UNASKED, captured, examples, to_artifact, to_torch
from torch import Tensor, nn
from writers import write_onnx

from converter.artifacts import torch_writer
from converter.artifacts.runtime.graph_ops import count_operators
from converter.artifacts.torch_source import ModuleSource
from converter.ir.program import Program
from converter.lowering.executor import PlanExecutor
from converter.lowering.planner import make_plan
from converter.options import CaptureOptions
from converter.pipeline.build import interfaces
from converter.rewrites.drop_identities import drop_identities
from converter.rewrites.fold_batch_norm import fold_batch_norm
from converter.rewrites.fold_constants import fold_constants
from converter.rewrites.pipelines import EXACT_SHIFTS, REWRITES
from converter.verification.checked_rewrite import rewrite
from sample_models.systems import System

MOVING = {
    "Transpose", "SpaceToDepth", "DepthToSpace", "Gather", "GatherV2", "GatherND", "GatherNd", "GatherElements", "Pad",
    "PadV2", "MirrorPad", "StridedSlice", "Slice", "ConcatV2", "Concat", "Split", "SplitV", "Roll", "GridSample",
    "DeformConv", "ScatterND", "ScatterElements", "DepthwiseConv2dNative",
}  # fmt: skip
MOVING_IN_TORCH = {
    "pixel_unshuffle", "pixel_shuffle", "permute", "transpose", "cat", "pad", "roll", "split", "index_select", "gather",
    "grid_sampler", "slice_scatter", "unfold", "stack",
}  # fmt: skip
NAIVE = (drop_identities, fold_constants, fold_batch_norm)

Run = Callable[[Sequence[Tensor]], list[np.ndarray]]


def program_of(
    module: nn.Module, shapes: Sequence[tuple[int, ...]], random: bool = True, how: CaptureOptions = UNASKED
) -> Program:
    """`module` captured with a free batch, its weights random; its buffers stay what they are."""
    buffers = {name: b.clone() for name, b in module.named_buffers() if "running" not in name}
    if random:
        program = captured(module, *[(2, *shape[1:]) for shape in shapes], how=how)
    with torch.no_grad():
        for name, buffer in module.named_buffers():
            if name in buffers:
                buffer.copy_(buffers[name])
        for parameter in module.parameters():
            parameter.div_(max(1.0, float(parameter[0].numel()) ** 0.5) if parameter.dim() > 1 else 1.0)
    return program


def rewritten(program: Program, format: str, inputs: Sequence[Tensor], exact_shifts: bool) -> Program:
    chosen = [EXACT_SHIFTS.get(r, r) if exact_shifts else r for r in REWRITES[format]]
    return rewrite(program, chosen, inputs)[0]


def in_format(program: Program, format: str, inputs: Sequence[Tensor], path: Path) -> tuple[Run, dict[str, int]]:
    """How to run a program as an artifact, and how many operators of a kind that may move elements it has."""
    if format == "onnx":
        return in_onnx(program, inputs, path)
    if format == "torch":
        return in_torch(program)
    plan = make_plan(program, stock=format == "keras")
    lowered = PlanExecutor(plan, stock=format == "keras")
    if format == "keras":
        model = lowered.keras_model()

        def call(*arrays):
            made = model(
                dict(zip((i.name for i in plan.inputs), arrays, strict=True)) if len(arrays) > 1 else arrays[0]
            )
            return [made[o.name] for o in plan.outputs] if isinstance(made, dict) else [made]

        traced = tf.function(call, autograph=False, input_signature=lowered.signature())
    else:
        lowered.prepare()
        traced = tf.function(lambda *arrays: lowered(*arrays), autograph=False, input_signature=lowered.signature())
    concrete = traced.get_concrete_function()

    def run(tensors: Sequence[Tensor]) -> list[np.ndarray]:
        arrays = [tf.constant(a) for a in to_artifact(tensors, plan.inputs)]
        return to_torch(traced(*arrays), plan.outputs)

    run.alone = lambda arrays: traced(*arrays)  # type: ignore[attr-defined]
    run.given = lambda tensors: [tf.constant(a) for a in to_artifact(tensors, plan.inputs)]  # type: ignore[attr-defined]
    return run, moving(count_operators(concrete.graph))


def in_onnx(program: Program, inputs: Sequence[Tensor], path: Path) -> tuple[Run, dict[str, int]]:
    shapes = tuple({0: torch.export.Dim("batch", min=1)} for _ in inputs)
    module = program.with_dtype(torch.float32).graph_module
    names = [f"x{i}" for i in range(len(inputs))]
    write_onnx(module, list(inputs), names, ["y"], shapes, path, {})
    session = onnxruntime.InferenceSession(str(path))
    counted: dict[str, int] = {}
    for node in onnx.load(str(path)).graph.node:
        counted[node.op_type] = counted.get(node.op_type, 0) + 1

    def run(tensors: Sequence[Tensor]) -> list[np.ndarray]:
        return session.run(None, {n: t.numpy() for n, t in zip(names, tensors, strict=True)})

    run.alone = lambda arrays: session.run(None, arrays)  # type: ignore[attr-defined]
    run.given = lambda tensors: {n: t.numpy() for n, t in zip(names, tensors, strict=True)}  # type: ignore[attr-defined]
    return run, moving(counted)


def in_torch(program: Program) -> tuple[Run, dict[str, int]]:
    """The same of a PyTorch module, run as it is written."""
    source = ModuleSource(program, *interfaces(program))
    run = torch_writer.runner(source)
    calls = Counter(re.findall(r"(?:F|torch|x\w*)\.(\w+)\(", source.text))

    def as_arrays(tensors: Sequence[Tensor]) -> list[np.ndarray]:
        return [result.numpy() for result in run(*tensors)]

    as_arrays.alone = lambda tensors: run(*tensors)  # type: ignore[attr-defined]
    as_arrays.given = list  # type: ignore[attr-defined]
    return as_arrays, {name: n for name, n in sorted(calls.items()) if name in MOVING_IN_TORCH}


def moving(operators: dict[str, int]) -> dict[str, int]:
    return {name: n for name, n in sorted(operators.items()) if name in MOVING}


class Behind(nn.Module):
    """A movement behind a ReLU of a convolution that changes nothing, so that no infinity can come to it."""

    def __init__(self, movement: nn.Module, channels: int):
        super().__init__()
        self.movement, self.conv = movement, nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.movement(self.conv(x))


def movement_alone(system: System) -> tuple[Program, Tensor, np.ndarray]:
    """The movement behind an identity, an input, and what PyTorch in float64 gives for it, rounded to float32."""
    assert system.movement is not None
    make, shape = system.movement
    module = Behind(make(), shape[1])
    program = program_of(module, [shape], how=CaptureOptions(accept=system.accept))
    with torch.no_grad():
        weight = module.conv.weight
        weight.copy_(torch.eye(shape[1]).reshape(weight.shape))
    x = examples([(2, *shape[1:])])[0]
    return program, x, program.with_dtype(torch.float64).run(x.double())[0].float().numpy()
