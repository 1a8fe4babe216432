"""Detect a file's type from its content. Only torch's own reader of archives needs torch."""

from __future__ import annotations

import difflib
import json
import os
import tarfile
import zipfile
from enum import StrEnum
from pathlib import Path
from stat import S_ISLNK
from typing import TYPE_CHECKING

from converter.checkpoint.model_folder import is_index, weights_in
from converter.errors import CheckpointError

if TYPE_CHECKING:
    import torch

PICKLE_FIX = 'save the model with `torch.save(model.state_dict(), "weights.pt")` or as .safetensors'


class Format(StrEnum):
    ZIP = "torch.save"
    LEGACY = "torch.save before PyTorch 1.6"
    SAFETENSORS = "safetensors"
    EXPORTED = "torch.export.save"
    TORCHSCRIPT = "torch.jit.save"


# torch.serialization.MAGIC_NUMBER as every pickle protocol from 2 on writes it
LEGACY_MAGIC = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
TEXT_SHOWN = 60  # letters
EXPANSION_LIMIT = 100  # decompressed size of an archive, as a multiple of the file's

OTHER_FILES: tuple[tuple[bytes, str], ...] = (
    (b"\x89HDF", "a HDF5 file, as Keras and TensorFlow write them"),
    (b"\x1f\x8b", "a gzip archive: unpack it first"),
    (b"BZh", "a bzip2 archive: unpack it first"),
    (b"\xfd7zXZ", "an xz archive: unpack it first"),
    (b"Rar!", "a RAR archive: unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive: unpack it first"),
    (b"GGUF", "a GGUF file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x7fELF", "a program"),
    (b"%PDF", "a PDF document"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
)


def file_format(path: Path) -> Format:
    """Return the format of a checkpoint.

    Raises:
        CheckpointError: the file is missing, empty, damaged or not a checkpoint.
    """
    head = _first_bytes(path)
    if head.startswith(b"PK\x03\x04"):
        return _zip_format(path)
    if head[:1] == b"\x80" and LEGACY_MAGIC in head[:32]:
        # A file can be a tar and a pickle at once: torch's reader would read it as a tar.
        if tarfile.is_tarfile(path):
            raise _not_a_checkpoint(path, "a tar archive in the disguise of a checkpoint")
        return Format.LEGACY
    if _is_safetensors(head, path.stat().st_size):
        return Format.SAFETENSORS
    raise _not_a_checkpoint(path, _what_else(path, head))


def _first_bytes(path: Path) -> bytes:
    if path.is_dir():
        raise CheckpointError(
            "This is a folder, not a checkpoint.", code="PTC1022", where=str(path), fix=_folder_fix(path)
        )
    if path.exists() and not path.is_file():
        what = "This is a pipe or a device, not a file."
        raise CheckpointError(what, code="PTC1090", where=str(path), fix="Copy it into a file.")
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except FileNotFoundError:
        raise CheckpointError("The file does not exist.", code="PTC1023", where=str(path), fix=_near(path)) from None
    except OSError as error:
        raise CheckpointError(
            f"The file cannot be read: {error.strerror}.",
            code="PTC1024",
            fix="Check the file's permissions and the disk.",
            where=str(path),
        ) from error
    if not head:
        raise CheckpointError("The file is empty.", code="PTC1025", where=str(path), fix="Copy or download it again.")
    return head


def refuse_unreachable(path: Path) -> None:
    """Refuse a name that the system cannot look up: too long, through too many links, with a null in it.

    Raises:
        CheckpointError: the file cannot be opened; `file_format` reports a missing one.
    """
    try:
        if path.is_dir():
            os.scandir(path).close()
        os.stat(f"{path}/." if path.is_dir() else path)  # noqa: PTH116  # a Path has no such ending
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        fix = "Give a path that the system can look up."
        raise CheckpointError(f"The path cannot be read: {reason}", code="PTC1093", where=str(path), fix=fix) from error


def check_readable(path: Path) -> None:
    """Refuse what is neither a checkpoint nor a folder or an index of its weights, without reading the weights.

    Raises:
        CheckpointError: the path is missing, cannot be read, or holds something else.
    """
    refuse_unreachable(path)
    if not (path.is_dir() and weights_in(path)) and not is_index(path):
        file_format(path)


def _near(path: Path) -> str:
    if not path.parent.is_dir():
        return f"The folder {path.parent} does not exist either."
    near = difflib.get_close_matches(path.name, [other.name for other in path.parent.iterdir()])
    return f"Did you mean {' or '.join(near)}?" if near else f"Look in {path.parent.resolve()}."


def _folder_fix(path: Path) -> str:
    if (path / "saved_model.pb").exists():
        return "This is a TensorFlow SavedModel, which pt-convert writes. Give the PyTorch checkpoint."
    endings = {".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".pt2"}
    inside = sorted(file.name for file in path.iterdir() if file.suffix in endings)
    return f"Give a file in it: {', '.join(inside[:5])}." if inside else "Give the checkpoint's file."


def _not_a_checkpoint(path: Path, what: str) -> CheckpointError:
    fix = "Give a file of torch.save, torch.jit.save or torch.export.save, or a .safetensors file."
    return CheckpointError(f"This is not a PyTorch checkpoint but {what}.", code="PTC1026", where=str(path), fix=fix)


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"The file is damaged: {reason}", code="PTC1027", where=str(path), fix="Copy or download it again."
    )


def _zip_format(path: Path) -> Format:
    names = archive_names(path)
    root = names[0].split("/")[0]
    inner = {name.removeprefix(f"{root}/") for name in names}
    if "archive_format" in inner:
        return Format.EXPORTED
    if "serialized_exported_program.json" in names:
        fix = "Open it with the PyTorch that wrote it and save it again with a current one, or export it again."
        raise CheckpointError(
            "This exported program was written by PyTorch before 2.8.", code="PTC1028", where=str(path), fix=fix
        )
    if "constants.pkl" in inner or "model.json" in inner or any(name.startswith("code/") for name in inner):
        return Format.TORCHSCRIPT
    if "data.pkl" in inner:
        return Format.ZIP
    if "config.json" in names and "model.weights.h5" in names:
        raise _not_a_checkpoint(path, "a Keras model")
    if all(name.endswith(".npy") for name in names):
        raise _not_a_checkpoint(path, "a NumPy .npz archive")
    raise _not_a_checkpoint(path, "a zip archive of something else")


def archive_names(path: Path) -> list[str]:
    """Return the names of a zip archive's entries, after checking that unpacking it is harmless.

    Raises:
        CheckpointError: the archive is damaged or empty, expands too much, or has links, duplicate or escaping names,
            or encrypted or overlapping entries.
    """
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError, OSError) as error:
        raise _damaged(path, f"it is a zip archive that is cut off or broken ({error})") from error
    names = [entry.filename for entry in entries]
    if not names:
        raise _damaged(path, "it is an empty zip archive")
    flaws = {
        "names twice": len(set(names)) != len(names),
        "a link": any(S_ISLNK(entry.external_attr >> 16) for entry in entries),
        "names that lead elsewhere": any(_escapes(name) for name in names),
        "encrypted entries": any(entry.flag_bits & 1 for entry in entries),
        "overlapping entries": sum(entry.compress_size for entry in entries) > size,
        "entries that expand without measure": sum(entry.file_size for entry in entries) > EXPANSION_LIMIT * size,
    }
    found = [flaw for flaw, present in flaws.items() if present]
    if found:
        fix = "Do not trust this file: PyTorch does not write such archives."
        raise CheckpointError(f"The archive has {' and '.join(found)}.", code="PTC1029", where=str(path), fix=fix)
    return names


def _escapes(name: str) -> bool:
    return name.startswith("/") or "\\" in name or "\0" in name or ".." in name.split("/") or ":" in name.split("/")[0]


def torch_records(path: Path, names: list[str]) -> torch._C.PyTorchFileReader:
    """Return torch's own reader of the archive, which must see the same entries as Python's reader.

    Raises:
        CheckpointError: they differ, so the checked content would not be the loaded content.
    """
    import torch

    try:
        reader = torch._C.PyTorchFileReader(os.fspath(path))
        seen = reader.get_all_records()
    except Exception as error:  # any C++ exception, and a UnicodeDecodeError where its message quotes the file
        if "maximum supported version" in str(error):
            fix = "Open it with the PyTorch that wrote it, and save its state dict as .safetensors; or update PyTorch."
            what = f"The file was written by a newer PyTorch than {torch.__version__}."
            raise CheckpointError(what, code="PTC1030", where=str(path), fix=fix) from error
        raise _damaged(path, str(error).splitlines()[0]) from error
    root = names[0].split("/")[0]
    if sorted(f"{root}/{name}" for name in seen) != sorted(names):
        fix = "Do not trust this file, or write it again with torch.save."
        raise CheckpointError(
            "Zip readers disagree about the contents of this archive.", code="PTC1031", where=str(path), fix=fix
        )
    return reader


def _is_safetensors(head: bytes, size: int) -> bool:
    if len(head) < 9 or head[8:9] != b"{":
        return False
    return int.from_bytes(head[:8], "little") < 2**40 and size > 8


def _what_else(path: Path, head: bytes) -> str:
    for magic, what in OTHER_FILES:
        if head.startswith(magic):
            return what
    if not any(head):
        return "zeros, as an unfinished copy or download leaves them"
    if head[4:8] == b"TFL3":
        return "a TensorFlow Lite model"
    if head[:1] == b"\x80":
        return f"a plain pickle, which is never opened: {PICKLE_FIX}"
    if tarfile.is_tarfile(path):
        return "a tar archive (also PyTorch before 0.1.10 wrote them): unpack it, or save it again with a newer PyTorch"
    # field 1 (ir_version, a small number), followed by a field that a ModelProto has
    if len(head) > 3 and head[0] == 0x08 and 0 < head[1] < 32 and head[2] in (0x12, 0x1A, 0x22, 0x2A, 0x32, 0x3A, 0x42):
        return "an ONNX model"
    return _kind_of_text(head)


def _kind_of_text(head: bytes) -> str:
    try:
        text = head.decode("utf-8", errors="strict")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:
            return "unknown data"
        text = head[: error.start].decode("utf-8")
    if any(ord(letter) < 32 and letter not in "\t\n\r\f" for letter in text):
        return "unknown data"
    opening = text.lstrip().lower()
    if opening.startswith(("<!doctype html", "<html")):
        return "a web page: the download returned a page in place of the file"
    if opening.startswith("version https://git-lfs"):
        return "a Git LFS pointer: `git lfs pull` fetches the file itself"
    try:
        json.loads(text)
        kind = "JSON text"
    except (ValueError, RecursionError):
        kind = "text"
    return f'{kind}, which begins "{" ".join(text[:TEXT_SHOWN].split())}"'
