"""What is wrong with the input is said by the command in words, with the right status, and leaves nothing behind."""

import ctypes
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import hostile_checkpoints as hostile
import numpy as np
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner
from torch import nn

import cli

ARCHITECTURE = """\
import torch
from torch import nn


class Polygamma(nn.Module):
    def forward(self, x):
        return torch.polygamma(2, x)


class Net(nn.Module):
    def __init__(self, width=5):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3)
        self.body = nn.Sequential(nn.ReLU(), nn.Conv2d(width, 7, 3))
        self.head = nn.Linear(7, 4)

    def forward(self, x):
        return self.head(self.body(self.stem(x)).mean((2, 3)))


class Odd(Net):
    def __init__(self):
        super().__init__()
        self.body[0] = Polygamma()

    def forward(self, x):
        mixed = torch.special.i0e(x) + torch.special.i0e(-x)
        return super().forward(mixed)


class Refusing(Net):
    def forward(self, x):
        raise RuntimeError("this model is not for you")


class Branching(Net):
    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else super().forward(-x)


class Strings(Net):
    def forward(self, x, mode):
        return super().forward(x)


def number():
    return 3


def broken():
    raise KeyError("no such width")
"""


def weights() -> dict[str, torch.Tensor]:
    """Of `Net`."""
    parts = {"stem": nn.Conv2d(3, 5, 3), "body.1": nn.Conv2d(5, 7, 3), "head": nn.Linear(7, 4)}
    return {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}


@dataclass
class Folder:
    """What a user has: a good checkpoint and its architecture, and one fault."""

    path: Path

    def state(self, **changes: torch.Tensor | None) -> str:
        """A state dict; None removes a key."""
        state = weights() | {name.replace("__", "."): tensor for name, tensor in changes.items()}
        torch.save({name: tensor for name, tensor in state.items() if tensor is not None}, self.path / "net.pt")
        return "net.pt"

    def file(self, name: str, content: bytes) -> str:
        (self.path / name).write_bytes(content)
        return name

    def truncated(self, share: float) -> str:
        content = (self.path / self.state()).read_bytes()
        return self.file("net.pt", content[: int(share * len(content))])

    def saved(self, content: object) -> str:
        torch.save(content, self.path / "net.pt")
        return "net.pt"

    def safetensors(self, cut: int) -> str:
        safetensors.torch.save_file(weights(), self.path / "net.safetensors")
        content = (self.path / "net.safetensors").read_bytes()
        return self.file("net.safetensors", content[:-cut])

    def inputs(self, **arrays: np.ndarray) -> str:
        np.savez(self.path / "inputs.npz", **arrays)  # type: ignore[arg-type]
        return "inputs.npz"


BUILD = "--model net.py:Net"
SHAPE = "--input-shape 1,3,9,8"

# Name; the command, {} being what is prepared; exit status; what the message must say.
Case = tuple[str, Callable[[Folder], str], str, int, list[str]]
CHECKPOINTS: list[Case] = [
    ("missing", lambda f: "gone.pt", "{} --to onnx", 4, ["gone.pt", "The file does not exist"]),
    ("a folder", lambda f: ".", "{} --to onnx", 4, ["folder"]),
    ("empty", lambda f: f.file("net.pt", b""), "{} --to onnx", 4, ["net.pt", "empty"]),
    ("text", lambda f: f.file("net.pt", b"model = Net()\n" * 9), "{} --to onnx", 4, ["net.pt", "text"]),
    ("truncated, no end", lambda f: f.truncated(0.7), "{} --to onnx", 4, ["net.pt", "damaged"]),
    ("truncated, first bytes only", lambda f: f.truncated(0.01), "{} --to onnx", 4, ["net.pt"]),
    ("truncated safetensors", lambda f: f.safetensors(7), "{} --to onnx", 4, ["net.safetensors", "damaged"]),
    ("an archive of other things", lambda f: f.inputs(x=np.ones(3)), "{} --to onnx", 4, ["inputs.npz"]),
    (
        "code in a pickle",
        lambda f: f.saved(hostile.OBJECTS["os.system"](f.path / "marker")),
        "{} --to onnx",
        4,
        ["net.pt", "posix.system", "Do not trust this file"],
    ),
    ("no model in it", lambda f: f.saved([1, 2]), "{} --to onnx", 4, ["net.pt"]),
    ("state dict without --model", Folder.state, "{} --to onnx", 4, ["state dict", "stem.weight", "--model"]),
    (
        "keys that do not match",
        lambda f: f.state(head__weight=None, head__bias=None, tail__weight=torch.ones(4, 7)),
        f"{{}} --to onnx {BUILD} {SHAPE}",
        4,
        [
            "missing from the file (2):\n      head.weight\n      head.bias\n",
            "the model does not have (1):\n      tail.weight\n",
        ],
    ),
    (
        "shapes that do not match",
        lambda f: f.state(head__weight=torch.ones(9, 7)),
        f"{{}} --to onnx {BUILD} {SHAPE}",
        4,
        ["head.weight", "9", "4"],
    ),
]
ARCHITECTURES: list[Case] = [
    ("does not exist", Folder.state, "{} --to onnx --model gone.py:Net", 2, ["gone.py", "does not exist"]),
    ("no such module", Folder.state, "{} --to onnx --model gone.models:Net", 2, ["The module gone was not found"]),
    (
        "no such factory",
        Folder.state,
        "{} --to onnx --model net.py:Nett",
        2,
        ["net.py does not define `Nett`", "Did you mean Net"],
    ),
    ("no factory named", Folder.state, "{} --to onnx --model net.py", 2, ["is a file", "--model net.py:"]),
    (
        "arguments not its own",
        Folder.state,
        f'{{}} --to onnx --model-args {{{{"depth":2}}}} {BUILD}',
        2,
        ["depth", "width"],
    ),
    (
        "a factory of something else",
        Folder.state,
        "{} --to onnx --model net.py:number",
        1,
        ["of type int", "torch.nn.Module"],
    ),
    ("a factory that fails", Folder.state, "{} --to onnx --model net.py:broken", 1, ["no such width", "net.py:"]),
]
INPUTS: list[Case] = [
    ("no shape", Folder.state, f"{{}} --to onnx {BUILD}", 2, ["--input-shape 1,3,224,224"]),
    ("no shape at all", Folder.state, f"{{}} --to onnx {BUILD} --input-shape big", 2, ["big", "--input-shape"]),
    ("a size of 0", Folder.state, f"{{}} --to onnx {BUILD} --input-shape 1,0,8,8", 2, ["size of 0"]),
    ("an unknown dtype", Folder.state, f"{{}} --to onnx {BUILD} {SHAPE}:float33", 2, ["float33"]),
    ("a name that forward lacks", Folder.state, f"{{}} --to onnx {BUILD} --input-shape y=1,3,9,8", 2, ["Forward", "x"]),
    (
        "channels that the first layer does not take",
        Folder.state,
        f"{{}} --to onnx {BUILD} --input-shape 1,4,9,8",
        1,
        ["expected input[1, 4, 9, 8] to have 3 channels", "module `stem` (Conv2d)", "--input-shape"],
    ),
    (
        "too small for the second convolution",
        Folder.state,
        f"{{}} --to onnx {BUILD} --input-shape 1,3,4,4",
        1,
        ["(2 x 2)", "module `body.1` (Conv2d)"],
    ),
    (
        "an input too few",
        Folder.state,
        f"{{}} --to onnx --model net.py:Strings {SHAPE}",
        1,
        ["missing 1 required positional argument", "mode"],
    ),
    ("arrays that are missing", Folder.state, f"{{}} --to onnx {BUILD} {SHAPE} --inputs no.npz", 2, ["no.npz"]),
    (
        "arrays that do not fit",
        lambda f: f.inputs(x=np.ones((2, 3, 5, 5), np.float32)) and f.state(),
        f"{{}} --to onnx {BUILD} {SHAPE} --inputs inputs.npz",
        2,
        ["[2, 3, 5, 5]", "inputs.npz", "PyTorch's layout"],
    ),
]
MODELS: list[Case] = [
    (
        "raises",
        Folder.state,
        f"{{}} --to onnx --model net.py:Refusing {SHAPE}",
        1,
        ["this model is not for you", "the model itself (Refusing)"],
    ),
    (
        "branches on values",
        Folder.state,
        f"{{}} --to onnx --model net.py:Branching {SHAPE}",
        1,
        ["depends on tensor values", "net.py:", "x.sum() > 0"],
    ),
    (
        "operators without a mapping, all at once",
        Folder.state,
        f"{{}} --to keras --model net.py:Odd {SHAPE}",
        1,
        [
            "2 operators",
            "aten.special_i0e.default   2",
            "net.py:27: mixed =",
            "aten.polygamma.default     1       body.0    net.py:7:",
        ],
    ),
]
OUTPUTS: list[Case] = [
    ("unknown format", Folder.state, f"{{}} --to coreml {BUILD} {SHAPE}", 2, ["coreml", "keras", "onnx", "tf"]),
    ("no format", Folder.state, f"{{}} {BUILD} {SHAPE}", 2, ["--to"]),
    ("a name of another format", Folder.state, f"{{}} --to keras -o net.onnx {BUILD} {SHAPE}", 2, ["net.keras"]),
    (
        "the checkpoint itself",
        Folder.state,
        f"{{}} --to onnx -o net.pt --force {BUILD} {SHAPE}",
        2,
        ["net.pt", "is the checkpoint's path"],
    ),
    (
        "taken by a file of the user's",
        lambda f: f.file("net.onnx", b"precious") and f.state(),
        f"{{}} --to onnx {BUILD} {SHAPE}",
        1,
        ["net.onnx", "did not write it", "--force"],
    ),
    (
        "taken by a folder of the user's, with --force",
        lambda f: (f.path / "out/net_saved_model/notes").mkdir(parents=True) or f.state(),
        f"{{}} --to tf -o out --force {BUILD} {SHAPE}",
        1,
        ["out", "--force does not remove it"],
    ),
    (
        "beside a file that is in the way as a folder",
        lambda f: f.file("out", b"precious") and f.state(),
        f"{{}} --to onnx -o out/net.onnx {BUILD} {SHAPE}",
        1,
        ["out/net.onnx", "Not a directory"],
    ),
    (
        "an opset that does not exist",
        Folder.state,
        f"{{}} --to onnx --opset 99 {BUILD} {SHAPE}",
        1,
        ["opset", "99"],
    ),
]
VERIFICATIONS: list[Case] = [
    ("no artifact", Folder.state, f"verify {{}} gone.onnx {BUILD} {SHAPE}", 1, ["gone.onnx"]),
    (
        "no artifact but text",
        lambda f: f.file("text.onnx", b"not a graph") and f.state(),
        f"verify {{}} text.onnx {BUILD} {SHAPE}",
        1,
        ["text.onnx"],
    ),
    ("no checkpoint", lambda f: "gone.pt", f"verify {{}} gone.onnx {BUILD} {SHAPE}", 1, ["gone"]),
]
CASES = {
    "checkpoint": CHECKPOINTS,
    "architecture": ARCHITECTURES,
    "input": INPUTS,
    "model": MODELS,
    "output": OUTPUTS,
    "verify": VERIFICATIONS,
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(ARCHITECTURE)
    return Folder(tmp_path)


def content(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder; Python's own caches aside."""
    found = (path for path in folder.rglob("*") if "__pycache__" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in found}


@pytest.mark.parametrize(
    "prepare, command, status, said",
    [pytest.param(*case, id=f"{what}: {name}") for what, cases in CASES.items() for name, *case in cases],
)
def test_fault_is_named_and_nothing_written(folder: Folder, prepare, command: str, status: int, said: list[str]):
    arguments = command.format(prepare(folder)).split()
    before = content(folder.path)
    result = CliRunner().invoke(cli.main, arguments)
    assert result.exit_code == status, result.stderr
    for words in said:
        assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert "bug in pt-convert" not in result.stderr
    assert result.stdout == ""
    assert content(folder.path) == before
    assert not (folder.path / "marker").exists()


@pytest.mark.slow
def test_every_operator_without_a_mapping_is_in_the_report(folder: Folder):
    arguments = f"{folder.state()} --to keras --to tf --model net.py:Odd {SHAPE} --json".split()
    result = CliRunner().invoke(cli.main, arguments)
    assert result.exit_code == 1
    (model,) = json.loads(result.stdout)["models"]
    assert [(row["operator"], row["count"]) for row in model["operators"]] == [
        ("aten.special_i0e.default", 2),
        ("aten.polygamma.default", 1),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("format", ["tf", "keras", "onnx"])
def test_full_disk_leaves_nothing_half_written(folder: Folder, format: str):
    first, second = torch.rand(900, 3, 3, 3), torch.rand(7, 900, 3, 3)
    state = folder.state(stem__weight=first, stem__bias=torch.rand(900), body__1__weight=second)
    arguments = f"{state} --to {format} {BUILD} {SHAPE} --no-verify --model-args".split()
    before = content(folder.path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))  # the weights are 322 kB
    try:
        result = CliRunner().invoke(cli.main, [*arguments, '{"width": 900}'])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert result.exit_code == 1, result.stderr
    assert "the disk is full" in result.stderr
    assert "Traceback" not in result.stderr
    assert content(folder.path) == before


# As real processes


def process(folder: Path, *arguments: str, prepare: Callable[[], None] | None = None) -> subprocess.CompletedProcess:
    command = [Path(sys.executable).with_name("convert"), *arguments]
    return subprocess.run(command, cwd=folder, preexec_fn=prepare, capture_output=True, text=True)


def give_up_the_right_to_write_anywhere() -> None:
    """Root has it as a capability, which the program that is started then does not get."""
    if os.geteuid() == 0:
        drop_from_bounding_set, may_pass_by_permissions = 24, 1
        if ctypes.CDLL(None, use_errno=True).prctl(drop_from_bounding_set, may_pass_by_permissions, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl")


@pytest.mark.slow
def test_folder_without_write_permission(folder: Folder):
    state = folder.state()
    (folder.path / "closed").mkdir(mode=0o555)
    before = content(folder.path)
    run = process(
        folder.path, *f"{state} --to onnx -o closed/net.onnx {BUILD} {SHAPE}".split(),
        prepare=give_up_the_right_to_write_anywhere,
    )  # fmt: skip
    assert run.returncode == 1, run.stderr
    assert "Permission denied" in run.stderr
    assert "closed/net.onnx" in run.stderr
    assert "Traceback" not in run.stderr
    assert content(folder.path) == before


@pytest.mark.slow
def test_of_several_models_the_good_ones_are_converted(folder: Folder):
    good, broken = folder.state(), folder.file("broken.pt", b"text")
    run = process(folder.path, *f"{broken} gone.pt {good} --to onnx -o out {BUILD} {SHAPE} --json".split())
    assert run.returncode == 4, run.stderr
    statuses = [model.get("status", model.get("exit_status")) for model in json.loads(run.stdout)["models"]]
    assert statuses == [4, 4, "verified"]
    assert [path.name for path in (folder.path / "out").iterdir()] == ["net.onnx"]
    assert "Traceback" not in run.stderr
