"""Artifacts are put in place whole or not at all, and never over what is not ours."""

import errno
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from converter.artifacts import placement as placing
from converter.artifacts.placement import Placement, data_name
from converter.artifacts.runtime.stamp import SAVED_MODEL_FILE, read_stamp
from converter.errors import OutputError


def write_saved_model(path: Path, content: str, *, stamped: bool = True) -> None:
    path.mkdir(parents=True)
    (path / "saved_model.pb").write_text(content)
    if stamped:
        (path / SAVED_MODEL_FILE).parent.mkdir()
        (path / SAVED_MODEL_FILE).write_text('{"schema": 1}')


def place(target: Path, content: str, *, force: bool = False) -> None:
    with Placement(target, force=force) as placement:
        placement.temporary.write_text(content)
        placement.commit()


def place_saved_model(target: Path, content: str) -> None:
    with Placement(target) as placement:
        write_saved_model(placement.temporary, content)
        placement.commit()


def write_half(target: Path, error: BaseException | type[BaseException]) -> None:
    with Placement(target) as placement:
        write_saved_model(placement.temporary, "half")
        raise error


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def no_exchange(monkeypatch):
    """As on a file system that cannot exchange two folders."""
    monkeypatch.setattr(placing, "_exchange", lambda name, one, other: False)


def test_a_file_is_at_its_final_name_in_a_folder_beside_the_target_until_commit(tmp_path):
    target = tmp_path / "new" / "folder" / "a.onnx"
    with Placement(target) as placement:
        assert placement.temporary.name == "a.onnx"
        assert placement.temporary.parent.parent == target.parent
        placement.temporary.write_text("weights")
        assert not target.exists()
        placement.commit()
        assert target.read_text() == "weights"
    assert names(target.parent) == ["a.onnx"]


def test_what_stands_beside_is_placed_too(tmp_path):
    with Placement(tmp_path / "a.onnx") as placement:
        placement.temporary.write_text("model")
        placement.temporary.with_name("a.onnx.data").write_text("weights")
        placement.commit()
    assert names(tmp_path) == ["a.onnx", "a.onnx.data"]


def test_external_data_of_someone_else_is_not_replaced(tmp_path):
    (tmp_path / "a.onnx.data").write_text("not ours")
    with Placement(tmp_path / "a.onnx") as placement:
        placement.temporary.write_text("model")
        placement.temporary.with_name("a.onnx.data").write_text("weights")
        with pytest.raises(OutputError, match="--force"):
            placement.commit()
    assert names(tmp_path) == ["a.onnx.data"]
    assert (tmp_path / "a.onnx.data").read_text() == "not ours"


@pytest.mark.parametrize("how", ["exchanged", "in two steps"])
def test_a_folder_of_ours_is_replaced(tmp_path, how, request):
    if how == "in two steps":
        request.getfixturevalue("no_exchange")
    place_saved_model(tmp_path / "m", "old")
    place_saved_model(tmp_path / "m", "new")
    assert (tmp_path / "m" / "saved_model.pb").read_text() == "new"
    assert names(tmp_path) == ["m"]


@pytest.mark.skipif(sys.platform != "linux", reason="renameat2 is Linux's")
def test_this_system_exchanges_folders_at_once(tmp_path):
    for name in "ab":
        (tmp_path / name / "m" / name).mkdir(parents=True)
    one, other = (os.open(tmp_path / name, os.O_RDONLY) for name in "ab")
    try:
        assert placing._exchange("m", one, other)
    finally:
        os.close(one)
        os.close(other)
    assert (tmp_path / "a" / "m" / "b").is_dir()


@pytest.mark.parametrize(
    "occupy, force, fix",
    [
        pytest.param(lambda path: path.write_text("notes"), False, "--force", id="a file of the user's"),
        pytest.param(lambda path: path.write_text(""), False, "--force", id="an empty file"),
        pytest.param(lambda path: path.mkdir(), False, "--force", id="an empty folder"),
        pytest.param(
            lambda path: write_saved_model(path, "theirs", stamped=False), False, "--force", id="a SavedModel not ours"
        ),
        pytest.param(
            lambda path: (path / "thesis").mkdir(parents=True),
            True,
            "remove the folder yourself",
            id="--force on a folder of other things",
        ),
        pytest.param(os.mkfifo, True, "another -o", id="--force on a device"),
        pytest.param(
            lambda path: (path.mkdir(), (path / "converter_stamp.json").write_text("{}")),
            True,
            "remove the folder yourself",
            id="a file named like a stamp does not make a folder ours",
        ),
    ],
)
def test_a_taken_path_is_refused_before_any_work(tmp_path, occupy, force, fix):
    target = tmp_path / "taken"
    occupy(target)
    before = target.stat()
    with pytest.raises(OutputError) as refused:
        Placement(target, force=force)
    assert fix in str(refused.value.fix)
    assert str(target) in str(refused.value)
    assert names(tmp_path) == ["taken"]
    assert target.stat().st_ino == before.st_ino


@pytest.mark.parametrize(
    "occupy",
    [
        pytest.param(lambda path: path.write_text("notes"), id="file"),
        pytest.param(lambda path: path.mkdir(), id="empty folder under a file"),
        pytest.param(lambda path: write_saved_model(path, "theirs", stamped=False), id="SavedModel under a file"),
    ],
)
@pytest.mark.parametrize("how", ["exchanged", "in two steps"])
def test_force_replaces(tmp_path, occupy, how, request):
    if how == "in two steps":
        request.getfixturevalue("no_exchange")
    occupy(tmp_path / "a.keras")
    place(tmp_path / "a.keras", "new", force=True)
    assert (tmp_path / "a.keras").read_text() == "new"
    assert names(tmp_path) == ["a.keras"]


def test_a_folder_of_other_things_is_refused_with_what_can_be_done(tmp_path):
    """And not with --force, which would not help."""
    (tmp_path / "out" / "thesis").mkdir(parents=True)
    with pytest.raises(OutputError) as refused:
        Placement(tmp_path / "out")
    assert "-o out/NAME" in str(refused.value.fix)
    assert "--force" not in str(refused.value.fix)


def test_a_path_taken_while_the_conversion_ran_is_not_replaced(tmp_path):
    target = tmp_path / "a.keras"
    with Placement(target) as placement:
        placement.temporary.write_text("new")
        target.write_text("came meanwhile")
        with pytest.raises(OutputError, match="--force"):
            placement.commit()
    assert target.read_text() == "came meanwhile"
    assert names(tmp_path) == ["a.keras"]


def test_a_link_is_followed(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "a.keras").symlink_to(tmp_path / "disk" / "a.keras")
    place(tmp_path / "a.keras", "new")
    assert (tmp_path / "a.keras").is_symlink()
    assert (tmp_path / "disk" / "a.keras").read_text() == "new"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_after(tmp_path, error):
    with pytest.raises(error):
        write_half(tmp_path / "new" / "m", error)
    assert names(tmp_path) == []


def test_without_commit_nothing_is_placed(tmp_path):
    with Placement(tmp_path / "m") as placement:
        write_saved_model(placement.temporary, "unverified")
    assert names(tmp_path) == []


def test_a_failed_artifact_can_be_kept(tmp_path):
    for expected in ["a.onnx.failed", "a.onnx.failed-2"]:
        with Placement(tmp_path / "a.onnx") as placement:
            placement.temporary.write_text("wrong")
            kept = placement.keep_failed()
        assert kept == tmp_path / expected / "a.onnx"
        assert names(kept.parent) == ["a.onnx"]
    assert names(tmp_path) == ["a.onnx.failed", "a.onnx.failed-2"]


def test_nothing_written_is_an_error(tmp_path):
    with pytest.raises(OutputError, match="Nothing was written"), Placement(tmp_path / "a") as placement:
        placement.commit()
    with pytest.raises(OutputError, match="Nothing was written"), Placement(tmp_path / "a") as placement:
        placement.keep_failed()
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "target, reason",
    [
        pytest.param("file/a.keras", "Not a directory", id="below a file"),
        pytest.param("n" * 300, "File name too long", id="name too long"),
        pytest.param("/proc/new/a.keras", "No such file", id="where nothing can be made"),
        pytest.param("/dev/null", "device", id="a device"),
        pytest.param("loop", "Too many levels of symbolic links", id="a link to itself"),
        pytest.param("loop/a.keras", "Too many levels of symbolic links", id="below a link to itself"),
    ],
)
def test_an_unusable_path_is_explained(tmp_path, target, reason):
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OutputError, match=reason):
        Placement(tmp_path / target, force=True)
    assert names(tmp_path) == ["file", "loop"]


def test_a_signal_while_the_temporary_folder_is_made_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(placing, "_write_journal", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Placement(tmp_path / "new" / "a.keras")
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), id="the system's"),
        pytest.param(OSError("Unable to write (No space left on device)"), id="h5py's, without errno"),
        pytest.param(RuntimeError("UNKNOWN: m/variables; No space left on device"), id="TensorFlow's"),
    ],
)
def test_a_full_disk_is_told_as_such(tmp_path, error):
    with pytest.raises(OutputError, match="the disk is full"):
        write_half(tmp_path / "m", error)
    assert names(tmp_path) == []


def test_another_error_stays_what_it_is(tmp_path):
    with pytest.raises(ZeroDivisionError), Placement(tmp_path / "a"):
        raise ZeroDivisionError


def test_a_write_that_the_system_cuts_short_is_told(tmp_path):
    """The limit of a file's size stands in for a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OutputError, match="the disk is full"), Placement(tmp_path / "a") as placement:
            placement.temporary.write_bytes(bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == []


DIES = """
    import os, signal, sys
    from pathlib import Path
    from converter.artifacts import placement as placing
    from test_placement import write_saved_model

    def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)

    placing._exchange = lambda name, one, other: False
    {where}
    with placing.Placement(Path(sys.argv[1])) as placement:
        write_saved_model(placement.temporary, "new")
        {act}
        placement.commit()
"""


@pytest.mark.parametrize(
    "where, act, found",
    [
        pytest.param("", "die()", "old", id="while writing: swept"),
        pytest.param("placing._synchronize = die", "", "old", id="before the commit: swept"),
        pytest.param("placing._finish_commit = die", "", "new", id="commit begun: finished"),
        pytest.param(
            "replace = os.replace; os.replace = lambda a, b, **at: die() if a == 'm' else replace(a, b, **at)",
            "",
            "new",
            id="between the two renames: finished",
        ),
        pytest.param("placing.shutil.rmtree = die", "", "new", id="before tidying up: swept"),
    ],
)
def test_what_a_killed_process_left_is_taken_up_by_the_next(tmp_path, where, act, found):
    place_saved_model(tmp_path / "m", "old")
    script = textwrap.dedent(DIES).format(where=where, act=act)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).resolve().parents[i]) for i in (0, 2)])
    }
    died = subprocess.run([sys.executable, "-c", script, str(tmp_path / "m")], env=environment)
    assert died.returncode == -signal.SIGKILL
    assert [name for name in names(tmp_path) if name.startswith(".converter-")]

    place(tmp_path / "other", "next run")

    assert names(tmp_path) == ["m", "other"]
    assert (tmp_path / "m" / "saved_model.pb").read_text() == found
    assert read_stamp(tmp_path / "m") == {"schema": 1}


PLACES_TWO = """
    import json, os, signal, sys
    from pathlib import Path
    from test_placement import content_of_two, names, place, place_two

    def die_before(step):
        left = step

        def counted(do):
            def instead(*arguments, **options):
                nonlocal left
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return do(*arguments, **options)
            return instead

        for name in ("rename", "replace", "unlink", "rmdir", "mkdir", "fsync", "open"):
            setattr(os, name, counted(getattr(os, name)))

    for step in range(200):
        folder = Path(sys.argv[1], str(step))
        place_two(folder / "net.onnx", "old")
        if not (process := os.fork()):
            die_before(step)
            place_two(folder / "net.onnx", "new")
            os._exit(0)
        _, status = os.waitpid(process, 0)
        right_away = content_of_two(folder / "net.onnx")
        place(folder / "other", "next run")
        ended = os.waitstatus_to_exitcode(status)
        print(json.dumps([ended, right_away, content_of_two(folder / "net.onnx"), names(folder)]))
        if ended == 0:
            break
"""


def place_two(target: Path, content: str) -> None:
    """An artifact that holds the name of the file with its weights."""
    data = data_name(target.name, hashlib.sha256(content.encode()).hexdigest())
    with Placement(target, force=True) as placement:
        placement.temporary.write_text(data)
        placement.temporary.with_name(data).write_text(content)
        placement.commit()


def content_of_two(target: Path) -> str:
    return target.with_name(target.read_text()).read_text()


@pytest.mark.slow
def test_an_artifact_of_two_files_is_whole_at_every_moment(tmp_path):
    """Killed before each step of putting one in the place of another, one after the other."""
    script = textwrap.dedent(PLACES_TWO)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).resolve().parents[i]) for i in (0, 2)])
    }
    ran = subprocess.run([sys.executable, "-c", script, str(tmp_path)], env=environment, stdout=subprocess.PIPE)
    found = [json.loads(line) for line in ran.stdout.splitlines()]
    assert len(found) > 20
    assert [ended for ended, *_ in found] == [-signal.SIGKILL] * (len(found) - 1) + [0]
    seen = [(right_away, after) for _, right_away, after, _ in found]
    assert set(seen) == {("old", "old"), ("old", "new"), ("new", "new")}
    assert seen == sorted(seen, key=lambda pair: pair.count("new"))
    for step, (*_, there) in enumerate(found):
        assert there == sorted(["net.onnx", (tmp_path / str(step) / "net.onnx").read_text(), "other"])


def test_the_second_file_of_an_earlier_artifact_goes_with_it(tmp_path):
    target = tmp_path / "net.onnx"
    place_two(target, "old")
    others = ["net.onnx.data", "net.onnx.0123456789abcdeg.data", "other.onnx.0123456789abcdef.data"]
    for other in others:
        (tmp_path / other).write_text("not ours")
    place_two(target, "new")
    assert names(tmp_path) == sorted(["net.onnx", target.read_text(), *others])
    place_two(target, "new")
    assert content_of_two(target) == "new"
    place(target, "one file", force=True)
    assert names(tmp_path) == sorted(["net.onnx", *others])


def test_what_a_living_process_writes_is_not_swept(tmp_path):
    with Placement(tmp_path / "one") as first:
        first.temporary.write_text("one")
        place(tmp_path / "two", "two")
        first.commit()
    assert names(tmp_path) == ["one", "two"]


def test_without_locks_a_file_is_placed_and_nothing_swept(tmp_path, monkeypatch):
    def no_locks(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(placing.fcntl, "flock", no_locks)
    with Placement(tmp_path / "one") as first:
        first.temporary.write_text("one")
        place(tmp_path / "two", "two")
        first.commit()
    assert names(tmp_path) == ["one", "two"]


def test_a_folder_that_only_looks_like_a_leftover_is_left_alone(tmp_path):
    (tmp_path / ".converter-mine").mkdir()
    (tmp_path / ".converter-mine" / "thesis").write_text("")
    place(tmp_path / "a", "a")
    assert names(tmp_path) == [".converter-mine", "a"]
