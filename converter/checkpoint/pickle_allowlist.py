"""The names that a pickle may use without `--trust`: parts of tensors, torch's own modules, plain Python values.

Every name maps to a `Named`, which also says whether the pickle may call the object while it is read. Modules are never
called: they are made empty and given their state. Functions that could do more than a model needs (numpy's
constructors, `getattr`, `codecs.encode`) are replaced by narrow equivalents.
"""

import argparse
import collections
import datetime
import decimal
import enum
import fractions
import functools
import importlib
import importlib.metadata
import ipaddress
import pathlib
import re
import sys
import types
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from converter.checkpoint.import_isolation import installed_code
from converter.checkpoint.placeholders import Compiled, Opaque
from converter.checkpoint.trust import NotFoundError
from converter.checkpoint.user_source import misfit


@dataclass(frozen=True)
class Named:
    """The object that a name in a pickle stands for.

    Attributes:
        value: the object to use.
        called: the pickle may call it.
        built: the pickle may make an empty instance of it, and set its `__dict__`.
    """

    value: Any
    called: bool = False
    built: bool = False


class Refused(Exception):
    """The pickle uses an allowed name in a way that no model does."""


class TorchFunctions:
    """A stand-in for the class that torch's built-in functions are pickled as attributes of."""


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise Refused(f"codecs.encode to {encoding!r}")
    return text.encode("latin1")


def _plain_dtype(code: str, align: bool = False, copy: bool = False) -> np.dtype:
    if not isinstance(code, str) or not re.fullmatch(r"[<>=|]?([biufc?]\d{0,2}|[SU]\d+|[mM]8)", code):
        raise Refused(f"a numpy array of {code!r}")
    return np.dtype(code, copy=True)  # the pickle completes it in place


def _numpy_scalar(dtype: np.dtype, data: bytes) -> Any:
    if type(data) is not bytes or len(data) != dtype.itemsize:
        raise Refused("a numpy number of the wrong size")
    return np.frombuffer(data, dtype)[0]


def _empty_array(kind: type, shape: tuple, code: bytes) -> Any:
    if kind is Opaque:
        return Opaque()
    if kind is not np.ndarray:
        raise Refused("a numpy array of a class of its own")
    return np.empty(0, np.uint8)


def check_array(shape: Any, dtype: Any, data: Any) -> None:
    """Refuse an array whose bytes are not those of plain numbers or texts, one for each element.

    Raises:
        Refused: says what it is.
    """
    if not isinstance(dtype, np.dtype) or dtype.hasobject or dtype.fields or type(data) not in (bytes, bytearray):
        raise Refused("a numpy array of Python objects")
    count = int(np.prod(shape, dtype=object))
    if any(type(size) is not int or size < 0 for size in shape) or len(data) != count * dtype.itemsize:
        raise Refused("a numpy array of the wrong size")


def _array_of_buffer(data: bytes | bytearray, dtype: np.dtype, shape: tuple, order: str = "C") -> np.ndarray:
    check_array(shape, dtype, data)
    if order not in ("C", "F", "A"):
        raise Refused("a numpy array in an order of its own")
    return np.frombuffer(data, dtype).reshape(shape, order=order)  # type: ignore[call-overload]


def _defaultdict(factory: Any = None) -> collections.defaultdict:
    if factory in (Opaque, _defaultdict) or isinstance(factory, functools.partial):
        factory = None  # its values are kept
    if factory is not None and factory not in FACTORIES:
        raise Refused("a defaultdict that calls something")
    return collections.defaultdict(factory)


def _bytearray(data: bytes | str = b"", encoding: str = "latin1") -> bytearray:
    if type(data) not in (bytes, str):
        raise Refused("a bytearray of another size than its data")
    return bytearray(data if isinstance(data, bytes) else _latin1(data, encoding))


def _bytes() -> bytes:
    return b""  # as protocol 2 writes empty bytes


def _fraction(numerator: int | str, denominator: int = 1) -> fractions.Fraction:
    if type(numerator) is str and not re.fullmatch(r"-?\d{1,999}(/\d{1,999})?", numerator):
        raise Refused("a fraction with an exponent")
    return fractions.Fraction(numerator) if isinstance(numerator, str) else fractions.Fraction(numerator, denominator)


def _type_of(*arguments: Any) -> type:
    if arguments != (None,):
        raise Refused("the class of a value")
    return type(None)


def _partial(function: Callable) -> functools.partial:
    return functools.partial(function)


def tensor_with_attributes(rebuild: Callable, kind: type, arguments: tuple, state: Any) -> torch.Tensor:
    if rebuild not in TENSOR_REBUILDERS or kind is not torch.Tensor:
        raise Refused("a tensor of a class of its own")
    return torch._tensor._rebuild_from_type_v2(rebuild, kind, arguments, state)


def _version(text: str) -> str:
    return text


def _no_backend() -> None:
    """Return nothing: PyTorch before 1.0 kept its backend in every module, but nothing reads it now."""


TENSOR_REBUILDERS = (
    torch._utils._rebuild_tensor,
    torch._utils._rebuild_tensor_v2,
    torch._utils._rebuild_tensor_v3,
    torch._utils._rebuild_parameter,
    torch._utils._rebuild_parameter_with_state,
    torch._utils._rebuild_qtensor,
)

FACTORIES = (
    *(bool, int, float, complex, str, _bytes, _bytearray, list, tuple, dict, set, frozenset),
    *(collections.OrderedDict, collections.Counter, collections.deque),
)

WRAPPED_HOOK = torch.nn.modules.module._WrappedHook

# Names in state dicts; torch's own `weights_only` reader allows at least these.
TENSOR_NAMES: dict[str, Named] = {
    **{f"torch._utils.{rebuild.__name__}": Named(rebuild, called=True) for rebuild in TENSOR_REBUILDERS},
    "torch._tensor._rebuild_from_type_v2": Named(tensor_with_attributes, called=True),
    "torch.Tensor": Named(torch.Tensor),
    "torch.Size": Named(torch.Size, called=True),
    "torch.device": Named(torch.device, called=True),
    "torch.serialization._get_layout": Named(torch.serialization._get_layout, called=True),
    "collections.OrderedDict": Named(collections.OrderedDict, called=True),
    "collections.Counter": Named(collections.Counter, called=True),
    "builtins.set": Named(set, called=True),
    "builtins.complex": Named(complex, called=True),
}

OTHER_NAMES: dict[str, Named] = {
    "_codecs.encode": Named(_latin1, called=True),
    "builtins.frozenset": Named(frozenset, called=True),
    "builtins.slice": Named(slice, called=True),
    "builtins.range": Named(range, called=True),
    **{f"builtins.{kind.__name__}": Named(kind) for kind in (object, bool, int, float, str, list, tuple, dict)},
    "builtins.bytes": Named(_bytes, called=True),
    "builtins.bytearray": Named(_bytearray, called=True),
    "builtins.Ellipsis": Named(...),
    "builtins.NotImplemented": Named(NotImplemented),
    "builtins.type": Named(_type_of, called=True),
    "collections.defaultdict": Named(_defaultdict, called=True),
    "collections.deque": Named(collections.deque, called=True),
    **{
        f"collections.{kind.__name__}": Named(kind, built=True)
        for kind in (collections.ChainMap, collections.UserDict, collections.UserList)
    },
    "fractions.Fraction": Named(_fraction, called=True),
    "uuid.UUID": Named(uuid.UUID, built=True),
    "uuid.SafeUUID": Named(uuid.SafeUUID, called=True),
    **{
        f"ipaddress.{kind.__name__}": Named(kind, called=True)
        for kind in (ipaddress.IPv4Address, ipaddress.IPv6Address, ipaddress.IPv4Network, ipaddress.IPv6Network)
    },
    "functools.partial": Named(_partial, called=True),
    "argparse.Namespace": Named(argparse.Namespace, built=True),
    "types.SimpleNamespace": Named(types.SimpleNamespace, called=True, built=True),
    **{
        f"{kind.__module__}.{kind.__name__}": Named(kind, called=True)
        for kind in (
            datetime.datetime,
            datetime.date,
            datetime.time,
            datetime.timedelta,
            datetime.timezone,
            decimal.Decimal,
        )
    },
    "torch.torch_version.TorchVersion": Named(_version, called=True),
    "numpy.dtype": Named(_plain_dtype, called=True),
    "numpy.ndarray": Named(np.ndarray),
    "torch._C._VariableFunctionsClass": Named(TorchFunctions),
    "torch.nn.backends.thnn._get_thnn_function_backend": Named(_no_backend, called=True),
    "torch.nn.modules.module._WrappedHook": Named(WRAPPED_HOOK, built=True),
    "torch.nn.utils.weight_norm.WeightNorm": Named(
        importlib.import_module("torch.nn.utils.weight_norm").WeightNorm, built=True
    ),
    **{
        f"torch.nn.utils.spectral_norm.{name}": Named(
            getattr(importlib.import_module("torch.nn.utils.spectral_norm"), name), built=True
        )
        for name in ("SpectralNorm", "SpectralNormStateDictHook", "SpectralNormLoadStateDictPreHook")
    },
    **{
        f"torch.nn.utils.prune.{name}": Named(
            getattr(importlib.import_module("torch.nn.utils.prune"), name), built=True
        )
        for name in (
            "CustomFromMask",
            "Identity",
            "L1Unstructured",
            "LnStructured",
            "PruningContainer",
            "RandomStructured",
            "RandomUnstructured",
        )
    },
    **{
        f"{module}.{name}": Named(pathlib.PureWindowsPath if "Windows" in name else pathlib.PurePosixPath, called=True)
        for module in ("pathlib", "pathlib._local")
        for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    },
    **{
        f"numpy.{core}.multiarray.{name}": Named(function, called=True)
        for core in ("core", "_core")
        for name, function in (("scalar", _numpy_scalar), ("_reconstruct", _empty_array))
    },
    **{f"numpy.{core}.numeric._frombuffer": Named(_array_of_buffer, called=True) for core in ("core", "_core")},
}

# Values that no model needs: an empty object replaces each, and the report names them.
LEFT_ASIDE = {
    *("torch.Generator", "torch._C.Generator", "random.Random", "zoneinfo.ZoneInfo", "re._compile"),
    *("array.array", "array._array_reconstructor"),
    *("torch._utils._rebuild_sparse_tensor", "torch._utils._rebuild_nested_tensor"),
}

# What PyTorch itself registers as hooks of modules: the only ones that a file may bring without trust.
HOOKS = tuple(named.value for name, named in OTHER_NAMES.items() if named.built and name.startswith("torch."))

# What torch.compile puts around a module, and what that keeps for compiling: nothing that the module computes with.
COMPILED = "torch._dynamo.eval_frame.OptimizedModule"
COMPILING = ("torch._dynamo.", "torch._inductor.", "torch._TorchCompile", "contextlib.nullcontext")

# As a user keeps them in an attribute: `self.activation = torch.relu`
ACTIVATIONS = (
    *("relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "celu", "selu", "gelu", "silu", "mish", "softplus"),
    *("sigmoid", "log_sigmoid", "hardsigmoid", "hardswish", "hardtanh", "tanh", "softmax", "log_softmax"),
)

MODULE_PLACES = (
    "torch.nn.modules",
    "torch.nn.parallel.data_parallel",
    "torch.optim.swa_utils",
    "torchvision.models",
    "torchvision.ops",
    "timm.models",
    "timm.layers",
)


def find_allowed(module: str, name: str) -> Named | None:
    """Return the object that a name stands for, or None if it is not allowed.

    torchvision and timm are imported if they are installed, never from the current directory.

    Raises:
        NotFoundError: it belongs to torchvision or timm, which are not installed or have no such name.
    """
    if (module, name[:6]) == ("torch._utils", "torch."):  # memory formats are pickled under this module
        module, name = "torch", name[6:]
    full = f"{module}.{name}"
    if full in TENSOR_NAMES:
        return TENSOR_NAMES[full]
    if full in OTHER_NAMES:
        return OTHER_NAMES[full]
    if full in LEFT_ASIDE:
        return Named(Opaque, called=True, built=True)
    if full == COMPILED:
        return Named(Compiled, called=True, built=True)
    if full.startswith(COMPILING):
        return Named(Opaque, called=True, built=True)
    if module == "torch":
        value = getattr(torch, name, None) if name.isidentifier() else None
        kinds = (torch.dtype, torch.layout, torch.memory_format, torch.qscheme)
        return Named(value) if isinstance(value, kinds) else None
    if module == "numpy":
        scalar = vars(np).get(name)
        return Named(scalar) if isinstance(scalar, type) and issubclass(scalar, np.generic) else None
    if module == "torch._C._nn":
        return Named(getattr(torch._C._nn, name)) if name in ACTIVATIONS else None
    if module == "torch.nn.functional":
        value = vars(torch.nn.functional).get(name)
        own = isinstance(value, types.FunctionType) and value.__module__ == module and not name.startswith("_")
        return Named(value) if own else None
    if _in_places(module) and name.isidentifier():
        return _part_of_a_library(module, name)
    return None


def is_tensor_name(module: str, name: str) -> bool:
    """Return whether `torch.load(weights_only=True)` knows the name."""
    if module in ("torch", "torch.storage"):
        return name.endswith("Storage") or isinstance(getattr(torch, name, None), torch.dtype) or name == "Size"
    return f"{module}.{name}" in TENSOR_NAMES


def attribute(owner: object, name: str) -> Any:
    """Return an allowed result of `getattr(torch's functions, name)`: torch.relu and similar."""
    if owner is TorchFunctions and name in ACTIVATIONS:
        return getattr(torch, name)
    raise Refused(f"getattr(..., {name!r})")


def is_library_module(kind: object) -> bool:
    """Return whether this is a class of torch.nn, torchvision or timm, which is built and takes its own state."""
    return kind in (WRAPPED_HOOK, Compiled) or _is_library_module(kind)


def _is_library_module(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, torch.nn.Module) and _in_places(kind.__module__)


def _in_places(module: str) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in MODULE_PLACES)


def _part_of_a_library(module: str, name: str) -> Named | None:
    value = vars(installed_module(module)).get(name)
    if value is None:
        raise NotFoundError(f"{module} has no `{name}` in the version that is installed")
    if is_library_module(value):
        return Named(value, built=True)
    if isinstance(value, type) and issubclass(value, enum.Enum) and _in_places(value.__module__):
        return Named(value, called=True)
    return None


def installed_module(module: str) -> types.ModuleType:
    """Import an installed module of torch, torchvision or timm, never a folder `timm` next to a checkpoint."""
    package = module.split(".")[0]
    if module in sys.modules:
        return sys.modules[module]
    try:
        importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        raise NotFoundError(f"the package {package}, which is not installed: pip install {package}") from None
    try:
        with installed_code():
            return importlib.import_module(module)
    except (ImportError, RuntimeError) as error:
        raise NotFoundError(f"{module}, which cannot be imported: {misfit(error) or error}") from error
