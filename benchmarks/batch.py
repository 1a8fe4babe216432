"""A batch against a shell loop over `convert`, and how it goes with the number of checkpoints. On a quiet machine.

    python benchmarks/batch.py alone [--net digits] [--to tf] [--runs 3] [--count 20] [--jobs 1]
    python benchmarks/batch.py curve [--net digits|resnet50|mixed] [--to tf] [--count 10 --count 100 --count 1000]
    python benchmarks/batch.py kills [--count 1000] [--kills 5]
    python benchmarks/batch.py cluster [--count 40]

`alone` converts the same checkpoints one by one with the command, and in one batch. `curve` tells time
and memory for each model, of the first tenth and of the last. `kills` ends a batch with SIGKILL again and again, starts
it anew, and counts what is missing and what was done twice. `cluster` starts a Dask scheduler with two workers, and
kills one of them after a quarter of the models. Weights are random, norm statistics measured. `mixed` is five
small architectures in turn.
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
sys.path[:0] = [str(ROOT), str(ROOT / "tests/support"), str(ROOT / "benchmarks")]
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
CONVERT = [sys.executable, "-m", "converter"]
MANIFEST = "models.toml"
DIGITS = ("sample_models.digits_focus:DigitsFocus", "1,1,16,16")
NETS = {
    "digits": [DIGITS],
    "resnet50": [("torchvision:resnet50", "1,3,224,224")],
    "mixed": [
        DIGITS,
        ("sample_models.dense_prediction:UNet", "1,3,37,50"),
        ("sample_models.dense_prediction:SuperResolution", "1,3,14,11"),
        ("sample_models.detectors:AnchorDetector", "1,3,96,64"),
        ("sample_models.speech:Recognizer", "1,16,21"),
    ],
}


def checkpoints(net: str, count: int, folder: Path) -> list[Path]:
    """State dicts of the net's architectures in turn, each with weights of its own, and a manifest of them."""
    import torch

    from sample_models.calibration import calibrate

    folder.mkdir()
    states = []
    for factory, shape in NETS[net]:
        torch.manual_seed(0)
        model = built(factory)
        calibrate(model, torch.randn(4, *map(int, shape.split(",")[1:])))
        states.append(model.state_dict())
    files, entries = [], []
    for number in range(count):
        torch.manual_seed(number)
        which = number % len(states)
        changed = {
            name: value * (1 + 0.05 * torch.rand_like(value)) if value.is_floating_point() else value
            for name, value in states[which].items()
        }
        files.append(folder / f"net{number:04}.pt")
        torch.save(changed, files[-1])
        factory, shape = NETS[net][which]
        entries.append(f'[[models]]\npath = "{files[-1].name}"\nmodel = "{factory}"\ninput-shape = "{shape}"\n')
    (folder / MANIFEST).write_text("\n".join(entries))
    return files


def built(factory: str):
    home, _, name = factory.partition(":")
    if home == "torchvision":
        from torchvision_for_tests import load_torchvision

        return load_torchvision().models.get_model(name).eval()
    from importlib import import_module

    return getattr(import_module(home), name)().eval()


def environment() -> dict[str, str]:
    from torchvision_for_tests import environment as with_torchvision

    paths = os.pathsep.join(filter(None, (str(ROOT), with_torchvision().get("PYTHONPATH"))))
    return os.environ | with_torchvision() | {"PYTHONPATH": paths}


def alone_options(net: str, to: str) -> list[str]:
    ((factory, shape),) = NETS[net]
    return ["--to", to, "--model", factory, "--input-shape", shape, "-q"]


def batch(to: str, source: Path, output: Path, *more: str) -> subprocess.Popen:
    command = [*CONVERT, "batch", str(source / MANIFEST), "--to", to, "-q", "-o", str(output), *more]
    return subprocess.Popen(command, cwd=ROOT, env=environment())


def entries(output: Path) -> list[dict]:
    return json.loads((output / "summary.json").read_text())["entries"]


@click.group(help=__doc__)
def main() -> None:
    pass


net_option = click.option("--net", default="digits", type=click.Choice(list(NETS)))
to_option = click.option("--to", default="tf")


@main.command()
@click.option("--net", default="digits", type=click.Choice([net for net, parts in NETS.items() if len(parts) == 1]))
@to_option
@click.option("--runs", default=3)
@click.option("--count", default=20)
@click.option("--jobs", default=len(os.sched_getaffinity(0)))
def alone(net: str, to: str, runs: int, count: int, jobs: int) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = checkpoints(net, count, folder / "in")
        times = []
        for file in files[:runs]:
            started = time.perf_counter()
            out = str(folder / "alone") + {"tf": "_saved_model", "keras": ".keras", "onnx": ".onnx"}[to]
            command = [*CONVERT, str(file), *alone_options(net, to), "-o", out]
            subprocess.run(command, cwd=ROOT, env=environment(), check=True)
            times.append(time.perf_counter() - started)
        started = time.perf_counter()
        if status := batch(to, folder / "in", folder / "out", "-j", str(jobs)).wait():
            raise SystemExit(status)
        whole = time.perf_counter() - started
        ended = end_times(folder / "out")
        one, again = statistics.median(times), (ended[-1] - ended[jobs - 1]) / (count - jobs)
        click.echo(
            f"{net} to {to}: alone {one:.2f} s each; batch of {count}, {jobs} workers: {whole / count:.2f} s each in "
            f"all, {again:.2f} s each after the first of each worker: {one / (whole / count):.1f} and "
            f"{one / again:.1f} times faster"
        )


def end_times(output: Path) -> list[float]:
    """When models ended, in seconds, the first first."""
    with sqlite3.connect(output / "journal.sqlite") as database:
        return [row[0] for row in database.execute("select ended from models order by ended")]


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
            running = batch(to, folder / "in", folder / "out")
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
            running = batch(to, folder / "in", folder / "out")
            while running.poll() is None and done(folder / "out") < kill * count // (kills + 1):
                time.sleep(0.2)
            running.send_signal(signal.SIGKILL)
            running.wait()
        status = batch(to, folder / "in", folder / "out").wait()
        found = entries(folder / "out")
        attempts = [entry["attempts"] for entry in found]
        written = (
            len(list((folder / "out").glob("net*[!.]"))) if to == "tf" else len(list((folder / "out").glob("net*")))
        )
        click.echo(
            f"{count} of {net} to {to}, {kills} times killed: exit status {status}, "
            f"{sum(entry['state'] == 'verified' for entry in found)} verified, {written} artifacts, "
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
            running = batch(to, folder / "in", folder / "out", "--scheduler", address)
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
