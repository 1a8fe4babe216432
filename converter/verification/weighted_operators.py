"""Run the captured program once, and keep what flowed through each of its operators that has weights.

Values are held channels last, whatever PyTorch's layout is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, fx

from converter.ir.aten import bound_arguments, is_pointwise
from converter.ir.program import Program, module_path, tensor_name
from converter.rewrites.analysis.convolutions import read_convolution
from converter.verification.coverage import reached_by_inputs

aten = torch.ops.aten
Kind = Literal[
    "convolution", "transposed convolution", "linear", "batch norm", "layer norm", "group norm", "embedding", "prelu",
    "lstm", "gru", "rnn",
]  # fmt: skip
Pads = tuple[tuple[int, int], ...]

LIMIT = 1e-4  # of an element and the typical magnitude: two values above it are different


@dataclass(frozen=True)
class Fingerprint:
    """Figures of a value that do not depend on its layout, nor on zeros around it."""

    total: float
    absolute: float
    squares: float
    largest: float

    @classmethod
    def of(cls, value: np.ndarray) -> Fingerprint:
        with np.errstate(all="ignore"):
            flat = value.ravel()
            absolute = np.abs(flat)
            return cls(
                float(flat.sum(dtype=np.float64)),
                float(absolute.sum(dtype=np.float64)),
                float(np.square(flat, dtype=np.float64).sum()),
                float(absolute.max(initial=0)),
            )

    def like(self, other: Fingerprint) -> bool:
        """Return whether two values may be the same."""
        pairs = (
            (self.total, other.total, max(self.absolute, other.absolute)),
            (self.absolute, other.absolute, max(self.absolute, other.absolute)),
            (self.squares, other.squares, max(self.squares, other.squares)),
            (self.largest, other.largest, max(self.largest, other.largest)),
        )
        return all(a == b or abs(a - b) <= 10 * LIMIT * scale for a, b, scale in pairs)


def same_values(one: np.ndarray, other: np.ndarray) -> bool:
    """Return whether two arrays of one shape are the same but for rounding."""
    if one.shape != other.shape:
        return False
    if not np.issubdtype(one.dtype, np.floating) and not np.issubdtype(other.dtype, np.floating):
        return np.array_equal(one, other)
    one, other = one.astype(np.float64), other.astype(np.float64)
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        return np.array_equal(np.nan_to_num(one), np.nan_to_num(other))
    typical = float(np.sqrt(np.mean(np.square(other)))) if other.size else 0.0
    return bool((np.abs(one - other) <= LIMIT * (np.abs(other) + typical)).all())


@dataclass(eq=False)
class Operator:
    """An operator with weights, and what flowed through it.

    Attributes:
        name: of the module that has its weights.
        x, result: channels last.
        tensors: "weight", "bias", "running_mean", "running_var", as PyTorch holds them.
        settings: "stride", "padding", "dilation", "groups", "epsilon", where it has them.
        flattened: the shapes that its input's columns may have had before a flatten, channels first.
        operand: the node of its input.
    """

    name: str
    kind: Kind
    x: np.ndarray
    result: np.ndarray
    tensors: Mapping[str, np.ndarray]
    settings: Mapping[str, Any]
    flattened: Sequence[tuple[int, ...]] = ()
    operand: fx.Node | None = None
    number: int = 0

    @cached_property
    def fingerprint(self) -> Fingerprint:
        return Fingerprint.of(self.x)

    @cached_property
    def read(self) -> np.ndarray:
        """The input of a convolution with its zeros around it, as far as it is read."""
        s = self.settings
        return as_read(self.x, s["padding"], self.kernel, s["stride"], s["dilation"])

    @cached_property
    def fingerprint_read(self) -> Fingerprint:
        return Fingerprint.of(self.read)

    @property
    def kernel(self) -> tuple[int, ...]:
        return tuple(self.tensors["weight"].shape[2:])

    @cached_property
    def matrix(self) -> np.ndarray | None:
        """The weights of a linear map of the last axis, [out, in]; None of any other operator."""
        if self.kind == "linear":
            return self.tensors["weight"]
        s = self.settings
        if self.kind != "convolution" or s["groups"] != 1 or {*self.kernel, *s["stride"]} != {1}:
            return None
        if any(any(pads) for pads in s["padding"]):
            return None
        return self.tensors["weight"].reshape(self.tensors["weight"].shape[:2])


def as_read(
    x: np.ndarray, pads: Pads, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> np.ndarray:
    """Return the input of a convolution, channels last, with its pads and without what the stride leaves unread."""
    ends = []
    for n, (before, after), k, s, d in zip(x.shape[1:-1], pads, kernel, stride, dilation, strict=True):
        size, reach = n + before + after, d * (k - 1) + 1
        ends.append((max(size - reach, 0) // s) * s + reach)
    if any(any(pair) for pair in pads):
        x = np.pad(x, ((0, 0), *pads, (0, 0)))
    return x[(slice(None), *(slice(end) for end in ends))]


@dataclass
class Values:
    """What flowed through a program.

    Attributes:
        operators: those with weights, in their order.
        bare: parameters that other operators read, by name.
        nodes: the fingerprint of every value, with its operator's name and module.
    """

    operators: list[Operator]
    bare: dict[str, np.ndarray]
    nodes: dict[int, list[tuple[Fingerprint, str]]]
    program: Program
    inputs: Sequence[Tensor]
    outputs: list[np.ndarray] = field(default_factory=list)

    def named(self, value: np.ndarray) -> str | None:
        """Return which of PyTorch's values this may be, or None."""
        mark = Fingerprint.of(value)
        return next((name for known, name in self.nodes.get(value.size, ()) if known.like(mark)), None)

    def before(self, operator: Operator) -> Iterator[tuple[str, np.ndarray]]:
        """Yield what the pointwise operators right before an operator are, and what the first of them takes.

        The program runs again for it.
        """
        wanted: dict[fx.Node, str] = {}
        node, names = operator.operand, list[str]()
        while node is not None and is_pointwise(node.target) and len(names) < MOST_BEFORE:
            names.insert(0, getattr(node.target, "name", str)().removeprefix("aten::"))
            node = next((n for n in node.all_input_nodes if n.op != "get_attr"), None)
            if node is not None:
                wanted[node] = " of ".join(reversed(names))
        for at, value in self.program.walk(self.inputs):
            if at in wanted and isinstance(value, Tensor):
                yield wanted[at], value.numpy()


MOST_BEFORE = 4  # pointwise operators to name
_CONVOLUTIONS = {
    aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.conv1d.padding, aten.conv2d.padding,
    aten.conv3d.padding,
}  # fmt: skip
_TRANSPOSED = {aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input}
_RECURRENT: dict[Any, Kind] = {
    aten.lstm.input: "lstm", aten.gru.input: "gru", aten.rnn_tanh.input: "rnn", aten.rnn_relu.input: "rnn",
}  # fmt: skip
_SAME_ELEMENTS = {
    aten.reshape.default, aten.view.default, aten.flatten.using_ints, aten.clone.default, aten.dropout.default,
    aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default, aten.contiguous.default, aten._unsafe_view.default,
}  # fmt: skip


def run_operators(program: Program, inputs: Sequence[Tensor]) -> Values:
    """Run the program on one set of inputs, and return what flowed."""
    reached = reached_by_inputs(program)
    known = {node: read for node in program.graph.nodes if (read := _reader(node, reached)) is not None}
    kept = {operand for node in known for operand in node.all_input_nodes} | known.keys() | {*program.results}
    arrays: dict[fx.Node, Tensor] = {}
    shapes: dict[fx.Node, tuple[int, ...]] = {}
    values = Values([], {}, {}, program, inputs)
    for node, value in program.walk(inputs):
        if not isinstance(value, Tensor):
            continue
        shapes[node] = tuple(value.shape)
        if node in kept:
            arrays[node] = value
        if value.is_floating_point():
            where = tensor_name(node) if node.op == "get_attr" else module_path(node) or node.name
            target = "" if node.op != "call_function" else f" ({getattr(node.target, 'name', str)()})"
            mark = Fingerprint.of(value.numpy())
            values.nodes.setdefault(value.numel(), []).append((mark, f"`{where}`{target}"))
        if node.op == "get_attr" and value.is_floating_point() and any(user not in known for user in node.users):
            values.bare[tensor_name(node)] = value.numpy()
    for node, read in known.items():
        for operator in read(node, arrays, shapes):
            operator.number = len(values.operators)
            operator.operand = next((n for n in node.all_input_nodes if n in reached), None)
            values.operators.append(operator)
    values.outputs = [arrays[node].numpy() for node in program.results]
    return values


Reader = Callable[[fx.Node, Mapping[fx.Node, Tensor], Mapping[fx.Node, tuple[int, ...]]], list[Operator]]


def _reader(node: fx.Node, reached: set[fx.Node]) -> Reader | None:
    """Return what reads an operator that has weights of its own, which no input reaches."""
    if node.op != "call_function" or node not in reached:
        return None
    match node.target:
        case target if target in _CONVOLUTIONS:
            return _convolution if bound_arguments(node).node("weight") not in reached else None
        case target if target in _TRANSPOSED:
            return _transposed if bound_arguments(node).node("weight") not in reached else None
        case aten.linear.default:
            return _linear if bound_arguments(node).node("weight") not in reached else None
        case aten.addmm.default:
            a = bound_arguments(node)
            return _addmm if a.node("mat2") not in reached and a.node("self") not in reached else None
        case aten.matmul.default | aten.mm.default:
            right = node.args[1]
            return _matmul if isinstance(right, fx.Node) and right not in reached else None
        case aten.batch_norm.default:
            return _norm("batch norm") if bound_arguments(node).value("running_var") is not None else None
        case aten.layer_norm.default:
            return _norm("layer norm")
        case aten.group_norm.default | aten.instance_norm.default:
            return _norm("group norm")
        case aten.embedding.default:
            return _embedding if bound_arguments(node).node("weight") not in reached else None
        case aten.prelu.default:
            return _prelu
        case target if target in _RECURRENT:
            return _recurrent
    return None


def _last(value: Tensor) -> np.ndarray:
    """Return a value with dimension 1 last."""
    return np.moveaxis(value.numpy(), 1, -1) if value.ndim > 2 else value.numpy()


def _operands(node: fx.Node, arrays: Mapping[fx.Node, Tensor], names: Sequence[str]) -> dict[str, np.ndarray]:
    arguments = bound_arguments(node)
    held = {name: arguments.value(name) for name in names}
    return {name: arrays[value].numpy() for name, value in held.items() if isinstance(value, fx.Node)}


def _name(node: fx.Node, argument: str = "weight") -> str:
    """Return the path of the module that holds an operator's weights, or else that calls it."""
    weight = bound_arguments(node).value(argument)
    if isinstance(weight, fx.Node) and weight.op == "get_attr":
        path, _, last = tensor_name(weight).rpartition(".")
        return path if last in ("weight", "running_var") and path else tensor_name(weight)
    return module_path(node) or node.name


def _convolution(node: fx.Node, arrays: Any, shapes: Any) -> list[Operator]:
    found = read_convolution(node)
    if found is None:
        return []
    x = arrays[found.x]
    kernel = arrays[found.weight].shape[2:]
    if x.ndim != len(kernel) + 2:
        return []
    if isinstance(found.padding, str):
        reach = [d * (k - 1) if found.padding == "same" else 0 for k, d in zip(kernel, found.dilation, strict=True)]
        pads: Pads = tuple((n // 2, n - n // 2) for n in reach)
    else:
        pads = tuple((n, n) for n in found.padding)
    settings = {
        "stride": tuple(found.stride), "padding": pads, "dilation": tuple(found.dilation), "groups": found.groups,
    }  # fmt: skip
    tensors = _operands(node, arrays, ("weight", "bias"))
    return [Operator(_name(node), "convolution", _last(x), _last(arrays[node]), tensors, settings)]


def _transposed(node: fx.Node, arrays: Any, shapes: Any) -> list[Operator]:
    a = bound_arguments(node)
    x = arrays[a.node("input")]
    axes = x.ndim - 2
    settings = {
        "stride": tuple(a.known_integers("stride", axes) or ()),
        "padding": tuple(a.known_integers("padding", axes) or ()),
        "output padding": tuple(a.known_integers("output_padding", axes) or ()),
        "dilation": tuple(a.known_integers("dilation", axes) or ()),
        "groups": a.value("groups"),
    }
    tensors = _operands(node, arrays, ("weight", "bias"))
    return [Operator(_name(node), "transposed convolution", _last(x), _last(arrays[node]), tensors, settings)]


def _linear(node: fx.Node, arrays: Any, shapes: Any) -> list[Operator]:
    return [_map(node, "input", _operands(node, arrays, ("weight", "bias")), _name(node), arrays, shapes)]


def _addmm(node: fx.Node, arrays: Any, shapes: Any) -> list[Operator]:
    a = bound_arguments(node)
    if a.value("beta") != 1 or a.value("alpha") != 1:
        return []
    tensors = {"weight": arrays[a.node("mat2")].numpy().T, "bias": arrays[a.node("self")].numpy()}
    return [_map(node, "mat1", tensors, _name(node, "mat2"), arrays, shapes)]


def _matmul(node: fx.Node, arrays: Any, shapes: Any) -> list[Operator]:
    left, right = node.args[:2]
    assert isinstance(left, fx.Node)
    assert isinstance(right, fx.Node)
    if arrays[right].ndim != 2 or not arrays[right].is_floating_point():
        return []
    names = list(bound_arguments(node).values)
    return [_map(node, names[0], {"weight": arrays[right].numpy().T}, _name(node, names[1]), arrays, shapes)]


def _map(node: fx.Node, x: str, tensors: dict[str, np.ndarray], name: str, arrays: Any, shapes: Any) -> Operator:
    operand = bound_arguments(node).node(x)
    before = tuple(_before_flatten(operand, shapes))
    return Operator(name, "linear", arrays[operand].numpy(), arrays[node].numpy(), tensors, {}, before)


def _before_flatten(node: fx.Node, shapes: Mapping[fx.Node, tuple[int, ...]]) -> Iterator[tuple[int, ...]]:
    """Yield the shapes, without the batch, that a matrix had before it was flattened."""
    size = shapes[node][-1]
    while node.op == "call_function" and (node.target in _SAME_ELEMENTS or is_pointwise(node.target)):
        operands = [n for n in node.all_input_nodes if n in shapes and len(shapes[n]) > 1]
        if len(operands) != 1:
            return
        (node,) = operands
        shape = shapes[node]
        if len(shape) > 2 and int(np.prod(shape[1:])) == size and int(np.prod(shape[2:])) > 1:
            yield shape[1:]


def _norm(kind: Kind) -> Reader:
    def read(node: fx.Node, arrays: Any, shapes: Any) -> list[Operator]:
        a = bound_arguments(node)
        names = ("weight", "bias", "running_mean", "running_var") if kind == "batch norm" else ("weight", "bias")
        tensors = _operands(node, arrays, names)
        settings: dict[str, Any] = {"epsilon": a.number("eps")}
        x, result = arrays[a.node("input")], arrays[node]
        if kind == "group norm":
            settings["groups"] = a.values.get("num_groups", x.shape[1])
        if kind == "layer norm":
            settings["axes"] = len(a.integers("normalized_shape"))
            held = x.numpy(), result.numpy()
        else:
            held = _last(x), _last(result)
        if kind == "group norm" and not a.values.get("use_input_stats", True):
            return []
        if not tensors and kind != "batch norm":
            return []
        argument = "weight" if "weight" in tensors or kind != "batch norm" else "running_var"
        return [Operator(_name(node, argument), kind, *held, tensors, settings)]

    return read


def _embedding(node: fx.Node, arrays: Any, shapes: Any) -> list[Operator]:
    a = bound_arguments(node)
    tensors = _operands(node, arrays, ("weight",))
    x, result = arrays[a.node("indices")].numpy(), arrays[node].numpy()
    return [Operator(_name(node), "embedding", x, result, tensors, {})]


def _prelu(node: fx.Node, arrays: Any, shapes: Any) -> list[Operator]:
    operand = node.args[0]
    tensors = _operands(node, arrays, ("weight",))
    x, result = _last(arrays[operand]), _last(arrays[node])
    return [Operator(_name(node), "prelu", x, result, tensors, {})]


def _recurrent(node: fx.Node, arrays: Any, shapes: Any) -> list[Operator]:
    """Return an operator for each layer and direction, whose values are computed here; none for a given state."""
    a = bound_arguments(node)
    states = a.nodes("hx") if node.target is aten.lstm.input else [a.node("hx")]
    if any(arrays[state].any() for state in states) or any(n not in arrays for n in a.nodes("params")):
        return []
    biased, both = a.value("has_biases"), a.value("bidirectional")
    params = [arrays[n] for n in a.nodes("params")]
    names = [tensor_name(n) if n.op == "get_attr" else n.name for n in a.nodes("params")]
    each = 4 if biased else 2
    x = arrays[a.node("input")]
    x = x if a.value("batch_first") else x.transpose(0, 1)
    kind = _RECURRENT[node.target]
    settings: dict[str, Any] = {"recurrent_activation": "sigmoid"}
    settings["activation"] = "relu" if node.target is aten.rnn_relu.input else "tanh"
    found = []
    for layer in range(a.integer("num_layers")):
        results = []
        for backwards in (False, True)[: 1 + both]:
            place = (layer * (1 + both) + backwards) * each
            weights = params[place : place + each]
            given = x.flip(1) if backwards else x
            zeros = given.new_zeros(1, len(given), weights[1].shape[1])
            state = [zeros, zeros] if kind == "lstm" else zeros
            with torch.no_grad():
                result = node.target(given, state, weights, biased, 1, 0.0, False, False, True)[0]  # type: ignore[operator]
            tensors = {"weight": weights[0].numpy(), "recurrent": weights[1].numpy()}
            if biased:
                tensors["biases"] = torch.stack(weights[2:]).numpy()
            name = names[place].replace("weight_ih_", "")
            held = settings | {"backwards": backwards}
            found.append(Operator(name, kind, x.numpy(), result.numpy(), tensors, held))
            results.append(result.flip(1) if backwards else result)
        x = torch.cat(results, -1)
    return found
