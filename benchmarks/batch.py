"""A batch against a shell loop over `convert`, and how it goes with the number of checkpoints. On a quiet machine.

    python benchmarks/batch.py alone [--net digits] [--to tf] [--runs 3] [--count 20]
    python benchmarks/batch.py curve [--net digits] [--to tf] [--count 10 --count 100 --count 1000]
    python benchmarks/batch.py kills [--count 1000] [--kills 5]
    python benchmarks/batch.py cluster [--count 40]

`alone` converts the same checkpoints one by one with the command, and in one batch with one worker. `curve` tells time
and memory for each model, of the first tenth and of the last. `kills` ends a batch with SIGKILL again and again, starts
it anew, and counts what is missing and what was done twice. `cluster` starts a Dask scheduler with two workers, and
kills one of them after a quarter of the models. Weights are random, norm statistics measured.
"""

import json
import os
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import click
import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
CONVERT = [sys.executable, "-m", "converter"]
NETS = {
    "digits": ("sample_models.digits_focus:DigitsFocus", "1,1,16,16"),
    "resnet50": ("torchvision:resnet50", "1,3,224,224"),
}


def checkpoints(net: str, count: int, folder: Path) -> list[Path]:
    """State dicts of one architecture, each with weights of its own."""
    import torch

    from sample_models.calibration import calibrate

    folder.mkdir()
    shape = tuple(map(int, NETS[net][1].split(",")))
    files = []
    for number in range(count):
        torch.manual_seed(number)
        model = built(net)
        if number == 0:
            calibrate(model, torch.randn(4, *shape[1:]))
            state = model.state_dict()
        changed = {
            name: value * (1 + 0.05 * torch.rand_like(value)) if value.is_floating_point() else value
            for name, value in state.items()
        }
        files.append(folder / f"net{number:04}.pt")
        torch.save(changed, files[-1])
    return files


def built(net: str):
    if net == "resnet50":
        from torchvision_for_tests import load_torchvision

        return load_torchvision().models.resnet50().eval()
    from importlib import import_module

    module, _, name = NETS[net][0].partition(":")
    return getattr(import_module(module), name)().eval()


def environment() -> dict[str, str]:
    from torchvision_for_tests import environment as with_torchvision

    paths = os.pathsep.join(filter(None, (str(ROOT), with_torchvision().get("PYTHONPATH"))))
    return os.environ | with_torchvision() | {"PYTHONPATH": paths}


def options(net: str, to: str) -> list[str]:
    factory, shape = NETS[net]
    return ["--to", to, "--model", factory, "--input-shape", shape, "-q"]


def batch(net: str, to: str, source: Path, output: Path, *more: str) -> subprocess.Popen:
    command = [*CONVERT, "batch", str(source), *options(net, to), "-o", str(output), *more]
    return subprocess.Popen(command, cwd=ROOT, env=environment())


def entries(output: Path) -> list[dict]:
    return json.loads((output / "summary.json").read_text())["entries"]


@click.group(help=__doc__)
def main() -> None:
    pass


net_option = click.option("--net", default="digits", type=click.Choice(list(NETS)))
to_option = click.option("--to", default="tf")


@main.command()
@net_option
@to_option
@click.option("--runs", default=3)
@click.option("--count", default=20)
def alone(net: str, to: str, runs: int, count: int) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = checkpoints(net, count, folder / "in")
        times = []
        for file in files[:runs]:
            started = time.perf_counter()
            out = str(folder / "alone") + {"tf": "_saved_model", "keras": ".keras", "onnx": ".onnx"}[to]
            command = [*CONVERT, str(file), *options(net, to), "-o", out]
            subprocess.run(command, cwd=ROOT, env=environment(), check=True)
            times.append(time.perf_counter() - started)
        started = time.perf_counter()
        if status := batch(net, to, folder / "in", folder / "out", "-j", "1").wait():
            raise SystemExit(status)
        whole = time.perf_counter() - started
        later = [entry["seconds"] for entry in entries(folder / "out")][1:]
        one, again = statistics.median(times), statistics.median(later)
        click.echo(
            f"{net} to {to}: alone {one:.2f} s each; batch of {count}, one worker: {whole / count:.2f} s each in all, "
            f"{again:.2f} s each after the first: {one / (whole / count):.1f} and {one / again:.1f} times faster"
        )


@main.command()
@net_option
@to_option
@click.option("--count", "counts", multiple=True, type=int, default=[10, 100, 1000])
def curve(net: str, to: str, counts: tuple[int, ...]) -> None:
    for count in counts:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            checkpoints(net, count, folder / "in")
            started = time.perf_counter()
            running = batch(net, to, folder / "in", folder / "out")
            memory: list[tuple[float, int]] = []
            watching = threading.Thread(target=watch, args=(running.pid, started, memory))
            watching.start()
            if status := running.wait():
                raise SystemExit(status)
            watching.join()
            whole = time.perf_counter() - started
            times = [entry["seconds"] for entry in entries(folder / "out")]
            tenth = max(1, count // 10)
            first, last = statistics.median(times[:tenth]), statistics.median(times[-tenth:])
            held = [bytes_ / 2**20 for _, bytes_ in memory]
            part = max(1, len(held) // 10)
            journal = (folder / "out" / "journal.sqlite").stat().st_size
            click.echo(
                f"{count} of {net} to {to}: {whole / count:.2f} s each; a worker takes {first:.2f} s in the first "
                f"tenth, {last:.2f} s in the last; all processes hold {max(held[:part]):.0f} MiB in the first tenth "
                f"of the time, {max(held[-part:]):.0f} MiB in the last, {max(held):.0f} at most; "
                f"journal {journal // 1024} KiB"
            )


def watch(process: int, started: float, memory: list[tuple[float, int]]) -> None:
    while True:
        try:
            parent = psutil.Process(process)
            if parent.status() == psutil.STATUS_ZOMBIE:
                return
            held = sum(one.memory_info().rss for one in (parent, *parent.children(recursive=True)))
        except psutil.NoSuchProcess:
            return
        memory.append((time.perf_counter() - started, held))
        time.sleep(0.5)


@main.command()
@net_option
@to_option
@click.option("--count", default=1000)
@click.option("--kills", default=5)
def kills(net: str, to: str, count: int, kills: int) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        checkpoints(net, count, folder / "in")
        started = time.perf_counter()
        for kill in range(1, kills + 1):
            running = batch(net, to, folder / "in", folder / "out")
            while running.poll() is None and done(folder / "out") < kill * count // (kills + 1):
                time.sleep(0.2)
            running.send_signal(signal.SIGKILL)
            running.wait()
        status = batch(net, to, folder / "in", folder / "out").wait()
        found = entries(folder / "out")
        attempts = [entry["attempts"] for entry in found]
        written = (
            len(list((folder / "out").glob("net*[!.]"))) if to == "tf" else len(list((folder / "out").glob("net*")))
        )
        click.echo(
            f"{count} of {net} to {to}, {kills} times killed: exit status {status}, "
            f"{sum(entry['state'] == 'verified' for entry in found)} verified, {written} artefacts, "
            f"{sum(number > 1 for number in attempts)} begun again as a kill broke them off, "
            f"{time.perf_counter() - started:.0f} s"
        )


@main.command()
@net_option
@to_option
@click.option("--count", default=40)
def cluster(net: str, to: str, count: int) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        checkpoints(net, count, folder / "in")
        file = folder / "scheduler.json"
        quiet = {"cwd": ROOT, "env": environment(), "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        start = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", "0", "--no-dashboard"]
        scheduler = subprocess.Popen([*start, "--scheduler-file", str(file)], **quiet)
        workers = []
        try:
            while not file.exists():
                time.sleep(0.1)
            address = json.loads(file.read_text())["address"]
            start = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-nanny"]
            workers = [subprocess.Popen([*start, "--no-dashboard"], **quiet) for _ in range(2)]
            started = time.perf_counter()
            running = batch(net, to, folder / "in", folder / "out", "--scheduler", address)
            while running.poll() is None and done(folder / "out") < count // 4:
                time.sleep(0.2)
            workers[0].kill()
            status = running.wait()
            found = entries(folder / "out")
            verified = sum(entry["state"] == "verified" for entry in found)
            click.echo(
                f"{count} of {net} to {to} on two Dask workers, one of them killed: exit status {status}, "
                f"{verified} verified, {time.perf_counter() - started:.0f} s"
            )
        finally:
            for process in (*workers, scheduler):
                process.kill()
                process.wait()


def done(output: Path) -> int:
    if not (output / "journal.sqlite").exists():
        return 0
    with sqlite3.connect(output / "journal.sqlite", timeout=60) as database:
        try:
            return int(database.execute("select count(*) from models where state is not null").fetchone()[0])
        except sqlite3.OperationalError:  # before its tables are made
            return 0


if __name__ == "__main__":
    main()
