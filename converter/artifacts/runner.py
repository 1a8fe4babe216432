"""Start and talk to the process that opens an artifact."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Self

import numpy as np

from ..errors import CheckpointError, ConversionError, UsageError
from .runtime.formats import Format
from .runtime.graph_digest import KEY
from .runtime.protocol import Fact, Tensors, receive, send
from .runtime.stamp import read_stamp

_MODULES: dict[Format, str] = {
    "tf": "saved_model", "keras": "keras", "onnx": "onnx", "tflite": "tflite", "torch": "torch_module",
}  # fmt: skip
# Defaults that the user may override. Spinning threads would take the processor from the parent.
_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "TF_CPP_MIN_LOG_LEVEL": "2"}
_KILLED = "The system kills processes that use too much memory. End other programs, or convert to one format at a time."
_TAIL = 2000  # characters of a crashed child's output to show
SCRIPT_FAILED = 3  # the exit status of a script whose package failed


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of an artifact: None in `shape` is a dynamic size, `shape` is None if the rank is unknown."""

    name: str
    shape: tuple[int | None, ...] | None
    dtype: str


@dataclass(frozen=True)
class Traced:
    """One value within an artifact; `fingerprint` is its `protocol.fingerprint`."""

    name: str
    operator: str
    shape: tuple[int, ...]
    fingerprint: np.ndarray


def require_litert() -> None:
    """Raise UsageError if the packages that `.tflite` files need are missing."""
    if find_spec("ai_edge_litert") is None:
        raise UsageError(
            "The package ai-edge-litert is not installed, which .tflite files need.",
            code="PTC4023",
            fix='Install it: pip install "pt-convert[tflite]".',
        )


def start_bound(command: Sequence[str], **options: Any) -> tuple[subprocess.Popen[Any], IO[bytes]]:
    """Start a process that ends with this one, and return it with what keeps it alive while it is open.

    Its last argument is a pipe for `lifeline.end_with_parent`. Its standard input and output are pipes too.
    """
    pipe, held = os.pipe()
    try:
        started = subprocess.Popen(
            [*command, str(pipe)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(pipe,), **options
        )
    except BaseException:
        os.close(held)
        raise
    finally:
        os.close(pipe)
    return started, os.fdopen(held, "wb")


def run_script(name: str, *arguments: str) -> tuple[str, int]:
    """Run a script of `runtime` in a process of its own, and return its error, "" if none, and its exit status.

    With status `SCRIPT_FAILED`, the error is that of the package that the script calls; with any other, the process
    ended, and its last output stands for an error.
    """
    ended = subprocess.run(
        [sys.executable, "-P", str(Path(__file__).with_name("runtime") / name), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env={"TF_CPP_MIN_LOG_LEVEL": "2"} | os.environ,
        check=False,
    )
    own = ended.returncode == SCRIPT_FAILED
    told = (ended.stdout if own else ended.stderr).decode(errors="replace")
    return ("" if not ended.returncode else told if own else told.strip()[-_TAIL:]), ended.returncode


class Runner:
    """Opens an artifact in a new process that receives only its path, and runs it there.

    Start it early: the process imports its runtime while the parent works. Every method raises ConversionError if the
    process fails, dies or takes longer than `timeout` seconds.
    """

    def __init__(self, format: Format, *, timeout: float = 900):
        if format == "tflite":
            require_litert()
        self.format = format
        self.inputs: tuple[TensorSpec, ...] = ()
        self.outputs: tuple[TensorSpec, ...] = ()
        self._timeout = timeout
        self._path: Path | None = None
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `close`
        # -P: no file in the current directory may shadow a module of the runtime.
        self._process, self._held = start_bound(
            [sys.executable, "-P", str(Path(__file__).with_name("runtime") / "main.py"), _MODULES[format]],
            stderr=self._stderr,
            env=_ENVIRONMENT | os.environ | {"KERAS_BACKEND": "tensorflow"},
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Return whether the process still runs; a runtime that crashes ends it."""
        return self._process.poll() is None

    def open(self, path: Path, signature: str | None = None, *, trusted: bool | str = False) -> None:
        """Open an artifact and set `inputs` and `outputs`; another artifact of the format may be opened after it.

        Args:
            signature: of a SavedModel or a TFLite file; `serving_default`, or the only one it has, if None.
            trusted: open it even if it holds what could do more than compute; for a PyTorch module, which is a program,
                also the SHA-256 of the only source that may run.
        """
        self._path = path
        request = {"action": "open", "path": str(path.resolve()), "signature": signature, "trusted": trusted}
        content, _ = self._ask(request, "does not open")
        self.inputs, self.outputs = _specs(content["inputs"]), _specs(content["outputs"])

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the artifact and return its outputs by name; inputs have the names and dtypes of `inputs`."""
        expected = {spec.name for spec in self.inputs}
        if set(inputs) != expected:
            raise ConversionError(
                f"The artifact takes the inputs {sorted(expected)}, not {sorted(inputs)}.",
                code="PTC4018",
                fix="Name the inputs as the artifact does.",
                where=str(self._path),
            )
        return self._ask({"action": "run"}, "does not run", inputs)[1]

    def use_plain_kernels(self) -> None:
        """Run the opened LiteRT file without XNNPACK from now on."""
        self._ask({"action": "plain"}, "does not open without XNNPACK")

    def tensors(self) -> Tensors:
        """Return the artifact's weights by name; each is fetched on read.

        SavedModel: the variables by their names in the checkpoint. Keras: by `layer/weight`. ONNX: the initializers.
        """
        failure = "does not return its weights"
        names = self._ask({"action": "tensors"}, failure)[0]["names"]
        return Tensors(names, lambda name: self._ask({"action": "tensor", "name": name}, failure)[1][name])

    def graph_as_written(self) -> bool | None:
        """Return whether operators, attributes and constants are those of the graph before it was written.

        None if the artifact has no stamp. Every stamp has the digest: if it is missing, the artifact was changed.
        """
        if self._path is None or (stamp := read_stamp(self._path)) is None:
            return None
        return bool(self._ask({"action": "graph"}, "does not return its graph")[0]["digest"] == stamp.get(KEY))

    def held(self) -> dict[str, np.ndarray]:
        """Return every array of numbers in the artifact by name: its weights and the constants of its graph."""
        return self._ask({"action": "held"}, "does not return its contents")[1]

    def trace(self, inputs: Mapping[str, np.ndarray]) -> list[Traced]:
        """Return the result of every operator of the artifact on `inputs`, in the order in which they run."""
        content, arrays = self._ask({"action": "trace"}, "does not return its intermediate values", inputs)
        return [
            Traced(name, operator, tuple(shape), arrays[str(i)])
            for i, (name, operator, shape) in enumerate(content["values"])
        ]

    def operators(self) -> dict[str, int]:
        """Count each operator type in the inference graph, most frequent first.

        Operators of a function count once per call, those of a loop body or a branch once. Operators that only hold,
        read or name a value (Const, ReadVariableOp, Identity, NoOp, the call itself) are not counted.
        """
        return self._ask({"action": "operators"}, "does not return its graph")[0]["operators"]

    def xla_functions(self) -> list[str]:
        """Return the functions and operators of the graph that XLA compiles; empty for ONNX."""
        return self._ask({"action": "operators"}, "does not return its graph")[0]["xla_functions"]

    def close(self) -> None:
        self._held.close()  # ends the process
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # unflushed data has no reader
                    pipe.close()
        try:
            self._process.wait(1)
        except subprocess.TimeoutExpired:  # not Linux, and it holds the interpreter
            self._process.kill()
            self._process.wait()
        self._stderr.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(
        self, request: dict[str, Any], failure: str, arrays: Mapping[str, np.ndarray] | None = None
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        late = threading.Event()

        def stop() -> None:
            late.set()
            self._process.kill()

        timer = threading.Timer(self._timeout, stop)
        timer.start()
        try:
            send(self._process.stdin, request, arrays)
            content, results = receive(self._process.stdout)
        except (EOFError, BrokenPipeError) as error:
            status = self._process.wait()
            how = f"signal {-status}" if status < 0 else f"status {status}"
            reason = f"took longer than {self._timeout:g} s" if late.is_set() else f"died ({how})"
            raise ConversionError(
                f"The artifact {failure}: the process that opened it {reason}.{self._tail()}",
                code="PTC4019",
                where=str(self._path),
                fix=_KILLED if status == -signal.SIGKILL and not late.is_set() else None,
            ) from error
        except BaseException:  # interrupted: the pending answer would be mistaken for that of the next request
            self._process.kill()
            raise
        finally:
            timer.cancel()
        if "refused" in content:
            fix = "If you trust its maker, open it with --trust artifact."
            what = f"The artifact was refused: {content['refused']}"
            raise CheckpointError(what, code="PTC4022", where=str(self._path), fix=fix)
        if "error" in content:
            fix = "Convert again. For an artifact from another tool, check that its own runtime opens it."
            if content["missing"]:
                fix = f"Run pip install {content['missing']}. `pt-convert doctor` shows what works here."
            what = f"The artifact {failure}: {content['error']}"
            raise ConversionError(what, code="PTC4020", fix=fix, where=str(self._path))
        return content, results

    def _tail(self) -> str:
        self._stderr.seek(0)
        text = self._stderr.read().decode(errors="replace").strip()
        return f" It wrote:\n{text[-_TAIL:]}" if text else ""


def _specs(facts: list[Fact]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, None if shape is None else tuple(shape), dtype) for name, shape, dtype in facts)
