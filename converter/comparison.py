"""Verification alone: an artefact, of ours or any tool's, against its model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from converter.artefacts.formats import detect_format
from converter.artefacts.runner import Runner, TensorSpec
from converter.artefacts.stamp import read_stamp
from converter.building import Options, build
from converter.errors import ConversionError, UsageError
from converter.interfaces import labelled_accuracy, run_artefact
from converter.program import Program
from converter.reference import take_reference
from converter.report import Proof, VerificationReport, status_of
from converter.source import Clock, Progress, open_source
from converter.steps import Interface, sizes
from converter.verification.compare import compare_artefact


def verify(
    model: str | Path | nn.Module,
    artefact: str | Path,
    *,
    factory: str | None = None,
    factory_args: Mapping[str, Any] | None = None,
    input_shapes: Sequence[str] = (),
    trust: Sequence[str] = (),
    atol: float | None = None,
    rtol: float | None = None,
    seed: int = 0,
    inputs: str | Path | None = None,
    progress: Progress | None = None,
) -> VerificationReport:
    """Compare what an artefact computes with its model; of one that bears our stamp, the weights too.

    Inputs and outputs are matched by name, or by position where the names are others. An artefact of another tool may
    hold images channels last, where its input's shape says so.

    Args:
        artefact: a SavedModel folder, a `.keras` or an `.onnx` file.
        input_shapes: as for `convert`; an artefact of ours knows them.

    Raises:
        ConversionError: either side cannot be read or run.
    """
    artefact = Path(artefact)
    clock = Clock(progress)
    format = detect_format(artefact)
    stamp = read_stamp(artefact) or {}
    with Runner(format) as runner:
        source = open_source(
            model, factory=factory, factory_args=factory_args,
            input_shapes=input_shapes or stamp.get("input_shapes", ()),
            trust=trust, fixed_batch=stamp.get("options", {}).get("fixed_batch"), seed=seed, clock=clock,
        )  # fmt: skip
        notes = [*source.notes, *source.program.notes]
        with clock("open"):
            runner.open(artefact)
        ours = stamped_interfaces(source.program, stamp)
        program_inputs, program_outputs = interfaces(source.program)
        taken = ours[0] if ours else matched(program_inputs, runner.inputs)
        given = ours[1] if ours else matched(program_outputs, runner.outputs)
        batch = fixed_batch(runner.inputs)
        if batch is not None and source.program.fixed_batch is None:
            source.program.fixed_batch = batch
            notes.append(f"the artefact takes batch {batch} only")
        with clock("run PyTorch"):
            reference = take_reference(
                source.program,
                source.module,
                seed=seed,
                inputs=Path(inputs) if inputs else None,
                running=source.running,
            )
        with clock("run the artefact"):
            results = run_artefact(runner, taken, given, reference)
        proofs: list[Proof] = [
            compare_artefact(
                reference.float64, reference.float32, results, atol=atol, rtol=rtol, constant=reference.constant
            )
        ]
        if ours:
            if stamp.get("source_sha256") not in (None, source.sha256):
                notes.append("the artefact says that it was made from another file than this")
            with clock("compare the weights"):
                built = build(source, format, Options(**stamp["options"]), clock)
                proofs.append(built.prove_weights(runner.tensors()))
        else:
            notes.append("the artefact bears no stamp of ours: its weights are compared by what they compute")
    return VerificationReport(
        source=source.name,
        artefact=str(artefact),
        proofs=tuple(proofs),
        notes=tuple(dict.fromkeys(notes)),
        status=status_of(proofs),
        accuracy=labelled_accuracy(reference, results),
    )


def interfaces(program: Program) -> tuple[list[Interface], list[Interface]]:
    """The program's inputs and outputs in PyTorch's layout."""

    def of(names: Sequence[str], nodes: Sequence[fx.Node]) -> list[Interface]:
        values = [node.meta["val"] for node in nodes]
        return [Interface(name, sizes(v), v.dtype, tuple(range(v.ndim))) for name, v in zip(names, values, strict=True)]

    return of(program.inputs, program.placeholders), of(program.outputs, program.results)


def stamped_interfaces(program: Program, stamp: Mapping[str, Any]) -> tuple[list[Interface], list[Interface]] | None:
    """As the artefact's stamp says, None where it says nothing that fits this model."""
    if not stamp.get("options"):
        return None

    def read(entries: Sequence[Mapping[str, Any]]) -> list[Interface]:
        return [Interface(e["name"], tuple(e["shape"]), getattr(torch, e["dtype"]), tuple(e["order"])) for e in entries]

    inputs, outputs = read(stamp["inputs"]), read(stamp["outputs"])
    if [i.name for i in inputs] != program.inputs or [o.name for o in outputs] != program.outputs:
        raise ConversionError(
            "the artefact was made from another model: "
            f"it has the inputs {', '.join(i.name for i in inputs)} and outputs {', '.join(o.name for o in outputs)}, "
            f"the model {', '.join(program.inputs)} and {', '.join(program.outputs)}"
        )
    return inputs, outputs


def matched(ours: Sequence[Interface], theirs: Sequence[TensorSpec]) -> list[Interface]:
    """Our inputs or outputs as an artefact of another tool holds them: as PyTorch does, or channels last."""
    if len(ours) != len(theirs):
        raise UsageError(
            f"the model has {len(ours)} inputs or outputs where the artefact has {len(theirs)}: "
            f"{', '.join(o.name for o in ours)} against {', '.join(t.name for t in theirs)}"
        )
    by_name = {t.name: t for t in theirs}
    same_names = set(by_name) == {o.name for o in ours}
    found = []
    for position, interface in enumerate(ours):
        spec = by_name[interface.name] if same_names else theirs[position]
        rank = len(interface.shape)
        last = (0, *range(2, rank), 1)
        straight = fits(interface.shape, spec.shape)
        if not straight and rank >= 3 and fits([interface.shape[d] for d in last], spec.shape):
            shape = tuple(interface.shape[d] for d in last)
            found.append(Interface(interface.name, shape, interface.dtype, last))
        else:
            found.append(interface)
    return found


def fits(shape: Sequence[Any], other: Sequence[int | None] | None) -> bool:
    """Whether a shape may be another, unknown sizes being anything."""
    if other is None:
        return True
    return len(shape) == len(other) and all(
        a == b for a, b in zip(shape, other, strict=True) if isinstance(a, int) and isinstance(b, int)
    )


def fixed_batch(inputs: Sequence[TensorSpec]) -> int | None:
    """The only batch that the artefact takes, None if any."""
    sizes = {spec.shape[0] for spec in inputs if spec.shape}
    known = [n for n in sizes if n is not None]
    return known[0] if known else None
