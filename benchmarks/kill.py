"""Ends the program at random moments with random signals, and looks at what is there afterwards.

    python benchmarks/kill.py conversions [--count 120] [--seed 0]
    python benchmarks/kill.py placements [--count 300] [--seed 0]

`conversions` converts a small network over an earlier artifact, in each format, and ends it by SIGINT, SIGTERM or
SIGKILL, sent to the process alone or to its whole group, up to a tenth after the time that a conversion takes.
Afterwards the artifact must be the earlier or the new one, byte for byte; no process that was started may live; nothing
may be left beside the artifact, after SIGKILL once the next run has swept; the exit status must be the signal's; and no
traceback is printed. `beside` is an ONNX file with its weights in a second file, which must be its own from the very
moment of the kill on; half of the conversions show a trace. `placements` does so with two processes that only put
artifacts in place, of two files, in the same folder, as fast as they can.
"""

import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import click
import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from converter.artifacts.placement import Placement  # noqa: E402

NET = """
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(3, 7, 3), nn.BatchNorm2d(7), nn.ReLU(), nn.Flatten(), nn.Linear(7 * 42, 5))
"""
WEIGHTS = """
import torch, nets
for name, seed in (("one", 1), ("two", 2)):
    torch.manual_seed(seed)
    torch.save(nets.net().state_dict(), f"{name}.pt")
"""
NAMES = {"tf": "net_saved_model", "keras": "net.keras", "onnx": "net.onnx", "beside": "net.onnx"}
# ONNX with its weights in a second file, as for more than 2 GB.
BESIDE = "from converter.artifacts import onnx_writer as o; o.LARGEST = 0; from converter.__main__ import main; main()"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
GONE = 5.0  # seconds within which what was started must have ended


def heed_signals() -> None:
    """In a process about to begin: what runs in the background of a shell would ignore them, and its children too."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@click.group()
def main() -> None:
    pass


def digest(path: Path) -> str:
    """Of a file and of those beside it whose names it holds, or of all files of a folder."""
    found = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path, *beside(path)]:
        if file.is_file():
            found.update(str(file.relative_to(path.parent)).encode() + b"\0" + file.read_bytes())
    return found.hexdigest()


def beside(path: Path) -> list[Path]:
    """The files that belong to a file."""
    content = path.read_bytes() if path.is_file() else b""
    return [file for file in sorted(path.parent.glob(f"{path.name}.*")) if file.name.encode() in content]


def ends_in_order(process: int) -> bool:
    """Whether it has come so far that it handles signals itself; before, Python starts."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
    return False


@dataclass
class Conversions:
    """A folder with two checkpoints of one network, what each becomes, and a conversion that can be ended."""

    folder: Path
    expected: dict[tuple[str, str], str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    kept: set[Path] = field(default_factory=set)  # what libraries keep there for good, as torch does its cache

    def prepare(self, formats: list[str]) -> None:
        (self.folder / "nets.py").write_text(NET)
        (self.folder / "temporary").mkdir()
        subprocess.run([sys.executable, "-c", WEIGHTS], cwd=self.folder, check=True)
        for format in formats:
            for name in ("one", "two"):
                started = time.perf_counter()
                process = self.start(name, format)
                if process.wait() != 0:
                    raise SystemExit(self.said())
                self.seconds[format] = time.perf_counter() - started
                self.expected[format, name] = digest(self.target(format))
        self.kept = set((self.folder / "temporary").iterdir())

    def target(self, format: str) -> Path:
        return self.folder / format / NAMES[format]

    def start(self, name: str, format: str, trace: bool = False) -> subprocess.Popen:
        program, to = (["-c", BESIDE], "onnx") if format == "beside" else (["-m", "converter"], format)
        command = [sys.executable, *program, f"{name}.pt", "--to", to, "-o", str(self.target(format))]
        command += ["--trace"] if trace else []
        with (self.folder / "said").open("w") as said:
            return subprocess.Popen(
                [*command, "--model", "nets.py:net", "--input-shape", "1,3,9,8"],
                cwd=self.folder,
                env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(self.folder / "temporary")},
                stdout=said,
                stderr=said,
                start_new_session=True,
                preexec_fn=heed_signals,
            )

    def said(self) -> str:
        return (self.folder / "said").read_text()

    def kill_one(self, rng: random.Random, format: str, number: signal.Signals) -> list[str]:
        """Run one conversion, end it, and give what is wrong afterwards."""
        target = self.target(format)
        before = digest(target)
        name = "two" if before == self.expected[format, "one"] else "one"
        moment, group = rng.uniform(0, 1.1 * self.seconds[format]), rng.random() < 0.5
        process = self.start(name, format, trace=rng.random() < 0.5)
        time.sleep(moment)
        ended = process.poll() is not None
        early = not ended and not ends_in_order(process.pid)
        if not ended:
            (os.killpg if group and number != signal.SIGKILL else os.kill)(process.pid, number)
        status = process.wait()
        wrong = [] if self.all_gone() else ["a process lives on"]
        after = digest(target)
        if after not in (before, self.expected[format, name]):
            wrong.append("the artifact is neither the earlier nor the new one")
        right = {128 + number}
        if ended:
            right = {0}
        elif early or number == signal.SIGKILL:
            right.add(-number)
        if after != before:
            right |= {0, -number}  # the signal came when all was done, and Python had left its handlers
        if status not in right:
            wrong.append(f"status {status} after {number.name} at {moment:.2f} s")
        if "Traceback" in self.said() and not early:
            wrong.append("a traceback")
        if status == 0 and after == before:
            wrong.append("done, but nothing new")
        if number != signal.SIGKILL and not early:
            wrong += [f"left behind: {left}" for left in self.left(target)]
        with Placement(target.with_name("next")):  # what the next run does first
            pass
        wrong += [f"not swept: {left}" for left in self.left(target)]
        for left in sorted(set((self.folder / "temporary").iterdir()) - self.kept):
            wrong.append(f"left in the folder for temporary files: {left.name}")
            self.kept.add(left)
        return wrong

    def left(self, target: Path) -> list[str]:
        return [path.name for path in target.parent.iterdir() if path not in (target, *beside(target))]

    def all_gone(self) -> bool:
        deadline = time.monotonic() + GONE
        while self.living():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    def living(self) -> list[psutil.Process]:
        """What was started by a conversion, however it is related to us by now."""
        ours, found = f"TMPDIR={self.folder / 'temporary'}".encode(), []
        for process in psutil.process_iter():
            try:
                environment = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
                if ours in environment and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (OSError, psutil.NoSuchProcess):
                continue
        return found


@main.command()
@click.option("--count", default=120)
@click.option("--seed", default=0)
@click.option("--to", "formats", multiple=True, type=click.Choice(list(NAMES)), default=list(NAMES))
def conversions(count: int, seed: int, formats: tuple[str, ...]) -> None:
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        runs = Conversions(Path(folder))
        runs.prepare(list(formats))
        took = ", ".join(f"{format} {seconds:.1f} s" for format, seconds in runs.seconds.items())
        click.echo(f"a conversion takes {took}")
        ends: Counter[str] = Counter()
        bad = 0
        for number in range(count):
            format, ended_by = rng.choice(formats), rng.choice(SIGNALS)
            before = digest(runs.target(format))
            wrong = runs.kill_one(rng, format, ended_by)
            ends["new" if digest(runs.target(format)) != before else "earlier"] += 1
            ends[ended_by.name] += 1
            if wrong:
                bad += 1
                click.echo(f"{number} {format} {ended_by.name}: {'; '.join(wrong)}\n{runs.said()}")
        told = ", ".join(f"{n} {what}" for what, n in sorted(ends.items()))
        click.echo(f"{count} conversions ended at random: {told}; {bad} left something wrong")
    sys.exit(bool(bad))


PLACES = """
import hashlib, sys
from pathlib import Path
from converter.artifacts.placement import Placement, data_name

target, name = Path(sys.argv[1]), sys.argv[2]
number = 0
while True:
    number += 1
    content = f"{name}{number}" * 1000
    data = data_name(target.name, hashlib.sha256(content.encode()).hexdigest())
    with Placement(target, force=True) as placement:
        placement.temporary.write_text(f"{data} {content}")
        placement.temporary.with_name(data).write_text(content)
        placement.commit()
    print(number, flush=True)
"""


def kill_writers(target: Path, seconds: float) -> tuple[int, list[str]]:
    """Have two processes place artifacts of two files for so long, end both, and give how many they placed and what is
    wrong afterwards.
    """
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", PLACES, str(target), name],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("a", "b")
    ]
    for writer in writers:
        assert writer.stdout is not None
        writer.stdout.readline()  # from its first artifact on
    time.sleep(seconds)
    for writer in writers:
        writer.kill()
    said = [writer.communicate() for writer in writers]
    wrong = [error for _, error in said if error] + mixed(target)
    with Placement(target.with_name("next")):  # what the next run does first
        pass
    wrong += mixed(target)
    names = sorted(path.name for path in target.parent.iterdir())
    if names not in ([], [target.name, *(file.name for file in beside(target))]):
        wrong.append(f"there are {names}")
    return sum(1 + len(out.splitlines()) for out, _ in said), wrong


def mixed(target: Path) -> list[str]:
    """What is wrong with an artifact of two files, if there is one."""
    if not target.exists():
        return []
    data, _, content = target.read_text().partition(" ")
    file = target.with_name(data)
    return [] if file.exists() and file.read_text() == content else ["the two files are of different artifacts"]


@main.command()
@click.option("--count", default=300)
@click.option("--seed", default=0)
def placements(count: int, seed: int) -> None:
    rng = random.Random(seed)
    bad = placed = 0
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            commits, wrong = kill_writers(Path(folder, "net.onnx"), rng.uniform(0.2, 0.6))
            placed += commits
            if wrong:
                bad += 1
                click.echo(f"{number}: {'; '.join(wrong)}")
    click.echo(f"{count} times two writers killed, {placed} artifacts of two files placed; {bad} left something wrong")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
