"""A TorchScript module as an `nn.Module` with the same names, which `torch.export` can trace."""

import inspect
import keyword
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from converter.checkpoint.torchscript.interpreter import Block, Compiler, Number
from converter.errors import CheckpointError, ConversionError


class ScriptedModule(nn.Module):
    """One module of a TorchScript file: its parameters, buffers and parts by name, its methods as graphs."""

    def __init__(self, script: Any):
        super().__init__()
        self._script = script  # torch._C.ScriptModule
        self._methods: dict[str, Block] = {}
        self._values: dict[str, Any] = {}

    def script_attribute(self, name: str) -> Any:
        if name == "training":
            return self.training
        for held in (self._parameters, self._buffers, self._modules):
            if name in held:
                return held[name]
        if name not in self._values:
            raise ConversionError(
                f"The TorchScript has an attribute `{name}` that is not a plain value.",
                code="PTC1080",
                fix="Give the original model's checkpoint, or torch.export.save of it.",
            )
        return tree_map_only(Kept, lambda kept: kept.tensor(), self._values[name])

    def script_call(self, method: str, arguments: tuple) -> Any:
        return self(*arguments) if method == "forward" else self.run_method(method, *arguments)

    def forward(self, *arguments: Any) -> Any:
        return self.run_method("forward", *arguments)

    def run_method(self, name: str, *arguments: Any) -> Any:
        block = self._methods[name]
        (result,) = block.run(dict(zip(block.takes, (self, *arguments), strict=True)))
        return result

    def compile_methods(self, compiler: Compiler) -> None:
        for name in self._script._method_names():
            self._methods[name] = compiler.block(self._script._get_method(name).graph)

    def take_values(self, names: set[str], constants: "Constants") -> None:
        """Keep the attributes of these names that are neither tensors nor modules."""
        for name in names - {*self._parameters, *self._buffers, *self._modules, "training"}:
            if self._script.hasattr(name):
                self._values[name] = tree_map_only(
                    Tensor, lambda tensor: Kept(constants.keep(tensor)), self._script.getattr(name)
                )


class Constants(nn.Module):
    """The tensors in a TorchScript file's code, such as those of `torch.jit.freeze`."""

    def keep(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Keep a tensor, and return a function that returns it; a tensor that is already kept is reused."""
        for known, held in self._buffers.items():
            if held is not None and _same(held, tensor):
                name = known
                break
        else:
            name = f"c{len(self._buffers)}"
            self.register_buffer(name, tensor.detach())
        return lambda: getattr(self, name)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() != 0 and a.shape == b.shape and a.stride() == b.stride() and a.dtype == b.dtype


def rebuilt(
    unit: torch._C.CompilationUnit, script: Any, code: Mapping[str, str], path: Path, trusted: bool
) -> nn.Module:
    """Return a module that runs as the script does, and can be traced.

    Called directly, it runs TorchScript's own interpreter, the reference for the traced result. Traced, it runs the
    graphs operator by operator.

    Args:
        script: a RecursiveScriptModule in its final types and mode; its weights are shared.

    Raises:
        CheckpointError: it uses operators that are not allowed, has hooks, or has no forward.
    """
    constants = Constants()
    if not script._c._has_method("forward"):
        raise CheckpointError(
            "The TorchScript does not have a forward method.",
            code="PTC1081",
            where=str(path),
            fix="Save a module that has one.",
        )
    compiler = Compiler(unit, dict(code), path.name, trusted, constants.keep)
    for constant in script.forward.code_with_constants[1].values():
        constants.keep(constant)  # under their names in the file's code
    module = _part(script, {}, "")
    parts = [part for part in module.modules() if isinstance(part, ScriptedModule)]
    for part in parts:
        part.compile_methods(compiler)
    for part in parts:
        part.take_values(compiler.attributes, constants)
    if constants._buffers:
        module.add_module("CONSTANTS", constants)
    module.eval()
    module.forward = _forward(module, script)  # type: ignore[method-assign]
    return module


def _part(script: Any, taken: dict[int, tuple[Tensor, nn.Parameter]], path: str) -> ScriptedModule:
    kind = type(script.original_name, (ScriptedModule,), {"__module__": ScriptedModule.__module__})
    part: ScriptedModule = kind(script._c)
    if script._c._get_forward_hooks() or script._c._get_forward_pre_hooks():
        fix = "Remove them before torch.jit.script."
        raise CheckpointError("The TorchScript has hooks.", code="PTC1082", where=f"module `{path}`", fix=fix)
    for name, value in script._parameters.items():
        own = nn.Parameter(value.detach(), requires_grad=value.requires_grad and value.is_floating_point())
        part._parameters[name] = taken.setdefault(id(value), (value, own))[1]
    for name, value in script._buffers.items():
        part._buffers[name] = value
    for name, inner in script._modules.items():
        part._modules[name] = _part(inner, taken, f"{path}.{name}".lstrip("."))
    return part


@dataclass(frozen=True)
class Kept:
    """A tensor within a value, as the constant that it is kept as."""

    tensor: Callable[[], Tensor]


def _forward(module: ScriptedModule, script: Any) -> Callable[..., Any]:
    """Return a forward that runs TorchScript itself, but runs the graphs while `torch.export` traces.

    Capture compares the two.
    """
    arguments = script._c._get_method("forward").schema.arguments[1:]
    names = [
        a.name if a.name.isidentifier() and not keyword.iskeyword(a.name) else f"input_{i}"
        for i, a in enumerate(arguments)
    ]

    def forward(*given: Any) -> Any:
        missing = [a.default_value for a in arguments[len(given) :]]
        if torch.compiler.is_exporting():
            return tree_map_only(Number, Number.as_tensor, module.run_method("forward", *given, *missing))
        with torch.jit._fuser.optimized_execution(False):
            return script(*given)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    forward.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(name, kind, default=a.default_value if a.has_default_value() else inspect.Parameter.empty)
            for name, a in zip(names, arguments, strict=True)
        ]
    )
    return forward
