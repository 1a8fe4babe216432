"""Write the `.onnx` file with PyTorch's exporter and check it; the same program gives the same bytes."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import itertools
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch._ops import OpOverload

from converter.capture.dynamic_shapes import Range
from converter.compat import patches
from converter.errors import ConversionError, UnsupportedOperatorsError
from converter.ir.aten import bound_arguments
from converter.ir.program import Program, module_path, operator_rows
from converter.plan.registry import Registry

from ..artifacts.folded_constants import EXPORTED_AS, FoldedConstants, recorded
from .onnx_translations import _translations
from .runtime import graph_digest as digests
from .runtime import onnx_file
from .runtime import stamp as stamps

aten = torch.ops.aten


if TYPE_CHECKING:
    import torch

LARGEST = 3 << 29  # bytes of weights in the file itself, as in PyTorch's exporter: protobuf's limit is 2 GiB
# The exporter's note that says where in the model a node comes from. Its other notes are longer than the graph and
# hold paths of the machine.
_KEPT_NOTE = "namespace"
# Namespaces for which PyTorch's exporter, or this project, has translations.
TRANSLATED = ("aten", "prims", "converter", "torchvision")


def export(
    module: torch.nn.Module,
    inputs: Sequence[torch.Tensor],
    input_names: Sequence[str],
    output_names: Sequence[str],
    dynamic_shapes: Any,
    opset: int | None = None,
    translations: Mapping[OpOverload, Callable] | None = None,
    limits: Mapping[str, Mapping[int, Range]] | None = None,
) -> Exported:
    """Trace `module` on `inputs` and return it as an ONNX graph.

    Args:
        module: in evaluation mode, such as `ExportedProgram.module()`.
        dynamic_shapes: as for `torch.export.export`; a `Dim("batch")` is a dimension named batch in the file.
        opset: ONNX opset; the exporter's default if None.
        translations: of operators, besides our own (`Registry.having("translation")`).
        limits: of inputs' dynamic sizes, by dimension, outside of which the graph refuses to run.

    Raises ConversionError for operators that the exporter cannot translate.
    """
    import torch
    from onnx_ir.passes import common

    from ..errors import ConversionError

    folded = FoldedConstants()
    try:
        with _silence(), _own_rules(), _names_kept([*input_names, *output_names]), recorded(folded):
            program = torch.onnx.export(
                module,
                tuple(inputs),
                dynamo=True,
                verbose=False,
                input_names=list(input_names),
                output_names=list(output_names),
                dynamic_shapes=dynamic_shapes,
                opset_version=opset,
                custom_translation_table=_translations() | dict(translations or {}),
                optimize=True,
            )
            assert program is not None  # it is None only for the exporter before dynamo
            common.NameFixPass()(program.model)  # it gives inputs and outputs their names without looking at others
    except torch.onnx.OnnxExporterError as error:
        raise ConversionError(
            f"PyTorch's ONNX exporter cannot translate this model: {_cause(error)}",
            code="PTC4003",
            fix="Leave out --to onnx, or try another --opset.",
        ) from error
    written = program.model.opset_imports[""]
    if opset is not None and written != opset:
        raise ConversionError(
            f"PyTorch's ONNX exporter wrote opset {written}, not {opset}.",
            code="PTC4004",
            fix="Ask for another --opset, or leave the option out.",
        )
    _strip_notes(program.model)
    for value in program.model.graph.inputs:
        if held := (limits or {}).get(value.name or ""):
            _refuse_sizes(program.model.graph, value, held)
    return Exported(program, folded)


def _refuse_sizes(graph: Any, value: Any, limits: Mapping[int, Range]) -> None:
    """Insert a Reshape behind an input that fails if a size is outside its limits.

    Its shape has a 0, which keeps a size, or else one more than the input's size, which no runtime can give.
    """
    import onnx_ir as ir

    taken = {each.name for node in graph.all_nodes() for each in node.outputs} | set(graph.initializers)
    names = (name for name in (f"{value.name}_limits_{number}" for number in itertools.count()) if name not in taken)
    nodes: list[Any] = []

    def add(operator: str, *inputs: Any, **attributes: Any) -> Any:
        nodes.append(ir.node(operator, inputs, attributes, name=f"node_{next(names)}"))
        nodes[-1].outputs[0].name = next(names)
        return nodes[-1].outputs[0]

    def ints(*numbers: int) -> Any:
        return add("Constant", value_ints=list(numbers))

    shape = None
    for dim, held in limits.items():
        size = add("Shape", value, start=dim, end=dim + 1)
        outside = [add("Less", size, ints(held.least))] if held.least else []
        outside += [add("Greater", size, ints(held.most))] if held.most is not None else []
        if held.factor > 1:
            outside.append(add("Cast", add("Mod", size, ints(held.factor)), to=ir.DataType.BOOL))
        any_outside = outside[0]
        for one in outside[1:]:
            any_outside = add("Or", any_outside, one)
        larger = add("Mul", add("Cast", any_outside, to=ir.DataType.INT64), add("Add", size, ints(1)))
        wanted = add("Mul", larger, ints(*(int(axis == dim) for axis in range(len(value.shape)))))
        shape = wanted if shape is None else add("Add", shape, wanted)
    inside = add("Reshape", value, shape)
    inside.shape, inside.type = value.shape, value.type
    for user, position in tuple(value.uses()):
        if user not in nodes:
            user.replace_input_with(position, inside)
    graph.insert_before(graph[0], nodes)


@dataclass(frozen=True)
class Exported:
    """An ONNX graph in memory."""

    _program: torch.onnx.ONNXProgram
    folded: FoldedConstants

    def initializers(self) -> dict[str, np.ndarray]:
        held = self._program.model.graph.initializers
        return {name: value.const_value.numpy() for name, value in held.items() if value.const_value is not None}

    def reload_weights(self, arrays: Mapping[str, Any]) -> None:
        """Replace the values of initializers, keeping their shapes and types."""
        import onnx_ir

        held = self._program.model.graph.initializers
        for name, array in arrays.items():
            before = held[name].const_value
            assert before is not None  # it is one of `initializers`
            values = np.ascontiguousarray(np.asarray(array).astype(before.dtype.numpy()))
            if values.shape != tuple(before.shape):
                raise ValueError(f"{name} is {tuple(before.shape)}, not {values.shape}")
            held[name].const_value = onnx_ir.tensor(values, name=name)

    def save(self, path: Path, stamp: Mapping[str, Any], *, external_data: bool | None = None) -> None:
        """Write the graph to `path`; weights of more than `LARGEST` bytes go to `path` + `.data` beside it.

        Args:
            external_data: whether to write the weights to the separate file; None decides by their size.

        Raises ConversionError if the checker rejects the graph.
        """
        import onnx

        from ..errors import ConversionError

        model = self._program.model
        model.metadata_props[stamps.ONNX_KEY] = stamps.stamp_text(digests.stamped(stamp, _digest_in_memory(model)))
        if external_data is None:
            external_data = _bytes_of_weights(model) > LARGEST
        checked = path
        if external_data:
            self._program.save(path, external_data=True)
        else:
            checked = path.with_name(f".{path.name}.checked.onnx")  # the same graph, with the weights of `path`
            checked.write_bytes(_write_whole(model, path).SerializeToString())
        try:
            onnx.checker.check_model(str(checked), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise ConversionError(
                f"ONNX's checker rejects the exported model: {error}",
                code="PTC4005",
                fix="Try another --opset, and report this bug of PyTorch's exporter or of pt-convert with the model.",
                where=str(path),
            ) from error
        finally:
            if checked != path:
                checked.unlink()


def _write_whole(model: Any, path: Path) -> Any:
    """Write a model into one file, and return its ModelProto, which refers to that file for large weights.

    The checker loads a file as a whole, several times over.
    """
    import onnx_ir

    held = model.graph.initializers
    large = {
        name: tensor
        for name, value in held.items()
        if (tensor := value.const_value) is not None
        and tensor.nbytes > onnx_file.LARGE
        and not isinstance(tensor, onnx_ir.ExternalTensor | onnx_ir.StringTensor | onnx_ir.serde.TensorProtoTensor)
    }
    try:
        for name, tensor in large.items():
            held[name].const_value = onnx_ir.ExternalTensor(
                path.name, None, tensor.nbytes, tensor.dtype, shape=tensor.shape, name=tensor.name,
                doc_string=tensor.doc_string, metadata_props=tensor.metadata_props, base_dir=path.parent,
            )  # fmt: skip
        proto = onnx_ir.serde.serialize_model(model)
    finally:
        for name, tensor in large.items():
            held[name].const_value = tensor
    onnx_file.write_model(proto, {name: tensor.tobytes for name, tensor in large.items()}, path)
    return proto


def _bytes_of_weights(model: Any) -> int:
    held = model.graph.initializers.values()
    return sum(value.const_value.nbytes for value in held if value.const_value is not None)


def name_by_content(path: Path) -> None:
    """Rename `path` + `.data`, if it exists, after the digest of its content (`data_name`), in the model too."""
    import onnx

    from .placement import data_name

    data = path.with_name(f"{path.name}.data")
    if not data.exists():
        return
    with data.open("rb") as file:
        name = data_name(path.name, hashlib.file_digest(file, "sha256").hexdigest())
    data.rename(path.with_name(name))
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = name
    path.write_bytes(model.SerializeToString(deterministic=True))


def _digest_in_memory(model: Any) -> str:
    from onnx_ir import serde

    arrays = ((name, v.const_value.numpy) for name, v in model.graph.initializers.items() if v.const_value is not None)
    return digests.onnx_digest((serde.serialize_node(node) for node in model.graph), arrays)


def _own_rules() -> AbstractContextManager[None]:
    """Have the optimizer fold no batch norm (our own rewrite does, and tells of what), and drop only exact no-ops."""
    from onnxscript.rewriter.rules import common
    from onnxscript.rewriter.rules.common import _no_op

    dropped = [
        common.fuse_batchnorm_into_conv_rule,
        common.fuse_batchnorm_into_conv_transpose_rule,
        common.fuse_batchnorm_into_gemm_rule,
        *_no_op.rules,
    ]
    return patches.RULES.applied(
        lambda own: tuple(map(_only_where_it_fits, (*_exact_no_ops(), *(rule for rule in own if rule not in dropped))))
    )


def _only_where_it_fits(rule: Any) -> Any:
    """Return the rule, tried only at operators of its pattern's type.

    A rule for two slices of one tensor is tried only at the first of them: the optimizer would compare each operator of
    the graph with each slice.
    """
    from onnxscript.rewriter.rules.common import slice_split_rule

    fitted, last = copy.copy(rule), rule._target_pattern.output_nodes[0].op_identifier()

    def try_rewrite(model: Any, graph: Any, node: Any, **options: Any) -> Any:
        if last is not None and node.op_identifier() != last:
            return None
        if rule is slice_split_rule and not _begins_split(node):
            return None
        return rule.try_rewrite(model, graph, node, **options)

    fitted.try_rewrite = try_rewrite
    return fitted


def _begins_split(node: Any) -> bool:
    """Return whether a slice takes the beginning of the last axis, and another slice reads the same tensor."""
    import onnx_ir

    data, begin, _, axes = (*node.inputs, None, None)[:4]
    known = [onnx_ir.convenience.get_const_tensor(value) for value in (begin, axes) if value is not None]
    held = [tensor.numpy().tolist() for tensor in known if tensor is not None]
    if data is None or data.shape is None or len(held) < 2:
        return False
    first, axis = held
    slices = [user for user, _ in data.uses() if user.op_type == "Slice"]
    return first == [0] and axis in ([-1], [len(data.shape) - 1]) and len(slices) > 1


def _exact_no_ops() -> Iterator[Any]:
    """Yield rules for x * 1, x + 0, x - 0, x / 1, dropout. The optimizer's own take 1 + 9e-6 for 1 and 9e-9 for 0."""
    import onnx_ir
    from onnxscript.rewriter import RewriteRule
    from onnxscript.rewriter.rules import common

    def is_scalar(number: float) -> Callable[..., bool]:
        def check(_: Any, neutral: Any, **__: Any) -> bool:
            tensor = onnx_ir.convenience.get_const_tensor(neutral)
            return tensor is not None and not tensor.shape.rank() and tensor.numpy().item() == number

        return check

    def identity(op: Any, x: Any, **_: Any) -> Any:
        return op.Identity(x)

    yield from RewriteRule(lambda op, x, neutral: x * neutral, identity, is_scalar(1)).commute()
    yield from RewriteRule(lambda op, x, neutral: x + neutral, identity, is_scalar(0)).commute()
    yield RewriteRule(lambda op, x, neutral: x - neutral, identity, is_scalar(0))
    yield RewriteRule(lambda op, x, neutral: x / neutral, identity, is_scalar(1))
    yield from (common.dropout_zero_rule, common.dropout_inference_rule)


def _names_kept(reserved: Sequence[str]) -> AbstractContextManager[None]:
    """Rename tensors that have the name of an input or output, to names that are free.

    The exporter's own pass takes names that other tensors have, and fails.
    """

    def renaming(before: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Any, model: Any) -> Any:
            _rename_clashing(model.graph, reserved)
            return before(self, model)

        return call

    return patches.NAMES.applied(renaming)


def _rename_clashing(graph: Any, reserved: Sequence[str]) -> None:
    """Give every initializer that is not an output a name that is not `reserved` and that no input or output has."""
    taken = {value.name for value in (*graph.inputs, *graph.outputs)} | set(reserved)
    for value in [value for value in graph.initializers.values() if not value.is_graph_output()]:
        name = next(n for n in _numbered(value.name) if n not in taken and graph.initializers.get(n, value) is value)
        if name != value.name:
            value.meta.setdefault(EXPORTED_AS, value.name)
            value.name = name


def _numbered(name: str) -> Iterator[str]:
    yield name
    yield from (f"{name}_{number}" for number in itertools.count(1))


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Silence the exporter's progress output and warnings that the user cannot act on."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _strip_notes(model: Any) -> None:
    from .onnx_rnn_translations import as_pytorchs

    for graph in [model.graph, *model.functions.values()]:
        for node in graph.all_nodes():
            for key in set(node.metadata_props) - {_KEPT_NOTE}:
                del node.metadata_props[key]
            if _KEPT_NOTE in node.metadata_props:
                node.metadata_props[_KEPT_NOTE] = as_pytorchs(node.metadata_props[_KEPT_NOTE])
            for value in node.outputs:
                value.metadata_props.clear()
        graph.metadata_props.clear()
    for value in [*model.graph.inputs, *model.graph.initializers.values()]:
        value.metadata_props.clear()


def refuse_untranslated(program: Program, registry: Registry) -> None:
    """Reject, before the export, operators of other libraries that have no translation.

    Raises:
        UnsupportedOperatorsError: there are any; it lists all of them.
    """
    found: dict[OpOverload, list] = {}
    for node in program.graph.nodes:
        target = node.target
        if isinstance(target, OpOverload) and target.namespace not in TRANSLATED and not registry[target].translation:
            found.setdefault(target, []).append(node)
    if not found:
        return
    rows = operator_rows(found)
    listed = "\n".join(f"    {target} x{count} in {paths}  {line}" for target, count, paths, line in rows)
    raise UnsupportedOperatorsError(
        f"{len(rows)} operator{'s' * (len(rows) > 1)} cannot be translated to ONNX:\n{listed}",
        rows,
        code="PTC3007",
        fix="Add a translation, an onnxscript function under `@converter.registry.translates`, to the file "
        "of --mappings; or leave out --to onnx.",
    )


def refuse_projections(program: Program) -> None:
    """Raise ConversionError for an LSTM with projections, for which PyTorch's exporter writes an invalid graph."""
    packed = torch.ops.converter.packed_recurrent.default
    nodes = (
        n for target in (aten.lstm.input, packed) for n in program.graph.find_nodes(op="call_function", target=target)
    )
    for node in nodes:
        given = bound_arguments(node)
        per_layer = (4 if given.flag("has_biases") else 2) * (2 if given.flag("bidirectional") else 1)
        if len(given.nodes("params")) > per_layer * given.integer("num_layers"):
            raise ConversionError(
                "ONNX cannot express an LSTM with projections (proj_size), and PyTorch's exporter writes "
                "an invalid one.",
                code="PTC4006",
                where=module_path(node) or None,
                fix="Leave out --to onnx.",
            )
