"""Checkpoints that are folders: shards with an index, and Hugging Face's with a config.json."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from converter.checkpoint.load import load
from converter.errors import CheckpointError, ConversionError, UsageError

NET = """
from torch import nn

def build():
    first, second = nn.Linear(3, 4), nn.Linear(4, 4)
    second.weight = nn.Linear(4, 4).weight
    return nn.Sequential(first, second, nn.Linear(4, 2))
"""


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state dict in two shards, one of safetensors and one of torch.save, and what builds its network."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    place = tmp_path / "weights"
    place.mkdir()
    state = network().state_dict()
    shards = {"a.safetensors": list(state)[:4], "b.bin": list(state)[4:]}
    safetensors.torch.save_file({key: state[key] for key in shards["a.safetensors"]}, place / "a.safetensors")
    torch.save({key: state[key] for key in shards["b.bin"]}, place / "b.bin")
    write_index(place, {key: file for file, keys in shards.items() for key in keys})
    return place


def write_index(folder: Path, table: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))


def change(folder: Path, key: str, file: str) -> None:
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"][key] = file
    index.write_text(json.dumps(content))


@pytest.mark.parametrize("given", ["weights", "weights/model.safetensors.index.json"])
def test_shards_are_one_state_dict(folder: Path, given: str):
    checkpoint = load(given, factory="net.py:build")
    assert checkpoint.module is not None
    x = torch.randn(2, 3)
    assert torch.equal(checkpoint.module(x), network()(x))
    before = checkpoint.sha256
    (folder / "a.safetensors").write_bytes((folder / "a.safetensors").read_bytes()[:-1] + b"\x01")
    assert load(given, factory="net.py:build").sha256 != before


def _link(folder: Path) -> None:
    (folder / "b.bin").rename(folder.parent / "b.bin")
    (folder / "b.bin").symlink_to(folder.parent / "b.bin")


BAD_INDEXES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "leads up": (lambda f: change(f, "0.weight", "../../etc/passwd"), "points outside of its folder"),
    "leads to the root": (lambda f: change(f, "0.weight", "/etc/passwd"), "points outside of its folder"),
    "leads into a folder": (lambda f: change(f, "0.weight", "inner/a.safetensors"), "points outside of its folder"),
    "leads out by a link": (_link, "points outside of its folder"),
    "a name without end": (lambda f: change(f, "0.weight", "x" * 10_000), "points outside of its folder"),
    "names a hidden file": (lambda f: change(f, "0.weight", ".a"), "points outside of its folder"),
    "names what is missing": (lambda f: (f / "b.bin").unlink(), "1 of 2 weight files are missing: b.bin"),
    "wrong about a file": (
        lambda f: change(f, "0.weight", "b.bin"),
        "wrong about a.safetensors: 0.weight",
    ),
    "names itself": (lambda f: change(f, "0.weight", "model.safetensors.index.json"), "wrong about"),
    "names only itself": (
        lambda f: write_index(f, {"0.weight": "model.safetensors.index.json"}),
        "names another index",
    ),
    "no names": (lambda f: change(f, "0.weight", 3), "does not have a table"),
    "empty": (lambda f: write_index(f, {}), "names 0 files"),
    "names too many": (lambda f: write_index(f, {str(i): f"{i}.bin" for i in range(10_001)}), "names 10001 files"),
}


@pytest.mark.parametrize("spoil, text", BAD_INDEXES.values(), ids=BAD_INDEXES)
def test_bad_indexes_are_refused(folder: Path, spoil: Callable[[Path], Any], text: str):
    spoil(folder)
    with pytest.raises(CheckpointError) as error:
        load("weights", factory="net.py:build")
    assert text in str(error.value)
    assert error.value.fix


def test_links_of_the_hubs_cache_are_followed(folder: Path):
    cache = folder.parent / "models--a--b"
    (cache / "blobs").mkdir(parents=True)
    (cache / "snapshots/1").mkdir(parents=True)
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(cache / "blobs" / str(number))
        (cache / "snapshots/1" / file.name).symlink_to(cache / "blobs" / str(number))
    assert load(cache / "snapshots/1", factory="net.py:build").module is not None


def test_weights_that_are_one_may_be_kept_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As safetensors does with tied weights; a weight that is missing is missing all the same."""
    monkeypatch.chdir(tmp_path)
    Path("tied.py").write_text(
        "from torch import nn\ndef build():\n    a, b = nn.Linear(3, 3), nn.Linear(3, 3)\n    b.weight = a.weight\n"
        "    return nn.Sequential(a, b)\n"
    )
    torch.manual_seed(0)
    state = {"0.weight": torch.randn(3, 3), "0.bias": torch.randn(3), "1.bias": torch.randn(3)}
    safetensors.torch.save_file(state, "tied.safetensors")
    module: Any = load("tied.safetensors", factory="tied.py:build").module
    assert torch.equal(module[1].weight, state["0.weight"])
    del state["1.bias"]
    safetensors.torch.save_file(state, "tied.safetensors")
    with pytest.raises(CheckpointError, match=r"1\.bias"):
        load("tied.safetensors", factory="tied.py:build")


# -- Hugging Face

CONFIG: dict[str, Any] = {
    "architectures": ["BertModel"], "model_type": "bert", "hidden_size": 24, "num_hidden_layers": 1,
    "num_attention_heads": 2, "intermediate_size": 40, "vocab_size": 50, "max_position_embeddings": 16,
}  # fmt: skip


def write_config(folder: Path, **changes: Any) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))


BAD_CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "requires its own code": ({"auto_map": {"AutoModel": "modeling_net.Net"}}, "requires its own code"),
    "requires its own code, further inside": ({"text_config": {"auto_map": {}}}, "requires its own code"),
    "no architecture": ({"architectures": None}, "does not name its architecture"),
    "an architecture that is no name": ({"architectures": [{"a": 1}]}, "does not name its architecture"),
    "layers without end": ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000"),
    "layers without end, further inside": ({"vision_config": {"depths": [2, 10**8]}}, "depths = 100000000"),
    "quantized": ({"quantization_config": {"bits": 4}}, "quantized"),
}


@pytest.mark.parametrize("changes, text", BAD_CONFIGS.values(), ids=BAD_CONFIGS)
def test_bad_configs_are_refused_before_transformers_is_asked(tmp_path: Path, changes: dict[str, Any], text: str):
    write_config(tmp_path, **changes)
    torch.save({"a": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError) as error:
        load(tmp_path)
    assert text in str(error.value)
    assert error.value.fix


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"[" * 10**6, b"\xff\xfe"], ids=range(5))
def test_a_damaged_config_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / "config.json").write_bytes(content)
    torch.save({"a": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load(tmp_path)


def test_without_transformers_its_folders_ask_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    write_config(tmp_path)
    torch.save({"a": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UsageError, match="transformers cannot be imported"):
        load(tmp_path)
    with pytest.raises(UsageError, match="transformers cannot be imported"):
        load(tmp_path / "pytorch_model.bin", factory=f"hf:{tmp_path}")
    with pytest.raises(UsageError, match=r"nowhere/config\.json does not exist"):
        load(tmp_path / "pytorch_model.bin", factory="hf:nowhere")


@pytest.fixture
def transformers(torchvision: Any) -> Any:
    """It imports torchvision, if that is there."""
    return pytest.importorskip("transformers")


@pytest.fixture
def bert(transformers: Any) -> nn.Module:
    torch.manual_seed(0)
    return transformers.BertModel(transformers.BertConfig.from_dict(CONFIG)).eval()


def words() -> torch.Tensor:
    return torch.arange(18).view(2, 9)


def test_hugging_face_folders_in_every_form(tmp_path: Path, transformers: Any, bert: Any):
    bert.save_pretrained(tmp_path / "one")
    bert.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    write_config(tmp_path / "pickled")
    torch.save(bert.state_dict(), tmp_path / "pickled/pytorch_model.bin")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    expected = bert(words()).last_hidden_state
    bert.half().save_pretrained(tmp_path / "half")
    for name in ("one", "shards", "pickled", "half"):
        checkpoint = load(tmp_path / name)
        assert checkpoint.module is not None
        bound = 1e-2 if name == "half" else 0
        assert (checkpoint.module(words()).last_hidden_state - expected).abs().max() <= bound
        assert "Built BertModel from config.json." in map(str, checkpoint.notes)
        assert any("float16" in note.text for note in checkpoint.notes) is (name == "half")
    state = load(tmp_path / "pickled/pytorch_model.bin", factory=f"hf:{tmp_path / 'one'}").module
    assert state is not None
    assert torch.equal(state(words()).last_hidden_state, expected)


def test_hugging_face_folders_that_do_not_fit(tmp_path: Path, transformers: Any, bert: Any):
    bert.save_pretrained(tmp_path / "one")
    rows: dict[str, tuple[dict[str, Any], str]] = {
        "more layers than weights": ({"num_hidden_layers": 2}, "keys missing in the file (16)"),
        "other sizes": ({"intermediate_size": 44}, "do not fit"),
        "unknown architecture": ({"architectures": ["BertModle"]}, "no model 'BertModle'"),
        "no model": ({"architectures": ["AutoConfig"]}, "does not have a model 'AutoConfig'"),
        "a size without measure": ({"vocab_size": 10**12}, "elements, but the files have"),
        "a size that is none": ({"hidden_size": "x"}, "transformers cannot build the model"),
        "an activation that is none": ({"hidden_act": "eval"}, "transformers cannot build the model"),
    }
    for name, (changes, text) in rows.items():
        write_config(tmp_path / "one", **changes)
        with pytest.raises(CheckpointError) as error:
            load(tmp_path / "one")
        assert text in str(error.value), name


OPENS_A_PROGRAM = """
import sys, torch
from converter.checkpoint.load import load

assert isinstance(outputs := load("bert.pt2").program.module()(torch.load("words.pt")), dict)
torch.save(outputs, "outputs.pt")
assert "transformers" not in sys.modules
"""


def test_an_exported_model_opens_without_transformers(
    tmp_path: Path, bert: Any, repository: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    torch.export.save(torch.export.export(bert, (words(),)), "bert.pt2")
    torch.save(words(), "words.pt")
    environment = os.environ | {"PYTHONPATH": str(repository)}
    subprocess.run([sys.executable, "-P", "-c", OPENS_A_PROGRAM], env=environment, check=True)
    outputs, expected = torch.load("outputs.pt"), bert(words())
    assert list(outputs) == list(expected)
    for name, value in outputs.items():
        assert torch.equal(value, expected[name])


@pytest.fixture
def pretraining(transformers: Any) -> nn.Module:
    """The layout of the most downloaded encoder: weights of two heads, of which the class that is named has one."""
    torch.manual_seed(0)
    return transformers.BertForPreTraining(transformers.BertConfig.from_dict(CONFIG)).eval()


POOLER = ["bert.pooler.dense.bias", "bert.pooler.dense.weight"]
NEXT_SENTENCE = ["cls.seq_relationship.bias", "cls.seq_relationship.weight"]


def test_weights_that_the_class_does_not_use_are_noted(tmp_path: Path, pretraining: Any, bert: Any):
    pretraining.save_pretrained(tmp_path / "all")
    state = safetensors.torch.load_file(tmp_path / "all/model.safetensors")
    assert "cls.predictions.decoder.weight" not in state  # tied to the embedding
    write_config(tmp_path / "all", architectures=["BertForMaskedLM"])
    checkpoint = load(tmp_path / "all")
    assert checkpoint.module is not None
    assert torch.equal(checkpoint.module(words()).logits, pretraining(words()).prediction_logits)
    unused = ", ".join(f"`{key}`" for key in [*POOLER, *NEXT_SENTENCE])
    assert f"BertForMaskedLM does not use 4 keys ({unused})." in map(str, checkpoint.notes)
    dropped = load(tmp_path / "all", drop_keys=["*.pooler.*", "cls.seq_relationship.*", "nothing.*"])
    assert dropped.module is not None
    assert torch.equal(dropped.module(words()).logits, pretraining(words()).prediction_logits)
    assert not any(note.code == "PTC1503" for note in dropped.notes)
    assert "--drop-keys nothing.* does not match any key." in map(str, dropped.notes)
    # The encoder alone: the prefix of the class with a head is dropped. And added, where what is missing is the head's.
    write_config(tmp_path / "all")
    encoder = load(tmp_path / "all")
    assert encoder.module is not None
    assert torch.equal(encoder.module(words()).pooler_output, pretraining.bert(words()).pooler_output)
    assert any("BertModel does not use 7 keys" in note.text for note in encoder.notes)
    bert.save_pretrained(tmp_path / "encoder")
    write_config(tmp_path / "encoder", architectures=["BertForMaskedLM"])
    with pytest.raises(CheckpointError, match=r"(?s)missing in the file \(6\):\s+cls\.predictions\.bias") as error:
        load(tmp_path / "encoder")
    assert "bert." not in str(error.value)


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_state_dicts_fit_into_a_folders_class_as_its_own_weights_do(tmp_path: Path, pretraining: Any, prefix: str):
    write_config(tmp_path / "hf", architectures=["BertForMaskedLM"])
    torch.save({f"{prefix}{key}": value for key, value in pretraining.state_dict().items()}, tmp_path / "all.pt")
    checkpoint = load(tmp_path / "all.pt", factory=f"hf:{tmp_path / 'hf'}")
    assert checkpoint.module is not None
    assert torch.equal(checkpoint.module(words()).logits, pretraining(words()).prediction_logits)
    assert any("`cls.seq_relationship.bias`" in note.text and "does not use" in note.text for note in checkpoint.notes)
    assert any(note.code == "PTC1511" for note in checkpoint.notes) is bool(prefix)
    with pytest.raises(CheckpointError, match=r"bert\.embeddings\.LayerNorm\.bias"):
        load(tmp_path / "all.pt", factory=f"hf:{tmp_path / 'hf'}", drop_keys=["*.LayerNorm.bias"])


def test_code_of_a_folder_runs_only_with_trust(tmp_path: Path, transformers: Any, bert: Any):
    bert.save_pretrained(tmp_path / "own")
    (tmp_path / "own/modeling_own.py").write_text(
        f"import pathlib\npathlib.Path({str(tmp_path / 'executed')!r}).touch()\n"
        "from transformers import BertModel\nclass Own(BertModel):\n    pass\n"
    )
    write_config(tmp_path / "own", architectures=["Own"], auto_map={"AutoModel": "modeling_own.Own"})
    with pytest.raises(ConversionError, match="--trust hf"):
        load(tmp_path / "own")
    assert not (tmp_path / "executed").exists()
    module = load(tmp_path / "own", trust=["hf"]).module
    assert type(module).__name__ == "Own"
    assert (tmp_path / "executed").exists()
