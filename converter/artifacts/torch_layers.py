"""Find the calls of a program that are layers of `torch.nn`, by the names of the tensors that they read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from converter.compat.export_patches import RECURRENT
from converter.ir.aten import bound_arguments
from converter.ir.program import Program, tensor_name

aten = torch.ops.aten


@dataclass(frozen=True)
class Layer:
    """A layer of `torch.nn`.

    Attributes:
        path: where it is in the model.
        make: the expression that makes it.
        tensors: the program's names of its tensors.
        given: what it is called with; a list becomes a tuple.
    """

    path: str
    make: str
    tensors: tuple[str, ...]
    given: tuple[Any, ...]


def find_layers(program: Program) -> dict[fx.Node, Layer]:
    """Return the layer of each call that is one. All readers of a layer's tensors call that same layer."""
    readers: dict[str, set[fx.Node]] = {}
    beside: dict[str, set[str]] = {}
    for node in program.graph.find_nodes(op="get_attr"):
        if node.users:
            readers.setdefault(tensor_name(node), set()).update(node.users)
    for name in readers:
        for at, letter in enumerate(name):
            if letter == ".":
                beside.setdefault(name[:at], set()).add(name)
    found: dict[str, dict[fx.Node, Layer]] = {}
    for node in program.graph.nodes:
        if node.target in _MAKERS and (layer := _MAKERS[node.target](program, node)) is not None:
            found.setdefault(layer.path, {})[node] = layer
    layers: dict[fx.Node, Layer] = {}
    for path, calls in found.items():
        makes = {(layer.make, layer.tensors) for layer in calls.values()}
        held = set(next(iter(calls.values())).tensors)
        if len(makes) == 1 and beside[path] == held and all(readers[name] <= calls.keys() for name in held):
            layers |= calls
    return layers


def _held(program: Program, tensors: Mapping[str, fx.Node | None], buffers: Sequence[str] = ()) -> str | None:
    """Return the path whose attributes of these names are `tensors`, or None."""
    paths = set()
    for attribute, node in tensors.items():
        if node is None:
            continue
        if not program.is_tensor(node) or program.trainable(node) == (attribute in buffers):
            return None
        path, _, last = tensor_name(node).rpartition(".")
        if last != attribute:
            return None
        paths.add(path)
    return paths.pop() if len(paths) == 1 and "" not in paths else None


def _layer(
    program: Program,
    kind: str,
    tensors: Mapping[str, fx.Node | None],
    given: Sequence[Any],
    sizes: Iterable[object],
    settings: Mapping[str, tuple[object, object]],
    buffers: Sequence[str] = (),
) -> Layer | None:
    """Return a layer.

    Args:
        sizes: its positional arguments.
        settings: its keyword arguments, each with its default, which is left out.
    """
    path = _held(program, tensors, buffers)
    if path is None:
        return None
    texts = [repr(compact(size)) for size in sizes]
    texts += [f"{name}={compact(v)!r}" for name, (v, default) in settings.items() if compact(v) != default]
    names = tuple(tensor_name(node) for node in tensors.values() if node is not None)
    return Layer(path, f"nn.{kind}({', '.join(texts)})", names, tuple(given))


def compact(value: object) -> object:
    """Return one number for a list of equal ones, and a tuple for any other list."""
    if not isinstance(value, list | tuple):
        return value
    return value[0] if len(set(value)) == 1 else tuple(value)


def _convolution(program: Program, node: fx.Node) -> Layer | None:
    a = bound_arguments(node)
    weight, bias = a.node("weight"), a.optional_node("bias")
    shape = weight.meta["val"].shape
    groups = a.integer("groups")
    kind, settings = f"Conv{len(shape) - 2}d", {}
    channels = (shape[1] * groups, shape[0])
    if "output_padding" in a.values:
        kind, channels = f"ConvTranspose{len(shape) - 2}d", (shape[0], shape[1] * groups)
        settings = {"output_padding": (a.value("output_padding"), 0)}
    settings = {
        "stride": (a.value("stride"), 1),
        "padding": (a.value("padding"), 0),
        **settings,
        "dilation": (a.value("dilation"), 1),
        "groups": (groups, 1),
        "bias": (bias is not None, True),
    }
    given = [a.node("input")]
    return _layer(program, kind, {"weight": weight, "bias": bias}, given, (*channels, tuple(shape[2:])), settings)


def _linear(program: Program, node: fx.Node) -> Layer | None:
    a = bound_arguments(node)
    weight, bias = a.node("weight"), a.optional_node("bias")
    shape = weight.meta["val"].shape
    if len(shape) != 2:
        return None
    tensors = {"weight": weight, "bias": bias}
    return _layer(program, "Linear", tensors, [a.node("input")], shape[::-1], {"bias": (bias is not None, True)})


def _batch_norm(program: Program, node: fx.Node) -> Layer | None:
    a = bound_arguments(node)
    names = ("weight", "bias", "running_mean", "running_var")
    tensors = {name: a.optional_node(name) for name in names}
    affine = {tensors[name] is not None for name in names[:2]}
    rank = {2: 1, 3: 1, 4: 2, 5: 3}.get(a.node("input").meta["val"].dim())
    mean = tensors["running_mean"]
    if a.flag("training") or len(affine) > 1 or rank is None or mean is None or tensors["running_var"] is None:
        return None
    settings = {
        "eps": (a.number("eps"), 1e-5),
        "momentum": (a.number("momentum"), 0.1),
        "affine": (affine == {True}, True),
    }
    sizes = mean.meta["val"].shape
    return _layer(program, f"BatchNorm{rank}d", tensors, [a.node("input")], sizes, settings, names[2:])


def _layer_norm(program: Program, node: fx.Node) -> Layer | None:
    a = bound_arguments(node)
    weight, bias, shape = a.optional_node("weight"), a.optional_node("bias"), a.known_integers("normalized_shape")
    if weight is None or shape is None:
        return None
    sizes = [shape[0] if len(shape) == 1 else _Text(tuple(shape))]
    settings = {"eps": (a.number("eps"), 1e-5), "bias": (bias is not None, True)}
    return _layer(program, "LayerNorm", {"weight": weight, "bias": bias}, [a.node("input")], sizes, settings)


class _Text(str):
    """A text that is written without quotes."""

    def __new__(cls, value: object) -> _Text:
        return super().__new__(cls, repr(value))

    def __repr__(self) -> str:
        return str(self)


def _group_norm(program: Program, node: fx.Node) -> Layer | None:
    a = bound_arguments(node)
    tensors = {name: a.optional_node(name) for name in ("weight", "bias")}
    weight = tensors["weight"]
    if weight is None or tensors["bias"] is None:
        return None
    sizes, settings = (a.integer("num_groups"), weight.meta["val"].shape[0]), {"eps": (a.number("eps"), 1e-5)}
    return _layer(program, "GroupNorm", tensors, [a.node("input")], sizes, settings)


def _prelu(program: Program, node: fx.Node) -> Layer | None:
    a = bound_arguments(node)
    weight = a.node("weight")
    if weight.meta["val"].dim() != 1:
        return None
    settings: dict[str, tuple[object, object]] = {"num_parameters": (weight.meta["val"].shape[0], 1)}
    return _layer(program, "PReLU", {"weight": weight}, [a.node("self")], (), settings)


def _embedding(program: Program, node: fx.Node) -> Layer | None:
    a = bound_arguments(node)
    weight, padding = a.node("weight"), a.value("padding_idx")
    if a.flag("scale_grad_by_freq") or a.flag("sparse") or weight.meta["val"].dim() != 2:
        return None
    settings: dict[str, tuple[object, object]] = {"padding_idx": (padding, -1)}
    shape = weight.meta["val"].shape
    return _layer(program, "Embedding", {"weight": weight}, [a.node("indices")], shape, settings)


def _recurrent(kind: str, **fixed: str) -> Callable[[Program, fx.Node], Layer | None]:
    def make(program: Program, node: fx.Node) -> Layer | None:
        a = bound_arguments(node)
        layers, both, biases = a.integer("num_layers"), a.flag("bidirectional"), a.flag("has_biases")
        kinds = ["weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if biases else ())]
        ends = [f"_l{i}{way}" for i in range(layers) for way in (("", "_reverse") if both else ("",))]
        params = a.nodes("params")
        if len(params) != len(kinds) * len(ends):  # projections
            return None
        tensors = dict(zip((f"{name}{end}" for end in ends for name in kinds), params, strict=True))
        hidden = params[1].meta["val"].shape[1]
        settings: dict[str, tuple[object, object]] = {
            **{name: (value, None) for name, value in fixed.items()},
            "num_layers": (layers, 1),
            "bias": (biases, True),
            "batch_first": (a.flag("batch_first"), False),
            "dropout": (a.number("dropout"), 0.0),
            "bidirectional": (both, False),
        }
        given = (a.node("input"), list(a.nodes("hx")) if kind == "LSTM" else a.node("hx"))
        return _layer(program, kind, tensors, given, (params[0].meta["val"].shape[1], hidden), settings)

    return make


_MAKERS: dict[Any, Callable[[Program, fx.Node], Layer | None]] = {
    **dict.fromkeys(
        (
            aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.conv1d.padding, aten.conv2d.padding,
            aten.conv3d.padding, aten.conv_transpose1d.default, aten.conv_transpose2d.input,
            aten.conv_transpose3d.input,
        ),
        _convolution,
    ),
    aten.linear.default: _linear,
    aten.batch_norm.default: _batch_norm,
    aten.layer_norm.default: _layer_norm,
    aten.group_norm.default: _group_norm,
    aten.prelu.default: _prelu,
    aten.embedding.default: _embedding,
    RECURRENT["lstm"]: _recurrent("LSTM"),
    RECURRENT["gru"]: _recurrent("GRU"),
    RECURRENT["rnn_tanh"]: _recurrent("RNN"),
    RECURRENT["rnn_relu"]: _recurrent("RNN", nonlinearity="relu"),
}  # fmt: skip
