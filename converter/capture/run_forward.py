"""Run a module's forward and collect its outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from converter.capture.diagnostics import explain_forward_error


def run_forward(module: nn.Module, inputs: Sequence[Tensor]) -> Any:
    """Call the module as the user would, so that a failure refers to the user's layers and not to tracing."""
    inside: list[str] = []

    def leave(*_: Any) -> None:
        inside.pop()

    hooks = []
    for name, child in module.named_modules():
        if not isinstance(child, torch.jit.ScriptModule):  # a ScriptModule takes no hooks
            hooks.append(child.register_forward_pre_hook(lambda *_, name=name: inside.append(name)))
            hooks.append(child.register_forward_hook(leave))
    try:
        with torch.no_grad():
            return module(*(x.clone() for x in inputs))
    except Exception as error:
        raise explain_forward_error(error, module, inside[-1] if inside else "", inputs) from error
    finally:
        for hook in hooks:
            hook.remove()
