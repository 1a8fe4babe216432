"""Count the operators of a traced TensorFlow graph."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

# They hold or name a value, or call a function whose nodes are counted instead: no work on a tensor.
BOOKKEEPING = frozenset(
    {"Const", "Identity", "IdentityN", "NoOp", "Placeholder", "ReadVariableOp", "VarHandleOp"}
    | {"PartitionedCall", "StatefulPartitionedCall"}
)

HANDLES = frozenset({"resource", "variant"})  # of captured variables, among a graph's inputs
HANDLE_TYPES = frozenset({20, 21})  # the same as numbers, types.proto: DT_RESOURCE, DT_VARIANT


def count_operators(graph: Any) -> dict[str, int]:
    """Count each operator type between the inputs and outputs of a `FuncGraph`, most frequent first.

    Operators that only prepare a weight (a reshaped bias) are not counted: they do not work on an activation. The nodes
    of a function count once per call, those of a loop body once. `BOOKKEEPING` is left out.
    """
    definition = graph.as_graph_def()
    functions = {function.signature.name: function for function in definition.library.function}
    counted: dict[str, Counter[str]] = {}

    def count_function(name: str) -> Counter[str]:
        if name not in counted:
            function = functions[name]
            arguments = [a.name for a in function.signature.input_arg if a.type not in HANDLE_TYPES]
            results = [*function.ret.values(), *function.control_ret.values()]
            counted[name] = count(function.node_def, results, arguments)
        return counted[name]

    def count(nodes: Iterable[Any], results: Iterable[str], inputs: Iterable[str]) -> Counter[str]:
        total: Counter[str] = Counter()
        for node in behind(_reached(nodes, results), inputs):
            if node.op in functions:
                total += count_function(node.op)
            elif node.op not in BOOKKEEPING:
                total[node.op] += 1
            for name in called_functions(node):
                if name in functions:
                    total += count_function(name)
        return total

    given = [tensor.op.name for tensor in graph.inputs if tensor.dtype.name not in HANDLES]
    total = count(definition.node, [tensor.op.name for tensor in graph.outputs], given)
    return dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))


def called_functions(node: Any) -> list[str]:
    """Return the functions named in a NodeDef's attributes, in the order of the attributes' names."""
    names = []
    for _, value in sorted(node.attr.items()):
        match value.WhichOneof("value"):
            case "func":
                names.append(value.func.name)
            case "list":
                names.extend(function.name for function in value.list.func)
    return names


def find_xla(graph: Any) -> list[str]:
    """Return functions and nodes of a `FuncGraph` that XLA compiles, or that are XLA's own operators."""
    definition = graph.as_graph_def()
    found = {node.name for node in definition.node if _is_xla(node.op, node.attr)}
    for function in definition.library.function:
        if _is_xla("", function.attr):
            found.add(function.signature.name)
        found |= {f"{function.signature.name}/{node.name}" for node in function.node_def if _is_xla(node.op, node.attr)}
    return sorted(found)


def _is_xla(operator: str, attributes: Mapping[str, Any]) -> bool:
    compiled = any(attributes[key].b for key in ("_XlaMustCompile", "jit_compile") if key in attributes)
    return compiled or operator.startswith("Xla")


def _reached(nodes: Iterable[Any], results: Iterable[str]) -> list[Any]:
    by_name = {node.name: node for node in nodes}
    pending, reached = list(results), {}
    while pending:
        name = _name(pending.pop())
        if name in by_name and name not in reached:
            reached[name] = by_name[name]
            pending.extend(by_name[name].input)
    return list(reached.values())


def behind(nodes: Iterable[Any], inputs: Iterable[str]) -> list[Any]:
    """Return the nodes that depend on one of `inputs`."""
    nodes, found, pending = list(nodes), set(inputs), list(inputs)
    readers: dict[str, list[str]] = {}
    for node in nodes:
        for reference in node.input:
            readers.setdefault(_name(reference), []).append(node.name)
    while pending:
        fresh = [name for name in readers.pop(pending.pop(), ()) if name not in found]
        found.update(fresh)
        pending += fresh
    return [node for node in nodes if node.name in found]


def _name(reference: str) -> str:
    return reference.removeprefix("^").partition(":")[0]
