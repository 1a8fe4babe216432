"""Show what the current step is doing: the module that runs, and the share of a proof that is done."""

import sys
import threading
from typing import Any

from rich.progress import ProgressColumn, Task
from rich.text import Text

from converter.progress import share_done

EXPORTED = "_export_root."  # how torch.export wraps a model
LONGEST = 40  # characters of a module's path


class CurrentStep(ProgressColumn):
    """A column of the last step's share and module; it is drawn by another thread than the one that works."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()

    def render(self, task: Task) -> Text:
        share, module = share_done(), running_module(self._thread)
        parts = [f"{share:.0%}"] if share is not None else []
        parts += [module if len(module) <= LONGEST else f"...{module[3 - LONGEST :]}"] if module else []
        return Text(" ".join(parts), "dim")


def running_module(thread: int) -> str | None:
    """Return the path of the module that runs in a thread, below the outermost one, or None if there is none.

    It looks at the thread's frames, so that nothing is added to a model that is captured.
    """
    torch: Any = sys.modules.get("torch")
    frame = sys._current_frames().get(thread)
    if torch is None or frame is None or not hasattr(torch, "nn"):
        return None
    called = torch.nn.Module._call_impl.__code__
    modules = []
    while frame is not None:
        if frame.f_code is called:
            modules.append(frame.f_locals["self"])
        frame = frame.f_back
    if not modules:
        return None
    path = next((path for path, module in modules[-1].named_modules() if module is modules[0]), None)
    return path and path.removeprefix(EXPORTED)
