"""Converts the models of ultralytics as their training saves them, and as .pt2, and tells which are verified.

    python benchmarks/detectors.py [yolov8n.pt ...] --results detectors.jsonl [--record] [--seconds 600] [--until 15:00]

Each is the smallest of its family that ultralytics describes, with random weights and norm statistics measured on
random images, saved as a dictionary with a half-precision `model`. The conversion gets `--trust ultralytics` and
nothing else. One process for each file, one conversion to all formats; what stands in the results already is not
measured again, unless named. --record puts the rows into docs/detectors.json, from which docs/generate/measurements.py
writes docs/DETECTORS.md. Needs ultralytics and torchvision, which are otherwise not needed.
"""

import json
import os
import sys
import tempfile
import time
import warnings
from datetime import datetime
from pathlib import Path
from typing import Any

import click
from zoo import measured_in_turn, record, recorded

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command does; read when torch is imported
ROOT = Path(__file__).resolve().parents[1]

FORMATS = ("tf", "keras", "onnx")
KINDS = ("pt", "pt2")
SIDE = 128
NMS_FREE = " without NMS"
TASKS = ("-seg", "-pose", "-obb", "-cls")
FAMILIES = ("yolov8", "yolo11", "yolo12", "yolo26")
NAMES = (  # one of each family first
    *("yolov10n" + NMS_FREE, "yolov8n", "yolo11n", "yolo12n", "yolo26n", "yolov10n", "yolov9t", "yolov6n", "yolov5n"),
    *("yolov3-tiny", *(f"yolov8n{task}" for task in TASKS), "rtdetr-l", "yolov8s-worldv2", "yolov8s-world"),
    *("yolo26n" + NMS_FREE, *(f"{family}n{task}" for family in FAMILIES[1:] for task in TASKS)),
)


def built(name: str) -> Any:
    """Returns the model with what training adds to it."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests/support")]
    import torch
    from torchvision_for_tests import load_torchvision

    from sample_models.calibration import calibrate

    load_torchvision()
    os.environ |= {"YOLO_OFFLINE": "1", "YOLO_AUTOINSTALL": "false"}
    from ultralytics import RTDETR, YOLO, YOLOWorld

    described = name.removesuffix(NMS_FREE)
    wrapper = RTDETR if "rtdetr" in name else YOLOWorld if "world" in name else YOLO
    torch.manual_seed(0)
    model = wrapper(f"{described}.yaml").model.eval()
    model.args = {**dict(model.args), "imgsz": SIDE}
    if name.endswith(NMS_FREE):
        model.end2end = True
    return calibrate(model, torch.randn(2, 3, SIDE, SIDE))


def saved(model: Any, kind: str, folder: Path) -> Path:
    import torch

    path = folder / f"model.{kind}"
    if kind == "pt":
        settings = {"train_args": model.args, "train_metrics": {}, "updates": None, "optimizer": None, "ema": None}
        torch.save({"epoch": -1, "best_fitness": None, "model": model.half(), **settings, "version": "8.4"}, path)
        return path
    for head in model.modules():
        if hasattr(type(head), "export"):
            head.export, head.dynamic = True, hasattr(type(head), "shape")
    image = torch.rand(2, 3, SIDE, SIDE)
    torch.export.save(torch.export.export(model, (image,), dynamic_shapes=({0: torch.export.Dim("batch")},)), path)
    return path


def measure(file: str) -> dict[str, Any]:
    name, _, kind = file.rpartition(".")
    model = built(name)
    import converter
    from converter.errors import ConversionError

    row: dict[str, Any] = {"name": file, "parameters": sum(p.numel() for p in model.parameters())}
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = saved(model, kind, Path(folder))
        trust = ["ultralytics"] if kind == "pt" else []
        try:
            report = converter.convert(path, to=FORMATS, output=Path(folder, "out"), trust=trust)
        except ConversionError as error:
            row["refused"] = f"{error.what} {error.where or ''}".strip()
        else:
            row["notes"] = list(map(str, report.notes))
            row["formats"] = {artifact.format: artifact.status for artifact in report.artifacts}
            row["outputs"] = [str(list(output.shape)) for output in report.artifacts[-1].outputs]
            row["remarks"] = [
                f"{artifact.format}: {text}"
                for artifact in report.artifacts
                for text in (
                    [f"{artifact.failure.what} {artifact.failure.where or ''}".strip()] if artifact.failure else []
                )
                + [f"proof {proof.name}: {proof.summary}" for proof in artifact.proofs if not proof.holds]
            ]
    return row | {"seconds": time.perf_counter() - started}


def summary(row: dict[str, Any]) -> dict[str, Any]:
    """What is recorded of a file."""
    failed = [row[key] for key in ("failed", "refused") if key in row]
    status = dict.fromkeys(FORMATS, "failed" if "failed" in row else "refused") | row.get("formats", {})
    name, _, kind = row["name"].rpartition(".")
    kept = {key: row.get(key) for key in ("parameters", "outputs", "seconds")}
    return {"name": name, "kind": kind, **kept, "status": status, "remarks": failed + row.get("remarks", [])}


@click.command(help=__doc__)
@click.argument("names", nargs=-1)
@click.option("--results", type=click.Path(path_type=Path), help="JSON lines, a file each; the last of a file counts.")
@click.option("--record", "recording", is_flag=True, help="Put the rows into docs/detectors.json.")
@click.option("--seconds", default=600.0, help="The most that a file may take.")
@click.option("--until", type=click.DateTime(["%H:%M"]), help="Start no file after this hour.")
@click.option("--only", hidden=True)
def main(
    names: tuple[str, ...], results: Path | None, recording: bool, seconds: float, until: datetime | None, only: str
) -> None:
    if only:
        click.echo(json.dumps(measure(only)))
        return
    files = [f"{name}.{kind}" for kind in KINDS for name in NAMES]
    measured = measured_in_turn(
        names, files, results, seconds, until, __file__, lambda row: str(summary(row)["status"])
    )
    if recording:
        rows = {f"{row['name']}.{row['kind']}": row for row in recorded("detectors")}
        rows |= {name: summary(row) for name, row in measured.items()}
        record("detectors", [rows[name] for name in files if name in rows])


if __name__ == "__main__":
    main()
