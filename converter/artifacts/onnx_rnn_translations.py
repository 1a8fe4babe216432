"""Translate recurrent layers to ONNX: one operator each, for any sequence length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

aten = torch.ops.aten
ACTIVATIONS = {aten.rnn_tanh.input: "Tanh", aten.rnn_relu.input: "Relu"}


def _define(operator: OpOverload) -> OpOverload:
    """Define an operator with the same schema that has only a shape function, so that PyTorch cannot decompose it.

    An export decomposes PyTorch's own operator, if only to find its shapes, and does so for the example's length. The
    operator's cache keeps the result for the first model of a process and applies it to later ones.
    """
    name = operator.overloadpacket.__name__
    _, _, signature = str(operator._schema).partition("(")
    torch.library.define(f"converter::{name}", f"({signature}")

    def fake(
        x: Tensor, hx: Any, params: Sequence[Tensor], has_biases: bool, num_layers: int, dropout: float, train: bool,
        bidirectional: bool, batch_first: bool,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        states = [hx] if isinstance(hx, Tensor) else hx
        features = params[1].shape[1] * (2 if bidirectional else 1)
        return (x.new_empty(*x.shape[:2], features), *(torch.empty_like(state) for state in states))

    torch.library.register_fake(f"converter::{name}", fake)
    return getattr(torch.ops.converter, name).default


WHOLE = {op: _define(op) for op in (aten.lstm.input, aten.gru.input, *ACTIVATIONS)}


def leave_whole(graph_module: fx.GraphModule) -> fx.GraphModule:
    """Replace PyTorch's recurrent operators with copies that an export does not decompose."""
    for operator, whole in WHOLE.items():
        for node in graph_module.graph.find_nodes(op="call_function", target=operator):
            node.target = whole
    graph_module.recompile()
    return graph_module


def as_pytorchs(note: str) -> str:
    """Return a note of the exporter with PyTorch's operator names."""
    for operator, whole in WHOLE.items():
        note = note.replace(str(whole), str(operator))
    return note


def translations() -> dict[OpOverload, Callable]:
    """Return the onnxscript functions that write these operators: the exporter's own, if it has one."""
    from onnxscript.function_libs.torch_lib.ops import core

    written = {aten.lstm.input: core.aten_lstm, aten.gru.input: core.aten_gru}
    written |= {operator: _rnn(activation) for operator, activation in ACTIVATIONS.items()}
    whole: dict[OpOverload, Callable] = {WHOLE[operator]: function for operator, function in written.items()}
    return whole | {torch.ops.converter.packed_recurrent.default: _packed}


# ONNX's order of PyTorch's gates: https://onnx.ai/onnx/operators/onnx__LSTM.html, onnx__GRU.html
GATES = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn_tanh": (0,), "rnn_relu": (0,)}
INT32 = 6  # https://github.com/onnx/onnx/blob/main/onnx/onnx.proto, TensorProto.DataType


def _packed(
    kind: str, input: Any, lengths: Any, hx: Sequence[Any], params: Sequence[Any], has_biases: bool, num_layers: int,
    dropout: float, train: bool, bidirectional: bool, batch_first: bool, enforce_sorted: bool,
) -> tuple[Any, ...]:  # fmt: skip
    """Write a recurrent layer that stops at each sequence's length."""
    from onnxscript import opset18 as op

    def stacked(parts: Sequence[Any]) -> Any:
        rows = [op.Unsqueeze(part, [0]) for part in parts]
        return op.Concat(*rows, axis=0) if len(rows) > 1 else rows[0]

    def reordered(weight: Any) -> Any:
        if len(GATES[kind]) == 1:
            return weight
        gates = op.Split(weight, axis=0, num_outputs=len(GATES[kind]))
        return op.Concat(*(gates[gate] for gate in GATES[kind]), axis=0)

    directions, count = 2 if bidirectional else 1, 4 if has_biases else 2
    how = {"direction": "bidirectional" if bidirectional else "forward", "hidden_size": params[1].shape[1]}
    if kind.startswith("rnn"):
        how["activations"] = [kind.removeprefix("rnn_").capitalize()] * directions
    if kind == "gru":
        how["linear_before_reset"] = 1
    write = {"lstm": op.LSTM, "gru": op.GRU}.get(kind, op.RNN)
    steps = op.Cast(lengths, to=INT32)
    y, last = op.Transpose(input, perm=[1, 0, 2]) if batch_first else input, []
    for layer in range(num_layers):
        first = layer * directions
        each = [params[count * (first + d) :][:count] for d in range(directions)]
        kernels = [stacked([reordered(held[kernel]) for held in each]) for kernel in (0, 1)]
        biases = stacked([op.Concat(*map(reordered, held[2:]), axis=0) for held in each]) if has_biases else None
        states = [op.Slice(state, [first], [first + directions], axes=[0]) for state in hx]
        y, *ends = write(y, *kernels, biases, steps, *states, **how)  # y: [length, directions, batch, hidden]
        y = op.Reshape(op.Transpose(y, perm=[0, 2, 1, 3]), [0, 0, -1])
        last.append(ends)
    y = op.Transpose(y, perm=[1, 0, 2]) if batch_first else y
    return y, *(op.Concat(*ends, axis=0) if num_layers > 1 else ends[0] for ends in zip(*last, strict=True))


def _rnn(activation: str) -> Callable:
    """Return a function that writes ONNX's RNN: https://onnx.ai/onnx/operators/onnx__RNN.html."""
    from onnxscript import opset18 as op

    def rnn(
        x: Any, hx: Any, params: Sequence[Any], has_biases: bool, num_layers: int, dropout: float, train: bool,
        bidirectional: bool, batch_first: bool,
    ) -> Any:  # fmt: skip
        directions, count = 2 if bidirectional else 1, 4 if has_biases else 2
        how = {
            "activations": [activation] * directions,
            "direction": "bidirectional" if bidirectional else "forward",
            "hidden_size": params[1].shape[1],
        }
        y, last = op.Transpose(x, perm=[1, 0, 2]) if batch_first else x, []
        for layer in range(num_layers):
            first = layer * directions
            each = [params[count * (first + d) :][:count] for d in range(directions)]
            biases = [_stacked([op.Concat(*held[2:], axis=0) for held in each])] if has_biases else []
            state = op.Slice(hx, [first], [first + directions], axes=[0])
            kernels = (_stacked([held[kernel] for held in each]) for kernel in (0, 1))
            y, final = op.RNN(y, *kernels, *biases, initial_h=state, **how)  # y: [length, directions, batch, hidden]
            y = op.Reshape(op.Transpose(y, perm=[0, 2, 1, 3]), [0, 0, -1])
            last.append(final)
        return op.Transpose(y, perm=[1, 0, 2]) if batch_first else y, (
            op.Concat(*last, axis=0) if len(last) > 1 else last[0]
        )

    def _stacked(parts: Sequence[Any]) -> Any:
        rows = [op.Unsqueeze(part, [0]) for part in parts]
        return op.Concat(*rows, axis=0) if len(rows) > 1 else rows[0]

    return rnn
