"""Put an artifact in place once it is verified: completely or not at all, and never over files of other programs.

    with Placement(Path("digits.onnx")) as placement:
        write(placement.temporary)          # .converter-k3x9/digits.onnx, and the files beside it
        verify(placement.temporary)
        placement.commit()

The temporary folder is beside the target, on the same disk, and locked while its process lives. The next run in that
folder cleans up after a process that died: it finishes a commit that had begun and removes everything else.

An artifact of two files never mixes an old and a new one: the second file has the digest of its content in its name
(`data_name`), which the first file refers to. The second file is placed first, then the artifact replaces the old one
atomically, then the old second file is removed.
"""

import contextlib
import ctypes
import errno
import json
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from ..errors import ConversionError, OutputError
from .runtime.formats import recognize
from .runtime.stamp import bears_our_stamp

if sys.platform != "win32":
    import fcntl

_WRITING, _COMMITTING = ".converter-", ".converter-committing-"
_LOCK, _REPLACED, _STALE = ".lock", ".replaced", ".stale"  # in the temporary folder, besides the files to place
_DATA = re.compile(r"(?P<artifact>.+)\.[0-9a-f]{16}\.data", re.DOTALL)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


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
    """

    def __init__(self, target: Path, *, force: bool = False):
        """Create missing parent folders, or raise OutputError if `target` is taken or cannot be written."""
        self._force = force
        self._created: list[Path] = []
        self._done = False
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
                with _alone_in(self.target.parent):
                    _sweep(self.target.parent)
                self._folder, self._lock = _locked_folder(self.target.parent)
            except BaseException:
                self._remove_created()
                raise
        self.temporary = self._folder / self.target.name

    def commit(self) -> None:
        """Replace the target with what was written, or raise OutputError and change nothing."""
        with _explained(self.target):
            names = [entry.name for entry in _entries(self._folder)]
            if self.target.name not in names:
                raise OutputError(
                    "Nothing was written.",
                    code="PTC4010",
                    fix="This is a bug in pt-convert. Please report it with the model.",
                    where=str(self.target),
                )
            _synchronize(self._folder)
            with _alone_in(self.target.parent):
                _sweep(self.target.parent)  # an interrupted commit would otherwise be finished over this one
                self._refuse_taken_target()
                for name in names:
                    self._refuse_taken_neighbor(self.target.with_name(name))
                stale = _data_files(self.target) - set(names)
                if len(names) > 1 or stale or not _replace_at_once(self.temporary, self.target):
                    (self._folder / _STALE).write_text(json.dumps(sorted(stale)))
                    _synchronize(self._folder / _STALE)
                    self._folder = self._folder.rename(
                        self._folder.with_name(self._folder.name.replace(_WRITING, _COMMITTING, 1))
                    )
                    _finish_commit(self._folder)
            _synchronize(self.target.parent, deep=False)
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
            while kept.exists():
                kept, number = self.target.with_name(f"{self.target.name}.failed-{number}"), number + 1
            self._folder.chmod(0o755)
            self._folder.rename(kept)
            (kept / _LOCK).unlink()
        self._done = True
        os.close(self._lock)
        return kept / self.target.name

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._done:
            if self._folder.name.startswith(_COMMITTING):  # interrupted half-way
                with _alone_in(self._folder.parent):
                    _finish_commit(self._folder)
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
                "The output path is a folder of other things, which not even --force removes.",
                code="PTC4013",
                where=str(self.target),
                fix=f"Give a name in it, -o {self.target.name}/NAME, or another; or remove the folder yourself.",
            )
        if not self._force:
            raise OutputError(
                "The output path is taken by something that this program did not write.",
                code="PTC4014",
                where=str(self.target),
                fix="Give another -o, or replace it with --force.",
            )

    def _refuse_taken_neighbor(self, path: Path) -> None:
        """Refuse to overwrite a file beside the target, unless the target is an earlier artifact, which owns it."""
        if path.exists() and not self.target.exists() and not self._force:
            raise OutputError(
                f"The artifact needs the file {path.name} beside it, which exists already.",
                code="PTC4015",
                where=str(path),
                fix="Give another -o, or replace it with --force.",
            )

    def _remove_folder(self) -> None:
        with contextlib.suppress(OSError):  # the next run sweeps what cannot be removed now
            _remove(self._folder)
        os.close(self._lock)

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
        fix="Make room, or give another -o. Nothing was left behind.",
    )


def _entries(folder: Path) -> list[Path]:
    """Return the files to place, the artifact first: the names of all others begin with its name."""
    return sorted(entry for entry in folder.iterdir() if entry.name not in (_LOCK, _REPLACED, _STALE))


def _data_files(target: Path) -> set[str]:
    """Return the names of second files beside `target` that belong to it or to an earlier version."""
    found = ((path.name, _DATA.fullmatch(path.name)) for path in target.parent.iterdir())
    return {name for name, match in found if match and match["artifact"] == target.name}


def _synchronize(path: Path, *, deep: bool = True) -> None:
    """Wait until a file, or a folder and all its content, is on the disk."""
    if deep and path.is_dir():
        for entry in path.iterdir():
            _synchronize(entry)
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        if path.is_dir():  # Windows opens no folders
            return
        raise
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace_at_once(source: Path, target: Path) -> bool:
    """Replace `target` atomically and return True, or do nothing and return False where the system cannot.

    The old target may end up at `source`.
    """
    if target.is_dir() or (target.exists() and source.is_dir()):
        return _exchange(source, target)
    source.replace(target)
    return True


def _exchange(one: Path, other: Path) -> bool:
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # not Linux, or an old C library
        return False
    paths = os.fsencode(one), os.fsencode(other)
    if renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL):  # an old kernel, or a file system without it
        return False
    raise OSError(number, os.strerror(number), str(other))


def _finish_commit(folder: Path) -> None:
    """Move everything in `folder` beside it, the artifact last, and remove the second files of the old artifact.

    May be called again after an interruption at any point.
    """
    for entry in reversed(_entries(folder)):
        target = folder.with_name(entry.name)
        if target.is_dir() or (target.exists() and entry.is_dir()):
            (folder / _REPLACED).mkdir(exist_ok=True)
            target.rename(Path(tempfile.mkdtemp(dir=folder / _REPLACED), target.name))
        entry.replace(target)
        _synchronize(folder.parent, deep=False)
    told = folder / _STALE
    stale = json.loads(told.read_text()) if told.exists() else []  # missing: the commit is done
    for name in (name for name in stale if _DATA.fullmatch(name) and Path(name).name == name):
        folder.with_name(name).unlink(missing_ok=True)


@contextlib.contextmanager
def _alone_in(parent: Path) -> Iterator[None]:
    """Wait until no other process puts anything in place in `parent`: artifacts of several files must not mix."""
    if sys.platform == "win32":
        yield
        return
    descriptor = os.open(parent, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _locked_folder(parent: Path) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_WRITING, dir=parent))
        try:
            descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT)
        except FileNotFoundError:  # swept before it was locked: try again
            continue
        try:
            if _lock(folder, descriptor):
                return folder, descriptor
        except OSError:  # a file system without locks: there, leftovers are not swept
            return folder, descriptor
        os.close(descriptor)  # being swept: try again


def _lock(folder: Path, descriptor: int) -> bool:
    """Lock a folder; return False if a living process holds the lock or the folder was removed meanwhile."""
    try:
        if sys.platform != "win32":
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(descriptor), (folder / _LOCK).stat())
    except (BlockingIOError, FileNotFoundError):
        return False


def _remove(folder: Path) -> None:
    """Remove a temporary folder, its lock file last: until then the next run recognizes the folder."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != _LOCK:
            entry.unlink()
    (folder / _LOCK).unlink()
    folder.rmdir()


def _sweep(parent: Path) -> None:
    """Clean up after processes that died while writing in `parent`."""
    if sys.platform == "win32":  # no locks: files of a living process look like leftovers
        return
    for folder in parent.glob(f"{_WRITING}*"):
        with contextlib.suppress(OSError):  # another user's folder, or another program's: leave it
            if not (folder / _LOCK).exists():
                folder.rmdir()  # only the last step of its removal is missing; rmdir keeps a folder that is not empty
                continue
            descriptor = os.open(folder / _LOCK, os.O_RDWR)
            try:
                if _lock(folder, descriptor):
                    if folder.name.startswith(_COMMITTING):
                        _finish_commit(folder)
                    _remove(folder)
            finally:
                os.close(descriptor)
