"""Put an artifact in place once it is verified: completely or not at all, and never over files of other programs.

    with Placement(Path("digits.onnx")) as placement:
        write(placement.temporary)          # .converter-k3x9/digits.onnx, and the files beside it
        verify(placement.temporary)
        placement.commit()

The temporary folder is beside the target, on the same disk, and locked while its process lives. The next run in that
folder cleans up after a process that died: it finishes a commit that had begun and removes everything else.

Anybody may have put folders there that only look so. What is swept is a real folder of this user's, opened without
following links, whose journal holds that folder's own inode. A commit is finished only as its journal says, and
replaces a file only if it is still the one, by inode and change time, that the process was allowed to replace. All else
is left alone and named in `notes`. Nothing is reached by a path, only by descriptors of the opened folders.

An artifact of two files never mixes an old and a new one: the second file has the digest of its content in its name
(`data_name`), which the first file refers to. The second file is placed first, then the artifact replaces the old one
atomically, then the old second file is removed.
"""

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from ..errors import ConversionError, Note, OutputError
from .runtime.formats import recognize
from .runtime.stamp import bears_our_stamp

_PREFIX, _NAME = ".converter-", re.compile(r"\.converter-[a-z0-9_]{8}")  # of mkdtemp
_LOCK, _JOURNAL, _NEW_JOURNAL = ".lock", ".journal", ".journal.new"
_OWN = re.compile(r"\.lock|\.journal(\.new)?|\.replaced-\d+")  # in the temporary folder, besides the files to place
_LARGEST_JOURNAL = 1 << 20  # bytes
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_DATA = re.compile(r"(?P<artifact>.+)\.[0-9a-f]{16}\.data", re.DOTALL)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_RENAME_EXCHANGE = 2  # linux/fs.h


class _Foreign(Exception):
    """A folder that looks like a leftover is none: something in it does not fit."""


def data_name(artifact: str, sha256: str) -> str:
    """Return the name of an artifact's second file, which contains the digest of its content."""
    return f"{artifact}.{sha256[:16]}.data"


class Placement:
    """A context that removes all that was written, unless left after `commit` or `keep_failed`.

    Turns an error within it that says that the disk is full into an OutputError.

    Attributes:
        target: where the artifact goes, a file or a folder; links are followed.
        temporary: where to write it meanwhile, under the same name. Files written beside it (ONNX's external data) are
            put in place beside `target`.
        notes: what beside the target looks like a leftover of an earlier run, but was left alone.
    """

    def __init__(self, target: Path, *, force: bool = False):
        """Create missing parent folders, or raise OutputError if `target` is taken or cannot be written."""
        self._force = force
        self._created: list[Path] = []
        self._done = self._committing = False
        self.notes: list[Note] = []
        with _explained(target):
            try:
                self.target = target.resolve()
            except RuntimeError as error:  # before Python 3.13
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from error
            self._refuse_taken_target()
            try:
                for folder in reversed([parent for parent in self.target.parents if not parent.exists()]):
                    folder.mkdir(exist_ok=True)
                    self._created.append(folder)
                self._parent = os.open(self.target.parent, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    with _alone_in(self._parent):
                        self.notes += _sweep(self._parent)
                    self._name, self._folder, self._lock = _locked_folder(self._parent, self.target.parent)
                except BaseException:
                    os.close(self._parent)
                    raise
            except BaseException:
                self._remove_created()
                raise
        self.temporary = self.target.with_name(self._name) / self.target.name

    def commit(self) -> None:
        """Replace the target with what was written, or raise OutputError and change nothing."""
        with _explained(self.target):
            names = _entries(self._folder)
            if self.target.name not in names:
                raise OutputError(
                    "Nothing was written.",
                    code="PTC4010",
                    fix="This is a bug in pt-convert. Please report it with the model.",
                    where=str(self.target),
                )
            _synchronize(self.temporary.parent)
            with _alone_in(self._parent):
                self.notes += _sweep(self._parent)  # an interrupted commit would otherwise be finished over this one
                self._refuse_taken_target()
                for name in names:
                    self._refuse_taken_neighbor(self.target.with_name(name))
                stale = _data_files(self.target) - set(names)
                if len(names) > 1 or stale or not self._replace_at_once():
                    journal = {
                        "names": names,
                        "replaces": {name: _identity(name, self._parent) for name in names},
                        "stale": {name: _identity(name, self._parent) for name in sorted(stale)},
                    }
                    _write_journal(self._folder, journal)
                    self._committing = True
                    self._finish_commit()
            os.fsync(self._parent)
        self._done = True
        self._remove_folder()

    def keep_failed(self) -> Path:
        """Keep what was written as `NAME.failed/NAME` and return that path, or raise OutputError."""
        with _explained(self.target):
            if not self.temporary.exists():
                raise OutputError(
                    "Nothing was written.",
                    code="PTC4011",
                    fix="This is a bug in pt-convert. Please report it with the model.",
                    where=str(self.target),
                )
            kept, number = self.target.with_name(f"{self.target.name}.failed"), 2
            while os.path.lexists(kept):
                kept, number = self.target.with_name(f"{self.target.name}.failed-{number}"), number + 1
            os.fchmod(self._folder, 0o755)
            os.rename(self._name, kept.name, src_dir_fd=self._parent, dst_dir_fd=self._parent)
            for name in (_JOURNAL, _LOCK):
                os.unlink(name, dir_fd=self._folder)
        self._done = True
        self._close()
        return kept / self.target.name

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, *_: object) -> None:
        if not self._done:
            if self._committing:  # interrupted half-way
                with _explained(self.target), _alone_in(self._parent):
                    self._finish_commit()
            self._remove_folder()
            self._remove_created()
        if isinstance(error, Exception) and not isinstance(error, ConversionError) and is_disk_full(error):
            raise full_disk(self.target) from error

    def _refuse_taken_target(self) -> None:
        if not self.target.exists() or bears_our_stamp(self.target):
            return
        mode = self.target.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise OutputError(
                "The output path is a device.", code="PTC4012", where=str(self.target), fix="Give another -o."
            )
        if stat.S_ISDIR(mode) and recognize(self.target) is None and any(self.target.iterdir()):
            raise OutputError(
                "The output path is a folder that contains other files; --force does not remove it.",
                code="PTC4013",
                where=str(self.target),
                fix=f"Give a name inside it, -o {self.target.name}/NAME, or another path; or remove the "
                "folder yourself.",
            )
        if not self._force:
            raise OutputError(
                "The output path already exists, and pt-convert did not write it.",
                code="PTC4014",
                where=str(self.target),
                fix="Give another -o, or replace it with --force.",
            )

    def _refuse_taken_neighbor(self, path: Path) -> None:
        """Refuse to overwrite a file beside the target, unless the target is an earlier artifact, which owns it."""
        if path.exists() and not self.target.exists() and not self._force:
            raise OutputError(
                f"The artifact needs the file {path.name} beside it, which already exists.",
                code="PTC4015",
                where=str(path),
                fix="Give another -o, or replace it with --force.",
            )

    def _replace_at_once(self) -> bool:
        """Replace the target atomically and return True, or do nothing and return False where the system cannot.

        The old target may end up in the temporary folder.
        """
        name = self.target.name
        if self.target.is_dir() or (self.target.exists() and self.temporary.is_dir()):
            return _exchange(name, self._folder, self._parent)
        os.replace(name, name, src_dir_fd=self._folder, dst_dir_fd=self._parent)
        return True

    def _finish_commit(self) -> None:
        try:
            _finish_commit(self._folder, self._parent, _read_journal(self._folder))
        except _Foreign as error:
            what = f"The output path was changed while the artifact was written: {error}."
            fix = "Give another -o, or try again."
            raise OutputError(what, code="PTC4021", where=str(self.target), fix=fix) from error
        self._committing = False

    def _remove_folder(self) -> None:
        with contextlib.suppress(OSError):  # the next run sweeps what cannot be removed now
            _remove(self._name, self._folder, self._parent)
        self._close()

    def _close(self) -> None:
        for descriptor in (self._lock, self._folder, self._parent):
            os.close(descriptor)

    def _remove_created(self) -> None:
        for folder in reversed(self._created):
            with contextlib.suppress(OSError):  # something else has been put into it
                folder.rmdir()


@contextlib.contextmanager
def _explained(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise full_disk(target) from error
        raise OutputError(
            f"The output cannot be written: {error.strerror or error}.",
            code="PTC4016",
            where=str(target),
            fix="Give another -o.",
        ) from error


def is_disk_full(error: BaseException | None) -> bool:
    """Tell whether an error means a full disk, including errors of h5py and TensorFlow with only the system's text."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if any(os.strerror(number) in str(error) for number in _FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


def full_disk(target: Path) -> OutputError:
    return OutputError(
        "The output cannot be written: the disk is full.",
        code="PTC4017",
        where=str(target),
        fix="Free some space, or give another -o. A new artifact needs room beside the earlier one, and a Keras file "
        "twice its size. Nothing was left behind.",
    )


def _entries(folder: int) -> list[str]:
    """Return the names to place, the artifact first: the names of all others begin with its name."""
    return sorted(name for name in os.listdir(folder) if not _OWN.fullmatch(name))


def _data_files(target: Path) -> set[str]:
    """Return the names of second files beside `target` that belong to it or to an earlier version."""
    files = (path for path in target.parent.iterdir() if path.is_file() and not path.is_symlink())
    found = ((path.name, _DATA.fullmatch(path.name)) for path in files)
    return {name for name, match in found if match and match["artifact"] == target.name}


def _synchronize(path: Path) -> None:
    """Wait until a file, or a folder and all its content, is on the disk."""
    if path.is_dir():
        for entry in path.iterdir():
            _synchronize(entry)
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(name: str, one: int, other: int) -> bool:
    """Exchange what has this name in two open folders, or return False where the system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):  # not Linux, or an old C library
        return False
    if renameat2(one, os.fsencode(name), other, os.fsencode(name), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL):  # an old kernel, or a file system without it
        return False
    raise OSError(number, os.strerror(number), name)


def _status(name: str, folder: int) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _identity(name: str, folder: int) -> list[int] | None:
    """Return what tells a file or folder from any other that may come to be at its name, or None if there is none."""
    found = _status(name, folder)
    return found and [found.st_ino, found.st_ctime_ns]


def _write_journal(folder: int, content: Mapping[str, Any]) -> None:
    """Write what may be done with the folder; the inode tells the folder from copies of it."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    with os.fdopen(os.open(_NEW_JOURNAL, flags, 0o600, dir_fd=folder), "w", encoding="utf-8") as file:
        json.dump({"folder": os.fstat(folder).st_ino, **content}, file)
        file.flush()
        os.fsync(file.fileno())
    os.rename(_NEW_JOURNAL, _JOURNAL, src_dir_fd=folder, dst_dir_fd=folder)
    os.fsync(folder)


def _read_journal(folder: int) -> dict[str, Any]:
    """Return the journal of a folder, or raise _Foreign if it is not this folder's, or damaged."""
    try:
        descriptor = os.open(_JOURNAL, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except OSError as error:
        raise _Foreign("it has no journal") from error
    with os.fdopen(descriptor, "rb") as file:
        try:
            journal = json.loads(file.read(_LARGEST_JOURNAL)) if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
        except (ValueError, RecursionError) as error:
            raise _Foreign("its journal is damaged") from error
    if not isinstance(journal, dict) or journal.get("folder") != os.fstat(folder).st_ino:
        raise _Foreign("its journal is that of another folder")
    names, tables = journal.get("names", []), [journal.get("replaces", {}), journal.get("stale", {})]
    if not isinstance(names, list) or not all(isinstance(table, dict) for table in tables):
        raise _Foreign("its journal is damaged")
    said: Sequence[Any] = [*names, *tables[0], *tables[1]]
    if not all(isinstance(name, str) and Path(name).name == name and not name.startswith(_PREFIX) for name in said):
        raise _Foreign("its journal names files elsewhere")
    return journal


def _finish_commit(folder: int, parent: int, journal: Mapping[str, Any]) -> None:
    """Move what the journal names beside the folder, the artifact last, and remove the old artifact's second files.

    May be called again after an interruption at any point. Raises _Foreign if a file is not the one of the journal.
    """
    for number, name in reversed(list(enumerate(journal.get("names", [])))):
        entry, there = _status(name, folder), _status(name, parent)
        if entry is None:
            continue  # it is in place
        if there is not None:
            _check_identity(name, parent, journal.get("replaces", {}).get(name))
            if stat.S_ISDIR(there.st_mode) or stat.S_ISDIR(entry.st_mode):
                os.rename(name, f".replaced-{number}", src_dir_fd=parent, dst_dir_fd=folder)
        os.replace(name, name, src_dir_fd=folder, dst_dir_fd=parent)
        os.fsync(parent)
    for name, identity in journal.get("stale", {}).items():
        if _DATA.fullmatch(name) and _status(name, parent) is not None:
            _check_identity(name, parent, identity)
            os.unlink(name, dir_fd=parent)


def _check_identity(name: str, parent: int, identity: Any) -> None:
    if _identity(name, parent) != identity:
        raise _Foreign(f"{name} has changed since")


@contextlib.contextmanager
def _alone_in(parent: int) -> Iterator[None]:
    """Wait until no other process puts anything in place in `parent`: artifacts of several files must not mix."""
    descriptor = os.open(".", os.O_RDONLY, dir_fd=parent)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _locked_folder(parent: int, path: Path) -> tuple[str, int, int]:
    """Return the name and descriptor of a new folder, and the descriptor of its lock."""
    while True:
        name = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=path)).name
        with contextlib.ExitStack() as opened:
            try:
                folder = os.open(name, _FOLDER, dir_fd=parent)
                opened.callback(os.close, folder)
                lock = os.open(_LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=folder)
            except FileNotFoundError:  # swept before it was locked: try again
                continue
            opened.callback(os.close, lock)
            with contextlib.suppress(OSError):  # a file system without locks: there, leftovers are not swept
                if not _take_lock(folder, lock):
                    continue  # being swept: try again
            try:
                _write_journal(folder, {})
            except BaseException:  # a signal too
                with contextlib.suppress(OSError):
                    _remove(name, folder, parent)
                raise
            opened.pop_all()
            return name, folder, lock


def _take_lock(folder: int, lock: int) -> bool:
    """Lock a folder; return False if a living process holds the lock or the folder was removed meanwhile."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    found = _status(_LOCK, folder)
    return found is not None and os.path.samestat(os.fstat(lock), found)


def _remove(name: str, folder: int, parent: int) -> None:
    """Remove a temporary folder, its journal and lock last: until then the next run recognizes the folder."""
    for entry in os.listdir(folder):
        found = _status(entry, folder)
        if found is not None and stat.S_ISDIR(found.st_mode):
            shutil.rmtree(entry, dir_fd=folder)
        elif entry not in (_JOURNAL, _LOCK):
            os.unlink(entry, dir_fd=folder)
    for entry in (_JOURNAL, _LOCK):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(entry, dir_fd=folder)
    os.rmdir(name, dir_fd=parent)


def _sweep(parent: int) -> list[Note]:
    """Clean up after processes that died while writing in `parent`; return a line about each folder left alone."""
    notes = []
    for name in sorted(name for name in os.listdir(parent) if name.startswith(_PREFIX)):
        try:
            _sweep_folder(name, parent)
        except (_Foreign, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            text = f"{name!r} beside the output only looks like a leftover and was left alone: {reason}."
            notes.append(Note(text, code="PTC4501"))
    return notes


def _sweep_folder(name: str, parent: int) -> None:
    """Clean up one folder, or raise _Foreign or OSError if it is not a leftover of this user's."""
    with contextlib.ExitStack() as opened:
        try:
            folder = os.open(name, _FOLDER, dir_fd=parent)
        except FileNotFoundError:  # its process has just removed it
            return
        opened.callback(os.close, folder)
        if os.fstat(folder).st_uid != os.geteuid() or not _NAME.fullmatch(name):
            raise _Foreign("it belongs to another user or program")
        try:
            lock = os.open(_LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        except FileNotFoundError:
            os.rmdir(name, dir_fd=parent)  # only this step of its removal is missing; refused unless empty
            return
        opened.callback(os.close, lock)
        if not stat.S_ISREG(os.fstat(lock).st_mode):
            raise _Foreign("its lock is not a file")
        if not _take_lock(folder, lock):
            return
        if os.fstat(lock).st_size or not {_LOCK, _NEW_JOURNAL}.issuperset(os.listdir(folder)):  # noqa: PTH208  # a descriptor
            _finish_commit(folder, parent, _read_journal(folder))  # otherwise it had just begun
        _remove(name, folder, parent)
