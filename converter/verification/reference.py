"""Compute PyTorch's results on the inputs for comparisons, before the first rewrite."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves

from converter.artifacts.local_model import LocalModel
from converter.artifacts.runner import Runner
from converter.capture.input_domains import (
    dynamic_size_choices,
    equal_sizes,
    input_specs,
    many_samples,
    most_samples,
    sizes_of_one,
)
from converter.capture.random_inputs import Round, draw, rounds
from converter.capture.run_forward import run_forward
from converter.errors import CaptureError, Note
from converter.ir.program import Program
from converter.memory import reusing_blocks
from converter.options import Preprocessing, is_folder
from converter.progress import counted
from converter.report.results import ComparedOn
from converter.verification.coarse_kernels import Kernel, coarse_kernels
from converter.verification.coverage import Coverage, reached_by_inputs, zero_weights_note
from converter.verification.nonfinite import NonFinite, nonfinite_inputs
from converter.verification.output_proofs import Outputs, PerturbedRuns, compare_artifact
from converter.verification.perturbation import RUNS, run_perturbed
from converter.verification.unstable_samples import APART, computes_on_choices, stable_samples
from converter.verification.user_inputs import Given, batches, load_given

USUAL = ("normal", "uniform")  # kinds of inputs that rarely give equal scores


@dataclass
class Reference:
    """Inputs and PyTorch's results, a mapping by name for each round, in PyTorch's layout.

    Attributes:
        float64: of the captured program with every float32 raised.
        float32: of the captured program unchanged.
        eager: of the module itself, which must equal the program; of the program where a checkpoint has no module.
        labels: the user's, for the rounds from `first_given` on.
        constant: outputs that depend on no input.
        notes: what the inputs do not exercise, and how the module differs from the program where it may.
        nonfinite: inputs with NaN and infinities, compared beside the proofs.
    """

    rounds: list[Round]
    float64: list[Outputs]
    float32: list[Outputs]
    eager: list[Outputs]
    labels: np.ndarray | None
    first_given: int
    constant: frozenset[str]
    program: Program
    compared_on: ComparedOn
    notes: list[Note] = field(default_factory=list)
    nonfinite: NonFinite | None = None
    _perturbed: dict[tuple[torch.dtype, int, int, frozenset[OpOverload]], list[Outputs]] = field(default_factory=dict)

    def perturbed_runs(self, number: int, runs: int = RUNS) -> list[Outputs]:
        """Return several float32 results of PyTorch for a round, with other roundings."""
        return self._rounded(number, runs, torch.float32)

    def perturbed_runs_in(self, runner: Runner | LocalModel) -> PerturbedRuns:
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
    more: bool = False,
) -> Reference:
    """Run the program in both precisions, and the module itself, on every round of inputs.

    Args:
        module: the captured module; the program must equal it.
        inputs: the user's arrays, as more rounds.
        running: a context within which `module` may run.
        preprocessing: of a folder of images, or of pixels in arrays.
        more: also compare at dynamic sizes of 1, or have artifacts refuse them, and on NaN and infinities.

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
    sizes = [*dynamic_size_choices(program), *equal_sizes(program)]
    drawn = list(rounds(specs, seed, sizes, many_samples(program), most_samples(program)))
    if more and module is not None and (ones := sizes_of_one(program)):
        with running():
            drawn += runs_at_ones(program, module, Round("sizes of 1", draw(specs, 2, (seed, 1), ones)))
    given, labels = [], None
    if inputs is not None:
        arrays, labels = load_given(inputs, specs, preprocessing)
        given = list(batches(arrays, specs))
    left_out: list[str] = []
    if computes_on_choices(program):
        drawn, left_out = drop_unstable_samples(program, drawn)
        given, told, labels = drop_unstable_given(program, given, labels)
        left_out += told
    eager: list[Outputs] = []
    if module is not None:
        with running():
            drawn, eager, refused = run_drawn(program, module, drawn)
            eager += [run_module(program, module, each) for each in given]
        left_out += refused
    every = [*drawn, *given]
    raised = program.with_dtype(torch.float64)
    float64: list[Outputs] = []
    float32: list[Outputs] = []
    coverage = Coverage(program)
    for each in counted(every):
        tensors = round_tensors(program, each)
        float32.append(_named(program, coverage.run(tensors)))
        tensors = [x.double() if x.dtype == torch.float32 else x for x in tensors]
        float64.append(_named(raised, raised.run(*tensors)))
    _refuse_ranks_by_batch(float32)
    constant = constant_outputs(program)
    described = ComparedOn(
        seed,
        (*(each.description for each in every), *left_out),
        None if inputs is None else "arrays" if isinstance(inputs, Mapping) else str(inputs),
        str(preprocessing or Preprocessing()) if is_folder(inputs) or (preprocessing is not None and given) else None,
    )
    reference = Reference(every, float64, float32, eager or float32, labels, len(drawn), constant, program, described)
    if more:
        reference.nonfinite = nonfinite_inputs(program, seed)
    every_output = {name: [outputs[name] for outputs in float64] for name in float64[0]}
    notes = (coverage.note(), zero_weights_note(program, every_output))
    reference.notes += [note for note in notes if note is not None]
    if program.refuses_ones:
        text = "Dynamic sizes must be at least 2: at 1 the captured program computes something else than the model."
        reference.notes.append(Note(text, code="PTC2514"))
    if module is not None:
        with running():
            compare_with_module(reference, module)
    return reference


def runs_at_ones(program: Program, module: nn.Module, at_ones: Round) -> list[Round]:
    """Return the round with dynamic sizes of 1 if the program equals the module there; else have artifacts refuse them.

    A module that does not run there leaves nothing to compare.
    """
    try:
        own = run_module(program, module, at_ones)
    except CaptureError:
        return []
    try:
        captured = _named(program, program.run(*round_tensors(program, at_ones)))
        alike = own.keys() == captured.keys() and all(np.allclose(own[n], captured[n], 1e-3, 1e-3) for n in own)
    except (RuntimeError, ValueError):  # other shapes
        alike = False
    program.refuses_ones = not alike
    return [at_ones] if alike else []


def run_drawn(
    program: Program, module: nn.Module, drawn: Sequence[Round]
) -> tuple[list[Round], list[Outputs], list[str]]:
    """Run the module on random inputs; leave out unusual ones that its forward refuses.

    Returns:
        The other rounds, the results on them, and a description of each round left out.
    """
    kept, results, refused = [], [], []
    for each in drawn:
        try:
            results.append(run_module(program, module, each))
            kept.append(each)
        except CaptureError as error:
            if each.description.startswith(USUAL[0]):
                raise
            refused.append(f"{each.description}: left out, the model refuses it: {error.what}")
    return kept, results, refused


def run_module(program: Program, module: nn.Module, inputs: Round) -> Outputs:
    """Return the module's results on a round of inputs by the program's names, or none if it returns another number."""
    results = tree_leaves(run_forward(module, round_tensors(program, inputs)))
    tensors = [each for each in results if isinstance(each, Tensor)]
    return _named(program, tensors) if len(tensors) == len(program.outputs) else {}


def compare_with_module(reference: Reference, module: nn.Module) -> None:
    """Refuse a captured program that computes something else than the module on any round of inputs.

    `nn.TransformerEncoder` skips padded positions in eager mode: if that explains the difference, note it.

    Raises:
        CaptureError: they differ.
    """
    failure = _difference(reference, reference.eager)
    if failure is not None and any(isinstance(part, nn.TransformerEncoderLayer) for part in module.modules()):
        enabled = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            slower = [run_module(reference.program, module, each) for each in reference.rounds]
        finally:
            torch.backends.mha.set_fastpath_enabled(enabled)
        if _difference(reference, slower) is None:
            text = (
                "PyTorch runs the transformer's layers by another path in eager mode, and gives other values at padded "
                "positions. They are undefined. The model is compared without that path "
                "(torch.backends.mha.set_fastpath_enabled(False))."
            )
            reference.notes.append(Note(text, code="PTC5504"))
            return
    if failure is not None:
        kept = changed_attributes(module, round_tensors(reference.program, reference.rounds[0]))
        named = f" Forward keeps {', '.join(f'`{name}`' for name in kept)} from call to call." if kept else ""
        fix = (
            "Choose by values with torch.where. Remove state (self.calls += 1) and code for export "
            "(torch.compiler.is_exporting()) from forward."
        )
        if any(note.code == "PTC2515" for note in reference.program.notes):
            fix = (
                "Call pad_packed_sequence with total_length=x.shape[1] (x.shape[0] if the batch is second), so that "
                "its result is as long as the input; it is cut at the longest sequence else."
            )
        raise CaptureError(
            f"The captured program computes something else than the model: {failure}{named}",
            code="PTC5013",
            fix=f"Take {kept[0]} as an input, and return it." if kept else fix,
        )


def _difference(reference: Reference, eager: Sequence[Outputs]) -> str | None:
    """Return how the program differs from the module's results, by the rounding of the program, or None."""
    for number, (each, own) in enumerate(zip(reference.rounds, eager, strict=True)):
        captured = reference.float32[number]
        if own.keys() == captured.keys() and all(_identical(own[name], captured[name]) for name in own):
            continue
        proof = compare_artifact(
            [reference.float64[number]],
            [captured],
            [own],
            constant=reference.constant,
            perturbed_runs=lambda _, runs, number=number: reference.perturbed_runs(number, runs),  # type: ignore[misc]
        )
        if any(not output.agrees for output in proof.outputs):
            return f"{proof.summary} on {each.description}"
    return None


def _identical(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes()


def round_tensors(program: Program, inputs: Round) -> list[Tensor]:
    return [torch.from_numpy(np.asarray(inputs.arrays[name], order="C")) for name in program.inputs]


def changed_attributes(module: nn.Module, inputs: Sequence[Tensor]) -> list[str]:
    """Return the attributes, tensors and numbers, that a call of the module changes."""

    def held() -> dict[str, Any]:
        return {
            ".".join(filter(None, ("self", path, name))): value
            for path, part in module.named_modules()
            for name, value in vars(part).items()
            if isinstance(value, Tensor | int | float) and not name.startswith("_")
        }

    before = held()
    with torch.no_grad():
        module(*(x.clone() for x in inputs))
    return [
        name
        for name, value in held().items()
        if (value is not before.get(name) if isinstance(value, Tensor) else value != before.get(name))
    ]


def drop_unstable_samples(program: Program, drawn: Sequence[Round]) -> tuple[list[Round], list[str]]:
    """Drop samples for which the model's choices depend on rounding or on the order of equal scores.

    Some usual inputs are always kept. Those whose choices depend on rounding in float32 are dropped if others remain;
    else only those that depend on rounding in float64, if others remain; else none.

    Returns:
        The rounds, and a description of each round without samples left.
    """
    for precisions in ([*APART], [torch.float64]):
        kept, left_out = _without_unstable_samples(program, drawn, precisions)
        if any(each.description.startswith(USUAL) for each in kept):
            return kept, left_out
    return [each for each in drawn if each.description.startswith(USUAL)] + kept, left_out


def _without_unstable_samples(
    program: Program, drawn: Sequence[Round], of_usual: Sequence[torch.dtype]
) -> tuple[list[Round], list[str]]:
    """Return the rounds with stable samples only, usual ones in these precisions, and a description of the rest."""
    kept, left_out = [], []
    for number, each in enumerate(drawn):
        inputs = round_tensors(program, each)
        sizes = {x.shape[0] for x in inputs if x.ndim}
        if len(sizes) != 1 or program.batch_is_named:
            kept.append(each)
            continue
        (batch,) = sizes
        usual = each.description.startswith(USUAL)
        held = stable_samples(program, inputs, batch, number, of_usual if usual else [*APART])
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


def drop_unstable_given(
    program: Program, given: Sequence[Round], labels: np.ndarray | None
) -> tuple[list[Round], list[str], np.ndarray | None]:
    """Drop the user's samples for which the model's choices depend on the order of equal scores, if others are left.

    Returns:
        The rounds, a description of each round without samples left, and the labels of the samples that are.
    """
    stable = [_stable_given(program, each, number) for number, each in enumerate(given)]
    if not any(held.any() for held in stable):
        return list(given), [], labels
    kept, left_out, start = [], [], 0
    for each, held in zip(given, stable, strict=True):
        opened = ", ".join(map(str, start + np.flatnonzero(~held)))
        start += len(held)
        why = f"{opened} left out, because choices depend on the order of equal scores"
        if held.all():
            kept.append(each)
        elif held.any():
            arrays = {name: a[held] if a.ndim else a for name, a in each.arrays.items()}
            kept.append(Round(f"{each.description} ({why})", arrays))
        else:
            left_out.append(f"{each.description}: {why}")
    return kept, left_out, None if labels is None else labels[np.concatenate(stable)]


def _stable_given(program: Program, each: Round, number: int) -> np.ndarray:
    """Tell for each of the user's samples whether PyTorch's result is stable; those of a fixed batch stay together."""
    inputs = round_tensors(program, each)
    sizes = [x.shape[0] for x in inputs if x.ndim]
    if len({*sizes}) != 1 or program.batch_is_named:
        return np.ones(sizes[0] if sizes else 1, bool)
    held = stable_samples(program, inputs, sizes[0], number, [torch.float64])
    return held if program.fixed_batch is None else np.full(sizes[0], bool(held.all()))


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
    reached = reached_by_inputs(program)
    pairs = zip(program.outputs, program.results, strict=True)
    return frozenset(name for name, node in pairs if node not in reached)


def _named(program: Program, results: Sequence[Tensor]) -> dict[str, np.ndarray]:
    return {name: _array(r.detach()) for name, r in zip(program.outputs, results, strict=True)}


def _array(tensor: Tensor) -> np.ndarray:
    if tensor.dtype != torch.bfloat16:
        return tensor.numpy()
    import ml_dtypes

    return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
