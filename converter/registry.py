"""The decorators with which a user's file or a package registers mappings (`--mappings my_ops.py`)."""

from typing import Any

from converter.plan.registry import absent_operators, decomposes, maps, translates

__all__ = ["decomposes", "maps", "translates"]


def __getattr__(name: str) -> Any:
    if name == "ABSENT":  # the operators registered by name, so far, that this PyTorch lacks
        return absent_operators()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
