"""Collect the parameters and buffers of a module by name."""

import torch
from torch import nn
from torch.nn.parameter import is_lazy


def named_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return a module's parameters and buffers, grouped by module, in the order of its layers."""
    return {
        f"{path}.{name}".lstrip("."): tensor.detach()
        for path, part in module.named_modules()
        for name, tensor in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False))
    }


def persistent_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return what a module's state dict has, itself, without calling the module's own code."""
    held: dict[str, torch.Tensor] = {}
    for path, part in module.named_modules(remove_duplicate=False):
        left_out: set[str] = getattr(part, "_non_persistent_buffers_set", set())
        own = (*part._parameters.items(), *((n, t) for n, t in part._buffers.items() if n not in left_out))
        held |= {
            f"{path}.{name}".lstrip("."): tensor for name, tensor in own if tensor is not None and not is_lazy(tensor)
        }
    return held
