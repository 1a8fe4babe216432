"""A user's own modules with our names: theirs are the ones their model sees, at any time, and ours go on working."""

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from converter.checkpoint.load import load
from converter.errors import ConversionError

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


@pytest.mark.slow
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


@pytest.mark.slow
def test_mappings_are_ours_while_the_users_are_loaded(folder: Path):
    ran = run(COMMAND, "weights.pt", *OPTIONS, "--to", "keras", cwd=folder)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.slow
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


NET = """\
from torch import nn
{imports}
class Net(nn.Sequential):
    def __init__(self):
        super().__init__({made})
"""


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.fixture(autouse=True)
def forget(tmp_path: Path) -> Iterator[None]:
    """What is imported from the test's folders is forgotten afterwards."""
    known = dict(sys.modules)
    yield
    for name, module in list(sys.modules.items()):
        if known.get(name) is not module and str(tmp_path) in repr(getattr(module, "__spec__", None)):
            del sys.modules[name]


def runs(path: Path | str, factory: str | None = None, *trust: str) -> bool:
    """Whether the checkpoint loads, and is a function from 3 to 2 numbers."""
    loaded = load(path, factory=factory, trust=trust)
    assert loaded.module is not None
    with loaded.code:
        return loaded.module(torch.ones(1, 3)).shape == (1, 2)


@pytest.fixture
def linear(tmp_path: Path) -> Path:
    """Weights of a Linear from 3 to 2, under the key of a Sequential's first layer."""
    path = tmp_path / "project/w.pt"
    path.parent.mkdir()
    torch.save(nn.Sequential(nn.Linear(3, 2)).state_dict(), path)
    return path


IMPORTS = {
    "import": ("import helper", "helper.made()"),
    "from": ("from helper import made", "made()"),
    "in a function": ("def made():\n    import helper\n    return helper.made()", "made()"),
    "by name": ("import importlib\nhelper = importlib.import_module('helper')", "helper.made()"),
    "by __import__": ("helper = __import__('helper')", "helper.made()"),
    "by a name from a table": (
        "from importlib import import_module\nKINDS = {'x': 'helper'}\nhelper = import_module(KINDS['x'])",
        "helper.made()",
    ),
    "by way of another": ("import between", "between.made()"),
    "by way of a package": ("from package.inner import made", "made()"),
    "by way of a folder without __init__": ("from bare.inner import made", "made()"),
}
HELPERS = {
    "helper.py": "from torch import nn\n\n\ndef made():\n    return nn.Linear(3, 2)\n",
    "between.py": "from helper import made\n",
    "package/__init__.py": "",
    "package/inner.py": "from ._deep import made\n",
    "package/_deep.py": "def made():\n    import helper\n    return helper.made()\n",
    "bare/inner.py": "from between import made\n",
}


@pytest.mark.parametrize("factory", ["net:Net", "net.py:Net", "project/net.py:Net"])
@pytest.mark.parametrize("imports, made", IMPORTS.values(), ids=IMPORTS)
def test_what_a_named_source_imports_may_lie_beside_it(
    linear: Path, monkeypatch: pytest.MonkeyPatch, factory: str, imports: str, made: str
):
    write(linear.parent, HELPERS | {"net.py": NET.format(imports=imports, made=made)})
    monkeypatch.chdir(linear.parents[1] if "/" in factory else linear.parent)
    assert runs(linear, factory)


def test_named_modules_stand_before_installed_ones_and_what_they_import_after(
    linear: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Both `net` and `helper` are installed too, as other code."""
    installed = tmp_path / "site-packages"
    write(installed, HELPERS | {"net.py": "raise SystemExit('the installed net')\n"})
    write(linear.parent, {"net.py": NET.format(imports="import helper", made="helper.made()")})
    write(linear.parent, {"helper.py": "raise SystemExit('the planted helper')\n"})
    monkeypatch.syspath_prepend(installed)
    assert runs(linear, "net:Net")


@pytest.mark.parametrize("trust", [(), ("library",)], ids=["--model", "--trust"])
def test_optional_imports_of_an_installed_package_are_not_taken_from_beside_a_checkpoint(
    linear: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trust: tuple[str, ...]
):
    """Trust in an installed package is none in what a stranger calls as one that it would use."""
    optional = "try:\n    import extra\nexcept ImportError:\n    pass"
    installed = tmp_path / "site-packages"
    write(installed, {"library/__init__.py": "from library.net import Net\n" + optional})
    write(installed, {"library/net.py": NET.format(imports=optional, made="nn.Linear(3, 2)")})
    write(linear.parent, {"extra.py": "raise SystemExit('the planted extra')\n"})
    monkeypatch.syspath_prepend(installed)
    if trust:
        import library

        torch.save(library.Net(), linear)
        for name in ("library", "library.net"):
            del sys.modules[name]
    assert runs(linear, None if trust else "library:Net", *trust)


def test_a_module_that_nothing_named_imports_is_withheld_and_the_error_says_how_to_name_it(
    linear: Path, monkeypatch: pytest.MonkeyPatch
):
    computed = "import importlib\nhelper = importlib.import_module('hel' + 'per')"
    write(linear.parent, HELPERS | {"net.py": NET.format(imports=computed, made="helper.made()")})
    monkeypatch.chdir(linear.parent)
    with pytest.raises(ConversionError) as refused:
        runs(linear, "net:Net")
    assert refused.value.fix.startswith(f"Add --trust helper if the helper in {linear.parent} is yours")
    assert "helper" not in sys.modules
    assert runs(linear, "net:Net", "helper")


@pytest.mark.parametrize("installed", [True, False], ids=["installed", "not installed"])
@pytest.mark.parametrize("init", [True, False], ids=["package", "without __init__"])
@pytest.mark.parametrize("pickled", [True, False], ids=["module", "state dict"])
def test_weights_inside_their_own_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: bool, init: bool, pickled: bool
):
    """`netpkg/netpkg.py` beside the weights is not the package `netpkg`."""
    folder = tmp_path / "elsewhere/netpkg"
    write(folder, {"netpkg.py": NET.format(imports="from . import parts", made="parts.made()")})
    write(folder, {"parts.py": HELPERS["helper.py"]} | ({"__init__.py": ""} if init else {}))
    with monkeypatch.context() as saving:
        saving.syspath_prepend(folder.parent)
        net = importlib.import_module("netpkg.netpkg").Net()
        torch.save(net if pickled else net.state_dict(), folder / "w.pt")
    for name in [name for name in sys.modules if name.partition(".")[0] == "netpkg"]:
        del sys.modules[name]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    if installed:
        monkeypatch.syspath_prepend(folder.parent)
    assert runs(folder / "w.pt", None, "netpkg") if pickled else runs(folder / "w.pt", "netpkg.netpkg:Net")


def test_models_of_two_folders_may_have_modules_of_the_same_name(tmp_path):
    """In one process, as in a batch: each has its own, and what that imports."""
    for name, made in {"one": "nn.Linear(3, 4)", "two": "nn.Conv2d(3, 4, 1)"}.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "helper.py").write_text(f"from torch import nn\n\n\ndef made():\n    return {made}\n")
        (folder / "net.py").write_text("import helper\n\n\ndef build():\n    return helper.made()\n")
    torch.save(nn.Linear(3, 4).state_dict(), tmp_path / "one/w.pt")
    torch.save(nn.Conv2d(3, 4, 1).state_dict(), tmp_path / "two/w.pt")
    kinds = [type(load(tmp_path / name / "w.pt", factory="net:build").module) for name in ("one", "two", "one", "two")]
    assert kinds == [nn.Linear, nn.Conv2d] * 2
