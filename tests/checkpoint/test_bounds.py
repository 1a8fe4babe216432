"""Files that ask for time or memory without measure are refused within bounds of both."""

import json
import os
import pickle
import resource
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import hostile_checkpoints as hostile
import hostile_torchscript
import pytest
import safetensors.torch
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 20.0  # of one file, on a busy machine
MEMORY = 1 << 30  # bytes above the imports

# Loads each file, and prints its name, what came of it, seconds and the peak of memory in bytes above the imports.
LOADER = """
import json, resource, sys, time
import torch
from converter.checkpoint.load import load
from converter.errors import ConversionError
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
for path in sys.argv[1:]:
    begun = time.perf_counter()
    try:
        load(path)
        end = "loaded"
    except ConversionError as error:
        end = type(error).__name__
    print(json.dumps([path, end, time.perf_counter() - begun, peak() - before]), flush=True)
"""


def pickled(instructions: bytes) -> Callable[[Path], None]:
    return lambda path: hostile.write_pickle(path, instructions)


def zip_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(None, 2))
        for number in range(20):
            archive.writestr(f"archive/data/{number}", bytes(1 << 26))


def header(length: int, text: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(length.to_bytes(8, "little") + text)


def lying_safetensors(path: Path) -> None:
    table = {"a": {"dtype": "F32", "shape": [1 << 31, 1 << 31], "data_offsets": [0, 4]}}
    data = json.dumps(table).encode()
    path.write_bytes(len(data).to_bytes(8, "little") + data + bytes(4))


def wide_views(path: Path) -> None:
    torch.save({f"w{i}": torch.ones(1).expand(1 << 30, 1 << 10) for i in range(10)}, path)


def nested_modules(path: Path) -> None:
    inner: nn.Module = nn.Identity()
    for _ in range(3000):
        inner = nn.Sequential(inner)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(10**6)
    try:
        torch.save(inner, path)
    finally:
        sys.setrecursionlimit(limit)


def doubled_modules(path: Path) -> None:
    """2^40 paths to one module."""
    inner: nn.Module = nn.Identity()
    for _ in range(40):
        inner = nn.Sequential(inner, inner)
    torch.save(inner, path)


def folder_with(config: str) -> Callable[[Path], None]:
    def build(path: Path) -> None:
        path.mkdir()
        (path / "config.json").write_text(config)
        safetensors.torch.save_file({"a": torch.ones(1)}, path / "model.safetensors")

    return build


def large_folder(path: Path) -> None:
    folder_with('{"architectures": ["BertModel"], "num_hidden_layers": 1000000000}')(path)


def scripted(change: str) -> Callable[[Path], None]:
    def build(path: Path) -> None:
        hostile_torchscript.write_linear(path)
        hostile_torchscript.ARCHIVES[change](path)

    return build


def key(text: str) -> bytes:
    return hostile._text(text)


ORDINARY = hostile._global("collections", "OrderedDict") + b")R"
MODULE = hostile._global("torch.nn.modules.container", "Sequential") + b")\x81q\x00"
BOMBS: dict[str, Callable[[Path], object]] = {
    "zip bomb": zip_bomb,
    "lists in lists": pickled(b"]" * 200_000 + b"a" * 199_999 + b"."),
    "dicts in dicts": pickled(b"}" + (key("model") + b"}") * 100_000 + b"s" * 100_000 + b"."),
    "a dict inside itself": pickled(b"}q\x00" + key("model") + b"h\x00s."),
    "a module inside itself": pickled(
        MODULE + b"}" + key("_modules") + b"}" + key("0") + b"h\x00s" + b"s" + key("_parameters") + b"}s"
        + key("_buffers") + b"}s" + key("training") + b"\x89sb."
    ),
    "a module without a state": pickled(MODULE + b"}b."),
    "a module whose parameters are numbers": pickled(
        MODULE + b"}" + key("_modules") + b"}s" + key("_parameters") + b"}" + key("w") + b"K\x01ss"
        + key("_buffers") + b"}s" + key("training") + b"\x89sb."
    ),
    "modules in modules": nested_modules,
    "modules twice in modules": doubled_modules,
    "lists of lists of lists": pickled(
        b"]q\x00(" + b"K\x01" * 100 + b"e"
        + b"".join(b"](" + bytes([104, n]) * 100 + b"eq" + bytes([n + 1]) for n in range(40)) + b"."
    ),
    "a number without end": pickled(b"\x8b" + (10**6).to_bytes(4, "little") + b"\x7f" * 10**6 + b"."),
    "a text that is not there": pickled(b"\x8d" + (2**40).to_bytes(8, "little") + b"x."),
    "a memo without end": pickled(b"Nr\xff\xff\xff\x7f."),
    "views of one number": wide_views,
    "safetensors, a header without end": header(2**39, b'{"a": 1}'),
    "safetensors, a header of brackets": header(10**6, b'{"a":' + b"[" * (10**6 - 5)),
    "safetensors, a tensor without end": lying_safetensors,
    "JSON without end": folder_with("[" * 10**6),
    "a folder of layers without end": large_folder,
    "TorchScript, lists in lists": scripted("lists without end"),
    "TorchScript, a bomb": scripted("expands without measure"),
}  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, float, int]]:
    """What came of each file, in one process that may take 4 GiB more than torch does and then would be ended."""
    folder = tmp_path_factory.mktemp("bombs")
    for number, build in enumerate(BOMBS.values()):
        build(folder / str(number))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [sys.executable, "-c", LOADER, *(str(folder / str(number)) for number in range(len(BOMBS)))],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30)),
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-3000:]
    told = [json.loads(line) for line in process.stdout.splitlines()]
    return dict(zip(BOMBS, ((end, seconds, held) for _, end, seconds, held in told), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_in_time_and_memory(results: dict[str, tuple[str, float, int]], name: str):
    end, seconds, held = results[name]
    assert end == "CheckpointError"
    assert seconds < SECONDS
    assert held < MEMORY
