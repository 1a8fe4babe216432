"""Runtime kernels that are coarser than PyTorch's, and by how much.

Some are exact to an absolute error where PyTorch's are exact to a relative one. Measured in float32 against float64
with ONNX Runtime 1.31 on x86-64 and rounded up (`tests/verification/test_coarse_kernels.py` measures it again). Not
listed, because they keep their relative error or are no coarser than PyTorch's own: Erf, Exp, Gelu, Log, Mish,
Reciprocal, Softplus, Softsign, Sqrt, Tanh, and the trigonometric and hyperbolic functions.

Others add many numbers one after the other, where PyTorch adds in a tree: ONNX Runtime's GlobalAveragePool and
InstanceNormalization, and TensorFlow's Mean and AvgPool over the axes before the last. The rounding errors of n
additions walk at random: up to 0.65 times the root of n half units in the last place, measured for n of 64 to 262,144.
Where many numbers are alike, as behind a ReLU, all round in one direction: up to 0.06 n half units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
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
        apart: the dimensions along which errors are independent; behind them an error has one sign. None: all.
        error: the largest measured error, as a function of the operator's arguments.
    """

    operators: frozenset[str]
    error: Callable[..., Tensor]
    apart: int | None = None


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


HALF_UNIT = 2.0**-24  # in the last place of float32, relative


def _walk(count: float) -> float:
    """Return the rounding error of the sum of so many numbers in turn, relative to the sum of their magnitudes."""
    return 0.7 * HALF_UNIT * math.sqrt(count)


def _drift(x: Tensor) -> Tensor:
    """Return the error of a mean along the last dimension whose numbers are added in turn, by adding them so."""
    if not x.shape[-1]:
        return x.new_zeros((*x.shape[:-1], 1))
    numbers = x.detach().to(torch.float32).numpy()
    in_turn = np.add.accumulate(numbers, -1, dtype=np.float32)[..., -1:]
    errors = np.abs(in_turn - numbers.sum(-1, dtype=np.float64, keepdims=True))
    walks = _walk(x.shape[-1]) * np.abs(numbers).sum(-1, dtype=np.float64, keepdims=True)
    return torch.from_numpy(np.maximum(errors, walks) / x.shape[-1]).to(x.dtype)


def _rows(x: Tensor, dim: Sequence[int] | int | None, keepdim: bool) -> tuple[Tensor, list[int]]:
    """Return the numbers that each result of a reduction is of, in rows, and the shape of the results."""
    dims = list(range(x.ndim)) if dim is None or dim == [] else [dim] if isinstance(dim, int) else list(dim)
    dims = [d % x.ndim for d in dims] if x.ndim else []
    kept = [d for d in range(x.ndim) if d not in dims]
    shape = [1 if d in dims else x.shape[d] for d in range(x.ndim)] if keepdim else [x.shape[d] for d in kept]
    return x.permute(*kept, *dims).reshape(math.prod(x.shape[d] for d in kept), -1), shape


def _mean(x: Tensor, dim: Sequence[int] | int | None = None, keepdim: bool = False, **_: Any) -> Tensor:
    rows, shape = _rows(x, dim, keepdim)
    return _drift(rows).reshape(shape)


def _sum(x: Tensor, dim: Sequence[int] | int | None = None, keepdim: bool = False, **_: Any) -> Tensor:
    rows, shape = _rows(x, dim, keepdim)
    return (rows.shape[-1] * _drift(rows)).reshape(shape)


def _var(x: Tensor, dim: Any = None, *, correction: float | None = None, keepdim: bool = False) -> Tensor:
    rows, shape = _rows(x, dim, keepdim)
    centered, count = rows - rows.mean(-1, keepdim=True), rows.shape[-1]
    error = _drift(centered * centered) + _drift(rows) ** 2
    return (error * (count / max(count - (1 if correction is None else correction), 1))).reshape(shape)


def _std(x: Tensor, dim: Any = None, *, correction: float | None = None, keepdim: bool = False) -> Tensor:
    deviation = torch.std(x, dim, correction=1 if correction is None else correction, keepdim=keepdim)
    of_var = _var(x, dim, correction=correction, keepdim=keepdim)
    return torch.minimum(of_var / (2 * deviation), of_var.sqrt())


def _by_bias(error: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the error of the overload that takes `unbiased` in place of a correction."""
    return lambda x, dim, unbiased=True, keepdim=False: error(x, dim, correction=int(unbiased), keepdim=keepdim)


def _logsumexp(x: Tensor, dim: Sequence[int] | int, keepdim: bool = False) -> Tensor:
    rows, shape = _rows(x, dim, keepdim)
    terms = (rows - rows.amax(-1, keepdim=True)).exp()
    return (_drift(terms) / terms.mean(-1, keepdim=True)).reshape(shape)


def _softmax(x: Tensor, dim: int, *_: Any) -> Tensor:
    return x.softmax(dim) * _logsumexp(x, dim, True)


def _vector_norm(x: Tensor, ord: float = 2, dim: Any = None, keepdim: bool = False, **_: Any) -> Tensor:
    rows, shape = _rows(x, dim, keepdim)
    if ord != 2:
        return torch.zeros(shape, dtype=x.dtype)
    squares, count = rows * rows, rows.shape[-1]
    norm = squares.sum(-1, keepdim=True).sqrt()
    return (count * _drift(squares) / (2 * norm).clamp(min=1e-30)).reshape(shape)


def _adaptive_pool(pool: Callable[..., Tensor], axes: int) -> Callable[..., Tensor]:
    """Return the error of a pool over the last `axes` dimensions; behind a batch or not."""

    def error(x: Tensor, size: Any) -> Tensor:
        magnitudes = pool(x.abs(), size)
        count = math.prod(x.shape[-axes:]) / math.prod(magnitudes.shape[-axes:])
        whole = count == math.prod(x.shape[-axes:])
        return _drift(x.flatten(-axes)).reshape(magnitudes.shape) if whole else _walk(count) * magnitudes

    return error


def _pool(pool: Callable[..., Tensor], axes: int) -> Callable[..., Tensor]:
    def error(x: Tensor, size: Any, *arguments: Any) -> Tensor:
        sizes = [size] if isinstance(size, int) else list(size)
        count = math.prod(sizes if len(sizes) == axes else sizes * axes)
        return _walk(count) * pool(x.abs(), size, *arguments)

    return error


def _normalized(x: Tensor, epsilon: float) -> Tensor:
    """Return the error of a norm over the last dimension without weights: that of its mean, and of its variance."""
    centered = x - x.mean(-1, keepdim=True)
    squares = centered * centered
    variance = squares.mean(-1, keepdim=True) + epsilon
    of_mean = _drift(x)
    of_variance = (_drift(squares) + of_mean * of_mean) / variance / 2
    return (of_mean + of_variance * centered.abs()) / variance.sqrt()


def _group_norm(
    x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5, *_: Any
) -> Tensor:
    error = _normalized(x.reshape(len(x), groups, -1), eps).reshape(x.shape)
    return error if weight is None else error * weight.abs().reshape(-1, *[1] * (x.ndim - 2))


def _instance_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Any, var: Any, batch: bool, momentum: float,
    eps: float, *_: Any,
) -> Tensor:  # fmt: skip
    return _group_norm(x, x.shape[1], weight, bias, eps) if batch else torch.zeros_like(x)


def _batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Any, var: Any, training: bool, momentum: float,
    eps: float, *_: Any,
) -> Tensor:  # fmt: skip
    if not training:
        return torch.zeros_like(x)
    by_channel = x.transpose(0, 1)
    error = _normalized(by_channel.reshape(x.shape[1], -1), eps).reshape(by_channel.shape).transpose(0, 1)
    return error if weight is None else error * weight.abs().reshape(-1, *[1] * (x.ndim - 2))


def _layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5,
    *_: Any,
) -> Tensor:  # fmt: skip
    error = _normalized(x.flatten(-len(shape)), eps).reshape(x.shape)
    return error if weight is None else error * weight.abs()


SUMMING: dict[OpOverload, Kernel] = {
    aten.mean.default: Kernel(frozenset(), _mean),
    aten.mean.dim: Kernel(frozenset(), _mean),
    aten.sum.default: Kernel(frozenset(), _sum),
    aten.sum.dim_IntList: Kernel(frozenset(), _sum),
    aten.adaptive_avg_pool1d.default: Kernel(frozenset(), _adaptive_pool(aten.adaptive_avg_pool1d, 1)),
    aten.adaptive_avg_pool2d.default: Kernel(frozenset(), _adaptive_pool(aten.adaptive_avg_pool2d, 2)),
    aten.adaptive_avg_pool3d.default: Kernel(frozenset(), _adaptive_pool(aten.adaptive_avg_pool3d, 3)),
    aten.avg_pool1d.default: Kernel(frozenset(), _pool(aten.avg_pool1d, 1)),
    aten.avg_pool2d.default: Kernel(frozenset(), _pool(aten.avg_pool2d, 2)),
    aten.avg_pool3d.default: Kernel(frozenset(), _pool(aten.avg_pool3d, 3)),
    aten.var.correction: Kernel(frozenset(), _var),
    aten.var.dim: Kernel(frozenset(), _by_bias(_var)),
    aten.std.correction: Kernel(frozenset(), _std),
    aten.std.dim: Kernel(frozenset(), _by_bias(_std)),
    aten.logsumexp.default: Kernel(frozenset(), _logsumexp),
    aten.softmax.int: Kernel(frozenset(), _softmax),
    aten.linalg_vector_norm.default: Kernel(frozenset(), _vector_norm),
    aten.batch_norm.default: Kernel(frozenset(), _batch_norm, apart=2),
    aten.instance_norm.default: Kernel(frozenset(), _instance_norm, apart=2),
    aten.group_norm.default: Kernel(frozenset(), _group_norm, apart=2),
    aten.layer_norm.default: Kernel(frozenset(), _layer_norm, apart=1),
}


def coarse_kernels(runner: Runner | LocalModel) -> Mapping[OpOverload, Kernel]:
    """Return the coarse kernels that an opened artifact runs."""
    if isinstance(runner, LocalModel):
        return {}
    if runner.format != "onnx":
        return SUMMING
    operators = runner.operators()
    found = {target: kernel for target, kernel in ONNX_RUNTIME.items() if kernel.operators.intersection(operators)}
    return {**SUMMING, **found}
