"""Quantize a `.tflite` file of floats with litert-quantizer, and learn where it loses."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from converter.errors import ConversionError, UsageError
from converter.options import QuantizationOptions

from .runner import SCRIPT_FAILED, run_script
from .runtime import graph_digest as digests
from .runtime import stamp as stamps
from .runtime.tflite_content import attached_files, graph_digest, operator_tensors
from .tflite_writer import write_content


@dataclass(frozen=True)
class Joined:
    """A concatenation that gives an output and remains floats, because one scale cannot hold what it joins.

    Attributes:
        names: of its result, then of its inputs.
        largest: absolute values, of each input.
    """

    names: tuple[str, ...]
    largest: tuple[float, ...]


@dataclass(frozen=True)
class Loss:
    """What an operator's result loses.

    Attributes:
        names: of its result, then of its inputs.
        sqnr_db: of the result, against the float file's.
        before_db: the lowest of its inputs, or None if they are exact.
    """

    names: tuple[str, ...]
    operator: str
    sqnr_db: float
    before_db: float | None

    @property
    def added(self) -> float:
        """The noise that this operator adds, as a share of the power of its result."""
        before = 0.0 if self.before_db is None else 10 ** (-self.before_db / 10)
        return 10 ** (-self.sqnr_db / 10) - before


def require_quantizer() -> None:
    """Raise UsageError if the package that quantizes is missing."""
    if find_spec("litert_quantizer") is None:
        raise UsageError(
            "The package litert-quantizer is not installed, which --quantize needs.",
            code="PTC4028",
            fix='Install it: pip install "pt-convert[tflite]".',
        )


def quantize(
    path: Path, options: QuantizationOptions, samples: Mapping[str, np.ndarray], stamp: Mapping[str, Any]
) -> tuple[list[Loss], list[Joined]]:
    """Replace a file of floats by a quantized one; return the loss of each operator, and what remains floats.

    Args:
        samples: batches for the inputs, by name, [samples, *shape] each in the artifact's layout: to calibrate, and to
            compare the operators.

    Raises:
        ConversionError: litert-quantizer fails.
        UsageError: a module to keep has no operator in the file.
    """
    require_quantizer()
    content = path.read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        names = ("samples.npz", "learned.json", "quantized.tflite")
        arrays, learned, quantized = (Path(folder) / name for name in names)
        np.savez(arrays, **samples)  # type: ignore[arg-type]  # numpy 2 names a keyword of its own
        request = {
            "float": str(path),
            "quantized": str(quantized),
            "samples": str(arrays),
            "learned": str(learned),
            "how": options.quantize,
            "keep": [scope for module in options.keep_float for scope in _scopes(content, module)],
            "quantize_io": options.quantize_io,
        }
        _run(request, Path(folder) / "request.json")
        made = quantized.read_bytes()
        read = json.loads(learned.read_text())
    write_content(path, made, stamps.stamp_text(digests.stamped(stamp, graph_digest(made))), attached_files(content))
    losses = [Loss((r["name"], *r["inputs"]), r["operator"], r["sqnr"], r["before"]) for r in read["losses"]]
    return losses, [Joined((row["name"], *row["inputs"]), tuple(row["largest"])) for row in read["joined"]]


def _scopes(content: bytes, module: str) -> Iterator[str]:
    """Yield a regular expression for each operator of a module, as the package looks for it: by its results' names."""
    within = re.compile(rf"{re.escape(module)}[./]")
    modules: dict[str, None] = {}
    found = False
    for outputs, constants in operator_tensors(content):
        names = [name for joined in (*outputs, *constants) for name in joined.split(";") if "/" in name]
        modules |= dict.fromkeys(name.partition("/")[0] for name in names)
        # The results of the last operators have the names of outputs, so their constants tell where they are from.
        if any(within.match(name) for name in names[:1]):
            found = True
            yield f"^{re.escape(';'.join(outputs))};$"
    if not found:
        near = get_close_matches(module, modules, 2)
        raise UsageError(
            f"The file has no operator of module {module!r}.",
            code="PTC4029",
            where="--keep-float",
            fix=f"Did you mean {' or '.join(near)}?" if near else "Give a module's path, as `inspect` shows it.",
        )


def _run(request: Mapping[str, Any], file: Path) -> None:
    file.write_text(json.dumps(request))
    failure, status = run_script("quantize_tflite.py", str(file))
    if status:
        how = "fails" if status == SCRIPT_FAILED else f"ended with status {status}. It wrote"
        raise ConversionError(
            f"litert-quantizer {how}: {failure.strip()}",
            code="PTC4030",
            where=f"--quantize {request['how']}",
            fix="Leave the module that it names out with --keep-float, or choose another --quantize.",
        )
