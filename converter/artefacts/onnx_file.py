"""The `.onnx` file: written by PyTorch's own exporter, checked, the same bytes for the same program; opened again."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import digest as digests
from . import stamp as stamps
from .folded_constants import EXPORTED_AS, FoldedConstants, recorded
from .messages import Fact, Value, marks
from .onnx_shift import shift

if TYPE_CHECKING:
    import torch

LARGEST = 3 << 29  # bytes of weights in the file itself, as in PyTorch's exporter: protobuf ends at 2 GiB
_LARGE = 1 << 16  # bytes of a tensor that a trace hands to the session by itself
_HANDED = ("FLOAT", "FLOAT16", "DOUBLE", "INT64", "INT32", "INT8", "UINT8")  # that numpy has too
_AT_ONCE = 48  # values of a trace held in memory together; each such group is another run of the graph
# Of what the exporter notes on each node, this says where in the model it is from. The rest is longer than the graph
# and holds paths of the machine it ran on.
_KEPT_NOTE = "namespace"
ARGUMENTS = {"Clip": (1, 2), "Pad": (1, 2, 3), "Resize": (1, 2, 3)}  # inputs that are no data: bounds, widths, scales
BOOKKEEPING = frozenset({"Constant", "Identity"})  # hold or name a value: no work on a tensor


def write(
    module: torch.nn.Module,
    inputs: Sequence[torch.Tensor],
    input_names: Sequence[str],
    output_names: Sequence[str],
    dynamic_shapes: Any,
    path: Path,
    stamp: Mapping[str, Any],
    opset: int | None = None,
    *,
    external_data: bool | None = None,
) -> None:
    """Writes `module`; arguments as of `export` and `Exported.save`."""
    exported = export(module, inputs, input_names, output_names, dynamic_shapes, opset)
    exported.save(path, stamp, external_data=external_data)


def export(
    module: torch.nn.Module,
    inputs: Sequence[torch.Tensor],
    input_names: Sequence[str],
    output_names: Sequence[str],
    dynamic_shapes: Any,
    opset: int | None = None,
) -> Exported:
    """`module`, traced on `inputs`, as an ONNX graph.

    Args:
        module: in evaluation mode, such as `ExportedProgram.module()`.
        dynamic_shapes: as for `torch.export.export`; a `Dim("batch")` is a dimension named batch in the file.
        opset: of ONNX; the exporter's own choice if None.

    Raises ConversionError for what the exporter cannot translate.
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
                custom_translation_table=_translations(),
                optimize=True,
            )
            assert program is not None  # it is None only for the exporter before dynamo
            common.NameFixPass()(program.model)  # it gives inputs and outputs their names without looking at others
    except torch.onnx.OnnxExporterError as error:
        raise ConversionError(
            f"PyTorch's ONNX exporter cannot translate this model: {_cause(error)}",
            cure="Leave --to onnx away, or try another --opset.",
        ) from error
    written = program.model.opset_imports[""]
    if opset is not None and written != opset:
        raise ConversionError(
            f"PyTorch's ONNX exporter gave opset {written}, not {opset}.",
            cure="Ask for another --opset, or leave the option away.",
        )
    _strip_notes(program.model)
    return Exported(program, folded)


@dataclass(frozen=True)
class Exported:
    """An ONNX graph in memory."""

    _program: torch.onnx.ONNXProgram
    folded: FoldedConstants

    def initialisers(self) -> dict[str, np.ndarray]:
        held = self._program.model.graph.initializers
        return {name: value.const_value.numpy() for name, value in held.items() if value.const_value is not None}

    def refill(self, arrays: Mapping[str, Any]) -> None:
        """Give initialisers other values, each of the shape and in the type that it has."""
        import onnx_ir

        held = self._program.model.graph.initializers
        for name, array in arrays.items():
            before = held[name].const_value
            assert before is not None  # it is one of `initialisers`
            values = np.ascontiguousarray(np.asarray(array).astype(before.dtype.numpy()))
            if values.shape != tuple(before.shape):
                raise ValueError(f"{name} is {tuple(before.shape)}, not {values.shape}")
            held[name].const_value = onnx_ir.tensor(values, name=name)

    def save(self, path: Path, stamp: Mapping[str, Any], *, external_data: bool | None = None) -> None:
        """Writes it to `path`; weights of more than `LARGEST` go to `path` + `.data` beside it.

        Args:
            external_data: forces the weights into the file beside, or decides by their size if None.

        Raises ConversionError for what the checker refuses.
        """
        import onnx

        from ..errors import ConversionError

        model = self._program.model
        model.metadata_props[stamps.ONNX_KEY] = stamps.stamp_text(digests.stamped(stamp, _digest_in_memory(model)))
        if external_data is None:
            external_data = _bytes_of_weights(model) > LARGEST
        self._program.save(path, external_data=external_data)
        try:
            onnx.checker.check_model(str(path), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise ConversionError(f"ONNX's checker refuses the exported model: {error}", where=str(path)) from error


def _bytes_of_weights(model: Any) -> int:
    held = model.graph.initializers.values()
    return sum(value.const_value.nbytes for value in held if value.const_value is not None)


def name_by_content(path: Path) -> None:
    """Gives `path` + `.data`, if weights are there, the name that tells its content (`data_name`), in the model too."""
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

    arrays = (
        (name, v.const_value.numpy()) for name, v in model.graph.initializers.items() if v.const_value is not None
    )
    return digests.onnx_digest((serde.serialize_node(node) for node in model.graph), arrays)


def _translations() -> dict[Any, Any]:
    """Of the operators that our rewrites introduce, of those that the exporter does worse, and of the user's.

    Returns:
        {overload: function of onnxscript}
    """
    import torch
    from onnxscript import opset18

    from ..ir import custom_ops  # noqa: F401  # registers them
    from ..plan.registry import TRANSLATIONS
    from . import onnx_recurrent

    def space_to_depth(x: Any, block: int) -> Any:
        return opset18.SpaceToDepth(x, blocksize=block)

    def reorder_channels(x: Any, order: Sequence[int]) -> Any:
        return opset18.Gather(x, opset18.Constant(value_ints=list(order)), axis=1)

    def dropout(x: Any, rate: float) -> Any:
        return opset18.Identity(x)

    def depth_to_space(x: Any, block: int) -> Any:
        return opset18.DepthToSpace(x, blocksize=block, mode="DCR")

    def padded_conv(
        x: Any, weight: Any, bias: Any, stride: Sequence[int], pads: Sequence[int], dilation: Sequence[int], groups: int
    ) -> Any:
        lists = {"strides": list(stride), "pads": list(pads), "dilations": list(dilation)}
        return opset18.Conv(x, weight, bias, group=groups, **lists)

    def log_sigmoid(x: Any) -> Any:
        """The exporter's log(sigmoid(x)) is off by its whole value where the sigmoid is close to 1."""
        return opset18.Neg(opset18.Softplus(opset18.Neg(x)))

    def upsample_linear1d(x: Any, output_size: Any, align_corners: bool, scale_factors: Any) -> Any:
        """The exporter takes it apart into gathers; ONNX's formulas: https://onnx.ai/onnx/operators/onnx__Resize.html."""
        how = {
            "mode": "linear",
            "coordinate_transformation_mode": "align_corners" if align_corners else "half_pixel",
        }
        if scale_factors is not None:
            return opset18.Resize(x, None, opset18.Constant(value_floats=[1.0, 1.0, *scale_factors]), None, **how)
        sizes = opset18.Concat(opset18.Shape(x, start=0, end=2), opset18.Cast(output_size, to=7), axis=0)
        return opset18.Resize(x, None, None, sizes, **how)

    translations = [space_to_depth, depth_to_space, reorder_channels, dropout, shift, padded_conv]
    own = {getattr(torch.ops.converter, translation.__name__).default: translation for translation in translations}
    aten = torch.ops.aten
    better = {aten.log_sigmoid.default: log_sigmoid, aten.upsample_linear1d.vec: upsample_linear1d}
    return own | onnx_recurrent.translations() | better | TRANSLATIONS


@contextlib.contextmanager
def _own_rules() -> Iterator[None]:
    """Have the optimizer fold no batch norm (our own rewrite does, and tells of what), and drop only exact no-ops."""
    from onnxscript import rewriter
    from onnxscript.rewriter.rules import common
    from onnxscript.rewriter.rules.common import _no_op

    replaced = [
        common.fuse_batchnorm_into_conv_rule,
        common.fuse_batchnorm_into_conv_transpose_rule,
        common.fuse_batchnorm_into_gemm_rule,
        *_no_op.rules,
    ]
    before = rewriter._DEFAULT_REWRITE_RULES
    kept = (rule for rule in before if rule not in replaced)
    rewriter._DEFAULT_REWRITE_RULES = (*_exact_no_ops(), *kept)
    try:
        yield
    finally:
        rewriter._DEFAULT_REWRITE_RULES = before


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


@contextlib.contextmanager
def _names_kept(reserved: Sequence[str]) -> Iterator[None]:
    """Rename tensors that have the name of an input or output, to names that are free.

    The exporter's own pass takes names that other tensors have, and fails.
    """
    from onnx_ir.passes import common

    before = common.NameFixPass.call

    def call(self: Any, model: Any) -> Any:
        _rename_clashing(model.graph, reserved)
        return before(self, model)

    common.NameFixPass.call = call  # type: ignore[method-assign]
    try:
        yield
    finally:
        common.NameFixPass.call = before  # type: ignore[method-assign]


def _rename_clashing(graph: Any, reserved: Sequence[str]) -> None:
    """Give every initializer that is no output a name that is not `reserved` and that no input or output has."""
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
    """The exporter prints its steps, and warns of what is none of the user's doing."""
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
    from .onnx_recurrent import as_pytorchs

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


class Reader:
    """Opens an `.onnx` file of any tool with onnxruntime on the CPU."""

    def __init__(self) -> None:
        import onnx
        import onnxruntime

        self._onnx, self._runtime = onnx, onnxruntime
        self.inputs: list[Fact] = []
        self.outputs: list[Fact] = []

    def open(self, path: Path, signature: str | None = None) -> None:
        if signature is not None:
            raise ValueError("an ONNX file has no signatures")
        self._path = path
        self._session = self._runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.inputs = [_fact(node) for node in self._session.get_inputs()]
        self.outputs = [_fact(node) for node in self._session.get_outputs()]

    def run(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = [name for name, _, _ in self.outputs]
        return dict(zip(names, self._session.run(names, dict(arrays)), strict=True))

    def tensors(self) -> dict[str, np.ndarray]:
        """The initialisers of the main graph, those left out that only say how an operator works."""
        model = self._onnx.load(str(self._path))
        places: dict[str, set[bool]] = {}
        for node in model.graph.node:
            for position, name in enumerate(node.input):
                places.setdefault(name, set()).add(position in ARGUMENTS.get(node.op_type, ()))
        return {
            tensor.name: self._onnx.numpy_helper.to_array(tensor)
            for tensor in model.graph.initializer
            if places.get(tensor.name) != {True}
        }

    def held(self) -> dict[str, np.ndarray]:
        """All initialisers and constants, of the main graph, its branches and loops, and of local functions."""
        model = self._onnx.load(str(self._path))
        arrays: dict[str, np.ndarray] = {}

        def add(name: str, tensor: Any) -> None:
            array = self._onnx.numpy_helper.to_array(tensor)
            if array.dtype.kind not in "OSU":
                arrays[name if name not in arrays else f"{name}#{len(arrays)}"] = array

        def visit(nodes: Iterable[Any]) -> None:
            for node in nodes:
                for attribute in node.attribute:
                    if node.op_type == "Constant" and attribute.HasField("t"):
                        add(node.output[0], attribute.t)
                    for graph in [attribute.g, *attribute.graphs]:
                        for tensor in graph.initializer:
                            add(tensor.name, tensor)
                        visit(graph.node)

        for tensor in model.graph.initializer:
            add(tensor.name, tensor)
        visit(model.graph.node)
        for function in model.functions:
            visit(function.node)
        return arrays

    def trace(self, arrays: Mapping[str, np.ndarray]) -> Iterator[Value]:
        """Of the main graph's operators. Onnxruntime gives outputs only, so that all of them are made outputs."""
        model = self._onnx.load(str(self._path))
        given = {value.name for value in model.graph.input} | {tensor.name for tensor in model.graph.initializer}
        makers = {name: node for node in model.graph.node for name in node.output if name and name not in given}
        names = [name for name, node in makers.items() if node.op_type != "Constant"]
        del model.graph.output[:]
        model.graph.output.extend(self._onnx.ValueInfoProto(name=name) for name in names)
        options = self._runtime.SessionOptions()
        options.graph_optimization_level = self._runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
        kept = self._beside(model, options)
        session = self._runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        for start in range(0, len(names), _AT_ONCE):
            group = names[start : start + _AT_ONCE]
            for name, array in zip(group, session.run(group, dict(arrays)), strict=True):
                if isinstance(array, np.ndarray) and array.dtype.kind in "fiub":
                    yield name, makers[name].op_type, list(array.shape), marks(array)
        del kept  # until here the session reads them

    def _beside(self, model: Any, options: Any) -> list[Any]:
        """Takes large weights out of a model, which could be no message with them, and gives them to the session."""
        values = []
        types = {self._onnx.TensorProto.DataType.Value(name) for name in _HANDED}
        for tensor in model.graph.initializer:
            if len(tensor.raw_data) < _LARGE or tensor.data_type not in types:
                continue
            values.append(self._runtime.OrtValue.ortvalue_from_numpy(self._onnx.numpy_helper.to_array(tensor)))
            self._onnx.external_data_helper.set_external_data(tensor, "in memory", 0, len(tensor.raw_data))
            tensor.ClearField("raw_data")
        names = [tensor.name for tensor in model.graph.initializer if tensor.external_data]
        options.add_external_initializers(names, values)
        return values

    def graph_digest(self) -> str:
        model = self._onnx.load(str(self._path))
        arrays = ((t.name, self._onnx.numpy_helper.to_array(t)) for t in model.graph.initializer)
        return digests.onnx_digest(model.graph.node, arrays)

    def operators(self) -> dict[str, int]:
        """How often each operator stands in the graph, those of its branches and loops once, those of a local
        function once per call, without `BOOKKEEPING`."""
        model = self._onnx.load(str(self._path), load_external_data=False)
        functions = {(function.domain, function.name): function for function in model.functions}

        def count(nodes: Iterable[Any]) -> Counter[str]:
            total: Counter[str] = Counter()
            for node in nodes:
                if (node.domain, node.op_type) in functions:
                    total += count(functions[node.domain, node.op_type].node)
                elif node.op_type not in BOOKKEEPING:
                    total[node.op_type] += 1
                for attribute in node.attribute:
                    for graph in [attribute.g, *attribute.graphs]:
                        total += count(graph.node)
            return total

        return dict(sorted(count(model.graph.node).items(), key=lambda item: (-item[1], item[0])))

    def xla_functions(self) -> list[str]:
        return []


def _fact(node: Any) -> Fact:
    """Onnxruntime's types read `tensor(float)`, its named dimensions are strings."""
    kind = node.type.removeprefix("tensor(").removesuffix(")")
    dtype = {"float": "float32", "double": "float64"}.get(kind, kind)
    return node.name, [size if isinstance(size, int) else None for size in node.shape], dtype
