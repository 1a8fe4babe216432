"""Converts networks drawn at random (tests/fuzz/random_modules.py) and asks PyTorch whether they are right.

    python tests/fuzz/fuzz_modules.py lowered [--count 2000] [--first 0] [--free] [--results modules.jsonl]
    python tests/fuzz/fuzz_modules.py whole [--count 200] [--first 0] [--results whole.jsonl]

`lowered` goes as far as the graph that is written: captured, rewritten for the format, planned and lowered in float64
in this process, and compared with the module itself in float64 (for ONNX the rewritten program that its exporter is
given). `whole` writes artifacts through all proofs, opens them here, and compares what they give on other inputs, of
other batch sizes, with the module in PyTorch, by nothing of our own verification. Wrong is what is reported verified
and is not. `--free` leaves every size behind the channels free, traces at four times the sizes (so that few
become 1, of which torch.export makes a constant), and compares at five and seven times; networks that PyTorch does not
run there are left out. A result is a line of JSON for each network and format: right, refused (an error of ours in
words), failed (any other end: not verified, disagrees, a fault of ours), or wrong.
"""

import copy
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/support")]
for variable, value in {"OMP_WAIT_POLICY": "PASSIVE", "TF_CPP_MIN_LOG_LEVEL": "3"}.items():
    os.environ.setdefault(variable, value)

import click  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from random_modules import Network, network  # noqa: E402

from converter.capture.input_shapes import FreeSize  # noqa: E402
from converter.errors import ConversionError  # noqa: E402
from converter.report.results import ArtifactReport, TensorFacts  # noqa: E402

FORMATS = ("tf", "keras", "onnx")
ROUNDING = 64  # times PyTorch's own, on inputs that our bound of 16 has not seen
TRACED_AND_OTHERS = (4, 5, 7)  # times the sizes
LEAST = 16 * 2.0**-23  # of the scale


@click.group()
def main() -> None:
    pass


def samples(made: Network, batch: int, seed: int, times: int = 1) -> torch.Tensor:
    """Inputs `times` as large along every axis behind the channels."""
    channels, *sizes = made.shape[1:]
    shape = (batch, channels, *(times * n for n in sizes))
    return 1.5 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def runs(made: Network, x: torch.Tensor) -> bool:
    try:
        return all(np.isfinite(y).all() for y in run(made, x))
    except (RuntimeError, ValueError, AssertionError):
        return False


def run(made: Network, x: torch.Tensor) -> list[np.ndarray]:
    with torch.no_grad():
        results = made(x)
    return [r.numpy() for r in (results if isinstance(results, tuple) else (results,))]


@main.command()
@click.option("--count", default=2000)
@click.option("--first", default=0)
@click.option("--to", "formats", multiple=True, type=click.Choice(FORMATS), default=("tf", "onnx"))
@click.option("--free", is_flag=True)
@click.option("--results", type=click.File("a"))
def lowered(count: int, first: int, formats: tuple[str, ...], free: bool, results: IO[str] | None) -> None:
    from equivalence import assert_computes_the_same, assert_same

    from converter.capture.export import capture

    def outcomes(seed: int, made: Network) -> Iterator[tuple[str, str, str]]:
        sizes = {d: FreeSize(f"size{d}") for d in range(2, len(made.shape)) if free}
        traced, *others = TRACED_AND_OTHERS if free else (1,)
        larger = [samples(made, 2, seed + times, times) for times in others]
        if free and not (sizes and all(runs(made, x) for x in larger)):
            return
        try:
            program = capture(made, [samples(made, 2, seed, traced)], free=[sizes])
        except ConversionError as error:
            yield from ((format, "refused", f"capture: {error.what}") for format in formats)
            return
        x = samples(made, 3, seed + 1, traced)
        exact = run(copy.deepcopy(made).double(), x.double())
        for format in formats:
            try:
                assert_same(program.with_dtype(torch.float64).run(x.double()), exact, "capture")
                assert_computes_the_same(program, [x], format, more=[[x] for x in larger])
            except AssertionError as error:
                yield format, "wrong", str(error)
            except ConversionError as error:
                kind = "failed" if "bug in pt-convert" in str(error.fix) else "refused"
                yield format, kind, str(error)
            except Exception as error:  # any other is a fault, to be told like one
                yield format, "failed", repr(error)
            else:
                yield format, "right", ""

    convert_all(range(first, first + count), outcomes, results)


@main.command()
@click.option("--count", default=200)
@click.option("--first", default=0)
@click.option("--to", "formats", multiple=True, type=click.Choice(FORMATS), default=("tf", "onnx"))
@click.option("--results", type=click.File("a"))
def whole(count: int, first: int, formats: tuple[str, ...], results: IO[str] | None) -> None:
    from converter.pipeline.convert import ConversionSession

    with ConversionSession(lasting=True) as session, tempfile.TemporaryDirectory() as folder:

        def outcomes(seed: int, made: Network) -> Iterator[tuple[str, str, str]]:
            shape = ",".join(map(str, made.shape))
            try:
                report = session.convert(made, to=formats, output=folder, input_shapes=[shape], force=True)
            except ConversionError as error:
                kind = "failed" if "bug in pt-convert" in str(error.fix) else "refused"
                yield from ((format, kind, str(error)) for format in formats)
                return
            for artifact in report.artifacts:
                if artifact.failure is not None:
                    kind = "failed" if "bug in pt-convert" in str(artifact.failure.fix) else "refused"
                    yield artifact.format, kind, artifact.failure.what
                elif artifact.status != "verified":
                    broken = "; ".join(proof.summary for proof in artifact.proofs if not proof.holds)
                    yield artifact.format, "failed", f"{artifact.status}: {broken}"
                elif off := differs(made, artifact, seed, report.batch):
                    yield artifact.format, "wrong", off
                else:
                    yield artifact.format, "right", ""

        convert_all(range(first, first + count), outcomes, results)


def differs(made: Network, artifact: ArtifactReport, seed: int, batch: int | str) -> str:
    """What is wrong with an artifact, "" if nothing: on inputs of our own, opened without the converter."""
    call = opened(artifact)
    double = copy.deepcopy(made).double()
    for size in (2, 5) if batch == "dynamic" else (int(batch),):
        x = samples(made, size, seed + 1000)
        single, exact = run(made, x), run(double, x.double())
        given = call(in_layout(x.numpy(), artifact.inputs[0]))
        for number, (array, facts, mine, right) in enumerate(zip(given, artifact.outputs, single, exact, strict=True)):
            actual = from_layout(array, facts)
            if actual.shape != right.shape:
                return f"output {number} at batch {size}: shape {actual.shape}, not {right.shape}"
            scale = np.abs(right).max()
            allowed = ROUNDING * max(np.abs(mine - right).max(), LEAST * scale)
            if not (off := np.abs(actual - right).max()) <= allowed:
                return f"output {number} at batch {size}: off by {off:.2g} of {scale:.2g}, {allowed:.2g} allowed"
    return ""


def opened(artifact: ArtifactReport) -> Callable[[np.ndarray], list[np.ndarray]]:
    assert artifact.path is not None
    if artifact.format == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(artifact.path))
        return lambda x: list(session.run([o.name for o in artifact.outputs], {artifact.inputs[0].name: x}))
    if artifact.format == "keras":
        import keras

        model = keras.saving.load_model(artifact.path)
        return lambda x: [np.asarray(y) for y in keras.tree.flatten(model(x))]
    import tensorflow as tf

    loaded = tf.saved_model.load(str(artifact.path))
    signature = loaded.signatures["serving_default"]

    def call(x: np.ndarray) -> list[np.ndarray]:
        results = signature(**{artifact.inputs[0].name: tf.constant(x)})
        return [results[o.name].numpy() for o in artifact.outputs]

    call.held = loaded  # type: ignore[attr-defined]  # a signature does not keep its variables
    return call


def in_layout(array: np.ndarray, facts: TensorFacts) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(array, 1, -1)) if facts.layout == "channels_last" else array


def from_layout(array: np.ndarray, facts: TensorFacts) -> np.ndarray:
    return np.moveaxis(array, -1, 1) if facts.layout == "channels_last" else array


def convert_all(
    seeds: range, outcomes: Callable[[int, Network], Iterator[tuple[str, str, str]]], results: IO[str] | None
) -> None:
    counts: Counter[tuple[str, str]] = Counter()
    started = time.perf_counter()
    for seed in seeds:
        made = network(seed)
        for format, outcome, why in outcomes(seed, made):
            counts[format, outcome] += 1
            told: dict[str, Any] = {"seed": seed, "format": format, "outcome": outcome, "why": why}
            if results is not None:
                results.write(json.dumps(told) + "\n")
                results.flush()
            if outcome != "right":
                click.echo(f"{seed} {format} {outcome}: {why}")
    minutes = (time.perf_counter() - started) / 60
    for format in sorted({format for format, _ in counts}):
        found = {outcome: n for (f, outcome), n in counts.items() if f == format}
        told_of = ", ".join(f"{found.get(outcome, 0)} {outcome}" for outcome in ("right", "refused", "failed", "wrong"))
        click.echo(f"{format}: {sum(found.values())} networks, {told_of}; {minutes:.0f} minutes")
    sys.exit(bool(sum(n for (_, outcome), n in counts.items() if outcome == "wrong")))


if __name__ == "__main__":
    main()
