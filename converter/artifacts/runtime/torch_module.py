"""Open and run a PyTorch module that pt-convert wrote, given only its folder."""

from __future__ import annotations

import ast
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from .formats import TORCH_SOURCE
from .protocol import Fact, Refused, Value, fingerprint
from .refusals import refuse_files_elsewhere


class Reader:
    """Runs a module's source, which is a program: only if it is trusted, or known by its digest."""

    def __init__(self) -> None:
        import torch

        self._torch = torch
        self.inputs: list[Fact] = []
        self.outputs: list[Fact] = []

    def open(self, path: Path, signature: str | None = None, *, trusted: bool | str = False) -> None:
        if signature is not None:
            raise ValueError("a PyTorch module has no signatures")
        if trusted is not True:
            refuse_files_elsewhere(path)
        file = path / TORCH_SOURCE
        text = file.read_bytes()
        self._digest = hashlib.sha256(text).hexdigest()
        if trusted is not True and trusted != self._digest:
            raise Refused("it is a program, and not the one that pt-convert writes for this model")
        module = ModuleType("model")
        module.__file__ = str(file)
        exec(compile(text, str(file), "exec"), module.__dict__)  # it is trusted
        self._text, self._module = text.decode(), module
        self._model: Any = module.load()
        self.inputs, self.outputs = _facts(module.INPUTS), _facts(module.OUTPUTS)

    def run(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        given = [self._torch.from_numpy(np.array(arrays[name])) for name, *_ in self.inputs]
        with self._torch.no_grad():
            results = self._model(*given)
        results = results if isinstance(results, tuple) else (results,)
        return {name: self._array(result) for (name, *_), result in zip(self.outputs, results, strict=True)}

    def _array(self, tensor: Any) -> np.ndarray:
        tensor = tensor.detach()
        array: np.ndarray = (tensor.float() if tensor.dtype == self._torch.bfloat16 else tensor).numpy()
        return array

    def tensors(self) -> dict[str, np.ndarray]:
        """Return what the module holds under the names of the weights."""
        held = self._model.state_dict()
        left = {name for name in held if name.endswith("num_batches_tracked")}  # made anew where a batch norm is read
        return {name: self._array(tensor) for name, tensor in held.items() if name not in left}

    def held(self) -> dict[str, np.ndarray]:
        return self.tensors()

    def trace(self, arrays: Mapping[str, np.ndarray]) -> Iterator[Value]:
        """Yield the result of every operator that PyTorch runs."""
        from torch.utils._python_dispatch import TorchDispatchMode
        from torch.utils._pytree import tree_leaves

        found: list[Value] = []
        torch, as_array = self._torch, self._array

        class Recording(TorchDispatchMode):
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                result = func(*args, **(kwargs or {}))
                for leaf in tree_leaves(result):
                    if isinstance(leaf, torch.Tensor):
                        array = as_array(leaf)
                        found.append((f"{func}_{len(found)}", str(func), list(array.shape), fingerprint(array)))
                return result

        with Recording():
            self.run(arrays)
        yield from found

    def graph_digest(self) -> str:
        return self._digest

    def operators(self) -> dict[str, int]:
        """Count the calls of `forward`, layers by their classes."""
        counts: Counter[str] = Counter()
        model = next(n for n in ast.parse(self._text).body if isinstance(n, ast.ClassDef))
        forward = next(n for n in model.body if isinstance(n, ast.FunctionDef) and n.name == "forward")
        for node in ast.walk(forward):
            if isinstance(node, ast.Call):
                counts[self._called(node.func)] += 1
            elif isinstance(node, ast.BinOp):
                counts[type(node.op).__name__] += 1
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    def _called(self, function: ast.expr) -> str:
        text = ast.unparse(function)
        if not text.startswith("self"):
            return text.removeprefix("torch.ops.").split(".")[-1 if "aten" not in text else 1]
        module = self._model
        parts = [n.attr if isinstance(n, ast.Attribute) else ast.literal_eval(n.slice) for n in _chain(function)]
        for part in reversed(parts):
            if part not in module._modules:
                return str(parts[0])  # a method of a tensor
            module = module._modules[part]
        return type(module).__name__

    def xla_functions(self) -> list[str]:
        return []


def _chain(node: ast.expr) -> Iterator[ast.Attribute | ast.Subscript]:
    while isinstance(node, ast.Attribute | ast.Subscript):
        yield node
        node = node.value


def _facts(interface: Mapping[str, Any]) -> list[Fact]:
    return [
        (name, [n if isinstance(n, int) else None for n in shape], str(dtype).removeprefix("torch."))
        for name, (shape, dtype) in interface.items()
    ]
