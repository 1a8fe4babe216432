"""Makes an untrained network one whose every parameter matters and whose signal survives its depth."""

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

M = TypeVar("M", bound=nn.Module)
NORMS = (_BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


@torch.no_grad()
def calibrate(module: M, *inputs: Tensor, passes: int = 2, batch: int = 4, seed: int = 0) -> M:
    """Randomises what initialization leaves constant, measures batch norms' statistics, and sets `module` to eval mode.

    A fresh network hides faults: with ones as scales and zeros as biases a permutation changes nothing, and with
    running statistics of 0 and 1 a deep network's output dies or explodes.

    Args:
        module: changed in place and returned.
        inputs: examples in the order of `forward`, batch first. Only shape and range of floating point ones matter:
            passes run on normal noise of the same mean and deviation. Others are repeated as they are.
        passes: forward passes over which the statistics are averaged.
        batch: images in a pass.
        seed: of everything random here; torch's global generator is left as it was.
    """
    norms = [part for part in module.modules() if isinstance(part, NORMS)]
    batch_norms = [part for part in norms if isinstance(part, _BatchNorm) and part.track_running_stats]
    scales = {id(part.weight) for part in norms if part.weight is not None}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for parameter in module.parameters():
            value = parameter.flatten()[0].item()
            if not torch.all(parameter == value):
                continue
            if id(parameter) in scales:
                parameter.uniform_(0.5, 1.5)
            elif value == 0:
                parameter.normal_(0, 0.1)
            else:
                parameter.uniform_(0.5, 1.5).mul_(value if abs(value) > 0.1 else 0.1)
        module.eval()
        momenta = [part.momentum for part in batch_norms]
        for part in batch_norms:
            part.reset_running_stats()
            part.momentum = None  # average over all passes
            part.train()
        for _ in range(passes):
            module(*(_noise_like(example, batch) for example in inputs))
        for part, momentum in zip(batch_norms, momenta, strict=True):
            part.momentum = momentum
    return module.eval()


def _noise_like(example: Tensor, batch: int) -> Tensor:
    if example.is_floating_point():
        noise = torch.randn((batch, *example.shape[1:]), dtype=example.dtype)
        return noise * example.std(correction=0) + example.mean()
    return example.repeat(-(-batch // len(example)), *(1 for _ in example.shape[1:]))[:batch]
