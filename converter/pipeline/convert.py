"""Convert one model: load, capture, rewrite, plan, write, open again, prove, put in place."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self, Unpack

from torch import nn

from converter.artifacts.paths import SUFFIXES, output_path, parse_formats
from converter.artifacts.placement import Placement, full_disk, is_disk_full
from converter.artifacts.runner import Runner
from converter.artifacts.runtime.formats import Format
from converter.errors import ConversionError, UsageError, wrap_unexpected
from converter.lowering.training_notes import training_notes
from converter.lowering.user_lowerings import load_mappings
from converter.memory import return_large_blocks
from converter.options import ArtifactOptions, ConvertKeywords, ConvertOptions, ProofOptions
from converter.pipeline.build import RewrittenModel, build, summarize_changes
from converter.pipeline.clock import Clock, Progress
from converter.pipeline.load_model import LoadedModel, load_model
from converter.pipeline.program_cache import ProgramCache
from converter.plan.interface import facts, symbol_names
from converter.report.failures import failure_of
from converter.report.results import Accuracy, ArtifactReport, ConversionReport, Proof, TraceRow, status_of
from converter.rewrites.base import Change
from converter.verification.divergence import by_module, disagrees, locate_divergence, trace_artifact, worst_round
from converter.verification.output_proofs import compare_artifact
from converter.verification.reference import Reference, take_reference
from converter.verification.run_artifact import feed, labeled_accuracy, run_artifact


def convert(
    model: str | Path | nn.Module,
    *,
    to: str | Sequence[str],
    output: str | Path | Mapping[str, str | Path] | None = None,
    progress: Progress | None = None,
    **options: Unpack[ConvertKeywords],
) -> ConversionReport:
    """Convert a model to one or more formats, and check numerically that each computes the same function.

    Args:
        model: a checkpoint file, or a module.
        to: of "tf", "keras", "onnx".
        output: the artifact's path for one format, else a folder; or a mapping from format to path.
        progress: called with a step's name; returns a context that lasts as long as the step.
        options: those of `converter.options.ConvertOptions`: `factory`, `input_shapes`, `layout`, `verify`, ...

    Returns:
        The report. It names an artifact that does not agree, which is not put in place. If one of several formats
        cannot be written, its entry has a `failure`.

    Raises:
        ConversionError: the model cannot be read, captured, or converted to any of the formats.
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
        self._cache = ProgramCache() if lasting else None
        self._runners: dict[Format, Runner] = {}

    def convert(
        self,
        model: str | Path | nn.Module,
        *,
        to: str | Sequence[str],
        output: str | Path | Mapping[str, str | Path] | None = None,
        progress: Progress | None = None,
        **keywords: Unpack[ConvertKeywords],
    ) -> ConversionReport:
        """Convert a model, as the function `convert` does."""
        options = ConvertOptions.of(**keywords)
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
        model: str | Path | nn.Module,
        to: str | Sequence[str],
        output: str | Path | Mapping[str, str | Path] | None,
        progress: Progress | None,
        options: ConvertOptions,
        cache: ProgramCache | None,
    ) -> ConversionReport:
        return_large_blocks()
        formats: list[Format] = parse_formats(to)  # type: ignore[assignment]
        if not formats:
            raise UsageError("no format is given", code="PTC6026", fix=f"one of {', '.join(SUFFIXES)}")
        clock = Clock(progress)
        source_path = Path("model" if isinstance(model, nn.Module) else model)
        if isinstance(output, Mapping):
            paths = {f: output_path(source_path, f, Path(output[f]), False) for f in formats}
        else:
            paths = {
                f: output_path(source_path, f, Path(output) if output else None, len(formats) > 1) for f in formats
            }

        if not isinstance(model, nn.Module):
            _refuse_to_replace(source_path, paths.values())

        with ExitStack() as stack:
            added = load_mappings(options.artifact.mappings)
            artifact_options = replace(options.artifact, mappings=added.digests)
            placements = {f: stack.enter_context(Placement(paths[f], force=options.write.force)) for f in formats}
            runners = {f: self._runner(f) for f in formats} if options.write.verify else {}
            source = load_model(
                model, options, fixed_batch=options.artifact.fixed_batch, clock=clock, cache=cache, mappings=added
            )
            reference = None
            if options.write.verify:
                with clock("run PyTorch"):
                    reference = take_reference(
                        source.program,
                        source.module,
                        seed=options.capture.seed,
                        inputs=options.proof.inputs,
                        running=source.running,
                        preprocessing=options.proof.preprocessing,
                    )
                    source.probe = reference.probe(source.program)
            changes: list[Change] = []
            artifacts: list[ArtifactReport] = []
            failures: list[ConversionError] = []
            for format in formats:
                one = ArtifactJob(
                    format, paths[format], placements[format], source, artifact_options, options.proof, reference,
                    runners.get(format), clock, options.write.keep_failed,
                )  # fmt: skip
                started = time.perf_counter()
                try:
                    made = one.run()
                    artifacts.append(replace(made, training=options.report.shown(made.training)))
                except Exception as error:
                    failure = _as_conversion_error(error, format, paths[format])
                    failures.append(failure)
                    artifacts.append(_failed(format, source, failure, time.perf_counter() - started))
                self._release_runner(format)
                if one.built is not None:
                    changes += [c for c in one.built.changes if c not in changes]
            left = [note for placement in placements.values() for note in placement.notes]
            if len(failures) == len(formats):
                raise failures[0]
        return ConversionReport(
            source=source.name,
            source_sha256=source.sha256,
            kind=source.kind,
            parameters=source.parameters,
            batch=source.program.fixed_batch or "dynamic",
            rewrites=tuple(summarize_changes(changes)),
            notes=options.report.shown((*source.notes, *source.program.notes, *left)),
            artifacts=tuple(artifacts),
            timings=clock.timings,
            compared_on=reference.compared_on if reference else None,
        )


@dataclass
class ArtifactJob:
    """The conversion of one model to one format."""

    format: Format
    path: Path
    placement: Placement
    source: LoadedModel
    options: ArtifactOptions
    proof: ProofOptions
    reference: Reference | None
    runner: Runner | None
    clock: Clock
    keep_failed: bool
    built: RewrittenModel | None = None
    rows: Sequence[TraceRow] = ()
    accuracy: Accuracy | None = None

    def run(self) -> ArtifactReport:
        """Write the artifact, prove it, and put it in place if it agrees."""
        started = time.perf_counter()
        self.built = built = build(self.source, self.format, self.options, self.clock)
        with self.clock(f"write {self.format}"):
            built.write(self.placement.temporary)
        proofs: tuple[Proof, ...] = ()
        operators: Mapping[str, int] = {}
        if self.reference is not None and self.runner is not None:
            proofs = self._proofs(built, self.reference, self.runner)
            operators = self.runner.operators()
        status = status_of(proofs)
        path: Path | None = None
        if not proofs or status == "verified":
            self.placement.commit()
            path = self.path
        elif self.keep_failed:
            path = self.placement.keep_failed()
        names = symbol_names(self.source.program)
        return ArtifactReport(
            format=self.format,
            path=path,
            inputs=tuple(facts(i, names) for i in built.inputs),
            outputs=tuple(facts(o, names) for o in built.outputs),
            proofs=proofs,
            operators=operators,
            movements=built.movements(operators),
            status=status,
            seconds=time.perf_counter() - started,
            accuracy=self.accuracy,
            trace=by_module(self.rows) if self.proof.trace else (),
            training=training_notes(built.plan) if built.plan and self.format == "keras" else (),
        )

    def _proofs(self, built: RewrittenModel, reference: Reference, runner: Runner) -> tuple[Proof, ...]:
        with self.clock(f"prove {self.format}: the same function"):
            first = built.prove_function(reference)
            if self.proof.trace or disagrees(first):
                first, self.rows = locate_divergence(first, lambda: built.trace(reference))
        with self.clock(f"prove {self.format}: the same artifact"):
            runner.open(self.placement.temporary, trusted=True)  # it has just been written
            results = run_artifact(runner, built.inputs, built.outputs, reference)
            second = compare_artifact(
                reference.float64, reference.float32, results,
                atol=self.proof.atol, rtol=self.proof.rtol, constant=reference.constant,
                perturbed_runs=reference.perturbed_runs_in(runner),
            )  # fmt: skip
            self.accuracy = labeled_accuracy(reference, results)
            if disagrees(second) and not disagrees(first):
                arrays = worst_round(reference, results)
                given = feed(runner, built.inputs, arrays)
                second, _ = locate_divergence(
                    second, lambda: trace_artifact(self.source.program, arrays, runner, given)
                )
        with self.clock(f"prove {self.format}: the same weights"):
            third = built.prove_weights(runner.tensors(), runner.graph_as_written())
        return first, second, third


def _refuse_to_replace(source: Path, paths: Iterable[Path]) -> None:
    """Refuse to replace the checkpoint with its artifact, even with --force."""
    for path in paths:
        if source.exists() and path.exists() and path.samefile(source):
            raise UsageError(
                "The output path is that of the checkpoint.", code="PTC6027", where=str(path), fix="give another -o"
            )


def _as_conversion_error(error: Exception, format: Format, path: Path) -> ConversionError:
    if isinstance(error, ConversionError):
        return error
    failure = full_disk(path) if is_disk_full(error) else wrap_unexpected(error, f"--to {format}")
    failure.__cause__ = error
    return failure


def _failed(format: Format, source: LoadedModel, error: ConversionError, seconds: float) -> ArtifactReport:
    """Return the report of a format that could not be written, beside others that could."""
    return ArtifactReport(
        format, None, (), (), (), {}, (), "not verified", seconds, failure=failure_of(error, source.name)
    )
