"""Values of a model's own tensors, for a forward that reads numbers from them during capture.

    for stride in self.strides: ... int(stride) ...
    if self.scale > 1: ...

`torch.export` knows only shapes. Results that depend only on the model's own tensors are computed here with values too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from converter.ir.aten import may_draw

READING = {"item", "tolist", "__bool__", "__int__", "__float__", "__index__"}
TAKING_NUMBERS = {
    "arange", "expand", "full", "full_like", "linspace", "narrow", "new_empty", "new_full", "new_ones", "new_zeros",
    "ones", "repeat", "reshape", "split", "tile", "unflatten", "view", "zeros",
}  # fmt: skip
LARGEST = 65_536  # elements of a tensor that numbers are read from


class KnownValues(TorchFunctionMode):
    """A mode that follows the values of results computed from a module's own tensors.

    Attributes:
        read: whether a number was read from one.
    """

    def __init__(self, module: nn.Module):
        super().__init__()
        self.read = False
        self._held = {key: tensor.detach() for key, tensor in _tensors(module) if tensor.numel() <= LARGEST}
        self._values = WeakIdKeyDictionary()
        self._overwritten: set[int] = set()  # memory whose values are not known any more

    def begin(self, module: nn.Module) -> None:
        """Start following a run of forward: `module` has its tensors, or stand-ins for them."""
        self._values.clear()
        self._overwritten.clear()
        with _eagerly():
            for key, tensor in _tensors(module):
                if key in self._held:
                    self._values[tensor] = self._held[key].clone()

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in READING and (value := self._value(args[0])) is not None:
            self.read = True
            with _eagerly():
                return func(value, *args[1:], **kwargs)
        if name in TAKING_NUMBERS:
            args = args[:1] + tree_map_only(Tensor, self._number, args[1:])
            if name == "arange":
                args = tree_map_only(Tensor, self._number, args)
            kwargs = tree_map_only(Tensor, self._number, kwargs)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        values = {id(tensor): self._value(tensor) for tensor in given}
        result = func(*args, **kwargs)
        known = bool(given) and all(value is not None for value in values.values())
        if known and not may_draw(name) and "out" not in kwargs:
            args, kwargs = tree_map_only(Tensor, lambda tensor: values[id(tensor)], (args, kwargs))
            self._follow(func, args, kwargs, result)
        elif given and (_writes(name) or "out" in kwargs):
            written = values[id(given[0])], values.get(id(kwargs.get("out")))
            self._overwritten |= {value.untyped_storage().data_ptr() for value in written if value is not None}
        return result

    def _follow(self, func: Callable, args: tuple, kwargs: dict[str, Any], result: Any) -> None:
        shown = tree_leaves(result)
        if not any(isinstance(one, Tensor) for one in shown):
            return
        with _eagerly():
            made = tree_leaves(func(*args, **kwargs))
        for one, value in zip(shown, made, strict=True):
            if isinstance(one, Tensor) and isinstance(value, Tensor):
                self._values[one] = value

    def _value(self, tensor: Tensor) -> Tensor | None:
        value = self._values.get(tensor)
        if value is None and not isinstance(tensor, FakeTensor | FunctionalTensor) and tensor.device.type != "meta":
            with _eagerly():  # a tensor that the module holds in a list or similar
                value = self._values[tensor] = tensor.detach().clone()
        if value is None or value.untyped_storage().data_ptr() in self._overwritten:
            return None
        return value

    def _number(self, tensor: Tensor) -> Any:
        value = self._value(tensor) if tensor.dim() == 0 else None
        if value is None:
            return tensor
        self.read = True
        with _eagerly():
            return value.item()


@contextmanager
def known_values(module: nn.Module) -> Iterator[KnownValues]:
    mode = KnownValues(module)
    with module.register_forward_pre_hook(lambda running, _: mode.begin(running)), mode:
        yield mode


@contextmanager
def _eagerly() -> Iterator[None]:
    """Run the operators inside on values, without recording them."""
    with _disable_current_modes(), torch._C.DisableTorchFunction(), torch.no_grad():
        yield


def _tensors(module: nn.Module) -> Iterator[tuple[tuple[str, str], Tensor]]:
    """Yield parameters, buffers, and tensors in plain attributes, by the path of their module and their name."""
    for path, part in module.named_modules(remove_duplicate=False):
        for held in (part._parameters, part._buffers, vars(part)):
            for name, value in held.items():
                if isinstance(value, Tensor):
                    yield (path, name), value


def _writes(name: str) -> bool:
    """Return whether a function of this name writes to its first argument."""
    return name == "__setitem__" or (name.endswith("_") and not name.endswith("__")) or name.startswith("__i")
