"""Converts whole architectures of torchvision and timm to LiteRT, float and quantized, and tells what the files hold.

    python benchmarks/litert.py [NAME ...] --results litert.jsonl [--record] [--seconds 900] [--until 15:00]

The architectures, weights and images are those of benchmarks/zoo.py. Each is converted and verified as floats, then
quantized in each way: calibrated on 8 random images, compared on 8 others. --record puts the rows into
docs/litert.json, from which docs/generate/measurements.py writes docs/LITERT.md. Needs timm.
"""

import json
import tempfile
import time
import warnings
from datetime import datetime
from pathlib import Path

import click
from zoo import architectures, built, measured_in_turn, record, recorded

QUANTIZATIONS = ("float16", "dynamic", "int8", "int16x8")
COUNTED = {"transposes": "TRANSPOSE", "reshapes": "RESHAPE"}
IMAGES = 8


def measure(name: str) -> dict:
    model, shape = built(name, architectures()[name])
    import numpy as np

    from converter.errors import ConversionError
    from converter.pipeline.convert import ConversionSession

    row = {"name": name, "shape": shape, "parameters": sum(p.numel() for p in model.parameters())}
    generator = np.random.default_rng(0)
    calibrated, compared = (generator.standard_normal((IMAGES, *shape[1:]), np.float32) for _ in range(2))
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), ConversionSession(lasting=True) as session:
        warnings.simplefilter("ignore")
        path, given = Path(folder, "model.tflite"), {"input_shapes": [",".join(map(str, shape))]}
        try:
            report = session.convert(model, to="tflite", output=path, **given)
        except ConversionError as error:
            return row | {
                "refused": f"{error.what} {error.where or ''}".strip(),
                "seconds": time.perf_counter() - started,
            }
        (artifact,) = report.artifacts
        row |= {
            "status": artifact.status,
            "failures": [failure for proof in artifact.proofs for failure in proof.failures[:3]],
            "operators": sum(artifact.operators.values()),
            **{kind: artifact.operators.get(operator, 0) for kind, operator in COUNTED.items()},
            "bytes": path.stat().st_size if path.exists() else 0,
            "float_seconds": artifact.seconds,
            "quantized": {},
        }
        for how in QUANTIZATIONS if path.exists() else ():
            output = Path(folder, f"{how}.tflite")
            samples = {"calibrate": calibrated} if how.startswith("int") else {}
            try:
                again = session.convert(
                    model, to="tflite", output=output, quantize=how, inputs=compared, **samples, **given
                )
            except ConversionError as error:
                row["quantized"][how] = {"refused": error.what}
                continue
            made = again.artifacts[0].quantization
            row["quantized"][how] = {
                "sqnr_db": made.sqnr_db if made else None,
                "failures": made.failures if made else again.artifacts[0].status,
                "bytes": output.stat().st_size if output.exists() else 0,
            }
    return row | {"seconds": time.perf_counter() - started}


@click.command(help=__doc__)
@click.argument("names", nargs=-1)
@click.option("--results", type=click.Path(path_type=Path), help="JSON lines, a model each; the last of a name counts.")
@click.option("--record", "recording", is_flag=True, help="Put the rows into docs/litert.json.")
@click.option("--seconds", default=900.0, help="The most that a model may take.")
@click.option("--until", type=click.DateTime(["%H:%M"]), help="Start no model after this hour.")
@click.option("--only", hidden=True)
def main(
    names: tuple[str, ...], results: Path | None, recording: bool, seconds: float, until: datetime | None, only: str
) -> None:
    if only:
        click.echo(json.dumps(measure(only)))
        return
    measured = measured_in_turn(
        names, architectures(), results, seconds, until, __file__,
        lambda row: row.get("failed") or row.get("refused") or row["status"],
    )  # fmt: skip
    if recording:
        rows = {row["name"]: row for row in recorded("litert")} | measured
        record("litert", [rows[name] for name in architectures() if name in rows])


if __name__ == "__main__":
    main()
