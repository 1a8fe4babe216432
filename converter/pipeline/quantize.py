"""Quantize a LiteRT file whose floats are verified, and compare what it computes."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from converter.artifacts.runner import Runner
from converter.artifacts.tflite_quantizer import quantize, require_quantizer
from converter.capture.input_domains import input_specs
from converter.capture.random_inputs import InputSpec, draw
from converter.errors import UsageError
from converter.options import ConvertOptions, ProofOptions, is_folder
from converter.pipeline.build import RewrittenModel
from converter.plan.interface import to_artifact
from converter.report.results import Accuracy, LayerLoss, Quantization
from converter.verification.quantized import (
    compare_quantized_outputs,
    compare_quantized_weights,
    demands,
    described_rounds,
    shortfalls,
)
from converter.verification.reference import Reference
from converter.verification.run_artifact import labeled_accuracy, run_artifact
from converter.verification.user_inputs import LABELS, batches, load_given

MOST_LAYERS = 5
COMPARED = 64  # samples of --calibrate, where there are no --inputs


def check_quantization(options: ConvertOptions, formats: Sequence[str]) -> None:
    """Raise UsageError if options of quantization cannot act."""
    given = options.quantization.quantize is not None
    if given and "tflite" not in formats:
        raise UsageError("Only LiteRT files are quantized.", code="PTC6059", where="--quantize", fix="Add --to tflite.")
    if options.artifact.labels is not None and "tflite" not in formats:
        raise UsageError(
            "Only LiteRT files hold the names of the classes.",
            code="PTC6101",
            where="--labels",
            fix="Leave out --labels, or add --to tflite.",
        )
    if given:
        require_quantizer()
    if demands(options.proof) and not given:
        raise UsageError(
            "Only a quantized file has a least signal to noise or accuracy.",
            code="PTC6060",
            where="--min-sqnr" if options.proof.min_sqnr is not None else "--min-accuracy",
            fix="Leave it out, or add --quantize.",
        )
    if demands(options.proof) and not options.write.verify:
        raise UsageError(
            "Without verification nothing is compared.",
            code="PTC6061",
            where="--no-verify",
            fix="Leave it out, or leave out --min-sqnr and --min-accuracy.",
        )


def load_calibration(options: ConvertOptions, specs: Sequence[InputSpec]) -> ConvertOptions:
    """Return the options with the arrays of `--calibrate`; the first are also compared if no inputs are given."""
    given = options.quantization.calibrate
    if given is None:
        return options
    arrays, labels = load_given(given, specs, options.boundary.of(given))
    options = replace(options, quantization=replace(options.quantization, calibrate=arrays))
    if is_folder(given) and not is_folder(options.proof.inputs) and options.boundary.embedded is None:
        options = replace(options, boundary=replace(options.boundary, preprocessing=None))  # it has been done
    if options.proof.inputs is not None:
        return options
    some: dict[str, np.ndarray] = {}
    for number, each in enumerate(batches(arrays, specs, 1)):
        if number == COMPARED:
            break
        some = {n: np.concatenate([some[n], a]) if n in some else a for n, a in each.arrays.items()}
    if labels is not None:
        some[LABELS] = labels[: len(next(iter(some.values())))]
    return replace(options, proof=replace(options.proof, inputs=some))


def calibration_samples(built: RewrittenModel, options: ConvertOptions) -> dict[str, np.ndarray]:
    """Return batches for each input, [samples, *shape] in the artifact's layout; random ones if none are needed."""
    specs, given = input_specs(built.captured), options.quantization.calibrate
    if given is None:
        runs: list[Mapping[str, np.ndarray]] = [draw(specs, built.captured.fixed_batch or 1, options.capture.seed)]
    else:
        assert isinstance(given, Mapping)
        runs = [each.arrays for each in batches(given, specs, 1)]
    return {one.name: np.stack([to_artifact(arrays[one.name], one) for arrays in runs]) for one in built.inputs}


def quantize_file(
    built: RewrittenModel,
    path: Path,
    options: ConvertOptions,
    samples: Mapping[str, np.ndarray],
    reference: Reference | None,
    runner: Runner | None,
) -> tuple[Quantization, Accuracy | None]:
    """Replace a file of floats by its quantized form, and compare its constants and its outputs.

    Without a reference, which has not been asked for, only the constants are compared.
    """
    how = options.quantization
    assert how.quantize is not None
    twin = path.read_bytes()
    losses, joined = quantize(path, how, samples, built.stamp() | {"quantize": how.quantize})
    if runner is not None:
        runner.open(path, trusted=True)  # it has just been written
    compared, accuracy = _compare(built, twin, path, how.quantize, options.proof, reference, runner)
    modules = built.executor("float32").module_of_scope()
    worst = sorted(losses, key=lambda loss: -loss.added)[:MOST_LAYERS]
    layers = tuple(
        LayerLoss(_module(loss.names, modules), loss.operator, loss.sqnr_db, loss.before_db) for loss in worst
    )
    calibrated = len(next(iter(samples.values()))) if how.calibrate is not None else 0
    in_floats = tuple(
        f"the concatenation in {_module(one.names, modules) or 'the model itself'}: what it joins reaches "
        + " and ".join(f"{value:.3g}" for value in one.largest)
        for one in joined
    )
    return replace(compared, calibrated_on=calibrated, layers=layers, in_floats=in_floats), accuracy


def compare_quantized(
    built: RewrittenModel, artifact: Path, how: str, options: ProofOptions, reference: Reference, runner: Runner
) -> tuple[Quantization, Accuracy | None]:
    """Write the float twin of a quantized file anew, and compare constants, and outputs with PyTorch's."""
    with tempfile.TemporaryDirectory() as folder:
        twin = Path(folder) / "twin.tflite"
        built.write(twin)
        return _compare(built, twin.read_bytes(), artifact, how, options, reference, runner)


def _compare(
    built: RewrittenModel,
    twin: bytes,
    path: Path,
    how: str,
    options: ProofOptions,
    reference: Reference | None,
    runner: Runner | None,
) -> tuple[Quantization, Accuracy | None]:
    weights, failures = compare_quantized_weights(twin, path.read_bytes())
    if reference is None or runner is None:
        return Quantization(how, 0, "nothing", weights, (), failures=tuple(failures)), None
    results = run_artifact(runner, built.inputs, built.outputs, reference)
    outputs = compare_quantized_outputs(reference, results)
    accuracy = labeled_accuracy(reference, results)
    failures += shortfalls(outputs, accuracy, options)
    return Quantization(how, 0, described_rounds(reference), weights, outputs, failures=tuple(failures)), accuracy


def _module(names: Sequence[str], modules: Mapping[str, str]) -> str:
    """Return the path of an operator's module: its result may have an output's name, its constants have their own."""
    scopes = ("/".join(name.split("/")[:2]) for joined in names for name in joined.split(";"))
    return next((modules[scope] for scope in scopes if scope in modules), "")
