"""Verify an artifact, from pt-convert or any tool, against its model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack, get_args

import torch
from torch import fx, nn

from converter.artifacts.detect_format import detect_format
from converter.artifacts.runner import Runner, TensorSpec
from converter.artifacts.runtime.formats import Format
from converter.artifacts.stamp_schema import checked_stamp
from converter.checkpoint.trust import ARTIFACT, is_guard_lifted
from converter.errors import ConversionError, Note, UnsupportedOperatorsError, UsageError
from converter.ir.program import Program
from converter.ir.sizes import symbolic_shape
from converter.lowering.user_lowerings import load_mappings
from converter.options import ArtifactOptions, SubmodelOptions, VerifyKeywords, VerifyOptions
from converter.pipeline.build import build
from converter.pipeline.clock import Clock, Progress
from converter.pipeline.find_weights import verify_weights
from converter.pipeline.load_model import LoadedModel, load_model
from converter.plan.interface import TensorInterface
from converter.report.results import ExplanationKind, Proof, TraceRow, VerificationReport, status_of
from converter.verification.divergence import by_module, disagrees, locate_divergence, trace_artifact, worst_round
from converter.verification.io_matching import Matching
from converter.verification.io_names import shown
from converter.verification.reference import take_reference
from converter.verification.run_artifact import labeled_accuracy

EXPLANATIONS: tuple[ExplanationKind, ...] = get_args(ExplanationKind)


def verify(
    model: str | Path | nn.Module,
    artifact: str | Path,
    *,
    progress: Progress | None = None,
    **keywords: Unpack[VerifyKeywords],
) -> VerificationReport:
    """Compare an artifact's outputs with its model's, and its weights too if it has a pt-convert stamp.

    Inputs and outputs are matched by name, or by position where the names differ. An artifact from another tool may
    hold them channels last, if its shapes say so, and may take one batch size only. If it does not agree, known
    differences are tried and reported: a softmax, a sigmoid, boxes in units of the image size, another order, a layout
    that shapes do not tell.

    Args:
        artifact: a SavedModel folder, a `.keras`, an `.onnx` or a `.tflite` file.
        keywords: those of `converter.options.VerifyOptions`: `factory`, `input_shapes`, `atol`, `accept`, ... A stamped
            artifact needs no input shapes and no submodel: its stamp has them.

    Raises:
        ConversionError: either side cannot be read or run.
    """
    artifact = Path(artifact)
    clock = Clock(progress)
    format = detect_format(artifact)
    stamp, damaged = checked_stamp(artifact)
    options = VerifyOptions.of(**keywords)
    accepted = explanation_kinds(options.match.accept)
    if options.match.weights:
        return verify_weights(model, artifact, format, options, clock)
    trusted = is_guard_lifted(ARTIFACT, options.model.trust)
    signature, atol, rtol = options.match.signature, options.proof.atol, options.proof.rtol
    options = apply_stamp(options, stamp)
    with Runner(format) as runner:
        if missing := not (options.capture.input_shapes or stamp):  # open it now to read its input shapes
            runner.open(artifact, signature, trusted=trusted)
        with proposing_shapes(runner):
            batch = stamp.get("options", {}).get("fixed_batch")
            source = load_model(model, options, fixed_batch=batch, clock=clock, mappings=load_mappings())
        notes = [*source.notes, *source.program.notes]
        if damaged:
            text = f"The artifact's stamp is damaged ({damaged}); it is compared as if another tool had written it."
            notes.append(Note(text, code="PTC6509"))
        if format in ("tf", "keras") and stamp.get("options"):
            with clock("import Keras"):  # while the process that opens the artifact imports too
                import keras  # noqa: F401  # the third proof makes a plan
        if not missing:
            with clock("open"):
                runner.open(artifact, signature, trusted=trusted)
        ours = stamped_interfaces(source.program, stamp)
        batch = fixed_batch(runner.inputs)
        if batch is not None and source.program.fixed_batch is None:
            source.program.fixed_batch = batch
            notes.append(Note(f"The artifact takes only batch {batch}.", code="PTC6504"))
        with clock("run PyTorch"):
            reference = take_reference(
                source.program,
                source.module,
                seed=options.capture.seed,
                inputs=options.proof.inputs,
                running=source.running,
                preprocessing=options.proof.preprocessing,
            )
        with clock("run the artifact"):
            matching = Matching(
                runner, *(ours or interfaces(source.program)), reference,
                layouts_known=ours is not None, accepted=accepted, atol=atol, rtol=rtol,
            )  # fmt: skip
            match = matching.match()
        notes += match.notes
        proof = match.proof
        rows: Sequence[TraceRow] = ()
        if options.proof.trace or (disagrees(proof) and not match.explanations):
            with clock("trace"):
                arrays = worst_round(reference, match.results)
                given = matching.feed(match.reading, arrays)
                proof, rows = locate_divergence(proof, lambda: trace_artifact(source.program, arrays, runner, given))
        proofs = [proof]
        if ours:
            if stamp.get("source_sha256") not in (None, source.sha256):
                notes.append(Note("The artifact was made from another file, by its stamp.", code="PTC6505"))
            with clock("compare the weights"):
                source.probe = reference.probe(source.program)
                try:
                    proofs.append(prove_weights(source, format, stamp, runner, clock))
                except UnsupportedOperatorsError:
                    if not stamp["options"].get("mappings"):
                        raise
                    text = (
                        "The artifact was converted with your own mappings; only what its weights compute is compared."
                    )
                    notes.append(Note(text, code="PTC6506"))
        else:
            text = "The artifact was not written by pt-convert; only what its weights compute is compared."
            notes.append(Note(text, code="PTC6507"))
    return VerificationReport(
        source=source.name,
        artifact=str(artifact),
        proofs=tuple(proofs),
        notes=options.report.shown(notes),
        status=status_of(proofs),
        accuracy=labeled_accuracy(reference, match.results),
        explanations=tuple(match.explanations),
        trace=by_module(rows) if options.proof.trace else (),
        timings=clock.timings,
        compared_on=reference.compared_on,
    )


def apply_stamp(options: VerifyOptions, stamp: Mapping[str, Any]) -> VerifyOptions:
    """Take from an artifact's stamp how the model was captured, where the options do not say."""
    model, submodel, capture = options.model, options.submodel, options.capture
    if part := dict(stamp.get("part") or {}):
        frozen, strict = part.pop("freeze_control_flow"), part.pop("strict", False)
        model = replace(model, drop_keys=model.drop_keys or tuple(part.pop("drop_keys", ())))
        capture = replace(
            capture, freeze_control_flow=capture.freeze_control_flow or frozen, strict=capture.strict or strict
        )
        submodel = SubmodelOptions(*(getattr(submodel, name) or _as_tuple(part[name]) for name in vars(submodel)))
    if not capture.input_shapes and not capture.image_size:
        capture = replace(capture, input_shapes=tuple(stamp.get("input_shapes", ())))
    return replace(options, model=model, submodel=submodel, capture=capture)


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def prove_weights(source: LoadedModel, format: Format, stamp: Mapping[str, Any], runner: Runner, clock: Clock) -> Proof:
    """Prove the weights of a stamped artifact by the plan in its stamp, and if that fails by a new plan.

    A plan of another version may differ.
    """
    options = ArtifactOptions(**stamp["options"])
    known = stamp.get("choices")
    proof = build(source, format, options, clock, known).prove_weights(runner.tensors(), runner.graph_as_written())
    if proof.holds or not known:
        return proof
    return build(source, format, options, clock).prove_weights(runner.tensors(), runner.graph_as_written())


def explanation_kinds(accept: Sequence[str]) -> frozenset[ExplanationKind]:
    """Return the accepted kinds of explanations, or raise UsageError for an unknown one."""
    unknown = [kind for kind in accept if kind not in EXPLANATIONS]
    if unknown:
        raise UsageError(
            f"no such explanation: {', '.join(unknown)}", code="PTC6033", fix=f"one of {', '.join(EXPLANATIONS)}"
        )
    return frozenset(accept)  # type: ignore[arg-type]


@contextmanager
def proposing_shapes(runner: Runner) -> Iterator[None]:
    """Add the artifact's input shapes, if it is open, to an error about missing ones."""
    try:
        yield
    except UsageError as error:
        if error.code != "PTC2002" or not runner.inputs:
            raise
        taken = ", ".join(f"`{spec.name}` {shown(spec.shape)}" for spec in runner.inputs)
        raise UsageError(
            f"{error.what}; the artifact takes {taken}",
            code=error.code,
            where=error.where,
            fix=f"{error.fix}, as the artifact takes it",
        ) from error


def interfaces(program: Program) -> tuple[list[TensorInterface], list[TensorInterface]]:
    """Return the program's inputs and outputs in PyTorch's layout."""

    def of(names: Sequence[str], nodes: Sequence[fx.Node]) -> list[TensorInterface]:
        values = [node.meta["val"] for node in nodes]
        return [
            TensorInterface(name, symbolic_shape(v), v.dtype, tuple(range(v.ndim)))
            for name, v in zip(names, values, strict=True)
        ]

    return of(program.inputs, program.placeholders), of(program.outputs, program.results)


def stamped_interfaces(
    program: Program, stamp: Mapping[str, Any]
) -> tuple[list[TensorInterface], list[TensorInterface]] | None:
    """Return the inputs and outputs in the artifact's stamp, or None if it has none.

    Raises ConversionError if their names are not those of this model.
    """
    if not stamp.get("options"):
        return None

    def read(entries: Sequence[Mapping[str, Any]]) -> list[TensorInterface]:
        return [
            TensorInterface(e["name"], tuple(e["shape"]), getattr(torch, e["dtype"]), tuple(e["order"]))
            for e in entries
        ]

    inputs, outputs = read(stamp["inputs"]), read(stamp["outputs"])
    if [i.name for i in inputs] != program.inputs or [o.name for o in outputs] != program.outputs:
        raise ConversionError(
            "the artifact was made from another model: "
            f"it has the inputs {', '.join(i.name for i in inputs)} and outputs {', '.join(o.name for o in outputs)}, "
            f"the model {', '.join(program.inputs)} and {', '.join(program.outputs)}",
            code="PTC6034",
            fix="Give the model that the artifact was made from.",
        )
    return inputs, outputs


def fixed_batch(inputs: Sequence[TensorSpec]) -> int | None:
    """Return the only batch size that the artifact takes, or None if it takes any."""
    sizes = {spec.shape[0] for spec in inputs if spec.shape}
    known = [n for n in sizes if n is not None]
    return known[0] if known else None
