"""Weights there and back: what `sync` writes against a conversion, and `pull` after training in Keras.

    python benchmarks/weights.py [NAME ...] --results weights.jsonl [--record]

A model is converted with two sets of random weights; the second set then goes into the first set's artifacts, whose
tensors are compared bit for bit with those of the second conversion. The Keras file is trained for three steps, pulled,
and PyTorch with the pulled weights is compared with it. With --results what is there already is not measured again.
--record puts the rows into docs/weights.json, from which docs/generate/measurements.py writes the table in
docs/WEIGHTS.md. Needs timm.
"""

import copy
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from zoo import ROOT, architectures, built, record

sys.path[:0] = [str(ROOT), str(ROOT / "tests/support")]
SUFFIXES = {"keras": ".keras", "tf": "_saved_model", "onnx": ".onnx"}
ZOO = (
    *("torchvision.squeezenet1_1", "torchvision.shufflenet_v2_x0_5", "torchvision.mnasnet0_5", "torchvision.resnet18"),
    *("torchvision.mobilenet_v3_small", "timm.cs3darknet_focus_s", "timm.lcnetv2_small", "timm.fasternet_t0"),
    *("timm.regnety_004", "timm.rexnet_100", "timm.vit_tiny_patch16_224", "timm.mobilevit_s"),
)


def lstm() -> tuple[Any, list[str]]:
    """Two layers of LSTM in both directions, then a GRU."""
    from torch import nn

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(24, 32, 2, batch_first=True, bidirectional=True)
            self.gru = nn.GRU(64, 16, batch_first=True)
            self.head = nn.Linear(16, 5)

        def forward(self, x):
            return self.head(self.gru(self.lstm(x)[0])[0][:, -1])

    return Recurrent(), ["1,12,24"]


def weight_norm() -> tuple[Any, list[str]]:
    """Convolutions and a Linear with weight norm, of both kinds that PyTorch has."""
    from torch import nn

    norm = nn.utils.parametrizations.weight_norm
    layers = [norm(nn.Conv1d(8, 32, 5)), nn.GELU(), norm(nn.Conv1d(32, 32, 3, groups=4)), nn.GELU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.utils.weight_norm(nn.Linear(32 * 26, 10))), ["1,8,32"]


def tied() -> tuple[Any, list[str]]:
    """A transformer whose classifier is its embedding table."""
    import torch
    from torch import nn

    class Language(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(300, 48)
            self.position = nn.Parameter(torch.randn(1, 20, 48) * 0.1)
            layer = nn.TransformerEncoderLayer(48, 4, 96, batch_first=True, norm_first=True)
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.head = nn.Linear(48, 300, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, ids):
            return self.head(self.encoder(self.embedding(ids) + self.position))

    return Language(), ["1,20:int64"]


def digits() -> tuple[Any, list[str]]:
    """The trained sample model."""
    from converter.checkpoint.load import load

    return load(ROOT / "sample_models/digits_focus.pt", trust=["sample_models"]).module, ["1,1,16,16"]


def detector() -> tuple[Any, list[str]]:
    """The detector of sample_models."""
    from sample_models.detect_head import build

    return build(80, 64, 64).eval(), ["1,3,64,64"]


OWN: dict[str, Callable[[], tuple[Any, list[str]]]] = {
    "digits_focus": digits, "detect_head": detector, "LSTM and GRU": lstm, "weight norm": weight_norm,
    "tied transformer": tied,
}  # fmt: skip


def model_of(name: str) -> tuple[Any, list[str]]:
    """Return a model and its input shapes."""
    import torch

    torch.manual_seed(0)
    if name in OWN:
        model, shapes = OWN[name]()
        return model.eval(), shapes
    model, shape = built(name, architectures()[name])
    return model, [",".join(map(str, shape))]


def with_other_weights(model: Any, seed: int) -> Any:
    """Return a copy whose weights are no longer zeros, ones, or equal."""
    import torch

    model = copy.deepcopy(model)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.parameters():
            scale = tensor.std() if tensor.numel() > 1 and tensor.std() else tensor.abs().mean() + 0.1
            tensor += torch.randn(tensor.shape, generator=draw) * scale * 0.1
        for name, tensor in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                tensor *= 1 + 0.1 * torch.rand(tensor.shape, generator=draw)
    return model


def measure(name: str) -> list[dict]:
    """Return a row for each format."""
    import torch

    import converter
    from converter.errors import ConversionError

    model, shapes = model_of(name)
    models = [with_other_weights(model, seed) for seed in (1, 2)]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, f"{letter}.pt") for letter in "ab"]
        for one, file in zip(models, files, strict=True):
            torch.save(one.state_dict(), file)
        for format, suffix in SUFFIXES.items():
            artifacts = [Path(folder, f"{letter}{suffix}") for letter in "abc"]
            row: dict[str, Any] = {"name": name, "format": format, "refused": None, "back": None}
            rows.append(row)
            for one, artifact in zip(models, artifacts, strict=False):
                converter.convert(one, to=format, output=artifact, input_shapes=shapes, verify=False)
            try:
                started = time.perf_counter()
                report = converter.sync(files[1], artifacts[0], output=artifacts[2])
                row |= compared(artifacts, format, time.perf_counter() - started) | {"status": report.status}
                if format == "keras":
                    row["back"] = pulled(models[0], Path(folder), shapes)
            except ConversionError as error:
                row["refused"] = f"{error.what}".partition("\n")[0]
    return rows


def compared(artifacts: list[Path], format: Any, seconds: float) -> dict:
    """Compare the tensors of what a sync wrote with those of the conversion."""
    from converter.artifacts.refill import open_written
    from converter.pipeline.sync import read_recipe

    stamp, recipe = read_recipe(artifacts[0])
    converted, synced = (open_written(a, format, list(recipe.tensors)).tensors for a in artifacts[1:])
    parts = artifacts[0].rglob("*") if artifacts[0].is_dir() else [artifacts[0]]
    size = sum(part.stat().st_size for part in parts if part.is_file())
    return {
        "tensors": len(converted),
        "same": sum(array.tobytes() == synced[key].tobytes() for key, array in converted.items()),
        "share": len(stamp["recipe"]) / size,
        "megabytes": size / 1e6,
        "seconds": seconds,
    }


def pulled(model: Any, folder: Path, shapes: list[str]) -> dict:
    """Train the Keras file for three steps, and return how far PyTorch with its weights is from it, in roundings."""
    import keras
    import numpy as np
    import torch

    import converter

    trained = keras.saving.load_model(folder / "a.keras")
    draw = np.random.default_rng(0)

    def random(tensor: Any, size: int) -> Any:
        shape = [size, *(n or 4 for n in tensor.shape[1:])]
        return draw.integers(0, 200, shape) if "int" in tensor.dtype else draw.normal(size=shape).astype("float32")

    outputs = trained.outputs
    trained.compile(
        keras.optimizers.SGD(1e-4), ["mse"] * len(outputs) if len(outputs) > 1 else "mse", jit_compile=False
    )
    for _ in range(3):
        y = [random(o, 4) for o in outputs]
        trained.train_on_batch(random(trained.inputs[0], 4), y if len(y) > 1 else y[0])
    trained.save(folder / "trained.keras")
    torch.save(model, folder / "module.pt")
    report = converter.pull(
        folder / "trained.keras", folder / "module.pt", output=folder / "new.pt", artifact=folder / "a.keras",
        trust=["all"],
    )  # fmt: skip
    weights, artifact = report.proofs
    roundings = [one.multiple_of_rounding for one in artifact.outputs]
    worst = max((r for r in roundings if r is not None and math.isfinite(r)), default=None)
    return {"status": report.status, "weights": weights.summary, "roundings": worst}


@click.command(help=__doc__)
@click.argument("names", nargs=-1)
@click.option("--results", type=click.Path(path_type=Path), default=Path("weights.jsonl"))
@click.option("--record", "recording", is_flag=True)
def main(names: tuple[str, ...], results: Path, recording: bool) -> None:
    """Measure what is not in the results yet."""
    done = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    for name in names or (*OWN, *ZOO):
        if name in {row["name"] for row in done}:
            continue
        rows = measure(name)
        done += rows
        with results.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        for row in rows:
            click.echo(json.dumps(row))
    if recording:
        record("weights", done)


if __name__ == "__main__":
    main()
