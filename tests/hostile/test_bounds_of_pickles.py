"""The time to read a checkpoint is bounded by its size."""

import io
import os
import pickle
import struct
import time
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from converter.checkpoint.load import load
from converter.checkpoint.pickle_globals import MOST_ODD_KEYS, Asked, _scan
from converter.errors import CheckpointError

MODULUS = 2**61 - 1  # of the hash of numbers
MANY = 3 * MOST_ODD_KEYS


def archive(path: Path, content: bytes) -> Path:
    """A file of torch.save with this pickle."""
    file = path / "a.pt"
    torch.save({}, file)
    with zipfile.ZipFile(file) as source:
        members = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(file, "w") as target:
        for name, data in members.items():
            target.writestr(name, content if name.endswith("/data.pkl") else data)
    return file


def keys_of_one_hash() -> bytes:
    return pickle.dumps({MODULUS * k: 0 for k in range(1, MOST_ODD_KEYS + 2)}, 2)


def tuples_as_keys() -> bytes:
    return pickle.dumps({(k, 0): 0 for k in range(MANY)}, 2)


def set_of_one_hash() -> bytes:
    numbers = b"".join(pickle.dumps(MODULUS * k, 2)[2:-1] for k in range(1, MANY))
    return b"\x80\x04\x8f(" + numbers + b"\x90."


def collected_from_list(kind: str) -> bytes:
    """By a call, to which the keys come in a list."""
    pair = b"K\x00\x86" if kind == "OrderedDict" else b""
    numbers = b"".join(pickle.dumps(MODULUS * k, 2)[2:-1] + pair for k in range(1, MANY))
    return f"ccollections\n{kind}\n".encode() + b"](" + numbers + b"e\x85R."


def nested(levels: int = 600_000) -> bytes:
    return b"\x80\x02" + b"}K\x00" * levels + b"}" + b"s" * levels + b"."


def without_end() -> bytes:
    return b"\x80\x02" + b"]0" * 60_000 + b"N."


@pytest.mark.threat(
    "Keys of one hash, values nested or instructions without end",
    "refused in seconds",
)
@pytest.mark.parametrize(
    "content",
    [
        pytest.param(keys_of_one_hash, id="numbers of one hash"),
        pytest.param(tuples_as_keys, id="tuples"),
        pytest.param(set_of_one_hash, id="a set of numbers of one hash"),
        pytest.param(lambda: collected_from_list("OrderedDict"), id="pairs"),
        pytest.param(lambda: collected_from_list("Counter"), id="a counter"),
        pytest.param(nested, id="nested dictionaries"),
        pytest.param(without_end, id="instructions"),
    ],
)
def test_a_pickle_that_would_take_long_is_refused(tmp_path: Path, monkeypatch, content: Callable[[], bytes]):
    if content is without_end:  # the real limit takes 13 s
        monkeypatch.setattr("converter.checkpoint.pickle_globals.MOST_INSTRUCTIONS", 100_000)
    file = archive(tmp_path, content())
    started = time.perf_counter()
    with pytest.raises(CheckpointError, match=r"which no model needs|nor small numbers"):
        load(file)
    assert time.perf_counter() - started < 30


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "content",
    [
        {f"layer.{k}": k for k in range(MANY)},
        {"state": {k: {"step": 1.5, "exp_avg": None} for k in range(MANY)}},
        {140_000_000_000_000 + 8 * k: 0 for k in range(MANY)},  # id(parameter), in optimizers before PyTorch 1.6
        OrderedDict((str(k), [k, (k, 2**70), {k}, frozenset({"a"}), b"x", True, None, 1.5]) for k in range(50)),
        {(k, "a"): 0 for k in range(100)},
        [Counter("abca"), {1.5, 2.5}, bytearray(b"1"), {}, (), [], set(), -5, 2**40],
    ],
)
def test_keys_as_checkpoints_have_them_pass(content: Any, protocol: int):
    _scan(io.BytesIO(pickle.dumps(content, protocol)), Asked())


@pytest.mark.threat(
    "A pickle that takes more from the stack than is there",
    "damaged, says the error",
)
@pytest.mark.parametrize(
    "content", [b"s.", b"R.", b"e.", b"u.", b"\x94.", b"h\x00.", b"(0.", b"2.", b"q\x00.", b"0."], ids=repr
)
def test_a_stack_that_lacks_values_is_refused(tmp_path: Path, content: bytes):
    with pytest.raises(CheckpointError, match="damaged"):
        load(archive(tmp_path, b"\x80\x02" + content))


@pytest.mark.slow
def test_a_file_of_torch_save_is_read_as_before(tmp_path: Path):
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    for old in (True, False):
        torch.save({"model": module.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "a.pt")
        torch.save(module, tmp_path / "m.pt", _use_new_zipfile_serialization=old)
        assert isinstance(load(tmp_path / "m.pt").module, torch.nn.Sequential)
        with pytest.raises(CheckpointError, match="--model"):
            load(tmp_path / "a.pt")


@pytest.mark.threat(
    "A pipe or a device as a checkpoint",
    "refused, not waited for",
)
def test_a_pipe_is_not_opened(tmp_path: Path):
    os.mkfifo(tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="pipe or a device"):
        load(tmp_path / "a.pt")


@pytest.mark.threat(
    "A pickled array whose length lies",
    "refused, no memory is taken",
)
def test_a_length_that_lies_takes_no_memory(tmp_path: Path):
    content = b"\x80\x04\x8e" + struct.pack("<Q", 2**50) + b"x."
    with pytest.raises(CheckpointError, match="damaged"):
        load(archive(tmp_path, content))


@pytest.mark.threat(
    "A name of a thousand letters, a link to itself, a name with a null", "an error that names it, status 4"
)
@pytest.mark.parametrize("name", ["n" * 1000, "loop", "a\0b"])
def test_a_name_that_the_system_cannot_look_up_is_an_error(tmp_path: Path, name: str):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(tmp_path / name)
