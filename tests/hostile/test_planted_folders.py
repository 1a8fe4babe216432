"""What somebody else put into an output folder is neither removed, nor replaced, nor followed."""

import contextlib
import json
import os
import socket
import sqlite3
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from converter.artifacts.paths import output_path
from converter.artifacts.placement import Placement
from converter.batch.executors import Task
from converter.batch.jobs import Job
from converter.batch.journal import Journal
from converter.batch.run import _Batch
from converter.errors import OutputError
from converter.report.failures import open_own, write_report

LEFTOVER = ".converter-evil0000"


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """An output folder with a file of the user's in it, and another folder of the user's."""
    out, victim = tmp_path / "out", tmp_path / "victim"
    for folder in (out, victim):
        folder.mkdir()
        (folder / "train.py").write_text("precious")
    return out, victim


def link_to_folder(out: Path, victim: Path) -> None:
    (victim / ".lock").write_text("")
    (out / LEFTOVER).symlink_to(victim)


def linked_lock(out: Path, victim: Path) -> None:
    (out / LEFTOVER).mkdir()
    (out / LEFTOVER / "keep").write_text("")
    (out / LEFTOVER / ".lock").symlink_to(victim / "train.py")


def pipe_as_lock(out: Path, victim: Path) -> None:
    (out / LEFTOVER).mkdir()
    os.mkfifo(out / LEFTOVER / ".lock")


def begun_commit(out: Path, victim: Path) -> None:
    """What an earlier version took for a commit that had begun."""
    planted = out / ".converter-committing-zz"
    planted.mkdir()
    (planted / ".lock").write_text("")
    (planted / "train.py").write_text("evil")


def journal(out: Path, content: object) -> None:
    planted = out / LEFTOVER
    planted.mkdir()
    (planted / ".lock").write_text("")
    (planted / "train.py").write_text("evil")
    if isinstance(content, dict):
        content = {"folder": planted.stat().st_ino} | content
    (planted / ".journal").write_text(content if isinstance(content, str) else json.dumps(content))


def other_folders_journal(out: Path, victim: Path) -> None:
    journal(out, {"folder": 1, "names": ["train.py"]})


def replaces_a_file(out: Path, victim: Path) -> None:
    """Even the folder's own inode, which nobody can know before it exists, replaces nothing."""
    journal(out, {"names": ["train.py"], "replaces": {}})


def replaces_by_inode(out: Path, victim: Path) -> None:
    journal(out, {"names": ["train.py"], "replaces": {"train.py": [(out / "train.py").stat().st_ino, 0]}})


def names_elsewhere(out: Path, victim: Path) -> None:
    journal(out, {"names": ["../victim/train.py"], "replaces": {}})


def removes_a_file(out: Path, victim: Path) -> None:
    (out / "train.py.0123456789abcdef.data").write_text("precious")
    journal(out, {"names": [], "stale": {"train.py.0123456789abcdef.data": [0, 0]}})


def no_object(out: Path, victim: Path) -> None:
    journal(out, "[" * 100_000)


def no_table(out: Path, victim: Path) -> None:
    journal(out, {"names": ["train.py"], "replaces": 3, "stale": [[]]})


PLANTED: list[Callable[[Path, Path], None]] = [
    link_to_folder, linked_lock, pipe_as_lock, begun_commit, other_folders_journal, replaces_a_file, replaces_by_inode,
    names_elsewhere, removes_a_file, no_object, no_table,
]  # fmt: skip


def content_below(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): str(path.readlink()) if path.is_symlink() else path.read_text()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


@pytest.mark.threat(
    "Folders in an output folder that look like leftovers of this program: links, planted commits and journals",
    "left alone and named; no file is removed, replaced or created",
)
@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_nothing_planted_is_swept_or_committed(folders, plant):
    out, victim = folders
    plant(out, victim)
    before = content_below(out), content_below(victim)
    with Placement(out / "a.onnx") as placement:
        placement.temporary.write_text("new")
        placement.commit()
    assert content_below(out).pop("a.onnx") == "new"
    (out / "a.onnx").unlink()
    assert (content_below(out), content_below(victim)) == before
    assert any("was left alone" in note.text for note in placement.notes)


@pytest.mark.threat(
    "A link named like an artifact's second file",
    "not followed, its target is kept",
)
def test_a_planted_second_file_is_not_followed(folders):
    """A link that is named like the second file of an artifact."""
    out, victim = folders
    for _ in range(2):
        with Placement(out / "a.onnx", force=True) as placement:
            placement.temporary.write_text("new")
            placement.commit()
        if not (out / "a.onnx.0123456789abcdef.data").is_symlink():
            (out / "a.onnx.0123456789abcdef.data").symlink_to(victim / "train.py")
    assert (victim / "train.py").read_text() == "precious"


@pytest.mark.threat(
    "Links named like a batch's report, log or journal in its folder", "an error; their targets are kept"
)
@pytest.mark.parametrize("hard", [False, True])
def test_links_in_the_place_of_files_of_a_batch_are_not_followed(folders, hard):
    out, victim = folders
    names = (".summary.json.new", "net.log", "journal.sqlite")
    for name in names:
        (out / name).hardlink_to(victim / "train.py") if hard else (out / name).symlink_to(victim / "train.py")
    why = "another name" if hard else "symbolic links"
    with pytest.raises(OutputError, match=why):
        write_report(out / "summary.json", {"schema": 1})
    with pytest.raises(OSError, match=why):
        open_own(out / "net.log")
    with pytest.raises(OutputError, match="is a link, which"):
        Journal(out / "journal.sqlite")
    assert (victim / "train.py").read_text() == "precious"


def planted_journal(out: Path, job: Job, **columns: object) -> None:
    """A journal that says that the model is done, with all that somebody who has the checkpoint can know."""
    (artifact,) = job.outputs(out).values()
    artifact.write_text("evil")
    with Journal(out / "journal.sqlite") as journal:
        journal.claim(job, journal.fingerprint(job), retry_failed=False)
        journal.end(job, "verified", 0, "", [artifact], 1.0, codes=["x"])
    said = {"files": json.dumps([[str(artifact), [4, 0, 1]]])} | columns
    with sqlite3.connect(out / "journal.sqlite") as database:
        database.execute(f"update models set {', '.join(f'{name} = ?' for name in said)}", tuple(said.values()))


PLANTED_ROWS: dict[str, dict[str, object]] = {
    "of the right size": {},
    "no file": {"files": "[]"},
    "a file elsewhere": {"files": "elsewhere"},
    "a state that is none": {"state": "fine"},
    "a status that is none": {"exit_status": "x"},
    "no table of files": {"files": "3"},
    "no text": {"files": None},
    "under way elsewhere for ever": {"state": None, "owner": "elsewhere 1 1.0 x", "renewed": 9e18},
    "under way by nobody": {"state": None, "owner": "x", "renewed": 9e18},
}


@pytest.mark.threat(
    "A batch's journal that says that models are done, have failed or are under way",
    "what it says does not count: only artifacts last changed when it noted, to the nanosecond, are done",
)
@pytest.mark.parametrize("columns", PLANTED_ROWS.values(), ids=PLANTED_ROWS)
def test_a_planted_journal_does_not_make_a_model_done(folders, columns):
    out, victim = folders
    (victim / "net.pt").write_text("checkpoint")
    if columns.get("files") == "elsewhere":
        found = victim / "train.py"
        columns = {"files": json.dumps([[str(found), [found.stat().st_size, found.stat().st_ctime_ns, 1]]])}
    job = Job("net", victim / "net.pt", ("onnx",))
    planted_journal(out, job, **columns)
    with Journal(out / "journal.sqlite") as journal:
        try:
            assert journal.claim(job, journal.fingerprint(job), retry_failed=False)[0] == "begin"
        except OutputError as error:
            assert "damaged" in error.what  # noqa: PT017  # either is right
        else:
            with journal.results() as (ended, elsewhere):
                assert (ended, elsewhere) == ([], [])


def another_table(journal: Path) -> None:
    with sqlite3.connect(journal) as database:
        database.execute("create trigger t after insert on models begin delete from models; end")


def a_view(journal: Path) -> None:
    with sqlite3.connect(journal) as database:
        database.execute("create view models as select 1")


def rolls_back_and_removes(journal: Path) -> None:
    """SQLite removes the file that an interrupted transaction over several databases names in its journal."""
    with sqlite3.connect(journal) as database:
        database.execute("create table t (x)")
    size = journal.stat().st_size
    head = bytes.fromhex("d9d505f920a163d7") + struct.pack(">5I", 0, 0, size // 4096, 512, 4096)
    name = bytes(journal.parents[1] / "victim" / "train.py")
    lock_page = 0x40000000 // 4096 + 1
    tail = struct.pack(">I", lock_page) + name + struct.pack(">2I", len(name), sum(name)) + head[:8]
    journal.with_name("journal.sqlite-journal").write_bytes(head.ljust(512, b"\0") + tail)


def linked(suffix: str, hard: bool = False) -> Callable[[Path], None]:
    def plant(journal: Path) -> None:
        target = journal.parents[1] / "victim" / "train.py"
        link = journal.with_name(journal.name + suffix)
        link.hardlink_to(target) if hard else link.symlink_to(target)

    plant.__name__ = f"{'hard ' if hard else ''}link{suffix}"
    return plant


@pytest.mark.threat(
    "A batch's journal with triggers or views, or files beside it that SQLite would follow, or that name one to remove",
    "an error; nothing is followed or removed",
)
@pytest.mark.parametrize(
    "plant",
    [another_table, a_view, rolls_back_and_removes, linked(""), linked("-journal"), linked("-wal"), linked("-shm"),
     linked("", True), linked("-journal", True)],
    ids=lambda plant: plant.__name__,
)  # fmt: skip
def test_a_planted_journal_does_nothing(folders, plant):
    out, victim = folders
    if plant is another_table:
        Journal(out / "journal.sqlite").close()
    plant(out / "journal.sqlite")
    with pytest.raises(OutputError, match="The journal cannot be used"):
        Journal(out / "journal.sqlite")
    assert (victim / "train.py").read_text() == "precious"


@pytest.mark.slow
@pytest.mark.threat(
    "A batch's journal with values of other kinds, nested without measure or too large",
    "an error, or the model is converted again",
)
@pytest.mark.parametrize("column", ["state", "exit_status", "reason", "codes", "artifacts", "files", "log", "seconds",
                                    "attempts", "owner", "renewed"])  # fmt: skip
def test_a_planted_value_is_damage(folders, column):
    out, _ = folders
    artifact, job = out / "net.onnx", Job("net", out / "net.pt", ("onnx",))
    artifact.write_text("artifact")
    values = [
        None,
        b"\xff",
        2**60,
        1e308,
        "",
        "x",
        "[" * 3000,
        "{" * 9,
        '{"a": []}',
        "[1]",
        '[["a\\u0000", 1]]',
        "a 9 9 9",
    ]
    for value in (*values, f"{socket.gethostname()} {'9' * 30} 1 x"):
        with Journal(out / "journal.sqlite") as journal:
            journal.claim(job, "f", retry_failed=False)
            journal.end(job, "verified", 0, "", [artifact], 1.0)
        with sqlite3.connect(out / "journal.sqlite") as database, contextlib.suppress(sqlite3.IntegrityError):
            database.execute(f"update models set {column} = ?", (value,))
        with contextlib.suppress(OutputError), Journal(out / "journal.sqlite") as journal:
            with journal.results() as (ended, _):
                assert all(isinstance(entry.reason, str) and entry.seconds >= 0 for entry in ended)
            journal.claim(job, "f", retry_failed=False)
        (out / "journal.sqlite").unlink()


@pytest.mark.threat(
    "Links in an output folder: named like an artifact, or a folder on the way to one, a log or a report",
    "an error that names the link; only a link that -o names is followed",
)
@pytest.mark.parametrize("name", ["net.onnx", "logs", "reports", "reports/net.json", "sub", "sub/net.onnx"])
def test_only_a_link_that_the_user_named_is_followed(folders, monkeypatch, name):
    out, victim = folders
    where = out / name
    where.parent.mkdir(exist_ok=True)
    where.symlink_to(victim / "train.py" if "." in name else victim)
    before = content_below(victim)
    checkpoint = victim.with_name("net.pt")
    checkpoint.write_text("checkpoint")
    job = Job("sub/net" if name.startswith("sub") else "net", checkpoint, ("onnx",))
    with pytest.raises(OutputError, match="is a link"), Journal(out / "journal.sqlite") as journal:
        _Batch([job], out, journal, Never(), None, False, False).run()
    if name == "net.onnx":
        monkeypatch.chdir(out)
        for output in (None, out):
            with pytest.raises(OutputError, match="is a link"):
                output_path(checkpoint, "onnx", output, output is not None)
        assert output_path(checkpoint, "onnx", where, False) == where
    assert content_below(victim) == before


class Never:
    """An executor that must not be asked for anything."""

    slots = 1

    def submit(self, task: Task) -> None:
        raise AssertionError(task)
