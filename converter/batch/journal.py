"""The journal of a batch, an SQLite file: it survives kill -9, and several batches may share it.

A model is claimed before it is started. A claim holds while the process that made it lives. A process on another
machine cannot be checked, so its claim holds until `LEASE` seconds after it was last renewed.

Anybody may have put a journal into the folder. It is opened only if its tables are those below and neither it nor what
SQLite keeps beside it is a link. What it says of a model counts only if the artifacts are inside the folder and were
last changed at the moment, to the nanosecond, that the journal noted: nobody can plant such files.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import socket
import sqlite3
import stat
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, Literal, Self, get_args

import psutil

from ..checkpoint.model_folder import files_of, is_index, is_model
from ..errors import OutputError
from ..report.failures import WORST_FIRST
from ..report.results import LIBRARIES, library_version
from .jobs import Job

State = Literal["verified", "quantized", "not verified", "disagrees", "failed"]
Claim = Literal["begin", "done", "elsewhere"]

LEASE = 300.0  # seconds
REPORTED = {"silence", "trace"}  # options that change what a report holds, and no artifact
_SAMPLES, _SAMPLE = 16, 1 << 14  # parts of a file that are looked at, and bytes of each
_WAIT = 60.0  # seconds, for another batch's transaction
_TABLES = {
    "models": """create table models (
    name text primary key, path text not null, fingerprint text not null, state text, exit_status integer,
    reason text, codes text, artifacts text, files text, log text, seconds real,
    attempts integer not null, owner text, renewed real, ended real
)""",
    "contents": "create table contents (path text primary key, facts text, sha256 text)",
}
_NAMES_ANOTHER = bytes.fromhex("d9d505f920a163d7")  # how a rollback journal ends that names a file for SQLite to remove
_KINDS = {
    "name": str, "path": str, "state": str, "exit_status": int, "reason": str, "log": str, "seconds": float,
    "attempts": int,
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """The result of one model.

    Attributes:
        reason: why it is not verified; "" if it is.
        artifacts: size in bytes of each artifact that was put in place, by path; for a folder the sum.
        log: file with the conversion's log; "" if nothing was started.
        already_done: it had already ended when this batch reached it.
        codes: of the errors.
    """

    name: str
    path: str
    state: State
    exit_status: int
    reason: str
    artifacts: Mapping[str, int]
    log: str
    seconds: float
    attempts: int
    already_done: bool = False
    codes: tuple[str, ...] = ()


class Journal:
    """A batch's journal. Raises OutputError if the file cannot be used."""

    def __init__(self, file: Path):
        self.file = file
        # Unique among machines, processes, and batches of this process.
        self._owner = f"{socket.gethostname()} {_alive(psutil.Process().pid)} {uuid.uuid4().hex}"
        self._folders: dict[Path, list[list[str]]] = {}
        self._versions = {library: library_version(library) for library in LIBRARIES}
        with _explained(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            _refuse_planted(file)
            self._database = sqlite3.connect(file, timeout=_WAIT, isolation_level=None)
            self._database.row_factory = sqlite3.Row
            try:
                self._database.execute("pragma trusted_schema = off")
                self._create_tables()
            except (OSError, sqlite3.Error):
                self._database.close()
                raise

    def _create_tables(self) -> None:
        self._database.execute("begin immediate")
        schema = self._database.execute("select name, lower(sql) from sqlite_master where sql is not null")
        found = dict(tuple(row) for row in schema)
        for table, text in _TABLES.items():
            if table not in found:
                self._database.execute(text)
        if not found.items() <= _TABLES.items():
            raise OSError(errno.EINVAL, "it is not a journal of this version of pt-convert")
        self._database.execute("commit")

    def fingerprint(self, job: Job) -> str:
        """Hash everything that decides the result: contents of the named files, options, versions.

        Raises:
            OSError: the checkpoint cannot be read.
        """
        options = {name: self._told(value) for name, value in job.options.items() if name not in REPORTED}
        for name in ("inputs", "calibrate"):
            if (given := Path(job.options.get(name) or "")).name and given.is_dir():
                options[name] = self._folder(given)
        factory = job.options.get("factory") or ""
        content = self._content(job.path)
        told = [content, sorted(job.to), options, self._told(factory.partition(":")[0]), self._versions]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def claim(self, job: Job, fingerprint: str, *, retry_failed: bool) -> tuple[Claim, Entry | None]:
        """Claim a model for this batch, unless it is done or another batch has it.

        A model is done if it ended, with any result, with the same fingerprint, and its artifacts (its report, if it
        has none) are untouched since.
        `retry_failed` restarts models that did not end verified, unless verification was turned off.
        """
        with self._transaction(), _damage_explained():
            row = self._database.execute("select * from models where name = ?", (job.name,)).fetchone()
            if row is not None and row["state"] is None and self._held_elsewhere(row):
                return "elsewhere", None
            if row is not None and row["state"] is not None and row["fingerprint"] == fingerprint:
                entry = _entry(row, already_done=True)
                again = retry_failed and (entry.state in ("failed", "disagrees") or entry.exit_status != 0)
                if not again and self._unchanged(row):
                    return "done", entry
            attempts = row["attempts"] + 1 if row is not None and row["fingerprint"] == fingerprint else 1
            self._database.execute(
                "insert or replace into models (name, path, fingerprint, attempts, owner, renewed)"
                " values (?, ?, ?, ?, ?, ?)",
                (job.name, str(job.path), fingerprint, attempts, self._owner, time.time()),
            )
        return "begin", None

    def end(
        self,
        job: Job,
        state: State,
        exit_status: int,
        reason: str,
        artifacts: Iterable[Path],
        seconds: float,
        log: str = "",
        codes: Iterable[str] = (),
        report: Path | None = None,
    ) -> Entry:
        """Record how a claimed model ended; arguments as for `Entry`, and the file of its report."""
        sizes = {str(path): size_of(path) for path in artifacts}
        files = [[name, _last_change(Path(name))] for name in sizes or ([] if report is None else [str(report)])]
        with self._transaction():
            self._database.execute(
                "update models set state = ?, exit_status = ?, reason = ?, codes = ?, artifacts = ?, files = ?,"
                " log = ?, seconds = ?, ended = ?, owner = null where name = ? and owner = ?",
                (
                    *(state, exit_status, reason, " ".join(codes), json.dumps(sizes), json.dumps(files)),
                    *(log, seconds, time.time(), job.name, self._owner),
                ),
            )
            row = self._database.execute("select * from models where name = ?", (job.name,)).fetchone()
        return _entry(row, already_done=False)

    @contextmanager
    def results(self) -> Iterator[tuple[list[Entry], list[str]]]:
        """Return the models of all batches into this folder that ended, and those under way elsewhere.

        No other batch ends one within the context.
        """
        with self._transaction():
            rows = self._database.execute("select * from models order by name").fetchall()
            with _damage_explained():
                unchanged = [row for row in rows if row["state"] is not None and self._unchanged(row)]
                ended = [_entry(row, already_done=True) for row in unchanged]
                elsewhere = [row["name"] for row in rows if row["state"] is None and self._held_elsewhere(row)]
            yield ended, elsewhere

    def renew(self) -> None:
        """Renew this batch's claims; call this more often than every `LEASE` seconds."""
        with self._transaction():
            self._database.execute(
                "update models set renewed = ? where owner = ? and state is null", (time.time(), self._owner)
            )

    def release(self) -> None:
        """Release claims on models that have not ended."""
        with self._transaction():
            self._database.execute("delete from models where owner = ? and state is null", (self._owner,))

    def close(self) -> None:
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        self.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with _explained(self.file):
            self._database.execute("begin immediate")
            try:
                yield
                self._database.execute("commit")
            except BaseException:
                if self._database.in_transaction:  # SQLite may have rolled back itself
                    self._database.execute("rollback")
                raise

    def _held_elsewhere(self, row: sqlite3.Row) -> bool:
        if row["owner"] == self._owner:
            return False
        host, process, started, _ = row["owner"].split(" ")
        if host == socket.gethostname():
            return _alive(int(process)) == f"{process} {started}"
        return abs(time.time() - row["renewed"]) < LEASE

    def _unchanged(self, row: sqlite3.Row) -> bool:
        """Tell whether a model's files, at least one, are inside the batch's folder and last changed when noted."""
        folder, files = self.file.parent.resolve(), json.loads(row["files"])
        inside = all(Path(name).resolve().is_relative_to(folder) for name, _ in files)
        return bool(files) and inside and all(_last_change(Path(name)) == change for name, change in files)

    def _told(self, value: Any) -> Any:
        """Return an option's value; if it names a file, with the file's digest."""
        if isinstance(value, str) and value and Path(value).is_file():
            return [value, self._digest(Path(value))]
        if isinstance(value, list | tuple):
            return [self._told(item) for item in value]
        return value

    def _content(self, model: Path) -> Any:
        """Return the digest of a file, or of each file of a folder or an index, including a folder's own code."""
        if not is_model(model) and not is_index(model):
            return self._digest(model)
        files = [*files_of(model), *(sorted(model.glob("*.py")) if model.is_dir() else ())]
        return [[file.name, self._digest(file)] for file in files]

    def _folder(self, folder: Path) -> list[list[str]]:
        """Return every file below a folder with its digest, computed once in a batch."""
        if folder not in self._folders:
            files = sorted(file for file in folder.rglob("*") if file.is_file())
            self._folders[folder] = [[str(file.relative_to(folder)), self._digest(file)] for file in files]
        return self._folders[folder]

    def _digest(self, path: Path) -> str:
        """Return the file's SHA-256, recomputed only if its size, its times, its inode or a sample of it changes."""
        key = str(path.resolve())
        with open_regular(path) as file:
            facts = json.dumps(_facts(file))
            row = self._database.execute("select * from contents where path = ?", (key,)).fetchone()
            if row is not None and row["facts"] == facts:
                return str(row["sha256"])
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        with _explained(self.file):
            self._database.execute("insert or replace into contents values (?, ?, ?)", (key, facts, digest))
        return digest


def open_regular(path: Path) -> BufferedReader:
    """Open a file to read, or raise OSError at once if it is a pipe or a device, which could be waited for forever."""
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "this is a pipe or a device, not a file", str(path))
    return file


def _facts(file: BufferedReader) -> list[Any]:
    """Return what changes with a file's content: even if another file of its size and time was put in its place."""
    found, sample = os.fstat(file.fileno()), hashlib.sha256()
    for part in range(_SAMPLES):
        file.seek(max(found.st_size - _SAMPLE, 0) * part // (_SAMPLES - 1))
        sample.update(file.read(_SAMPLE))
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, sample.hexdigest()]


@contextmanager
def _explained(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        told = error.strerror if isinstance(error, OSError) else error
        fix = "Give another -o, a folder that you can write to and that has space."
        raise OutputError(f"The journal cannot be used: {told}.", code="PTC6022", where=str(file), fix=fix) from error


@contextmanager
def _damage_explained() -> Iterator[None]:
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise sqlite3.DataError(f"it is damaged ({error})") from error


def _entry(row: sqlite3.Row, already_done: bool) -> Entry:
    same = {name: row[name] for name in _KINDS}
    if row["state"] not in get_args(State) or row["exit_status"] not in WORST_FIRST:
        raise ValueError(f"{row['state']}, status {row['exit_status']}")
    artifacts = json.loads(row["artifacts"])
    sizes = artifacts.values()
    if any(type(same[name]) is not kind for name, kind in _KINDS.items()) or any(type(n) is not int for n in sizes):
        raise TypeError("a value of another kind")
    return Entry(artifacts=artifacts, already_done=already_done, codes=tuple(row["codes"].split()), **same)


def _refuse_planted(file: Path) -> None:
    """Raise OSError if SQLite would follow a link, or remove another file, when it opens this one."""
    for path in (file, *(file.with_name(file.name + suffix) for suffix in ("-journal", "-wal", "-shm"))):
        try:
            found = path.lstat()
        except FileNotFoundError:
            continue
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            raise OSError(errno.ELOOP, f"{path.name} is a link, which may lead anywhere, or not a file")
        if path != file and not path.name.endswith("-journal"):
            raise OSError(errno.EINVAL, f"{path.name} is not a file of pt-convert")
        with path.open("rb") as opened:
            opened.seek(max(0, found.st_size - len(_NAMES_ANOTHER)))
            if path != file and opened.read() == _NAMES_ANOTHER:
                raise OSError(errno.EINVAL, f"{path.name} names another file")


def _last_change(path: Path) -> list[int] | None:
    """Return the size and the newest change time of a file, or of a folder with all that is in it."""
    if not os.path.lexists(path):
        return None
    found = [item.lstat() for item in (path, *path.rglob("*"))]
    return [sum(item.st_size for item in found), max(item.st_ctime_ns for item in found), len(found)]


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files of a folder, or -1 if it does not exist."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size if path.exists() else -1


def _alive(process: int) -> str | None:
    """Return a living process's number and start time, which tell it from a later one of that number; else None.

    One that has ended is not alive even if nobody has waited for it, as in a container without an init process.
    """
    try:
        found = psutil.Process(process)
        return None if found.status() == psutil.STATUS_ZOMBIE else f"{process} {found.create_time():.2f}"
    except psutil.NoSuchProcess:
        return None
