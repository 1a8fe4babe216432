"""TorchScript's operators on numbers, lists, text and facts about tensors, in Python.

Sizes may be symbols of torch.export (`torch.SymInt`), which PyTorch's own versions of these operators do not take.
"""

import builtins
import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

LARGEST_LIST = 1_000_000
LARGEST_POWER = 64

# Type numbers in torch's C++ code, c10::ScalarType.
DTYPES = {
    0: torch.uint8, 1: torch.int8, 2: torch.int16, 3: torch.int32, 4: torch.int64, 5: torch.float16, 6: torch.float32,
    7: torch.float64, 8: torch.complex32, 9: torch.complex64, 10: torch.complex128, 11: torch.bool, 15: torch.bfloat16,
}  # fmt: skip
DTYPE_NUMBERS = {dtype: number for number, dtype in DTYPES.items()}
MEMORY_FORMATS = {
    0: torch.contiguous_format, 1: torch.preserve_format, 2: torch.channels_last, 3: torch.channels_last_3d,
}  # fmt: skip


class OutOfBounds(Exception):
    """The graph would use too much memory or time."""


def _sized(value: Any) -> Any:
    if isinstance(value, list | str | tuple) and len(value) > LARGEST_LIST:
        raise OutOfBounds(f"a list of {len(value)} elements")
    return value


def _mul(a: Any, b: Any) -> Any:
    if isinstance(a, list | str) or isinstance(b, list | str):
        items, times = (a, b) if isinstance(a, list | str) else (b, a)
        if len(items) * times > LARGEST_LIST:
            raise OutOfBounds(f"a list of {len(items) * times} elements")
    return a * b


def _pow(a: Any, b: Any) -> Any:
    if isinstance(a, int) and isinstance(b, int) and not 0 <= b <= LARGEST_POWER:
        return float(a) ** b
    return a**b


def _shift(function: Callable[[int, int], int]) -> Callable[[int, int], int]:
    def shifted(a: int, b: int) -> int:
        if not 0 <= b <= LARGEST_POWER:
            raise OutOfBounds(f"a shift by {b}")
        return function(a, b)

    return shifted


def _to_int(value: Any) -> Any:
    return torch.sym_int(value) if isinstance(value, torch.SymInt | torch.SymFloat) else int(value)


def _to_float(value: Any) -> Any:
    return torch.sym_float(value) if isinstance(value, torch.SymInt | torch.SymFloat) else float(value)


def _extreme(of_two: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    return lambda *values: functools.reduce(of_two, values[0] if len(values) == 1 else values)


_largest, _smallest = _extreme(torch.sym_max), _extreme(torch.sym_min)


def _slice(items: Any, start: Any = None, end: Any = None, step: int = 1) -> Any:
    return items[slice(start, end, step)]


def _set_item(items: Any, key: Any, value: Any) -> Any:
    items[key] = value
    return items


def _append(items: list, value: Any) -> list:
    items.append(value)
    return _sized(items)


def _extend(items: list, more: list) -> None:
    items.extend(more)
    _sized(items)


def _format(text: str, *values: Any) -> str:
    """Format as TorchScript does: `{}` only, without attributes or widths."""
    first, *others = text.split("{}")
    return first + "".join(str(value)[:1000] + rest for value, rest in zip(values, others, strict=False))


def _range_length(low: Any, high: Any, step: int) -> Any:
    if step == 0:
        raise ValueError("range() arg 3 must not be zero")
    return _largest((high - low + step - (1 if step > 0 else -1)) // step, 0)


def _unwrapped(value: Any) -> Any:
    if value is None:
        raise ValueError("Unwrapping null optional")
    return value


def _rangelist(end: int) -> list:
    if end > LARGEST_LIST:
        raise OutOfBounds(f"a list of {end} elements")
    return list(range(end))


def _rounded(value: Any) -> float:
    return float(round(value))


# Operators whose arguments are numbers, lists, text: by name, for every overload.
PLAIN: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: _sized(a + b), "sub": operator.sub, "mul": _mul, "floordiv": operator.floordiv,
    "add_": lambda a, b: _sized(operator.iadd(a, b)), "div": operator.truediv, "remainder": operator.mod,
    "mathremainder": math.remainder, "fmod": math.fmod, "divmod": divmod, "pow": _pow, "neg": operator.neg,
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge,
    "__and__": operator.and_, "__or__": operator.or_, "__xor__": operator.xor, "__not__": operator.not_,
    "__is__": operator.is_, "__isnot__": operator.is_not, "__lshift__": _shift(operator.lshift),
    "__rshift__": _shift(operator.rshift), "__contains__": operator.contains, "__getitem__": operator.getitem,
    "__round_to_zero_floordiv": lambda a, b: _to_int(a / b), "_set_item": _set_item, "append": _append,
    "extend": _extend, "insert": lambda items, at, value: items.insert(at, value),
    "pop": lambda items, *at: items.pop(*at), "reverse": list.reverse, "clear": lambda items: items.clear(),
    "copy": lambda items: items.copy(), "list": list, "len": len, "slice": _slice, "sorted": sorted,
    "sort": lambda items, reverse=False: items.sort(reverse=reverse), "count": lambda items, x: items.count(x),
    "index": lambda items, x: items.index(x), "remove": lambda items, x: items.remove(x),
    "keys": lambda d: list(d.keys()), "values": lambda d: list(d.values()), "items": lambda d: list(d.items()),
    "get": lambda d, *k: d.get(*k), "dict": lambda *items: dict(*items), "setdefault": lambda d, *k: d.setdefault(*k),
    "update": lambda d, e: d.update(e), "Delete": operator.delitem, "Int": _to_int, "Float": _to_float, "Bool": bool,
    "ScalarImplicit": lambda x: x, "str": lambda x: str(x)[:LARGEST_LIST], "format": _format,
    "join": lambda text, parts: _sized(text.join(parts)), "lower": str.lower, "upper": str.upper, "strip": str.strip,
    "lstrip": str.lstrip, "rstrip": str.rstrip, "startswith": lambda text, *rest: text.startswith(*rest),
    "endswith": lambda text, *rest: text.endswith(*rest),
    "replace": lambda text, old, new, *count: _sized(text.replace(old, new)),
    "find": lambda text, *rest: text.find(*rest), "split": lambda text, *rest: text.split(*rest),
    "isdigit": str.isdigit, "isalpha": str.isalpha, "ord": ord, "chr": chr, "__range_length": _range_length,
    "__derive_index": lambda i, start, step: start + i * step, "sum": builtins.sum, "all": builtins.all,
    "any": builtins.any, "floor": math.floor, "ceil": math.ceil, "round": _rounded, "sqrt": math.sqrt,
    "exp": math.exp, "log": math.log, "log2": math.log2, "log10": math.log10, "log1p": math.log1p, "sin": math.sin,
    "cos": math.cos, "tan": math.tan, "tanh": math.tanh, "atan2": math.atan2, "isinf": math.isinf,
    "isnan": math.isnan, "isfinite": math.isfinite, "degrees": math.degrees, "radians": math.radians,
    "fabs": math.fabs, "copysign": math.copysign, "warn": lambda *_: None, "_unwrap_optional": _unwrapped,
    "is_scripting": lambda: True, "_get_tracing_state": lambda: False, "is_grad_enabled": lambda: True,
    "is_autocast_enabled": lambda *_: False, "is_autocast_cpu_enabled": lambda: False,
    "has_torch_function": lambda *_: False, "Size": list,
    "get_autocast_dtype": lambda *_: DTYPE_NUMBERS[torch.bfloat16],
    "_infer_size": lambda a, b: list(torch.broadcast_shapes(a, b)),
    "broadcast_shapes": lambda *shapes: list(torch.broadcast_shapes(*shapes)),
    "promote_types": lambda a, b: DTYPE_NUMBERS[torch.promote_types(DTYPES[a], DTYPES[b])],
    "device": lambda *_: torch.device("cpu"),
}  # fmt: skip


def _size(x: Tensor, dim: int | None = None) -> Any:
    return list(x.shape) if dim is None else x.shape[dim]


def _tensor(data: Any, *, dtype: int | None = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    return torch.tensor(data, dtype=None if dtype is None else DTYPES[dtype])


def _as_tensor(data: Any, *, dtype: int | None = None, device: Any = None) -> Tensor:
    if isinstance(data, Tensor):
        return data if dtype is None else data.to(DTYPES[dtype])
    return _tensor(data, dtype=dtype)


# Operators that query or make a tensor, which torch.ops lacks or answers without symbols.
ON_TENSORS: dict[str, Callable[..., Any]] = {
    "size": _size, "sym_size": _size, "dim": lambda x: x.dim(), "numel": lambda x: x.numel(),
    "len": lambda x: x.shape[0], "stride": lambda x, *dim: x.stride(*dim), "nbytes": lambda x: x.nbytes,
    "element_size": lambda x: x.element_size(), "is_floating_point": lambda x: x.is_floating_point(),
    "is_complex": lambda x: x.is_complex(), "is_contiguous": lambda x, *_, **__: True,
    "is_signed": lambda x: x.is_signed(), "is_conj": lambda x: x.is_conj(), "is_neg": lambda x: x.is_neg(),
    "item": lambda x: x.item(), "storage_offset": lambda x: x.storage_offset(), "list": lambda x: x.tolist(),
    "tensor": _tensor, "as_tensor": _as_tensor, "Int": lambda x: _to_int(x.item()),
    "Float": lambda x: _to_float(x.item()), "Bool": lambda x: bool(x.item()),
    "IntImplicit": lambda x: _to_int(x.item()), "FloatImplicit": lambda x: _to_float(x.item()),
    "ScalarImplicit": lambda x: x.item(), "result_type": lambda a, b: DTYPE_NUMBERS[torch.result_type(a, b)],
    "requires_grad_": lambda x, *_: x, "cpu": lambda x: x, "_unwrap_optional": _unwrapped, "__is__": operator.is_,
    "__isnot__": operator.is_not,
}  # fmt: skip

# `requires_grad` is True so that transformers avoid their fused path, the only reader of these facts.
PRIM: dict[str, Callable[..., Any]] = {
    "ListConstruct": lambda *items: list(items), "TupleConstruct": lambda *items: tuple(items), "ListUnpack": tuple,
    "TupleUnpack": tuple, "TupleIndex": operator.getitem,
    "DictConstruct": lambda *items: dict(zip(items[::2], items[1::2], strict=True)), "Uninitialized": lambda: None,
    "unchecked_cast": lambda x: x, "unchecked_unwrap_optional": _unwrapped, "min": _smallest, "max": _largest,
    "abs": abs, "data": lambda x: x, "dtype": lambda x: DTYPE_NUMBERS[x.dtype],
    "device": lambda x: torch.device("cpu"), "layout": lambda x: 0, "is_cpu": lambda x: True,
    "type": lambda device: "cpu", "requires_grad": lambda x: True, "rangelist": _rangelist,
    "itemsize": lambda x: x.itemsize, "nbytes": lambda x: x.nbytes, "Print": lambda *_: None, "annotate": lambda x: x,
    "shape": lambda x: list(x.shape),
    **{
        f"is_{kind}": lambda x: False
        for kind in (
            "cuda", "quantized", "sparse", "mkldnn", "mps", "meta", "nested", "vulkan", "xla", "xpu", "ipu", "mtia",
            "maia", "sparse_csr",
        )
    },
}  # fmt: skip
