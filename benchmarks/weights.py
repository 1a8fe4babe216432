"""Weights there and back: what `sync` writes against a conversion, and `pull` after training in Keras.

    python benchmarks/weights.py [NAME ...] --results weights.jsonl [--minutes 9] [--record]

A model is converted with two sets of random weights; the second set then goes into the first set's artifacts, whose
files are compared byte for byte with those of the second conversion. The Keras file is trained for three steps, pulled,
and PyTorch with the pulled weights is compared with it. What the results have already is not measured again, unless
named. --record puts the rows into docs/weights.json, from which docs/generate/measurements.py writes the table in
docs/WEIGHTS.md. Needs timm and transformers.
"""

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
SUFFIXES = {"keras": ".keras", "onnx": ".onnx", "tflite": ".tflite", "tf": "_saved_model"}
ZOO = (
    *("torchvision.squeezenet1_1", "torchvision.shufflenet_v2_x0_5", "torchvision.mnasnet0_5", "torchvision.resnet18"),
    *("torchvision.mobilenet_v3_small", "torchvision.densenet121", "torchvision.swin_t", "timm.cs3darknet_focus_s"),
    *("timm.lcnetv2_small", "timm.fasternet_t0", "timm.regnety_004", "timm.rexnet_100", "timm.vit_tiny_patch16_224"),
    *("timm.mobilevit_s", "timm.convnext_tiny", "timm.ghostnet_050"),
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
    import torch

    from sample_models.calibration import calibrate
    from sample_models.detect_head import build

    return calibrate(build(80, 64, 64), torch.randn(1, 3, 64, 64)), ["1,3,64,64"]


def gpt2() -> tuple[Any, list[str]]:
    """GPT-2 of transformers, small: a classifier tied to the embedding table, kernels that lie the other way."""
    from torchvision_for_tests import load_torchvision

    load_torchvision()  # which transformers imports
    from transformers import GPT2Config, GPT2LMHeadModel

    class Logits(GPT2LMHeadModel):
        def forward(self, ids):
            return super().forward(ids, use_cache=False).logits

    return Logits(GPT2Config(vocab_size=200, n_positions=24, n_embd=32, n_layer=2, n_head=4)), ["1,12:int64"]


def bert() -> tuple[Any, list[str]]:
    """BERT of transformers, small."""
    from torchvision_for_tests import load_torchvision

    load_torchvision()  # which transformers imports
    from transformers import BertConfig, BertModel

    class Pooled(BertModel):
        def forward(self, ids):
            return super().forward(ids).pooler_output

    sizes = {"vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 64, "max_position_embeddings": 24}
    return Pooled(BertConfig(**sizes)), ["1,12:int64"]


OWN: dict[str, Callable[[], tuple[Any, list[str]]]] = {
    "digits_focus": digits, "detect_head": detector, "LSTM and GRU": lstm, "weight norm": weight_norm,
    "tied transformer": tied, "gpt2": gpt2, "bert": bert,
}  # fmt: skip


def samples() -> dict[str, tuple[Callable[[], Any], list[tuple[int, ...]], dict[str, Any]]]:
    """Return the networks of sample_models: how each is built, the shapes of its inputs, and options."""
    from torchvision_for_tests import load_torchvision

    load_torchvision()
    from sample_models.kinds import KINDS
    from sample_models.systems import SYSTEMS

    found: dict[str, Any] = {kind.title: (kind.build, [kind.shape], {}) for kind in KINDS}
    for system in SYSTEMS:
        options = {"exact_shifts": system.exact_shifts, "accept": system.accept}
        found[system.title] = system.build, list(system.shapes), {name: held for name, held in options.items() if held}
    return found


def build(name: str, seed: int = 0) -> Any:
    """Return a model with random weights that are no zeros or ones; `convert` calls it."""
    return with_other_weights(model_of(name)[0], seed)


def model_of(name: str) -> tuple[Any, list[str], dict[str, Any]]:
    """Return a model, its input shapes, and the options of its conversion."""
    import torch

    torch.manual_seed(0)
    if name in OWN:
        model, shapes = OWN[name]()
        return model.eval(), shapes, {}
    if name in architectures():
        model, shape = built(name, architectures()[name])
        return model, [",".join(map(str, shape))], {}
    from sample_models.calibration import calibrate

    make, sizes, options = samples()[name]
    model = calibrate(make(), *(torch.randn(2, *shape[1:]) for shape in sizes))
    return model, [",".join(map(str, shape)) for shape in sizes], options


def with_other_weights(model: Any, seed: int) -> Any:
    """Return the model with weights that are no longer zeros, ones, or equal."""
    import torch

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
    import keras
    import torch

    import converter
    from converter.errors import ConversionError

    _, shapes, options = model_of(name)
    given = {"factory": f"{__file__}:build", "factory_args": {"name": name}}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        for seed, letter in enumerate("ab"):
            torch.save(build(name, seed).state_dict(), at / f"{letter}.pt")
            keras.utils.clear_session(free_memory=False)  # which numbers layers anew
            outputs = {format: at / f"{letter}{suffix}" for format, suffix in SUFFIXES.items()}
            try:
                report = converter.convert(
                    at / f"{letter}.pt", to=list(SUFFIXES), output=outputs, input_shapes=shapes, verify=False, **given,
                    **options,
                )  # fmt: skip
            except ConversionError as error:
                refused = f"not converted: {error.what}".partition("\n")[0]
                return [{"name": name, "format": format, "refused": refused, "back": None} for format in SUFFIXES]
        for format, artifact in zip(SUFFIXES, report.artifacts, strict=True):
            row: dict[str, Any] = {"name": name, "format": format, "refused": None, "back": None}
            rows.append(row)
            if artifact.failure:
                row["refused"] = f"not converted: {artifact.failure.what}".partition("\n")[0]
                continue
            artifacts = [at / f"{letter}{SUFFIXES[format]}" for letter in "abc"]
            try:
                started, used = time.perf_counter(), time.process_time()
                synced = converter.sync(at / "b.pt", artifacts[0], output=artifacts[2])
                spent = {"seconds": time.perf_counter() - started, "processor": time.process_time() - used}
                row |= compared(artifacts, format) | spent | {"status": synced.status}
                if format == "keras":
                    row["back"] = pulled(at, given)
            except ConversionError as error:
                row["refused"] = error.what.partition("\n")[0].rpartition("another checkpoint: ")[2]
    return rows


def compared(artifacts: list[Path], format: Any) -> dict:
    """Compare what a sync wrote with the conversion."""
    from converter.artifacts.refill import open_written
    from converter.pipeline.sync import read_recipe

    stamp, recipe = read_recipe(artifacts[0])
    converted, synced = (open_written(a, format, list(recipe.tensors)).tensors for a in artifacts[1:])
    bytes_of = []
    for path in artifacts[1:]:
        files = [part for part in (path, *path.rglob("*")) if part.is_file()]
        bytes_of.append({str(file)[len(str(path)) :]: file.read_bytes() for file in files})
    size = sum(map(len, bytes_of[1].values()))
    return {
        "tensors": len(converted),
        "same": sum(array.tobytes() == synced[key].tobytes() for key, array in converted.items()),
        "bytes": bytes_of[0] == bytes_of[1],
        "share": len(stamp["recipe"]) / size,
        "megabytes": size / 1e6,
    }


def pulled(folder: Path, given: dict[str, Any]) -> dict:
    """Train the Keras file for three steps, and return how far PyTorch with its weights is from it, in roundings."""
    import keras
    import numpy as np
    import tensorflow as tf

    import converter

    trained = keras.saving.load_model(folder / "a.keras")
    draw = np.random.default_rng(0)

    def random(tensor: Any) -> Any:
        shape = [4, *(n or 4 for n in tensor.shape[1:])]
        return draw.integers(0, 200, shape) if "int" in tensor.dtype else draw.normal(size=shape).astype("float32")

    optimizer = keras.optimizers.SGD(1e-4)
    before = [value.numpy() for value in trained.trainable_variables]
    for _ in range(3):
        inputs = [random(tensor) for tensor in trained.inputs]
        with tf.GradientTape() as tape:
            results = [out for out in tf.nest.flatten(trained(inputs, training=True)) if out.dtype.is_floating]
            loss = sum(tf.reduce_mean((out - draw.normal(size=out.shape)) ** 2) for out in results)
        gradients = tape.gradient(loss, trained.trainable_variables)
        steps = zip(gradients, trained.trainable_variables, strict=True)
        optimizer.apply_gradients([(gradient, value) for gradient, value in steps if gradient is not None])
    after = [value.numpy() for value in trained.trainable_variables]
    changed = sum(bool((old != new).any()) for old, new in zip(before, after, strict=True))
    trained.save(folder / "trained.keras")
    report = converter.pull(
        folder / "trained.keras", folder / "a.pt", output=folder / "new.pt", artifact=folder / "a.keras", **given
    )
    weights, artifact = report.proofs
    roundings = [one.multiple_of_rounding for one in artifact.outputs]
    worst = max((r for r in roundings if r is not None and math.isfinite(r)), default=None)
    return {
        "status": report.status, "weights": weights.summary, "roundings": worst,
        "changed": changed, "trainable": len(before), "failures": [*weights.failures, *artifact.failures][:5],
    }  # fmt: skip


@click.command(help=__doc__)
@click.argument("names", nargs=-1)
@click.option("--results", type=click.Path(path_type=Path), default=Path("weights.jsonl"))
@click.option("--minutes", type=float, default=math.inf, help="Begin no model after this time.")
@click.option("--record", "recording", is_flag=True)
def main(names: tuple[str, ...], results: Path, minutes: float, recording: bool) -> None:
    """Measure what is not in the results yet."""
    until = time.monotonic() + 60 * minutes
    for name in names or (() if recording else (*OWN, *ZOO, *samples())):
        done = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
        if (name in {row["name"] for row in done} and not names) or time.monotonic() > until:
            continue
        rows = measure(name)
        with results.open("w") as file:
            kept = [row for row in done if row["name"] != name]
            file.writelines(json.dumps(row) + "\n" for row in (*kept, *rows))
        for row in rows:
            click.echo(json.dumps(row))
    if recording:
        record("weights", [json.loads(line) for line in results.read_text().splitlines()])


if __name__ == "__main__":
    main()
