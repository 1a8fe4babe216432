"""Names and messages from a file are escaped and cut wherever they are shown."""

import io
import json
import os
import sys
import unicodedata
from pathlib import Path

import pytest
import torch
from rich.table import Table
from rich.text import Text

from converter.batch.executors import Task, Worker
from converter.checkpoint.load import load
from converter.console.terminal import Terminal
from converter.errors import ConversionError, printable
from converter.report.failures import failure_of

HOSTILE = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202egnp.exe\u2066\u200b\u200d\ufeff\u2028\x00\r\x08\udc80\U000e0041"
PLAIN = ["a.b-c_d/e", "größe 名前 模型 имя", "a\nb\tc", "naïve café", "100 %", "👍"]


def is_safe(text: str) -> bool:
    return all(
        letter in "\n\t" or unicodedata.category(letter) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for letter in text
    )


@pytest.mark.parametrize("text", PLAIN)
def test_plain_text_is_as_it_was(text: str):
    assert printable(text) == text


@pytest.mark.threat(
    "Control sequences, bidirectional overrides and zero widths in names of a file", "escaped wherever they are shown"
)
def test_nothing_that_a_terminal_acts_on_is_shown(tmp_path: Path):
    error = ConversionError(f"no {HOSTILE}", code="PTC9001", where=HOSTILE, fix=HOSTILE)
    failure = failure_of(error, "net.pt")
    for text in (str(error), failure.what, failure.where, failure.fix):
        assert text
        assert is_safe(text)
    assert r"\x1b[2J" in str(error)
    assert r"\u202e" in str(error)
    stream, log = io.StringIO(), tmp_path / "log"
    terminal = Terminal(verbose=True, file=stream, log_file=log)
    table = Table(HOSTILE)
    table.add_row(Text(HOSTILE))
    terminal.say(table)
    terminal.warn(HOSTILE)
    terminal.show_failure(failure, f"Traceback {HOSTILE}")
    with terminal.progress(HOSTILE):
        pass
    assert is_safe(stream.getvalue())
    assert is_safe(log.read_text())
    assert r"\x1b]0;owned\x07" in stream.getvalue()
    assert is_safe(json.dumps(failure.to_dict()))


@pytest.mark.slow
@pytest.mark.threat("A key of a megabyte", "cut, and its length said")
def test_a_long_name_makes_no_long_message(tmp_path: Path):
    for key in ("k" * 1_000_000, "k " * 500_000):
        torch.save({key: torch.ones(1), "other": 1}, tmp_path / "a.pt")
        with pytest.raises(ConversionError) as error:
            load(tmp_path / "a.pt", factory="torch.nn:Identity")
        assert len(str(error.value)) < 60_000
    assert len(printable("a" * 10**6)) < 2000
    assert "1000000 characters" in printable("a" * 10**6)
    assert len(printable("a " * 10**6)) < 25_000


@pytest.mark.threat(
    "What a model or a library prints", "escaped and cut in the log of a command or a batch, and in the terminal"
)
def test_what_is_printed_is_escaped_and_cut(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    log = tmp_path / "log"
    for terminal in (Terminal(log_file=log, file=io.StringIO()), Terminal(verbose=True)):
        with terminal.quiet_libraries():
            print(HOSTILE)
            os.write(1, HOSTILE.encode(errors="surrogateescape") + b"\xff from C\n")
            print("k" * 1_000_000, "\nthe end")
    for text in (log.read_text(), capfd.readouterr().err):
        assert is_safe(text)
        assert r"\x1b]0;owned\x07" in text
        assert text.count(r"\u202e") == 2
        assert "from C\n" in text
        assert len(text) < 30_000
        assert text.endswith("the end\n")


WORKER = """
import json, sys
request = json.loads(sys.stdin.readline())
open(request["log"], "w").write("\\x1b]0;owned\\x07\\n" + "k" * 10**6)
{ends}
"""


@pytest.mark.parametrize("ends", ["print(json.dumps({'outcome': {'exit_status': 0}}), flush=True)", "sys.exit(1)"])
def test_the_log_of_a_batch_is_escaped_and_cut_also_if_the_worker_died(tmp_path: Path, ends: str):
    worker = Worker(0, 1, 60, 2**40, (sys.executable, "-c", WORKER.format(ends=ends)))
    worker.convert(Task("a", "/a.pt", {}, str(tmp_path / "log"), {}), lambda step: None)
    worker.kill()
    text = (tmp_path / "log").read_text()
    assert text.startswith(r"\x1b]0;owned\x07")
    assert len(text) < 30_000
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
