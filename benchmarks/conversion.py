"""Time and memory of a conversion, beside what its ingredients cost without us. Run on a quiet machine.

    python benchmarks/conversion.py [--model resnet50] [--runs 3]

Each figure is of a process of its own. "ingredients" imports torch and tensorflow, captures the model with
torch.export, and writes one lean SavedModel of the same architecture built by hand with Keras (its building is not
counted); "unverified" and "verified" are `converter.convert(model, to=["tf"])`. Memory is the process' peak above what
the two imports take, in multiples of the weights.
"""

import argparse
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
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
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


def ingredients(name: str) -> dict:
    import_time = imports(name)["seconds"]
    import keras
    import tensorflow as tf
    import torch

    model = torch_model(name)
    twin = {"resnet50": keras.applications.ResNet50, "mobilenet_v2": keras.applications.MobileNetV2}[name](weights=None)
    started = time.perf_counter()
    torch.export.export(model, (torch.randn(2, 3, 224, 224),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    module = tf.Module()
    module.weights = {w.path: w.value for w in twin.weights}
    spec = [tf.TensorSpec([None, 224, 224, 3], tf.float32, "x")]
    function = tf.function(lambda x: twin(x, training=False), input_signature=spec, autograph=False)
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures={"serving_default": function.get_concrete_function()})
    return {"seconds": import_time + time.perf_counter() - started, "peak": peak_megabytes()}


def conversion(name: str, verify: bool) -> dict:
    import_time = imports(name)["seconds"]
    model = torch_model(name)
    import converter

    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        report = converter.convert(
            model, to=["tf"], output=Path(folder, "out"), input_shapes=["1,3,224,224"], verify=verify
        )
    seconds = import_time + time.perf_counter() - started
    if verify and report.status != "verified":
        raise SystemExit(f"{name}: {report.status}")
    weights = sum(t.numel() * t.element_size() for t in model.state_dict().values()) / 2**20
    return {"seconds": seconds, "peak": peak_megabytes(), "weights": weights, "timings": dict(report.timings)}


WHAT = {
    "imports": imports,
    "ingredients": ingredients,
    "unverified": lambda name: conversion(name, False),
    "verified": lambda name: conversion(name, True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", choices=WHAT, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(WHAT[options.only](options.model)))
        return
    found: dict[str, list[dict]] = {what: [] for what in WHAT}
    for _ in range(options.runs):
        for what in WHAT:
            command = [sys.executable, __file__, "--model", options.model, "--only", what]
            printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            found[what].append(json.loads(printed.splitlines()[-1]))
    median = {what: statistics.median(run["seconds"] for run in runs) for what, runs in found.items()}
    floor = statistics.median(run["peak"] for run in found["imports"])
    click.echo(f"{options.model}, median of {options.runs} runs")
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
