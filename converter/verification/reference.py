"""Compute PyTorch's results on the inputs for comparisons, before the first rewrite."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves

from converter.artifacts.runner import Runner
from converter.capture.input_domains import dynamic_size_choices, input_specs, many_samples
from converter.capture.random_inputs import Round, rounds
from converter.errors import CaptureError
from converter.ir.program import Program
from converter.memory import reusing_blocks
from converter.options import Preprocessing
from converter.report.results import ComparedOn
from converter.verification.coarse_kernels import Kernel, coarse_kernels
from converter.verification.output_proofs import Outputs, PerturbedRuns, compare_artifact
from converter.verification.perturbation import RUNS, run_perturbed
from converter.verification.unstable_samples import computes_on_choices, stable_samples
from converter.verification.user_inputs import Given, batches, load_given

aten = torch.ops.aten
USUAL = ("normal", "uniform")  # kinds of inputs that rarely give equal scores
OWN_ROUNDS = 2  # rounds that run the module beside the captured program: batch 1 and more; all if frozen


@dataclass
class Reference:
    """Inputs and PyTorch's results, a mapping by name for each round, in PyTorch's layout.

    Attributes:
        float64: of the captured program with every float32 raised.
        float32: of the captured program unchanged.
        labels: the user's, for the rounds from `first_given` on.
        constant: outputs that depend on no input.
    """

    rounds: list[Round]
    float64: list[Outputs]
    float32: list[Outputs]
    labels: np.ndarray | None
    first_given: int
    constant: frozenset[str]
    program: Program
    compared_on: ComparedOn
    _perturbed: dict[tuple[torch.dtype, int, int, frozenset[OpOverload]], list[Outputs]] = field(default_factory=dict)

    def perturbed_runs(self, number: int, runs: int = RUNS) -> list[Outputs]:
        """Return several float32 results of PyTorch for a round, with other roundings."""
        return self._rounded(number, runs, torch.float32)

    def perturbed_runs_in(self, runner: Runner) -> PerturbedRuns:
        """Return a function like `perturbed_runs` that also moves operators by the known error of the runtime."""
        kernels = functools.cache(lambda: coarse_kernels(runner))
        return lambda number, runs: self._rounded(number, runs, torch.float32, kernels())

    def perturbed_runs_in_float64(self, number: int, runs: int = RUNS) -> list[Outputs]:
        """Return several float64 results of PyTorch for a round, with other roundings."""
        return self._rounded(number, runs, torch.float64)

    @reusing_blocks()
    def _rounded(
        self, number: int, runs: int, precision: torch.dtype, kernels: Mapping[OpOverload, Kernel] | None = None
    ) -> list[Outputs]:
        key = precision, number, runs, frozenset(kernels or ())
        if key not in self._perturbed:
            inputs = [torch.from_numpy(np.asarray(self.rounds[number].arrays[name])) for name in self.program.inputs]
            results = run_perturbed(self.program, inputs, precision, number, kernels, runs)
            self._perturbed[key] = [_named(self.program, one) for one in results]
        return self._perturbed[key]

    def probe(self, program: Program) -> tuple[list[Tensor], list[Tensor]]:
        """Return the first round's inputs and float64 results, in the program's order."""
        inputs = [torch.from_numpy(self.rounds[0].arrays[name]) for name in program.inputs]
        return inputs, [torch.from_numpy(np.asarray(self.float64[0][name], order="C")) for name in program.outputs]


@reusing_blocks()
def take_reference(
    program: Program,
    module: nn.Module | None,
    *,
    seed: int,
    inputs: Given | None,
    running: Callable[[], AbstractContextManager],
    preprocessing: Preprocessing | None = None,
    most: int | None = None,
) -> Reference:
    """Run the program in both precisions on every round of inputs.

    Args:
        module: the captured module; the program must equal it.
        inputs: the user's arrays, as more rounds.
        running: a context within which `module` may run.
        preprocessing: of a folder of images.
        most: the largest number of random rounds.

    Raises:
        CaptureError: there is no output, or the captured program computes something else than the module.
    """
    if not program.outputs:
        raise CaptureError(
            "Forward does not return a tensor.",
            code="PTC5012",
            where=None if module is None else type(module).__name__,
            fix="Return a tensor, or a tuple, list or dict of tensors.",
        )
    specs = input_specs(program)
    drawn = list(rounds(specs, seed, dynamic_size_choices(program), many_samples(program)))[:most]
    given, labels = [], None
    if inputs is not None:
        arrays, labels = load_given(inputs, specs, preprocessing)
        given = list(batches(arrays, specs))
    left_out: list[str] = []
    if computes_on_choices(program):
        drawn, left_out = drop_unstable_samples(program, drawn)
    every = [*drawn, *given]
    raised = program.with_dtype(torch.float64)
    float64: list[Outputs] = []
    float32: list[Outputs] = []
    own: list[Outputs] = []
    for number, each in enumerate(every):
        tensors = [torch.from_numpy(np.asarray(each.arrays[spec.name], order="C")) for spec in specs]
        float32.append(_named(program, program.run(*tensors)))
        doubled = [x.double() if x.dtype == torch.float32 else x for x in tensors]
        float64.append(_named(raised, raised.run(*doubled)))
        if module is not None and (program.frozen_flow or number < min(len(drawn), OWN_ROUNDS)):
            with running(), torch.no_grad():
                results = [r for r in tree_leaves(module(*(x.clone() for x in tensors))) if isinstance(r, Tensor)]
            own.append(_named(program, results))
    _refuse_ranks_by_batch(float32)
    constant = constant_outputs(program)
    described = ComparedOn(
        seed,
        (*(each.description for each in every), *left_out),
        None if inputs is None else "arrays" if isinstance(inputs, Mapping) else str(inputs),
        str(preprocessing or Preprocessing()) if isinstance(inputs, str | Path) and Path(inputs).is_dir() else None,
    )
    reference = Reference(every, float64, float32, labels, len(drawn), constant, program, described)
    if own:
        same = compare_artifact(
            float64[: len(own)], float32[: len(own)], own, constant=constant, perturbed_runs=reference.perturbed_runs
        )
        if not same.holds and not same.proves_nothing:
            raise CaptureError(
                f"The captured program computes something else than the model: {same.summary}",
                code="PTC5013",
                fix="Remove state (self.calls += 1) and code for export (torch.compiler.is_exporting()) from forward.",
            )
    return reference


def drop_unstable_samples(program: Program, drawn: Sequence[Round]) -> tuple[list[Round], list[str]]:
    """Drop samples of unusual inputs for which the model's choices depend on rounding.

    Returns:
        The rounds, and a description of each round without samples left.
    """
    kept, left_out = [], []
    for number, each in enumerate(drawn):
        inputs = [torch.from_numpy(np.asarray(each.arrays[name], order="C")) for name in program.inputs]
        sizes = {x.shape[0] for x in inputs if x.ndim}
        if each.description.startswith(USUAL) or len(sizes) != 1:
            kept.append(each)
            continue
        (batch,) = sizes
        held = stable_samples(program, inputs, batch, number)
        if held.all():
            kept.append(each)
        elif held.any() and program.fixed_batch is None:
            arrays = {name: a[held] if a.ndim else a for name, a in each.arrays.items()}
            kind, _, rest = each.description.partition(f", batch {batch}")
            told = f"{kind}, batch {held.sum()}{rest} ({batch - held.sum()} left out, whose choices depend on rounding)"
            kept.append(Round(told, arrays))
        else:
            left_out.append(f"{each.description}: left out, because choices depend on rounding")
    return kept, left_out


def _refuse_ranks_by_batch(results: Sequence[Outputs]) -> None:
    """Raise CaptureError for an output whose number of dimensions depends on the batch size."""
    for name in results[0] if results else ():
        ranks = {each[name].ndim for each in results}
        if len(ranks) > 1:
            raise CaptureError(
                f"The number of dimensions of output `{name}` depends on the batch size: "
                f"{' or '.join(map(str, sorted(ranks)))}.",
                code="PTC5014",
                fix="squeeze() also removes a batch of 1: name the dimension, as in x.squeeze(-1), or "
                "convert for one batch size with --fixed-batch N.",
            )


def constant_outputs(program: Program) -> frozenset[str]:
    """Return the outputs that no input's values reach."""
    reached: set[fx.Node] = set()
    for node in program.graph.nodes:
        if node.op == "placeholder" or (
            node.op == "call_function"
            and node.target is not aten.sym_size.int
            and any(n in reached for n in node.all_input_nodes)
        ):
            reached.add(node)
    pairs = zip(program.outputs, program.results, strict=True)
    return frozenset(name for name, node in pairs if node not in reached)


def _named(program: Program, results: Sequence[Tensor]) -> dict[str, np.ndarray]:
    return {name: _array(r.detach()) for name, r in zip(program.outputs, results, strict=True)}


def _array(tensor: Tensor) -> np.ndarray:
    if tensor.dtype != torch.bfloat16:
        return tensor.numpy()
    import ml_dtypes

    return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
