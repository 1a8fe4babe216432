import argparse
import array
import contextlib
import datetime
import enum
import importlib.metadata
import io
import ipaddress
import json
import os
import random
import re
import shutil
import subprocess
import sys
import types
import uuid
import zipfile
import zoneinfo
from collections import ChainMap, Counter, OrderedDict, UserDict, defaultdict, deque, namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import partial
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any

import hostile_checkpoints as hostile
import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.prune import l1_unstructured
from torch.optim.swa_utils import AveragedModel
from torch.utils import _pytree as pytree

import converter
from converter.artifacts.runtime.stamp import read_stamp
from converter.batch.jobs import work_list
from converter.capture.import_exported import from_exported
from converter.checkpoint.file_format import Format
from converter.checkpoint.import_isolation import user_code
from converter.checkpoint.load import load
from converter.checkpoint.pickle_loader import load_pickled
from converter.checkpoint.state_dict import load_into
from converter.checkpoint.symbolic_expressions import is_size_expression
from converter.checkpoint.trust import Trust
from converter.errors import CheckpointError, ConversionError, UsageError

OWN_MODULE = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, width=4, activation=torch.relu):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.norm = nn.BatchNorm2d(width)
        self.activation = activation
    def forward(self, x):
        return self.activation(self.norm(self.conv(x)))

def small(width=4):
    return Block(width)

def broken(width=4):
    raise KeyError("no such width")

def nothing():
    return 3

ready = Block()

def without_numbers():
    with torch.device("meta"):
        return Block()

def on_the_gpu():
    return Block().to("cuda")

def with_more():
    return Block(), "preprocessing"

def compiled():
    return torch.compile(nn.DataParallel(Block()))

class Trainer:
    def model(self):
        return Block()
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current directory; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", "") or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def marker(here: Path) -> Path:
    """Exists once a payload has run."""
    return here / "executed"


def stock_model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4), activation=nn.SiLU()))
    model.norm.running_mean.normal_()
    return model


def block_in(folder: Path, package: str = "own_model") -> nn.Module:
    """A module of a user's class, which is importable from the folder only."""
    (folder / f"{package}.py").write_text(OWN_MODULE)
    with user_code(folder, names=[package]):
        return __import__(package).Block()


def forget(package: str) -> None:
    sys.modules.pop(package, None)


def same_function(module: nn.Module, reference: nn.Module, tolerance: float = 0) -> bool:
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return bool((module(x) - reference.float().eval()(x)).abs().max() <= tolerance)


def pruned(model: nn.Module) -> nn.Module:
    l1_unstructured(model.conv, "weight", 0.4)
    return model


SAVES: dict[str, tuple[Callable[[nn.Module], Any], dict[str, Any], str | None]] = {
    "module": (lambda m: m, {}, None),
    "module, before 1.6": (lambda m: m, {"_use_new_zipfile_serialization": False}, None),
    "module, pickle protocol 4": (lambda m: m, {"pickle_protocol": 4}, None),
    "module, before 1.6, pickle protocol 4": (
        lambda m: m,
        {"_use_new_zipfile_serialization": False, "pickle_protocol": 4},
        None,
    ),
    "YOLO checkpoint": (lambda m: {"epoch": 3, "model": None, "ema": m, "opt": {"lr": 0.1}}, {}, "Took `ema`"),
    "YOLO checkpoint without averaged weights": (lambda m: {"ema": None, "model": m}, {}, "Took `model`"),
    "YOLO checkpoint before 1.6": (
        lambda m: {"ema": m, "model": nn.Linear(1, 1)},
        {"_use_new_zipfile_serialization": False},
        "ignored `model`",
    ),
    "half precision": (lambda m: m.half(), {}, "Converted weights from float16 to float32"),
    "bfloat16": (lambda m: m.bfloat16(), {}, "Converted weights from bfloat16 to float32"),
    "float64": (lambda m: m.double(), {}, "Converted weights from float64 to float32"),
    "DataParallel": (nn.DataParallel, {}, "DataParallel"),
    "torch.compile": (torch.compile, {}, "torch.compile's wrapper"),
    "torch.compile within DataParallel": (lambda m: nn.DataParallel(torch.compile(m)), {}, "torch.compile's wrapper"),
    "a compiled part": (lambda m: nn.Sequential(torch.compile(m)), {}, None),
    "AveragedModel": (AveragedModel, {}, "AveragedModel"),
    "pruned": (pruned, {}, None),
    "a list of one": (lambda m: [m, {"epoch": 3}], {}, "the only model in a list of 2 items"),
    "metadata of dates and numbers": (
        lambda m: {"model": m, "saved": datetime.date(2024, 2, 29), "at": datetime.time(3), "rate": Decimal("0.1")},
        {},
        "Took `model`",
    ),
    "metadata of numpy, argparse, pathlib": (
        lambda m: {
            "model": m,
            "fitness": np.float64(0.5),
            "history": np.arange(3.0),
            "where": Path("runs/1"),
            "counts": defaultdict(list, a=[1]),
        },
        {},
        "Took `model`",
    ),
}


@pytest.mark.parametrize("save, options, note", SAVES.values(), ids=SAVES)
def test_pickled_modules_load(here: Path, save: Callable, options: dict[str, Any], note: str | None):
    model = stock_model()
    torch.save(save(model), here / "model.bin", **options)
    checkpoint = load(here / "model.bin")
    assert checkpoint.kind == "module"
    assert checkpoint.module is not None
    assert not checkpoint.module.training
    assert {tensor.dtype for tensor in checkpoint.module.parameters()} == {torch.float32}
    assert same_function(checkpoint.module, model)
    assert (note is None and not checkpoint.notes) or any(note in text.text for text in checkpoint.notes)
    assert len(checkpoint.sha256) == 64


class Mode(enum.Enum):
    FAST = "fast"

    def __reduce_ex__(self, protocol: Any) -> tuple:
        return getattr, (Mode, self.name)  # as Python 3.11 saves an enumeration by name

    __module__ = "omegaconf.dictconfig"


# What people put beside weights, and whether the report names it as left aside.
VALUES: dict[str, tuple[Any, str | None]] = {
    "version of torch": (torch.__version__, None),
    "parts of tensors": (
        [
            torch.Size([2]), torch.device("cpu"), torch.float16, torch.strided,
            torch.per_tensor_affine,
        ],
        None,
    ),
    "random states": ([torch.get_rng_state(), np.random.get_state(), random.getstate()], None),
    "generator": (torch.Generator(), "Generator"),
    "numbers of numpy": (
        [np.float32(1.5), np.int64(3), np.bool_(True), np.str_("a"), np.complex64(1j), np.float16(2), np.float32], None,
    ),
    "types and times of numpy": (
        [np.dtype("float32"), np.dtype(">i4"), np.dtype("M8[ns]"), np.datetime64("2024-02-29"), np.timedelta64(3, "D")],
        None,
    ),
    "paths": ([Path("a/b"), PurePosixPath("c"), PureWindowsPath("c:/d")], None),
    "dates": (
        [
            datetime.datetime(2024, 2, 29, tzinfo=datetime.UTC), datetime.date(2024, 2, 29), datetime.time(3),
            datetime.timedelta(1, 2, 3), datetime.timezone(datetime.timedelta(hours=2)),
        ],
        None,
    ),
    "time zone": (zoneinfo.ZoneInfo("UTC"), "zoneinfo.ZoneInfo"),
    "dictionaries": (
        [
            OrderedDict(a=1), Counter("aab"), ChainMap({"a": 1}), UserDict(a=1),
            *(defaultdict(kind) for kind in (None, list, tuple, bool, deque, Counter, OrderedDict, frozenset)),
            defaultdict(partial(defaultdict, int)),
        ],
        None,
    ),
    "collections": (
        [deque([1, 2], 5), deque([3]), {1, 2}, frozenset({3}), slice(1, 2), range(9), ..., type(None)], None,
    ),
    "arrays of numpy": (
        [np.arange(6.0).reshape(2, 3), np.asfortranarray(np.eye(2)), np.zeros((0, 3)), np.array("ab"), np.ones(())],
        None,
    ),
    "array of a class of its own": (np.ma.array([1, 2], mask=[0, 1]), "numpy.ma"),
    "matrix": (np.matrix([[1, 2]]), "numpy.matrix"),
    "sparse tensor": (torch.eye(3).to_sparse(), "_rebuild_sparse_tensor"),
    "bytes": ([b"\x00\xff", bytearray(b"\x01\xfe"), bytearray()], None),
    "exact numbers": ([Decimal("1.5"), Fraction(1, 3), 1 + 2j, uuid.UUID(int=7)], None),
    "namespaces": ([argparse.Namespace(a=1, b=Path("x")), types.SimpleNamespace(a=[1])], None),
    "member of an unknown enumeration": (Mode.FAST, "omegaconf.dictconfig.Mode"),
    "address and pattern": (
        [ipaddress.ip_address("10.0.0.1"), re.compile("a.*"), array.array("f", [1.0])], "re._compile",
    ),
}  # fmt: skip


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("value, left_aside", VALUES.values(), ids=VALUES)
def test_plain_values_beside_weights_are_data(
    here: Path, value: Any, left_aside: str | None, zipped: bool, protocol: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys.modules["omegaconf.dictconfig"], "Mode", Mode, raising=False)
    block = block_in(here)
    content = {"state_dict": block.state_dict(), "value": value, "nested": {"config": [value]}}
    torch.save(content, "model.pt", _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    checkpoint = load("model.pt", factory="own_model:Block")
    assert checkpoint.module is not None
    assert same_function(checkpoint.module, block)
    assert "Took `state_dict` from the training checkpoint." in map(str, checkpoint.notes)
    named = [note.text for note in checkpoint.notes if note.code == "PTC1514"]
    assert (not named) if left_aside is None else (left_aside in named[0])


def test_a_memory_format_beside_weights_is_data(here: Path):
    """Older protocols of pickle cannot save it."""
    content = {"state_dict": block_in(here).state_dict(), "memory_format": torch.channels_last}
    torch.save(content, "model.pt", pickle_protocol=4)
    (note,) = load("model.pt", factory="own_model:Block").notes
    assert note.text == "Took `state_dict` from the training checkpoint."


def test_plain_values_are_read_as_they_were_saved(here: Path):
    """By our own unpickler; a generator, which is of no use, is left aside."""
    kinds = ("bytes", "exact numbers", "types and times of numpy", "numbers of numpy", "paths", "collections", "dates")
    saved = [VALUES[kind][0] for kind in kinds]
    torch.save([saved, torch.Generator()], "model.pt")
    content, refused, left_aside = load_pickled(here / "model.pt", Format.ZIP, Trust.of(()))
    assert refused is None
    assert any("Generator" in name for name in left_aside)
    for read, value in zip(content[0], saved, strict=True):
        assert [type(one) for one in read if not isinstance(one, PurePath)] == [
            type(one) for one in value if not isinstance(one, PurePath)
        ]
        assert [str(one) for one in read] == [str(one) for one in value]


@pytest.mark.parametrize("order", "<>=")
@pytest.mark.parametrize("kind", ["f4", "f8", "f2"])
def test_weights_in_arrays_of_either_byte_order_are_the_same(here: Path, order: str, kind: str):
    block = block_in(here)
    state = {name: value.numpy() for name, value in block.state_dict().items()}
    arrays = {
        name: value.astype(f"{order}{kind}") if value.dtype.kind == "f" else value for name, value in state.items()
    }
    torch.save({"model": arrays}, "model.pt")
    checkpoint = load("model.pt", factory="own_model:Block")
    assert checkpoint.module is not None
    assert same_function(checkpoint.module, block, 3e-2 if kind == "f2" else 0)


@pytest.mark.parametrize(
    "module",
    [
        pytest.param(nn.TransformerEncoderLayer(8, 2, activation=F.gelu), id="activation kept as a builtin function"),
        pytest.param(nn.TransformerEncoderLayer(8, 2, activation=torch.relu), id="activation kept as torch.relu"),
        pytest.param(nn.LSTM(3, 4, 2, bidirectional=True), id="lists of weight names"),
        pytest.param(nn.MultiheadAttention(8, 2), id="own __setstate__"),
        pytest.param(nn.ParameterDict({"a": torch.ones(2)}), id="parameter dict"),
        pytest.param(nn.utils.spectral_norm(nn.Linear(3, 4)), id="spectral norm by hooks"),
        pytest.param(nn.Sequential(nn.ModuleDict({"a-b": nn.ModuleList([nn.Linear(1, 1)])})), id="nested containers"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
def test_what_torch_modules_keep_is_allowed(here: Path, module: nn.Module, zipped: bool):
    torch.save(module, "model.pt", _use_new_zipfile_serialization=zipped)
    loaded = load(here / "model.pt").module
    assert loaded is not None
    for (name, value), (own_name, own) in zip(module.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert name == own_name
        assert torch.equal(value, own)


def test_partial_functions_of_torch_are_allowed(here: Path):
    model = stock_model()
    model.norm_layer = partial(nn.LayerNorm, eps=1e-6)
    torch.save(model, "model.pt")
    loaded = load("model.pt").module
    assert loaded is not None
    assert loaded.norm_layer(4).eps == 1e-6


class Foreign(dict):
    """Of a package that is not there when the file is read."""

    __module__ = "omegaconf.dictconfig"

    def __reduce__(self) -> tuple:
        return Foreign, (dict(self),), {"parent": None}, None, iter([("lr", 0.1)])


@pytest.fixture(autouse=True)
def _foreign(monkeypatch: pytest.MonkeyPatch):
    """So that it can be pickled; nothing finds the package when it is read."""
    for name in ("omegaconf", "omegaconf.dictconfig"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["omegaconf.dictconfig"].Foreign = Foreign  # type: ignore[attr-defined]


# By the names of the parameters, as FSDP saves it.
STATE_OF_ADAM = {"state": {"conv.weight": {"step": torch.ones(())}}, "param_groups": [{"lr": 0.1}]}

STATE_DICTS: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str | None]] = {
    "plain": (lambda s: s, None),
    "in `state_dict`": (lambda s: {"epoch": 1, "state_dict": s}, "Took `state_dict`"),
    "in `model_state_dict`": (lambda s: {"model_state_dict": s, "optimizer": {}}, "Took `model_state_dict`"),
    "in `model`, nested": (lambda s: {"model": {"state_dict": s, "best": 0.1}}, "Took `state_dict`"),
    "under a name of its own": (lambda s: {"generator_a": s, "step": 1}, "Took `generator_a`"),
    "of DistributedDataParallel": (lambda s: {f"module.{k}": v for k, v in s.items()}, "Dropped the prefix `module.`"),
    "of torch.compile": (lambda s: {f"_orig_mod.{k}": v for k, v in s.items()}, "Dropped"),
    "of Lightning": (lambda s: {"state_dict": {f"model.{k}": v for k, v in s.items()}}, "Dropped the prefix `model.`"),
    "of Lightning, by another attribute": (lambda s: {"state_dict": {f"net.{k}": v for k, v in s.items()}}, "`net.`"),
    "of Lightning, hyper-parameters of another package": (
        lambda s: {
            "state_dict": {f"model.{k}": v for k, v in s.items()},
            "hyper_parameters": Foreign({"lr": 0.1, "inner": [Foreign({})]}),
            "callbacks": {"ModelCheckpoint": {"best": np.float64(0.5), "dirpath": Path("a")}},
        },
        "Ignored objects of unknown classes",
    ),
    "in `ema`, before the others": (
        lambda s: {"state_dict": {k: v * 0 for k, v in s.items()}, "ema": s, "epoch": 3},
        "Took `ema`",
    ),
    "averaged weights only": (lambda s: {f"ema.{k}": v for k, v in s.items()}, "Dropped the prefix `ema.`"),
    "averaged weights beside others": (
        lambda s: {**{f"model.{k}": v * 0 for k, v in s.items()}, **{f"ema.module.{k}": v for k, v in s.items()}},
        "Took the averaged weights; ignored 7 keys without `ema.`",
    ),
    "bfloat16": (
        lambda s: {k: v.bfloat16() if v.is_floating_point() else v for k, v in s.items()},
        "Converted weights from bfloat16 to float32",
    ),
    "float64": (
        lambda s: {k: v.double() if v.is_floating_point() else v for k, v in s.items()},
        "Converted weights from float64 to float32",
    ),
    "in a dictionary of any name": (lambda s: {"trainer": {"net": s}, "optimizer": STATE_OF_ADAM}, "Took `trainer`"),
    "beside numbers and texts": (
        lambda s: {**s, "epoch": 3, "arch": "small", "best": None},
        "Ignored entries that are not tensors: `epoch`, `arch`, `best`",
    ),
    "in numpy arrays": (lambda s: {"model": {k: v.numpy() for k, v in s.items()}, "author": "a"}, "Took `model`"),
    "of a part of another model": (lambda s: {f"teacher.backbone.{k}": v for k, v in s.items()}, "`teacher.backbone.`"),
    "beside a loss and metrics": (
        lambda s: {**{f"net.{k}": v for k, v in s.items()}, "loss.weight": torch.ones(5), "accuracy.n": torch.ones(())},
        "Took the keys under `net.`; ignored 2 others",
    ),
    "of AveragedModel": (
        lambda s: {"n_averaged": torch.tensor(3), **{f"module.{k}": v for k, v in s.items()}},
        "Took the keys under `module.`; ignored 1 others",
    ),
    "first of two": (lambda s: (s, STATE_OF_ADAM), "the only model in a tuple of 2 items"),
    "of all three": (lambda s: {f"model._orig_mod.module.{k}": v for k, v in s.items()}, "Dropped the prefix `model.`"),
    "half precision": (
        lambda s: {k: v.half() if v.is_floating_point() else v for k, v in s.items()},
        "Converted weights from float16 to float32",
    ),
}


@pytest.mark.parametrize("wrap, note", STATE_DICTS.values(), ids=STATE_DICTS)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
def test_state_dicts_load_into_what_the_factory_builds(here: Path, wrap: Callable, note: str | None, zipped: bool):
    block = block_in(here)
    torch.save(wrap(block.state_dict()), "weights.pt", _use_new_zipfile_serialization=zipped)
    checkpoint = load("weights.pt", factory="own_model:Block")
    assert checkpoint.kind == "state dict"
    assert checkpoint.module is not None
    assert same_function(checkpoint.module, block, 3e-2 if "float16" in str(note) else 0)
    assert (note is None and not checkpoint.notes) or any(note in text.text for text in checkpoint.notes)


TRAINING_ONLY = {"head.fc.weight": torch.ones(5), "head.fc.bias": torch.ones(5), "aux": torch.ones(2)}


@pytest.mark.parametrize("prefix", ["", "module.", "net."])
def test_keys_that_the_model_does_not_have_are_dropped_on_request(here: Path, prefix: str):
    block = block_in(here)
    state = {f"{prefix}{name}": value for name, value in {**block.state_dict(), **TRAINING_ONLY}.items()}
    torch.save(state, "weights.pt")
    with pytest.raises(CheckpointError) as error:
        load("weights.pt", factory="own_model:Block")
    assert "--drop-keys 'head.*' --drop-keys 'aux'" in (error.value.fix or "")
    checkpoint = load("weights.pt", factory="own_model:Block", drop_keys=["head.*", "aux", "other.*"])
    assert checkpoint.module is not None
    assert same_function(checkpoint.module, block)
    texts = [note.text for note in checkpoint.notes]
    assert "--drop-keys left out 3 keys (`head.fc.weight`, `head.fc.bias`, `aux`)." in texts
    assert "--drop-keys other.* does not match any key." in texts
    by_their_names = [f"{prefix}head.*", f"{prefix}aux"]
    named = load("weights.pt", factory="own_model:Block", drop_keys=by_their_names).module
    assert named is not None
    assert same_function(named, block)
    with pytest.raises(CheckpointError, match=r"missing from the file \(1\):\s+conv\.bias"):
        load("weights.pt", factory="own_model:Block", drop_keys=["head.*", "aux", "*conv.bias"])


@pytest.mark.slow
def test_every_command_drops_keys_and_verify_knows_them(here: Path):
    torch.save({**block_in(here).state_dict(), **TRAINING_ONLY}, "weights.pt")
    options: dict[str, Any] = {"factory": "own_model:Block", "input_shapes": ["1,3,8,8"]}
    drop_keys = ["head.*", "aux"]
    with pytest.raises(CheckpointError, match="does not have"):
        converter.inspect("weights.pt", **options)
    notes = converter.inspect("weights.pt", **options, drop_keys=drop_keys).notes
    report = converter.convert("weights.pt", to=["onnx"], output="net.onnx", **options, drop_keys=drop_keys)
    assert report.artifacts[0].status == "verified"
    assert all(any("3 keys" in note.text and "`aux`" in note.text for note in told) for told in (notes, report.notes))
    assert read_stamp(here / "net.onnx")["part"]["drop_keys"] == drop_keys  # type: ignore[index]
    assert converter.verify("weights.pt", "net.onnx", factory="own_model:Block").status == "verified"
    assert converter.verify("weights.pt", "net.onnx", weights=True, drop_keys=drop_keys).status == "verified"
    assert converter.verify("weights.pt", "net.onnx", weights=True).status != "verified"
    manifest = '[[models]]\npath = "weights.pt"\nmodel = "own_model:Block"\ndrop-keys = ["head.*", "aux"]\n'
    (here / "models.toml").write_text(manifest)
    (job,) = work_list(["models.toml"], ["onnx"], {"input_shapes": ["1,3,8,8"]})
    assert job.options["drop_keys"] == drop_keys


def test_keys_cannot_be_dropped_from_a_whole_model(here: Path):
    torch.save(stock_model(), "model.pt")
    assert "PTC1516" in [note.code for note in load("model.pt", drop_keys=["a"]).notes]


@pytest.mark.parametrize("place", ["cuda:0", "cuda:7", "mps", "xpu:0"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("whole", [True, False], ids=["module", "state dict"])
def test_tensors_saved_on_other_devices_come_to_the_processor(here: Path, place: str, zipped: bool, whole: bool):
    block, stock = block_in(here), stock_model()
    torch.save(stock if whole else block.state_dict(), "model.pt", _use_new_zipfile_serialization=zipped)
    moved = b"X" + len(place).to_bytes(4, "little") + place.encode()
    if zipped:
        hostile.edit_record(here / "model.pt", "data.pkl", lambda data: data.replace(b"X\x03\x00\x00\x00cpu", moved))
    else:
        (here / "model.pt").write_bytes((here / "model.pt").read_bytes().replace(b"X\x03\x00\x00\x00cpu", moved))
    module = load("model.pt", factory=None if whole else "own_model:Block").module
    assert module is not None
    assert same_function(module, stock if whole else block)


def test_files_of_a_newer_torch_say_so(here: Path):
    torch.save(stock_model().state_dict(), "model.pt")
    hostile.edit_record(here / "model.pt", "version", lambda _: b"77\n")
    with pytest.raises(CheckpointError, match="written by a newer PyTorch"):
        load("model.pt")
    instructions = hostile._global("torch._utils", "_rebuild_tensor_v9") + b")R."
    hostile.write_pickle(here / "model.pt", instructions)
    with pytest.raises(CheckpointError, match=r"(?s)_rebuild_tensor_v9.*this PyTorch does not have"):
        load("model.pt")


def test_a_module_with_objects_of_unknown_classes_is_refused(here: Path):
    """Only state dicts have no use for them."""
    torch.save({"model": stock_model(), "args": Foreign({})}, "model.pt")
    with pytest.raises(CheckpointError, match=r"(?s)omegaconf.dictconfig.Foreign.*--trust omegaconf"):
        load("model.pt")
    torch.save({"state_dict": {"a": Foreign({})}}, "model.pt")
    with pytest.raises(CheckpointError, match=r"(?s)omegaconf.dictconfig.Foreign.*--trust omegaconf"):
        load("model.pt")


def test_yolov5_without_its_code_tells_what_is_missing_and_how_to_supply_it(here: Path, marker: Path):
    (here / "models").mkdir()
    (here / "models/common.py").write_text(OWN_MODULE.replace("Block", "Conv"))
    (here / "models/yolo.py").write_text(
        "from torch import nn\nfrom models.common import Conv\nclass DetectionModel(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.model = nn.Sequential(Conv())\n"
        "    def forward(self, x):\n        return self.model(x)\n"
    )
    with user_code(here, names=["models.yolo"]):
        model = __import__("models.yolo").yolo.DetectionModel()
    torch.save({"epoch": -1, "ema": None, "model": model.half()}, "yolov5s.pt")
    assert load("yolov5s.pt", trust=["models"]).module is not None
    for name in ("models.yolo", "models.common", "models"):
        forget(name)
    shutil.rmtree(here / "models")
    with pytest.raises(CheckpointError) as refusal:
        load("yolov5s.pt")
    assert "models.yolo.DetectionModel\n    models.common.Conv" in refusal.value.what
    with pytest.raises(CheckpointError) as error:
        load("yolov5s.pt", trust=["models"])
    assert "the module models (not in the current directory" in error.value.what
    assert "for models.yolo.DetectionModel, models.common.Conv" in error.value.what
    for text in (str(refusal.value.fix), str(error.value.fix)):
        assert "git clone https://github.com/ultralytics/yolov5" in text


def test_safetensors_load_whatever_the_name(here: Path):
    block = block_in(here)
    safetensors.torch.save_file(block.state_dict(), "weights.pt")
    checkpoint = load("weights.pt", factory="own_model.py:small")
    assert checkpoint.module is not None
    assert same_function(checkpoint.module, block)


@pytest.mark.parametrize(
    "factory, arguments",
    [
        pytest.param("own_model:Block", {}, id="class in a module"),
        pytest.param("own_model.py:small", {"width": 4}, id="function in a file, with arguments"),
        pytest.param("own_model:ready", {}, id="module instance"),
        pytest.param("package.inner:Block", {}, id="class in a package"),
        pytest.param("own_model:compiled", {}, id="within torch.compile's wrapper and DataParallel"),
    ],
)
def test_factories(here: Path, factory: str, arguments: dict[str, Any]):
    block = block_in(here)
    (here / "package").mkdir()
    (here / "package/__init__.py").touch()
    shutil.copy("own_model.py", "package/inner.py")
    torch.save(block.state_dict(), "weights.pt")
    module = load("weights.pt", factory=factory, factory_args=arguments).module
    assert module is not None
    assert same_function(module, block)


def test_factory_beside_the_checkpoint(here: Path):
    (here / "elsewhere").mkdir()
    block = block_in(here / "elsewhere")
    torch.save(block.state_dict(), "elsewhere/weights.pt")
    forget("own_model")
    assert load("elsewhere/weights.pt", factory="own_model:Block").module is not None
    assert str(here / "elsewhere") not in sys.path


@pytest.mark.slow
def test_torchvision_factory_downloads_nothing(here: Path, torchvision: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: pytest.fail("downloads"))
    model = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)
    torch.save(model.state_dict(), "weights.pt")
    assert load("weights.pt", factory="torchvision:lraspp_mobilenet_v3_large").module is not None
    with pytest.raises(UsageError, match=r"Did you mean .*resnet50"):
        load("weights.pt", factory="torchvision:resnet51")


def test_torchvision_modules_need_no_trust(here: Path, torchvision: Any):
    model = torchvision.models.shufflenet_v2_x0_5(weights=None).eval()
    torch.save(model, "model.pt")
    loaded = load("model.pt").module
    x = torch.randn(1, 3, 64, 64)
    assert loaded is not None
    assert torch.equal(loaded(x), model(x))


class Exported(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4))
        self.scale = torch.full((1,), 2.0)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.features(x) * self.scale
        return {"a-b": torch.einsum("bchw,bc->bhw", y, y.mean((2, 3))), "flat": y.reshape(y.shape[0], -1)}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "model.pt2"
    shapes = {"x": {0: torch.export.Dim("batch", min=2, max=1024), 2: torch.export.Dim.AUTO}}
    program = torch.export.export(Exported().eval(), (torch.randn(2, 3, 17, 16),), dynamic_shapes=shapes)
    torch.export.save(program, path)
    return path


def test_exported_programs_load_without_trust(exported: Path):
    checkpoint = load(exported)
    assert checkpoint.kind == "exported program"
    assert checkpoint.program is not None
    x = torch.randn(5, 3, 21, 16)
    reference = torch.export.load(exported).module()(x)
    for name, value in checkpoint.program.module()(x).items():
        assert torch.equal(value, reference[name])


@pytest.mark.slow
def test_exported_programs_of_real_networks_pass_the_guard(here: Path, torchvision: Any):
    model = torchvision.models.mobilenet_v3_small(weights=None).eval()
    shapes = {"x": {0: torch.export.Dim("batch", min=1, max=64)}}
    torch.export.save(torch.export.export(model, (torch.randn(2, 3, 64, 64),), dynamic_shapes=shapes), "model.pt2")
    assert load("model.pt2").program is not None


@dataclass
class Pair:
    first: Tensor
    second: Tensor | None = None
    third: Tensor | None = None


Triple = namedtuple("Triple", "left middle right")


class Cache:
    def __init__(self, *held: Tensor):
        self.held = held


@contextlib.contextmanager
def known_to_export() -> Iterator[None]:
    """What a library does when it is imported; afterwards its classes are as those of one that is not installed."""
    pytree._register_namedtuple(Triple, serialized_type_name="strangers.Triple")
    pytree.register_dataclass(Pair, serialized_type_name="strangers.outputs.Pair")
    pytree._private_register_pytree_node(
        Cache,
        lambda cache: (list(cache.held), {"t": "obj", "p": "os:system", "s": {"held": "?"}}),
        lambda held, context: Cache(*held),
        serialized_type_name="strangers.Cache",
        flatten_with_keys_fn=lambda cache: ([(pytree.SequenceKey(i), x) for i, x in enumerate(cache.held)], None),
    )
    try:
        yield
    finally:
        for kind in (Pair, Triple, Cache):
            pytree._deregister_pytree_node(kind)


class Returning(nn.Module):
    def __init__(self, structure: Callable):
        super().__init__()
        self.structure = structure

    def forward(self, x: Tensor) -> Any:
        return self.structure(x + 1, x * 2, x - 3)


# What forward returns, the same in plain containers, and the outputs' names in an artifact.
STRUCTURES: dict[str, tuple[Callable, Callable, list[str]]] = {
    "data class": (Pair, lambda a, b, c: {"first": a, "second": b, "third": c}, ["first", "second", "third"]),
    "data class with a field that is None": (
        lambda a, b, c: Pair(a, third=c), lambda a, b, c: {"first": a, "third": c}, ["first", "third"],
    ),
    "data classes in a tuple": (
        lambda a, b, c: (Pair(b), [Pair(c, a)]),
        lambda a, b, c: ({"first": b}, [{"first": c, "second": a}]),
        ["output_0_first", "output_1_0_first", "output_1_0_second"],
    ),
    "named tuple": (Triple, lambda a, b, c: {"left": a, "middle": b, "right": c}, ["left", "middle", "right"]),
    "defaultdict": (
        lambda a, b, c: defaultdict(list, {"z": a, "y": b}), lambda a, b, c: {"z": a, "y": b}, ["z", "y"],
    ),
    "deque": (lambda a, b, c: deque([c, a], 4), lambda a, b, c: [c, a], ["output_0", "output_1"]),
    "class that keeps no names of fields": (Cache, lambda a, b, c: [a, b, c], ["output_0", "output_1", "output_2"]),
}  # fmt: skip


@pytest.mark.parametrize("structure, plain, names", STRUCTURES.values(), ids=STRUCTURES)
@pytest.mark.parametrize("trust", [[], ["pt2"]], ids=["guarded", "trusted"])
def test_classes_that_an_exported_program_returns_are_read_by_their_fields(
    here: Path, structure: Callable, plain: Callable, names: list[str], trust: list[str]
):
    with known_to_export():
        program = torch.export.export(Returning(structure), (torch.randn(2, 3),))
        torch.export.save(program, "model.pt2")
    loaded = load("model.pt2", trust=trust).program
    assert loaded is not None
    x = torch.randn(2, 3)
    returned, expected = loaded.module()(x), Returning(plain)(x)
    assert pytree.tree_structure(returned) == pytree.tree_structure(expected)
    torch.testing.assert_close(returned, expected, rtol=0, atol=0)
    assert from_exported(loaded).outputs == names
    with known_to_export():  # and the same where the library was imported
        again = load("model.pt2", trust=trust).program
        assert again is not None
        assert from_exported(again).outputs == names


def test_the_fields_of_a_class_cannot_lead_anywhere(here: Path, marker: Path):
    with known_to_export():
        torch.export.save(torch.export.export(Returning(Pair), (torch.randn(2, 3),)), "good.pt2")
    leaves = [{"type": None, "context": None, "children_spec": []}] * 3
    (here / "payload_module.py").write_text(f"open({str(marker)!r}, 'w')\nclass Kind: A = 1\n")
    enum_member = {"__enum__": True, "fqn": "payload_module:Kind", "name": "A"}
    factory = {"default_factory_module": "payload_module", "default_factory_name": "Kind", "dict_context": list("abc")}
    loads = {
        "a module in its fields": ("strangers.Pair", json.dumps([enum_member, "b", "c"]), True),
        "a class of the module": ("payload_module.Kind", json.dumps(list("abc")), True),
        "a factory of the module": ("collections.defaultdict", factory, True),
        "a field that ends its quotes": ("strangers.Pair", json.dumps(["a", "b", "c'+x+'"]), False),
        "a context that is none": ("strangers.Pair", "{", False),
        "a defaultdict without keys": ("collections.defaultdict", {"default_factory_module": "os"}, False),
        "a named tuple of a list": ("collections.namedtuple", [], False),
    }
    for name, (kind, context, is_read) in loads.items():
        shutil.copy("good.pt2", "model.pt2")
        text = json.dumps([1, {"type": kind, "context": context, "children_spec": leaves}])
        hostile.edit_program(here / "model.pt2", lambda program, text=text: hostile._spec(program, "out_spec", text))
        importable = user_code(here, names=["payload_module"])
        with importable, contextlib.nullcontext() if is_read else pytest.raises(CheckpointError):
            load("model.pt2")
        assert not marker.exists(), name


OPENS_OPERATORS = """
import sys, torch
from converter.checkpoint.load import load

for name in ("roi_align", "nms", "deform_conv2d"):
    program = load(f"{name}.pt2").program
    assert f"torchvision.{name}.default" in {str(node.target) for node in program.graph.nodes}
    torch.save(program.module()(*torch.load("inputs.pt")[name]), f"{name}.out")
"""


@pytest.mark.slow
def test_operators_of_torchvision_are_known_before_a_program_is_read(
    here: Path, torchvision: Any, environment_with_torchvision: dict[str, str], repository: Path, marker: Path
):
    ops = torchvision.ops
    torch.manual_seed(0)
    boxes = torch.rand(6, 4).cumsum(1) * 4
    image, offsets, weight = torch.randn(1, 3, 9, 8), torch.randn(1, 18, 7, 6), torch.randn(4, 3, 3, 3)
    rows: dict[str, tuple[Callable, tuple[Tensor, ...]]] = {
        "roi_align": (lambda x, rois: ops.roi_align(x, [rois], (3, 2)), (image, boxes)),
        "nms": (lambda boxes, scores: ops.nms(boxes, scores, 0.3), (boxes, torch.rand(6))),
        "deform_conv2d": (ops.deform_conv2d, (image, offsets, weight)),
    }
    for name, (function, inputs) in rows.items():
        torch.export.save(torch.export.export(Calling(function), inputs), f"{name}.pt2")
    torch.save({name: inputs for name, (_, inputs) in rows.items()}, "inputs.pt")
    (here / "torchvision.py").write_text(f"open({str(marker)!r}, 'w')\n")
    environment = environment_with_torchvision | {"PYTHONPATH": str(repository)}
    subprocess.run([sys.executable, "-P", "-c", OPENS_OPERATORS], env=environment, check=True)
    assert not marker.exists()
    for name, (function, inputs) in rows.items():
        assert torch.equal(torch.load(f"{name}.out"), function(*inputs)), name


def test_an_operator_whose_library_is_missing_names_it(here: Path, torchvision: Any, monkeypatch: pytest.MonkeyPatch):
    inputs = (torch.rand(6, 4).cumsum(1), torch.rand(6))
    program = torch.export.export(Calling(lambda boxes, scores: torchvision.ops.nms(boxes, scores, 0.3)), inputs)
    torch.export.save(program, "model.pt2")
    monkeypatch.delitem(sys.modules, "torchvision.ops")
    monkeypatch.setattr(importlib.metadata, "distribution", _not_installed)
    with pytest.raises(CheckpointError, match="torchvision, which cannot be imported") as error:
        load("model.pt2")
    assert "torchvision" in (error.value.fix or "")


def _not_installed(name: str) -> Any:
    raise importlib.metadata.PackageNotFoundError(name)


class Calling(nn.Module):
    def __init__(self, function: Callable):
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("build", hostile.OBJECTS.values(), ids=hostile.OBJECTS)
def test_hostile_objects_are_refused(here: Path, marker: Path, build: Callable, legacy: bool):
    hostile.write_object(here / "model.pt", build(marker), legacy=legacy)
    with pytest.raises(CheckpointError) as refusal:
        load(here / "model.pt")
    assert refusal.value.fix
    assert refusal.value.exit_status == 4
    assert not marker.exists()


def test_plain_attributes_under_the_names_of_methods_are_kept(here: Path):
    """Detectors set `type`, `f` and `i` on every layer, those of torch too."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    for number, layer in enumerate(model):
        vars(layer).update(f=-1, i=number, type=f"torch.nn.{type(layer).__name__}", half=[0, 1])
    torch.save(model, "model.pt")
    loaded = load("model.pt").module
    assert loaded is not None
    assert [(vars(layer)["type"], layer.i) for layer in loaded.children()] == [
        ("torch.nn.Conv2d", 0),
        ("torch.nn.ReLU", 1),
    ]
    assert same_function(loaded, model)


def test_trusted_functions_may_stand_for_methods_and_hooks_of_torch_modules(here: Path):
    (here / "own_model.py").write_text(
        "def doubled(module, x):\n    return 2 * x\ndef doubled_input(module, inputs):\n    return 2 * inputs[0]\n"
    )
    with user_code(here, names=["own_model"]):
        import own_model
    linear = nn.Linear(3, 3)
    linear.forward = partial(own_model.doubled, None)
    linear.register_forward_pre_hook(own_model.doubled_input)
    torch.save(linear, "model.pt")
    loaded = load("model.pt", trust=["own_model"]).module
    assert loaded is not None
    assert torch.equal(loaded(torch.ones(3)), torch.full((3,), 4.0))


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("name", hostile.PICKLES)
def test_hostile_instructions_are_refused(here: Path, marker: Path, name: str, legacy: bool):
    hostile.write_pickle(here / "model.pt", hostile.PICKLES[name](marker), legacy=legacy)
    with pytest.raises(CheckpointError) as refusal:
        load(here / "model.pt")
    if name not in hostile.BROKEN:
        assert "that are not trusted" in refusal.value.what or "models do not need" in refusal.value.what
    assert not marker.exists()
    assert not any(hasattr(thing, "polluted") for thing in (nn.Linear, Tensor, F.relu))


def test_the_builders_of_hostile_files_do_run_code(here: Path, marker: Path):
    """Without this, a payload that is broken would pass as refused."""
    hostile.write_object(here / "model.pt", hostile.OBJECTS["os.system"](marker))
    torch.load(here / "model.pt", weights_only=False)
    assert marker.exists()
    marker.unlink()
    for legacy in (False, True):
        hostile.write_pickle(here / "model.pt", hostile.PICKLES["STACK_GLOBAL"](marker), legacy=legacy)
        torch.load(here / "model.pt", weights_only=False)
        assert marker.exists()
        marker.unlink()
    hostile.write_tar_in_disguise(here / "model.pt", marker)
    with pytest.raises(EOFError):
        torch.load(here / "model.pt", weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize(
    "write", [hostile.write_tar, hostile.write_tar_in_disguise], ids=["tar", "tar that begins like a pickle"]
)
def test_tar_archives_are_refused(here: Path, marker: Path, write: Callable):
    write(here / "model.pt", marker)
    with pytest.raises(CheckpointError, match="tar archive"):
        load(here / "model.pt")
    assert not marker.exists()


@pytest.mark.parametrize("change, runs", hostile.PROGRAMS.values(), ids=hostile.PROGRAMS)
def test_hostile_exported_programs_are_refused(here: Path, marker: Path, exported: Path, change: Callable, runs: bool):
    (here / "payload_module.py").write_text(f"open({str(marker)!r}, 'w')\nclass Kind: A = 1\n")
    shutil.copy(exported, "model.pt2")
    change(here / "model.pt2", marker)
    with user_code(here, names=["payload_module"]):
        with pytest.raises(CheckpointError) as refusal:
            load("model.pt2")
        assert refusal.value.fix
        assert not marker.exists()
        if runs:  # or else the row proves nothing
            with Path("model.pt2").open("rb") as file, contextlib.suppress(Exception):
                torch.export.load(file)
            assert marker.exists()


def test_guards_of_exported_programs_are_not_compiled(here: Path, marker: Path, exported: Path):
    shutil.copy(exported, "model.pt2")
    hostile.edit_program(here / "model.pt2", lambda program: program.update(guards_code=[hostile.python(marker)]))
    for trust, runs in (((), False), (("pt2",), True)):
        program = load("model.pt2", trust=trust).program
        assert program is not None
        with contextlib.suppress(AssertionError):
            program.module()(torch.randn(3, 3, 17, 16))
        assert marker.exists() is runs


def test_trust_lifts_the_guard_of_exported_programs(here: Path, marker: Path, exported: Path):
    shutil.copy(exported, "model.pt2")
    hostile.edit_record(here / "model.pt2", "extra/note", lambda _: b"x")
    hostile.edit_program(here / "model.pt2", lambda program: program["graph_module"].update(hook="x"))
    with pytest.raises(CheckpointError, match="--trust pt2"):
        load("model.pt2")
    assert load("model.pt2", trust=["pt2"]).program is not None


def test_users_classes_are_refused_by_name_and_load_with_trust(here: Path):
    block = block_in(here)
    torch.save({"model": block, "epoch": 1}, "model.pt")
    forget("own_model")
    with pytest.raises(CheckpointError, match=r"(?s)own_model\.Block.*--trust own_model"):
        load("model.pt")
    assert "own_model" not in sys.modules
    checkpoint = load("model.pt", trust=["own_model"])
    assert checkpoint.module is not None
    assert same_function(checkpoint.module, block)


def test_users_classes_of_before_1_6_load_with_trust(here: Path):
    block = block_in(here)
    torch.save(block, "model.pt", _use_new_zipfile_serialization=False)
    assert load("model.pt", trust=["own_model"]).module is not None


def test_classes_of_a_script_load_when_the_script_is_trusted(here: Path):
    (here / "train.py").write_text(OWN_MODULE)
    with user_code(here, names=["train"]):
        import train

        train.Block.__module__ = "__main__"
        sys.modules["__main__"].Block = train.Block
        torch.save(train.Block(), "model.pt")
        del sys.modules["__main__"].Block
    forget("train")
    with pytest.raises(CheckpointError, match=r"--trust SCRIPT\.py"):
        load("model.pt")
    assert type(load("model.pt", trust=["train.py"]).module).__name__ == "Block"


def test_trusted_code_runs_and_nothing_else(here: Path, marker: Path):
    (here / "evil.py").write_text("from os import system\nimport os\n")
    for name in ("system", "os.system", "os"):
        text = hostile._text
        instructions = text("evil") + text(name) + b"\x93" + text(hostile.touch(marker)) + b"\x85R."
        hostile.write_pickle(here / "model.pt", instructions)
        with pytest.raises(CheckpointError):
            load("model.pt", trust=["evil"])
        assert not marker.exists()


def test_trust_of_one_package_is_no_trust_of_another(here: Path, marker: Path):
    block = block_in(here)
    torch.save({"model": block, "note": hostile.Call(os.system, hostile.touch(marker))}, "model.pt")
    with pytest.raises(CheckpointError, match=r"system"):
        load("model.pt", trust=["own_model"])
    assert not marker.exists()


@pytest.mark.slow
@pytest.mark.parametrize("trust", [(), ("own_model",)], ids=["without trust", "with trust in another"])
def test_library_planted_beside_the_checkpoint_is_not_imported(
    here: Path, marker: Path, monkeypatch: pytest.MonkeyPatch, trust: tuple[str, ...]
):
    block_in(here)
    (here / "timm/models").mkdir(parents=True)
    (here / "timm/__init__.py").write_text(hostile.python(marker))
    (here / "timm/models/planted.py").touch()
    (here / "timm/models/__init__.py").touch()
    monkeypatch.syspath_prepend(here)
    for name in [name for name in sys.modules if name.split(".")[0] == "timm"]:
        monkeypatch.delitem(sys.modules, name)
    hostile.write_pickle(here / "model.pt", hostile._global("timm.models.planted", "Planted") + b")\x81.")
    with pytest.raises(CheckpointError):
        load("model.pt", trust=trust)
    assert not marker.exists()


def test_trusting_all_lifts_every_guard_and_says_so(here: Path, marker: Path):
    torch.save({"model": block_in(here), "note": hostile.Call(os.system, hostile.touch(marker))}, "model.pt")
    checkpoint = load("model.pt", trust=["all"])
    assert type(checkpoint.module).__name__ == "Block"
    assert any(note.code == "PTC1513" for note in checkpoint.notes)
    assert marker.exists()
    torch.save(stock_model(), "model.pt")
    assert load("model.pt", trust=["all"]).module is not None


def test_traced_graph_modules_are_refused_with_their_own_fix(here: Path):
    torch.save(torch.fx.symbolic_trace(nn.Linear(1, 1)), "model.pt")
    with pytest.raises(CheckpointError, match=r"GraphModule is Python source"):
        load("model.pt")


def test_bound_methods_of_trusted_modules_are_kept(here: Path):
    """YOLOv5 saves fused layers with `self.forward = self.forward_fuse`."""
    (here / "own_model.py").write_text(OWN_MODULE + "\nBlock.forward_fused = lambda self, x: x\n")
    source = OWN_MODULE.replace(
        "def forward(self, x)", "def forward_fused(self, x):\n        return x\n    def forward(self, x)"
    )
    (here / "own_model.py").write_text(source)
    with user_code(here, names=["own_model"]):
        import own_model

        block = own_model.Block()
    block.forward = block.forward_fused
    torch.save(block, "model.pt")
    module = load("model.pt", trust=["own_model"]).module
    assert module is not None
    assert torch.equal(module(torch.ones(3)), torch.ones(3))


def test_missing_code_of_a_trusted_package_is_named(here: Path):
    block = block_in(here)
    torch.save(block, "model.pt")
    forget("own_model")
    (here / "own_model.py").unlink()
    with pytest.raises(CheckpointError, match="the module own_model"):
        load("model.pt", trust=["own_model"])
    (here / "own_model.py").write_text("import no_such_package\n")
    with pytest.raises(CheckpointError, match="no_such_package, which own_model imports"):
        load("model.pt", trust=["own_model"])
    forget("own_model")
    (here / "own_model.py").write_text("Other = 1\n")
    with pytest.raises(CheckpointError, match="own_model has no `Block`"):
        load("model.pt", trust=["own_model"])


@pytest.mark.parametrize(
    "name", ["os", "torch", "builtins", "subprocess.Popen", "not a name", "__main__", "no_such_script.py"]
)
def test_trust_that_cannot_be_given(here: Path, name: str):
    torch.save(stock_model(), "model.pt")
    with pytest.raises(UsageError):
        load("model.pt", trust=[name])


@pytest.fixture(scope="module")
def good_files(tmp_path_factory: pytest.TempPathFactory, exported: Path) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("good") / "model"
    files = {"exported": exported.read_bytes()}
    for name, options in (("zip", {}), ("legacy", {"_use_new_zipfile_serialization": False})):
        torch.save(stock_model(), path, **options)
        files[name] = path.read_bytes()
    safetensors.torch.save_file(stock_model().state_dict(), path)
    files["safetensors"] = path.read_bytes()
    return files


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["zip", "legacy", "safetensors", "exported"]),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=8),
    kept=st.one_of(st.just(1.0), st.floats(0, 1)),
)
def test_damaged_bytes_load_or_are_refused(
    good_files: dict[str, bytes], here: Path, kind: str, changes: list, kept: float
):
    data = bytearray(good_files[kind])
    for place, value in changes:
        data[int(place * (len(data) - 1))] = value
    (here / "model").write_bytes(data[: int(len(data) * kept)])
    with contextlib.suppress(CheckpointError):
        load(here / "model")


def write(data: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(data)  # type: ignore[return-value]


def zipped(**entries: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def truncated(part: float, **options: Any) -> Callable[[Path], None]:
    def save(path: Path) -> None:
        torch.save(stock_model(), path, **options)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])

    return save


def bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02N.")
        archive.writestr("archive/data/0", bytes(10**7))


def endless_dictionary(path: Path) -> None:
    """A hundred ways to itself at every step."""
    within: dict[str, Any] = {}
    within.update({str(i): within for i in range(100)})
    torch.save({"a": within}, path)


BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "The file does not exist"),
    "empty": (write(b""), "The file is empty"),
    "folder": (lambda path: path.mkdir(), "This is a folder"),
    "cut off zip": (truncated(0.7), "cut off"),
    "cut off in the tensors, before 1.6": (truncated(0.95, _use_new_zipfile_serialization=False), "damaged"),
    "cut off in the pickle, before 1.6": (truncated(0.2, _use_new_zipfile_serialization=False), "cut off"),
    "text": (write(b"import torch\n"), "but text"),
    "what a server says": (write(b"<?xml?><Error><Code>AccessDenied"), 'begins "<?xml?><Error><Code>AccessDenied'),
    "zeros": (write(bytes(4000)), "but zeros"),
    "web page": (write(b"<!DOCTYPE html><html>Not found</html>"), "web page"),
    "Git LFS pointer": (write(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n"), "git lfs pull"),
    "JSON": (write(b'{"a": 1}'), "JSON"),
    "HDF5": (write(b"\x89HDF\r\n\x1a\n" + bytes(100)), "HDF5"),
    "Keras": (write(zipped(**{"metadata.json": b"", "config.json": b"", "model.weights.h5": b""})), "Keras"),
    "ONNX": (write(b"\x08\x0a\x12\x07pytorch\x1a\x052.13.0:" + bytes(50)), "ONNX"),
    "TFLite": (write(b"\x1c\x00\x00\x00TFL3" + bytes(50)), "TensorFlow Lite"),
    "NumPy": (write(zipped(**{"a.npy": b"", "b.npy": b""})), "NumPy"),
    "plain pickle": (write(b"\x80\x04\x95\x02\x00\x00\x00\x00\x00\x00\x00N."), "plain pickle"),
    "random bytes": (write(bytes(range(200, 256)) * 4), "unknown data"),
    "other zip": (write(zipped(a=b"x")), "zip archive of something else"),
    "zip that expands without measure": (bomb, "expand without measure"),
    "safetensors with a broken header": (write((10).to_bytes(8, "little") + b"{" + bytes(9)), "damaged"),
    "a version without end": (
        write(zipped(**{"archive/data.pkl": b"\x80\x02N.", "archive/version": b"9" * 400})),
        "damaged",
    ),
    "names that are no text": (
        write(zipped(**{"archive/data.pkl": b"N."}).replace(b"archive/", b"\xffrchive/")),
        "damaged",
    ),
    "a tensor": (lambda path: torch.save(torch.ones(2), path), "contains a Tensor"),
    "a list": (lambda path: torch.save([1, 2], path), "contains a list"),
    "an optimizer's state": (lambda path: torch.save({"optimizer": {"lr": 1}}, path), "does not contain a model"),
    "several models": (
        lambda path: torch.save({"encoder": stock_model(), "decoder": stock_model()}, path),
        "several models: `encoder`, `decoder`",
    ),
    "several models in a list": (lambda path: torch.save([stock_model()] * 2, path), "several models: `0`, `1`"),
    "nothing": (lambda path: torch.save({}, path), "does not contain a model, only: nothing"),
    "only the state of an optimizer": (lambda path: torch.save(STATE_OF_ADAM, path), "does not contain a model"),
    "dictionaries in each other without end": (endless_dictionary, "does not contain a model"),
    "quantized weights": (
        lambda path: torch.save(
            {"w": torch._empty_affine_quantized([2], scale=1, zero_point=0, dtype=torch.qint8)}, path
        ),
        "The weights are quantized",
    ),
    "views of one number": (
        lambda path: torch.save({"weight": torch.ones(1).expand(1 << 20, 1 << 20)}, path),
        "1099511627776 elements in a file of",
    ),
    "state dict without a factory": (lambda path: torch.save(stock_model().state_dict(), path), "--model"),
}


@pytest.mark.parametrize("make, text", BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files(here: Path, make: Callable[[Path], object], text: str):
    make(here / "model.pt")
    with pytest.raises(CheckpointError) as error:
        load(here / "model.pt")
    assert text in str(error.value)
    assert error.value.where
    assert error.value.fix


BAD_FACTORIES: dict[str, tuple[str, dict[str, Any], type[ConversionError], str]] = {
    "no colon": ("own_model", {}, UsageError, "package.module:name"),
    "no such module": ("no_such_module:Block", {}, UsageError, "module no_such_module was not found"),
    "does not exist": ("own_modle.py:Block", {}, UsageError, "Did you mean own_model.py or"),
    "no such name": ("own_model:Blok", {}, UsageError, "Did you mean Block?"),
    "no model at all": ("own_model:OWN", {}, UsageError, "does not define `OWN`"),
    "wrong argument": ("own_model:Block", {"widht": 3}, UsageError, "widht"),
    "raises": ("own_model:broken", {}, ConversionError, "own_model.py:18"),
    "returns no module": ("own_model:nothing", {}, ConversionError, "an object of type int, not a torch.nn.Module"),
    "not callable": ("own_model:__name__", {}, UsageError, "is a str"),
    "raises when imported": ("failing.py:Block", {}, ConversionError, "failing.py:2"),
    "is no Python": ("nonsense.py:Block", {}, ConversionError, "nonsense.py:1"),
    "unknown timm model": ("timm:resnet5000", {}, UsageError, "timm"),
    "no numbers": ("own_model:without_numbers", {}, ConversionError, "Build it on the CPU"),
    "on a GPU": ("own_model:on_the_gpu", {}, ConversionError, "Build the model on the CPU"),
    "more than the module": ("own_model:with_more", {}, ConversionError, "returns only the module"),
    "a method": ("own_model:Trainer.model", {}, UsageError, "This is a method"),
    "arguments for a module": ("own_model:ready", {"width": 3}, UsageError, "does not take arguments"),
}


@pytest.mark.parametrize("factory, arguments, kind, text", BAD_FACTORIES.values(), ids=BAD_FACTORIES)
def test_bad_factories(here: Path, factory: str, arguments: dict, kind: type[ConversionError], text: str):
    torch.save(block_in(here).state_dict(), "weights.pt")
    (here / "failing.py").write_text("import os\nos.environ['NO SUCH VARIABLE']\n")
    (here / "nonsense.py").write_text("def ]\n")
    with pytest.raises(ConversionError) as error:
        load("weights.pt", factory=factory, factory_args=arguments)
    assert type(error.value) is kind
    assert text in str(error.value)
    assert error.value.where


def test_weights_that_do_not_fit_are_named_ten_of_each():
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(12)))
    state = {f"other.{name}_": value for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        load_into(model, state, Path("weights.pt"), "models:build")
    text = str(error.value)
    assert "missing from the file (24)" in text
    assert "the model does not have (24)" in text
    assert text.count("other.") == 10
    assert "and 14 more" in text


def test_shapes_that_differ_are_named():
    wider = nn.Linear(2, 5).state_dict()
    with pytest.raises(
        CheckpointError, match=r"(?s)different shapes \(2\).*weight is \(5, 2\) in the file, \(3, 2\) in the model"
    ):
        load_into(nn.Linear(2, 3), wider, Path("weights.pt"), "models:build")


NUMBERS_OF_ANOTHER_KIND = {
    "complex": lambda weight: weight.to(torch.complex64),
    "8 bits": lambda weight: (weight * 10).to(torch.int8),
}


@pytest.mark.parametrize("change", NUMBERS_OF_ANOTHER_KIND.values(), ids=NUMBERS_OF_ANOTHER_KIND)
def test_numbers_are_not_taken_for_others(change: Callable[[Tensor], Tensor]):
    """PyTorch would drop imaginary parts, and take 8 bits for the weights that they stand for."""
    model = nn.Linear(2, 3)
    state = {**model.state_dict(), "weight": change(model.weight.detach())}
    with pytest.raises(
        CheckpointError, match=r"(?s)different types \(1\).*weight is \w+ in the file, float32 in the model"
    ):
        load_into(model, state, Path("weights.pt"), "models:build")


def test_fractions_are_not_cut_off_to_integers():
    model = nn.BatchNorm2d(3)
    state = {**model.state_dict(), "num_batches_tracked": torch.tensor(1.5)}
    with pytest.raises(CheckpointError, match="float32 in the file, int64 in the model"):
        load_into(model, state, Path("weights.pt"), "models:build")
    assert (
        load_into(model, {**state, "num_batches_tracked": torch.tensor(2.0)}, Path("weights.pt"), "models:build") == []
    )


def test_of_two_networks_neither_is_guessed():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    both = {
        f"{side}.{name}": value for side in ("encoder_q", "encoder_k") for name, value in model.state_dict().items()
    }
    with pytest.raises(CheckpointError, match=r"several times, under `encoder_q\.`, `encoder_k\.`") as error:
        load_into(model, both, Path("weights.pt"), "models:build")
    assert str(error.value.fix).endswith("--state encoder_q.")


def test_the_fix_for_several_models_is_one_that_works(here: Path):
    block = block_in(here)
    torch.save({"G": block.state_dict(), "D": {"weight": torch.ones(1)}}, "gan.pt")
    with pytest.raises(CheckpointError, match="several models: `G`, `D`") as error:
        load("gan.pt", factory="own_model:Block")
    key = str(error.value.fix).partition("--state ")[2].removesuffix(".")
    assert same_function(load("gan.pt", factory="own_model:Block", state=key).module, block)


def test_prefix_is_kept_where_the_model_has_it():
    model = nn.Sequential(OrderedDict(model=nn.Linear(2, 3)))
    assert load_into(model, model.state_dict(), Path("weights.pt"), "models:build") == []


OUR_NAMES = ("cli", "mappings", "converter")


@pytest.mark.parametrize("name", OUR_NAMES)
def test_users_modules_of_our_names_are_theirs_inside_and_ours_outside(here: Path, name: str):
    import converter as ours

    (here / f"{name}.py").write_text("WIDTH = 7\n")
    (here / "model.py").write_text(
        f"from torch import nn\nfrom {name} import WIDTH\ndef build():\n    import {name}\n"
        f"    return nn.Linear({name}.WIDTH, WIDTH)\n"
    )
    torch.save(nn.Linear(7, 7).state_dict(), "weights.pt")
    before = {key: value for key, value in sys.modules.items() if key.split(".")[0] in OUR_NAMES}
    module = load("weights.pt", factory="model.py:build").module
    assert isinstance(module, nn.Linear)
    after = {key: value for key, value in sys.modules.items() if key.split(".")[0] in OUR_NAMES}
    assert after == before
    import converter

    assert converter is ours
    assert str(here) not in sys.path


def test_factory_in_a_file_of_our_name(here: Path):
    (here / "converter.py").write_text(OWN_MODULE)
    torch.save(block_in(here).state_dict(), "weights.pt")
    assert load("weights.pt", factory="converter.py:Block").module is not None
    assert load("weights.pt", factory="converter:Block").module is not None
    assert hasattr(sys.modules["converter"], "__path__")


def test_user_code_nests_and_remembers(here: Path):
    (here / "mappings").mkdir()
    (here / "mappings/__init__.py").write_text("COUNT = []\n")
    (here / "mappings/inner.py").write_text("")
    with user_code(here, names=["mappings"]):
        import mappings.inner

        import mappings

        first = mappings
        with user_code(here, here.parent, names=["mappings"]):
            import mappings

            assert mappings is first
        assert sys.modules["mappings"] is first
    assert sys.modules.get("mappings") is not first
    with contextlib.suppress(KeyError), user_code(here, names=["mappings"]):
        import mappings.inner

        assert mappings is first
        raise KeyError
    assert sys.modules.get("mappings") is not first


def test_folder_without_modules_of_our_names_changes_nothing(here: Path):
    (here / "mappings").mkdir()  # data, not a package
    before = dict(sys.modules)
    with user_code(here, names=["mappings", "converter"]):
        assert sys.modules["converter"] is before["converter"]
    assert sys.path.count(str(here)) == 0


@pytest.mark.parametrize(
    "text, allowed",
    [
        ("Add(Mul(Integer(2), Symbol('s53', positive=True, integer=True)), Integer(-3))", True),
        ("FloorDiv(s0 + 3, 2)", True),
        ("Max(1, s0*s1 - 1) // 2", True),
        ("Eq(Mod(s0, 32), 0)", True),
        ("Pow(Symbol('s1', integer=True), Integer(2))", True),
        ("(s0 > 1) & (s0 <= 1024)", True),
        ("s0**2", True),
        ("__import__('os')", False),
        ("Symbol('x').__class__", False),
        ("Symbol(__import__('os').getcwd())", False),
        ("eval('1')", False),
        ("s0[0]", False),
        ("[s0 for s0 in x]", False),
        ("lambda: 1", False),
        ("9**9**9", False),
        ("Pow(Integer(9), Pow(Integer(9), Integer(9)))", False),
        ("LShift(1, 100000000000)", False),
        ("'text'", False),
        ("10**1000", False),
        ("(" * 3000 + "1" + ")" * 3000, False),
        ("s0; import os", False),
        ("", False),
    ],
)
def test_size_expressions(text: str, allowed: bool):
    assert is_size_expression(text) is allowed
