"""The Keras translation of each ATen operator: one file per family of operators."""

import importlib
import pkgutil
import sys
import threading

import converter.ir.custom_ops  # noqa: F401  # registers operators that have mappings
from converter.plan.registry import BUILT_IN, Registry, filling

_loading = threading.RLock()


def load() -> Registry:
    """Return the built-in registry, with the mappings of every family and of operators that libraries brought since.

    If a family fails, nothing from this call stays registered or imported, so the next call starts over.
    """
    with _loading:
        before = set(sys.modules)
        try:
            with filling(BUILT_IN.copy()) as filled:
                for family in pkgutil.iter_modules(__path__):
                    importlib.import_module(f"{__name__}.{family.name}")
        except BaseException:
            for name in sys.modules.keys() - before:
                if name.startswith(f"{__name__}."):
                    del sys.modules[name]
            raise
        BUILT_IN.records.update(filled.records)
        BUILT_IN.resolve_absent()
        return BUILT_IN
