"""README.md's commands and examples, run as written. Set-up and tests are run by `.ci/run`, in a fresh environment."""

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

import cli

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text()
COMMANDS = os.environ | {
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
MARKS = {"set-up": "sh", "main job": "sh", "main job says": "text", "after the main job": "python", "tests": "sh"}


def blocks(language: str, mark: str | None = None) -> list[str]:
    """The code blocks of a language, all or those under a mark."""
    above = rf"^<!-- {mark} -->\n" if mark else "^"
    return re.findall(rf"{above}```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


CONVERSIONS = [block for block in blocks("sh") if block.startswith("convert ")]
(MAIN_JOB,) = blocks("sh", "main job")


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, cwd=folder, env=COMMANDS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


def shell(commands: str, folder: Path) -> str:
    return run(["bash", "-euc", commands], folder).stderr


def empty_folder(folder: Path) -> Path:
    (folder / "sample_models").symlink_to(REPOSITORY / "sample_models")
    return folder


@pytest.fixture(scope="module")
def main_job(tmp_path_factory) -> tuple[Path, str]:
    """The folder in which the main job was run, and what it said."""
    folder = empty_folder(tmp_path_factory.mktemp("readme"))
    return folder, shell(MAIN_JOB, folder)


def test_main_job_writes_three_artefacts(main_job):
    written = {path.name for path in main_job[0].iterdir()}
    assert {"digits_focus_saved_model", "digits_focus.keras", "digits_focus.onnx"} <= written


def test_main_job_says_what_is_shown(main_job):
    """Figures differ between machines, lines do not."""
    (shown,) = blocks("text", "main job says")
    said = [in_general(line.strip("│ ")) for line in main_job[1].splitlines()]
    for line in shown.splitlines():
        assert in_general(line.strip()) in said, line
    assert "99.4 % before, 99.4 % after; all of 360 predictions the same" in main_job[1]


def in_general(line: str) -> str:
    """Without errors and times, and without the width of the first column."""
    line = re.sub(r"\d\.\de-\d\d|\d+\.\d (?=x|s$|ulp)", "N ", line)
    return re.sub(r" {2,}", "  ", line)


def test_artefacts_are_used_as_shown(main_job):
    (example,) = blocks("python", "after the main job")
    done = run([sys.executable, "-c", example], main_job[0])
    assert done.stdout.split() == re.findall(r"# (\d.*%)$", example, re.MULTILINE) * 3


@pytest.mark.parametrize(
    "commands",
    [block for block in CONVERSIONS if block != MAIN_JOB],
    ids=lambda block: "-".join(Path(word).name for word in block.split()[1:3]),
)
def test_other_commands_work_as_written(main_job, commands: str):
    shell(commands, main_job[0])


@pytest.mark.parametrize("example", blocks("python", "example"), ids=["from Python", "an operator of one's own"])
def test_example_works_as_written(tmp_path: Path, example: str):
    done = run([sys.executable, "-c", example], tmp_path)
    assert done.stdout.startswith("verified\n")


@pytest.mark.parametrize("mark", MARKS)
def test_block_that_scripts_look_for_is_there(mark: str):
    assert len(blocks(MARKS[mark], mark)) == 1


@pytest.mark.parametrize("command", cli.main.commands.values(), ids=cli.main.commands)
def test_options_table_is_that_of_the_command(command: click.Command):
    rows = re.findall(r"^\| (`-.*?) \| (.*?) \|", README, re.MULTILINE)
    of_command = " ".join(options for options, of in rows if of == "all" or command.name in of.split(", "))
    in_readme = set(re.findall(r"--?[a-z][a-z-]*", of_command))
    options = [option for option in command.params if isinstance(option, click.Option)]
    assert in_readme == {name for option in options for name in option.opts}


def test_exit_statuses_are_those_of_the_command():
    statuses = re.findall(r"^\| (\d+) \|", README, re.MULTILINE)
    assert sorted(map(int, statuses)) == sorted({*cli.WORST_FIRST, cli.INTERRUPTED})
