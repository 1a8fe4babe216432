"""Write a program as Python source: one `torch.nn.Module` that needs PyTorch only.

Whatever a checkpoint chose (names of modules, of inputs, of values) is an identifier that was checked, a literal, or a
comment without line breaks: the source does what the program does and nothing else.
"""

from __future__ import annotations

import builtins
import itertools
import keyword
import math
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch._ops import OpOverload

from converter.compat.export_patches import RECURRENT
from converter.errors import UnsupportedOperatorsError
from converter.ir import custom_ops
from converter.ir.aten import bound_arguments, read_item
from converter.ir.program import Program, module_path, operator_rows, tensor_name
from converter.ir.sizes import SYMBOLIC
from converter.plan.interface import TensorInterface, facts, symbol_names

from .torch_layers import Layer, find_layers

aten, ours = torch.ops.aten, torch.ops.converter
assert custom_ops  # registers torch.ops.converter

_IDENTIFIER = re.compile(r"[A-Za-z]\w*|_(?!_)\w*", re.ASCII)
_BUILTINS = {"super", "zip", "abs", "max", "min", "round", "float"}  # that the source calls
_RESERVED = {"torch", "math", "nn", "F", "self", "device", "Path", "Model", "load", "INPUTS", "OUTPUTS", *_BUILTINS}
_ELSEWHERE = ("device", "layout", "pin_memory", "memory_format")  # arguments that do not change values
_NAMES = {Tensor: "x", tuple: "parts", int: "n"}  # of variables
_END = 2**63 - 1  # of a slice without one

_INFIX = {
    aten.add.Tensor: "+", aten.sub.Tensor: "-", aten.mul.Tensor: "*", aten.div.Tensor: "/", aten.matmul.default: "@",
    operator.add: "+", operator.sub: "-", operator.mul: "*", operator.truediv: "/", operator.floordiv: "//",
    operator.mod: "%", operator.pow: "**", operator.eq: "==", operator.ne: "!=", operator.lt: "<", operator.le: "<=",
    operator.gt: ">", operator.ge: ">=",
}  # fmt: skip
_OF_NUMBERS = {
    operator.neg: "-", operator.pos: "+", math.ceil: "math.ceil", math.floor: "math.floor", math.trunc: "math.trunc",
    builtins.abs: "abs", builtins.max: "max", builtins.min: "min", builtins.round: "round",
    torch.sym_float: "torch.sym_float", torch.sym_sum: "torch.sym_sum",
    torch.sym_int: "torch.sym_int", torch.sym_max: "torch.sym_max", torch.sym_min: "torch.sym_min",
    torch.sym_not: "torch.sym_not", torch.sym_ite: "torch.sym_ite",
}  # fmt: skip
# Functions of torch.nn.functional, and how many of the operator's parameters they have in its order.
_FUNCTIONAL = {
    "relu": 1, "relu6": 1, "silu": 1, "mish": 1, "hardswish": 1, "hardsigmoid": 1, "hardtanh": 3, "leaky_relu": 2,
    "elu": 2, "glu": 2, "pad": 4, "adaptive_avg_pool2d": 2, "adaptive_avg_pool3d": 2,
}  # fmt: skip
_METHODS = {name: name for name in ("unsqueeze", "squeeze", "transpose", "flatten", "clone", "select", "split")}
_METHODS |= {"split_with_sizes": "split", "contiguous": "contiguous"}
_OF_SIZES = {"view": "reshape", "reshape": "reshape", "expand": "expand", "permute": "permute", "repeat": "repeat"}
_MODES = {"nearest1d": "nearest", "nearest2d": "nearest", "nearest3d": "nearest", "linear1d": "linear"}
_MODES |= {"bilinear2d": "bilinear", "bicubic2d": "bicubic", "trilinear3d": "trilinear"}
_PADS = {"zeros": "", "replicate": ', mode="replicate"'}  # what to add for each border of a shift
_UPSAMPLE = re.compile(r"_?upsample_(?P<mode>[a-z]+\dd)(?P<antialias>_aa)?|_upsample_nearest_exact\dd")


class _Unwritable(Exception):
    """There is no source for a call."""


@dataclass
class ModuleSource:
    """The source of a program as a module.

    Attributes:
        names: the name of each of the program's tensors in the module.
        text: the source.
    """

    program: Program
    inputs: list[TensorInterface]
    outputs: list[TensorInterface]
    dtype: torch.dtype = torch.float32
    names: dict[str, str] = field(init=False)
    text: str = field(init=False)

    def __post_init__(self) -> None:
        """Write the text, or raise UnsupportedOperatorsError, which lists every call that cannot be written."""
        nodes = [node for node in self.program.graph.find_nodes(op="get_attr") if node.users]
        self._tensors = {tensor_name(node): node for node in nodes}
        self._layers = find_layers(self.program)
        self._types: dict[str, str] = {}  # of containers, by their paths
        self.names = self._name_tensors()
        forward = list(self._forward())
        if any("device=device" in line for line in forward):
            forward.insert(0, f"device = {self._arguments(self.inputs)[0]}.device")
        arguments, results = self._arguments(self.inputs), self._arguments(self.outputs)
        lines = [
            '"""A PyTorch model with its weights beside it, written by pt-convert. It needs PyTorch only.',
            "",
            "    model = load()",
            f"    {', '.join(results)} = model({', '.join(arguments)})",
            '"""',
            "",
            *(["import math"] if any("math." in line for line in forward) else []),
            "from pathlib import Path",
            "",
            "import torch",
            "import torch.nn.functional as F",
            "from torch import nn",
            "",
            *self._interface("INPUTS", self.inputs),
            *self._interface("OUTPUTS", self.outputs),
            "",
            "",
            f"class Model({self._types.get('', 'nn.Module')}):",
            "    def __init__(self):",
            "        super().__init__()",
            *(f"        {line}" for line in self._make()),
            "",
            f"    def forward({', '.join(['self', *arguments])}):",
            *(f"        {line}" for line in forward),
            "",
            "",
            'def load(weights=Path(__file__).with_name("weights.pt")):',
            '    """Return the model with its weights, in evaluation mode."""',
            '    with torch.device("meta"):  # the weights are not made twice',
            "        model = Model()",
            "    model.load_state_dict(torch.load(weights, weights_only=True), assign=True)",
            "    return model.eval()",
            "",
        ]
        self.text = "\n".join(lines)

    # -- names

    def _name_tensors(self) -> dict[str, str]:
        """Return attribute paths for all tensors: their own names, but for parts that no attribute can have."""
        paths = {name.rpartition(".")[0] for name in self._tensors} | {""}
        paths |= {path[:at] for path in paths for at, letter in enumerate(path) if letter == "."}
        layers = {layer.path for layer in self._layers.values()}
        children: dict[str, dict[str, None]] = {path: {} for path in paths}
        for path in sorted({*paths, *self._tensors} - {""}):
            parent, _, last = path.rpartition(".")
            children[parent][last] = None
        named = {"": ""}
        for path in sorted(paths, key=lambda path: (path.count("."), path)):
            numbers = {
                p for p in children[path] if p.isdecimal() and p.isascii() and f"{path}.{p}".lstrip(".") in paths
            }
            numbered = path not in layers and bool(numbers)
            kind: type[nn.Module] = nn.ModuleDict if numbered else nn.Module
            if path not in layers:
                self._types[path] = f"nn.{kind.__name__}"
            taken = set(children[path]) | set(dir(kind())) | ({"INPUTS", "OUTPUTS"} if not path else set())
            for part in children[path]:
                whole = f"{path}.{part}".lstrip(".")
                named_well = _IDENTIFIER.fullmatch(part) and not keyword.iskeyword(part) and not hasattr(kind(), part)
                fits = part in numbers or named_well
                new = part if fits else _free(f"t_{re.sub(r'[^A-Za-z0-9_]', '_', part)}", taken)
                taken.add(new)
                named[whole] = f"{named[path]}.{new}".lstrip(".")
        self._named = named
        return {name: named[name] for name in self._tensors}

    def _expression(self, path: str) -> str:
        """Return the expression of a module or tensor by its path in the program."""
        parts = (part for part in self._named[path].split(".") if part)
        return "self" + "".join(f'["{part}"]' if part.isdecimal() else f".{part}" for part in parts)

    # -- parts

    @staticmethod
    def _arguments(interfaces: list[TensorInterface]) -> list[str]:
        taken = set(_RESERVED)
        names: list[str] = []
        for interface in interfaces:
            fits = _IDENTIFIER.fullmatch(interface.name) and not keyword.iskeyword(interface.name)
            name = _free(interface.name if fits else f"t_{len(names)}", taken)
            taken.add(name)
            names.append(name)
        return names

    def _interface(self, title: str, interfaces: list[TensorInterface]) -> Iterator[str]:
        yield f"{title} = {{"
        for interface in interfaces:
            shape = facts(interface, symbol_names(self.program)).shape
            yield f"    {interface.name!r}: ({shape!r}, {self._dtype(interface.dtype)}),"
        yield "}"

    def _dtype(self, dtype: torch.dtype) -> str:
        return str(self.dtype if dtype == torch.float32 else dtype)

    def _make(self) -> Iterator[str]:
        """Yield statements that make the containers, layers and other tensors, parents first."""
        made = {layer.path: layer.make for layer in self._layers.values()}
        held = {name for layer in self._layers.values() for name in layer.tensors}
        places = {path: kind + "()" for path, kind in self._types.items() if path} | made
        for path in sorted({*places, *(self._tensors.keys() - held)}, key=_natural):
            if path in places:
                yield f"{self._expression(path)} = {places[path]}"
                continue
            node = self._tensors[path]
            fake = node.meta["val"]
            other = "" if fake.dtype == torch.float32 else f", dtype={self._dtype(fake.dtype)}"
            size = f"{tuple(fake.shape)!r}{other}"
            if self.program.trainable(node) and (fake.is_floating_point() or fake.is_complex()):
                yield f"{self._expression(path)} = nn.Parameter(torch.empty({size}))"
            else:
                parent, _, last = self.names[path].rpartition(".")
                owner = self._expression(path.rpartition(".")[0]) if parent else "self"
                yield f"{owner}.register_buffer({last!r}, torch.empty({size}))"
        trained = {name: node for name, node in self._tensors.items() if self.program.trainable(node)}
        frozen = [name for name, node in trained.items() if self.program.is_frozen(node)]
        if frozen and len(frozen) == len(trained):
            yield "self.requires_grad_(False)"
        elif frozen:
            yield f"for name in {[self.names[name] for name in frozen]}:"
            yield "    self.get_parameter(name).requires_grad_(False)"

    # -- forward

    def _forward(self) -> Iterator[str]:
        self._variables: dict[fx.Node, str] = dict(
            zip(self.program.placeholders, self._arguments(self.inputs), strict=True)
        )
        left = Counter({node: len(node.users) for node in self.program.graph.nodes})
        unwritable: dict[Any, list[fx.Node]] = {}
        module = ""
        for node in self.program.graph.nodes:
            if node.op in ("placeholder", "get_attr", "output"):
                continue
            try:
                text = self._call(node)
            except _Unwritable:
                unwritable.setdefault(node.target, []).append(node)
                text = ""
            if module != (module := module_path(node)):
                yield f"# {module.encode('unicode_escape').decode('ascii') or 'the model itself'}"
            left.subtract(node.all_input_nodes)
            last_read = [read for read in node.all_input_nodes if not left[read] and read in self._variables]
            dying = {self._variables.pop(read): read.meta["val"] for read in last_read}
            name = next((name for name, value in dying.items() if _kind(value) is _kind(node.meta["val"])), None)
            self._variables[node] = name = name or self._variable(node)
            yield f"{name} = {text}"
            if done := [each for each, value in dying.items() if each != name and not isinstance(value, SYMBOLIC)]:
                yield f"del {', '.join(done)}"
        if unwritable:
            raise _refusal(unwritable)
        yield f"return {', '.join(self._value(node) for node in self.program.results)}"

    def _variable(self, node: fx.Node) -> str:
        return _free(_NAMES[_kind(node.meta["val"])], {*_RESERVED, *self._variables.values()})

    def _value(self, value: Any) -> str:
        """Return an argument as source."""
        if isinstance(value, fx.Node):
            return self._expression(tensor_name(value)) if value.op == "get_attr" else self._variables[value]
        if isinstance(value, list | tuple):
            texts = [self._value(item) for item in value]
            return f"[{', '.join(texts)}]"
        if isinstance(value, float) and not math.isfinite(value):
            return f"float('{value}')"
        if isinstance(value, torch.dtype):
            return self._dtype(value)
        if isinstance(value, bool | int | float | complex | str | None):
            return repr(value)
        raise _Unwritable

    def _call(self, node: fx.Node) -> str:
        if (layer := self._layers.get(node)) is not None:
            return self._layer_call(layer)
        target = node.target
        if (item := read_item(node)) is not None:
            return self._item(*item)
        if target in _INFIX and len(node.args) == 2 and not node.kwargs:
            return f"{self._value(node.args[0])} {_INFIX[target]} {self._value(node.args[1])}"
        if target in _OF_NUMBERS:
            return f"{_OF_NUMBERS[target]}({', '.join(map(self._value, node.args))})"
        if not isinstance(target, OpOverload):
            raise _Unwritable
        if target in _SPELLED:
            return _SPELLED[target](self, node)
        if target.namespace not in ("aten", "prims"):
            raise _Unwritable
        return self._operator_call(node, target)

    def _layer_call(self, layer: Layer) -> str:
        given = [f"({', '.join(map(self._value, g))})" if isinstance(g, list) else self._value(g) for g in layer.given]
        return f"{self._expression(layer.path)}({', '.join(given)})"

    def _item(self, source: fx.Node, position: int) -> str:
        if source in self._layers and source.target in RECURRENT.values():  # its states come as one result
            states = "[1]" if source.target is not RECURRENT["lstm"] or not position else f"[1][{position - 1}]"
            return self._value(source) + (states if position else "[0]")
        return f"{self._value(source)}[{position}]"

    def _operator_call(self, node: fx.Node, target: OpOverload) -> str:
        name = target._schema.name.partition("::")[2]
        keywords = {key: value for key, value in node.kwargs.items() if key not in _ELSEWHERE}
        if upsample := _UPSAMPLE.fullmatch(name):
            return self._interpolate(node, upsample)
        if target.namespace == "aten" and node.args and not keywords:
            first, *rest = node.args
            if name in _OF_SIZES and target._overloadname == "default":
                sizes = next(iter(rest), [])
                return f"{self._value(first)}.{_OF_SIZES[name]}({', '.join(map(self._value, cast(list, sizes)))})"
            if name in _METHODS:
                return f"{self._value(first)}.{_METHODS[name]}({', '.join(map(self._value, rest))})"
            if len(node.args) <= _FUNCTIONAL.get(name, 0):
                return f"F.{name}({', '.join(map(self._value, node.args))})"
        arguments = [self._value(value) for value in node.args]
        arguments += [f"{key}={self._value(value)}" for key, value in keywords.items()]
        if node.kwargs.get("device") is not None and self.inputs:
            arguments.append("device=device")  # of the inputs, wherever they are
        return f"{_function(target, name)}({', '.join(arguments)})"

    def _interpolate(self, node: fx.Node, found: re.Match[str]) -> str:
        if node.target._overloadname != "vec":  # type: ignore[union-attr]
            return f"torch.ops.{node.target}({', '.join(map(self._value, node.args))})"
        a = bound_arguments(node).values
        sizes = (("size", "output_size"), ("scale_factor", "scale_factors"))
        options = [f"{key}={self._value(a[name])}" for key, name in sizes if a[name] is not None]
        mode = "nearest-exact" if found["mode"] is None else _MODES[found["mode"]]
        options += [f"mode={mode!r}"]
        options += [f"align_corners={a['align_corners']}"] if "align_corners" in a else []
        options += ["antialias=True"] if found["antialias"] else []
        return f"F.interpolate({', '.join([self._value(a['input']), *options])})"

    # -- operators with a spelling of their own

    def _size(self, node: fx.Node) -> str:
        return f"{self._value(node.args[0])}.shape[{node.args[1]}]"

    def _slice(self, node: fx.Node) -> str:
        a = bound_arguments(node).values
        rank = a["self"].meta["val"].dim()
        start = "" if a["start"] in (None, 0) else self._value(a["start"])
        end = "" if a["end"] is None or (isinstance(a["end"], int) and a["end"] >= _END) else self._value(a["end"])
        step = "" if a["step"] == 1 else f":{self._value(a['step'])}"
        return f"{self._value(a['self'])}[{':, ' * (a['dim'] % rank)}{start}:{end}{step}]"

    def _index(self, node: fx.Node) -> str:
        a = bound_arguments(node).values
        return f"{self._value(a['self'])}[{', '.join(':' if i is None else self._value(i) for i in a['indices'])}]"

    def _cast(self, node: fx.Node) -> str:
        a = bound_arguments(node).values
        if a.get("dtype") is None:
            return f"{self._value(a['self'])}.clone()"
        return f"{self._value(a['self'])}.to({self._value(a['dtype'])})"

    def _dropout(self, node: fx.Node) -> str:
        return f"F.dropout({self._value(node.args[0])}, {self._value(node.args[1])}, self.training)"

    def _reorder_channels(self, node: fx.Node) -> str:
        return f"{self._value(node.args[0])}[:, {self._value(node.args[1])}]"

    def _space_to_depth(self, node: fx.Node) -> str:
        x, block = self._value(node.args[0]), self._value(node.args[1])
        tiles = f"{x}.unflatten(3, (-1, {block})).unflatten(2, (-1, {block}))"
        return f"{tiles}.permute(0, 3, 5, 1, 2, 4).flatten(1, 3)"

    def _depth_to_space(self, node: fx.Node) -> str:
        x, block = self._value(node.args[0]), self._value(node.args[1])
        return f"{x}.unflatten(1, ({block}, {block}, -1)).permute(0, 3, 4, 1, 5, 2).flatten(4, 5).flatten(2, 3)"

    def _shift(self, node: fx.Node) -> str:
        """Return a shift with a border that pads have; others are left as the model has them."""
        a = bound_arguments(node)
        x, dim, dims, border = a.node("x"), a.integer("dim"), a.integers("dims"), a.text("border")
        if border not in _PADS:
            raise _Unwritable
        shape, moved = x.meta["val"].shape, []
        first = min(dims) if border == "zeros" else 2  # of the padded dimensions
        for group in range(len(a.integers("sizes"))):
            by = dict(zip(dims, a.integers("distances")[group * len(dims) :], strict=False))
            by = {d: max(-n, min(n, by[d])) if isinstance(n := shape[d], int) else by[d] for d in dims}
            moved.append([n for d in reversed(range(first, len(shape))) for n in (by.get(d, 0), -by.get(d, 0))])
        parts = f"{self._value(x)}.split({self._value(a.value('sizes'))}, {dim})"
        return f"torch.cat([F.pad(part, widths{_PADS[border]}) for part, widths in zip({parts}, {moved!r})], {dim})"


_SPELLED: Mapping[Any, Callable[[ModuleSource, fx.Node], str]] = {
    aten.sym_size.int: ModuleSource._size,
    aten.slice.Tensor: ModuleSource._slice,
    aten.index.Tensor: ModuleSource._index,
    aten.to.dtype: ModuleSource._cast,
    aten.to.device: ModuleSource._cast,
    aten.to.dtype_layout: ModuleSource._cast,
    aten._to_copy.default: ModuleSource._cast,
    ours.dropout.default: ModuleSource._dropout,
    ours.reorder_channels.default: ModuleSource._reorder_channels,
    ours.space_to_depth.default: ModuleSource._space_to_depth,
    ours.depth_to_space.default: ModuleSource._depth_to_space,
    ours.shift.default: ModuleSource._shift,
}


def _kind(value: object) -> type:
    return Tensor if isinstance(value, Tensor) else tuple if isinstance(value, list | tuple) else int


def _function(target: OpOverload, name: str) -> str:
    """Return the shortest name of a function that takes an operator's arguments as they are."""
    if target.namespace == "aten":
        own = getattr(torch._C._nn, name, None)
        if own is not None and getattr(F, name, None) is own:
            return f"F.{name}"
        function = getattr(torch, name, None)
        if function is not None and getattr(F, name, None) is function and not name.startswith("_"):
            return f"F.{name}"
        if type(function) is type(torch.relu) and not name.startswith("_"):
            return f"torch.{name}"
    return f"torch.ops.{target}"


def _refusal(found: Mapping[Any, list[fx.Node]]) -> UnsupportedOperatorsError:
    rows = operator_rows(found)
    listed = "\n".join(f"    {target} x{count} in {paths}  {line}" for target, count, paths, line in rows)
    return UnsupportedOperatorsError(
        f"{len(rows)} operator{'s' * (len(rows) > 1)} cannot be written as PyTorch source:\n{listed}",
        rows,
        code="PTC3011",
        fix="The written file may need PyTorch only: use PyTorch's own operators there, or leave out --to torch.",
    )


def _free(name: str, taken: set[str] | Mapping[str, Any]) -> str:
    numbered = (f"{name}_{number}" for number in itertools.count(1))
    return next(each for each in itertools.chain([name], numbered) if each not in taken)


def _natural(path: str) -> list[tuple[int, str]]:
    """Return a key that sorts numbers by their value."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in path.split(".")]


def tensors(source: ModuleSource) -> dict[str, Tensor]:
    """Return the module's tensors by their names in it, in the source's precision."""
    nodes = {tensor_name(node): node for node in source.program.graph.find_nodes(op="get_attr") if node.users}
    held = {}
    for target, name in source.names.items():
        tensor, nominal = source.program.tensor(nodes[target]).detach(), nodes[target].meta["val"].dtype
        tensor = tensor.to(source.dtype if nominal == torch.float32 else tensor.dtype).contiguous()
        whole = tensor.untyped_storage().nbytes() == tensor.nbytes
        held[name] = tensor if whole else tensor.clone()  # what is saved is the storage
    return held
