"""A digest of an artifact's graph without its weights: operators, attributes, constants.

It is computed in memory before anything is written, stored in the stamp, and computed again from the artifact opened
from disk. A lost or changed attribute or constant shows, however little it changes the outputs.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .graph_ops import BOOKKEEPING
from .tf_wiring import output_digests

KEY = "graph_sha256"
SMALL = 16  # elements; larger constants of ONNX and LiteRT files are weights, which are compared one by one
_NO_FUNCTION = frozenset({"shared_name", "container", "config", "config_proto", "executor_type"})


def stamped(stamp: Mapping[str, Any], digest: str) -> dict[str, Any]:
    return {**stamp, KEY: digest}


def config_digest(config: Any) -> str:
    """Return the digest of a Keras model's canonical config, without the ids of shared objects that saving adds."""
    return hashlib.sha256(json.dumps(_without_ids(config), sort_keys=True).encode()).hexdigest()


def _without_ids(config: Any) -> Any:
    if isinstance(config, dict):
        return {key: _without_ids(part) for key, part in config.items() if key != "shared_object_id"}
    return [_without_ids(part) for part in config] if isinstance(config, list) else config


def tensorflow_digest(function: Any, variables: Mapping[str, Any]) -> str:
    """Return the digest of a `ConcreteFunction` and what it calls, independent of function and node names.

    It covers every node, also one that no output needs, and how the outputs are computed from inputs and variables.

    Args:
        variables: by their names in the checkpoint.
    """
    definition = function.graph.as_graph_def()
    nodes = [*definition.node, *(node for function in definition.library.function for node in function.node_def)]
    functions = {function.signature.name for function in definition.library.function}
    kept = [n for n in nodes if n.op == "Const" or (n.op not in BOOKKEEPING and n.op not in functions)]
    names = {id(variable.handle): name for name, variable in variables.items() if hasattr(variable, "handle")}
    return _digest([*sorted(map(_tensorflow_node, kept)), *output_digests(function, names, _tensorflow_node)])


def _tensorflow_node(node: Any) -> bytes:
    parts = [node.op.encode()]
    for name, value in sorted(node.attr.items()):
        kind = value.WhichOneof("value")
        if not name.startswith("_") and name not in _NO_FUNCTION and kind != "func" and not value.list.func:
            parts += [name.encode(), value.SerializeToString(deterministic=True)]
    return b"\0".join(parts)


def onnx_digest(nodes: Iterable[Any], initializers: Iterable[tuple[str, Callable[[], Any]]]) -> str:
    """Return the digest of NodeProtos and of initializers that are not weights: small, integer, or one number only.

    Args:
        initializers: names, each with a function that reads the array. They are read one at a time.
    """
    parts = []
    for node in nodes:
        bare = type(node)()
        bare.CopyFrom(node)
        bare.ClearField("metadata_props")
        bare.ClearField("doc_string")
        attributes = sorted(bare.attribute, key=lambda attribute: attribute.name)
        del bare.attribute[:]
        bare.attribute.extend(attributes)
        parts.append(bare.SerializeToString(deterministic=True))
    for name, read in sorted(initializers, key=lambda pair: pair[0]):
        array = read()
        if not is_weight(array):
            parts.append(f"{name} {array.dtype} {array.shape} ".encode() + array.tobytes())
    return _digest(parts)


def is_weight(array: Any) -> bool:
    """Return whether an array of an artifact is a weight, compared on its own: floats, many, and not all the same."""
    return array.size > SMALL and array.dtype.kind == "f" and not (array == array.flat[0]).all()


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()
