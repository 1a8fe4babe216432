"""Keep Keras from importing packages for training and plots, which no conversion uses."""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

EXTRAS = ("IPython", "matplotlib", "pandas", "sklearn")


class KerasExtras(MetaPathFinder):
    """Turns Keras's own imports of `EXTRAS` into the ImportError that it handles; others import them as usual.

    Where they are installed, they take a quarter of the time that importing Keras takes.
    """

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return None, so that the next finder is asked.

        Raises:
            ModuleNotFoundError: Keras asks for one of `EXTRAS`.
        """
        if name.partition(".")[0] in EXTRAS and _importer().partition(".")[0] == "keras":
            raise ModuleNotFoundError(f"No module named {name!r} is needed to convert a model.", name=name)
        return None


def _importer() -> str:
    """Return the name of the module whose import statement is being carried out."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("importlib"):
        frame = frame.f_back
    return str(frame.f_globals.get("__name__"))


def hide_keras_extras() -> None:
    """Hide `EXTRAS` from Keras for the rest of the process, which must be a command's own, not a user's program."""
    if not is_own_process():
        sys.meta_path.insert(0, KerasExtras())


def is_own_process() -> bool:
    """Return whether the process is a command's own, not a user's program."""
    return any(isinstance(finder, KerasExtras) for finder in sys.meta_path)
