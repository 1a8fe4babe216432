"""What somebody else put into an output folder is neither removed, nor replaced, nor followed."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from converter.artifacts.placement import Placement
from converter.batch.journal import Journal
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
def test_links_in_the_place_of_files_of_a_batch_are_not_followed(folders):
    out, victim = folders
    names = (".summary.json.new", "net.log", "journal.sqlite")
    for name in names:
        (out / name).symlink_to(victim / "train.py")
    with pytest.raises(OutputError, match="symbolic links"):
        write_report(out / "summary.json", {"schema": 1})
    with pytest.raises(OSError, match="symbolic links"):
        open_own(out / "net.log")
    with pytest.raises(OutputError, match="is a link"):
        Journal(out / "journal.sqlite")
    assert (victim / "train.py").read_text() == "precious"
