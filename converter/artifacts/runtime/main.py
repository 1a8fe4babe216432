"""Open an artifact in a process that receives only its path: the script `python -P main.py keras PIPE`.

It refuses to import `converter` and `mappings`, so the artifact must work with stock TensorFlow, Keras or onnxruntime.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from .protocol import Fact, Value

OURS = ("converter", "mappings")
# Packages that a runtime imports where they are installed, and that opening an artifact does not use.
UNUSED = {"saved_model": ("keras",), "keras": ("IPython", "matplotlib", "pandas", "sklearn")}


class Reader(Protocol):
    """The interface of each format's module: building a reader imports the runtime, `open` comes before the rest."""

    inputs: list[Fact]
    outputs: list[Fact]

    def __init__(self) -> None: ...
    def open(self, path: Path, signature: str | None = None, *, trusted: Any = False) -> None: ...
    def run(self, arrays: Mapping[str, Any]) -> Mapping[str, Any]: ...
    def tensors(self) -> Mapping[str, Any]: ...
    def held(self) -> Mapping[str, Any]: ...
    def trace(self, arrays: Mapping[str, Any]) -> Iterable[Value]: ...
    def operators(self) -> Mapping[str, int]: ...
    def graph_digest(self) -> str: ...
    def xla_functions(self) -> list[str]: ...
    def use_plain_kernels(self) -> None: ...


def main(module: str, pipe: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # they go to the whole group; this process ends with its parent
        signal.signal(number, signal.SIG_IGN)
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # the runtimes print to standard output; only answers may go there
    for name in (*OURS, *UNUSED.get(module, ())):
        sys.modules[name] = None  # type: ignore[assignment]  # makes importing it an ImportError
    package = types.ModuleType("runtime")
    package.__path__ = [str(Path(__file__).resolve().parent)]
    sys.modules[package.__name__] = package
    importlib.import_module("runtime.lifeline").end_with_parent(pipe)
    messages = importlib.import_module("runtime.protocol")
    try:
        reader: Reader | Exception = importlib.import_module(f"runtime.{module}").Reader()
    except Exception as error:
        traceback.print_exc()
        reader = error
    held: dict[str, Mapping[str, Any]] = {}  # the artifact's tensors, once requested
    while True:
        try:
            request, arrays = messages.receive(requests)
        except EOFError:
            os._exit(0)  # the parent is done; tearing the runtimes down takes seconds and can crash
        _answer(messages, answers, reader, held, request, arrays)


def _answer(
    messages: Any,
    answers: IO[bytes],
    reader: Reader | Exception,
    held: dict[str, Mapping[str, Any]],
    request: dict[str, Any],
    arrays: dict[str, Any],
) -> None:
    content: dict[str, Any] = {}
    results: Mapping[str, Any] = {}
    try:
        if isinstance(reader, Exception):
            raise reader
        match request["action"]:
            case "open":
                reader.open(Path(request["path"]), request["signature"], trusted=request["trusted"])
                content = {"inputs": reader.inputs, "outputs": reader.outputs}
            case "run":
                results = reader.run(arrays)
            case "plain":
                reader.use_plain_kernels()
            case "graph":
                content = {"digest": reader.graph_digest()}
            case "tensors":
                held["tensors"] = reader.tensors()
                content = {"names": list(held["tensors"])}
            case "tensor":
                results = {request["name"]: held["tensors"][request["name"]]}
            case "held":
                results = reader.held()
            case "trace":
                values = list(reader.trace(arrays))
                content = {"values": [[name, operator, shape] for name, operator, shape, _ in values]}
                results = {str(i): fingerprint for i, (*_, fingerprint) in enumerate(values)}
            case "operators":
                content = {"operators": dict(reader.operators()), "xla_functions": reader.xla_functions()}
        messages.send(answers, content, results)
    except messages.Refused as error:
        messages.send(answers, {"refused": str(error)})
    except Exception as error:
        traceback.print_exc()
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        messages.send(answers, {"error": f"{type(error).__name__}: {error}", "missing": missing})


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
