"""Faults of LiteRT files and of PyTorch modules: attributes, constants, operators and operands, lines of source."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from converter.artifacts.runtime import graph_digest as digests
from converter.artifacts.runtime import stamp as stamps
from converter.artifacts.runtime.formats import TORCH_SOURCE, TORCH_WEIGHTS
from converter.artifacts.runtime.tflite_content import graph_digest, model_bytes, stored_tensors
from mutations.artifact_faults import Edit, Spoil, _faulty

# -- LiteRT files

LITE_OPERATORS = {
    "RELU": "ELU", "LOGISTIC": "TANH", "TANH": "LOGISTIC", "ELU": "RELU", "RELU6": "RELU", "FLOOR": "CEIL",
    "MAXIMUM": "MINIMUM", "MINIMUM": "MAXIMUM", "SQRT": "ABS", "RSQRT": "SQRT", "EXP": "ABS", "LOG": "NEG",
    "MEAN": "REDUCE_MAX", "REDUCE_MAX": "REDUCE_MIN", "SUM": "MEAN", "SOFTMAX": "LOG_SOFTMAX", "HARD_SWISH": "ELU",
    "MAX_POOL_2D": "AVERAGE_POOL_2D", "AVERAGE_POOL_2D": "MAX_POOL_2D", "FLOOR_DIV": "FLOOR_MOD", "GREATER": "LESS",
    "LESS": "GREATER", "ARG_MAX": "ARG_MIN", "SPACE_TO_DEPTH": "", "SELECT_V2": "",
}  # fmt: skip
LITE_ORDERED = {"SUB", "DIV", "POW", "CONCATENATION", "FLOOR_DIV", "FLOOR_MOD", "GREATER", "LESS", "BATCH_MATMUL"}
NO_OPTION = {"weightsFormat", "keepNumDims", "asymmetricQuantizeInputs", "quantizedBiasType", "potScaleInt16",
             "allowSpaceToDepth", "validateShape", "newShape"}  # fmt: skip
ACTIVATIONS = {0: 1, 1: 0, 3: 1}  # none, ReLU, ReLU6


def normalized(path: Path) -> None:
    """Write the file as one that is read and written without a change, so that only a change changes its digest."""
    _rewrite(path, lambda model: None)
    with zipfile.ZipFile(path) as archive:
        stamp = json.loads(archive.read(stamps.ZIP_MEMBER))
    content = model_bytes(path.read_bytes())
    path.write_bytes(content)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(stamps.ZIP_MEMBER, stamps.stamp_text(digests.stamped(stamp, graph_digest(content))))


def _rewrite(path: Path, change: Callable[[Any], Any]) -> None:
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    content = path.read_bytes()
    bare = model_bytes(content)
    model = schema.ModelT.InitFromPackedBuf(bare)
    change(model)
    builder = flatbuffers.Builder(len(bare))
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()) + content[len(bare) :])


def lite_edits(path: Path) -> Iterator[Edit]:
    from ai_edge_litert import schema_py_generated as schema

    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    model = schema.ModelT.InitFromPackedBuf(model_bytes(path.read_bytes()))
    for number, graph in enumerate(model.subgraphs):
        for position, operator in enumerate(graph.operators):
            code = model.operatorCodes[operator.opcodeIndex]
            kind, site = names[max(code.builtinCode, code.deprecatedBuiltinCode)], f"{number}/{position}"
            place = (number, position)
            if LITE_OPERATORS.get(kind):
                other = LITE_OPERATORS[kind]
                value = getattr(schema.BuiltinOperator, other)
                yield Edit(f"{other} for {kind}", site, _in_lite(place, lambda o, m, v=value: _renamed(o, m, v)))
            if kind in LITE_ORDERED and len(set(operator.inputs.tolist())) > 1:
                yield Edit(f"{kind} operands swapped", site, _in_lite(place, _swap_inputs))
            for name, value in vars(operator.builtinOptions or object()).items() if operator.builtinOptions else ():
                for faulty in _faulty_option(name, value):
                    text = f"{site} {name} {value} -> {faulty}"
                    yield Edit(
                        f"{kind} {name}", text,
                        _in_lite(place, lambda o, m, n=name, f=faulty: setattr(o.builtinOptions, n, f)),
                    )  # fmt: skip
    yield from _constant_edits(path)


def _faulty_option(name: str, value: Any) -> list[Any]:
    if name in NO_OPTION or not isinstance(value, bool | int | float):
        return []
    if name == "fusedActivationFunction":
        return [ACTIVATIONS[value]] if value in ACTIVATIONS else []
    if name == "padding":
        return [1 - value]
    return _faulty(value)


def _in_lite(place: tuple[int, int], change: Callable[[Any, Any], Any]) -> Spoil:
    return lambda path: _rewrite(path, lambda model: change(model.subgraphs[place[0]].operators[place[1]], model))


def _renamed(operator: Any, model: Any, value: int) -> None:
    from ai_edge_litert import schema_py_generated as schema

    code = schema.OperatorCodeT()
    code.builtinCode, code.deprecatedBuiltinCode, code.version = value, min(value, 127), 1
    operator.opcodeIndex = len(model.operatorCodes)
    model.operatorCodes.append(code)


def _swap_inputs(operator: Any, _: Any) -> None:
    first, second, *others = operator.inputs.tolist()
    operator.inputs = np.array([second, first, *others], np.int32)


def _constant_edits(path: Path) -> Iterator[Edit]:
    for tensor in stored_tensors(model_bytes(path.read_bytes())):
        array = tensor.array
        if array.dtype == np.float32 and array.size <= digests.SMALL and np.isfinite(array).all():
            wrong = np.where(array == 0, np.float32(0.5), array * np.float32(1.01)).astype(np.float32)
            yield Edit("constant off by a hundredth", tensor.name, _in_place({tensor.name: wrong}))
        elif array.dtype == np.int32 and array.ndim == 1 and len(set(array.tolist())) > 1:
            yield Edit(
                "integers of a shape, axes or widths turned", tensor.name, _in_place({tensor.name: np.roll(array, 1)})
            )


def _in_place(changed: Mapping[str, np.ndarray]) -> Spoil:
    return lambda path: write_lite_tensors(path, changed)


def write_lite_tensors(path: Path, changed: Mapping[str, np.ndarray]) -> None:
    """Write tensors over those of these names, which have the same sizes."""
    content = bytearray(path.read_bytes())
    for tensor in stored_tensors(model_bytes(bytes(content))):
        if tensor.name in changed:
            content[tensor.start : tensor.stop] = np.ascontiguousarray(changed[tensor.name]).tobytes()
    path.write_bytes(content)


# -- PyTorch modules

WORDS = {
    "relu": "gelu", "gelu": "silu", "silu": "relu", "tanh": "sigmoid", "sigmoid": "tanh", "elu": "selu",
    "softmax": "log_softmax", "log_softmax": "softmax", "max_pool2d": "avg_pool2d", "hardswish": "silu",
    "softplus": "relu", "amax": "amin", "argmax": "argmin", "maximum": "minimum", "minimum": "maximum",
    "expm1": "exp", "log1p": "log", "floor": "ceil", "fmod": "remainder", "remainder": "fmod",
}  # fmt: skip
NUMBER = re.compile(r"(?<![\w.\"'])(\d+\.\d+(?:e-?\d+)?|\d+e-?\d+|\d+)(?![\w.\"'])")
CALL = re.compile(r"(?<=[.])(" + "|".join(WORDS) + r")(?=\()")
SIGN = re.compile(r" ([-+]) ")


def torch_edits(path: Path) -> Iterator[Edit]:
    """Edit numbers, functions and signs in the lines of `__init__` and `forward`."""
    lines = (path / TORCH_SOURCE).read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if "class Model" in line)
    end = next((n for n, line in enumerate(lines) if n > start and line and not line[0].isspace()), len(lines))
    for number in range(start, end):
        line = lines[number]
        if line.lstrip().startswith(("#", '"""', "def ", "class ")):
            continue
        for found in NUMBER.finditer(line.partition("#")[0]):
            text = found[0]
            value = float(text) if "." in text or "e" in text else int(text)
            yield Edit(
                f"a number of `{_word(line)}`", f"{number}: {text}", _line(number, found.span(), str(_faulty(value)[0]))
            )
        for found in CALL.finditer(line):
            yield Edit(f"{WORDS[found[0]]} for {found[0]}", str(number), _line(number, found.span(), WORDS[found[0]]))
        for found in SIGN.finditer(line):
            yield Edit("plus and minus", str(number), _line(number, found.span(1), "+" if found[1] == "-" else "-"))


def _word(line: str) -> str:
    """Return the function or layer that a line calls."""
    found = re.search(r"(?:nn|F|torch)\.(\w+)|\.(\w+)\(", line)
    return (found[1] or found[2]) if found else "a line"


def _line(number: int, span: tuple[int, int], text: str) -> Spoil:
    def spoil(path: Path) -> None:
        source = path / TORCH_SOURCE
        lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
        lines[number] = lines[number][: span[0]] + text + lines[number][span[1] :]
        source.write_text("".join(lines), encoding="utf-8")

    return spoil


def write_torch_tensors(path: Path, changed: Mapping[str, np.ndarray]) -> None:
    held = torch.load(path / TORCH_WEIGHTS)
    torch.save(held | {name: torch.from_numpy(array.copy()) for name, array in changed.items()}, path / TORCH_WEIGHTS)
