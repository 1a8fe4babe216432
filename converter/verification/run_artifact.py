"""Run an artifact on inputs in PyTorch's layout, and convert its outputs back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from converter.artifacts.runner import Runner
from converter.errors import ConversionError
from converter.plan.interface import TensorInterface, to_artifact, to_torch
from converter.progress import counted
from converter.report.results import Accuracy
from converter.verification.output_proofs import Outputs, accuracy
from converter.verification.reference import Reference


def run_artifact(
    runner: Runner, inputs: Sequence[TensorInterface], outputs: Sequence[TensorInterface], reference: Reference
) -> list[Outputs]:
    """Return the opened artifact's results in every round, in PyTorch's layout."""
    if len(runner.inputs) != len(inputs) or len(runner.outputs) != len(outputs):
        raise ConversionError(
            f"The artifact has {len(runner.inputs)} inputs and {len(runner.outputs)} outputs, the model "
            f"{len(inputs)} and {len(outputs)}.",
            code="PTC5015",
            fix="Give the model that the artifact was made from.",
        )
    return [run_once(runner, inputs, outputs, each.arrays) for each in counted(reference.rounds)]


def run_once(
    runner: Runner,
    inputs: Sequence[TensorInterface],
    outputs: Sequence[TensorInterface],
    arrays: Mapping[str, np.ndarray],
) -> Outputs:
    """Return the opened artifact's results on inputs, both by the model's names and in PyTorch's layout."""
    names = _matched([s.name for s in runner.outputs], [o.name for o in outputs])
    given = runner.run(feed(runner, inputs, arrays))
    return {o.name: to_torch(given[n], o) for n, o in zip(names, outputs, strict=True)}


def feed(runner: Runner, inputs: Sequence[TensorInterface], arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return `arrays`, by the model's names in PyTorch's layout, as the opened pt-convert artifact takes them."""
    names = _matched([s.name for s in runner.inputs], [i.name for i in inputs])
    dtypes = {s.name: s.dtype for s in runner.inputs}
    return {
        theirs: to_artifact(arrays[i.name], i).astype(dtypes[theirs]) for theirs, i in zip(names, inputs, strict=True)
    }


def _matched(theirs: Sequence[str], ours: Sequence[str]) -> list[str]:
    """Return the artifact's names in the model's order: by name if all are the same, else by position."""
    return list(ours) if set(theirs) == set(ours) else list(theirs)


def labeled_accuracy(reference: Reference, results: Sequence[Outputs]) -> Accuracy | None:
    if reference.labels is None:
        return None
    given = slice(reference.first_given, None)
    before, after = (
        np.concatenate([next(iter(each.values())) for each in outputs[given]]) for outputs in (reference.eager, results)
    )
    return accuracy(before, after, reference.labels) if before.ndim == 2 else None
