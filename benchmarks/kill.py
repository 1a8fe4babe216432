"""Ends the program at random moments with random signals, and looks at what is there afterwards.

    python benchmarks/kill.py conversions [--count 120] [--seed 0] [--results FILE [--minutes 9]]
    python benchmarks/kill.py batches [--count 30] [--seed 0] [--dask]
    python benchmarks/kill.py placements [--count 300] [--seed 0]

`conversions` converts a small network over an earlier artifact, in each format, and ends it by SIGINT, SIGTERM or
SIGKILL, up to a tenth after the time that a conversion takes. The signal is sent to the process that was started (the
parent), to one that it started (a child: the one that works, or the one that opens artifacts), or to the whole group.
Afterwards the artifact must be the earlier or the new one, byte for byte; no process that was started may live; nothing
may be left beside the artifact, after SIGKILL once the next run has swept; the exit status must be the signal's; and no
traceback is printed. `beside` is an ONNX file with its weights in a second file, which must be its own from the very
moment of the kill on; half of the conversions show a trace. `batches` kills one batch again and again, or, with
`--dask`, what the workers of a local cluster run, and begins it anew each time: in the end each model must be verified,
with the bytes of an undisturbed batch, and nothing may be left of what was killed. `placements` does so with two
processes that only put artifacts in place, of two files, in the same folder, as fast as they can. With `--results`,
each kill of `conversions` becomes a line of a file, and a later call continues until the file has `--count` lines.
"""

import contextlib
import hashlib
import json
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
TARGETS = ("parent", "child", "group")
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
    """Whether the command, a child of the process, has come so far that it handles signals; before, Python starts."""
    children = psutil.Process(process).children()
    for line in Path(f"/proc/{children[0].pid}/status").read_text().splitlines() if children else ():
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

    def kill_one(self, rng: random.Random, format: str, number: signal.Signals, whom: str) -> list[str]:
        """Run one conversion, end it, and give what is wrong afterwards."""
        target = self.target(format)
        before = digest(target)
        name = "two" if before == self.expected[format, "one"] else "one"
        moment = rng.uniform(0, 1.1 * self.seconds[format])
        process = self.start(name, format, trace=rng.random() < 0.5)
        time.sleep(moment)
        ended = process.poll() is not None
        if ended == (moment < self.seconds[format]):  # it is faster or slower than when it was measured
            self.seconds[format] = moment
        early = not ended and not ends_in_order(process.pid)
        family = [] if ended else psutil.Process(process.pid).children(recursive=True)
        if not ended:
            send(process.pid, number, whom, rng)
        status = process.wait()
        psutil.wait_procs(family, GONE)  # to the end: a dying process has no environment, but still its locks
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
        if whom == "child":
            right = {*right, 0, 1, -number}
        if status not in right:
            wrong.append(f"status {status} after {number.name} at {moment:.2f} s")
        if "Traceback" in self.said() and not early:
            wrong.append("a traceback")
        if status == 0 and after == before:
            wrong.append("done, but nothing new")
        if number != signal.SIGKILL and not early and whom != "child":
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
        return _gone(f"TMPDIR={self.folder / 'temporary'}")


def started_with(variable: str) -> list[psutil.Process]:
    """What was started with this in its environment, however it is related to us by now."""
    found = []
    for process in psutil.process_iter():
        try:
            environment = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
            own = "resource_tracker" in " ".join(process.cmdline())  # this process's, which the cluster has started
            if variable.encode() in environment and process.status() != psutil.STATUS_ZOMBIE and not own:
                found.append(process)
        except (OSError, psutil.NoSuchProcess):
            continue
    return found


def send(process: int, number: signal.Signals, whom: str, rng: random.Random) -> None:
    """Send a signal to a process, to its group, or to one of those that it started."""
    if whom == "group":
        os.killpg(process, number)
        return
    children = psutil.Process(process).children(recursive=True) if whom == "child" else []
    with contextlib.suppress(ProcessLookupError):
        os.kill(rng.choice(children).pid if children else process, number)


@main.command()
@click.option("--count", default=120)
@click.option("--seed", default=0)
@click.option("--to", "formats", multiple=True, type=click.Choice(list(NAMES)), default=list(NAMES))
@click.option("--results", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--minutes", default=1e6)
def conversions(count: int, seed: int, formats: tuple[str, ...], results: Path | None, minutes: float) -> None:
    lines = results.read_text().splitlines() if results and results.exists() else []
    rng = random.Random(seed + len(lines))
    until = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory() as folder, (results or Path(os.devnull)).open("a") as file:
        runs = Conversions(Path(folder))
        runs.prepare(list(formats))
        took = ", ".join(f"{format} {seconds:.1f} s" for format, seconds in runs.seconds.items())
        click.echo(f"a conversion takes {took}")
        while len(lines) < count and time.monotonic() < until:
            format, ended_by, whom = rng.choice(formats), rng.choice(SIGNALS), rng.choice(TARGETS)
            before = digest(runs.target(format))
            wrong = runs.kill_one(rng, format, ended_by, whom)
            then = "new" if digest(runs.target(format)) != before else "earlier"
            killed = {"format": format, "signal": ended_by.name, "target": whom, "then": then, "wrong": wrong}
            lines.append(json.dumps(killed))
            file.write(f"{lines[-1]}\n")
            file.flush()
            if wrong:
                click.echo(f"{len(lines)} {format} {ended_by.name} {whom}: {'; '.join(wrong)}\n{runs.said()}")
    kills = [json.loads(line) for line in lines]
    ends = Counter(kill[what] for kill in kills for what in ("format", "signal", "target", "then"))
    bad = sum(bool(kill["wrong"]) for kill in kills)
    told = ", ".join(f"{n} {what}" for what, n in sorted(ends.items()))
    click.echo(f"{len(kills)} conversions ended at random: {told}; {bad} left something wrong")
    sys.exit(bool(bad))


MODELS = 12


@dataclass
class Batches:
    """A folder with checkpoints, and a batch that converts them all to ONNX."""

    folder: Path
    scheduler: str | None = None

    def prepare(self) -> None:
        (self.folder / "nets.py").write_text(NET)
        (self.folder / "temporary").mkdir()
        (self.folder / "weights").mkdir()
        seeds = ", ".join(f'("weights/{number}", {number})' for number in range(MODELS))
        code = WEIGHTS.replace('("one", 1), ("two", 2)', seeds)
        subprocess.run([sys.executable, "-c", code], cwd=self.folder, check=True)

    def start(self, output: str) -> subprocess.Popen:
        command = [
            sys.executable,
            "-m",
            "converter",
            "batch",
            "weights",
            "--to",
            "onnx",
            "-o",
            output,
            "--retry-failed",
        ]
        command += ["--scheduler", self.scheduler] if self.scheduler else ["-j", "2"]
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

    def whole(self, output: str) -> dict[str, str]:
        return {path.name: digest(path) for path in (self.folder / output).glob("*.onnx")}

    def wrong_in(self, output: str, expected: dict[str, str]) -> list[str]:
        """What is wrong with a batch that has ended."""
        summary = json.loads((self.folder / output / "summary.json").read_text())
        states = Counter(entry["state"] for entry in summary["entries"])
        wrong = [] if states == {"verified": MODELS} else [f"the summary has {dict(states)}"]
        wrong += [] if self.whole(output) == expected else ["an artifact is missing or another"]
        known = {*expected, "summary.json", "journal.sqlite", "logs", "reports"}
        wrong += [f"left: {path.name}" for path in (self.folder / output).iterdir() if path.name not in known]
        return wrong


@main.command()
@click.option("--count", default=30)
@click.option("--seed", default=0)
@click.option("--dask", is_flag=True)
def batches(count: int, seed: int, dask: bool) -> None:
    rng = random.Random(seed)
    bad: list[str] = []
    ends: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as opened:
        runs = Batches(Path(folder))
        runs.prepare()
        started = time.perf_counter()
        if runs.start("undisturbed").wait() != 0:
            raise SystemExit((runs.folder / "said").read_text())
        seconds = time.perf_counter() - started
        expected = runs.whole("undisturbed")
        click.echo(f"a batch of {MODELS} takes {seconds:.0f} s")
        if dask:
            from distributed import LocalCluster

            os.environ["TMPDIR"] = str(runs.folder / "temporary")  # by which its processes are found
            cluster = opened.enter_context(LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None))
            runs.scheduler = cluster.scheduler_address
        finished = killed = 0
        while killed < count:
            process = runs.start(f"out{finished}")
            deadline = time.monotonic() + rng.uniform(0, 1.1 * seconds)
            while time.monotonic() < deadline and process.poll() is None:
                time.sleep(0.05)
            number, whom = rng.choice(SIGNALS), rng.choice(TARGETS)
            if dask:  # a worker, which its nanny starts again, or what one runs
                number, whom = signal.SIGKILL, "cluster"
                kill_in_cluster(rng, {process.pid})
            elif process.poll() is None:
                send(process.pid, number, whom, rng)
            ends[whom] += 1
            killed += 1
            ends[number.name] += 1
            status = process.wait()
            if not dask and not _gone(f"TMPDIR={runs.folder / 'temporary'}"):
                bad.append(f"{killed}: a process lives on after {number.name}")
            if any(runs.whole(f"out{finished}").get(name, right) != right for name, right in expected.items()):
                bad.append(f"{killed}: an artifact is not whole after {number.name}")
            if status == 0:
                bad += [f"{killed}: {wrong}" for wrong in runs.wrong_in(f"out{finished}", expected)]
                finished += 1
            click.echo(f"{killed}: status {status}, {len(runs.whole(f'out{finished}'))} done, {len(bad)} wrong")
        process = runs.start(f"out{finished}")
        process.wait()
        bad += runs.wrong_in(f"out{finished}", expected)
    if not _gone(f"TMPDIR={folder}/temporary"):
        bad += [f"lives on: {' '.join(one.cmdline())[:200]}" for one in started_with(f"TMPDIR={folder}/temporary")]
    told = ", ".join(f"{n} {what}" for what, n in sorted(ends.items()))
    click.echo(f"batches killed {count} times: {told}; wrong: {bad or 'nothing'}")
    sys.exit(bool(bad))


def kill_in_cluster(rng: random.Random, spared: set[int]) -> None:
    """Kill one of the processes that this one has started, but for those spared and what they have started."""
    found = []
    for one in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            family = {one.pid, *(parent.pid for parent in one.parents())}
            if not family & spared and "resource_tracker" not in " ".join(one.cmdline()):
                found.append(one)
    with contextlib.suppress(psutil.NoSuchProcess):
        rng.choice(found).kill()


def _gone(variable: str) -> bool:
    deadline = time.monotonic() + GONE
    while started_with(variable):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


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
