"""Compare the latency of the artifacts that two versions of pt-convert write, at sizes of real models.

    python benchmarks/latency.py write FOLDER_OLD --converter PATH_OF_THE_OLD_SOURCE
    python benchmarks/latency.py write FOLDER_NEW
    PYTHONPATH=. python benchmarks/latency.py compare FOLDER_OLD FOLDER_NEW [--record]

Each round calls both artifacts once, in random order. The ratio of a round's two times says how much faster the new one
is, whatever else the machine does; of all rounds the median is given, and where it lies in 95 of 100 samples of rounds
that are drawn again. --record puts the rows into docs/latency.json, for docs/SYSTEMS.md, beside those of other cases.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
ROUNDS = 300
LONGEST = 4.0  # seconds for the rounds of a pair
SUFFIXES = {"onnx": ".onnx", "tf": "_saved_model", "keras": ".keras"}


def sample(name: str) -> Any:
    """Return a module of sample_models, whichever version of the converter is used."""
    spec = importlib.util.spec_from_file_location(f"cases_{name}", ROOT / f"sample_models/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TensorUnfold(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 1, 4, 5, 2, 3).reshape(n, 16 * c, h // 4, w // 4)


class Nested(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([torch.cat([x[:, :, r::2] for r in (0, 1)], 1)[..., c::2] for c in (0, 1)], 1)


class Stacked(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x[..., r::2, c::2] for c in (0, 1) for r in (0, 1)], 2).flatten(1, 2)


class Parts(nn.Module):
    def __init__(self, parts: int, width: int):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(parts))
        self.out = nn.Conv2d(parts * width, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = x.chunk(len(self.convs), 1)
        return self.out(torch.cat([conv(part).relu() for conv, part in zip(self.convs, parts, strict=True)], 1))


Case = tuple[Callable[[], Any], str]


def cases() -> dict[str, Case]:
    """Return the systems whose artifacts changed: what builds each, and its input."""
    packing, shifts, convolutions = sample("packing"), sample("shifts"), sample("convolutions")
    conv, chain = nn.Conv2d, nn.Sequential
    column = packing.BY_COLUMN

    def mixing(make: Callable[[], Any], channels: int = 96) -> Callable[[], Any]:
        return lambda: shifts.Mixing(make(), channels)

    image, features = "1,3,640,640", "1,96,56,56"
    return {
        "Focus, 3x3 convolution": (lambda: packing.Stem(packing.Slices(column), 12, 3), image),
        "Focus, grouped convolution (4)": (
            lambda: chain(packing.Slices(column), conv(12, 32, 3, groups=4), nn.ReLU(), conv(32, 16, 1)), image
        ),
        "Focus, grouped convolution (2)": (
            lambda: chain(packing.Slices(column), conv(12, 32, 3, groups=2), nn.ReLU(), conv(32, 16, 1)), image
        ),
        "Focus, depthwise convolution": (
            lambda: chain(packing.Slices(column), conv(12, 24, 3, groups=12), nn.ReLU(), conv(24, 16, 1)), image
        ),
        "Focus, transposed convolution": (
            lambda: chain(packing.Slices(column), nn.ConvTranspose2d(12, 8, 2, 2)), "1,3,320,320"
        ),
        "Focus, group norm (2)": (
            lambda: chain(packing.Slices(column), nn.GroupNorm(2, 12), conv(12, 16, 3)), "1,3,320,320"
        ),
        "space to depth by 4, Tensor.unfold": (lambda: chain(TensorUnfold(), conv(48, 32, 1)), image),
        "Focus, nested slices": (lambda: chain(Nested(), conv(12, 32, 3)), image),
        "Focus, stacked": (lambda: chain(Stacked(), conv(12, 32, 3)), image),
        "Focus, blocks of 2x3": (lambda: chain(packing.Blocks(2, 3), conv(96, 32, 1)), "1,16,96,96"),
        "Focus of a sequence": (lambda: chain(packing.Blocks(4), nn.Conv1d(64, 32, 1)), "1,16,4096"),
        "Focus of a volume": (lambda: chain(packing.Blocks(2, 2, 2), nn.Conv3d(64, 16, 1)), "1,8,32,64,64"),
        "inverse Focus, assigned": (
            lambda: chain(conv(3, 48, 3), packing.Quadrants(), conv(12, 16, 1)), "1,3,160,160"
        ),
        "Swin's PatchMerging": (lambda: packing.PatchMerging(96, (56, 56)), "1,3136,96"),
        "pixel shuffle, norm": (lambda: chain(*shuffled(64, norm=True)), "1,64,56,56"),
        "pixel shuffle of a grouped convolution": (lambda: chain(*shuffled(64, 4)), "1,64,56,56"),
        "pixel shuffle of a depthwise convolution": (lambda: chain(*shuffled(64, 64)), "1,64,56,56"),
        "pixel shuffle of a sum": (packing.ShuffledSum, "1,3,112,112"),
        "shift, slices assigned": (lambda: shifts.SpatialMLP(96), "1,96,56,56"),
        "shift, replicate and roll": (mixing(shifts.RolledShift), features),
        "shift, reflect and roll": (mixing(lambda: shifts.RolledShift("reflect")), features),
        "shift, one-hot depthwise": (mixing(lambda: shifts.ConvolvedShift(96)), features),
        "shift of an input, roll": (lambda: shifts.AtInput(shifts.RolledShift(), 96), features),
        "shift of an input, one-hot depthwise": (lambda: shifts.AtInput(shifts.ConvolvedShift(96), 96), features),
        "shift of an input, grid_sample": (
            lambda: shifts.AtInput(shifts.SampledShift("nearest"), 96), features
        ),
        "Grouped Shift, 25 groups": (mixing(lambda: shifts.GroupedShift(100, 2), 100), "1,100,28,28"),
        "replicate pad": (lambda: chain(nn.ReplicationPad2d(1), conv(96, 96, 3)), features),
        "grouped convolution in parts": (
            lambda: convolutions.InParts(5), "1,5,224,224"
        ),
        "grouped convolution in parts, each with a ReLU": (
            lambda: convolutions.InParts(5, activate=True), "1,5,224,224"
        ),
        "four parts of 24 channels, each with a ReLU": (partial(Parts, 4, 24), features),
        "separable, depthwise bias": (
            lambda: chain(conv(96, 96, 3, padding=1, groups=96), conv(96, 96, 1)), features
        ),
        "separable, stride (2, 1)": (
            lambda: chain(conv(96, 96, 3, (2, 1), groups=96, bias=False), conv(96, 96, 1)), features
        ),
        "separable of a sequence": (
            lambda: chain(nn.Conv1d(96, 96, 5, padding=2, groups=96), nn.Conv1d(96, 96, 1)), "1,96,4096"
        ),
    }  # fmt: skip


def shuffled(channels: int, groups: int = 1, norm: bool = False) -> list[Any]:
    after = [nn.BatchNorm2d(channels // 4), nn.ReLU()] if norm else []
    return [
        nn.Conv2d(channels, channels, 1),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1, groups=groups),
        nn.PixelShuffle(2),
        *after,
        nn.Conv2d(channels // 4, 16, 1),
    ]


@click.group()
def main() -> None:
    """Write artifacts with a version of the converter, or compare those of two versions."""


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--converter", "source", type=click.Path(path_type=Path, exists=True), default=ROOT)
@click.option("--only", default="", help="Part of the names of cases.")
def write(folder: Path, source: Path, only: str) -> None:
    """Convert every case to every format; what cannot be converted is named."""
    sys.path.insert(0, str(source.resolve()))
    import converter
    from converter.errors import ConversionError

    folder.mkdir(parents=True, exist_ok=True)
    for number, (name, (build, shape)) in enumerate(cases().items()):
        if only not in name:
            continue
        torch.manual_seed(number)
        model = build().eval()
        paths = {format: folder / f"{slug(name)}{suffix}" for format, suffix in SUFFIXES.items()}
        paths = {format: path for format, path in paths.items() if not path.exists()}
        if not paths:
            continue
        try:
            converter.convert(model, to=list(paths), output=paths, input_shapes=[shape], verify=False)
        except ConversionError as error:
            click.echo(f"{name}: {error}", err=True)
            continue
        for format, path in paths.items():
            if not path.exists():
                click.echo(f"{name}, {format}: not written", err=True)


@main.command()
@click.argument("old", type=click.Path(path_type=Path, exists=True))
@click.argument("new", type=click.Path(path_type=Path, exists=True))
@click.option("--only", default="", help="Part of the names of cases.")
@click.option("--results", type=click.Path(path_type=Path), help="JSON lines, a row each, to go on from.")
@click.option("--record", "recording", is_flag=True, help="Put the rows into docs/latency.json.")
def compare(old: Path, new: Path, only: str, results: Path | None, recording: bool) -> None:
    """Time the artifacts of two folders in turn."""
    rows = [json.loads(line) for line in results.read_text().splitlines()] if results and results.exists() else []
    done = {(row["case"], row["format"]) for row in rows}
    for format, suffix in SUFFIXES.items():
        for name, (_, shape) in cases().items():
            paths = [folder / f"{slug(name)}{suffix}" for folder in (old, new)]
            if only not in name or (name, format) in done or not paths[1].exists():
                continue
            row: dict[str, Any] = {"case": name, "input": shape.replace(",", "x"), "format": format}
            if paths[0].exists():
                row |= timed([runner(format, path, shape) for path in paths])
            rows.append(row)
            click.echo(json.dumps(row), err=True)
            if results:
                with results.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    if recording:
        sys.path.append(str(ROOT / "docs/generate"))
        from tables import record, recorded

        places = {name: number for number, name in enumerate(cases())}
        measured = {(row["case"], row["format"]): row for row in [*recorded("latency")["rows"], *rows]}
        rows = [row for row in measured.values() if row["case"] in places]
        rows.sort(key=lambda row: (places[row["case"]], list(SUFFIXES).index(row["format"])))
        record("latency", {"machine": f"{os.cpu_count()} cores", "rows": rows})


def runner(format: str, path: Path, shape: str) -> Callable[[], Any]:
    """Return a function that runs an artifact once, on the same input for all."""
    sizes = [int(n) for n in shape.split(",")]
    x = np.random.default_rng(0).standard_normal(sizes).astype(np.float32)
    if format == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        given = {session.get_inputs()[0].name: x}
        return lambda: session.run(None, given)
    import tensorflow as tf

    if format == "tf":
        loaded = tf.saved_model.load(str(path))
        function = loaded.signatures["serving_default"]
        name, wanted = next(iter(function.structured_input_signature[1].items()))
        array = tf.constant(arranged(x, wanted.shape))
        return lambda: (loaded, function(**{name: array}))
    import keras

    model = keras.saving.load_model(path)
    array = tf.constant(arranged(x, model.inputs[0].shape))
    called = tf.function(model, autograph=False)
    return lambda: called(array)


def arranged(x: np.ndarray, wanted: Any) -> np.ndarray:
    """Return `x` in the layout that an artifact takes."""
    same = all(n is None or n == size for n, size in zip(list(wanted), x.shape, strict=True))
    return x if same else np.ascontiguousarray(np.moveaxis(x, 1, -1))


def timed(runs: list[Callable[[], Any]]) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    for run in runs * 3:
        run()
    taken: list[list[float]] = [[], []]
    begun = time.perf_counter()
    while len(taken[1]) < ROUNDS and time.perf_counter() - begun < LONGEST:
        for i in rng.permutation(2):
            start = time.perf_counter()
            runs[i]()
            taken[i].append(1e3 * (time.perf_counter() - start))
    old, new = (np.array(times[: len(taken[1])]) for times in taken)
    ratios = new / old
    drawn = np.median(rng.choice(ratios, (2000, len(ratios))), axis=1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return {
        "old_ms": float(np.median(old)),
        "new_ms": float(np.median(new)),
        "ratio": float(np.median(ratios)),
        "low": float(low),
        "high": float(high),
        "rounds": len(ratios),
    }


def slug(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)


if __name__ == "__main__":
    main()
