"""Time and memory of a conversion, beside what its ingredients cost without us. Run on a quiet machine.

    python benchmarks/conversion.py [--model resnet50] [--runs 3]

Each figure is of a process of its own. "ingredients" imports torch and tensorflow, loads the model, captures it with
torch.export, and writes one lean SavedModel of the same architecture built by hand with Keras (its building is not
counted); "unverified" and "verified" are `converter.convert` of the checkpoint, a state dict with its factory, to "tf".
Memory is the process' peak above what the two imports take, in multiples of the weights.
"""

import argparse
import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command does; read when torch is imported
ROOT = Path(__file__).resolve().parents[1]


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def torch_model(name: str):
    """An architecture of torchvision with random weights and norm statistics that keep the signal alive."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests/support")]
    import torch
    from torchvision_for_tests import load_torchvision

    from sample_models.calibration import calibrate

    torch.manual_seed(0)
    model = getattr(load_torchvision().models, name)(weights=None)
    calibrate(model, torch.randn(1, 3, 224, 224), passes=1)
    return model.eval()


def imports(name: str) -> dict:
    started = time.perf_counter()
    import tensorflow  # noqa: F401
    import torch  # noqa: F401

    return {"seconds": time.perf_counter() - started, "peak": peak_megabytes()}


def ingredients(name: str, checkpoint: Path) -> dict:
    import_time = imports(name)["seconds"]
    import keras
    import tensorflow as tf
    import torch

    twin = {"resnet50": keras.applications.ResNet50, "mobilenet_v2": keras.applications.MobileNetV2}[name](weights=None)
    sys.path.insert(0, str(checkpoint.parent))
    started = time.perf_counter()
    model = getattr(importlib.import_module(Path(FACTORY_FILE).stem), name)().eval()
    model.load_state_dict(torch.load(checkpoint))
    torch.export.export(model, (torch.randn(2, 3, 224, 224),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    module = tf.Module()
    module.weights = {w.path: w.value for w in twin.weights}
    spec = [tf.TensorSpec([None, 224, 224, 3], tf.float32, "x")]
    function = tf.function(lambda x: twin(x, training=False), input_signature=spec, autograph=False)
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures={"serving_default": function.get_concrete_function()})
    return {"seconds": import_time + time.perf_counter() - started, "peak": peak_megabytes()}


def conversion(name: str, checkpoint: Path, verify: bool) -> dict:
    import_time = imports(name)["seconds"]
    import converter

    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        report = converter.convert(
            checkpoint, to=["tf"], output=Path(folder, "out"), input_shapes=["1,3,224,224"], verify=verify,
            factory=f"{checkpoint.parent / FACTORY_FILE}:{name}",
        )  # fmt: skip
    seconds = import_time + time.perf_counter() - started
    if verify and report.status != "verified":
        raise SystemExit(f"{name}: {report.status}")
    weights = checkpoint.stat().st_size / 2**20
    return {"seconds": seconds, "peak": peak_megabytes(), "weights": weights, "timings": dict(report.timings)}


FACTORY_FILE = "architectures.py"
FACTORIES = f"""import sys
sys.path.append({str(ROOT / "tests/support")!r})
from torchvision_for_tests import load_torchvision
def __getattr__(name):
    return lambda: getattr(load_torchvision().models, name)(weights=None)
"""


def write_checkpoint(name: str, folder: Path) -> None:
    import torch

    torch.save(torch_model(name).state_dict(), folder / "model.pt")
    (folder / FACTORY_FILE).write_text(FACTORIES)


WHAT = {
    "imports": lambda name, folder: imports(name),
    "ingredients": lambda name, folder: ingredients(name, folder / "model.pt"),
    "unverified": lambda name, folder: conversion(name, folder / "model.pt", False),
    "verified": lambda name, folder: conversion(name, folder / "model.pt", True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", choices=[*WHAT, "checkpoint"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only == "checkpoint":
        write_checkpoint(options.model, options.folder)
    elif options.only:
        print(json.dumps(WHAT[options.only](options.model, options.folder)))
    else:
        with tempfile.TemporaryDirectory() as folder:
            compare(options.model, options.runs, folder)


def compare(model: str, runs: int, folder: str) -> None:
    def run(what: str) -> str:
        command = [sys.executable, __file__, "--model", model, "--only", what, "--folder", folder]
        return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout

    run("checkpoint")
    found: dict[str, list[dict]] = {what: [] for what in WHAT}
    for _ in range(runs):
        for what in WHAT:
            found[what].append(json.loads(run(what).splitlines()[-1]))
    show(model, found)


def show(model: str, found: dict[str, list[dict]]) -> None:
    median = {what: statistics.median(run["seconds"] for run in runs) for what, runs in found.items()}
    floor = statistics.median(run["peak"] for run in found["imports"])
    click.echo(f"{model}, median of {len(found['imports'])} runs")
    for what, runs in found.items():
        ratios = [run["seconds"] / base["seconds"] for run, base in zip(runs, found["ingredients"], strict=True)]
        line = f"{what:12} {median[what]:6.1f} s   {statistics.median(ratios):4.2f} x ingredients"
        if "weights" in runs[0]:
            above = statistics.median((run["peak"] - floor) / run["weights"] for run in runs)
            line += f"   peak {above:.1f} x the weights above the imports"
        click.echo(line)
    for step, seconds in found["verified"][-1]["timings"].items():
        click.echo(f"    {step:35} {seconds:5.1f} s")


if __name__ == "__main__":
    main()
