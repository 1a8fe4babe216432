"""Collect the parameters and buffers of a module by name."""

import torch
from torch import nn


def named_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return a module's parameters and buffers, grouped by module, in the order of its layers."""
    return {
        f"{path}.{name}".lstrip("."): tensor.detach()
        for path, part in module.named_modules()
        for name, tensor in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False))
    }
