"""Run commands in a process that has imported nothing yet."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = """
import json, sys
from click.testing import CliRunner
import cli
for command in json.loads(sys.argv[1]):
    done = CliRunner().invoke(cli.main, command)
    imported = sorted({"torch", "tensorflow", "keras"} & sys.modules.keys())
    print(json.dumps([done.exit_code, done.stdout, done.output, imported]))
"""


def run_commands(folder: Path, *commands: list[str]) -> list[tuple[int, str, str, list[str]]]:
    """Run commands one after another in one fresh process, and return status, outputs and what is imported by then."""
    places = os.pathsep.join([str(folder / "first"), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps(commands)],
        cwd=folder, env=os.environ | {"PYTHONPATH": places}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]
