"""Convert one model: load, capture, rewrite, plan, write, open again, prove, put in place."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Self, Unpack

from converter.artifacts.paths import SUFFIXES, holds, output_path, parse_formats
from converter.artifacts.placement import Placement, full_disk, is_disk_full
from converter.artifacts.runner import Runner
from converter.artifacts.runtime.formats import Format
from converter.artifacts.tflite_writer import refuse_large
from converter.capture.input_domains import input_specs
from converter.compat.patches import lost_patches
from converter.errors import ConversionError, Note, UsageError, wrap_unexpected
from converter.lowering.training_notes import training_notes
from converter.lowering.user_lowerings import load_mappings
from converter.memory import return_large_blocks
from converter.options import ConvertCall, ConvertOptions, takes_model, with_example_shapes
from converter.pipeline.build import RewrittenModel, build, summarize_changes
from converter.pipeline.clock import Clock, Progress
from converter.pipeline.explain import Forms, explain_changes, merged
from converter.pipeline.load_model import LoadedModel, Source, compute_reference, for_format, load_model
from converter.pipeline.program_cache import ProgramCache
from converter.pipeline.quantize import calibration_samples, check_quantization, load_calibration, quantize_file
from converter.plan.interface import facts, symbol_names
from converter.report.failures import failure_of
from converter.report.results import (
    Accuracy,
    Answer,
    ArtifactReport,
    Artifacts,
    ConversionReport,
    Proof,
    Quantization,
    TraceRow,
    status_of,
)
from converter.rewrites.base import Change
from converter.verification.divergence import by_module, disagrees, locate_divergence, trace_artifact, worst_round
from converter.verification.output_proofs import Outputs, compare_artifact, resolution_note
from converter.verification.prove import prove_function, prove_weights, trace
from converter.verification.reference import Reference
from converter.verification.run_artifact import feed, labeled_accuracy, run_artifact, run_once


@takes_model
def convert(
    model: Source,
    /,
    *,
    to: str | Sequence[str],
    output: str | Path | Mapping[str, str | Path] | None = None,
    progress: Progress | None = None,
    **options: Unpack[ConvertCall],
) -> ConversionReport:
    """Convert a model to one or more formats, and check numerically that each computes the same function.

    Args:
        model: a checkpoint file, a module, a class or function that builds one, or a state dict, which needs `model=`:
            the class or function that builds its module, or a text as `--model` takes it.
        to: of "tf", "keras", "onnx", "tflite", "torch".
        output: the artifact's path for one format, else a folder; or a mapping from format to path.
        progress: called with a step's name; returns a context that lasts as long as the step.
        options: those of `converter.options.ConvertOptions`: `input_shapes`, `inputs`, `layout`, `verify`, ... Example
            tensors as `inputs` give the shapes too.

    Returns:
        The report. It names an artifact that does not agree, which is not put in place. If one of several formats
        cannot be written, its entry has a `failure`.

    Raises:
        ConversionError: the model cannot be read, captured, or converted to any of the formats.

    Examples:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU())
        >>> report = converter.convert(model, to="onnx", output="net.onnx", input_shapes=(1, 3, 8, 8))
        >>> report
        <ConversionReport Sequential: verified; onnx net.onnx>
        >>> [proof.name for proof in report.artifacts["onnx"].proofs if proof.holds]
        ['function', 'artifact', 'weights']
    """
    with ConversionSession() as session:
        return session.convert(model, to=to, output=output, progress=progress, **options)


class ConversionSession:
    """Resources shared by conversions in one process: processes that open artifacts, and captured programs.

    Args:
        lasting: keep them for the next model. A model that is not verified when converted with them is converted again
            without them.
    """

    def __init__(self, *, lasting: bool = False):
        self._lasting = lasting
        self._cache = ProgramCache[RewrittenModel]() if lasting else None
        self._runners: dict[Format, Runner] = {}

    def convert(
        self,
        model: Source,
        /,
        *,
        to: str | Sequence[str],
        output: str | Path | Mapping[str, str | Path] | None = None,
        progress: Progress | None = None,
        **keywords: Unpack[ConvertCall],
    ) -> ConversionReport:
        """Convert a model, as the function `convert` does."""
        options = ConvertOptions.of(**with_example_shapes(keywords))
        if self._cache is None:
            return self._convert(model, to, output, progress, options, None)
        hits = self._cache.hits
        try:
            report = self._convert(model, to, output, progress, options, self._cache)
        except ConversionError:
            if self._cache.hits == hits:
                raise
        else:
            if report.status == "verified" or not options.write.verify or self._cache.hits == hits:
                return report
        self._cache.clear()
        return self._convert(model, to, output, progress, options, None)

    def close(self) -> None:
        for runner in self._runners.values():
            runner.close()
        self._runners.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _runner(self, format: Format) -> Runner:
        """Return a living runner for the format, started while the model is being read."""
        kept = self._runners.get(format)
        if kept is not None and kept.alive:
            return kept
        if kept is not None:
            kept.close()
        self._runners[format] = Runner(format)
        return self._runners[format]

    def _release_runner(self, format: Format) -> None:
        """Close the runner of a finished format unless the session reuses it."""
        if not self._lasting and (runner := self._runners.pop(format, None)) is not None:
            runner.close()

    def _convert(
        self,
        model: Source,
        to: str | Sequence[str],
        output: str | Path | Mapping[str, str | Path] | None,
        progress: Progress | None,
        options: ConvertOptions,
        cache: ProgramCache[RewrittenModel] | None,
    ) -> ConversionReport:
        return_large_blocks()
        formats: list[Format] = parse_formats(to)  # type: ignore[assignment]
        if not formats:
            raise UsageError("No format is given.", code="PTC6026", fix=f"Choose from {', '.join(SUFFIXES)}.")
        check_quantization(options, formats)
        paths = _output_paths(model, formats, output, options.quantization.quantize)
        clock = Clock(progress)
        with ExitStack() as stack:
            added = load_mappings(options.artifact.mappings)
            options = replace(options, artifact=replace(options.artifact, mappings=added.digests))
            placements = {f: stack.enter_context(Placement(paths[f], force=options.write.force)) for f in formats}
            runners = {f: self._runner(f) for f in formats} if options.write.verify else {}
            source = load_model(
                model, options, fixed_batch=options.artifact.fixed_batch, clock=clock, cache=cache, mappings=added
            )
            if "tflite" in formats:
                refuse_large(source.program.bytes_of_weights)
            sources = {f: for_format(source, f, options.artifact) for f in formats}
            if "tflite" in sources:
                options = load_calibration(options, input_specs(sources["tflite"].program))
            references: dict[int | None, Reference | None] = {}
            for one in sources.values():
                batch = one.program.fixed_batch
                if batch not in references:
                    references[batch] = compute_reference(one, options, clock) if options.write.verify else None
            told: set[str] = set()
            jobs = [
                ArtifactJob(
                    f, paths[f], placements[f], one, options, references[one.program.fixed_batch], runners.get(f), clock
                )
                for f, one in sources.items()
            ]
            artifacts = []
            for job in jobs:
                artifacts.append(job.run(told))
                self._release_runner(job.format)
            failures = [job.failure for job in jobs if job.failure is not None]
            if len(failures) == len(jobs):
                raise failures[0]
        left = [note for placement in placements.values() for note in placement.notes]
        seen = [note for one in references.values() if one is not None for note in one.notes]
        seen += [note for job in jobs for note in job.notes]
        changes: list[Change] = []
        for job in jobs:
            changes += [c for c in job.changes if c not in changes]
        return ConversionReport(
            source=source.name,
            source_sha256=source.sha256,
            kind=source.kind,
            parameters=source.parameters,
            batch=source.program.fixed_batch or "dynamic",
            rewrites=tuple(summarize_changes(changes)),
            notes=options.report.shown((*source.notes, *source.program.notes, *seen, *left)),
            artifacts=Artifacts(artifacts),
            timings=clock.timings,
            compared_on=reference.compared_on if (reference := jobs[0].reference) else None,
            answers=merged(answer for job in jobs for answer in job.answers),
        )


@dataclass
class ArtifactJob:
    """The conversion of one model to one format.

    Attributes:
        changes: what the rewrites did.
        failure: why the artifact could not be written or opened.
        notes: what the comparison showed beside the proofs.
        answers: what its topics are elsewhere, and became in this format.
    """

    format: Format
    path: Path
    placement: Placement
    source: LoadedModel
    options: ConvertOptions
    reference: Reference | None
    runner: Runner | None
    clock: Clock
    changes: Sequence[Change] = ()
    failure: ConversionError | None = None
    rows: Sequence[TraceRow] = ()
    accuracy: Accuracy | None = None
    notes: list[Note] = field(default_factory=list)
    answers: Sequence[Answer] = ()

    def run(self, told: set[str]) -> ArtifactReport:
        """Write the artifact, prove it, and put it in place if it agrees; a failure does not stop the other formats.

        Args:
            told: topics that were answered for another format.
        """
        started = time.perf_counter()
        try:
            report = self._run(told)
        except Exception as error:
            self.failure = _as_conversion_error(error, self.format, self.path)
            report = ArtifactReport(
                self.format, None, (), (), (), {}, (), "not verified", 0.0,
                failure=failure_of(self.failure, self.source.name),
            )  # fmt: skip
        return replace(report, seconds=time.perf_counter() - started)

    def _run(self, told: set[str]) -> ArtifactReport:
        built = build(self.source, self.format, self.options.artifact, self.clock, checked=self.options.write.verify)
        self.changes = built.changes
        samples = calibration_samples(built, self.options) if self._quantizes else {}
        self.notes += lost_patches("onnxscript") if self.format == "onnx" else []
        with self.clock(f"write {self.format}"):
            built.write(self.placement.temporary)
        proofs: tuple[Proof, ...] = ()
        quantization: Quantization | None = None
        operators: Mapping[str, int] = {}
        if self.reference is not None and self.runner is not None:
            function = self._prove_function(built, self.reference)
            artifact = self._prove_artifact(built, self.reference, self.runner, locate=not disagrees(function))
            proofs = function, artifact, self._prove_weights(built, self.runner)
            operators = self.runner.operators()
            self._compare_nonfinite(built, self.reference, self.runner)
        forms = Forms(self.source.program, built.plan, built.program if self.format == "onnx" else None)
        self.answers = explain_changes(forms, built.changes, told)
        status = status_of(proofs)
        if self._quantizes and status != "disagrees":
            with self.clock(f"quantize {self.format}"):
                quantization, self.accuracy = quantize_file(
                    built, self.placement.temporary, self.options, samples, self.reference, self.runner
                )
            if self.runner is not None:
                operators = self.runner.operators()
            if quantization.failures:
                status = "disagrees"
            elif status == "verified":
                status = "quantized"
        self.notes += built.notes_on(self.placement.temporary)
        names = symbol_names(self.source.program)
        training = training_notes(built.plan) if built.plan and self.format == "keras" else ()
        return ArtifactReport(
            format=self.format,
            path=self._place(status in ("verified", "quantized") or (not proofs and status != "disagrees")),
            inputs=tuple(facts(i, names) for i in built.inputs),
            outputs=tuple(facts(o, names) for o in built.outputs),
            proofs=proofs,
            operators=operators,
            movements=built.movements(operators),
            status=status,
            seconds=0.0,
            accuracy=self.accuracy,
            trace=by_module(self.rows) if self.options.proof.trace else (),
            training=self.options.report.shown(training),
            quantization=quantization,
        )

    @property
    def _quantizes(self) -> bool:
        return self.format == "tflite" and self.options.quantization.quantize is not None

    def _prove_function(self, built: RewrittenModel, reference: Reference) -> Proof:
        with self.clock(f"prove {self.format}: the same function"):
            proof = prove_function(reference, built)
            if self.options.proof.trace or disagrees(proof):
                proof, self.rows = locate_divergence(proof, lambda: trace(reference, built))
            return proof

    def _prove_artifact(self, built: RewrittenModel, reference: Reference, runner: Runner, locate: bool) -> Proof:
        with self.clock(f"prove {self.format}: the same artifact"):
            runner.open(self.placement.temporary, trusted=True)  # it has just been written
            proof, results = self._compare(built, reference, runner)
            if built.format == "tflite" and not disagrees(proof):
                runner.use_plain_kernels()
                plain, plain_results = self._compare(built, reference, runner)
                if disagrees(plain):
                    proof, results = replace(plain, summary=f"without XNNPACK, {plain.summary}"), plain_results
                else:
                    proof = replace(proof, summary=f"{proof.summary}, with and without XNNPACK")
            self.accuracy = labeled_accuracy(reference, results)
            if self.options.proof.atol is None and self.options.proof.rtol is None:
                self.notes += resolution_note(proof)
            if locate and disagrees(proof):
                arrays = worst_round(reference, results)
                given = feed(runner, built.inputs, arrays)
                proof, _ = locate_divergence(proof, lambda: trace_artifact(built.captured, arrays, runner, given))
            return proof

    def _compare(self, built: RewrittenModel, reference: Reference, runner: Runner) -> tuple[Proof, list[Outputs]]:
        results = run_artifact(runner, built.inputs, built.outputs, reference)
        proof = compare_artifact(
            reference.float64, reference.float32, results,
            atol=self.options.proof.atol, rtol=self.options.proof.rtol, constant=reference.constant,
            perturbed_runs=reference.perturbed_runs_in(runner),
        )  # fmt: skip
        return proof, results

    def _compare_nonfinite(self, built: RewrittenModel, reference: Reference, runner: Runner) -> None:
        if reference.nonfinite is None:
            return
        with self.clock(f"prove {self.format}: NaN"):
            self.notes += reference.nonfinite.differences(
                lambda arrays: run_once(runner, built.inputs, built.outputs, arrays), self.format
            )

    def _prove_weights(self, built: RewrittenModel, runner: Runner) -> Proof:
        with self.clock(f"prove {self.format}: the same weights"):
            return prove_weights(built, runner.tensors(), runner.graph_as_written(), just_written=True)

    def _place(self, agrees: bool) -> Path | None:
        if agrees:
            self.placement.commit()
            return self.path
        return self.placement.keep_failed() if self.options.write.keep_failed else None


def _output_paths(
    model: Source,
    formats: Sequence[Format],
    output: str | Path | Mapping[str, str | Path] | None,
    quantize: str | None,
) -> dict[Format, Path]:
    """Return the path of each format's artifact; refuse, even with --force, to replace the checkpoint with it."""
    source = Path(model if isinstance(model, str | Path) else "model")
    if isinstance(output, Mapping):
        paths = {f: output_path(source, f, output[f], False, quantize) for f in formats}
    else:
        paths = {f: output_path(source, f, output or None, len(formats) > 1, quantize) for f in formats}
    for path in paths.values():
        if isinstance(model, str | Path) and holds(partial(path.samefile, source)):
            raise UsageError(
                "The output path is the checkpoint's path.", code="PTC6027", where=str(path), fix="Give another -o."
            )
    return paths


def _as_conversion_error(error: Exception, format: Format, path: Path) -> ConversionError:
    if isinstance(error, ConversionError):
        return error
    failure = full_disk(path) if is_disk_full(error) else wrap_unexpected(error, f"--to {format}")
    failure.__cause__ = error
    return failure
