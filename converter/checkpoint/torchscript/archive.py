"""Open a TorchScript file after checking that its names, data and code are those of a model.

PyTorch is given an archive of only the checked records, so that it cannot read the file in another way.
"""

import io
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from converter.checkpoint.file_format import archive_names
from converter.checkpoint.torchscript.archive_code import Declared, Unreadable, odd_code
from converter.checkpoint.torchscript.archive_data import Malformed, misfits, read_data
from converter.errors import CheckpointError

TRUST_KEYWORD = "torchscript"  # --trust torchscript

NEEDED = re.compile(
    r"data\.pkl|constants\.pkl|(\.data/)?version|byteorder|(data|constants)/\d+|code/__torch__[\w/]*\.py"
)
# Kept for debugging, for mobile runtimes, or for the user; nothing reads them here.
LEFT_ASIDE = re.compile(
    r"code/.*\.debug_pkl|\.data/.*|\.format_version|\.storage_alignment|extra/.*|bytecode\.pkl|"
    r"mobile_debug_handles\.pkl|traced_inputs\.pkl|traced_inputs/\d+|metadata\.json"
)
UNTRUSTED_FIX = (
    "Give the original model's checkpoint, or torch.export.save of it; or, if you trust the file's maker, "
    f"add --trust {TRUST_KEYWORD}."
)
LARGEST_PICKLE = 1 << 28


class Archive:
    """A TorchScript file whose records were checked.

    Attributes:
        code: the text of its code records, by name.
    """

    def __init__(self, content: bytes, code: dict[str, str]):
        self.content = content
        self.code = code

    def imported(self, unit: torch._C.CompilationUnit, path: Path) -> Any:
        """Return the compiled module.

        Raises:
            CheckpointError: PyTorch cannot load it.
        """
        try:
            read: Any = torch._C.import_ir_module_from_buffer
            return read(unit, self.content, torch.device("cpu"), {}, False)
        except Exception as error:  # PyTorch's compiler and reader raise anything
            raise _unloadable(path, error) from error


def open_archive(path: Path, *, trusted: bool) -> Archive:
    """Return the checked records of a TorchScript file.

    Args:
        trusted: take code and data as they are, as the user requested with `--trust torchscript`.

    Raises:
        CheckpointError: the archive is damaged, or holds something that no model needs.
    """
    names = archive_names(path)
    root = names[0].split("/")[0]
    records = [name.removeprefix(f"{root}/") for name in names]
    if "model.json" in records:
        fix = "Load it with torch.jit.load and save it again with torch.jit.save."
        raise CheckpointError(
            "This TorchScript was written by PyTorch before 1.2.", code="PTC1071", where=str(path), fix=fix
        )
    missing = [record for record in ("data.pkl", "constants.pkl") if record not in records]
    missing += [] if {"version", ".data/version"} & set(records) else ["version"]
    if missing:
        fix = "Copy or download it again, or save it again with torch.jit.save."
        raise CheckpointError(
            f"The TorchScript does not contain {', '.join(missing)}.", code="PTC1072", where=str(path), fix=fix
        )
    odd = [r for r in records if not NEEDED.fullmatch(r) and not LEFT_ASIDE.fullmatch(r)]
    if not trusted:
        _refuse_if(path, "records that torch.jit.save does not write", odd)
    taken = _taken(path, root, [r for r in records if NEEDED.fullmatch(r) or (trusted and r in odd)])
    code = {name: data for name, data in taken.items() if name.startswith("code/")}
    if not trusted:
        _check_code_and_data(path, taken, code)
    return Archive(_archive(taken), {name: data.decode("utf-8", errors="replace") for name, data in code.items()})


def _taken(path: Path, root: str, records: list[str]) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(path) as archive:
            return {record: archive.read(f"{root}/{record}") for record in records}
    except Exception as error:  # zlib.error, struct.error and more: a broken archive raises anything
        what = f"The file is damaged: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        raise CheckpointError(what, code="PTC1073", where=str(path), fix="Copy or download it again.") from error


def _check_code_and_data(path: Path, taken: dict[str, bytes], code: dict[str, bytes]) -> None:
    declared = Declared()
    odd: list[str] = []
    sizes = {name: len(data) for name, data in taken.items()}
    try:
        for record, text in code.items():
            odd += odd_code(record, text, declared)
        _refuse_if(path, "code that is not only a model's arithmetic", odd)
        for record, aside in (("data.pkl", "data"), ("constants.pkl", "constants")):
            if sizes[record] > LARGEST_PICKLE:
                raise Malformed(f"it has {sizes[record]} bytes")
            value = read_data(taken[record], sizes, aside)
            _refuse_if(path, "objects that are not as declared", misfits(value, declared.classes))
    except Unreadable as error:
        fix = "Copy or download it again, or save it again with torch.jit.save."
        raise CheckpointError(
            f"The TorchScript's code cannot be read: {error}", code="PTC1074", where=str(path), fix=fix
        ) from error
    except Malformed as error:
        what = f"The TorchScript's data is not what torch.jit.save writes: {error}"
        raise CheckpointError(what, code="PTC1075", where=str(path), fix=UNTRUSTED_FIX) from error


def _archive(records: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in records.items():
            archive.writestr(f"model/{name}", data)
    return buffer.getvalue()


def _refuse_if(path: Path, what: str, found: Any) -> None:
    first = list(dict.fromkeys(found))
    if first:
        shown = "".join(f"\n    {part[:200]}" for part in first[:10])
        more = f"\n    and {len(first) - 10} more" if len(first) > 10 else ""
        raise CheckpointError(
            f"The TorchScript contains {what}:{shown}{more}", code="PTC1076", where=str(path), fix=UNTRUSTED_FIX
        )


def _unloadable(path: Path, error: Exception) -> CheckpointError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    fix = "Save it again with torch.jit.save of the installed PyTorch, or give the original model."
    what = f"PyTorch cannot load the TorchScript: {lines[0] if lines else type(error).__name__}"
    return CheckpointError(what, code="PTC1077", where=str(path), fix=fix)
