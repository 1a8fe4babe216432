"""A worker ends with its batch, whatever its model does."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

BATCH = """
import sys
from pathlib import Path
from converter.batch.executors import Task, Worker

command = (sys.executable, "-c", "import os, sys; open(sys.argv[1], 'w').write(str(os.getpid())); sum(range(10**13))")
worker = Worker(0, 1, 600, 2**40, (*command, sys.argv[1]))
worker.convert(Task(name="a", path="/a.pt", outputs={}, options={}, log="/log"), lambda step: None)
"""


@pytest.mark.threat("A model that holds the interpreter while its batch is killed", "its process ends too")
def test_a_worker_that_holds_the_interpreter_ends_with_its_batch(tmp_path: Path):
    noted = tmp_path / "worker"
    batch = subprocess.Popen([sys.executable, "-c", BATCH, str(noted)])
    deadline = time.monotonic() + 60
    while not (noted.exists() and noted.read_text()):
        assert batch.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    worker = psutil.Process(int(noted.read_text()))
    group = os.getpgid(worker.pid)
    os.kill(batch.pid, signal.SIGKILL)
    batch.wait()
    psutil.wait_procs([worker], timeout=10)
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE
    left = [p for p in psutil.process_iter() if p.status() != psutil.STATUS_ZOMBIE and _group(p.pid) == group]
    assert left == []


def _group(process: int) -> int | None:
    try:
        return os.getpgid(process)
    except ProcessLookupError:
        return None
