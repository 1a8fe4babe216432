"""Write a lean SavedModel for inference; the same function gives the same bytes."""

from __future__ import annotations

import copy
import hashlib
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..lowering.tf_function import Saved, trace
from .runtime import graph_digest as digests
from .runtime import stamp as stamps
from .runtime.graph_ops import called_functions
from .runtime.saved_model import FROZEN, Reader, _key

if TYPE_CHECKING:
    import tensorflow as tf

_OBJECTS = "_CHECKPOINTABLE_OBJECT_GRAPH"
_GRAPH, _VARIABLES, _FOLDERS = "saved_model.pb", "variables/variables", ("assets", "variables")


def save(traced: Any, variables: Mapping[str, tf.Variable], path: Path, stamp: Mapping[str, Any]) -> Saved:
    """Write a SavedModel folder with one signature, `serving_default`.

    Args:
        variables: all that the function reads, by their names in the checkpoint.
        path: the folder; it need not exist.

    Returns:
        The data that `save_again` needs to write the same graph with other values in the variables.
    """
    import tensorflow as tf

    module = tf.Module()
    module.weights = dict(variables)
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    tf.saved_model.save(module, str(path), signatures={"serving_default": traced}, options=options)
    _settle(path)
    digest = digests.tensorflow_digest(traced, variables)
    _stamp(path, digests.stamped(stamp, digest))
    objects = tf.train.load_checkpoint(str(path / _VARIABLES)).get_tensor(_OBJECTS)
    return Saved((path / _GRAPH).read_bytes(), objects, digest)


def freeze(traced: Any, variables: Mapping[str, tf.Variable], signature: Sequence[tf.TensorSpec]) -> Any:
    """Return a concrete function that computes the same, with each variable as a constant under its name.

    Args:
        signature: the one that `traced` was traced with.
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    handles = {id(variable.handle): name for name, variable in variables.items()}
    captures = traced.graph.captures
    names = {arg.op.name: FROZEN + handles[id(held)] for held, arg in captures if id(held) in handles}
    frozen = convert_variables_to_constants_v2(traced, lower_control_flow=False)
    graph = frozen.graph.as_graph_def()
    given = {spec.name for spec in signature}
    kept = [node for node in graph.node if node.name not in given]
    for node in kept:
        node.name = names.get(node.name, node.name)
        node.input[:] = [_rename(reference, names) for reference in node.input]
    kept.sort(key=lambda node: node.name)  # they come in any order
    bare = tf.compat.v1.GraphDef(node=kept, library=graph.library, versions=graph.versions)
    results = dict(zip(sorted(traced.structured_outputs), (tensor.name for tensor in frozen.outputs), strict=True))

    def function(*tensors: tf.Tensor) -> dict[str, tf.Tensor]:
        inputs = {spec.name: tensor for spec, tensor in zip(signature, tensors, strict=True)}
        made = tf.graph_util.import_graph_def(bare, inputs, list(results.values()), name="")
        return dict(zip(results, made, strict=True))

    return trace(function, signature)


def save_again(saved: Saved, variables: Mapping[str, tf.Variable], path: Path, stamp: Mapping[str, Any]) -> None:
    """Write what `save` would write, without building the graph again.

    Args:
        variables: the variables given to `save`; their values may have changed.
    """
    import tensorflow as tf

    path.mkdir(exist_ok=True)
    held = {name: variable.value() for name, variable in variables.items()}
    _write_parts(path, saved.graph, tf.constant(saved.objects), held)
    _stamp(path, digests.stamped(stamp, saved.digest))


def write_again(source: Path, path: Path, arrays: Mapping[str, Any], stamp: Mapping[str, Any]) -> None:
    """Write a SavedModel that `save` wrote with other values in all variables, and another stamp."""
    import tensorflow as tf

    objects = tf.train.load_checkpoint(str(source / _VARIABLES)).get_tensor(_OBJECTS)
    path.mkdir()
    _write_parts(path, (source / _GRAPH).read_bytes(), tf.constant(objects), arrays)
    _stamp(path, stamp)


def write_frozen_again(source: Path, path: Path, arrays: Mapping[str, Any], stamp: Mapping[str, Any]) -> None:
    """Write a SavedModel of a function of `freeze` with other values in its constants, and another stamp."""
    import tensorflow as tf

    saved, constants = _frozen_parts(source)
    for node in constants:
        node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(arrays[node.name.removeprefix(FROZEN)]))
    shutil.copytree(source, path, ignore=shutil.ignore_patterns(_GRAPH, Path(stamps.SAVED_MODEL_FILE).parts[0]))
    (path / _GRAPH).write_bytes(saved.SerializeToString(deterministic=True))
    written = Reader()
    written.open(path, trusted=True)
    _stamp(path, digests.stamped(stamp, written.graph_digest()))


def digest_without_weights(path: Path) -> str:
    """Return the digest of the graph of a function of `freeze`, whatever its constants for variables hold."""
    saved, constants = _frozen_parts(path)
    for node in constants:
        node.attr.pop("value")
    return hashlib.sha256(saved.SerializeToString(deterministic=True)).hexdigest()


def _frozen_parts(path: Path) -> tuple[Any, list[Any]]:
    """Return the graph's file, and its nodes that are constants for variables."""
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel.FromString((path / _GRAPH).read_bytes())
    graph = saved.meta_graphs[0].graph_def
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    return saved, [node for node in nodes if node.op == "Const" and node.name.startswith(FROZEN)]


def _write_parts(path: Path, graph: bytes, objects: Any, variables: Mapping[str, Any]) -> None:
    import tensorflow as tf

    for folder in _FOLDERS:
        (path / folder).mkdir()
    (path / _GRAPH).write_bytes(graph)
    keys = [*map(_key, variables), _OBJECTS]
    tf.raw_ops.SaveV2(
        prefix=str(path / _VARIABLES),
        tensor_names=keys,
        shape_and_slices=[""] * len(keys),
        tensors=[*variables.values(), objects],
    )


def _stamp(path: Path, stamp: Mapping[str, Any]) -> None:
    file = path / stamps.SAVED_MODEL_FILE
    file.parent.mkdir()
    file.write_text(stamps.stamp_text(stamp), encoding="utf-8")


def _settle(path: Path) -> None:
    """Remove what differs between two runs.

    That is the numbers that TensorFlow counts up per process, and the fingerprint, which holds a random number and is
    optional.
    """
    from tensorflow.core.protobuf import saved_model_pb2

    file = path / _GRAPH
    saved = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    for meta_graph in saved.meta_graphs:
        _rename_functions(meta_graph)
        for function in meta_graph.graph_def.library.function:
            _rename_captures(function)
    file.write_bytes(saved.SerializeToString(deterministic=True))
    (path / "fingerprint.pb").unlink(missing_ok=True)


def _rename_functions(meta_graph: Any) -> None:
    """Renumber the functions in the order of their first call, and leave gradients to the operators inside."""
    graph = meta_graph.graph_def
    library = {function.signature.name: copy.deepcopy(function) for function in graph.library.function}
    names: dict[str, str] = {}

    def name_function(name: str) -> None:
        if name in library and name not in names:
            names[name] = re.sub(r"_\d+$", "", name) + f"_{len(names)}"
            name_functions_called_by(library[name].node_def)

    def name_functions_called_by(nodes: Iterable[Any]) -> None:
        for node in nodes:
            for name in [node.op, *called_functions(node)]:
                name_function(name)

    name_functions_called_by(graph.node)
    for name in library:
        name_function(name)

    graph.library.ClearField("function")
    graph.library.function.extend(library[name] for name in names)
    for function in graph.library.function:
        function.signature.name = names[function.signature.name]
    for nodes in [graph.node, *(function.node_def for function in graph.library.function)]:
        for node in nodes:
            node.op = names.get(node.op, node.op)
            for value in node.attr.values():
                for called in [value.func] if value.WhichOneof("value") == "func" else value.list.func:
                    called.name = names.get(called.name, called.name)
            # Counted up per process; without it the gradient is that of the operators inside.
            node.attr.pop("_gradient_op_type", None)
    objects = meta_graph.object_graph_def
    signatures = {name: copy.deepcopy(function) for name, function in objects.concrete_functions.items()}
    objects.ClearField("concrete_functions")
    for name, function in signatures.items():
        objects.concrete_functions[names[name]].CopyFrom(function)
    for node in objects.nodes:
        if node.WhichOneof("kind") == "bare_concrete_function":
            signature = node.bare_concrete_function
            signature.concrete_function_name = names[signature.concrete_function_name]


def _rename_captures(function: Any) -> None:
    """Name arguments by position if TensorFlow names them by a number of the process; they are passed by position."""
    names = {}
    for index, argument in enumerate(function.signature.input_arg):
        attributes = function.arg_attr[index].attr if index in function.arg_attr else {}
        if "_user_specified_name" in attributes and attributes["_user_specified_name"].s.isdigit():
            attributes.pop("_user_specified_name")
        elif "___redundant_placeholder" not in argument.name:
            continue
        names[argument.name] = argument.name = f"captured_{index}"

    for node in function.node_def:
        node.input[:] = [_rename(reference, names) for reference in node.input]
    for result, reference in function.ret.items():
        function.ret[result] = _rename(reference, names)


def _rename(reference: str, names: Mapping[str, str]) -> str:
    """Rename a reference of the form `name`, `name:0` or `^name`."""
    name = reference.removeprefix("^").partition(":")[0]
    return reference.replace(name, names[name], 1) if name in names else reference
