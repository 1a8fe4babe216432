"""Where messages go: log files, pipes, terminals of every kind; and what shells complete."""

import json
import os
import pty
import re
import subprocess
import sys
import threading
from importlib.metadata import version
from pathlib import Path

import pytest
from click.testing import CliRunner
from test_cli import CALLS, NOISY, convert

import cli
import converter
from converter.batch.journal import Entry
from converter.console.batch_progress import BatchDisplay
from converter.console.streams import LogFile
from converter.console.terminal import Terminal
from converter.errors import OutputError

ROOT = Path(__file__).resolve().parents[2]
TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}  "
CONVERTS = """
import converter
from converter.__main__ import main
from test_cli import convert
from converter.pipeline import preflight
converter.convert, preflight.check_call = convert, lambda *_: None
main()
"""


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run the command in an empty folder, with a conversion that is made up."""
    monkeypatch.setattr(converter, "convert", convert, raising=False)
    monkeypatch.setattr("converter.pipeline.preflight.check_call", lambda *_: None)  # there are no files
    monkeypatch.chdir(tmp_path)
    CALLS.clear()
    return lambda *arguments: CliRunner().invoke(cli.main, [*arguments, "--to", "tf", "--log-file", "log"])


def environment(**more: str) -> dict[str, str]:
    known = {name: value for name, value in os.environ.items() if name not in ("CI", "NO_COLOR", "FORCE_COLOR", "TERM")}
    return known | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests/console")])} | more


# -- log files


def test_a_log_holds_what_v_shows_with_times(run, tmp_path):
    result = run("good.pt", "broken.pt")
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in result.stderr
    assert "cosine" not in result.stderr
    for part in (
        "  capture begins",
        "✓ capture",
        "cosine",
        "Traceback",
        'raise KeyError("aten")',
        "Please report",
        "failed",
    ):
        assert part in log
    assert f"pt-convert {version('pt-convert')}: " in log
    assert all(re.match(TIME, line) for line in log.splitlines())


@pytest.mark.slow
def test_a_log_is_added_to(run, tmp_path):
    for _ in range(2):
        run("good.pt")
    assert (tmp_path / "log").read_text().count("capture begins") == 2


def test_a_log_is_full_where_the_terminal_is_quiet(run, tmp_path):
    assert run("good.pt", "-q").stderr == ""
    assert "cosine" in (tmp_path / "log").read_text()


def test_a_log_tells_of_an_interruption(run, tmp_path):
    assert run("interrupted.pt").exit_code == 130
    assert "KeyboardInterrupt" in (tmp_path / "log").read_text()


def test_a_log_that_cannot_be_opened_ends_it_before_any_work(run, tmp_path):
    (tmp_path / "log").mkdir()
    result = run("good.pt")
    assert result.exit_code == 1
    assert "The log cannot be written: Is a directory." in result.stderr
    assert not CALLS


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="where no device is always full")
def test_a_log_on_a_full_disk_does_not_end_the_conversion(run, tmp_path):
    (tmp_path / "log").symlink_to("/dev/full")
    result = run("good.pt")
    assert result.exit_code == 0
    assert "could not be written to its end: No space left" in result.stderr


@pytest.mark.slow
def test_what_libraries_print_goes_into_the_log(tmp_path):
    command = [sys.executable, "-c", NOISY, "good.pt", "--to", "tf", "--json", "--log-file", "log"]
    result = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert json.loads(result.stdout)["models"][0]["status"] == "verified"
    log = (tmp_path / "log").read_text()
    for noise in ("python out", "python err", "a warning", "descriptor out", "descriptor err", "child out"):
        assert noise in log
        assert noise not in result.stderr


def test_a_batch_logs_every_step_and_model(tmp_path):
    terminal = Terminal(quiet=True, log_file=tmp_path / "log")
    entry = Entry("a/net", "net.pt", "failed", 1, "it broke", {}, "out/logs/a/net.log", 2.5, 1)
    with BatchDisplay(terminal) as display:
        display.begin(1, 1)
        display.step(0, "a/net", "capture")
        display.ended(entry, 0)
    log = (tmp_path / "log").read_text()
    for part in ("1 model, 1 at once", "a/net: capture", "failed a/net 2.5 s it broke", "see out/logs/a/net.log"):
        assert part in log


def test_a_log_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="log cannot be written"):
        LogFile(tmp_path / "file" / "log")


# -- terminals and pipes


def in_terminal(folder: Path, code: str = CONVERTS, **more: str) -> str:
    """What the command draws in a terminal."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code, "good.pt", "--to", "tf"],
        cwd=folder, env=environment(**more), stdout=subprocess.DEVNULL, stderr=slave, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(slave)
    drawn = bytearray()

    def read() -> None:
        try:
            while part := os.read(master, 4096):
                drawn.extend(part)
        except OSError:  # the other end is closed
            return

    reader = threading.Thread(target=read)
    reader.start()
    assert process.wait(30) == 0
    reader.join(30)
    os.close(master)
    return drawn.decode()


COLOUR, CURSOR = re.compile(r"\x1b\[[\d;]*m"), re.compile(r"\x1b\[(\?25|\d*[AK])|\r(?!\n)")


@pytest.mark.slow
@pytest.mark.parametrize(
    "more, colors, bars",
    [
        pytest.param({"TERM": "xterm-256color"}, True, True, id="a terminal"),
        pytest.param({"TERM": "xterm-256color", "NO_COLOR": "1"}, False, True, id="NO_COLOR"),
        pytest.param({"TERM": "xterm-256color", "CI": "true"}, True, False, id="CI"),
        pytest.param({"TERM": "dumb"}, False, False, id="a dumb terminal"),
    ],
)
def test_a_terminal_gets_what_it_can_show(tmp_path, more, colors, bars):
    drawn = in_terminal(tmp_path, **more)
    assert "verified" in drawn
    assert bool(COLOUR.search(drawn)) == colors
    assert bool(CURSOR.search(drawn)) == bars


@pytest.mark.slow
def test_a_terminal_shows_that_pytorch_is_imported(tmp_path):
    imports = CONVERTS.replace(
        "converter.convert, preflight.check_call = convert,",
        "converter.__getattr__, preflight.check_call = lambda name: __import__('time').sleep(0.5) or convert,",
    )
    assert "import PyTorch" in in_terminal(tmp_path, imports, TERM="xterm-256color")
    assert "import PyTorch" not in in_terminal(tmp_path, imports, TERM="dumb")


@pytest.mark.slow
def test_a_pipe_gets_no_control_characters(tmp_path):
    command = [sys.executable, "-c", CONVERTS, "good.pt", "--to", "tf"]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment(TERM="xterm-256color"), capture_output=True, text=True
    )
    assert result.returncode == 0
    assert "verified" in result.stderr
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", result.stderr)


@pytest.mark.slow
def test_a_reader_that_goes_away_does_not_end_the_conversion(tmp_path):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-c", CONVERTS, "good.pt", "--to", "tf", "--report", "report.json"]
    result = subprocess.run(command, cwd=tmp_path, env=environment(), stderr=write)
    os.close(write)
    assert result.returncode == 0
    assert json.loads((tmp_path / "report.json").read_text())["models"][0]["status"] == "verified"


def with_json(folder: Path, redirected: str) -> subprocess.CompletedProcess[str]:
    """The command with `--json` and a report, its streams redirected by a shell."""
    command = f'"$PYTHON" -c "$CONVERTS" good.pt --to tf --json --report report.json {redirected}'
    known = environment(PYTHON=sys.executable, CONVERTS=CONVERTS)
    return subprocess.run(["bash", "-c", command], cwd=folder, env=known, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-", "2> /dev/full"])
def test_closed_streams_do_not_end_the_conversion(tmp_path, closed):
    result = with_json(tmp_path, closed)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "report.json").read_text())["models"][0]["status"] == "verified"
    assert "Traceback" not in result.stderr
    if ">" not in closed.replace("2>", ""):
        assert json.loads(result.stdout)["models"]


@pytest.mark.slow
def test_a_reader_of_the_report_that_goes_away_leaves_the_status_as_it_is(tmp_path):
    result = with_json(tmp_path, '| true; echo "status ${PIPESTATUS[0]}"')
    assert result.stdout == "status 0\n"
    assert "Traceback" not in result.stderr
    assert "Exception" not in result.stderr
    assert (tmp_path / "report.json").exists()


@pytest.mark.slow
def test_a_report_that_cannot_be_printed_is_said_and_the_other_is_written(tmp_path):
    result = with_json(tmp_path, "> /dev/full")
    assert result.returncode == 1
    assert "The report cannot be printed: No space left on device." in result.stderr
    assert "Traceback" not in result.stderr
    assert (tmp_path / "report.json").exists()


@pytest.mark.parametrize(
    "arguments, says",
    [
        pytest.param([""], "this is empty", id="an empty model, as of an unset variable"),
        pytest.param(["good.pt", "-o", ""], "this is empty", id="an empty output"),
        pytest.param([os.fsdecode(b"good\xff.pt")], "is not UTF-8", id="bytes that are no text"),
        pytest.param(["good.pt", "--report", os.fsdecode(b"\xe9.json")], "is not UTF-8", id="in a report's name"),
    ],
)
def test_names_that_nothing_can_hold_are_refused_at_once(run, arguments, says):
    result = run(*arguments)
    assert result.exit_code == 2
    assert says in result.stderr
    assert not CALLS


@pytest.mark.parametrize("folder", ["two words", "ünï ✓", "a\nb", "-v", "100%[bold]", "a:b", "~"])
def test_names_of_any_text_are_shown_and_reported(run, folder):
    result = run("--json", f"./{folder}/good.pt")
    assert result.exit_code == 0, result.stderr
    assert f"{folder}/good.pt -> tf" in result.stderr
    assert json.loads(result.stdout)["models"][0]["source"] == f"{folder}/good.pt"


@pytest.mark.parametrize(
    "does, options, goes_on",
    [("run.convert_many", ("-o", "out"), True), ("check.check_many", ("--check",), False)],
    ids=["a batch", "a check"],
)
def test_only_what_goes_on_where_it_stopped_says_so(run, tmp_path, monkeypatch, does, options, goes_on):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"converter.batch.{does}", interrupted)
    (tmp_path / "a.pt").touch()
    result = run("batch", "a.pt", *options)
    assert result.exit_code == 130
    assert "Ended by SIGINT" in result.stderr
    assert ("same command again to resume" in result.stderr) == goes_on


# -- completion


def completed(folder: Path, words: str, program: str = "convert") -> list[str]:
    variable = f"_{program.upper().replace('-', '_')}_COMPLETE"
    code = f"import sys; sys.argv[0] = {program!r}\nfrom converter.__main__ import main\n"
    code += "try: main()\nfinally: assert 'torch' not in sys.modules and 'rich' not in sys.modules"
    more = {variable: "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment(**more), capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


@pytest.mark.parametrize(
    "words, expected",
    [
        pytest.param("convert ", ["file,", "plain,batch", "plain,inspect", "plain,verify"], id="models and commands"),
        pytest.param("convert --inp", ["plain,--input-shape", "plain,--inputs"], id="the main job's options"),
        pytest.param("convert a.pt --to ", ["plain,tf", "plain,keras", "plain,onnx"], id="formats"),
        pytest.param("convert a.pt --model n", ["plain,nets.py:"], id="files that may define a factory"),
        pytest.param("convert a.pt --model nets.py:b", ["plain,nets.py:build"], id="what a file defines"),
        pytest.param("convert a.pt --model broken.py:", [], id="a file that is no Python"),
        pytest.param("convert a.pt --trust p", ["plain,package"], id="packages"),
        pytest.param("convert batch --sh", ["plain,--shard"], id="options of a command"),
        pytest.param("pt-convert verify --acc", ["plain,--accept"], id="the other name"),
    ],
)
def test_completion(tmp_path, words, expected):
    (tmp_path / "nets.py").write_text("class Net: pass\n\ndef build(): raise SystemExit('nothing is run')\n")
    (tmp_path / "broken.py").write_text("def")
    (tmp_path / "package").mkdir()
    (tmp_path / "package/__init__.py").touch()
    found = completed(tmp_path, words, words.split()[0])
    assert set(expected) <= set(found)
    assert expected or not found


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize("program", ["convert", "pt-convert"])
def test_completion_can_be_installed(tmp_path, shell, program):
    variable = f"_{program.upper().replace('-', '_')}_COMPLETE"
    result = subprocess.run(
        [Path(sys.executable).with_name(program)],
        cwd=tmp_path, env=environment(**{variable: f"{shell}_source"}), capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0
    assert program in result.stdout
