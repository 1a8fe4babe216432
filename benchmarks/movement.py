"""What moves in architectures of torchvision and timm, and in our detector: converts each and counts.

    python benchmarks/movement.py [NAME ...] [--to tf --to keras] [--results movement.jsonl] [--record]

The architectures are those of benchmarks/zoo.txt, on images of the size that stands there. The proofs are left out,
which count nothing: `benchmarks/zoo.py` makes them of the same architectures. With --results what is there already is
not measured again. --record puts the rows into docs/movement.json, from which docs/generate/measurements.py writes
docs/MOVEMENT.md. Needs timm.
"""

import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click
from zoo import architectures, created, record, recorded, takes

if TYPE_CHECKING:
    from converter.artifacts.runner import Runner

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/support")]
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command does; read when torch is imported
DETECTOR, DETECTOR_SHAPE = "detect_head", (1, 3, 320, 320)  # in YOLOv5's manner, of sample_models
PRODUCTS = ("matmul", "bmm", "baddbmm", "einsum", "scaled_dot_product_attention")
COLUMNS = {
    "Transpose": ("Transpose",),
    "Gather": ("Gather", "GatherV2", "GatherNd"),
    "SpaceToDepth": ("SpaceToDepth", "DepthToSpace"),
    "Reshape": ("Reshape", "Squeeze", "ExpandDims"),
    "Pad": ("Pad", "PadV2", "MirrorPad"),
    "Concat": ("ConcatV2",),
    "Slice": ("Slice", "StridedSlice", "Split", "SplitV", "Unpack"),
    "Einsum": ("Einsum",),
}


def architecture(name: str):
    """The architecture and the shape of its input."""
    if name == DETECTOR:
        from sample_models.detect_head import build

        return build(80, *DETECTOR_SHAPE[2:]).eval(), DETECTOR_SHAPE
    shape = architectures()[name]
    for options in ({}, {"img_size": shape[-1]}):
        model = created(name, options).eval()
        if takes(model, shape):
            return model, shape
    raise SystemExit(f"{name} does not run on {shape}")


def measure(name: str, runners: Mapping[str, "Runner"]) -> list[dict]:
    """A row for each format, whose artifact is opened by the format's runner."""
    import torch

    import converter

    torch.manual_seed(0)
    model, shape = architecture(name)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        shapes = [",".join(map(str, shape))]
        report = converter.convert(
            model, to=list(runners), output=Path(folder, "out"), input_shapes=shapes, verify=False
        )
        for artifact in report.artifacts:
            runner = runners[artifact.format]
            runner.open(artifact.path)
            rows.append(
                {
                    "name": name,
                    "format": artifact.format,
                    "operators": dict(runner.operators()),
                    "movements": [f"{m.kind}, {m.reason}" for m in artifact.movements],
                    "elements": sum(m.elements for m in artifact.movements if isinstance(m.elements, int)),
                    "products": products(model, shape),
                }
            )
    return rows


def products(model, shape: tuple[int, ...]) -> int:
    """How often two values that depend on the input are multiplied as matrices; attention does so twice."""
    import torch

    from converter.capture.export import capture

    program = capture(model, [torch.randn(shape)], False)
    reached = set(program.placeholders)
    count = 0
    for node in program.graph.nodes:
        if not any(n in reached for n in node.all_input_nodes):
            continue
        reached.add(node)
        operator = str(node.target).split(".")[1] if node.op == "call_function" and "." in str(node.target) else ""
        if operator in PRODUCTS and all(n in reached for n in node.all_input_nodes[:2]):
            count += 2 if operator == "scaled_dot_product_attention" else 1
    return count


def summary(row: dict) -> dict:
    """The row of docs/movement.json; the architecture needs two movements for each product of values."""
    return {
        "name": row["name"],
        "format": row["format"],
        "needed": 2 * row["products"],
        "operators": {column: sum(row["operators"].get(n, 0) for n in names) for column, names in COLUMNS.items()},
        "elements": row["elements"],
        "reasons": Counter(row["movements"]),
    }


@click.command(help=__doc__)
@click.argument("names", nargs=-1)
@click.option("--to", "formats", multiple=True, default=("tf", "keras"))
@click.option("--record", "recording", is_flag=True, help="Put the rows into docs/movement.json.")
@click.option("--results", type=click.Path(path_type=Path), help="JSON lines, a model each, to go on from.")
@click.option("--until", type=click.DateTime(["%H:%M"]), help="Start no model after this hour.")
def main(
    names: tuple[str, ...], formats: tuple[str, ...], recording: bool, results: Path | None, until: datetime | None
) -> None:
    from converter.artifacts.runner import Runner

    every = [*architectures(), DETECTOR]
    lines = results.read_text().splitlines() if results and results.exists() else []
    measured: dict[str, list[dict]] = {rows[0]["name"]: rows for rows in map(json.loads, lines)}
    with ExitStack() as stack:
        runners = {format: stack.enter_context(Runner(format)) for format in formats}
        for name in names or every:
            if until and datetime.now().time() >= until.time():
                break
            if name not in measured:
                measured[name] = measure(name, runners)
                if results:
                    with results.open("a") as file:
                        file.write(json.dumps(measured[name]) + "\n")
            click.echo(name, err=True)
    if recording:
        before = {(row["name"], row["format"]): row for row in recorded("movement")}
        rows = before | {(row["name"], row["format"]): summary(row) for one in measured.values() for row in one}
        record("movement", sorted(rows.values(), key=lambda row: every.index(row["name"])))


if __name__ == "__main__":
    main()
