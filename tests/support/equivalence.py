"""What the tables of mappings, rewrites and plans assert: the same function, in float64 to rounding."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import torch
from torch import Tensor, nn

from converter.capture.export import capture
from converter.ir.program import Program
from converter.lowering.planner import make_plan
from converter.options import CaptureOptions
from converter.plan.builder import PlanBuilder
from converter.plan.interface import TensorInterface
from converter.plan.registry import Registry
from converter.rewrites.fold_constants import fold_constants
from converter.rewrites.pipelines import REWRITES
from converter.verification.checked_rewrite import rewrite

logging.getLogger("torch.__trace").propagate = False  # pytest would format every traced graph: 5 times slower
EXACT = 1e-12  # of the scale: float64 leaves a thousandth of it, any other function exceeds it a billion times
ROUNDING = 16  # times PyTorch's own float32 rounding, as the product's second proof has it


@dataclass(frozen=True)
class Input:
    """A random input: integers from `low` to `high` (exclusive), booleans, or floats with a deviation of 2."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    low: int = -5
    high: int = 6

    def draw(self, batch: int, generator: torch.Generator) -> Tensor:
        shape = (batch, *self.shape[1:])
        if self.dtype.is_floating_point:
            return 2 * torch.randn(shape, generator=generator, dtype=torch.float64).to(self.dtype)
        if self.dtype == torch.bool:
            return torch.rand(shape, generator=generator) < 0.5
        return torch.randint(self.low, self.high, shape, generator=generator).to(self.dtype)


class Call(nn.Module):
    """A function as a module; `parts` are submodules, parameters and buffers that it finds on its first argument."""

    def __init__(self, function: Callable, **parts):
        super().__init__()
        self.function, self.bound = function, bool(parts)
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *inputs: Tensor):
        return self.function(self, *inputs) if self.bound else self.function(*inputs)


def examples(inputs: Sequence[Input | tuple[int, ...]], batch: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(batch)
    return [(x if isinstance(x, Input) else Input(x)).draw(batch, generator) for x in inputs]


@torch.no_grad()
def with_random_tensors(module: nn.Module) -> nn.Module:
    """`module` in eval mode with no two weights alike: initialization leaves scales at 1 and biases at 0."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=torch.float64))
        if name.endswith("running_var"):
            tensor.abs_().add_(0.5)
    return module.eval()


UNASKED = CaptureOptions()


def captured(module: nn.Module | Callable, *inputs: Input | tuple[int, ...], how: CaptureOptions = UNASKED) -> Program:
    """`module` captured with an unknown batch; one that allows a single batch size fails."""
    module = module if isinstance(module, nn.Module) else Call(module)
    program = capture(with_random_tensors(module), examples(inputs), how=how)
    assert program.fixed_batch is None, program.notes
    return program


def planned(program: Program, layout: str = "auto", added: Registry | None = None, stock: bool = True) -> PlanBuilder:
    """A plan of `program` with its constants computed, which planning takes for granted."""
    copied = program.copy()
    fold_constants(copied)
    copied.cleanup()
    return make_plan(copied, layout, added=added, stock=stock)


def in_float64(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.double() if t.dtype == torch.float32 else t for t in tensors]


def to_artifact(tensors: Sequence[Tensor], interfaces: Sequence[TensorInterface]) -> list[np.ndarray]:
    return [t.numpy().transpose(i.order).copy() for t, i in zip(tensors, interfaces, strict=True)]


def to_torch(arrays: Sequence, interfaces: Sequence[TensorInterface]) -> list[np.ndarray]:
    return [array_of(a).transpose(np.argsort(i.order)) for a, i in zip(arrays, interfaces, strict=True)]


def array_of(x) -> np.ndarray:
    """Of PyTorch's and TensorFlow's tensors alike; bfloat16, which NumPy lacks, is the type that TensorFlow adds."""
    if isinstance(x, Tensor) and x.dtype == torch.bfloat16:
        return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return np.asarray(x.numpy() if hasattr(x, "numpy") else x)


def run_in_float64(plan: PlanBuilder, *batches: Sequence[Tensor]) -> list[list[np.ndarray]]:
    """The plan's results for each of `batches` in PyTorch's layout, of the shapes that the plan says."""
    from converter.lowering.executor import PlanExecutor

    lowered = PlanExecutor(plan, "float64")
    made = []
    for inputs in batches:
        results = lowered(*to_artifact(in_float64(inputs), plan.inputs))
        for array, output in zip(results, plan.outputs, strict=True):
            known = [n if isinstance(n, int) else actual for n, actual in zip(output.shape, array.shape, strict=True)]
            assert list(array.shape) == known, f"{output.name}: {array.shape} where the plan says {output.shape}"
        made.append(to_torch(results, plan.outputs))
    return made


def assert_plan_is_exact(
    program: Program, inputs: Sequence[Input | tuple[int, ...]], *layouts: str, added: Registry | None = None
) -> PlanBuilder:
    """Plan `program` and compare it with PyTorch, both in float64, at two batch sizes.

    Args:
        layouts: "auto" by default; one that holds inputs and outputs as the one before is not run again.
        added: mappings besides the built-in ones.

    Returns the first plan.
    """
    batches = [examples(inputs, batch) for batch in (2, 3)]
    raised = program.with_dtype(torch.float64)
    expected = [raised.run(*in_float64(batch)) for batch in batches]
    plans: list[PlanBuilder] = []
    for layout in layouts or ("auto",):
        plan = planned(program, layout, added)
        if not any(orders(plan) == orders(other) for other in plans):
            for results, wanted in zip(run_in_float64(plan, *batches), expected, strict=True):
                assert_same(results, wanted, f"{layout}, batch {len(wanted[0]) if wanted[0].ndim else 0}")
        plans.append(plan)
    return plans[0]


def assert_computes_the_same(
    module, inputs: list[Tensor], format: str, moving: bool = False, more: Sequence[list[Tensor]] = ()
) -> Program:
    """Rewritten for `format`, it computes what PyTorch does in float64; bit for bit in float32 if it only moves.

    Args:
        more: other inputs of the same shapes, for float64 only.
    """
    if not isinstance(module, Program):
        module = captured(module, *[(2, *x.shape[1:]) for x in inputs])
    program = module
    rewritten, _ = rewrite(program, REWRITES[format], inputs)
    doubles = in_float64(inputs)
    expected = program.with_dtype(torch.float64).run(*doubles)
    if format == "onnx":
        assert_same(rewritten.with_dtype(torch.float64).run(*doubles), expected, format)
        if moving:
            assert_same(
                rewritten.with_dtype(torch.float32).run(*inputs),
                program.with_dtype(torch.float32).run(*inputs),
                format,
                0,
            )
        return rewritten
    from converter.lowering.executor import PlanExecutor

    plan = make_plan(rewritten)
    double = PlanExecutor(plan, "float64", stock=format == "keras")
    raised = program.with_dtype(torch.float64)
    for arrays in (doubles, *map(in_float64, more)):
        ran = to_torch(double(*to_artifact(arrays, plan.inputs)), plan.outputs)
        assert_same(ran, raised.run(*arrays), f"{format} in float64")
    if moving:
        ran = PlanExecutor(plan, "float32", stock=format == "keras")(*to_artifact(inputs, plan.inputs))
        assert_same(
            to_torch(ran, plan.outputs), program.with_dtype(torch.float32).run(*inputs), f"{format} in float32", 0
        )
    return rewritten


def orders(plan: PlanBuilder) -> list[tuple[int, ...]]:
    """How inputs and outputs are held."""
    return [interface.order for interface in (*plan.inputs, *plan.outputs)]


def assert_same(actual: Sequence, expected: Sequence, what: str, bound: float = EXACT) -> None:
    """Equal types, shapes, NaNs and infinities, and values within `bound` of the scale; integers are equal."""
    assert len(actual) == len(expected)
    for i, (a, e) in enumerate(zip(map(np.asarray, actual), map(np.asarray, expected), strict=True)):
        assert (a.dtype, a.shape) == (e.dtype, e.shape), (
            f"{what}: output {i} is {a.dtype} {a.shape}, not {e.dtype} {e.shape}"
        )
        scale = np.abs(e[np.isfinite(e)]).max(initial=0) if e.dtype.kind == "f" else 0
        rounding = 4 * np.finfo(np.float64).eps if bound else 0  # the mean of a norm is 0, and its rounding no scale
        np.testing.assert_allclose(a, e, rtol=0, atol=max(bound * scale, rounding), err_msg=f"{what}: output {i}")


def assert_float32_rounds_alike(actual: Sequence, float32: Sequence, float64: Sequence, what: str) -> None:
    """`actual` is no further from float64 than a small multiple of PyTorch's own rounding."""
    for i, (a, single, double) in enumerate(zip(map(np.asarray, actual), float32, float64, strict=True)):
        single, double = np.asarray(single), np.asarray(double)
        is_like = (a.dtype, a.shape) == (single.dtype, single.shape)
        assert is_like, f"{what}: output {i} is {a.dtype} {a.shape}, not {single.dtype} {single.shape}"
        finite = np.isfinite(double)
        if single.dtype == np.float32:
            scale = np.abs(double[finite]).max(initial=0)
            own = np.abs(single.astype(np.float64) - double)[finite].max(initial=0)
            bound = ROUNDING * max(own, 4 * np.finfo(np.float32).eps * scale)
        else:
            bound = 1e-12 * np.abs(single[np.isfinite(single)]).max(initial=0) if single.dtype.kind == "f" else 0
            double = single
        np.testing.assert_allclose(a, double, rtol=0, atol=bound, err_msg=f"{what}: output {i}")
