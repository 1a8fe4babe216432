"""Compute the tensors that PyTorch's exporter makes of recurrent layers' weights, as ONNX's operators take them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import fx

from converter.compat.export_patches import RECURRENT
from converter.ir import custom_ops
from converter.ir.aten import bound_arguments
from converter.ir.lazy_tensor import LazyTensor
from converter.ir.program import Program
from converter.verification.weight_proof import Expected

aten = torch.ops.aten
# ONNX's order of PyTorch's gates: https://onnx.ai/onnx/operators/onnx__LSTM.html, onnx__GRU.html
GATES: dict[object, tuple[int, ...]] = {
    aten.lstm.input: (0, 3, 1, 2),
    aten.gru.input: (1, 0, 2),
    aten.rnn_tanh.input: (0,),
    aten.rnn_relu.input: (0,),
}


def recurrent_weights(program: Program, tensors: Mapping[str, np.ndarray]) -> dict[str, Expected]:
    """Return those of `tensors` (named by the exporter) that equal a recurrent layer's weights."""
    made = [expected for node in program.graph.nodes for expected in _made_for(program, node)]
    return {
        name: expected
        for name, tensor in (tensors.items() if made else ())
        for expected in made
        if np.asarray(expected.array).shape == tensor.shape and np.array_equal(expected.array, tensor)
    }


def _made_for(program: Program, node: fx.Node) -> Iterator[Expected]:
    operator: object = node.target
    if operator is custom_ops.packed_recurrent._opoverload:
        operator = RECURRENT[bound_arguments(node).text("kind")]
    if operator not in GATES:
        return
    given = bound_arguments(node)
    weights, has_biases, directions = given.nodes("params"), given.flag("has_biases"), 1 + given.flag("bidirectional")
    count = 4 if has_biases else 2
    if not all(program.is_tensor(weight) for weight in weights):
        return
    order = GATES[operator]

    def reordered(weight: torch.Tensor) -> torch.Tensor:
        gates = weight.chunk(len(order))
        return torch.cat([gates[g] for g in order])

    def kernels(*directions: torch.Tensor) -> torch.Tensor:
        return torch.stack([reordered(weight) for weight in directions])

    def both_biases(*pairs: torch.Tensor) -> torch.Tensor:
        biases = [reordered(bias) for bias in pairs]
        return torch.stack([torch.cat(biases[i : i + 2]) for i in range(0, len(biases), 2)])

    for layer in range(given.integer("num_layers")):
        each = [weights[count * (layer * directions + d) :][:count] for d in range(directions)]
        for kernel in (0, 1):
            used = [held[kernel] for held in each]
            yield _expected(program, used, kernels)
        if has_biases:
            used = [bias for held in each for bias in held[2:]]
            yield _expected(program, used, both_biases)


def _expected(program: Program, nodes: list[fx.Node], function: Callable[..., torch.Tensor]) -> Expected:
    origin = program.merged_origin(nodes, exact=True)
    values = LazyTensor.combine(function, *(program.values(node) for node in nodes))
    return Expected(values, origin.sources, origin.exact)
