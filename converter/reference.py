"""What PyTorch computes on the inputs that artefacts are compared on, taken before the first rewrite."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from converter.errors import CaptureError
from converter.program import Program
from converter.verification.compare import Outputs, compare_artefact
from converter.verification.inputs import InputSpec, Round, batches, load_arrays, rounds

aten = torch.ops.aten
OWN_ROUNDS = 2  # in which the module itself is run beside the captured program: batch 1 and more


@dataclass
class Reference:
    """Inputs and PyTorch's results, a mapping by name for each round, in PyTorch's layout.

    Attributes:
        float64: of the captured program with every float32 raised.
        float32: of the captured program as it is.
        labels: the user's, for the rounds from `first_given` on.
        constant: outputs that depend on no input.
    """

    rounds: list[Round]
    float64: list[Outputs]
    float32: list[Outputs]
    labels: np.ndarray | None
    first_given: int
    constant: frozenset[str]

    def probe(self, program: Program) -> tuple[list[Tensor], list[Tensor]]:
        """The first round's inputs and float64 results, in the program's order."""
        inputs = [torch.from_numpy(self.rounds[0].arrays[name]) for name in program.inputs]
        return inputs, [torch.from_numpy(np.asarray(self.float64[0][name], order="C")) for name in program.outputs]


def input_specs(program: Program) -> list[InputSpec]:
    """What the program's inputs are, integers within the range that the graph shows."""
    specs = []
    for name, node in zip(program.inputs, program.placeholders, strict=True):
        value = node.meta["val"]
        batch = program.fixed_batch or "batch"
        shape = tuple(n if isinstance(n, int) else (batch if i == 0 else str(n)) for i, n in enumerate(value.shape))
        dtype = str(value.dtype).removeprefix("torch.")
        specs.append(InputSpec(name, shape, dtype, high=_rows_of_embedding(node)))
    return specs


def _rows_of_embedding(node: fx.Node) -> int:
    tables = [user.args[0] for user in node.users if user.target is aten.embedding.default]
    return min((int(table.meta["val"].shape[0]) for table in tables), default=2)


def take_reference(
    program: Program,
    module: nn.Module | None,
    *,
    seed: int,
    inputs: Path | None,
    running: Callable[[], AbstractContextManager],
) -> Reference:
    """Run the program in both precisions on every round of inputs.

    Args:
        module: what was captured; the program must equal it.
        inputs: the user's arrays, as more rounds.
        running: a context within which `module` may run.

    Raises:
        CaptureError: the captured program computes something else than the module.
    """
    specs = input_specs(program)
    drawn = list(rounds(specs, seed))
    given, labels = [], None
    if inputs is not None:
        arrays, labels = load_arrays(inputs, specs)
        given = list(batches(arrays, specs))
    every = [*drawn, *given]
    raised = program.at(torch.float64)
    float64: list[Outputs] = []
    float32: list[Outputs] = []
    own: list[Outputs] = []
    for number, each in enumerate(every):
        tensors = [torch.from_numpy(np.asarray(each.arrays[spec.name], order="C")) for spec in specs]
        float32.append(_named(program, program.run(*tensors)))
        doubled = [x.double() if x.dtype == torch.float32 else x for x in tensors]
        float64.append(_named(raised, raised.run(*doubled)))
        if module is not None and number < min(len(drawn), OWN_ROUNDS):
            with running(), torch.no_grad():
                results = [r for r in tree_leaves(module(*(x.clone() for x in tensors))) if isinstance(r, Tensor)]
            own.append(_named(program, results))
    constant = constant_outputs(program)
    if own:
        same = compare_artefact(float64[: len(own)], own, float32[: len(own)], constant=constant)
        if not same.holds and not same.proves_nothing:
            raise CaptureError(
                f"what torch.export captured is not what the model computes: {same.summary}",
                cure="this is usually a forward that keeps state or draws random numbers; make it free of both",
            )
    return Reference(every, float64, float32, labels, len(drawn), constant)


def constant_outputs(program: Program) -> frozenset[str]:
    """Outputs that no input's values reach."""
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
    return {name: r.detach().numpy() for name, r in zip(program.outputs, results, strict=True)}
