"""A checkpoint's content decides whether it is done, not its size and time; and no pipe is waited for."""

import os
from pathlib import Path

import pytest

from converter.batch.jobs import Job
from converter.batch.journal import Journal


@pytest.mark.threat("A checkpoint replaced by another of the same size and time", "converted again")
@pytest.mark.parametrize("how", ["in place", "by another file"])
def test_other_content_of_the_same_size_and_time_is_another_checkpoint(tmp_path: Path, how: str):
    file = tmp_path / "net.pt"
    content = bytearray(1_000_000)
    file.write_bytes(content)
    before = file.stat()
    job = Job("net", file, ("onnx",))
    with Journal(tmp_path / "journal") as journal:
        first = journal.fingerprint(job)
        assert journal.fingerprint(job) == first
        content[-100_000] = 1
        if how == "in place":
            file.write_bytes(content)
        else:
            (tmp_path / "other").write_bytes(content)
            (tmp_path / "other").replace(file)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
        assert journal.fingerprint(job) != first


@pytest.mark.threat("A pipe in a work list", "an error at once")
def test_a_pipe_in_a_work_list_is_an_error_at_once(tmp_path: Path):
    os.mkfifo(tmp_path / "net.pt")
    with Journal(tmp_path / "journal") as journal, pytest.raises(OSError, match="pipe or a device"):
        journal.fingerprint(Job("net", tmp_path / "net.pt", ("onnx",)))
