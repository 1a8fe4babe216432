"""Makes the package index's torchvision, which is built for CUDA, importable beside a CPU build of torch.

Its native library is linked against CUDA libraries that such a torch does not bring. Stand-ins with their names, in
which every symbol asked for is a function that returns 0, satisfy the loader; without a GPU only the registration of
CUDA kernels calls them. Needs gcc, nm and readelf. Where torch itself is built for CUDA nothing is done.
"""

import ctypes
import functools
import importlib
import importlib.util
import re
import subprocess
import tempfile
from pathlib import Path
from types import ModuleType

import torch


def load_torchvision() -> ModuleType:
    """Imports torchvision with its native operators.

    Raises:
        ImportError: it is not installed, or a tool to build the stand-ins is missing.
    """
    folder = stand_ins()
    for library in folder.glob("*cud*") if folder else ():
        ctypes.CDLL(str(library))  # stays loaded; the native library's own request then finds it by its name
    return importlib.import_module("torchvision")


def environment() -> dict[str, str]:
    """The variables that make `import torchvision` work in a process of its own."""
    folder = stand_ins()
    return {"LD_LIBRARY_PATH": str(folder)} if folder else {}


@functools.cache
def stand_ins() -> Path | None:
    """The folder of the stand-ins, or None if none are needed. Removed when this process ends.

    Raises:
        ImportError: torchvision is not installed, or a tool to build them is missing.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        raise ImportError("torchvision is not installed")
    if torch.version.cuda:
        return None
    native = next(Path(spec.origin).parent.glob("_C*.so"))
    libraries = re.findall(r"\(NEEDED\).*\[(\S*cud\S*)\]", _output("readelf", "--dynamic", native))
    undefined = [line.split()[-1] for line in _output("nm", "-D", "--undefined-only", native).splitlines()]
    symbols = sorted({symbol.partition("@")[0] for symbol in undefined if "cuda" in symbol})
    _FOLDERS.append(tempfile.TemporaryDirectory(prefix="cuda-stand-ins-"))
    folder = Path(_FOLDERS[-1].name)
    source, versions = folder / "source.c", folder / "versions"
    source.write_text("".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in symbols))
    for library in libraries:
        versions.write_text(f"{library} {{ *; }};\n")  # the CUDA runtime's symbols have its name as their version
        named = (f"-Wl,-soname,{library}", f"-Wl,--version-script,{versions}")
        _output("gcc", "-shared", "-fPIC", *named, "-o", folder / library, source)
    return folder


_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []


def _output(*command: str | Path) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError as missing:
        raise ImportError(f"torchvision beside a CPU build of torch needs {command[0]}") from missing
    except subprocess.CalledProcessError as failed:
        raise ImportError(f"{command[0]} failed: {failed.stderr}") from failed
