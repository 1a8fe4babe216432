"""What each ATen operator becomes in Keras: one file per family of operators."""

import importlib
import pkgutil


def load() -> None:
    """Import every family, which registers its mappings; those of other libraries' operators once these are there."""
    for family in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{family.name}")
        if hasattr(module, "register"):
            module.register()
