"""What this user may not read or write is an error that names it, with the exit status that README.md gives."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from privileges import as_a_user

import cli
from converter.artifacts.runtime.formats import TORCH_FILES


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Result]]:
    """What runs a command in a folder, as a user who is not root."""
    monkeypatch.chdir(tmp_path)
    with as_a_user():
        yield lambda *arguments: CliRunner().invoke(cli.main, arguments)
    for path in tmp_path.rglob("closed"):
        path.chmod(0o700)


def file(path: str, mode: int = 0) -> Path:
    Path(path).parent.mkdir(exist_ok=True)
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    Path(path).write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))  # .safetensors, under any name
    Path(path).chmod(mode)
    return Path(path)


def refused(result: Result, status: int, *names: str) -> None:
    assert result.exit_code == status, result.output
    assert "Permission denied" in result.output
    assert "Traceback" not in result.output
    assert "PTC9" not in result.output, "an error of the system that nobody has thought of"
    assert all(name in result.output for name in names), result.output


@pytest.mark.threat(
    "A checkpoint, a folder of one or an artifact that the user may not read",
    "an error that names it, status 4",
)
@pytest.mark.parametrize(
    "closed, given",
    [("net.pt", "net.pt"), ("closed/net.pt", "closed/net.pt"), ("closed/model.safetensors", "closed"),
     ("folder/model.safetensors", "folder"), ("folder/config.json", "folder"), ("w.safetensors.index.json",) * 2],
)  # fmt: skip
@pytest.mark.parametrize("command", [["--to", "onnx"], ["inspect"], ["batch", "--to", "onnx", "-o", "out"]])
def test_a_checkpoint_that_may_not_be_read(run, closed: str, given: str, command: list[str]):
    path = file(closed)
    if closed.startswith("closed"):
        path.parent.chmod(0)
    if given == "folder":
        for name in {"config.json", "model.safetensors"} - {path.name}:
            file(f"folder/{name}", 0o600)
    refused(run(*command, given), 4, "" if "batch" in command else given)


def one_file(suffix: str) -> Path:
    return file(f"net.{suffix}")


def in_closed_folder() -> Path:
    path = file("closed/net.onnx", 0o600)
    path.parent.chmod(0)
    return path


def closed_saved_model() -> Path:
    return file("closed/saved_model.pb").parent


def closed_module() -> Path:
    return next(iter({file(f"closed/{name}").parent for name in TORCH_FILES}))


@pytest.mark.parametrize(
    "make",
    [lambda: one_file("onnx"), lambda: one_file("keras"), lambda: one_file("tflite"), in_closed_folder,
     closed_saved_model, closed_module],
)  # fmt: skip
@pytest.mark.parametrize("more", [[], ["--weights"]], ids=["outputs", "weights"])
def test_an_artifact_that_may_not_be_read(run, make: Callable[[], Path], more: list[str]):
    artifact = make()
    file("net.pt", 0o600)
    refused(run("verify", "net.pt", str(artifact), *more), 4, str(artifact))


@pytest.mark.threat("An output folder that the user may not write to", "an error that names it, status 1")
@pytest.mark.parametrize("output", ["closed/net.onnx", "closed/sub/net.onnx", "closed"])
@pytest.mark.parametrize("mode", [0o500, 0o100, 0])
def test_a_folder_that_may_not_be_written(run, output: str, mode: int):
    import torch

    torch.save(torch.nn.Linear(3, 2), "net.pt")
    Path("closed").mkdir()
    Path("closed").chmod(mode)
    refused(run("net.pt", "--to", "onnx", "-o", output, "--input-shape", "1,3"), 1, output)
    result = run("batch", "net.pt", "--to", "onnx", "-o", "closed", "--input-shape", "1,3")
    assert result.exit_code == 1
    assert "PTC6022" in result.output


def test_a_stamp_that_may_not_be_read_is_none(run):
    from converter.artifacts.stamp_schema import checked_stamp

    file("net/saved_model.pb", 0o600)
    file("net/assets.extra/converter_stamp.json")
    stamp, damage = checked_stamp(Path("net"))
    assert stamp == {}
    assert "Permission denied" in str(damage)


def test_inputs_that_may_not_be_read(run):
    import torch

    torch.save(torch.nn.Linear(3, 2), "net.pt")
    given = str(file("closed.npz"))
    refused(run("net.pt", "--to", "onnx", "-o", "net.onnx", "--input-shape", "1,3", "--inputs", given), 2, given)
    assert not Path("net.onnx").exists()
