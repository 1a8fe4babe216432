"""The classes and functions that a file's pickles name, listed without unpickling, and the objects they stand for."""

import _compat_pickle
import io
import pickletools
import zipfile
from pathlib import Path
from typing import IO, Any

from converter.checkpoint.file_format import Format
from converter.checkpoint.pickle_allowlist import LEFT_ASIDE, Named, find_allowed
from converter.checkpoint.trust import Trust
from converter.errors import CheckpointError

MOST_INSTRUCTIONS = 10_000_000
DEEPEST_STACK = 1_000_000  # values
MOST_ODD_KEYS = 4096
LEGACY_PICKLES = 5  # magic number, version, system, the object, the keys of the storages


class Asked:
    """The classes and functions that a file's pickles name.

    Attributes:
        names: (module, name) of each, in the order of the file.
        protocols: of its pickles.
        collects: it makes dictionaries or sets of lists, by a call.
    """

    def __init__(self) -> None:
        self.names: dict[tuple[str, str], None] = {}
        self.protocols: list[int] = []
        self.collects = False


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
        what = f"The file is damaged or cut off: {str(error) or type(error).__name__}"
        raise CheckpointError(what, code="PTC1046", where=str(path), fix="Copy or download it again.") from error
    return asked


def _scan(file: IO[bytes], asked: Asked) -> None:
    protocol = 0
    pushed = ["?", "?"]  # strings last pushed: STACK_GLOBAL takes its module and name from the stack
    memo: dict[int, str] = {}
    top: str | None = None
    stack = _Stack()
    for number, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if number > MOST_INSTRUCTIONS:
            raise ValueError(f"more than {MOST_INSTRUCTIONS} instructions, which no model needs")
        stack.run(opcode, argument)
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
    asked.collects |= stack.collects


def is_plain_key(value: object) -> bool:
    """Return whether no file can have many such keys of one hash: texts, and numbers below hash's modulus."""
    return value is None or type(value) in (str, bytes, bool, float) or (type(value) is int and abs(value) < 2**61 - 1)


class _Stack:
    """The stack of a pickle machine, with whether each value would be a plain key in place of the value.

    Python's dictionaries take a time that is the square of the number of keys of the same hash. Raises ValueError where
    there could be many, and where values are nested without measure.
    """

    def __init__(self) -> None:
        self.collects = False
        self._odd = 0
        self._values: list[bool | str] = []
        self._marks: list[int] = []
        self._memo: dict[int, bool | str] = {}

    def run(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        name, values = opcode.name, self._values
        if name == "MARK":
            self._marks.append(len(values))
        elif name == "POP" and self._marks and self._marks[-1] == len(values):
            self._marks.pop()
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = values[-1]
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self._memo[argument] = values[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            values.append(self._memo[argument])
        elif name == "DUP":
            values.append(values[-1])
        else:
            self._apply(opcode, argument)
        if len(values) + len(self._marks) > DEEPEST_STACK:
            raise ValueError(f"more than {DEEPEST_STACK} values within each other, which no model needs")

    def _apply(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        below, after = _EFFECTS[opcode.name]
        values = self._values
        items: list[bool | str] = []
        if below < 0:  # everything above the mark, and what is under it
            if not self._marks:
                raise ValueError("a mark is missing")
            start = self._marks.pop()
            items = values[start:]
            del values[start:]
            below = -below - 1
        if len(values) < below:
            raise ValueError("the stack is empty")
        under = values[len(values) - below :]
        del values[len(values) - below :]
        match opcode.name:
            case "SETITEM":
                self._odd += not under[1]
            case "SETITEMS" | "DICT":
                self._odd += items[::2].count(False)
            case "ADDITEMS" | "FROZENSET":
                self._odd += items.count(False)
            case "REDUCE":
                self.collects |= under == [_COLLECTOR, False]
        if self._odd > MOST_ODD_KEYS:
            raise ValueError(f"more than {MOST_ODD_KEYS} keys that are neither texts nor small numbers")
        atom = opcode.name in _ATOMS or (bool(opcode.arg) and is_plain_key(argument) and opcode.name not in _CALLS)
        collector = opcode.name == "GLOBAL" and argument in _COLLECTORS
        values += [_COLLECTOR if collector else atom] * after


# What an instruction takes off the stack and puts there; negative: all above the mark, and one less under it.
_EFFECTS = {
    opcode.name: (
        -opcode.stack_before.index(pickletools.markobject) - 1
        if pickletools.markobject in opcode.stack_before
        else len(opcode.stack_before),
        len(opcode.stack_after),
    )
    for opcode in pickletools.opcodes
}
_ATOMS = frozenset({"NONE", "NEWTRUE", "NEWFALSE", "EMPTY_TUPLE"})
_COLLECTOR = "makes a dictionary or a set"
_COLLECTORS = frozenset({"collections OrderedDict", "collections Counter", "__builtin__ set", "builtins set"})
_CALLS = frozenset({"GLOBAL", "INST", "PERSID", "EXT1", "EXT2", "EXT4", "BYTEARRAY8"})


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
