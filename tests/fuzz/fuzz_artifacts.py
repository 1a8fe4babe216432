"""Damages artifacts of ours, stamps included, and opens them: what still runs and computes something else is noticed.

    python tests/fuzz/fuzz_artifacts.py --cases 1000 --seed 0 [--only onnx]

Case N of a seed is always the same damage. Each artifact is opened in the process that `verify` uses. It may be
refused, fail with an error of ours, or run. If it runs, still has its stamp and gives other outputs, the digest of
its graph, a tensor or its interface must differ too: that is what the third proof compares. Of a PyTorch module, only
the source that was written runs. A file that appears anywhere is a fault.
"""

import argparse
import collections
import hashlib
import io
import random
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from converter.artifacts.runner import Runner  # noqa: E402
from converter.artifacts.runtime.formats import TORCH_SOURCE, TORCH_WEIGHTS, Format, recognize  # noqa: E402
from converter.artifacts.stamp_schema import checked_stamp  # noqa: E402
from converter.checkpoint.pickle_loader import refuse_more_than_tensors  # noqa: E402
from converter.errors import CheckpointError, ConversionError  # noqa: E402

NAMES: dict[Format, str] = {
    "tf": "net_saved_model", "keras": "net.keras", "onnx": "net.onnx", "tflite": "net.tflite", "torch": "net_torch",
}  # fmt: skip
SECONDS = 60.0  # of one request
FAULTS = ("another function, not noticed", "the runtime died")


@dataclass
class Found:
    """How the cases of each format ended, and what should not have happened."""

    ends: dict[str, collections.Counter[str]] = field(
        default_factory=lambda: collections.defaultdict(collections.Counter)
    )
    bad: list[str] = field(default_factory=list)


def good_artifacts(folder: Path, formats: list[Format]) -> dict[Format, Path]:
    import torch
    from torch import nn

    import converter

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
    paths = {format: folder / NAMES[format] for format in formats}
    converter.convert(net, to=formats, output=paths, input_shapes=["1,3,8,8"])
    return paths


def damage(content: bytes, chance: random.Random) -> bytes:
    """Return bytes with a bit, a byte or a block changed, or cut off."""
    held, at = bytearray(content), chance.randrange(max(len(content), 1))
    length = min(chance.choice((1, 2, 8, 64)), len(held))
    match chance.choice(("bit", "bit", "bit", "byte", "zeros", "cut", "twice", "gone")):
        case "bit" if held:
            held[at] ^= 1 << chance.randrange(8)
        case "byte" if held:
            held[at] = chance.randrange(256)
        case "zeros":
            held[at : at + length] = bytes(len(held[at : at + length]))
        case "cut":
            del held[at:]
        case "twice":
            held[at:at] = held[at : at + length]
        case "gone":
            del held[at : at + length]
    return bytes(held)


def damaged(path: Path, chance: random.Random) -> None:
    """Damage one file of an artifact; of an archive mostly one member, with a right checksum."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    file = chance.choice(files)
    content = file.read_bytes()
    if not zipfile.is_zipfile(file) or chance.random() < 0.2:
        file.write_bytes(damage(content, chance))
        return
    with zipfile.ZipFile(io.BytesIO(content)) as source:
        start = min(entry.header_offset for entry in source.infolist())  # a LiteRT file has a model before its archive
        if start and chance.random() < 0.7:
            file.write_bytes(damage(content[:start], chance) + content[start:])
            return
        file.write_bytes(content[:start])
        names = source.namelist()
        chosen = chance.choice(names)
        with zipfile.ZipFile(file, "a") as target:
            for name in names:
                member = source.read(name)
                target.writestr(name, damage(member, chance) if name == chosen else member)


class Opened:
    """The runner of a format, started anew where a runtime crashed."""

    def __init__(self, format: Format):
        self._format = format
        self._runner: Runner | None = None

    def runner(self) -> Runner:
        if self._runner is None or not self._runner.alive:
            self.close()
            self._runner = Runner(self._format, timeout=SECONDS)
        return self._runner

    def close(self) -> None:
        if self._runner is not None:
            self._runner.close()


def state_of(
    runner: Runner, path: Path, arrays: list[np.ndarray], source: str
) -> tuple[list[bytes], list[bytes], object, bool | None]:
    """Return the outputs, the tensors, the interface and whether the graph is as written."""
    open_as_verify(runner, path, source)
    interface = (runner.inputs, runner.outputs)
    outputs = []
    for array in arrays:
        results = runner.run({spec.name: array for spec in runner.inputs})
        outputs += [name.encode() + value.tobytes() for name, value in sorted(results.items())]
    tensors = [name.encode() + value.tobytes() for name, value in sorted(runner.tensors().items())]
    return outputs, tensors, interface, runner.graph_as_written()


def open_as_verify(runner: Runner, path: Path, source: str) -> None:
    """Open an artifact; of a PyTorch module only if its source has this digest, and its weights are only tensors."""
    if runner.format == "torch":
        refuse_more_than_tensors(path / TORCH_WEIGHTS)
    runner.open(path, trusted=source if runner.format == "torch" else False)


@contextmanager
def runners(formats: list[Format]) -> Iterator[dict[Format, Opened]]:
    opened = {format: Opened(format) for format in formats}
    try:
        yield opened
    finally:
        for one in opened.values():
            one.close()


def fuzz(cases: int, seed: int, formats: list[Format]) -> Found:
    found = Found()
    arrays = [np.random.default_rng(k).normal(size=(2, 3, 8, 8)).astype(np.float32) for k in range(2)]
    with tempfile.TemporaryDirectory() as place, runners(formats) as opened:
        folder = Path(place)
        good = good_artifacts(folder, formats)
        written = folder / NAMES["torch"] / TORCH_SOURCE
        source = hashlib.sha256(written.read_bytes()).hexdigest() if written.exists() else ""
        inputs, right = {}, {}
        for format in formats:
            runner = opened[format].runner()
            open_as_verify(runner, good[format], source)
            inputs[format] = [as_taken(runner.inputs[0].shape, array) for array in arrays]
            right[format] = state_of(runner, good[format], inputs[format], source)
        assert all(state[3] for state in right.values())
        before = sorted(folder.iterdir())
        for number in range(cases):
            format = formats[number % len(formats)]
            with tempfile.TemporaryDirectory() as inner:
                path = Path(inner) / NAMES[format]
                (shutil.copytree if good[format].is_dir() else shutil.copyfile)(good[format], path)
                damaged(path, random.Random(f"{seed} {number}"))
                there = sorted(Path(inner).rglob("*"))
                end = ended(opened[format].runner(), path, inputs[format], right[format], source)
                found.ends[format][end] += 1
                if end in FAULTS or sorted(Path(inner).rglob("*")) != there:
                    found.bad.append(f"{format} case {number} of seed {seed}: {end}")
        if sorted(folder.iterdir()) != before:
            found.bad.append("files appeared")
    return found


def as_taken(shape: tuple[int | None, ...] | None, array: np.ndarray) -> np.ndarray:
    """Return images in the layout of an artifact, one where it takes only one."""
    array = array[:1] if shape and shape[0] == 1 else array
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1)) if shape and shape[-1] == 3 else array


def ended(
    runner: Runner, path: Path, inputs: list[np.ndarray], right: tuple[object, object, object, object], source: str
) -> str:
    """Return how opening and running an artifact ended."""
    if recognize(path) is None:
        return "not an artifact"
    stamp, _ = checked_stamp(path)
    try:
        outputs, tensors, interface, as_written = state_of(runner, path, inputs, source)
    except CheckpointError:
        return "refused"
    except ConversionError:
        return "an error" if runner.alive else "the runtime died"
    if outputs == right[0]:
        return "the same function"
    if not stamp:
        return "another function, without a stamp"
    noticed = not as_written or tensors != right[1] or interface != right[2]
    return "another function, noticed" if noticed else "another function, not noticed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=list(NAMES), action="append")
    given = parser.parse_args()
    found = fuzz(given.cases, given.seed, given.only or list(NAMES))
    for format, ends in found.ends.items():
        print(format, dict(ends.most_common()))
    print("\n".join(found.bad) or "no fault")
    sys.exit(bool(found.bad))


if __name__ == "__main__":
    main()
