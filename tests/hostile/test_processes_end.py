"""What was started ends with what started it, and the command ends on a second signal, whatever a model does."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from converter.artifacts.placement import Placement

HOLDS = "sum(range(10**13))"  # no other thread and no signal handler runs meanwhile
BATCH = f"""
import sys
from pathlib import Path
from converter.batch.executors import Task, Worker

held = '''
import os, sys
from converter.artifacts.runtime.lifeline import end_with_parent
end_with_parent(int(sys.argv[2]), group=True)
open(sys.argv[1], "w").write(str(os.getpid()))
{HOLDS}
'''
worker = Worker(0, 1, 600, 2**40, (sys.executable, "-c", held, sys.argv[1]))
worker.convert(Task(name="a", path="/a.pt", outputs={{}}, options={{}}, log="/log"), lambda step: None)
"""
OPENS = f"""
import sys
from converter.artifacts.runner import start_bound

held = '''
import os, sys
from converter.artifacts.runtime.lifeline import end_with_parent
end_with_parent(int(sys.argv[2]))
open(sys.argv[1], "w").write(str(os.getpid()))
{HOLDS}
'''
process, keeps = start_bound([sys.executable, "-c", held, sys.argv[1]])
process.wait()
"""
COMMAND = """
import os, subprocess, sys
from pathlib import Path
from converter.artifacts.placement import Placement
from converter.console.signals import install_signal_handlers
from converter.console.supervision import supervise

supervise()
install_signal_handlers()
noted = Path(sys.argv[1])
with Placement(noted.parent / "out" / "net.onnx") as placement:
    placement.temporary.write_text("half")
    sleeps = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    noted.with_name("new").write_text(f"{sleeps.pid} {os.getpid()}")
    noted.with_name("new").replace(noted)
    DOES
"""


def begun(code: str, noted: Path) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    """A process that runs the code, and those that it says it has started."""
    process = subprocess.Popen([sys.executable, "-c", code, str(noted)], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (noted.exists() and noted.read_text()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process, [psutil.Process(int(number)) for number in noted.read_text().split()]


def all_ended(processes: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=10)
    return all(process.status() == psutil.STATUS_ZOMBIE for process in alive)


@pytest.mark.slow
@pytest.mark.threat("A model that holds the interpreter while its batch is killed", "its process ends too")
def test_a_worker_that_holds_the_interpreter_ends_with_its_batch(tmp_path: Path):
    batch, started = begun(BATCH, tmp_path / "worker")
    group = os.getpgid(started[0].pid)
    batch.kill()
    batch.communicate()
    assert all_ended(started)
    assert not [p for p in psutil.process_iter() if p.status() != psutil.STATUS_ZOMBIE and _group(p.pid) == group]


@pytest.mark.slow
@pytest.mark.threat("An artifact that holds its process while the command is killed", "its process ends too")
def test_a_process_that_opens_artifacts_ends_though_it_holds_the_interpreter(tmp_path: Path):
    command, started = begun(OPENS, tmp_path / "child")
    command.kill()
    command.communicate()
    assert all_ended(started)


@pytest.mark.slow
@pytest.mark.threat(
    "A model that holds the interpreter while the command gets SIGTERM or SIGINT twice",
    "the command and all that the model started end; the next run sweeps the output folder",
)
@pytest.mark.parametrize("number, apart", [(signal.SIGTERM, 1.2), (signal.SIGINT, 1.2), (signal.SIGTERM, 0.2)])
def test_two_signals_end_a_command_that_holds_the_interpreter(tmp_path: Path, number: signal.Signals, apart: float):
    command, started = begun(COMMAND.replace("DOES", HOLDS), tmp_path / "noted")
    for seconds in (apart, 0):
        command.send_signal(number)
        time.sleep(seconds)
    _, said = command.communicate(timeout=15)
    assert command.returncode == -number
    assert f"Ended at once by {number.name}" in said
    assert all_ended(started)
    with Placement(tmp_path / "out" / "other.onnx"):
        pass
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.slow
@pytest.mark.threat("Processes that a trusted model starts, in a session of their own too", "end with the command")
@pytest.mark.parametrize("end", ["exits", "fails", "is killed", "is stopped by a signal"])
def test_what_a_model_starts_ends_with_the_command(tmp_path: Path, end: str):
    does = {"exits": "time.sleep(0.5); sys.exit(3)", "fails": "time.sleep(0.5); os.abort()"}
    code = COMMAND.replace("DOES", f"import time; {does.get(end, 'time.sleep(600)')}")
    command, started = begun(code, tmp_path / "noted")
    if end == "is killed":
        started[1].kill()  # as the system does when memory is short
    elif end == "is stopped by a signal":
        command.terminate()
    command.communicate(timeout=15)
    expected = {"exits": 3, "fails": -signal.SIGABRT, "is killed": -signal.SIGKILL}
    assert command.returncode == expected.get(end, 1)  # an Interrupted that nobody catches here
    assert all_ended(started)


@pytest.mark.slow
def test_the_command_ends_with_the_process_that_watches_it(tmp_path: Path):
    command, (sleeps, working) = begun(COMMAND.replace("DOES", HOLDS), tmp_path / "noted")
    command.kill()
    assert all_ended([working])
    sleeps.kill()  # nothing is left that could end it
    command.communicate()


@pytest.mark.slow
def test_a_command_goes_on_after_it_was_suspended(tmp_path: Path):
    command, _ = begun(COMMAND.replace("DOES", "import time; time.sleep(1.5); sys.exit(3)"), tmp_path / "noted")
    for number in (signal.SIGSTOP, signal.SIGCONT):
        command.send_signal(number)
        time.sleep(0.3)
    _, said = command.communicate(timeout=15)
    assert command.returncode == 3
    assert "Traceback" not in said


def _group(process: int) -> int | None:
    try:
        return os.getpgid(process)
    except ProcessLookupError:
        return None


ECHO = """
import os, signal, sys
from converter.console import signals

class Late:
    def __del__(self, kill=os.kill, process=os.getpid()):
        kill(process, signal.SIGTERM)  # Python has given its handlers back

late = Late()
signals.install_signal_handlers()
try:
    os.kill(os.getpid(), signal.SIGTERM)
except signals.Interrupted as error:
    status = error.exit_status
if sys.argv[1] == "ignored":
    signals.ignore_echoes()
sys.exit(status)
"""


@pytest.mark.parametrize("echoes, status", [("ignored", 143), ("heard", -signal.SIGTERM)])
def test_a_signal_that_is_passed_on_twice_does_not_change_the_exit_status(repository, echoes, status):
    command = [sys.executable, "-c", ECHO, echoes]
    assert subprocess.run(command, cwd=repository, check=False).returncode == status
