"""Runs the quick part of the tests in a fresh virtual environment with the versions of a constraints file.

    python benchmarks/versions.py constraints-lowest.txt [--python python3.12] [--keep FOLDER] [PYTEST_ARGUMENT ...]

What is quick is what hangs most on versions: capture, every format written and opened again, modules of PyTorch's own,
random networks, checkpoints of every kind, the command line. It takes minutes; arguments for pytest take its place.
"""

import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[1]
QUICK = (
    "tests/end_to_end/test_main_job.py",
    "tests/capture/test_capture.py",
    "tests/checkpoint/test_checkpoint.py",
    "tests/console/test_cli.py",
    "tests/console/test_messages.py",
    "tests/mappings/test_module_conformance.py",
    "tests/fuzz/test_random_modules.py",
    "tests/artifacts/test_placement.py",
    "tests/lowering/test_training.py",
)  # fmt: skip
SHOWN = ("torch", "tensorflow", "keras", "onnx", "onnxscript", "onnxruntime", "numpy", "safetensors", "click", "rich")
VERSIONS = f"""
import sys
from importlib.metadata import version
print("Python", sys.version.split()[0], *(f"{{name}} {{version(name)}}" for name in {SHOWN!r}), sep=", ")
"""


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("constraints", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--python", default=sys.executable, help="Interpreter to make the environment with.")
@click.option("--keep", type=click.Path(path_type=Path), help="Folder of the environment, used again if it is there.")
@click.argument("pytest_arguments", nargs=-1, type=click.UNPROCESSED)
def main(constraints: Path, python: str, keep: Path | None, pytest_arguments: tuple[str, ...]) -> None:
    """Exits as pytest does."""
    with ExitStack() as stack:
        folder = keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        interpreter = folder / "bin" / "python"
        if not interpreter.exists():
            subprocess.run([python, "-m", "venv", folder], check=True)
            install = ["-m", "pip", "install", "--quiet", "-c", constraints.resolve(), "-e", f"{ROOT}[test]"]
            subprocess.run([interpreter, *install], check=True)
        subprocess.run([interpreter, "-c", VERSIONS], check=True)
        tests = pytest_arguments or ("-q", *QUICK)
        sys.exit(subprocess.run([interpreter, "-m", "pytest", *tests], cwd=ROOT).returncode)


if __name__ == "__main__":
    main()
