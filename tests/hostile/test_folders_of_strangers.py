"""Nothing outside a Hugging Face folder is opened."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from converter.checkpoint.confinement import confined_to
from converter.checkpoint.hugging_face import _refuse_sources
from converter.checkpoint.load import load
from converter.checkpoint.model_folder import WEIGHTS, files_of
from converter.errors import CheckpointError

TIMM = {"architectures": ["TimmWrapperForImageClassification"], "model_type": "timm_wrapper"}
PLACES: list[dict[str, Any]] = [
    {"architecture": "local-dir:/home/user/model"},
    {"architecture": "hf-hub:user/private"},
    {"architecture": "hf_hub:user/private"},
    {"architecture": "../other"},
    {"architecture": "resnet18", "model_args": {"checkpoint_path": "/etc/passwd"}},
    {"architecture": "resnet18", "model_args": {"pretrained": True}},
    {"architecture": "resnet18", "model_args": {"pretrained_cfg": {"file": "/etc/passwd"}}},
    {"architecture": "resnet18", "model_args": {"pretrained_cfg_overlay": {"url": "http://a"}}},
    {"architecture": "resnet18", "model_args": {"cache_dir": "/tmp"}},
    {"architecture": "resnet18", "model_args": {"block_args": {"checkpoint_path": "/etc/passwd"}}},
    {"architecture": "resnet18", "model_args": {"act_layer": "/etc/passwd"}},
    {"backbone": "/home/user/model", "use_pretrained_backbone": False},
    {"backbone": "hf-hub:user/private", "use_timm_backbone": True},
    {"backbone": "resnet50", "backbone_kwargs": {"checkpoint_path": "/etc/passwd"}},
    {"text_config": {"backbone_config": {"backbone": "local-dir:/home"}}},
    {"sub": [{"backbone": "local-dir:/home"}]},
]


@pytest.mark.threat(
    "A `config.json` that names other folders, hub repositories or files, or hands arguments to timm",
    "refused before transformers reads it",
)
@pytest.mark.parametrize("changes", PLACES, ids=map(str, PLACES))
def test_a_config_that_leads_elsewhere_is_refused_before_a_library_is_asked(tmp_path: Path, changes: dict[str, Any]):
    (tmp_path / "config.json").write_text(json.dumps(TIMM | changes))
    torch.save({"a": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="outside the folder") as error:
        load(tmp_path)
    assert error.value.exit_status == 4


@pytest.mark.parametrize(
    "content",
    [
        {"architecture": "vit_base_patch16_224.augreg2_in21k_ft_in1k", "model_args": {"img_size": [3, 4], "depth": 3}},
        {"architecture": "resnet50", "model_args": None},
        {"architecture": "resnet50", "model_args": {"block_args": {"act_layer": "gelu"}, "global_pool": ""}},
        {"backbone": None, "backbone_kwargs": {"out_indices": [1, 2, 3, 4]}},
        {"backbone": "resnet50", "id2label": {"0": "a/b: c"}, "pretrained_cfg": {"hf_hub_id": "timm/resnet50"}},
        {"hidden_act": "gelu", "tokenizer_class": "BertTokenizer", "backbone_config": {"depths": [1, 2]}},
    ],
)
def test_a_config_that_describes_an_architecture_passes(content: dict[str, Any]):
    _refuse_sources(content, Path("config.json"))


@pytest.mark.threat(
    "A link out of a Hugging Face folder",
    "refused; links within the hub's cache pass",
)
@pytest.mark.parametrize("name", ["config.json", *WEIGHTS])
def test_a_link_out_of_the_folder_is_refused(tmp_path: Path, name: str):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["BertModel"]}))
    if name == "config.json":
        (folder / name).unlink()
        torch.save({"a": torch.ones(1)}, folder / "pytorch_model.bin")
    torch.save({"a": torch.ones(1)}, tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    with pytest.raises(CheckpointError, match="A link points outside of the model's folder"):
        load(folder)
    assert folder / name not in files_of(folder)


def test_the_links_of_a_hub_cache_are_not_refused(tmp_path: Path):
    folder = tmp_path / "models--a--b" / "snapshots" / "0123"
    folder.mkdir(parents=True)
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir()
    (blobs / "abc").write_text(json.dumps({"architectures": ["NoSuchModel"]}))
    torch.save({"a": torch.ones(1)}, blobs / "def")
    (folder / "config.json").symlink_to("../../blobs/abc")
    (folder / "pytorch_model.bin").symlink_to("../../blobs/def")
    with pytest.raises(Exception, match="transformers"):
        load(folder)
    assert len(files_of(folder)) == 2


ACTIONS: list[Callable[[Path], Any]] = [
    lambda path: (path / "secret").read_text(),
    lambda path: (path / "model" / "link").read_text(),
    lambda path: (path / "model" / ".." / "secret").read_bytes(),
    lambda path: os.open(path / "secret", os.O_RDONLY),
    lambda path: (path / "new").write_text(""),
    lambda path: torch.load(path / "secret"),
    lambda path: socket.create_connection(("127.0.0.1", 9), 1),
    lambda path: socket.getaddrinfo("example.com", 80),
    lambda path: subprocess.run([sys.executable, "-c", ""]),
    lambda path: os.system("true"),
]


@pytest.mark.threat(
    "A library that opens a file, a connection or a process while it builds an untrusted folder's model",
    "PermissionError",
)
@pytest.mark.parametrize("act", ACTIONS, ids=map(str, range(len(ACTIONS))))
def test_what_a_library_opens_elsewhere_is_not_opened(tmp_path: Path, act: Callable[[Path], Any]):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "own").write_text("own")
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "model" / "link").symlink_to(tmp_path / "secret")
    with confined_to([tmp_path / "model"]):
        assert (tmp_path / "model" / "own").read_text() == "own"
        assert Path(str(json.__file__)).read_text()
        with pytest.raises(PermissionError):
            act(tmp_path)
    assert (tmp_path / "secret").read_text() == "secret"
    assert not (tmp_path / "new").exists()


@pytest.mark.threat("A `config.json` or an index that is nested without measure", "refused")
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("depth", [150, 600, 900, 100_000])
def test_json_that_is_nested_without_measure_is_refused(tmp_path: Path, name: str, depth: int):
    torch.save({"a": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    content = {"architectures": ["BertModel"], "weight_map": {"a": "pytorch_model.bin"}, "deep": "DEEP"}
    text = json.dumps(content).replace('"DEEP"', '{"a":' * depth + "1" + "}" * depth)
    for written in {"config.json", name}:
        (tmp_path / written).write_text(text if written == name else json.dumps(TIMM))
    with pytest.raises(CheckpointError, match=r"nested|recursion|JSON"):
        load(tmp_path / name if name.endswith("index.json") else tmp_path)
