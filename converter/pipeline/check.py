"""Check whether a model can be converted, without writing anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from converter.artifacts.paths import parse_formats
from converter.capture.submodel import SubmodelOptions
from converter.errors import ConversionError, wrap_unexpected
from converter.lowering.user_lowerings import user_mappings
from converter.options import Options
from converter.pipeline.build import build
from converter.pipeline.clock import Clock, Progress
from converter.pipeline.load_model import LoadedModel, load_model
from converter.report.failures import failure_of
from converter.report.results import CheckReport, FormatCheck
from converter.verification.reference import OWN_ROUNDS, take_reference


def check(
    model: str | Path | nn.Module,
    *,
    to: Sequence[str],
    factory: str | None = None,
    factory_args: Mapping[str, Any] | None = None,
    drop_keys: Sequence[str] = (),
    input_shapes: Sequence[str] = (),
    image_size: str | None = None,
    outputs: Sequence[str] = (),
    submodule: str | None = None,
    input_names: Sequence[str] | Mapping[str, str] = (),
    output_names: Sequence[str] | Mapping[str, str] = (),
    freeze_control_flow: bool = False,
    strict: bool = False,
    trust: Sequence[str] = (),
    layout: str = "auto",
    fixed_batch: int | None = None,
    keep_batchnorm: bool = False,
    opset: int | None = None,
    exact_shifts: bool = False,
    seed: int = 0,
    mappings: Sequence[str | Path] = (),
    progress: Progress | None = None,
) -> CheckReport:
    """Whether a model can be converted to each of some formats; arguments as of `convert`. Nothing is written.

    Raises:
        ConversionError: the model cannot be read, or does not run on the inputs given.
    """
    clock = Clock(progress)
    with user_mappings(mappings) as digests:
        options = Options(layout, fixed_batch, keep_batchnorm, opset, exact_shifts, digests)
        source = load_model(
            model, factory=factory, factory_args=factory_args, input_shapes=input_shapes, trust=trust,
            fixed_batch=fixed_batch, seed=seed, clock=clock, image_size=image_size,
            part=SubmodelOptions.of(outputs, submodule, input_names, output_names),
            freeze_control_flow=freeze_control_flow,
            strict=strict, drop_keys=drop_keys,
        )  # fmt: skip
        checks = _checks(source, to, options, clock)
    return CheckReport(source.name, checks, tuple(dict.fromkeys((*source.notes, *source.program.notes))))


def _checks(source: LoadedModel, to: Sequence[str], options: Options, clock: Clock) -> tuple[FormatCheck, ...]:
    formats = parse_formats(to)
    if formats:  # as a conversion does before it builds anything
        take_reference(source.program, source.module, seed=0, inputs=None, running=source.running, most=OWN_ROUNDS)
    return tuple(checked(source, format, options, clock) for format in formats)


def checked(source: LoadedModel, format: str, options: Options, clock: Clock) -> FormatCheck:
    """Whether everything can be done that comes before an artifact is written."""
    try:
        build(source, format, options, clock).prepare()  # type: ignore[arg-type]
    except Exception as error:
        if not isinstance(error, ConversionError):
            error = wrap_unexpected(error, f"--to {format}")
        return FormatCheck(format, failure_of(error, source.name))
    return FormatCheck(format)
