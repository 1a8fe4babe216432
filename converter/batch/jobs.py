"""The work list: which checkpoints are converted to which formats, and where.

Files, folders and globs, a manifest, or JSON lines each give `Job`s. A folder that is one model is a single checkpoint,
and its contents are not searched; any other folder is searched. The default name is the checkpoint's path without
suffix, relative to the folder that was searched, so that equal file names in different folders stay distinct.
"""

from __future__ import annotations

import errno
import glob
import itertools
import json
import os
import tomllib
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..artifacts.paths import SUFFIXES, artifact_name, default_suffix
from ..checkpoint.model_folder import is_model
from ..errors import CheckpointError, UsageError
from ..options import ConvertOptions, Flag, json_type, options_of

CHECKPOINT_SUFFIXES = (".pt", ".pth", ".pt2", ".ckpt", ".bin", ".safetensors")
# Options of a model in a manifest or a JSON line, by key: the API's keyword and the type in JSON.
OPTIONS: dict[str, tuple[str, type | tuple[type, ...]]] = {}
PATHS: list[str] = []  # options that name files, relative to the manifest that holds them
for _keyword, _hint, _field in options_of(ConvertOptions):
    _flag: Flag | None = _field.metadata.get("flag")
    if _flag is not None:
        OPTIONS[_flag.key] = (_keyword, json_type(_hint))
        if _flag.is_path:
            PATHS.append(_keyword)


@dataclass(frozen=True)
class Job:
    """One checkpoint and how to convert it.

    Attributes:
        name: unique in a batch; artifacts are named after it, with each format's ending, in the batch's folder.
        path: the checkpoint, a file or a folder.
        to: formats.
        options: arguments of `converter.convert` by name, plain JSON values.
    """

    name: str
    path: Path
    to: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    def outputs(self, folder: Path) -> dict[str, Path]:
        """Return the path of each format's artifact."""
        quantize = self.options.get("quantize")
        return {format: folder / f"{self.name}{default_suffix(format, quantize)}" for format in self.to}

    def to_json(self) -> dict[str, Any]:
        """Return the job as a JSON line would write it."""
        names = {argument: name for name, (argument, _) in OPTIONS.items()}
        said = {names[argument]: value for argument, value in self.options.items()}
        return {"path": str(self.path), "to": list(self.to), **said}


def work_list(
    places: Sequence[str],
    to: Sequence[str],
    options: Mapping[str, Any],
    *,
    lines: Iterable[str] = (),
    part: tuple[int, int] | None = None,
) -> list[Job]:
    """List everything to convert.

    Args:
        places: manifests (`.toml`), files, folders, globs; `-` stands for `lines`.
        to, options: defaults for entries that do not set their own.
        part: (number, count): convert only this part, counted from 1, of so many.

    Raises:
        UsageError: there is nothing to convert, or an entry is invalid.
    """
    jobs = []
    for place in places:
        if place == "-":
            jobs += from_lines(lines, to, options)
        elif place.endswith(".toml") and not glob.has_magic(place):
            jobs += from_manifest(Path(place), to, options)
        else:
            jobs += from_places([place], to, options)
    jobs = checked(jobs)
    return jobs if part is None else shard(jobs, *part)


def from_places(places: Iterable[str], to: Sequence[str], options: Mapping[str, Any]) -> list[Job]:
    """List the checkpoints that files, folders (a model's, or searched through) and globs (`**` too) name.

    Raises:
        UsageError: a place holds no checkpoint.
        CheckpointError: a place may not be read.
    """
    jobs = []
    for place in places:
        try:
            found = list(_found(place))
        except OSError as error:
            what = f"The folder or file cannot be read: {error.strerror}."
            fix = "Check its permissions, or name what to convert by globs."
            raise CheckpointError(what, code="PTC6046", where=error.filename or place, fix=fix) from error
        if not found:
            raise UsageError(
                "No checkpoint found.",
                code="PTC6008",
                where=place,
                fix="Give files, folders of "
                f"{', '.join(CHECKPOINT_SUFFIXES)}, globs, a manifest.toml, or - for JSON lines.",
            )
        jobs += [Job(name, path, tuple(to), dict(options)) for name, path in found]
    return jobs


def _found(place: str) -> Iterator[tuple[str, Path]]:
    path = Path(place)
    if path.is_file() or is_model(path):
        yield artifact_name(path), path
        return
    if path.is_dir():
        above, found = path, sorted(_searched(path))
    elif glob.has_magic(place):
        above = _fixed_part(path)
        found = sorted(_whole(above.glob(str(path.relative_to(above)))))
    else:
        return
    for checkpoint in found:
        yield str(_without_suffix(checkpoint.relative_to(above), checkpoint)), checkpoint


def _searched(folder: Path) -> Iterator[Path]:
    """Find the files below a folder with a checkpoint's suffix, and the folders that are one model."""
    for place, folders, names in os.walk(folder, onerror=_raise):
        above = Path(place)
        models = [name for name in folders if is_model(above / name)]
        folders[:] = [name for name in folders if name not in models]
        files = (above / name for name in names)
        yield from (above / name for name in models)
        yield from (file for file in files if file.suffix in CHECKPOINT_SUFFIXES and file.is_file())


def _raise(error: OSError) -> None:
    raise error


def _whole(matched: Iterable[Path]) -> list[Path]:
    """Return the matched files, and folders that are one model in place of all matches inside them."""
    found = [path for path in matched if path.is_file() or is_model(path)]
    folders = {path for path in found if path.is_dir()}
    return [path for path in found if folders.isdisjoint(path.parents)]


def _without_suffix(name: Path, checkpoint: Path) -> Path:
    return name if checkpoint.is_dir() else name.with_suffix("")


def _fixed_part(pattern: Path) -> Path:
    """Return the folder above a pattern's first part with a wildcard."""
    fixed = itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parts)
    return Path(*fixed)


def from_manifest(file: Path, to: Sequence[str], options: Mapping[str, Any]) -> list[Job]:
    """List a TOML file's models: `[defaults]`, then `[[models]]` with `path` (may be a glob), `name`, `to`, options.

    The command line applies where the manifest sets nothing. Paths are relative to the manifest.

    Raises:
        UsageError: it is not valid TOML, or an entry is invalid.
    """
    try:
        if file.exists() and not file.is_file():
            raise OSError(errno.EINVAL, "it is a pipe, a device or a folder")
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"The manifest cannot be read: {error}.",
            code="PTC6009",
            fix="Correct the manifest: it is a TOML file; see docs/BATCH.md.",
            where=str(file),
        ) from error
    unknown = sorted(set(content) - {"defaults", "models"})
    entries = content.get("models")
    if unknown or not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        what = f"The manifest has {', '.join(unknown)}" if unknown else "The manifest has no models"
        raise UsageError(
            f"{what}.", code="PTC6010", where=str(file), fix="Write [defaults], and [[models]] with a path each."
        )
    defaults = content.get("defaults", {})
    if not isinstance(defaults, dict):
        raise UsageError(
            "`defaults` is not a table.",
            code="PTC6011",
            where=str(file),
            fix="Write [defaults], with the options below it.",
        )
    jobs = []
    for number, entry in enumerate(entries, 1):
        jobs += _entry(defaults | entry, file.parent, f"{file}, model {number}", to, options)
    return jobs


def from_lines(lines: Iterable[str], to: Sequence[str], options: Mapping[str, Any]) -> list[Job]:
    """List the models of JSON lines, with the keys of a manifest's entry. Paths are relative to the current folder.

    Raises:
        UsageError: a line is not such an object.
    """
    jobs = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(
                f"The line is not valid JSON: {error}.",
                code="PTC6012",
                fix="Write one JSON object per line.",
                where=f"line {number}",
            ) from error
        if not isinstance(entry, dict):
            raise UsageError(
                "The line is not a JSON object.",
                code="PTC6013",
                where=f"line {number}",
                fix='Write an object, such as {"path": "net.pt"}.',
            )
        jobs += _entry(entry, Path(), f"line {number}", to, options)
    return jobs


def _entry(
    said: Mapping[str, Any], folder: Path, where: str, to: Sequence[str], options: Mapping[str, Any]
) -> list[Job]:
    unknown = sorted(set(said) - {"path", "name", "to", *OPTIONS})
    if unknown:
        raise UsageError(
            f"Unknown option: {', '.join(unknown)}.",
            code="PTC6014",
            where=where,
            fix=f"Choose from path, name, to, {', '.join(OPTIONS)}.",
        )
    formats = said.get("to", to)
    formats = tuple([formats] if isinstance(formats, str) else formats)
    own: dict[str, Any] = {}
    for key, value in said.items():
        if key not in OPTIONS:
            continue
        name, kind = OPTIONS[key]
        value = [value] if kind is list and isinstance(value, str) else value
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise UsageError(
                f"{value!r} is not a valid value for {key}.",
                code="PTC6015",
                fix="Give the option a value as on the command line.",
                where=where,
            )
        own[name] = value
    for name in PATHS:
        if name in own:
            paths = own[name]
            own[name] = str(folder / paths) if isinstance(paths, str) else [str(folder / path) for path in paths]
    if "trust" in own:
        own["trust"] = [str(folder / name) if name.endswith(".py") else name for name in own["trust"]]
    if (factory := own.get("factory", "")).partition(":")[0].endswith(".py"):
        own["factory"] = str(folder / factory)
    path = said.get("path")
    if not isinstance(path, str) or not path:
        raise UsageError(
            "The entry has no path.", code="PTC6016", where=where, fix='Add one, such as path = "net.pt", or a glob.'
        )
    place = str(folder / path)
    try:
        jobs = from_places([place], formats, {**options, **own})
    except UsageError:
        if glob.has_magic(place):
            raise
        # A missing checkpoint is reported in the summary, with the others.
        jobs = [Job(Path(path).stem, Path(place), formats, {**options, **own})]
    if "name" in said:
        if len(jobs) > 1 or not _inside(said["name"]):
            raise UsageError(
                f"{said['name']!r} is not a valid name.",
                code="PTC6017",
                where=where,
                fix="Give a relative path, for one file.",
            )
        return [Job(said["name"], jobs[0].path, formats, jobs[0].options)]
    one = not glob.has_magic(place) and jobs[0].path == Path(place)
    if one and _inside(path) and Path(path).name:
        return [Job(str(_without_suffix(Path(path), jobs[0].path)), jobs[0].path, formats, jobs[0].options)]
    return jobs


def _inside(name: object) -> bool:
    """Return whether a name stays inside the folder that it is joined to."""
    return isinstance(name, str) and bool(name) and not Path(name).is_absolute() and ".." not in Path(name).parts


def checked(jobs: Sequence[Job]) -> list[Job]:
    """Return the same jobs without duplicates.

    Raises:
        UsageError: there are none, a format is unknown, or two different jobs would be written to the same place.
    """
    if not jobs:
        raise UsageError(
            "There is nothing to convert.", code="PTC6018", fix="Give checkpoints, folders, globs or a manifest."
        )
    by_name: dict[str, Job] = {}
    for job in jobs:
        strange = [format for format in job.to if format not in SUFFIXES]
        fix = f"Give --to, or `to` in the manifest: {', '.join(SUFFIXES)}."
        if not job.to:
            raise UsageError("No format is given.", code="PTC6038", where=str(job.path), fix=fix)
        if strange:
            what = f"Unknown format: {', '.join(map(str, strange))}."
            raise UsageError(what, code="PTC6019", where=str(job.path), fix=fix)
        if not _is_utf8(job.name) or not _is_utf8(str(job.path)) or "\0" in f"{job.name}{job.path}":
            what = f"The name {str(job.path)!r} is not UTF-8, or holds a null character."
            raise UsageError(what, code="PTC6020", fix="Rename it, or set a UTF-8 locale.")
        if by_name.setdefault(job.name, job) != job:
            raise UsageError(
                f"{by_name[job.name].path} and {job.path} would both be written as {job.name}.",
                code="PTC6021",
                fix="Give them names in a manifest, or put them in different folders.",
            )
    return list(by_name.values())


def _is_utf8(name: str) -> bool:
    """Return whether a name can be encoded as UTF-8, which journals and artifacts need."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def shard(jobs: Sequence[Job], part: int, parts: int) -> list[Job]:
    """Return the jobs of one part (from 1) of several batches; a name always belongs to the same part."""
    return [job for job in jobs if zlib.crc32(job.name.encode()) % parts == part - 1]
