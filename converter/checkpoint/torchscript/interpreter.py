"""TorchScript's graphs, run operator by operator in Python, so that `torch.export` can trace them.

Each operator is called by the schema that TorchScript's own compiler chose for it. Control flow is Python's: if
`torch.export` cannot decide it, it raises the same error as for any forward.
"""

import linecache
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from converter.checkpoint.torchscript.fused_transformer_ops import (
    native_multi_head_attention,
    transformer_encoder_layer,
)
from converter.checkpoint.torchscript.op_allowlist import ALLOWED
from converter.checkpoint.torchscript.scalar_ops import DTYPES, MEMORY_FORMATS, ON_TENSORS, PLAIN, PRIM, OutOfBounds
from converter.errors import CheckpointError, ConversionError
from converter.ir import custom_ops

MOST_TURNS = 10_000  # iterations of one loop
RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")
MADE_OF: dict[str, dict[int, Any]] = {
    "ScalarType": DTYPES,
    "MemoryFormat": MEMORY_FORMATS,
    "Layout": {0: torch.strided},
}


@dataclass
class Number:
    """A tensor of one number that the graph makes from sizes and turns into sizes, as in `int(torch.tensor(h) // 2)`.

    Attributes:
        value: a number, or a symbol of torch.export.
        tensor: a function that returns it as the graph's own constant, if it is one.
    """

    value: Any
    dtype: torch.dtype
    tensor: Callable[[], Tensor] | None = None

    def as_tensor(self) -> Tensor:
        return self.tensor() if self.tensor else torch.full((), self.value, dtype=self.dtype)


@dataclass
class Step:
    """One operator: its inputs and outputs, by the graph's names of values, and the function to call.

    Attributes:
        code: calls it, as if from its line in the file's code.
    """

    takes: list[str]
    gives: list[str]
    call: Callable[..., Any]
    code: Any


@dataclass
class Branch:
    condition: str
    blocks: list["Block"]
    gives: list[str]


@dataclass
class Loop:
    most: str
    condition: str
    carried: list[str]
    body: "Block"
    gives: list[str]


@dataclass
class Block:
    takes: list[str]
    steps: list[Step | Branch | Loop]
    gives: list[str]

    def run(self, values: dict[str, Any]) -> list[Any]:
        for step in self.steps:
            match step:
                case Step():
                    arguments = [values[name] for name in step.takes]
                    results = eval(step.code, {"call": step.call, "arguments": arguments})
                    if len(step.gives) == 1:
                        values[step.gives[0]] = results
                    else:
                        values.update(zip(step.gives, results or (), strict=True))
                case Branch():
                    results = step.blocks[0 if _truth(values[step.condition]) else 1].run(values)
                    values.update(zip(step.gives, results, strict=True))
                case Loop():
                    self._turn(step, values)
        return [values[name] for name in self.gives]

    def _turn(self, loop: Loop, values: dict[str, Any]) -> None:
        goes_on, carried = values[loop.condition], [values[name] for name in loop.carried]
        turn, most = 0, values[loop.most]
        while turn < most and _truth(goes_on):
            if turn >= MOST_TURNS:
                raise OutOfBounds(f"a loop of more than {MOST_TURNS} turns")
            values.update(zip(loop.body.takes, [turn, *carried], strict=True))
            goes_on, *carried = loop.body.run(values)
            turn += 1
        values.update(zip(loop.gives, carried, strict=True))


class Compiler:
    """Turns a TorchScript module's graphs into blocks.

    Args:
        unit: holds its functions.
        code: the text of the file's code records, by name.
        name: of the file, for error messages.
        trusted: operators that are not on the allow-list may be used.
        constant: keeps a tensor of the graph, and returns a function that returns it.

    Attributes:
        attributes: the names of attributes that the graphs read.
    """

    def __init__(
        self,
        unit: torch._C.CompilationUnit,
        code: dict[str, str],
        name: str,
        trusted: bool,
        constant: Callable[[Tensor], Callable[[], Tensor]],
    ):
        self.unit = unit
        self.name = name
        self.trusted = trusted
        self.constant = constant
        self.functions: dict[str, Block] = {}
        self.attributes: set[str] = set()
        for record, text in code.items():
            lines = text.splitlines(keepends=True)
            linecache.cache[self._file(record)] = (len(text), None, lines, self._file(record))

    def block(self, graph: Any) -> Block:
        """Compile a graph, or an inner block of one."""
        takes = [value.debugName() for value in graph.inputs()]
        steps = [step for node in graph.nodes() for step in self._steps(node)]
        return Block(takes, steps, [value.debugName() for value in graph.outputs()])

    def _steps(self, node: Any) -> list[Step | Branch | Loop]:
        kind: str = node.kind()
        takes = [value.debugName() for value in node.inputs()]
        gives = [value.debugName() for value in node.outputs()]
        if not self.trusted and kind not in ALLOWED:
            raise CheckpointError(
                f"The TorchScript uses the operator {kind}, which models do not need.",
                code="PTC1078",
                where=self._place(node)[0],
                fix="Give the original model's checkpoint; or, if you trust the file's maker, add --trust torchscript.",
            )
        if kind == "prim::If":
            return [Branch(takes[0], [self.block(block) for block in node.blocks()], gives)]
        if kind == "prim::Loop":
            (body,) = node.blocks()
            most, condition, *carried = takes
            return [Loop(most, condition, carried, self.block(body), gives)]
        if kind == "prim::CallFunction":
            function = next(iter(node.inputs()))
            return [Step(takes[1:], gives, self._function(function.type().annotation_str), self._code(node))]
        return [Step(takes, gives, self._call(node, kind), self._code(node))]

    def _function(self, name: str) -> Callable[..., Any]:
        if name not in self.functions:
            self.functions[name] = Block([], [], [])
            self.functions[name] = self.block(self.unit.find_function(name).graph)

        def call(*arguments: Any) -> Any:
            block = self.functions[name]
            (result,) = block.run(dict(zip(block.takes, arguments, strict=True)))
            return result

        return call

    def _call(self, node: Any, kind: str) -> Callable[..., Any]:
        namespace, _, name = kind.partition("::")
        if kind == "prim::Constant":
            return self._constant(node)
        if kind == "prim::GetAttr":
            attribute = node.s("name")
            self.attributes.add(attribute)
            return lambda owner: owner.script_attribute(attribute)
        if kind == "prim::CallMethod":
            method = node.s("name")
            return lambda owner, *arguments: owner.script_call(method, arguments)
        if kind == "prim::RaiseException":
            return _raised
        if kind == "prim::NumToTensor":
            return lambda value: Number(value, torch.float32 if isinstance(value, float) else torch.int64)
        if kind == "prim::TupleSlice":
            begin, end = node.i("beg"), node.i("end")
            return lambda items: items[begin:end]
        if kind == "prim::ConstantChunk":
            chunks, dim = node.i("chunks"), node.i("dim")
            return lambda x: torch.chunk(x, chunks, dim)
        if kind == "prim::isinstance":
            return self._refused(node, kind)
        if namespace == "prim":
            return PRIM.get(name) or self._refused(node, kind)
        return self._operator(node, namespace, name)

    def _constant(self, node: Any) -> Callable[..., Any]:
        (output,) = node.outputs()
        if output.type().kind() == "FunctionType":
            return lambda: None
        value: Any = output.toIValue() if node.hasAttribute("value") else None
        if isinstance(value, Tensor):
            tensor = self.constant(value)
            if value.ndim == 0 and not value.is_complex():
                number = value.item()
                return lambda: Number(number, value.dtype, tensor)
            return tensor
        if isinstance(value, torch.device):
            value = torch.device("cpu")
        if isinstance(value, list):
            return value.copy
        return lambda: value

    def _operator(self, node: Any, namespace: str, name: str) -> Callable[..., Any]:
        schema = torch._C.parse_schema(node.schema()) if node.schema() != "(no schema)" else None
        if schema is None:
            values = list(node.inputs())  # any number of inputs, as for aten::format
            if name in PLAIN and not any(str(value.type()) == "Tensor" for value in values):
                return PLAIN[name]
            return self._refused(node, f"{namespace}::{name}")
        tensors = any("Tensor" in str(a.type) for a in (*schema.arguments, *schema.returns))
        if not tensors and namespace == "aten":
            return PLAIN.get(name) or self._refused(node, f"{namespace}::{name}")
        if name in ON_TENSORS and namespace == "aten":
            return _with_numbers(name, _keyworded(schema, ON_TENSORS[name]))
        if name in WRITTEN_OUT:
            return _with_numbers(name, WRITTEN_OUT[name])
        if name in RECURRENT and schema.overload_name == "input":
            return lambda *arguments: _recurrent(name, *arguments)
        packet = getattr(getattr(torch.ops, namespace), name, None)
        overload = getattr(packet, schema.overload_name or "default", None) if packet is not None else None
        if overload is None:
            return self._refused(node, f"{namespace}::{name}")
        return _with_numbers(name, _keyworded(overload._schema, overload))

    def _refused(self, node: Any, kind: str) -> Callable[..., Any]:
        place = self._place(node)[0]

        def refuse(*_: Any) -> Any:
            raise ConversionError(
                f"The TorchScript's {kind} cannot be converted.",
                code="PTC1079",
                where=place,
                fix="Give the original model's checkpoint, or torch.export.save of it.",
            )

        return refuse

    def _place(self, node: Any) -> tuple[str, int]:
        found = re.findall(r'File "(code/[^"]+)", line (\d+)', node.sourceRange())
        record, line = found[-1] if found else ("code", 1)
        return self._file(record), int(line)

    def _file(self, record: str) -> str:
        return f"{self.name} {record.replace('/', '.')}"  # no folder and no code of torch's own has this name

    def _code(self, node: Any) -> Any:
        file, line = self._place(node)
        code = compile("\n" * (min(line, 1_000_000) - 1) + "call(*arguments)", file, "eval")
        return code.replace(co_name="forward")  # torch.export recognizes the model's lines by this name


def _truth(value: Any) -> bool:
    return bool(value.value if isinstance(value, Number) else value)


def _raised(*arguments: Any) -> Any:
    raise RuntimeError(str(arguments[0])[:1000] if arguments else "the model raised an error")


def _keyworded(schema: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that takes all arguments in the schema's order, with TorchScript's types and devices."""
    parameters = [
        (a.name, a.kwarg_only, re.sub(r"Optional\[(.*)\]|(.*)\?", r"\1\2", str(a.real_type))) for a in schema.arguments
    ]

    def call(*arguments: Any) -> Any:
        positional: list[Any] = []
        keywords: dict[str, Any] = {}
        for value, (name, keyword, kind) in zip(arguments, parameters, strict=False):
            given = value
            if kind in MADE_OF and isinstance(value, int) and function not in ON_TENSORS.values():
                given = MADE_OF[kind][value]
            elif kind == "Device" and value is not None:
                given = torch.device("cpu")
            if keyword:
                keywords[name] = given
            else:
                positional.append(given)
        return function(*positional, **keywords)

    return call


ON_NUMBERS = {
    *("add", "sub", "mul", "div", "floor_divide", "remainder", "neg", "floor", "ceil", "round", "trunc", "to", "rsub"),
    *("detach", "clone", "Int", "Float", "Bool", "IntImplicit", "FloatImplicit", "ScalarImplicit", "item", "eq", "ne"),
    *("lt", "le", "gt", "ge", "pow", "sqrt", "minimum", "maximum", "clamp"),
}
SYMBOLIC: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b,
    "floor_divide": lambda a, b: a // b, "remainder": lambda a, b: a % b,
}  # fmt: skip
AS_PYTHON = {"Int", "Float", "Bool", "IntImplicit", "FloatImplicit", "ScalarImplicit", "item"}


def _with_numbers(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `function` so that it computes numbers from numbers, and otherwise takes them as tensors."""

    def call(*arguments: Any) -> Any:
        if not any(
            isinstance(a, Number) or (isinstance(a, list) and any(isinstance(i, Number) for i in a)) for a in arguments
        ):
            return function(*arguments)
        if name in ON_NUMBERS and not any(isinstance(a, Tensor | list) for a in arguments):
            result = _of_numbers(name, function, arguments)
            if result is not None:
                return result
        return function(*(_as_tensors(a) for a in arguments))

    return call


def _as_tensors(value: Any) -> Any:
    if isinstance(value, list):
        return [_as_tensors(item) for item in value]
    return value.as_tensor() if isinstance(value, Number) else value


def _of_numbers(name: str, function: Callable[..., Any], arguments: Sequence[Any]) -> Any:
    values = [a.value if isinstance(a, Number) else a for a in arguments]
    if not any(isinstance(value, torch.SymInt | torch.SymFloat) for value in values):
        with _disable_current_modes():
            real = [torch.tensor(a.value, dtype=a.dtype) if isinstance(a, Number) else a for a in arguments]
            result = function(*real)
            return Number(result.item(), result.dtype) if isinstance(result, Tensor) else result
    if name in AS_PYTHON:
        return values[0] if name in ("item", "ScalarImplicit") else PLAIN[name.removesuffix("Implicit")](values[0])
    whole = all(a.dtype == torch.int64 if isinstance(a, Number) else isinstance(a, int) for a in arguments[:2])
    if name in ("to", "detach", "clone") and (name != "to" or DTYPES.get(values[1]) == torch.int64):
        return arguments[0]
    if name in SYMBOLIC and whole and all(value == 1 for value in values[2:]):
        return Number(SYMBOLIC[name](values[0], values[1]), torch.int64)
    return None


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
    *_: Any,
) -> Tensor:
    rank = weight.ndim - 2
    if transposed:
        function = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)[rank - 1]
        return function(x, weight, bias, stride, padding, output_padding, groups, dilation)
    return (torch.conv1d, torch.conv2d, torch.conv3d)[rank - 1](x, weight, bias, stride, padding, dilation, groups)


WRITTEN_OUT: dict[str, Callable[..., Any]] = {
    "_convolution": _convolution,
    "_transformer_encoder_layer_fwd": transformer_encoder_layer,
    "_native_multi_head_attention": native_multi_head_attention,
}


def _recurrent(name: str, x: Tensor, states: Any, weights: list[Tensor], *settings: Any) -> tuple[Tensor, ...]:
    """Run a recurrent layer as one operator, which PyTorch would trace step by step."""
    if not torch.compiler.is_exporting():
        return getattr(torch._VF, name)(x, tuple(states) if isinstance(states, list) else states, weights, *settings)
    held = [states] if isinstance(states, Tensor) else list(states)
    return tuple(custom_ops.recurrent(name, x, held, list(weights), *settings))
