"""Turn an `ExportedProgram` into a Program."""

from __future__ import annotations

import keyword
import operator
from collections.abc import Callable, Container, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, InputKind, OutputKind
from torch.utils._pytree import GetAttrKey, MappingKey, SequenceKey, tree_flatten_with_path, tree_unflatten

from converter.capture.alias_analysis import is_assignment, overlapping_writes
from converter.capture.diagnostics import refuse_draws
from converter.capture.effect_tokens import drop_tokens
from converter.capture.functionalize import make_functional
from converter.compat.export_patches import RECURRENT, quiet
from converter.errors import CaptureError, Note
from converter.ir import custom_ops
from converter.ir.aten import ASSERTIONS, bound_arguments, canonicalize_arguments, read_item, returned
from converter.ir.program import Origin, Program, module_path, source_line, write_attribute

aten = torch.ops.aten


RESERVED = set(dir(fx.GraphModule(nn.Module(), fx.Graph())))


# Makers of tensors of undefined values, as zeros: the operator, and how many of its arguments it takes.
ZEROS: dict[Any, tuple[Any, int]] = {
    aten.empty.memory_format: (aten.zeros.default, 1),
    aten.empty_strided.default: (aten.zeros.default, 1),
    aten.empty_permuted.default: (aten.zeros.default, 1),
    aten.empty_like.default: (aten.zeros_like.default, 1),
    aten.new_empty.default: (aten.new_zeros.default, 2),
    aten.new_empty_strided.default: (aten.new_zeros.default, 2),
}
DROPOUTS = {aten.dropout.default, aten.feature_dropout.default}
ALIASES = {
    aten.concat.default: aten.cat.default,
    aten.concatenate.default: aten.cat.default,
    aten.__lshift__.Tensor: aten.bitwise_left_shift.Tensor,
    aten.__rshift__.Tensor: aten.bitwise_right_shift.Tensor,
}
# Composite operators, and others that rewrites know them by.
DECOMPOSED: dict[OpOverload, Callable[..., Any]] = {
    aten.hstack.default: lambda xs: torch.cat([x.reshape(-1) if x.dim() == 0 else x for x in xs], int(xs[0].dim() > 1)),
    aten.fliplr.default: lambda x: x.flip(1),
    aten.flipud.default: lambda x: x.flip(0),
}


def _fill_empty(graph: fx.Graph) -> None:
    """Write zeros for undefined values: all are right, but artifacts need the same each time."""
    for node in graph.nodes:
        if node.target in ZEROS:
            node.target, count = ZEROS[node.target]
            node.args = node.args[:count]
            node.kwargs = {name: value for name, value in node.kwargs.items() if name != "memory_format"}


def from_exported(exported: ExportedProgram, old_values: bool = False) -> Program:
    """Return an `ExportedProgram` as a `Program`: functional, tensors as attributes, batch norm and dropout whole.

    Args:
        old_values: assignments that read elements which they write read the old values, and a note says so.
    """
    _keep_dropouts(exported.graph_module)
    overlapping = overlapping_writes(exported.graph_module)
    _refuse_overlapping_writes([n for n in overlapping if not (old_values and is_assignment(n))])
    for node in exported.graph.nodes:
        node.target = ALIASES.get(node.target, node.target)
    if not make_functional(exported.graph_module):
        with quiet():
            exported = exported.run_decompositions(dict(DECOMPOSED))
    _name_recurrent_layers(exported.graph_module)
    _name_core_operators(exported.graph_module)
    signature = exported.graph_signature
    graph = fx.Graph()  # a new one, because torch.export names inputs without keeping others from taking the same name
    graph.output(graph.graph_copy(exported.graph, {}))
    graph_module = fx.GraphModule(nn.Module(), graph)
    drop_tokens(graph)
    _fill_empty(graph)
    tokens: list[fx.Node] = []
    inputs: list[str] = []
    origins: dict[str, Origin] = {}
    tensors = {**exported.constants, **exported.state_dict, **exported.tensor_constants}
    names_before = [node.name for node in exported.graph.find_nodes(op="placeholder")]
    for spec, node, given in zip(signature.input_specs, graph.find_nodes(op="placeholder"), names_before, strict=True):
        if spec.kind is InputKind.USER_INPUT:
            if isinstance(node.meta.get("val"), torch.Tensor):
                inputs.append(given)
            elif node.users:
                raise CaptureError(
                    f"Input `{node.name}` is not a tensor.", code="PTC2014", fix="Supply it from a wrapper module."
                )
            else:
                graph.erase_node(node)
            continue
        if spec.kind is InputKind.TOKEN:
            tokens.append(node)
            continue
        if not isinstance(tensors.get(spec.target), torch.Tensor):
            raise CaptureError(
                f"The program contains `{spec.target}`, which is not a tensor ({spec.kind.name}).",
                code="PTC2015",
                fix="Make it a tensor, or a constant of forward.",
            )
        name = _attribute_name(spec.target, origins)
        write_attribute(graph_module, name, tensors[spec.target])
        origins[name] = Origin((spec.target,))
        with graph.inserting_before(node):
            attribute = graph.get_attr(name)
        attribute.meta = dict(node.meta)
        node.replace_all_uses_with(attribute)
        graph.erase_node(node)

    output = graph.output_node()
    results = [
        node
        for spec, node in zip(signature.output_specs, returned(graph), strict=True)
        if spec.kind is OutputKind.USER_OUTPUT
    ]
    names = _output_names(exported, len(results))
    kept = [(n, r) for n, r in zip(names, results, strict=True) if _is_tensor(r)]
    output.args = (tuple(r for _, r in kept),)
    for node in tokens:
        graph.erase_node(node)
    for node in list(graph.nodes):
        if node.target in ASSERTIONS:
            graph.erase_node(node)
    frozen = frozenset(n for n, t in tensors.items() if isinstance(t, nn.Parameter) and not t.requires_grad)
    program = Program(graph_module, inputs, [n for n, _ in kept], origins, frozen=frozen)
    _keep_padded_length(program)
    if len(kept) < len(results):
        program.notes.append(Note("Outputs that are not tensors were left out.", code="PTC2505"))
    _restore_batch_norm(program)
    _free_views(program)
    program.cleanup()
    if overlapping:  # a functional graph reads the old values
        lines = ", ".join(dict.fromkeys(source_line(node) or module_path(node) for node in overlapping))
        text = (
            f"Assignments that also read what they write read the old values, by --accept aliased-shift: {lines}. "
            "PyTorch itself gives something else, which depends on the order in which it copies."
        )
        program.notes.append(Note(text, code="PTC2508"))
    _refuse_state(program, signature)
    refuse_draws(program.graph)
    canonicalize_arguments(program.graph)
    _divide_positives(program)
    program.graph_module.recompile()
    first = program.placeholders[0].meta["val"].shape if program.placeholders else ()
    if first and isinstance(first[0], int):
        program.fixed_batch = first[0]
    if program.debug:
        program.verify("Capture")
    return program


def _divide_positives(program: Program) -> None:
    """Write -h // 16 of a size as -((h + 15) // 16): ONNX divides toward zero."""
    for node in program.graph.find_nodes(op="call_function", target=operator.floordiv):
        number, divisor = node.args
        if isinstance(number, fx.Node) and number.target is operator.neg and isinstance(divisor, int) and divisor > 0:
            with program.graph.inserting_before(node):
                more = program.insert_call(operator.add, (number.args[0], divisor - 1), node)
                whole = program.insert_call(operator.floordiv, (more, divisor), node)
            node.target, node.args = operator.neg, (whole,)


def _name_recurrent_layers(graph_module: fx.GraphModule) -> None:
    """Turn recurrent layers back into PyTorch's own operators."""
    for node in graph_module.graph.find_nodes(op="call_function", target=custom_ops.recurrent._opoverload):
        kind, x, states, *rest = node.args
        node.target, node.args = RECURRENT[kind], (x, states if kind == "lstm" else states[0], *rest)
    graph_module.recompile()


def _name_core_operators(graph_module: fx.GraphModule) -> None:
    """Give a program that was decomposed to core ATen the operators that rewrites and mappings know."""
    _name_convolutions(graph_module)
    for native in (aten.native_layer_norm.default, aten.native_group_norm.default):
        for node in graph_module.graph.find_nodes(op="call_function", target=native):
            items = list(node.users)
            if not all(item.target is operator.getitem and (item.args[1] == 0 or not item.users) for item in items):
                continue
            if native is aten.native_layer_norm.default:
                node.target = aten.layer_norm.default
            else:
                x, weight, bias, _batch, _channels, _elements, groups, eps = node.args
                node.target, node.args = aten.group_norm.default, (x, groups, weight, bias, eps)
            node.meta["val"] = node.meta["val"][0]
            for item in items:
                item.replace_all_uses_with(node)
                graph_module.graph.erase_node(item)
    graph_module.recompile()


def _name_convolutions(graph_module: fx.GraphModule) -> None:
    """Name convolutions by their kind and their number of axes."""
    plain = {3: aten.conv1d.default, 4: aten.conv2d.default, 5: aten.conv3d.default}
    turned = {3: aten.conv_transpose1d.default, 4: aten.conv_transpose2d.input, 5: aten.conv_transpose3d.input}
    for node in graph_module.graph.find_nodes(op="call_function", target=aten.convolution.default):
        x, weight, bias, stride, padding, dilation, transposed, more, groups = node.args
        rank = weight.meta["val"].dim()
        if x.meta["val"].dim() == rank and rank in plain:
            node.target = turned[rank] if transposed else plain[rank]
            rest = (more, groups, dilation) if transposed else (dilation, groups)
            node.args = (x, weight, bias, stride, padding, *rest)


def _keep_padded_length(program: Program) -> None:
    """Leave sequences as long as they were padded, with a note: PyTorch cuts them at the longest one's length."""
    cuts = program.graph.find_nodes(op="call_function", target=custom_ops.as_long_as_the_longest._opoverload)
    for node in cuts:
        node.replace_all_uses_with(node.args[0])
        program.graph.erase_node(node)
    if cuts:
        text = (
            "pad_packed_sequence cuts its result at the longest sequence; the converted model does not. The results "
            "are the same if one sequence of each batch is as long as the padded input. If not, cut the padding first."
        )
        program.notes.append(Note(text, code="PTC2515"))


def _attribute_name(name: str, taken: Container[str]) -> str:
    """Return `name`, changed if it is a keyword, taken, or an attribute of every `GraphModule`, such as `graph`."""
    first, *rest = [f"{part}_" if keyword.iskeyword(part) else part for part in name.split(".")]
    if first in RESERVED:
        first += "_"
    name = ".".join((first, *rest))
    while name in taken:
        name += "_"
    return name


def _refuse_state(program: Program, signature: ExportGraphSignature) -> None:
    """Refuse a result that depends on a tensor that forward changes itself; forward may count its calls.

    Raises:
        CaptureError: the result depends on one.
    """
    read = {
        source for node in program.graph.find_nodes(op="get_attr") for source in program.origins[node.target].sources
    }
    changed = sorted(read & set(signature.buffers_to_mutate.values()))
    if changed:
        names = ", ".join(f"`{name}`" for name in changed)
        raise CaptureError(
            f"Forward changes {names} and reads the value from the previous call; a converted model does "
            "not keep state.",
            code="PTC2016",
            fix="Pass the state in as an input, or leave it unchanged in eval mode.",
        )


def _refuse_overlapping_writes(found: Sequence[fx.Node]) -> None:
    """Refuse in-place operators that read elements which they write.

    Raises:
        CaptureError: there is one.
    """
    if found:
        raise CaptureError(
            "An in-place assignment reads elements that it also writes; the result in PyTorch depends on "
            "the processor.",
            code="PTC2017",
            where=source_line(found[0]) or None,
            fix="Assign a clone, as in x[1:] = x[:-1].clone(). Or take the old values with --accept aliased-shift."
            if all(map(is_assignment, found))
            else "Assign a clone, as in x[1:] += x[:-1].clone().",
        )


def _keep_dropouts(graph_module: fx.GraphModule) -> None:
    """Keep dropouts as custom operators, since decomposition would turn them into clones.

    Raises:
        CaptureError: one drops in eval mode too.
    """
    for node in graph_module.graph.nodes:
        if node.target in DROPOUTS:
            arguments = bound_arguments(node)
            if arguments.flag("train"):
                raise CaptureError(
                    "A dropout stays active in eval mode.",
                    code="PTC2018",
                    where=source_line(node) or None,
                    fix="Call F.dropout(x, rate, training=self.training), or use nn.Dropout. Export a .pt2 "
                    "from model.eval().",
                )
            node.target, node.kwargs = custom_ops.dropout._opoverload, {}
            node.args = (arguments.node("input"), float(arguments.number("p")))
    graph_module.recompile()


def _restore_batch_norm(program: Program) -> None:
    """Restore one `batch_norm` from the `_native_batch_norm_legit...` and its first item that decomposition leaves."""
    decomposed = (aten._native_batch_norm_legit_no_training.default, aten._native_batch_norm_legit.no_stats)
    for node in [n for target in decomposed for n in program.graph.find_nodes(op="call_function", target=target)]:
        x, weight, bias, *statistics, momentum, eps = node.args
        mean, variance, training = (None, None, True) if len(statistics) == 1 else (*statistics, False)
        with program.graph.inserting_before(node):
            whole = program.insert_call(
                aten.batch_norm.default, (x, weight, bias, mean, variance, training, momentum, eps, False), node
            )
        for item in list(node.users):
            if read_item(item) == (node, 0):
                item.replace_all_uses_with(whole)


def _free_views(program: Program) -> None:
    """Replace views by reshapes: a view depends on strides, which rewrites need not keep."""
    for target in (aten.view.default, aten._unsafe_view.default):
        for node in program.graph.find_nodes(op="call_function", target=target):
            node.target = aten.reshape.default


def _is_tensor(result: Any) -> bool:
    """Return whether a result is a tensor, and not a number, such as a size that forward returns."""
    return isinstance(result, fx.Node) and isinstance(result.meta.get("val"), Tensor)


def _output_names(exported: ExportedProgram, count: int) -> list[str]:
    """Name outputs by the structure that forward returns, or number them if the graph has others."""
    spec = exported.call_spec.out_spec
    named = name_outputs(tree_unflatten(list(range(spec.num_leaves)), spec))
    return list(named if len(named) == count else name_outputs([None] * count))


def name_outputs(result: Any) -> dict[str, Any]:
    """Return what forward returned by the names that outputs have: dictionary keys, attributes, and positions."""
    names: dict[str, Any] = {}
    for path, leaf in tree_flatten_with_path(result)[0]:
        name = "_".join(str(_read_key(key)) for key in path)
        by_key = bool(path) and not isinstance(path[0], SequenceKey)
        name = (name if by_key else f"output_{name}".rstrip("_")) or "output"
        while name in names:
            name += "_"
        names[name] = leaf
    return names


def _read_key(key: Any) -> Any:
    match key:
        case SequenceKey():
            return key.idx
        case MappingKey():
            return key.key
        case GetAttrKey():
            return key.name
    return key
