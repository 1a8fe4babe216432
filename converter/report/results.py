"""The results of conversion, verification and inspection, as plain data."""

import os
import platform
import resource
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, Self

from converter.errors import Note, escaped
from converter.options import ExplanationKind as ExplanationKind

from .failures import DISAGREES, Failure, Report, UnsupportedOperator, worst_status

Shape = tuple[int | str | None, ...]
Status = Literal["verified", "quantized", "not verified", "disagrees"]
ProofName = Literal["function", "artifact", "weights"]
LONGEST = 200  # characters of a name, in short forms
LIBRARIES = ("pt-convert", "torch", "tensorflow", "keras", "onnx", "onnxscript", "onnxruntime")


def library_version(name: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    try:
        return version(name)
    except PackageNotFoundError:  # ONNX files are written without TensorFlow
        return None


@dataclass(frozen=True)
class TensorFacts:
    """An input or output of an artifact; `layout` is "channels_last" or "pytorch"."""

    name: str
    shape: Shape
    dtype: str
    layout: str


@dataclass(frozen=True)
class OutputComparison:
    """Figures of one output over all rounds of inputs; each is the worst of its rounds.

    Attributes:
        agrees: every error is within the bound, NaN and infinities are in the same places, shapes are the same.
        max_abs, mean_abs: error in the output's own unit.
        max_rel: largest error relative to its element, among elements above a thousandth of the scale.
        cosine, sqnr_db: similarity, signal to error in decibels (infinite where there is no error).
        scale: largest magnitude of the reference in the worst round, constant fills aside; `bound` is the error allowed
            where the error is largest by what is allowed.
        torch_rounding: PyTorch's own largest float32 error in the worst round (in the first proof, its float64 error
            with other roundings); None where none was measured.
        multiple_of_rounding: largest error over PyTorch's own on the element and its like, or 4 ulp of their largest
            value if that is more.
        top1_agreement: share of rows with the same largest column, for 2-D outputs of floats.
        top5_agreement: share of PyTorch's five largest columns that are among the artifact's, where there are more.
        set_aside: positions where PyTorch's float32 and float64 themselves differ (integers, overflow).
        proves_nothing: the output does not vary enough for its agreement to mean anything.
        share_of_bound: the largest error over the error allowed there.
        resolution: a relative difference below this would not be seen in every channel or column of large values.
    """

    name: str
    agrees: bool
    max_abs: float
    max_rel: float
    mean_abs: float
    cosine: float
    sqnr_db: float
    scale: float
    bound: float
    torch_rounding: float | None = None
    multiple_of_rounding: float | None = None
    top1_agreement: float | None = None
    set_aside: int = 0
    notes: tuple[str, ...] = ()
    proves_nothing: bool = False
    top5_agreement: float | None = None
    share_of_bound: float = 0.0
    resolution: float | None = None


@dataclass(frozen=True)
class ComparedOn:
    """The inputs on which both sides ran.

    Attributes:
        seed: of the random inputs.
        rounds: kind, batch and, where other sizes vary, sizes of each round.
        given: where the user's own inputs came from; None if there are none.
        preprocessing: of a folder of images, in words; None for arrays.
    """

    seed: int
    rounds: tuple[str, ...]
    given: str | None = None
    preprocessing: str | None = None


@dataclass(frozen=True)
class Explanation:
    """A known difference that makes a disagreeing artifact agree; `kind` is the value for `--accept`.

    Attributes:
        name: the model's output or input that it concerns; "" for all.
        description: which side does what the other does not.
        accepted: the user accepted it.
    """

    kind: ExplanationKind
    name: str
    description: str
    accepted: bool


@dataclass(frozen=True)
class Statistics:
    """Statistics of one tensor; `least` and `greatest` are its extremes."""

    shape: tuple[int, ...]
    mean: float
    deviation: float
    least: float
    greatest: float


@dataclass(frozen=True)
class TraceRow:
    """One value along the graph on both sides: an operator's result in PyTorch, in float64, and in the conversion.

    Attributes:
        module: path of the module; "" for the model itself.
        operator: PyTorch's, such as "aten.conv2d".
        folded: modules folded into it, whose effect its value includes.
        actual: None where the artifact has no such value.
        error: the largest error of an element, or of the statistics of a value within an artifact. None without
            `actual`.
        diverges: the value differs. A missing value (fused operators have none) does not count if a later value that
            depends on it agrees.
        name: of the value in the artifact, "" for a graph that was not written.
    """

    module: str
    operator: str
    folded: tuple[str, ...]
    expected: Statistics
    actual: Statistics | None
    error: float | None
    diverges: bool
    name: str = ""


@dataclass(frozen=True)
class TensorCheck:
    """A tensor of an artifact, compared with the tensors of the checkpoint that it is made of.

    Attributes:
        exact: it must be equal bit for bit: permuted, reshaped or cast only; else folded with others.
        ulps: error of a folded tensor, in ulp of its scale.
        fault: what is wrong; "" if nothing.
        how: what rearranges it; "" if nothing does, or it is unknown.
    """

    name: str
    sources: tuple[str, ...]
    shape: tuple[int, ...]
    exact: bool
    ulps: float
    fault: str = ""
    how: str = ""


@dataclass(frozen=True)
class Proof:
    """One of the three proofs; `failures` are sentences, `first_difference` is the path of the first differing module.

    Attributes:
        divergence: the first value that differs, if values were compared along the graph.
        tensors: each tensor of the artifact, in proof 3.
    """

    name: ProofName
    holds: bool
    summary: str
    outputs: tuple[OutputComparison, ...] = ()
    failures: tuple[str, ...] = ()
    first_difference: str | None = None
    divergence: TraceRow | None = None
    tensors: tuple[TensorCheck, ...] = ()

    @property
    def proves_nothing(self) -> bool:
        """Return whether nothing disagreed, but nothing could have."""
        return not self.holds and bool(self.outputs) and all(output.agrees for output in self.outputs)


def status_of(proofs: Iterable[Proof]) -> Status:
    """Return "verified" only if there are proofs and all hold; one that proves nothing is "not verified"."""
    proofs = tuple(proofs)
    if any(not proof.holds and not proof.proves_nothing for proof in proofs):
        return "disagrees"
    return "verified" if proofs and all(proof.holds for proof in proofs) else "not verified"


@dataclass(frozen=True)
class WeightMatch:
    """The result of searching an artifact for a tensor of the checkpoint by content.

    Attributes:
        found: "derived" is joined with others, split into pieces or added to another; "folded" has a batch norm folded
            in, or is a tensor of that norm; "not needed" was not found and need not be.
        name: of the artifact's tensor that holds it, or is nearest to it; "" if there is none.
        how: how it is stored there, or what is wrong.
    """

    tensor: str
    shape: tuple[int, ...]
    found: Literal["unchanged", "permuted", "derived", "folded", "not needed", "changed", "missing"]
    name: str
    how: str


@dataclass(frozen=True)
class Rewrite:
    """A rewrite: its name, where, and how: "Focus -> SpaceToDepth", "stem.conv", "input channels permuted"."""

    name: str
    module: str
    description: str


@dataclass(frozen=True)
class Movement:
    """An operator of the artifact that moves data at run time; `elements` per sample, or "unknown".

    Attributes:
        source_line: of the user's code that asked for it, "" if unknown.
    """

    kind: str
    module: str
    reason: str
    elements: int | str
    source_line: str = ""


@dataclass(frozen=True)
class Accuracy:
    """Top-1 accuracy (0 to 1) on the user's labeled samples, and how many predictions are the same."""

    samples: int
    source: float
    artifact: float
    same_predictions: int


@dataclass(frozen=True)
class LostPart:
    """A part of an output whose values are far smaller than the rest, and drown in its noise.

    Attributes:
        place: as an index, such as "[:, 4:84]".
        largest: its largest absolute value.
        sqnr_db: signal to noise in decibels.
    """

    place: str
    largest: float
    sqnr_db: float


@dataclass(frozen=True)
class QuantizedOutput:
    """One output of a quantized file against PyTorch's float64, over all compared samples.

    Attributes:
        sqnr_db: signal to noise in decibels; infinite without noise.
        max_abs: largest error.
        top1_agreement: share of rows with the same largest column, for 2-D outputs.
        largest: largest absolute value.
        lost: a part that drowns in the noise of the rest.
    """

    name: str
    sqnr_db: float
    max_abs: float
    top1_agreement: float | None
    largest: float = 0.0
    lost: LostPart | None = None

    @property
    def least_db(self) -> float:
        """The signal to noise of the output, or of the part that is lost."""
        return self.sqnr_db if self.lost is None else min(self.sqnr_db, self.lost.sqnr_db)


@dataclass(frozen=True)
class LayerLoss:
    """An operator of a quantized file that loses much.

    Attributes:
        sqnr_db: signal to noise of its result, against the float file.
        before_db: the lowest of its inputs; None if they are exact.
    """

    module: str
    operator: str
    sqnr_db: float
    before_db: float | None


@dataclass(frozen=True)
class Quantization:
    """How a LiteRT file was quantized, and what that costs. The proofs of its report are those of its float twin.

    Attributes:
        how: the value of `--quantize`.
        calibrated_on: number of samples; 0 where none are needed.
        compared_on: the inputs on which `outputs` were compared.
        weights: how the constants are stored.
        layers: what adds most noise, the worst first.
        in_floats: what remains floats because one scale cannot hold what it joins, in words.
        failures: constants that are stored otherwise, and figures below what the user demands.
    """

    how: str
    calibrated_on: int
    compared_on: str
    weights: str
    outputs: tuple[QuantizedOutput, ...]
    layers: tuple[LayerLoss, ...] = ()
    in_floats: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()

    @property
    def sqnr_db(self) -> float:
        """The signal to noise of the worst output."""
        return min((one.least_db for one in self.outputs), default=float("inf"))


@dataclass(frozen=True, repr=False)
class ArtifactReport:
    """One artifact of a conversion.

    Attributes:
        path: None where nothing was put in place.
        seconds: the time it took.
        failure: why it could not be written, where others of the same call could.
        training: how further training of a Keras file differs.
        quantization: of a quantized LiteRT file.
    """

    format: str
    path: Path | None
    inputs: tuple[TensorFacts, ...]
    outputs: tuple[TensorFacts, ...]
    proofs: tuple[Proof, ...]
    operators: Mapping[str, int]
    movements: tuple[Movement, ...]
    status: Status
    seconds: float
    accuracy: Accuracy | None = None
    trace: tuple[TraceRow, ...] = ()
    failure: "Failure | None" = None
    training: tuple[Note, ...] = ()
    quantization: Quantization | None = None

    def __repr__(self) -> str:
        return f"<ArtifactReport {self.format}: {self.status}; {escaped(str(self.path or 'nothing written'))}>"

    @property
    def verdict(self) -> str:
        """The status in words, with the figure of a quantized file."""
        if self.status != "quantized" or self.quantization is None:
            return self.status
        return f"quantized (float twin verified), {self.quantization.sqnr_db:.1f} dB"


class Artifacts(tuple[ArtifactReport, ...]):
    """The artifacts of a conversion, by position or by format: `artifacts["onnx"]`."""

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, str):
            return super().__getitem__(key)
        for artifact in self:
            if artifact.format == key:
                return artifact
        raise KeyError(f"{key!r}; the formats are {', '.join(artifact.format for artifact in self) or 'none'}")


@dataclass(frozen=True)
class Answer:
    """What a module's operators are in other words, for a topic of `inspect --explain`.

    Attributes:
        lines: sentences, and lines of code with the model's numbers.
    """

    topic: str
    module: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Environment:
    """Where a report was made.

    Attributes:
        peak_memory: bytes that this process held at most so far; None where the system does not say.
        versions: of Python and the libraries that are installed.
    """

    system: str
    cores: int
    peak_memory: int | None
    versions: Mapping[str, str]

    @classmethod
    def current(cls) -> Self:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        versions = {name: found for name in LIBRARIES if (found := library_version(name)) is not None}
        system = f"{platform.system()} {platform.machine()}"
        return cls(system, len(os.sched_getaffinity(0)), peak, {"python": platform.python_version(), **versions})


class _Shown(Report):
    """A report that an interactive Python shows in short."""

    source: str
    status: Status

    @property
    def verified(self) -> bool:
        """Return whether all proofs hold."""
        return self.status == "verified"

    @property
    def report(self) -> dict[str, Any]:
        """Return what a report file holds."""
        return self.to_dict()

    def _written(self) -> str:
        """Return formats and paths, for the short form."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {escaped(self.source)[:LONGEST]}: {self.status}; {escaped(self._written())}>"

    def _repr_html_(self) -> str:
        from converter.report.page import summary

        return summary(self.to_dict())


@dataclass(frozen=True, repr=False)
class ConversionReport(_Shown):
    """One model, converted to one or more formats; `timings` in seconds, by step.

    Attributes:
        answers: what its packings, shifts, grouped and separable convolutions are elsewhere, and became.
    """

    source: str
    source_sha256: str | None
    kind: str
    parameters: int
    batch: int | Literal["dynamic"]
    rewrites: tuple[Rewrite, ...]
    notes: tuple[Note, ...]
    artifacts: Artifacts
    timings: Mapping[str, float] = field(default_factory=dict)
    compared_on: ComparedOn | None = None
    answers: tuple[Answer, ...] = ()
    environment: Environment = field(default_factory=Environment.current)

    def __post_init__(self) -> None:
        object.__setattr__(self, "artifacts", Artifacts(self.artifacts))

    def _written(self) -> str:
        return ", ".join(f"{one.format} {one.path or 'not written'}" for one in self.artifacts) or "nothing written"

    @property
    def status(self) -> Status:  # type: ignore[override]
        """Return the worst status of the artifacts."""
        statuses = {artifact.status for artifact in self.artifacts}
        order: tuple[Status, ...] = ("disagrees", "not verified", "quantized", "verified")
        return next((one for one in order if one in statuses), "not verified")

    @property
    def exit_status(self) -> int:  # type: ignore[override]
        unproven = any(not proof.holds for artifact in self.artifacts for proof in artifact.proofs)
        failures = [artifact.failure.exit_status for artifact in self.artifacts if artifact.failure]
        return worst_status([*failures, DISAGREES] if unproven or self.status == "disagrees" else failures)

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"status": self.status}


@dataclass(frozen=True, repr=False)
class VerificationReport(_Shown):
    """An artifact compared with its model; `timings` in seconds, by step."""

    source: str
    artifact: str
    proofs: tuple[Proof, ...]
    notes: tuple[Note, ...]
    status: Status
    accuracy: Accuracy | None = None
    explanations: tuple[Explanation, ...] = ()
    weights: tuple[WeightMatch, ...] = ()
    trace: tuple[TraceRow, ...] = ()
    timings: Mapping[str, float] = field(default_factory=dict)
    compared_on: ComparedOn | None = None
    quantization: Quantization | None = None
    environment: Environment = field(default_factory=Environment.current)

    def _written(self) -> str:
        return self.artifact

    @property
    def exit_status(self) -> int:  # type: ignore[override]
        return 0 if self.status in ("verified", "quantized") else DISAGREES


@dataclass(frozen=True)
class LayerPair:
    """A layer of a Keras model, and the operator of PyTorch whose weights it has.

    Attributes:
        type: of the layer.
        module: the path of PyTorch's module; of several where the layer is several.
        shapes: of the layer's weights.
        note: how the weights differ: columns in another order, an epsilon made up for.
        others: what else it could be by weights and input.
        decided: how it was told from them.
    """

    layer: str
    type: str
    module: str
    shapes: tuple[Shape, ...]
    note: str = ""
    others: tuple[str, ...] = ()
    decided: str = ""


@dataclass(frozen=True, repr=False)
class IntoReport(_Shown):
    """The weights of a PyTorch model in a hand-written Keras model; `timings` in seconds, by step.

    Attributes:
        artifact: None if nothing was put in place.
        unused: PyTorch's operators with weights that no layer is.
        kept: layers that keep the weights that the Keras model gave them.
    """

    source: str
    builder: str
    artifact: str | None
    pairs: tuple[LayerPair, ...]
    unused: tuple[str, ...]
    kept: tuple[str, ...]
    proofs: tuple[Proof, ...]
    notes: tuple[Note, ...]
    status: Status
    accuracy: Accuracy | None = None
    explanations: tuple[Explanation, ...] = ()
    timings: Mapping[str, float] = field(default_factory=dict)
    compared_on: ComparedOn | None = None
    environment: Environment = field(default_factory=Environment.current)

    def _written(self) -> str:
        return self.artifact or "not written"

    @property
    def exit_status(self) -> int:  # type: ignore[override]
        return 0 if self.status == "verified" else DISAGREES


@dataclass(frozen=True)
class LayerRow:
    """One module of the tree; shapes are those of its first tensors, None where it has none.

    Attributes:
        convolution: kernel, stride, dilation, groups and multiplier of its convolutions.
    """

    path: str
    type: str
    shape_in: Shape | None
    shape_out: Shape | None
    parameters: int
    becomes: str
    convolution: str = ""


@dataclass(frozen=True)
class PlanRow:
    """One value of the plan: its axes in a Keras file, and the movements that its operator needs.

    Attributes:
        axes: PyTorch's dimension of each axis, "0 | 2 | 3 | 1"; 1.0 and 1.1 are factors of dimension 1.
        moves: kind, number of elements per example, and reason of each movement.
        reads: the values that its operator reads.
    """

    value: str
    operator: str
    module: str
    shape: Shape
    axes: str
    moves: tuple[str, ...]
    reads: tuple[str, ...] = ()


@dataclass(frozen=True)
class FormatCheck:
    """Whether the model can be converted to a format.

    Attributes:
        failure: why it cannot.
        notes: on the artifact that it becomes.
    """

    format: str
    failure: Failure | None = None
    notes: tuple[Note, ...] = ()

    @property
    def converts(self) -> bool:
        return self.failure is None


def status_of_checks(checks: Iterable[FormatCheck]) -> int:
    """Return the largest exit status of the failed checks, or 0."""
    return max((check.failure.exit_status for check in checks if check.failure), default=0)


@dataclass(frozen=True)
class CheckReport(Report):
    """Whether a model can be converted to each of the checked formats."""

    source: str
    checks: tuple[FormatCheck, ...]
    notes: tuple[Note, ...] = ()

    @property
    def exit_status(self) -> int:  # type: ignore[override]
        return status_of_checks(self.checks)


@dataclass(frozen=True)
class ModelSummary(Report):
    """The module tree, its rewrites, and the operators that cannot be converted."""

    source: str
    rows: tuple[LayerRow, ...]
    unsupported: tuple[UnsupportedOperator, ...]
    notes: tuple[Note, ...]
    inputs: tuple[TensorFacts, ...] = ()
    outputs: tuple[TensorFacts, ...] = ()
    plan: tuple[PlanRow, ...] = ()
    rewrites: tuple[Rewrite, ...] = ()
    checks: tuple[FormatCheck, ...] = ()
    answers: tuple[Answer, ...] = ()

    @property
    def exit_status(self) -> int:  # type: ignore[override]
        return status_of_checks(self.checks)
