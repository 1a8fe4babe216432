"""Converts whole architectures of torchvision and timm to all formats, and tells which are verified.

    python benchmarks/zoo.py [NAME ...] --results zoo.jsonl [--record] [--seconds 600] [--until 15:00]

The architectures are those of benchmarks/zoo.txt. Weights are random, norm statistics measured on random images. Images
are as small as `SMALLER` says where an architecture takes that, so that it takes hours and not a day. One process for
each model, one conversion to all formats; what stands in the results already is not measured again, unless named.
--record puts the rows into docs/zoo.json, from which docs/generate/measurements.py writes docs/ZOO.md. Needs timm.
"""

import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path

import click

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command does; read when torch is imported
ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "docs/generate"))
from tables import record, recorded  # noqa: E402  # found by the line above

LIST = ROOT / "benchmarks" / "zoo.txt"
FORMATS = ("tf", "keras", "onnx")
SMALLER = {4: (1, 3, 128, 128), 5: (1, 3, 8, 64, 64)}  # by rank
MOVING = {"transposes": ("Transpose",), "gathers": ("Gather", "GatherV2", "GatherNd", "GatherND", "GatherElements")}


def architectures() -> dict[str, tuple[int, ...]]:
    """Their names with the library, as "timm.resnet50", and input shapes."""
    rows = [line.split() for line in LIST.read_text().splitlines() if line and not line.startswith("#")]
    return {f"{library}.{name}": tuple(map(int, shape.split(","))) for library, name, shape in rows}


def built(name: str, shape: tuple[int, ...]):
    """The architecture, calibrated, and the shape it is converted for."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests/support")]
    import torch

    from sample_models.calibration import calibrate

    candidates = [small for small in (SMALLER[len(shape)],) if math.prod(small) <= math.prod(shape)]
    for candidate, options in [*((c, {}) for c in (*candidates, shape)), (shape, {"img_size": shape[-1]})]:
        torch.manual_seed(0)
        model = created(name, options).eval()
        if takes(model, candidate):
            return calibrate(model, torch.randn(candidate)), candidate
    raise SystemExit(f"{name} does not run on {shape}")


def created(name: str, options: dict):
    """`options` are timm's: some of its models are built for one size."""
    from torchvision_for_tests import load_torchvision

    library, _, architecture = name.rpartition(".")
    torchvision = load_torchvision()
    if library == "timm":
        import timm  # which imports torchvision

        return timm.create_model(architecture, pretrained=False, **options)
    backbone = {"weights_backbone": None} if library.endswith("segmentation") else {}
    return torchvision.models.get_model(architecture, weights=None, **backbone, **options)


def takes(model, shape: tuple[int, ...]) -> bool:
    """Whether the model runs on it, and on two at once."""
    import torch

    try:
        with torch.inference_mode():
            model(torch.randn(shape))
            model(torch.randn(2, *shape[1:]))
    except (RuntimeError, AssertionError, ValueError):
        return False
    return True


def measure(name: str) -> dict:
    model, shape = built(name, architectures()[name])
    import converter
    from converter.errors import ConversionError

    row = {"name": name, "shape": shape, "parameters": sum(p.numel() for p in model.parameters())}
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shapes = [",".join(map(str, shape))]
        try:
            report = converter.convert(model, to=FORMATS, output=Path(folder, "out"), input_shapes=shapes)
        except ConversionError as error:
            row["refused"] = f"{error.what} {error.where or ''}".strip()
        else:
            row["formats"] = {artifact["format"]: artifact for artifact in map(facts, report.artifacts)}
    row["seconds"] = time.perf_counter() - started
    ours, childrens = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    row["peak_mib"] = max(ours.ru_maxrss, childrens.ru_maxrss) // 1024
    return row


def facts(artifact) -> dict:
    """What the table and whoever looks for a cause want to know of one artifact."""
    failure = artifact.failure
    return {
        "format": artifact.format,
        "status": artifact.status,
        "refused": f"{failure.what} {failure.where or ''}".strip() if failure else None,
        "proofs": [
            {
                "name": proof.name,
                "holds": proof.holds,
                "summary": proof.summary,
                "failures": proof.failures[:5],
                "first_difference": proof.first_difference,
            }
            for proof in artifact.proofs
        ],
        "operators": sum(artifact.operators.values()),
        **{kind: sum(artifact.operators.get(n, 0) for n in names) for kind, names in MOVING.items()},
        "seconds": artifact.seconds,
    }


def measured_apart(name: str, seconds: float, script: str) -> dict:
    """Measured by a process of its own."""
    started = time.perf_counter()
    try:
        run = subprocess.run([sys.executable, script, "--only", name], capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"name": name, "failed": f"not done in {seconds:.0f} s", "seconds": seconds}
    if run.returncode:
        said = run.stderr.strip().splitlines()[-1:] or [f"exit status {run.returncode}"]
        return {"name": name, "failed": said[0], "log": run.stderr[-3000:], "seconds": time.perf_counter() - started}
    return json.loads(run.stdout.splitlines()[-1])


def measured_in_turn(
    names: tuple[str, ...],
    known: Iterable[str],
    results: Path | None,
    seconds: float,
    until: datetime | None,
    script: str,
    told: Callable[[dict], str],
) -> dict[str, dict]:
    """Measure what is named, or all known names that the results lack, and return the rows of all by name."""
    lines = results.read_text().splitlines() if results and results.exists() else []
    measured = {row["name"]: row for row in map(json.loads, lines)}
    for name in names or [name for name in known if name not in measured]:
        if until and datetime.now().time() >= until.time():
            break
        measured[name] = row = measured_apart(name, seconds, script)
        if results:
            with results.open("a") as file:
                file.write(json.dumps(row) + "\n")
        click.echo(f"{name}: {told(row)}, {row['seconds']:.0f} s", err=True)
    return measured


def verdict(row: dict, format: str) -> str:
    if "failed" in row:
        return "failed"
    if "refused" in row:
        return "refused"
    artifact = row["formats"][format]
    if artifact["refused"]:
        return "refused"
    broken = [str(number) for number, proof in enumerate(artifact["proofs"], 1) if not proof["holds"]]
    return "verified" if artifact["status"] == "verified" else f"{artifact['status']} ({', '.join(broken)})"


def remarks(row: dict) -> Iterator[str]:
    for key in ("failed", "refused"):
        if key in row:
            yield row[key]
    for format, artifact in row.get("formats", {}).items():
        if artifact["refused"]:
            yield f"{format}: {artifact['refused']}"
        yield from (
            f"{format}, proof {proof['name']}: {proof['summary']}" for proof in artifact["proofs"] if not proof["holds"]
        )


def summary(row: dict) -> dict:
    """The row of docs/zoo.json."""
    artifacts = {f: a for f, a in row.get("formats", {}).items() if a["operators"]}
    return {
        "name": row["name"],
        "shape": row.get("shape", []),
        "parameters": row.get("parameters", 0),
        "status": {format: verdict(row, format) for format in FORMATS},
        **{kind: {f: artifact[kind] for f, artifact in artifacts.items()} for kind in MOVING},
        "seconds": round(row["seconds"]),
        "peak_mib": row.get("peak_mib"),
        "remarks": list(remarks(row)),
    }


@click.command(help=__doc__)
@click.argument("names", nargs=-1)
@click.option("--results", type=click.Path(path_type=Path), help="JSON lines, a model each; the last of a name counts.")
@click.option("--record", "recording", is_flag=True, help="Put the rows into docs/zoo.json.")
@click.option("--seconds", default=600.0, help="The most that a model may take.")
@click.option("--until", type=click.DateTime(["%H:%M"]), help="Start no model after this hour.")
@click.option("--only", hidden=True)
def main(
    names: tuple[str, ...], results: Path | None, recording: bool, seconds: float, until: datetime | None, only: str
) -> None:
    if only:
        click.echo(json.dumps(measure(only)))
        return
    measured = measured_in_turn(
        names,
        architectures(),
        results,
        seconds,
        until,
        __file__,
        lambda row: ", ".join(verdict(row, f) for f in FORMATS),
    )
    if recording:
        rows = {row["name"]: row for row in recorded("zoo")} | {name: summary(row) for name, row in measured.items()}
        record("zoo", [rows[name] for name in architectures() if name in rows])


if __name__ == "__main__":
    main()
