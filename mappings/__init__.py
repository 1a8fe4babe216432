"""The Keras translation of each ATen operator: one file per family of operators."""

import importlib
import pkgutil
import sys

from converter.plan.registry import all_or_nothing


def load() -> None:
    """Import every family, which registers its mappings; other libraries' operators are registered once available.

    If a family fails, nothing from this call stays registered or imported, so the next call starts over.
    """
    before = set(sys.modules)
    try:
        with all_or_nothing():
            for family in pkgutil.iter_modules(__path__):
                module = importlib.import_module(f"{__name__}.{family.name}")
                if hasattr(module, "register"):
                    module.register()
    except BaseException:
        for name in sys.modules.keys() - before:
            if name.startswith(f"{__name__}."):
                del sys.modules[name]
        raise
