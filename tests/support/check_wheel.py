"""Check an installed wheel, in an empty folder: `python -P check_wheel.py [without-tensorflow]`.

The Python is that of the environment; nothing of the repository is imported. Without arguments: the commands, the API,
all formats, and a user's own modules that are called like ours. With one: what works where neither TensorFlow nor Keras
is installed.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

COMMAND = str(Path(sys.executable).with_name("pt-convert"))
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
SAMPLE = ("sample_models/digits_focus.pt", "--trust", "sample_models")
SHAPE = ("--input-shape", "1,1,16,16")
FORBIDDEN = "raise SystemExit('a module of the user, which nothing named')\n"
API = """
import converter
from converter.testing import assert_equivalent
assert "site-packages" in converter.__file__, converter.__file__
model, trust = "sample_models/digits_focus.pt", ["sample_models"]
for artifact in ("digits_focus.keras", "digits_focus.onnx", "digits_focus_saved_model"):
    assert_equivalent(model, artifact, trust=trust)
assert converter.inspect(model, trust=trust, input_shapes=["1,1,16,16"]).rows
"""
NET = """
import torch
from torch import nn

@torch.library.custom_op("vocoder::snake", mutates_args=())
def snake(x: torch.Tensor, rate: float) -> torch.Tensor:
    return x + torch.sin(rate * x) ** 2 / rate

@snake.register_fake
def _(x: torch.Tensor, rate: float) -> torch.Tensor:
    return torch.empty_like(x)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.before, self.after = nn.Conv1d(3, 8, 5), nn.Conv1d(8, 2, 3)

    def forward(self, x):
        return self.after(snake(self.before(x), 0.5))
"""
MAPPINGS = """
import cli
import torch
from keras import ops
from converter.registry import maps

@maps(torch.ops.vocoder.snake.default)
def snake(plan, x, rate):
    return plan.elementwise(lambda a: a + ops.square(ops.sin(rate * a)) / rate, x)
"""
LINEAR = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(3, 2))
"""


def run(folder: Path, *command: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == status, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done


def python(folder: Path, code: str) -> None:
    run(folder, sys.executable, "-c", code)


def check_everything(folder: Path) -> None:
    found = json.loads(run(folder, COMMAND, "doctor", "--json").stdout)
    assert {trial["format"] for trial in found["formats"] if trial["works"]} >= {"tf", "keras", "onnx"}, found
    run(folder, COMMAND, "sample")
    for name in ("cli.py", "mappings.py"):
        (folder / name).write_text(FORBIDDEN)
    every_format = ("--to", "tf", "--to", "keras", "--to", "onnx")
    run(
        folder, str(Path(COMMAND).with_name("convert")), *SAMPLE, *SHAPE, *every_format,
        "--inputs", "sample_models/digits_holdback.npz", "--report", "report.json",
    )  # fmt: skip
    run(folder, sys.executable, "-P", "-c", API)
    run(folder, sys.executable, "-m", "converter", "inspect", *SAMPLE, *SHAPE)
    check_modules_of_the_user(folder / "theirs")


def check_modules_of_the_user(folder: Path) -> None:
    """Use `cli.py` and `mappings.py` of the working folder, and those beside a checkpoint."""
    (folder / "beside").mkdir(parents=True)
    files = {
        "cli.py": NET,
        "mappings.py": MAPPINGS,
        "beside/mappings.py": LINEAR,
        "beside/cli.py": LINEAR,
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    python(folder, "import torch, cli; torch.save(cli.Net().state_dict(), 'net.pt')")
    run(
        folder, COMMAND, "net.pt", "--model", "cli.py:Net", "--mappings", "mappings.py", "--input-shape", "1,3,40",
        "--to", "tf",
    )  # fmt: skip
    beside = folder / "beside"
    python(beside, "import torch, mappings; torch.save(mappings.Net(), 'module.pt')")
    python(beside, "import torch, cli; torch.save(cli.Net().state_dict(), 'state.pt')")
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    line = ("--input-shape", "1,3", "--to", "onnx")
    run(elsewhere, COMMAND, "../beside/module.pt", "--trust", "mappings", *line)
    run(elsewhere, COMMAND, "../beside/state.pt", "--model", "cli:Net", *line)
    run(elsewhere, COMMAND, "../beside/state.pt", "--model", "../beside/mappings.py:Net", "-o", "again.onnx", *line)


def check_without_tensorflow(folder: Path) -> None:
    run(folder, COMMAND, *SAMPLE, *SHAPE, "--to", "onnx", "-o", "again.onnx")
    run(folder, COMMAND, "verify", *SAMPLE, "again.onnx")
    assert "Conv2D" in run(folder, COMMAND, "inspect", *SAMPLE, *SHAPE, "--json").stdout
    refused = run(folder, COMMAND, *SAMPLE, *SHAPE, "--to", "keras", "-o", "again.keras", status=1)
    assert "pip install" in refused.stderr, refused.stderr
    found = json.loads(run(folder, COMMAND, "doctor", "--json", status=1).stdout)
    assert [trial["format"] for trial in found["formats"] if trial["works"]] == ["onnx", "torch"], found


if __name__ == "__main__":
    check_without_tensorflow(Path.cwd()) if "without-tensorflow" in sys.argv else check_everything(Path.cwd())
