"""Placeholders for a pickle's objects that are not made: none of them runs the file's code."""

from typing import Any

from torch import nn


class Opaque:
    """A stand-in for an object of an unknown class: it accepts any values, and keeps and does nothing."""

    def __init__(self, *_: Any, **__: Any):
        pass

    def append(self, _: Any) -> None:
        pass

    def add(self, _: Any) -> None:
        pass

    def extend(self, _: Any) -> None:
        pass

    def __setitem__(self, _: Any, __: Any) -> None:
        pass


class Compiled(nn.Module):
    """A stand-in for torch.compile's wrapper of a module: the module in it computes the same."""

    def __init__(self, module: Any = None, *_: Any):
        super().__init__()
        if isinstance(module, nn.Module):
            self._orig_mod = module

    @property
    def orig_mod(self) -> Any:
        return self._modules.get("_orig_mod")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.orig_mod(*args, **kwargs)
