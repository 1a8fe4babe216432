"""What moves in architectures of torchvision and in our detector: converts each and writes a table.

    python benchmarks/movement.py [NAME ...] [--to tf --to keras] [--results movement.jsonl] [--write docs/MOVEMENT.md]

The proofs are left out, which count nothing: `benchmarks/zoo.py` makes them of the same architectures. One process for
each model; with --results what is there already is not measured again.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[1]
ARCHITECTURES = {
    "resnet50": 224, "resnext50_32x4d": 224, "mobilenet_v2": 224, "mobilenet_v3_large": 224, "efficientnet_b0": 224,
    "densenet121": 224, "squeezenet1_1": 224, "regnet_y_400mf": 224, "convnext_tiny": 224, "inception_v3": 299,
    "vgg11_bn": 224, "mnasnet1_0": 224, "alexnet": 224, "shufflenet_v2_x1_0": 224, "vit_b_16": 224, "swin_t": 224,
    "detect_head": 320,
}  # fmt: skip
SAMPLES = {"detect_head"}  # in YOLOv5's manner, of sample_models
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


def measure(name: str, formats: list[str]) -> list[dict]:
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    import torch
    from torchvision_for_tests import load_torchvision

    import converter
    from converter.artefacts.runner import Runner
    from sample_models.detect_head import build

    size = ARCHITECTURES[name]
    torch.manual_seed(0)
    model = build(80, size, size) if name in SAMPLES else getattr(load_torchvision().models, name)(weights=None)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        shapes = [f"1,3,{size},{size}"]
        report = converter.convert(
            model.eval(), to=formats, output=Path(folder, "out"), input_shapes=shapes, verify=False
        )
        for artefact in report.artefacts:
            with Runner(artefact.format) as runner:
                runner.open(artefact.path)
                operators = dict(runner.operators())
            rows.append(
                {
                    "name": name,
                    "format": artefact.format,
                    "operators": operators,
                    "movements": [f"{m.kind}, {m.reason}" for m in artefact.movements],
                    "elements": sum(m.elements for m in artefact.movements if isinstance(m.elements, int)),
                }
            )
    return rows


def table(rows: list[dict]) -> str:
    lines = [
        "# Operators that touch activations without arithmetic",
        "",
        "Written by `python benchmarks/movement.py --write docs/MOVEMENT.md`: counted in the written artefact, opened",
        "again; what only prepares a weight is not counted. Elements moved are per image. docs/ZOO.md has the proofs.",
        "",
        f"| model | format | {' | '.join(COLUMNS)} | elements moved | reasons |",
        f"|---|---|{'---:|' * len(COLUMNS)}---:|---|",
    ]
    for row in rows:
        counts = [sum(row["operators"].get(n, 0) for n in names) for names in COLUMNS.values()]
        reasons = [f"{row['movements'].count(m)} x {m}" for m in dict.fromkeys(row["movements"])]
        lines.append(
            f"| {row['name']} | {row['format']} | {' | '.join(map(str, counts))} "
            f"| {row['elements']:,} | {'; '.join(reasons)} |"
        )
    return "\n".join(lines) + "\n"


def measured_apart(name: str, formats: tuple[str, ...]) -> str:
    """One line of JSON, measured by a process of its own."""
    options = [part for each in formats for part in ("--to", each)]
    command = [sys.executable, __file__, "--only", name, *options]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(f"{name}:\n{run.stderr[-3000:]}")
    return run.stdout.splitlines()[-1]


@click.command()
@click.argument("names", nargs=-1)
@click.option("--to", "formats", multiple=True, default=("tf", "keras"))
@click.option("--write", type=click.Path(path_type=Path))
@click.option("--results", type=click.Path(path_type=Path), help="JSON lines, a model each, to go on from.")
@click.option("--only", hidden=True)
def main(
    names: tuple[str, ...], formats: tuple[str, ...], write: Path | None, results: Path | None, only: str | None
) -> None:
    if only:
        click.echo(json.dumps(measure(only, list(formats))))
        return
    lines = results.read_text().splitlines() if results and results.exists() else []
    measured: dict[str, list[dict]] = {rows[0]["name"]: rows for rows in map(json.loads, lines)}
    for name in names or ARCHITECTURES:
        if name not in measured:
            line = measured_apart(name, formats)
            measured[name] = json.loads(line)
            if results:
                with results.open("a") as file:
                    file.write(line + "\n")
        click.echo(name, err=True)
    text = table([row for name in names or ARCHITECTURES for row in measured[name]])
    if write:
        write.parent.mkdir(exist_ok=True)
        write.write_text(text)
    else:
        click.echo(text)


if __name__ == "__main__":
    main()
