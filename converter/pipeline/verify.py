"""Verify an artifact, from pt-convert or any tool, against its model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar, Unpack

import numpy as np
import torch

from converter.artifacts.detect_format import detect_format
from converter.artifacts.runner import Runner, TensorSpec
from converter.artifacts.runtime.formats import TORCH_WEIGHTS, Format
from converter.artifacts.stamp_schema import checked_stamp
from converter.artifacts.torch_writer import source_digest
from converter.checkpoint.pickle_loader import refuse_more_than_tensors
from converter.checkpoint.trust import ARTIFACT, is_guard_lifted
from converter.errors import ConversionError, Note, UnsupportedOperatorsError, UsageError
from converter.ir.program import Program, read_attribute
from converter.lowering.user_lowerings import load_mappings
from converter.options import (
    ArtifactOptions,
    BoundaryOptions,
    IntoOptions,
    LoadOptions,
    SubmodelOptions,
    VerifyCall,
    VerifyOptions,
    takes_model,
)
from converter.pipeline.build import build, interfaces
from converter.pipeline.clock import Clock, Progress
from converter.pipeline.find_weights import verify_weights
from converter.pipeline.load_model import LoadedModel, Source, compute_reference, load_model
from converter.pipeline.quantize import compare_quantized
from converter.plan.interface import TensorInterface
from converter.report.results import Proof, Status, TraceRow, VerificationReport, status_of
from converter.verification.coverage import NAMED, UNEXERCISED_SHARE, tables, unexercised_parameters
from converter.verification.divergence import by_module, disagrees, locate_divergence, trace_artifact, worst_round
from converter.verification.input_bindings import input_bindings
from converter.verification.io_matching import Matching
from converter.verification.io_names import shown
from converter.verification.nonfinite import nonfinite_inputs
from converter.verification.output_proofs import RESOLUTION, resolution_note, vacuous
from converter.verification.prove import prove_weights
from converter.verification.quantized import demands
from converter.verification.reference import Reference, round_tensors
from converter.verification.run_artifact import labeled_accuracy
from converter.verification.weight_search import WeightSearch

Loading = TypeVar("Loading", bound=LoadOptions)
HELD = ("unchanged", "permuted", "derived")  # tables that an artifact has
# Operators of ONNX, TensorFlow and TFLite.
COMPARISONS = {
    "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "NotEqual", "GreaterEqual", "LessEqual",
    "EQUAL", "NOT_EQUAL", "GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL",
}  # fmt: skip


@takes_model
def verify(
    model: Source,
    /,
    artifact: str | Path,
    *,
    progress: Progress | None = None,
    **keywords: Unpack[VerifyCall],
) -> VerificationReport:
    """Compare an artifact's outputs with its model's, and its weights too if it has a pt-convert stamp.

    Inputs and outputs are matched by name, or by position where the names differ. An artifact from another tool may
    hold them channels last, if its shapes say so, and may take one batch size only. If it does not agree, known
    differences are tried and reported: a softmax, a sigmoid, boxes in units of the image size, another order, a layout
    that shapes do not tell.

    Args:
        artifact: a SavedModel folder, a `.keras`, an `.onnx` or a `.tflite` file, or a folder of `--to torch`.
        keywords: those of `converter.options.VerifyOptions`: `factory`, `input_shapes`, `atol`, `accept`, ... A stamped
            artifact needs no input shapes and no submodel: its stamp has them.

    Raises:
        ConversionError: either side cannot be read or run.

    Examples:
        With `model` and the file of `convert`'s example:

        >>> converter.verify(model, "net.onnx").verified
        True
        >>> other = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU())
        >>> found = converter.verify(other, "net.onnx")
        >>> found.status
        'disagrees'
        >>> found.proofs[0].first_difference
        '0'
    """
    artifact = Path(artifact)
    clock = Clock(progress)
    format = detect_format(artifact)
    stamp, damaged = checked_stamp(artifact)
    options = VerifyOptions.of(**keywords)
    if options.match.weights:
        return verify_weights(model, artifact, format, options, clock)
    options = apply_stamp(options, stamp)
    with Runner(format) as runner:
        source = load_beside(model, artifact, options, stamp, runner, clock)
        ours = stamped_interfaces(source.program, stamp)
        inputs, outputs = ours or interfaces(source.program)
        notes = [*source.notes, *source.program.notes]
        if damaged:
            text = f"The artifact's stamp is damaged ({damaged}); it is compared as if another tool had written it."
            notes.append(Note(text, code="PTC6509"))
        batch = fixed_batch(source.program, inputs, runner.inputs, layouts_known=ours is not None)
        if batch is not None:
            source.program.fixed_batch = batch
            notes.append(batch_note(batch))
        reference = compute_reference(source, options, clock)
        if ours and stamp.get("quantize"):
            return verify_quantized(source, artifact, options, stamp, reference, runner, clock, notes)
        with clock("run the artifact"):
            matching = Matching(
                runner, inputs, outputs, reference, layouts_known=ours is not None,
                accepted=options.capture.accept, atol=options.proof.atol, rtol=options.proof.rtol,
            )  # fmt: skip
            match = matching.match()
        notes += [*reference.notes, *match.notes]
        proof = match.proof
        if proof.holds and not match.explanations:
            with clock("NaN"):
                nonfinite = nonfinite_inputs(source.program, options.capture.seed)
                if nonfinite is not None:
                    notes += nonfinite.differences(lambda arrays: matching.run(match, arrays), format)
        rows: Sequence[TraceRow] = ()
        if options.proof.trace or (disagrees(proof) and not match.explanations):
            with clock("trace"):
                arrays = worst_round(reference, match.results)
                given = matching.feed(match.binding, arrays)
                proof, rows = locate_divergence(proof, lambda: trace_artifact(source.program, arrays, runner, given))
        proofs = [proof]
        if ours:
            notes += resolution_note(proof)
            weights, more = prove_stamped_weights(source, format, stamp, runner, clock)
            proofs += weights
            notes += more
        else:
            text = "The artifact was not written by pt-convert; only what its weights compute is compared."
            notes.append(Note(text, code="PTC6507"))
            with clock("coverage"):
                proofs = [foreign_proof(proof, reference, options, runner.held)]
                notes += untaken_comparisons(runner, [matching.feed(match.binding, r.arrays) for r in reference.rounds])
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


def verify_quantized(
    source: LoadedModel,
    artifact: Path,
    options: VerifyOptions,
    stamp: Mapping[str, Any],
    reference: Reference,
    runner: Runner,
    clock: Clock,
    notes: Sequence[Note],
) -> VerificationReport:
    """Compare a quantized file's constants with those of its float twin, written anew, and report its outputs.

    It is "quantized" only if the user says what it must reach.
    """
    built = build(source, "tflite", ArtifactOptions(**stamp["options"]), clock, stamp.get("choices"))
    with clock("compare the quantized file"):
        quantization, accuracy = compare_quantized(built, artifact, stamp["quantize"], options.proof, reference, runner)
    changed = () if runner.graph_as_written() else ("the file is not as pt-convert wrote it",)
    quantization = replace(quantization, failures=(*changed, *quantization.failures))
    status: Status = "disagrees" if quantization.failures else "quantized"
    if status == "quantized" and not demands(options.proof):
        status = "not verified"
        text = "No figure says what is enough for a quantized file: give --min-sqnr or --min-accuracy."
        notes = [*notes, Note(text, code="PTC6511")]
    return VerificationReport(
        source=source.name,
        artifact=str(artifact),
        proofs=(),
        notes=options.report.shown([*notes, *reference.notes]),
        status=status,
        accuracy=accuracy,
        timings=clock.timings,
        compared_on=reference.compared_on,
        quantization=quantization,
    )


def apply_stamp(options: Loading, stamp: Mapping[str, Any]) -> Loading:
    """Take from an artifact's stamp how the model was captured, where the options do not say."""
    model, submodel, capture, boundary = options.model, options.submodel, options.capture, options.boundary
    if part := dict(stamp.get("part") or {}):
        frozen, strict = part.pop("freeze_control_flow"), part.pop("strict", False)
        model = replace(
            model,
            drop_keys=model.drop_keys or tuple(part.pop("drop_keys", ())),
            state=model.state or part.pop("state", None),
        )
        capture = replace(
            capture,
            freeze_control_flow=capture.freeze_control_flow or frozen,
            strict=capture.strict or strict,
            accept=(*capture.accept, *part.pop("accept", ())),
            input_values=capture.input_values or tuple(part.pop("input_values", ())),
        )
        stamped = {n: value for f in fields(BoundaryOptions) if (value := part.pop(n := f.name, None)) is not None}
        if stamped:
            boundary = BoundaryOptions(**stamped)
        submodel = SubmodelOptions(*(getattr(submodel, name) or _as_tuple(part[name]) for name in vars(submodel)))
    if not capture.input_shapes and not capture.image_size:
        capture = replace(capture, input_shapes=tuple(stamp.get("input_shapes", ())))
    return replace(options, model=model, submodel=submodel, capture=capture, boundary=boundary)


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def load_beside(
    model: Source,
    artifact: Path,
    options: VerifyOptions,
    stamp: Mapping[str, Any],
    runner: Runner,
    clock: Clock,
) -> LoadedModel:
    """Load and capture the model, and open the artifact: first, if only its shapes can tell how to call the model.

    Raises:
        UsageError: the model does not tell its input shapes, and does not take the artifact's; the error lists them.
    """
    missing = not (options.capture.input_shapes or stamp)
    trusted = is_guard_lifted(ARTIFACT, options.model.trust)
    if missing:
        runner.open(artifact, options.match.signature, trusted=trusted)
    batch = stamp.get("options", {}).get("fixed_batch")
    proposed = proposed_shapes(runner) if missing else ()
    try:
        source = load_model(model, options, fixed_batch=batch, clock=clock, mappings=load_mappings(), proposed=proposed)
    except UsageError as error:
        if error.code != "PTC2002" or not missing:
            raise
        taken = ", ".join(f"`{spec.name}` {shown(spec.shape)}" for spec in runner.inputs)
        raise UsageError(
            f"{error.what} The artifact takes {taken}.", code=error.code, where=error.where, fix=error.fix
        ) from error
    if runner.format != "onnx" and stamp.get("options"):
        with clock("import Keras"):  # while the process that opens the artifact imports too
            import keras  # noqa: F401  # the third proof makes a plan
    if not missing:
        with clock("open"):
            own = own_source(source, artifact, runner.format, stamp, clock)
            runner.open(artifact, options.match.signature, trusted=trusted or own)
    return source


def own_source(source: LoadedModel, artifact: Path, format: Format, stamp: Mapping[str, Any], clock: Clock) -> str:
    """Return the SHA-256 of the source that `--to torch` writes for this model as the stamp says, or "".

    The artifact's own source is a program, and anybody's: it runs only if it is the same. So are its weights, which it
    loads: they must pass as a checkpoint of tensors.
    """
    if format != "torch" or not stamp.get("options"):
        return ""
    refuse_more_than_tensors(artifact / TORCH_WEIGHTS)
    return source_digest(build(source, format, ArtifactOptions(**stamp["options"]), clock).module_source())


def prove_stamped_weights(
    source: LoadedModel, format: Format, stamp: Mapping[str, Any], runner: Runner, clock: Clock
) -> tuple[list[Proof], list[Note]]:
    """Prove the weights of a stamped artifact by the plan in its stamp, and if that fails by a new plan.

    A plan of another version may differ.

    Returns:
        The proof, unless mappings of the user are missing, and notes.
    """
    notes = []
    if stamp.get("source_sha256") not in (None, source.sha256):
        notes.append(Note("The artifact was made from another file, by its stamp.", code="PTC6505"))
    options = ArtifactOptions(**stamp["options"])
    choices = stamp.get("choices")
    with clock("compare the weights"):
        try:
            for known in (choices, None) if choices else (choices,):
                built = build(source, format, options, clock, known)
                proof = prove_weights(built, runner.tensors(), runner.graph_as_written())
                if proof.holds:
                    break
        except UnsupportedOperatorsError:
            if not options.mappings:
                raise
            text = "The artifact was converted with your own mappings; only what its weights compute is compared."
            return [], [*notes, Note(text, code="PTC6506")]
    return [proof], notes


def batch_note(batch: int) -> Note:
    """Return the note that an artifact takes one batch size only."""
    return Note(f"The artifact takes only batch {batch}.", code="PTC6504")


def foreign_proof(
    proof: Proof,
    reference: Reference,
    options: VerifyOptions | IntoOptions,
    held: Callable[[], Mapping[str, np.ndarray]],
) -> Proof:
    """Return the proof, or that it proves nothing: nobody has compared a foreign artifact's weights one by one.

    That is so if outputs do not depend on more than 5 % of the parameters for any input, or if a difference of 0.1 %
    would not be seen and no tolerance is given. The rows of a table that no input reads do not count if the artifact
    holds the table.

    Args:
        held: returns the artifact's arrays.
    """
    if not proof.holds:
        return proof
    program = reference.program
    given = [round_tensors(program, each) for each in reference.rounds]
    share = unexercised_parameters(program, given)
    if share is not None and share > UNEXERCISED_SHARE and (found := tables(program)):
        arrays = {name: read_attribute(program.graph_module, name).detach().numpy() for name in found}
        matches = WeightSearch(arrays, held()).run()
        share = unexercised_parameters(program, given, {one.tensor for one in matches if one.found in HELD})
    if share is not None and share > UNEXERCISED_SHARE:
        text = f"no output depends on {share:.0%} of the parameters for any of the inputs: give others with --inputs"
        return vacuous(proof, text)
    coarse = [o for o in proof.outputs if o.resolution is not None and o.resolution > RESOLUTION]
    if coarse and options.proof.atol is None and options.proof.rtol is None:
        worst = max(coarse, key=lambda output: output.resolution or 0.0)
        return vacuous(proof, f"differences of `{worst.name}` below {worst.resolution:.1%} would not be seen")
    return proof


def untaken_comparisons(runner: Runner, rounds: Sequence[Mapping[str, np.ndarray]]) -> list[Note]:
    """Return a note on the comparisons within an artifact that have one result for all inputs."""
    if not COMPARISONS & set(runner.operators()):
        return []
    sides: dict[tuple[str, str], tuple[float, float]] = {}
    for given in rounds:
        for value in runner.trace(given):
            if value.operator in COMPARISONS:
                least, most = sides.get((value.name, value.operator), (1.0, 0.0))
                figures = value.fingerprint
                sides[value.name, value.operator] = min(least, float(figures[2])), max(most, float(figures[3]))
    always = [f"`{name}` ({operator})" for (name, operator), (least, most) in sides.items() if least == most]
    if not always:
        return []
    more = f" and {len(always) - NAMED} more" if len(always) > NAMED else ""
    text = f"Comparisons in the artifact have the same result for all inputs: {', '.join(always[:NAMED])}{more}."
    return [Note(text, code="PTC5507")]


def proposed_shapes(runner: Runner) -> list[tuple[str, ...]]:
    """Return input shapes to try, in PyTorch's order, from those of the artifact."""

    def text(spec: TensorSpec, moved: bool) -> str:
        sizes = [str(n) if n is not None else ("1" if d == 0 else f"size{d}") for d, n in enumerate(spec.shape or ())]
        order = [sizes[0], sizes[-1], *sizes[1:-1]] if moved and len(sizes) > 2 else sizes
        return f"{','.join(order)}:{spec.dtype}"

    choices = (False,) if runner.format == "onnx" else (True, False)
    if not all(spec.shape for spec in runner.inputs):
        return []
    return list(dict.fromkeys(tuple(text(spec, moved) for spec in runner.inputs) for moved in choices))


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
            "The artifact was made from another model. It has the inputs "
            f"{', '.join(i.name for i in inputs)} and outputs {', '.join(o.name for o in outputs)}; the "
            f"model has {', '.join(program.inputs)} and {', '.join(program.outputs)}.",
            code="PTC6034",
            fix="Give the model that the artifact was made from.",
        )
    return inputs, outputs


def fixed_batch(
    program: Program, inputs: Sequence[TensorInterface], specs: Sequence[TensorSpec], layouts_known: bool
) -> int | None:
    """Return the only batch size that the artifact takes, or None if it takes any or the program has one itself.

    Only the axes of the artifact's inputs that hold the model's batch tell it.

    Raises:
        ConversionError: the artifact takes other inputs than the model, or several batch sizes at once.
    """
    if program.fixed_batch is not None:
        return None
    shapes = {spec.name: spec.shape for spec in specs}
    sizes: dict[str, int] = {}
    binding = next(input_bindings(inputs, specs, layouts_known))
    for interface, name, order in zip(inputs, binding.names, binding.orders, strict=True):
        shape = shapes[name]
        size = shape[order.index(0)] if shape else None
        if size is not None and not isinstance(interface.shape[interface.order.index(0)], int):
            sizes[name] = size
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"`{name}` {size}" for name, size in sizes.items())
        raise ConversionError(
            f"The artifact takes inputs of several batch sizes, the model of one: {listed}",
            code="PTC6040",
            fix="Compare an artifact that takes the same inputs as the model.",
        )
    return next(iter(sizes.values()), None)
