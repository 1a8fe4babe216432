"""Files beside a checkpoint that are called as what a run imports: none of them runs, and every command works."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

CONVERT = [Path(sys.executable).with_name("convert")]
MODULE = [sys.executable, "-m", "converter"]
SHAPE = ("--input-shape", "1,3,8,8")
OWN = "net"  # the user's module, which --model names
BATCH = ("batch", "plain.pt", "script.pt", "--to", "onnx", "-o", "out", "-j", "1", *SHAPE)

# In this order, in the folder of the checkpoints: `verify` takes what `convert` made.
RUNS: dict[str, tuple[str, ...]] = {
    "convert": ("plain.pt", "script.pt", "--to", "tf", "--to", "onnx", *SHAPE),
    "convert --model": ("weights.safetensors", "--model", f"{OWN}:build", "--to", "keras", *SHAPE),
    "inspect": ("inspect", "plain.pt", "--check", *SHAPE),
    "inspect script": ("inspect", "script.pt", *SHAPE),
    "inspect --model": ("inspect", "weights.safetensors", "--model", f"{OWN}.py:build", *SHAPE),
    "verify": ("verify", "plain.pt", "plain.onnx", *SHAPE),
    "verify --weights": ("verify", "plain.pt", "plain_saved_model", "--weights"),
    "batch": BATCH,
}
MODULE_RUNS = {"inspect": RUNS["inspect"], "batch": BATCH}

# A module of this name, on PYTHONPATH, is imported by every Python process before all else.
RECORDER = """\
import sys

class Recorder:
    def find_spec(self, name, path=None, target=None):
        if path is None:
            with open({record!r}, "a") as file:
                file.write(name + "\\n")

sys.meta_path.insert(0, Recorder())
with open({record!r}, "a") as file:
    file.writelines(name.partition(".")[0] + "\\n" for name in list(sys.modules))
"""
PLANTED = "open({marker!r}, 'w').close()\n"


def prepare(folder: Path) -> None:
    folder.mkdir()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    torch.save(net, folder / "plain.pt")
    torch.jit.script(net).save(folder / "script.pt")
    safetensors.torch.save_file(net.state_dict(), folder / "weights.safetensors")
    source = "from torch import nn\n\n\ndef build():\n    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())\n"
    (folder / f"{OWN}.py").write_text(source)


def run(command: list, *arguments: str, cwd: Path, **environment: str) -> None:
    ran = subprocess.run([*command, *arguments], cwd=cwd, env=os.environ | environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Every top-level module that the runs and their child processes import or try to import."""
    folder = tmp_path_factory.mktemp("recorded")
    record = folder / "names"
    (folder / "recorder").mkdir()
    (folder / "recorder/sitecustomize.py").write_text(RECORDER.format(record=str(record)))
    prepare(folder / "models")
    for arguments in RUNS.values():
        run(CONVERT, *arguments, cwd=folder / "models", PYTHONPATH=str(folder / "recorder"))
    names = set(record.read_text().splitlines()) - {OWN}
    assert names >= {"numpy", "torch", "tensorflow", "onnxruntime", "triton", "redis", "filelock", "sitecustomize"}
    return {name for name in names if name.isidentifier()}


@pytest.fixture
def planted(imported: set[str], tmp_path: Path) -> Iterator[Path]:
    """A folder of checkpoints with a file for each of these names; none may have run in the end."""
    folder, markers = tmp_path / "models", tmp_path / "executed"
    prepare(folder)
    markers.mkdir()
    for name in imported:
        (folder / f"{name}.py").write_text(PLANTED.format(marker=str(markers / name)))
    control = subprocess.run([sys.executable, "-c", "import redis"], cwd=folder)
    assert control.returncode == 0
    assert (markers / "redis").exists()  # or else the files prove nothing
    (markers / "redis").unlink()
    yield folder
    assert list(markers.iterdir()) == []


@pytest.mark.slow
def test_no_planted_module_runs(planted: Path):
    for arguments in RUNS.values():
        run(CONVERT, *arguments, cwd=planted)


@pytest.mark.slow
def test_no_planted_module_runs_beside_a_checkpoint_elsewhere(planted: Path, tmp_path: Path):
    here = tmp_path / "here"
    here.mkdir()
    run(CONVERT, str(planted / "plain.pt"), "--to", "onnx", *SHAPE, cwd=here)


@pytest.mark.slow
def test_no_planted_module_runs_by_way_of_python_m(planted: Path, tmp_path: Path):
    """But for those that Python itself imports before it comes to the package that it is to run."""
    (tmp_path / "probe").mkdir()
    (tmp_path / "probe/__init__.py").write_text("import sys; print(*{n.partition('.')[0] for n in sys.modules})")
    (tmp_path / "probe/__main__.py").touch()
    probe = subprocess.run([sys.executable, "-m", "probe"], cwd=tmp_path, capture_output=True, text=True, check=True)
    for name in (*probe.stdout.split(), "converter"):
        (planted / f"{name}.py").unlink(missing_ok=True)
    for arguments in MODULE_RUNS.values():
        run(MODULE, *arguments, cwd=planted)
