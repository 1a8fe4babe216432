"""Assert in test suites that an artifact computes the same function as its model.

A failing test reports where they diverge:

def test_exported_model():
    assert_equivalent(Network().eval(), "network.onnx", input_shapes=["1,3,64,64"])
"""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

from converter.options import VerifyCall, takes_model
from converter.pipeline.load_model import Source
from converter.pipeline.verify import verify
from converter.report.results import Proof, TraceRow, VerificationReport

MOST = 8  # sentences shown of each proof


@takes_model
def assert_equivalent(
    model: Source,
    /,
    artifact: str | Path,
    **options: Unpack[VerifyCall],
) -> VerificationReport:
    """Assert that an artifact from any tool computes what its model computes.

    Args:
        model: a module in eval mode, or a checkpoint file.
        artifact: a SavedModel folder, a `.keras`, an `.onnx` or a `.tflite` file.
        options: those of `converter.verify`: `input_shapes`, `inputs`, `atol`, `accept`, ...

    Returns:
        The report, for its figures.

    Raises:
        AssertionError: they differ, or the comparison proves nothing. It names each output that differs, the first
            module whose value differs, and both values' statistics.
        ConversionError: either side cannot be read or run.

    Examples:
        With `model` and the file of `converter.convert`'s example:

        >>> assert_equivalent(model, "net.onnx").status
        'verified'
    """
    report = verify(model, artifact, **options)
    if report.status != "verified":
        raise AssertionError(described(report))
    return report


def described(report: VerificationReport) -> str:
    """Return a failing report in sentences."""
    verb = "is not proven to be" if report.status == "not verified" else "is not"
    lines = [f"{report.artifact} {verb} the function of {report.source}"]
    for proof in report.proofs:
        if not proof.holds:
            lines += _proof(proof)
    return "\n".join(lines)


def _proof(proof: Proof) -> list[str]:
    lines = [f"{proof.name}: {proof.summary}"]
    lines += [f"  {failure}" for failure in proof.failures[:MOST] if failure != proof.summary]
    if len(proof.failures) > MOST:
        lines.append(f"  and {len(proof.failures) - MOST} more")
    if proof.first_difference:
        lines.append(f"  differs first in {proof.first_difference}")
    return lines + (_divergence(proof.divergence) if proof.divergence else [])


def _divergence(row: TraceRow) -> list[str]:
    folded = f" (with {', '.join(row.folded)} folded in)" if row.folded else ""
    return [f"    {row.operator}{folded}", f"    expected {row.expected}", f"    actual   {row.actual}"]
