"""Faults of ONNX files and SavedModels: their graphs' attributes, constants, operators and operands."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mutations.artifact_faults import Edit, Spoil, _faulty

ONNX_WORDS = {
    b"none": b"tanh", b"tanh": b"none", b"half_pixel": b"asymmetric", b"pytorch_half_pixel": b"align_corners",
    b"align_corners": b"half_pixel", b"asymmetric": b"half_pixel", b"floor": b"round_prefer_ceil", b"DCR": b"CRD",
    b"CRD": b"DCR", b"linear": b"nearest", b"cubic": b"linear", b"nearest": b"linear", b"forward": b"reverse",
    b"reflect": b"edge", b"constant": b"edge",
}  # fmt: skip
ONNX_OPERATORS = {
    "Relu": "Elu", "Sigmoid": "HardSigmoid", "Tanh": "Erf", "Erf": "Tanh", "Elu": "Selu", "Selu": "Elu",
    "Floor": "Ceil", "HardSwish": "Mish", "HardSigmoid": "Sigmoid", "Softplus": "Relu", "Add": "Sub", "Sub": "Add",
    "Mul": "Add", "MaxPool": "AveragePool", "ReduceMean": "ReduceMax", "ReduceMax": "ReduceMean", "ArgMax": "ArgMin",
    "Softmax": "LogSoftmax", "LogSoftmax": "Softmax", "SpaceToDepth": "", "Clip": "Identity",
}  # fmt: skip
TF_OPERATORS = {
    "Relu": "Elu", "Sigmoid": "Tanh", "Tanh": "Sigmoid", "Erf": "Tanh", "Elu": "Selu", "Selu": "Elu", "Relu6": "Relu",
    "Floor": "Ceil", "Softplus": "Relu", "Sub": "AddV2", "Mean": "Max", "ArgMax": "ArgMin", "Minimum": "Maximum",
    "Maximum": "Minimum", "FloorDiv": "RealDiv", "FloorMod": "TruncateMod", "Sqrt": "Abs", "Rsqrt": "Reciprocal",
    "AddV2": "Sub", "Mul": "AddV2", "SpaceToDepth": "", "Softmax": "LogSoftmax",
}  # fmt: skip
ORDERED = {"Sub", "Div", "RealDiv", "Concat", "Gather", "MatMul", "Pow", "BatchMatMulV2", "Mod"}


def onnx_edits(path: Path) -> Iterator[Edit]:
    import onnx

    model = onnx.load(str(path))
    for number, node in enumerate(model.graph.node):
        kind, site = node.op_type, node.name or str(number)
        if ONNX_OPERATORS.get(kind):
            other = ONNX_OPERATORS[kind]
            yield Edit(f"{other} for {kind}", site, _in_onnx(number, lambda n, o=other: _renamed(n, o)))
        if kind in ORDERED and len(node.input) >= 2 and node.input[0] != node.input[1]:
            yield Edit(f"{kind} operands swapped", site, _in_onnx(number, _swap_inputs))
        if kind in ("Conv", "Gemm", "ConvTranspose") and len(node.input) == 3:
            yield Edit("bias dropped", site, _in_onnx(number, lambda n: n.input.pop()))
        for position, attribute in enumerate(node.attribute):
            for text, change in _onnx_attribute(attribute):
                place = f"{site} {attribute.name} {text}"
                yield Edit(f"{kind} {attribute.name}", place, _in_onnx(number, lambda n, p=position, c=change: c(n, p)))
    shapes = [[d.dim_value or d.dim_param for d in o.type.tensor_type.shape.dim] for o in model.graph.output]
    if len(shapes) > 1 and shapes[0] == shapes[1]:
        yield Edit("outputs swapped", "", _swap_onnx_outputs)


def _onnx_attribute(attribute: Any) -> Iterator[tuple[str, Callable[[Any, int], None]]]:
    import onnx

    match attribute.type:
        case onnx.AttributeProto.FLOAT:
            faulty = _faulty(float(attribute.f))[0]
            yield f"{attribute.f:g} -> {faulty:g}", lambda n, p: setattr(n.attribute[p], "f", faulty)
        case onnx.AttributeProto.INT if attribute.name not in ("to", "allowzero", "training_mode"):
            value = _faulty(bool(attribute.i) if attribute.i in (0, 1) else attribute.i)[0]
            yield f"{attribute.i} -> {value}", lambda n, p: setattr(n.attribute[p], "i", int(value))
        case onnx.AttributeProto.STRING if attribute.s in ONNX_WORDS:
            word = ONNX_WORDS[attribute.s]
            yield f"{attribute.s!r} -> {word!r}", lambda n, p: setattr(n.attribute[p], "s", word)
        case onnx.AttributeProto.INTS if len(set(attribute.ints)) > 1:
            turned = [*attribute.ints[1:], attribute.ints[0]]
            yield f"{list(attribute.ints)} -> {turned}", lambda n, p: _set_ints(n.attribute[p], turned)


def _set_ints(attribute: Any, values: list[int]) -> None:
    attribute.ints[:] = values


def _renamed(node: Any, operator: str) -> None:
    node.op_type = operator
    kept = {
        "AveragePool": ("kernel_shape", "strides", "pads", "ceil_mode"),
        "MaxPool": ("kernel_shape", "strides", "pads"),
    }
    held = [a for a in node.attribute if a.name in kept.get(operator, ("axis", "axes", "keepdims"))]
    del node.attribute[:]
    if operator in ("AveragePool", "ReduceMax", "ReduceMean", "ArgMin", "Softmax", "LogSoftmax"):
        node.attribute.extend(held)
    if operator == "Identity":
        del node.input[1:]


def _swap_inputs(node: Any) -> None:
    node.input[0], node.input[1] = node.input[1], node.input[0]


def _in_onnx(number: int, change: Callable[[Any], Any]) -> Spoil:
    def spoil(path: Path) -> None:
        import onnx

        model = onnx.load(str(path))
        change(model.graph.node[number])
        onnx.save(model, str(path))

    return spoil


def _swap_onnx_outputs(path: Path) -> None:
    import onnx

    model = onnx.load(str(path))
    first, second = (output.name for output in model.graph.output[:2])
    turned = {first: second, second: first}
    for node in model.graph.node:
        node.output[:] = [turned.get(name, name) for name in node.output]
        node.input[:] = [turned.get(name, name) for name in node.input]
    onnx.save(model, str(path))


def write_initializers(path: Path, changed: Mapping[str, np.ndarray]) -> None:
    import onnx

    model = onnx.load(str(path))
    for tensor in model.graph.initializer:
        if tensor.name in changed:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(changed[tensor.name]), tensor.name))
    onnx.save(model, str(path))


# -- SavedModels


def saved_model_edits(path: Path) -> Iterator[Edit]:
    for function, number, node in _nodes(_read(path)):
        place, kind = (function, number), node.op
        site = f"{function}/{node.name}"
        if TF_OPERATORS.get(kind):
            other = TF_OPERATORS[kind]
            yield Edit(f"{other} for {kind}", site, _in_graph(place, lambda n, o=other: setattr(n, "op", o)))
        if kind in ORDERED and node.input[0] != node.input[1]:
            yield Edit(f"{kind} operands swapped", site, _in_graph(place, _swap_inputs))
        if kind == "ConcatV2":
            yield Edit("joined in another order", site, _in_graph(place, _swap_inputs))
        for name in ("epsilon", "alpha"):
            if name in node.attr:
                faulty = _faulty(float(node.attr[name].f))[0]
                yield Edit(
                    f"{kind} {name}", site, _in_graph(place, lambda n, a=name, f=faulty: setattr(n.attr[a], "f", f))
                )
        if kind == "Const":
            yield from _constant_edits(node, site, place)


def _constant_edits(node: Any, site: str, place: tuple[int, int]) -> Iterator[Edit]:
    import tensorflow as tf

    value = tf.make_ndarray(node.attr["value"].tensor)
    if value.dtype == np.float32 and value.size and np.isfinite(value).all():
        wrong = np.where(value == 0, np.float32(0.5), value * np.float32(1.01)).astype(np.float32)
        yield Edit("constant off by a hundredth", site, _in_graph(place, lambda n: _set_constant(n, wrong)))
        half = value.astype(np.float16).astype(np.float32)
        if not np.array_equal(half, value):
            yield Edit("constant through float16", site, _in_graph(place, lambda n: _set_constant(n, half)))
    elif value.dtype == np.int32 and value.ndim == 1 and len(set(value.tolist())) > 1:
        turned = np.roll(value, 1)
        yield Edit(
            "integers of a shape, axes or widths turned", site, _in_graph(place, lambda n: _set_constant(n, turned))
        )


def _set_constant(node: Any, value: np.ndarray) -> None:
    import tensorflow as tf

    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))


def _read(path: Path) -> Any:
    from tensorflow.core.protobuf import saved_model_pb2

    return saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())


def _nodes(saved: Any) -> Iterator[tuple[int, int, Any]]:
    for number, function in enumerate(saved.meta_graphs[0].graph_def.library.function):
        if "traced_save" in function.signature.name or "traced_restore" in function.signature.name:
            continue
        for position, node in enumerate(function.node_def):
            yield number, position, node


def _in_graph(place: tuple[int, int], change: Callable[[Any], Any]) -> Spoil:
    def spoil(path: Path) -> None:
        saved = _read(path)
        change(saved.meta_graphs[0].graph_def.library.function[place[0]].node_def[place[1]])
        (path / "saved_model.pb").write_bytes(saved.SerializeToString())

    return spoil


def write_variables(path: Path, changed: Mapping[str, np.ndarray]) -> None:
    """By the names that the runner gives them."""
    import tensorflow as tf

    from converter.artifacts.runtime.saved_model import _variable_name

    prefix = str(path / "variables" / "variables")
    reader = tf.train.load_checkpoint(prefix)
    keys = sorted(reader.get_variable_to_shape_map())
    tensors = [changed.get(_variable_name(key), reader.get_tensor(key)) for key in keys]
    del reader
    tf.raw_ops.SaveV2(
        prefix=prefix, tensor_names=keys, shape_and_slices=[""] * len(keys),
        tensors=[tf.constant(t) for t in tensors],
    )  # fmt: skip
    for part in (path / "variables").glob("variables.data-*"):
        part.chmod(0o644)
