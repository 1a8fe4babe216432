"""A user's own modules with our names: theirs are the ones their model sees, at any time, and ours go on working."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

COMMAND = [Path(sys.executable).with_name("convert")]
MODULE = [sys.executable, "-m", "converter"]
# With the current directory first, Python itself would take the user's converter.py for our package.
MODULE_ALONE = [sys.executable, "-P", "-m", "converter"]
OPTIONS = ("--model", "model.py:build", "--input-shape", "1,3,8,7")

FILES = {
    "cli.py": "from torch import nn\n\nNAME = 'cli of the user'\nactivation = nn.Hardswish\n",
    "mappings.py": "NAME = 'mappings of the user'\n\n\ndef flip(x):\n    return x.flip(2)\n",
    "converter.py": "NAME = 'converter of the user'\nSCALE = 3.0\n",
    "late.py": "from converter import NAME, SCALE\n",
    "model.py": """\
import cli
import mappings
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)
        self.activation = cli.activation()

    def forward(self, x):
        import late
        import mappings as again

        assert again is mappings
        names = [cli.NAME, again.NAME, late.NAME]
        assert names == [f"{name} of the user" for name in ("cli", "mappings", "converter")], names
        return late.SCALE * self.activation(self.conv(x))


def build():
    return Net()
""",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of a user: modules with our names, a model that needs them, its weights."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    conv = nn.Conv2d(3, 5, 3)
    torch.save({f"conv.{name}": tensor for name, tensor in conv.state_dict().items()}, tmp_path / "weights.pt")
    return tmp_path


def run(command: list, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*command, *arguments], cwd=cwd, capture_output=True, text=True)


@pytest.mark.parametrize(
    "command, has_converter",
    [
        pytest.param(COMMAND, True, id="convert"),
        pytest.param(MODULE_ALONE, True, id="python -P -m converter"),
        pytest.param(MODULE, False, id="python -m converter"),
    ],
)
def test_model_sees_the_users_modules_and_is_converted_by_ours(folder: Path, command: list, has_converter: bool):
    if not has_converter:
        (folder / "converter.py").rename(folder / "late.py")
    ran = run(command, "weights.pt", *OPTIONS, "--to", "onnx", cwd=folder)
    assert ran.returncode == 0, ran.stderr
    assert "verified" in ran.stderr


def test_mappings_are_ours_while_the_users_are_loaded(folder: Path):
    ran = run(COMMAND, "weights.pt", *OPTIONS, "--to", "keras", cwd=folder)
    assert ran.returncode == 0, ran.stderr


def test_pickled_module_finds_the_users_modules_beside_it(folder: Path, tmp_path_factory):
    save = "import torch, model; net = model.Net(); torch.save(net.eval(), 'net.pt')"
    subprocess.run([sys.executable, "-c", save], cwd=folder, check=True, capture_output=True)
    here = tmp_path_factory.mktemp("elsewhere")
    options = ("--trust", "model", "--input-shape", "1,3,8,7", "--no-verify")
    ran = run(COMMAND, str(folder / "net.pt"), *options, "--to", "onnx", cwd=here)
    assert ran.returncode == 0, ran.stderr
    assert [path.name for path in here.iterdir()] == ["net.onnx"]


def test_command_holds_none_of_the_users_names():
    """What a model file imports lazily, after conversion has begun, could not be theirs otherwise."""
    code = (
        "import sys; sys.argv = ['convert', '--help']\n"
        "from converter.__main__ import main\n"
        "try: main()\n"
        "finally: print('LOADED', *(name for name in ('cli', 'mappings') if name in sys.modules), sep=':')"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "LOADED"


def test_script_starts_at_the_entry_that_leaves_the_names_free():
    assert "converter.__main__" in COMMAND[0].read_text()
