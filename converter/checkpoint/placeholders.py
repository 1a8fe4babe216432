"""What stands in a pickle for objects that are not made: none of it runs any code of theirs."""

from typing import Any

from torch import nn


class Opaque:
    """Stands for an object of a class that is not known here: it takes what it is given, and keeps and does nothing."""

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
    """Stands for what torch.compile makes of a module: the module in it computes the same."""

    def __init__(self, module: Any = None, *_: Any):
        super().__init__()
        if isinstance(module, nn.Module):
            self._orig_mod = module

    @property
    def orig_mod(self) -> Any:
        return self._modules.get("_orig_mod")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.orig_mod(*args, **kwargs)
