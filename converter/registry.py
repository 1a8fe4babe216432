"""The decorators with which a user's file registers mappings (`--mappings my_ops.py`)."""

from converter.plan.registry import ABSENT, decomposes, maps, translates

__all__ = ["ABSENT", "decomposes", "maps", "translates"]
