"""Keep triton from being imported where TensorFlow's LLVM would end the process."""

import ctypes
import os
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import NoReturn


class TritonGuard(MetaPathFinder, Loader):
    """Turns an `import triton` that would end the process into an ImportError.

    `torch.export` imports triton where it is installed (PyTorch 2.13 to 2.15, which install it on Linux). Both triton
    and TensorFlow (2.21) contain LLVM. TensorFlow makes its symbols visible to every library loaded after it, triton
    binds to them, and the process ends with signal 6 or 11. Importing triton first, then TensorFlow, works.

    PyTorch treats the ImportError as "triton is not installed". This disables `torch.compile` for GPUs in that process,
    where it could not have worked.
    """

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return triton's spec, if it is installed, with this loader."""
        if name != "triton" or not tensorflow_publishes_llvm():
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None:
            spec.loader = self
        return spec

    def create_module(self, spec: ModuleSpec) -> NoReturn:
        raise ImportError(
            "triton cannot be imported after TensorFlow: both contain LLVM, and the process would end with signal 6 or "
            "11. Import triton before TensorFlow if you need both in one process.",
            name=spec.name,
        )

    def exec_module(self, module: ModuleType) -> None:
        raise NotImplementedError  # no module is created


def tensorflow_publishes_llvm() -> bool:
    """Tell whether a library loaded now would bind to the LLVM in TensorFlow."""
    if "tensorflow" not in sys.modules or sys.getdlopenflags() & os.RTLD_DEEPBIND:
        return False
    return hasattr(ctypes.CDLL(None), "LLVMContextCreate")


def guard_triton() -> None:
    """Install the guard for the rest of the process, on Linux: only there libraries bind to each other's symbols."""
    if sys.platform == "linux" and not any(isinstance(finder, TritonGuard) for finder in sys.meta_path):
        sys.meta_path.insert(0, TritonGuard())
