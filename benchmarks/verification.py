"""Time of `verify` alone against the conversion that it checks. Run on a quiet machine.

    python benchmarks/verification.py [--model mobilenet_v2] [--to tf --to keras --to onnx] [--runs 3]

Each figure is of a process of its own, from importing torch on, building the model not counted; "processor" is the time
of all its threads and children, that of building the model too. "plain" is what `torch.onnx.export` writes, which
was not written by pt-convert.
"""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).resolve().parent))
from conversion import torch_model

SHAPE = ["1,3,224,224"]


def measured(what: str, name: str, artifact: Path, format: str) -> dict:
    started = time.perf_counter()
    import torch

    imported = time.perf_counter() - started
    model = torch_model(name)
    import converter

    if what == "export":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(model, (torch.rand(1, 3, 224, 224),), artifact, dynamo=False)
        return {}
    started = time.perf_counter()
    if what == "convert":
        report = converter.convert(model, to=[format], output=artifact, input_shapes=SHAPE)
    else:
        report = converter.verify(
            model, artifact, input_shapes=SHAPE, weights=what == "--weights", trace=what == "--trace"
        )
    seconds = imported + time.perf_counter() - started
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    processor = sum(one.ru_utime + one.ru_stime for one in usage)
    if report.status != "verified":
        raise SystemExit(f"{what} {artifact}: {report.status}")
    return {"seconds": seconds, "processor": processor, "timings": dict(report.timings)}


@click.command(help=__doc__)
@click.option("--model", "name", default="mobilenet_v2")
@click.option("--to", "formats", multiple=True, default=["tf", "keras", "onnx"])
@click.option("--runs", default=3)
@click.option("--only", nargs=3, hidden=True)
def main(name: str, formats: tuple[str, ...], runs: int, only: tuple[str, str, str] | None) -> None:
    if only:
        click.echo(json.dumps(measured(only[0], name, Path(only[1]), only[2])))
        return

    def timed(what: str, artifact: Path, format: str) -> dict:
        command = [sys.executable, __file__, "--model", name, "--only", what, str(artifact), format]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return json.loads(printed.splitlines()[-1])

    endings = {"tf": "saved_model", "keras": "model.keras", "onnx": "model.onnx", "plain": "plain.onnx"}
    with tempfile.TemporaryDirectory() as folder:
        timed("export", Path(folder, endings["plain"]), "plain")
        click.echo(f"{name}, seconds, median of {runs} runs")
        for format in (*formats, "plain"):
            artifact = Path(folder, endings[format])
            for what in ("convert", "verify", "--weights", "--trace"):
                if (format, what) == ("plain", "convert"):
                    continue
                found = [timed(what, artifact, format) for _ in range(runs)]
                median, processor = (statistics.median(run[key] for run in found) for key in ("seconds", "processor"))
                steps = ", ".join(f"{step} {seconds:.1f}" for step, seconds in found[-1]["timings"].items())
                click.echo(f"{format:6} {what:10} {median:6.1f}   processor {processor:6.1f}   {steps}")


if __name__ == "__main__":
    main()
