"""Each kind of checkpoint, converted and proven."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

import converter

NET = """
from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), nn.Flatten(), nn.Linear(80, 5))
"""
ARCHITECTURE: dict[str, Any] = {"factory": "net.py:build"}


def _shards(net: nn.Module, path: Path) -> None:
    path.mkdir()
    state = net.state_dict()
    parts = {"a.safetensors": dict(list(state.items())[:3]), "b.safetensors": dict(list(state.items())[3:])}
    for name, part in parts.items():
        safetensors.torch.save_file(part, path / name)
    table = {key: name for name, part in parts.items() for key in part}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))


def _exported(net: nn.Module, path: Path) -> None:
    program = torch.export.export(net, (torch.randn(2, 3, 6, 7),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    with path.open("wb") as file:
        torch.export.save(program, file)


KINDS: dict[str, tuple[Callable[[nn.Module, Path], Any], dict[str, Any]]] = {
    "module, before 1.6, half precision": (
        lambda net, path: torch.save(net.half(), path, _use_new_zipfile_serialization=False),
        {},
    ),
    "Lightning": (
        lambda net, path: torch.save({"state_dict": {f"net.{k}": v for k, v in net.state_dict().items()}}, path),
        ARCHITECTURE,
    ),
    "DataParallel within a training checkpoint": (
        lambda net, path: torch.save({"epoch": 1, "model": nn.DataParallel(net)}, path),
        {},
    ),
    "safetensors": (lambda net, path: safetensors.torch.save_file(net.state_dict(), path), ARCHITECTURE),
    "shards": (_shards, ARCHITECTURE),
    "TorchScript, scripted": (lambda net, path: torch.jit.save(torch.jit.script(net), path), {}),
    "TorchScript, traced": (lambda net, path: torch.jit.save(torch.jit.trace(net, torch.ones(1, 3, 6, 7)), path), {}),
    "TorchScript, frozen": (lambda net, path: torch.jit.save(torch.jit.freeze(torch.jit.script(net)), path), {}),
    "exported program": (_exported, {"input_shapes": []}),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_converted_and_proven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calibrate, kind: str):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), nn.Flatten(), nn.Linear(80, 5)]
    net = calibrate(nn.Sequential(*layers).eval(), torch.randn(2, 3, 6, 7))
    save, options = KINDS[kind]
    save(net, tmp_path / "model")
    report = converter.convert("model", to=["onnx"], output="out.onnx", **{"input_shapes": ["1,3,6,7"], **options})
    assert report.status == "verified"
    assert all(proof.holds for proof in report.artifacts[0].proofs)
