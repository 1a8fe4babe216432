"""Signals, killed processes, full disks and memory limits: what was there stays whole, and the end is said."""

import os
import random
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import cli
from converter.artifacts.runner import Runner
from converter.errors import CaptureError, ConversionError, OutputError, UsageError
from converter.report.failures import failure_of, write_report

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "benchmarks"))

import kill  # noqa: E402

CONVERTS = """
import time
from pathlib import Path
import converter
from converter.__main__ import main
from converter.pipeline import preflight
from test_cli import convert

def slow(model, *, progress, **arguments):
    with progress("capture"):
        Path("begun").touch()
{work}
    with progress("the next step"):
        Path("went on").touch()
    return convert(model, progress=progress, **arguments)

converter.convert, preflight.check_call = slow, lambda *_: None  # there is no file to check
main()
"""
SLEEPS = "time.sleep(20)"
SWALLOWS = "try: time.sleep(20)\nexcept BaseException: pass"
TURNS = "try: time.sleep(20)\nexcept BaseException as e: raise RuntimeError('lost') from e"


def wait_for(what: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def begun(folder: Path, work: str, prepare: Callable = kill.heed_signals) -> subprocess.Popen:
    """The command in the midst of a conversion that does `work`."""
    code = CONVERTS.format(work=textwrap.indent(work, " " * 8))
    process = subprocess.Popen(
        [sys.executable, "-c", code, "good.pt", "--to", "tf"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests/console")])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=prepare,
    )
    wait_for((folder / "begun").exists)
    return process


@pytest.mark.slow
@pytest.mark.parametrize(
    "number, status, work",
    [
        pytest.param(signal.SIGINT, 130, SLEEPS, id="SIGINT"),
        pytest.param(signal.SIGTERM, 143, SLEEPS, id="SIGTERM"),
        pytest.param(signal.SIGHUP, 129, SLEEPS, id="SIGHUP"),
        pytest.param(signal.SIGTERM, 143, SWALLOWS, id="swallowed by the model's code"),
        pytest.param(signal.SIGTERM, 143, TURNS, id="made an error of"),
    ],
)
def test_a_signal_ends_the_command_with_its_status(tmp_path, number, status, work):
    process = begun(tmp_path, work)
    process.send_signal(number)
    _, said = process.communicate(timeout=15)
    assert process.returncode == status, said
    assert f"Ended by {number.name}" in said
    assert "Traceback" not in said
    assert not (tmp_path / "went on").exists()


@pytest.mark.slow
def test_a_second_signal_ends_what_tidies_up_for_too_long(tmp_path):
    process = begun(tmp_path, "try: time.sleep(20)\nfinally: time.sleep(60)")
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)  # an echo of the first, as a terminal and a wrapper both send it
    time.sleep(1.2)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=15)
    assert process.returncode == -signal.SIGTERM


@pytest.mark.slow
def test_a_signal_that_is_ignored_from_outside_stays_ignored(tmp_path):
    """As nohup has it."""
    process = begun(tmp_path, "time.sleep(1)", lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert (tmp_path / "went on").exists()


OPENS = """
import os, signal, sys
from converter.artifacts.runner import Runner
print(Runner("tf").pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_process_that_opens_artifacts_does_not_outlive_a_killed_parent():
    """It takes seconds to import TensorFlow; it must not end only after that."""
    parent = subprocess.run([sys.executable, "-c", OPENS], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.returncode == -signal.SIGKILL
    child = int(parent.stdout)
    wait_for(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE, 3)


def test_a_killed_process_that_opens_artifacts_is_said_with_what_kills(tmp_path):
    (tmp_path / "a.onnx").touch()
    with Runner("onnx") as runner:
        os.kill(runner.pid, signal.SIGKILL)
        with pytest.raises(ConversionError, match="signal 9") as error:
            runner.open(tmp_path / "a.onnx")
    assert "memory" in str(error.value.fix)


@pytest.mark.slow
def test_conversions_ended_at_random_leave_the_earlier_artifact_or_the_new_one(tmp_path):
    """`benchmarks/kill.py` does this often."""
    runs, rng = kill.Conversions(tmp_path), random.Random(8)
    runs.prepare(["onnx"])
    for number, whom in zip(kill.SIGNALS, kill.TARGETS, strict=True):
        assert runs.kill_one(rng, "onnx", number, whom) == [], runs.said()


@pytest.mark.slow
def test_two_processes_that_place_the_same_files_and_are_killed_do_not_mix_them(tmp_path):
    target = tmp_path / "net.onnx"
    for _ in range(4):
        commits, wrong = kill.kill_writers(target, 0.5)
        assert wrong == []
        assert commits > 0


# Memory


def raised_from(error: BaseException) -> ConversionError:
    try:
        try:
            raise error
        except BaseException as cause:
            raise CaptureError("the model fails on an input", code="PTC2001", fix="another --input-shape") from cause
    except CaptureError as met:
        return met


@pytest.mark.parametrize(
    "error, is_memory",
    [
        pytest.param(MemoryError(), True, id="Python's"),
        pytest.param(OSError(12, os.strerror(12)), True, id="the system's"),
        pytest.param(
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
            True,
            id="torch's",
        ),
        pytest.param(RuntimeError("OOM when allocating tensor with shape[9]"), True, id="TensorFlow's"),
        pytest.param(RuntimeError("can't start new thread"), True, id="a thread's, which needs a stack"),
        pytest.param(ImportError("libtorch.so: failed to map segment from shared object"), True, id="the loader's"),
        pytest.param(
            ImportError("a.so: failed to map segment from shared object: Operation not permitted"),
            False,
            id="a disk of which nothing may be run",
        ),
        pytest.param(raised_from(MemoryError()), True, id="taken for a fault of the model"),
        pytest.param(
            UsageError("out of memory is no format", code="PTC6001"), False, id="an error of ours with such words"
        ),
        pytest.param(ValueError("no"), False, id="another"),
    ],
)
def test_what_says_that_memory_does_not_suffice(error, is_memory):
    failure = failure_of(error, "net.pt")
    assert (failure.error == "MemoryLimitError") == is_memory
    assert ("raise the limit" in str(failure.fix)) == is_memory


WIDE = """\
from torch import nn


class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return self.linear(x).unsqueeze(-1).expand(-1, -1, 2_000_000_000).cumsum(-1)[..., -1]
"""


def test_a_memory_limit_is_said_as_such(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wide.py").write_text(WIDE)
    torch.save(nn.Linear(4, 4).state_dict(prefix="linear."), "wide.pt")
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 2**30, limits[1]))
    try:
        arguments = "wide.pt --to onnx --model wide.py:Wide --input-shape 1,4"
        result = CliRunner().invoke(cli.main, arguments.split())
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert result.exit_code == 1
    assert "Out of memory" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == ["wide.pt", "wide.py"]


# Disks


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 200 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "none", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no right to mount")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_leaves_the_earlier_artifact_and_names_the_path(small_disk, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n\n"
        "def net(width=4):\n    return nn.Sequential(nn.Conv2d(3, width, 3), nn.Conv2d(width, 5, 3))\n"
    )
    for name, width in ("small", 4), ("large", 900):
        torch.save(nn.Sequential(nn.Conv2d(3, width, 3), nn.Conv2d(width, 5, 3)).state_dict(), f"{name}.pt")
    options = ["--to", "onnx", "--no-verify", "--model", "nets.py:net", "--input-shape", "1,3,9,8"]
    first = CliRunner().invoke(cli.main, ["small.pt", "-o", "disk/net.onnx", *options])
    assert first.exit_code == 0, first.stderr
    before = (small_disk / "net.onnx").read_bytes()
    full = CliRunner().invoke(cli.main, ["large.pt", "-o", "disk/net.onnx", *options, "--model-args", '{"width": 900}'])
    assert full.exit_code == 1
    assert "the disk is full" in full.stderr
    assert "where: disk/net.onnx" in full.stderr
    assert (small_disk / "net.onnx").read_bytes() == before
    assert [path.name for path in small_disk.iterdir()] == ["net.onnx"]


def test_a_batch_on_a_full_disk_says_so(small_disk, tmp_path):
    (tmp_path / "net.pt").write_bytes(b"never read")
    (small_disk / "fill").write_bytes(bytes(190_000))
    arguments = ["batch", str(tmp_path / "net.pt"), "--to", "onnx", "-o", str(small_disk / "out"), "-j", "1"]
    result = CliRunner().invoke(cli.main, arguments)
    assert result.exit_code == 1
    assert "The journal cannot be used" in result.stderr
    assert "full" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_batch_into_what_is_no_folder_says_so(tmp_path):
    for name in ("net.pt", "file"):
        (tmp_path / name).touch()
    result = CliRunner().invoke(cli.main, ["batch", str(tmp_path / "net.pt"), "--to", "onnx", "-o", f"{tmp_path}/file"])
    assert result.exit_code == 1
    assert "The journal cannot be used: File exists." in result.stderr
    assert "a folder that you can write to" in result.stderr


def test_a_report_that_does_not_fit_leaves_the_earlier_one(small_disk):
    file = small_disk / "report.json"
    write_report(file, {"schema": 1})
    before = file.read_text()
    with pytest.raises(OutputError, match="No space left"):
        write_report(file, {"schema": 1, "models": ["x" * 300_000]})
    assert file.read_text() == before
    assert [path.name for path in small_disk.iterdir()] == ["report.json"]
