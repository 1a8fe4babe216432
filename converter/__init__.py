"""Convert PyTorch models to Keras, SavedModel, LiteRT and ONNX, and check that each computes the same function.

report = converter.convert("model.pt", to=["tf"], input_shapes=["1,3,224,224"])
"""

import sys

# `python -m converter` puts the current directory first, where any file could shadow a module that we import next.
if (
    getattr(sys, "argv", None)
    and sys.argv[0] == "-m"  # only while Python looks for the module to run
    and sys.orig_argv[len(sys.orig_argv) - len(sys.argv)].removeprefix("-m").split(".")[0] == __name__
    and not sys.flags.safe_path
):
    del sys.path[0]

import os
from typing import TYPE_CHECKING, Any

from converter.compat.llvm_conflict import guard_triton

if TYPE_CHECKING:
    from converter.batch.check import check_many
    from converter.batch.refresh import sync_many
    from converter.batch.run import convert_many
    from converter.options import Preprocessing
    from converter.pipeline.convert import convert
    from converter.pipeline.inspect import inspect
    from converter.pipeline.into import into
    from converter.pipeline.pull import pull
    from converter.pipeline.sync import sync
    from converter.pipeline.verify import verify

# Torch's idle threads would spin and slow down each other and TensorFlow's on a busy machine. Torch reads it on import.
if "torch" not in sys.modules:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

guard_triton()  # before anything imports torch.export, even where `converter.testing` is imported alone

__all__ = [
    "Preprocessing", "check_many", "convert", "convert_many", "inspect", "into", "pull", "sync", "sync_many", "verify",
]  # fmt: skip

_HOMES = {
    "check_many": "converter.batch.check",
    "convert": "converter.pipeline.convert",
    "convert_many": "converter.batch.run",
    "inspect": "converter.pipeline.inspect",
    "into": "converter.pipeline.into",
    "pull": "converter.pipeline.pull",
    "sync": "converter.pipeline.sync",
    "sync_many": "converter.batch.refresh",
    "verify": "converter.pipeline.verify",
    "Preprocessing": "converter.options",
}


_MODULES = ("errors", "registry", "report", "testing")


def __getattr__(name: str) -> Any:
    """Import torch and other heavy modules only when they are used."""
    from importlib import import_module

    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
