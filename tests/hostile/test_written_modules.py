"""A PyTorch module is a program: a stranger's does not run, and names of a checkpoint stay names in what is written."""

import ast
import hashlib
import io
import json
import os
import shutil
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from torch import fx, nn

import converter
from converter.artifacts.runtime.stamp import read_stamp
from converter.artifacts.torch_source import ModuleSource
from converter.errors import CheckpointError
from converter.ir.program import Origin, Program
from converter.plan.interface import TensorInterface


@pytest.mark.slow
@pytest.mark.threat(
    "A PyTorch module with code of the attacker's, under a stamp with that code's digest",
    "refused: only the source that `--to torch` writes for this model runs",
)
def test_source_that_is_not_written_for_this_model_does_not_run(tmp_path):
    model, path, ran = nn.Sequential(nn.Linear(3, 2)).eval(), tmp_path / "written", tmp_path / "ran"
    assert converter.convert(model, to="torch", output=path, input_shapes=["1,3"]).status == "verified"
    assert converter.verify(model, path).status == "verified"
    file = path / "model.py"
    file.write_text(f"open({str(ran)!r}, 'w').close()\n{file.read_text()}")
    forged = read_stamp(path) | {"graph_sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    (path / "converter_stamp.json").write_text(json.dumps(forged))
    with pytest.raises(CheckpointError, match="--trust artifact"):
        converter.verify(model, path)
    assert not ran.exists()
    converter.verify(model, path, trust=["artifact"])
    assert ran.exists()


def pickled_code(weights: Path) -> None:
    torch.save({**torch.load(weights), "x": Runs()}, weights)


def torchscript(weights: Path) -> None:
    torch.jit.save(torch.jit.script(nn.ReLU()), weights)


def link(weights: Path) -> None:
    outside = weights.parent.with_name("outside.pt").resolve()
    weights.rename(outside)
    weights.symlink_to(outside)


def bomb(weights: Path) -> None:
    content = zipfile.ZipFile(io.BytesIO(weights.read_bytes()))
    with zipfile.ZipFile(weights, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in content.namelist():
            archive.writestr(name, content.read(name) + bytes(1_000_000 if name.endswith("data/0") else 0))


def short(weights: Path) -> None:
    content = zipfile.ZipFile(io.BytesIO(weights.read_bytes()))
    with zipfile.ZipFile(weights, "w") as archive:
        for name in content.namelist():
            archive.writestr(name, content.read(name)[: 4 if "/data/" in name else None])


def view(weights: Path) -> None:
    torch.save({**torch.load(weights), "x": torch.zeros(1).expand(1 << 40)}, weights)


def linked_source(weights: Path) -> None:
    (weights.parent / "model.py").unlink()
    (weights.parent / "model.py").symlink_to("/etc/passwd")


class Runs:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    model, path = nn.Sequential(nn.Linear(3, 2)).eval(), tmp_path_factory.mktemp("module") / "written"
    assert converter.convert(model, to="torch", output=path, input_shapes=["1,3"]).status == "verified"
    return model, path


@pytest.mark.slow
@pytest.mark.threat(
    "The weights of a PyTorch module that are a program, lie, expand without measure or are a link elsewhere",
    "refused before they are loaded",
)
@pytest.mark.parametrize("edit", [pickled_code, torchscript, link, bomb, short, view, linked_source])
def test_weights_of_a_module_are_a_checkpoint_of_tensors(tmp_path, monkeypatch, written, edit):
    model, good = written
    monkeypatch.chdir(tmp_path)
    shutil.copytree(good, "written")
    edit(Path("written", "weights.pt"))
    with pytest.raises(CheckpointError):
        converter.verify(model, "written")
    assert not Path("ran").exists()


HOSTILE = 'a"]; import os; exit() #\nimport os\n"""'


@pytest.mark.threat(
    "Names of modules, tensors, inputs and outputs that are code where they are written into source",
    "other names take their place in the source of `--to torch`; in comments they are escaped",
)
def test_names_of_a_checkpoint_are_no_code():
    root, graph = nn.Module(), fx.Graph()
    root.register_parameter("a", nn.Parameter(torch.ones(3)))
    root.register_buffer("b", torch.ones(3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x, nodes = graph.placeholder("x"), [graph.get_attr("a"), graph.get_attr("b")]
    total = graph.call_function(torch.ops.aten.add.Tensor, (x, nodes[0]))
    total = graph.call_function(torch.ops.aten.mul.Tensor, (total, nodes[1]))
    total.meta["nn_module_stack"] = {"": (HOSTILE, "Net")}
    graph.output((total,))
    for node in graph.nodes:
        node.meta["val"] = torch.empty(3, device="meta")
    origins = {HOSTILE: Origin((HOSTILE,)), "__class__x": Origin(("__class__x",))}
    module = fx.GraphModule(root, graph)
    for node, name in zip(module.graph.find_nodes(op="get_attr"), (HOSTILE, "__class__x"), strict=True):
        setattr(module, name, getattr(module, node.target))
        node.target = name
    program = Program(module, [HOSTILE], [HOSTILE], origins)
    interface = TensorInterface(HOSTILE, (3,), torch.float32, (0,))
    source = ModuleSource(program, [interface], [interface])
    tree = ast.parse(source.text)
    imported = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert imported == [
        "from pathlib import Path", "import torch", "import torch.nn.functional as F", "from torch import nn",
    ]  # fmt: skip
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    known = {"torch", "nn", "F", "Path", "Model", "INPUTS", "OUTPUTS", "self", "super", "model", "weights", "x", "t_0"}
    assert names <= known | {"load", "__file__"}
    assert all(name.isidentifier() and not name.startswith("__") for name in source.names.values())
