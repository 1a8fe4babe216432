"""Runtime kernels that are exact to an absolute error where PyTorch's are exact to a relative one.

Measured in float32 against float64 with ONNX Runtime 1.31 on x86-64 and rounded up
(`tests/verification/test_coarse_kernels.py` measures it again). Not listed, because they keep their relative error or
are no coarser than PyTorch's own: Erf, Exp, Gelu, Log, Mish, Reciprocal, Softplus, Softsign, Sqrt, Tanh, and the
trigonometric and hyperbolic functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from converter.artifacts.local_model import LocalModel
from converter.artifacts.runner import Runner

aten = torch.ops.aten


@dataclass(frozen=True)
class Kernel:
    """How coarsely a runtime computes one of PyTorch's operators.

    Attributes:
        operators: of the artifact; at least one of them computes it.
        error: the largest measured error, as a function of the operator's arguments.
    """

    operators: frozenset[str]
    error: Callable[..., Tensor]


def _sigmoid(x: Tensor, *_: Any) -> Tensor:
    return torch.full_like(x, 1.6e-7)


def _silu(x: Tensor, *_: Any) -> Tensor:
    return 1.6e-7 * x.abs()


def _glu(x: Tensor, dim: int = -1) -> Tensor:
    return 1.6e-7 * x.chunk(2, dim)[0].abs()


def _elu(x: Tensor, alpha: float = 1.0, scale: float = 1.0, *_: Any) -> Tensor:
    """Return the error of exp(x) - 1."""
    return 8e-8 * abs(alpha * scale) * (x < 0)


def _celu(x: Tensor, alpha: float = 1.0) -> Tensor:
    return _elu(x, alpha)


def _selu(x: Tensor) -> Tensor:
    return _elu(x, 1.7580993)


def _hard_sigmoid(x: Tensor) -> Tensor:
    return torch.full_like(x, 6e-8)


def _hard_swish(x: Tensor) -> Tensor:
    return 6e-8 * x.abs()


_SIGMOID, _ELU = frozenset({"Sigmoid", "Swish", "QuickGelu"}), frozenset({"Elu", "Celu", "Selu"})
_HARD = frozenset({"HardSigmoid", "HardSwish"})
ONNX_RUNTIME: dict[OpOverload, Kernel] = {
    aten.sigmoid.default: Kernel(_SIGMOID, _sigmoid),
    aten.silu.default: Kernel(_SIGMOID, _silu),
    aten.glu.default: Kernel(_SIGMOID, _glu),
    aten.elu.default: Kernel(_ELU, _elu),
    aten.celu.default: Kernel(_ELU, _celu),
    aten.selu.default: Kernel(_ELU, _selu),
    aten.hardsigmoid.default: Kernel(_HARD, _hard_sigmoid),
    aten.hardswish.default: Kernel(_HARD, _hard_swish),
}


def coarse_kernels(runner: Runner | LocalModel) -> Mapping[OpOverload, Kernel]:
    """Return the coarse kernels that an opened artifact runs."""
    if isinstance(runner, LocalModel) or runner.format != "onnx":
        return {}
    operators = runner.operators()
    return {target: kernel for target, kernel in ONNX_RUNTIME.items() if kernel.operators.intersection(operators)}
