"""Write a `.tflite` file of a TensorFlow function, with LiteRT's own operators only."""

from __future__ import annotations

import re
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.errors import ConversionError

from . import saved_model_writer
from .runner import SCRIPT_FAILED, require_litert, run_script
from .runtime import graph_digest as digests
from .runtime import stamp as stamps
from .tflite_metadata import LABELS_FILE, TensorDescription, add_metadata

if TYPE_CHECKING:
    import tensorflow as tf

LARGEST = 2**31 - 2**24  # bytes of weights; positions in the file are 32-bit numbers with a sign
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest a zip can hold
MOST_PLACES = 3
# MLIR's diagnostics: 'tf.FloorDiv' op ...; loc(fused["FloorDiv:", "head/floordiv/floordiv@__inference_serving_1"])
_NO_OPERATOR = re.compile(r"'tfl?\.(\w+)' op (?:is neither|failed to verify)")
_LOOP = "op requires element_shape to be static"
_NODE = re.compile(r'"([^"@]+)@__inference_')


def refuse_large(size: int) -> None:
    """Raise ConversionError for a model whose weights have too many bytes for one file of the format."""
    if size > LARGEST:
        raise ConversionError(
            f"The weights have {size / 2**30:.1f} GiB, and a .tflite file has room for {LARGEST / 2**30:.1f} GiB.",
            code="PTC4046",
            where="--to tflite",
            fix="Choose --to onnx, tf or keras, which have no such limit, or convert parts of it with --submodule.",
        )


def write(
    traced: Any,
    variables: Mapping[str, tf.Variable],
    path: Path,
    stamp: Callable[[bytes], Mapping[str, Any]],
    places: Mapping[str, str],
    name: str,
    described: Mapping[str, TensorDescription],
    labels: Sequence[str],
) -> None:
    """Write the file; meanwhile, its folder also holds a SavedModel.

    Args:
        variables: all that the function reads, by their names in the checkpoint.
        stamp: makes the stamp of the file's content.
        places: module and line of code, by the scope of the function's operators.
        name: of the model, in its metadata.
        described: what is known of inputs and outputs, for the metadata; there is none if nothing is.
        labels: names of the classes.

    Raises:
        ConversionError: LiteRT has no operator for a part of the function.
    """
    from .runtime.tflite_content import graph_digest

    require_litert()
    with tempfile.TemporaryDirectory(prefix=".saved_model-", dir=path.parent) as folder:
        saved = Path(folder) / "saved_model"
        saved_model_writer.save(traced, variables, saved, {})
        _convert(saved, path, places)
    content = path.read_bytes()
    if described:
        content = add_metadata(content, name, described)
    text = stamps.stamp_text(digests.stamped(stamp(content), graph_digest(content)))
    write_content(path, content, text, {LABELS_FILE: "\n".join(labels).encode()} if labels else {})


def write_content(path: Path, content: bytes, stamp: str, files: Mapping[str, bytes]) -> None:
    """Write a model and, in a zip behind it, its stamp and files: the same bytes for the same arguments."""
    path.write_bytes(content)
    with zipfile.ZipFile(path, "a") as archive:
        for member, held in {**files, stamps.ZIP_MEMBER: stamp.encode()}.items():
            archive.writestr(zipfile.ZipInfo(member, _EPOCH), held)


def _convert(saved: Path, path: Path, places: Mapping[str, str]) -> None:
    failure, status = run_script("convert_saved_model.py", str(saved), str(path))
    if status == SCRIPT_FAILED:
        raise _refusal(failure, places)
    if status:
        raise ConversionError(
            f"TensorFlow's converter for LiteRT ended with status {status}. It wrote:\n{failure}",
            code="PTC4024",
            where="--to tflite",
            fix="Convert to another format, or report the model.",
        )


def _refusal(text: str, places: Mapping[str, str]) -> ConversionError:
    """Return the error for what TensorFlow's converter says of operators that it cannot write."""
    operators = sorted(set(_NO_OPERATOR.findall(text)))
    nodes = dict.fromkeys(_NODE.findall(text))
    found = dict.fromkeys(places[scope] for node in nodes for scope in places if node.startswith(f"{scope}/"))
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    what = (
        f"LiteRT has no operator for {', '.join(operators)}" if operators else f"TensorFlow's converter fails: {first}"
    )
    fix = "Write this part of the model with other operators, or convert to another format."
    if _LOOP in text:
        what = "LiteRT's loops over the steps of a sequence take a fixed batch"
        fix = "Leave out --dynamic-batch, or give the sequence a fixed length of at most 128 steps, which is unrolled."
    return ConversionError(
        f"{what}.", code="PTC4025", where="; ".join(list(found)[:MOST_PLACES]) or "--to tflite", fix=fix
    )
