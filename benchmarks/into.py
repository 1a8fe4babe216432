"""Puts the weights of whole architectures into Keras models of other people, and tells what came of it.

    python benchmarks/into.py [NAME ...] --results into.jsonl [--record]

Weights are random, norm statistics measured on random images. What stands in the results already is not measured again,
unless named. --record puts the rows into docs/into.json, from which
docs/generate/measurements.py writes the table in docs/INTO.md. Needs torchvision, timm and, for its models, keras-hub.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command does; read when torch is imported
ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "docs/generate"))
from tables import record  # noqa: E402  # found by the line above

MODELS = "benchmarks/keras_models.py"
LOGITS = {"classifier_activation": None}
SCALED = {"embed_preprocessing": True}
# PyTorch's model, the Keras model, the size of images, and what else is given.
PAIRS: dict[str, tuple[str, str, tuple[int, ...], dict[str, Any]]] = {
    "digits": ("sample_models.digits_focus:DigitsFocus", f"{MODELS}:digits", (1, 1, 16, 16), {}),
    "digits, other order": (
        "sample_models.digits_focus:DigitsFocus", f"{MODELS}:digits", (1, 1, 16, 16),
        {"build_args": {"last_first": True}},
    ),
    "resnet50": ("torchvision:resnet50", f"{MODELS}:resnet50", (1, 3, 128, 128), {"build_args": {"side": 128}}),
    "densenet121": (
        "torchvision:densenet121", "keras_app:DenseNet121", (1, 3, 224, 224), {"build_args": LOGITS},
    ),
    "efficientnet_b0, pixels": (
        "timm:tf_efficientnet_b0", "keras_app:EfficientNetB0", (1, 3, 224, 224), {"build_args": LOGITS, **SCALED},
    ),
    "efficientnet_b0": (
        "timm:tf_efficientnet_b0", "keras_app:EfficientNetB0", (1, 3, 224, 224), {"build_args": LOGITS},
    ),
    "resnet50 v1": ("torchvision:resnet50", "keras_app:ResNet50", (1, 3, 224, 224), {"build_args": LOGITS}),
    "mobilenet_v2": ("torchvision:mobilenet_v2", "keras_app:MobileNetV2", (1, 3, 224, 224), {"build_args": LOGITS}),
    "xception": (
        "timm:legacy_xception", "keras_app:Xception", (1, 3, 295, 295),
        {"build_args": {**LOGITS, "input_shape": [295, 295, 3]}},
    ),
    "xception, even sizes": ("timm:legacy_xception", "keras_app:Xception", (1, 3, 299, 299), {"build_args": LOGITS}),
    "mobilenetv3": (
        "timm:tf_mobilenetv3_large_100", "keras_app:MobileNetV3Large", (1, 3, 224, 224),
        {"build_args": {**LOGITS, "include_preprocessing": False}},
    ),
    "keras-hub resnet50": (
        "torchvision:resnet50", f"{MODELS}:hub_resnet50", (1, 3, 128, 128),
        {"build_args": {"side": 128}, "outputs": ["layer4"]},
    ),
    "keras-hub vit": (
        "timm:vit_tiny_patch16_224", f"{MODELS}:hub_vit", (1, 3, 224, 224), {"outputs": ["norm"]},
    ),
}  # fmt: skip


def built(name: str, shape: tuple[int, ...]) -> Any:
    """Return PyTorch's model, calibrated."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests/support")]
    import torch
    from torchvision_for_tests import load_torchvision

    from sample_models.calibration import calibrate

    library, _, wanted = name.partition(":")
    torch.manual_seed(0)
    if library == "timm":
        load_torchvision()
        import timm

        model = timm.create_model(wanted, pretrained=False)
    elif library == "torchvision":
        model = load_torchvision().models.get_model(wanted, weights=None)
    else:
        from importlib import import_module

        model = getattr(import_module(library), wanted)()
    return calibrate(model.eval(), torch.randn(shape))


def measure(name: str) -> dict[str, Any]:
    theirs, builder, shape, options = PAIRS[name]
    model = built(theirs, shape)
    import converter
    from converter.errors import ConversionError

    row: dict[str, Any] = {"name": name, "model": theirs, "builder": builder.removeprefix("benchmarks/")}
    os.chdir(ROOT)  # where the Keras models are
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        try:
            report = converter.into(
                model, builder, output=Path(folder, "out.keras"), input_shapes=[",".join(map(str, shape))], **options
            )
        except ConversionError as error:
            row |= {"result": "refused", "layers": None, "ambiguous": None, "rounding": None, "remark": error.what}
        else:
            (proof,) = report.proofs
            multiples = [output.multiple_of_rounding for output in proof.outputs]
            row |= {
                "result": report.status,
                "layers": len(report.pairs),
                "ambiguous": sum(bool(pair.others) for pair in report.pairs),
                "rounding": max(multiples) if all(m is not None for m in multiples) else None,
                "remark": "" if proof.holds else "; ".join([proof.summary, *proof.failures]),
            }
            row["timings"] = dict(report.timings)
    return row | {"seconds": time.perf_counter() - started}


@click.command(help=__doc__)
@click.argument("names", nargs=-1, type=click.Choice(list(PAIRS)))
@click.option("--results", type=click.Path(path_type=Path), help="JSON lines, a pair each; the last of a pair counts.")
@click.option("--record", "recording", is_flag=True, help="Put the rows into docs/into.json.")
def main(names: tuple[str, ...], results: Path | None, recording: bool) -> None:
    results = results.resolve() if results else None
    rows = {}
    if results and results.exists():
        rows = {row["name"]: row for row in map(json.loads, results.read_text().splitlines())}
    for name in names or () if recording else names or [name for name in PAIRS if name not in rows]:
        row = rows[name] = measure(name)
        click.echo(json.dumps(row))
        if results:
            with results.open("a") as file:
                file.write(json.dumps(row) + "\n")
    if recording:
        kept = ("name", "model", "builder", "result", "layers", "ambiguous", "rounding", "remark", "seconds")
        record("into", [{key: rows[name][key] for key in kept} for name in PAIRS if name in rows])


if __name__ == "__main__":
    main()
