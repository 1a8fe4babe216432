"""Measure how much a program's results depend on rounding, by rerunning it with last bits perturbed at random."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload

from converter.ir import custom_ops as ours
from converter.ir.program import Program, read_attribute, write_attribute
from converter.verification.coarse_kernels import Kernel
from converter.verification.tolerance import FLOOR_ULP

aten = torch.ops.aten
RUNS = 4
MORE_RUNS = 16  # also where an output is an integer: only some of the runs choose the other of two equals

# Of a kernel's largest error. Comparisons allow 16 times the effect, a margin meant for rounding that was not measured.
KNOWN_SHARE = 0.25

# Operators with a limit, which kernels reach sooner or later: a perturbation before them does not show after them.
LIMITS = {
    aten.sigmoid.default: (0.0, 1.0),
    aten.softmax.int: (0.0, 1.0),
    aten._softmax.default: (0.0, 1.0),
    aten.tanh.default: (-1.0, 1.0),
    aten.erf.default: (-1.0, 1.0),
}


def _gelu(x: Tensor, *_: Any, **__: Any) -> Tensor:
    """Return the rounding of 1 + erf(x) or 1 + tanh(x), times x / 2."""
    return torch.finfo(x.dtype).eps * x.abs() / 2


# Operators of PyTorch in which large parts cancel, so that their error is not relative to their result.
CANCELLING = {aten.gelu.default: Kernel(frozenset(), _gelu)}

# Operators that compute many steps: n + z * (h - n) cancels within, where gates are of the order of 1.
RECURRENT = {aten.gru.input, aten.lstm.input, aten.rnn_tanh.input, ours.packed_recurrent._opoverload}


class Moved(nn.Module):
    """Moves every number by up to `FLOOR_ULP` of its last bits, as kernels of such a function differ, within limits.

    Args:
        least: numbers below it are moved as it would be.
    """

    def __init__(self, rng: np.random.Generator, limits: tuple[float, float], least: float = 0.0):
        super().__init__()
        self.rng, self.limits, self.least = rng, limits, least

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype not in (torch.float32, torch.float64):
            return x
        array = x.detach().numpy()
        steps = self.rng.integers(-FLOOR_ULP, FLOOR_ULP + 1, array.shape).astype(array.dtype)
        spacing = np.spacing(np.abs(array).clip(self.least)).astype(array.dtype)
        return torch.from_numpy(np.asarray(array + steps * spacing).clip(*self.limits))


class Coarse(nn.Module):
    """Moves an operator's result by a share of the error of a runtime's kernel.

    Args:
        direction: of all numbers, as an error may have one sign wherever the inputs are alike; random if None.
    """

    def __init__(self, rng: np.random.Generator, kernel: Kernel, direction: int | None):
        super().__init__()
        self.rng, self.kernel, self.direction = rng, kernel, direction

    def forward(self, result: Tensor, *arguments: Any, **named: Any) -> Tensor:
        if result.dtype not in (torch.float32, torch.float64):
            return result
        apart = result.ndim if self.kernel.apart is None else self.kernel.apart
        shape = (*result.shape[:apart], *[1] * (result.ndim - apart))
        signs = self.direction or torch.from_numpy(self.rng.choice(np.array([-1.0, 1.0]), shape))
        return (result + KNOWN_SHARE * signs * self.kernel.error(*arguments, **named)).to(result.dtype)


def run_perturbed(
    program: Program,
    inputs: Sequence[Tensor],
    precision: torch.dtype,
    seed: int,
    kernels: Mapping[OpOverload, Kernel] | None = None,
    runs: int = RUNS,
) -> list[list[Tensor]]:
    """Run a captured program on `inputs` in `precision` several times, each time with other roundings.

    Every float32 number of the inputs and weights is moved by its last bit in `precision` or kept, at random but
    reproducibly, as kernels that add in another order and folded, rounded weights do. Results of operators with a limit
    are moved too, and those of PyTorch's own that cancel within and of a runtime's `kernels`, by their error.
    """
    chosen = any(not node.meta["val"].is_floating_point() for node in program.results)
    generators = [np.random.default_rng((seed, run)) for run in range(MORE_RUNS if chosen else runs)]
    directions = [1, -1, *[None] * (len(generators) - 2)]
    return [
        _run_perturbed_once(program, inputs, precision, rng, kernels or {}, direction)
        for rng, direction in zip(generators, directions, strict=True)
    ]


def _run_perturbed_once(
    program: Program,
    inputs: Sequence[Tensor],
    precision: torch.dtype,
    rng: np.random.Generator,
    kernels: Mapping[OpOverload, Kernel],
    direction: int | None,
) -> list[Tensor]:
    def moved(tensor: Tensor) -> Tensor:
        if tensor.dtype != torch.float32:
            return tensor
        return torch.from_numpy(np.ascontiguousarray(nudged(tensor.detach().to(precision).numpy(), rng)))

    inputs = [_constant_rows_kept(x, moved(x)) for x in inputs]
    program = program.copy()
    for target in dict.fromkeys(node.target for node in program.graph.find_nodes(op="get_attr")):
        write_attribute(program.graph_module, target, moved(read_attribute(program.graph_module, target)))
    for node in list(program.graph.nodes):
        if node.target in LIMITS:
            _insert(program, node, f"moved_{node.name}", Moved(rng, LIMITS[node.target]))
        if node.target is operator.getitem and node.args[0].target in RECURRENT:
            _insert(program, node, f"moved_{node.name}", Moved(rng, (-np.inf, np.inf), least=1.0))
    move_kernels(program, {**CANCELLING, **kernels}, rng, direction)
    return program.with_dtype(precision).run(*inputs)


def _constant_rows_kept(given: Tensor, moved: Tensor) -> Tensor:
    """Return the moved inputs with the rows that were constant constant again: kernels see them so."""
    if given.ndim < 2 or given.shape[-1] < 2 or not given.is_floating_point():
        return moved
    constant = (given == given[..., :1]).all(-1, keepdim=True)
    return torch.where(constant, moved[..., :1], moved)


def move_kernels(
    program: Program, kernels: Mapping[OpOverload, Kernel], rng: np.random.Generator, direction: int | None
) -> dict[str, str]:
    """Move the results of operators by a share of the error of these kernels, in place.

    Returns:
        The name of each such operator, mapped to that of the module after it.
    """
    behind = {}
    for node in list(program.graph.nodes):
        if node.target in kernels:
            coarse = Coarse(rng, kernels[node.target], direction)
            behind[node.name] = _insert(program, node, f"coarse_{node.name}", coarse, node.args, node.kwargs)
    program.graph_module.recompile()
    return behind


def _insert(
    program: Program,
    node: fx.Node,
    name: str,
    module: nn.Module,
    more: tuple = (),
    named: Mapping[str, Any] | None = None,
) -> str:
    """Call a module on a node's result, for all users of the node, and return the name of the call."""
    program.graph_module.add_module(name, module)
    with program.graph.inserting_after(node):
        after = program.graph.call_module(name, (node, *more), dict(named or {}))
    node.replace_all_uses_with(after, delete_user_cb=lambda user: user is not after)
    return after.name


def nudged(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return every number unchanged or moved to the next one above or below."""
    direction = rng.integers(-1, 2, array.shape).astype(array.dtype)
    return np.asarray(
        np.where(direction == 0, array, np.nextafter(array, array + direction * np.abs(array) + direction))
    )
