"""Run in a process of its own: opens artifacts with the tools a user has, without `converter`, and says what they do.

    python -P reopened.py CASE.json

CASE: {"arrays": {ROUND: FILE.npz}, "to": FILE.npz, "artifacts": {FORMAT: path}}. Each array is fed, in PyTorch's layout
or channels last, as the input of that name; results are written as FORMAT/ROUND/OUTPUT. Facts of the graphs go to
standard output as JSON.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

for ours in ("converter", "mappings", "cli"):
    sys.modules[ours] = None  # type: ignore[assignment]  # whoever imports one of them gets an ImportError

import numpy as np  # noqa: E402

Arrays = dict[str, np.ndarray]
Opened = tuple[Callable[[Arrays], Arrays], dict]


def tensorflow_facts(concrete) -> dict:
    """Operators of the whole graph, and those before its first convolution."""
    graph = concrete.graph.as_graph_def()
    called = [node for function in graph.library.function for node in function.node_def]
    nodes = [*graph.node, *called]
    found = [node.op for node in nodes]
    before = {}
    for group in (graph.node, *(function.node_def for function in graph.library.function)):
        by_name = {node.name: node for node in group}
        first = next((node for node in group if node.op in ("Conv2D", "DepthwiseConv2dNative")), None)
        if first is not None:
            before = upstream(first, by_name)
    compiled = [f.signature.name for f in graph.library.function if f.attr["_XlaMustCompile"].b]
    compiled += [node.name for node in nodes if node.attr["_XlaMustCompile"].b]
    return {"operators": found, "stem": before, "xla": compiled}


def upstream(node, by_name) -> list[str]:
    """The operators that a node's data went through: its first inputs, up to the graph's own."""
    found = []
    while node.input and (name := node.input[0].lstrip("^").split(":")[0]) in by_name:
        node = by_name[name]
        found.append(node.op)
    return found


def fed(arrays: Arrays, name: str, shape: list) -> np.ndarray:
    """The array of that name; channels last where only so it fits."""
    array = arrays[name]
    fits = all(want in (None, -1, size) or isinstance(want, str) for want, size in zip(shape, array.shape, strict=True))
    return array if fits else np.moveaxis(array, 1, -1)


def open_tf(path: str) -> Opened:
    import tensorflow as tf

    signature = tf.saved_model.load(path).signatures["serving_default"]
    shapes = {name: spec.shape.as_list() for name, spec in signature.structured_input_signature[1].items()}

    def run(arrays: Arrays) -> Arrays:
        inputs = {name: tf.constant(fed(arrays, name, shape)) for name, shape in shapes.items()}
        return {name: value.numpy() for name, value in signature(**inputs).items()}

    return run, tensorflow_facts(signature) | {"inputs": shapes}


def open_keras(path: str) -> Opened:
    import keras
    import tensorflow as tf

    model = keras.saving.load_model(path)
    specs = [tf.TensorSpec(x.shape, x.dtype) for x in model.inputs]
    facts = tensorflow_facts(tf.function(model).get_concrete_function(specs if len(specs) > 1 else specs[0])) | {
        "inputs": {x.name: list(x.shape) for x in model.inputs},
        "layers": [layer.name for layer in model.layers],
        "trainable": sum(int(np.prod(v.shape)) for v in model.trainable_variables),
        "classes": sorted({type(layer).__module__ for layer in model.layers}),
    }

    def run(arrays: Arrays) -> Arrays:
        inputs = [fed(arrays, x.name, list(x.shape)) for x in model.inputs]
        results = tf.nest.flatten(model(inputs if len(inputs) > 1 else inputs[0]))
        return {name: np.asarray(value) for name, value in zip(model.output_names, results, strict=True)}

    return run, facts


def open_onnx(path: str) -> Opened:
    import onnx
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [x.name for x in session.get_outputs()]
    model = onnx.load(path)
    produced = {name: node for node in model.graph.node for name in node.output}
    node, before = next(node for node in model.graph.node if node.op_type == "Conv"), []
    while node.input[0] in produced:
        node = produced[node.input[0]]
        before.append(node.op_type)
    facts = {
        "operators": [node.op_type for node in model.graph.node],
        "stem": before,
        "inputs": {x.name: x.shape for x in session.get_inputs()},
    }

    def run(arrays: Arrays) -> Arrays:
        inputs = {x.name: arrays[x.name] for x in session.get_inputs()}
        return dict(zip(names, session.run(names, inputs), strict=True))

    return run, facts


def main(case: dict) -> None:
    results, facts = {}, {}
    for format, path in case["artifacts"].items():
        run, facts[format] = {"tf": open_tf, "keras": open_keras, "onnx": open_onnx}[format](path)
        for number, file in case["arrays"].items():
            with np.load(file) as archive:
                given = run(dict(archive))
            results.update({f"{format}/{number}/{name}": value for name, value in given.items()})
    np.savez(case["to"], **results)
    print(json.dumps(facts))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
