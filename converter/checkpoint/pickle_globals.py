"""The classes and functions that a file's pickles name, listed without unpickling, and the objects they stand for."""

import _compat_pickle
import io
import pickletools
import zipfile
from pathlib import Path
from typing import IO

from converter.checkpoint.file_format import Format
from converter.checkpoint.pickle_allowlist import LEFT_ASIDE, Named, find_allowed
from converter.checkpoint.trust import Trust
from converter.errors import CheckpointError

LEGACY_PICKLES = 5  # magic number, version, system, the object, the keys of the storages


class Asked:
    """The classes and functions that a file's pickles name.

    Attributes:
        names: (module, name) of each, in the order of the file.
        protocols: of its pickles.
    """

    def __init__(self) -> None:
        self.names: dict[tuple[str, str], None] = {}
        self.protocols: list[int] = []


def names_asked_for(path: Path, file_format: Format) -> Asked:
    """List the names in the file's pickles, without unpickling.

    Raises:
        CheckpointError: the file is damaged.
    """
    asked = Asked()
    try:
        if file_format is Format.ZIP:
            with zipfile.ZipFile(path) as archive:
                name = next(name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1)
                _scan(io.BytesIO(archive.read(name)), asked)
        else:
            with path.open("rb") as file:
                for _ in range(LEGACY_PICKLES):
                    _scan(file, asked)
    except Exception as error:  # broken archives and pickles raise anything, down to zlib.error and MemoryError
        what = f"the file is damaged or cut off: {str(error) or type(error).__name__}"
        raise CheckpointError(what, code="PTC1046", where=str(path), fix="copy or download it again") from error
    return asked


def _scan(file: IO[bytes], asked: Asked) -> None:
    protocol = 0
    pushed = ["?", "?"]  # strings last pushed: STACK_GLOBAL takes its module and name from the stack
    memo: dict[int, str] = {}
    top: str | None = None
    for opcode, argument, _ in pickletools.genops(file):
        match opcode.name, argument:
            case "PROTO", int(version):
                protocol = version
            case (("GLOBAL" | "INST"), str(pair)):
                module, _, name = pair.partition(" ")
                asked.names[python_3_name(module, name, protocol)] = None
                top = None
            case "STACK_GLOBAL", _:
                module, name = pushed
                asked.names[python_3_name(module, name, protocol)] = None
                top = None
            case "MEMOIZE", _:
                memo[len(memo)] = top or "?"
            case (("PUT" | "BINPUT" | "LONG_BINPUT"), int(slot)):
                memo[slot] = top or "?"
            case (("GET" | "BINGET" | "LONG_BINGET"), int(slot)):
                top = memo.get(slot, "?")
                pushed = [pushed[1], top]
            case _, str(text):
                top = text
                pushed = [pushed[1], text]
            case _:
                top = None
    asked.protocols.append(protocol)


def python_3_name(module: str, name: str, protocol: int) -> tuple[str, str]:
    """Return the current name for a Python 2 name, as pickle itself maps it, or for an old name in torch."""
    if protocol < 3:
        module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
        module = _compat_pickle.IMPORT_MAPPING.get(module, module)
    return {"torch.tensor": "torch._tensor"}.get(module, module), name


def resolve(module: str, name: str, trust: Trust) -> Named | None:
    """Return the object that a name in a pickle stands for; None if it is not allowed.

    Raises:
        NotFoundError: it would be allowed, but does not exist.
        CheckpointError: it leads out of a trusted package.
    """
    named = find_allowed(module, name)
    if (named is None or f"{module}.{name}" in LEFT_ASIDE) and trust.covers(module):
        return Named(trust.find(module, name), called=True, built=True)
    return named
