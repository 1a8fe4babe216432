"""Choose where artifacts go."""

import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from ..errors import OutputError, UsageError
from .runtime.formats import recognize

SUFFIXES = {"tf": "_saved_model", "keras": ".keras", "onnx": ".onnx", "tflite": ".tflite", "torch": "_torch"}


def default_formats() -> tuple[str, ...]:
    """Return the formats to check if none are named: all but those that need an extra that is not installed."""
    return tuple(format for format in SUFFIXES if format != "tflite" or find_spec("ai_edge_litert") is not None)


def default_suffix(format: str, quantize: str | None) -> str:
    """Return how the default name of an artifact ends; that of a quantized LiteRT file says how."""
    return f"_{quantize}{SUFFIXES[format]}" if quantize and format == "tflite" else SUFFIXES[format]


def holds(question: Callable[[], bool]) -> bool:
    """Answer a question about a path, with no if its name cannot be looked up: opening it explains that."""
    try:
        return question()
    except OSError:
        return False


def artifact_name(source: Path) -> str:
    """Return the base name of a checkpoint's artifacts: a file's name without suffix, or a folder's name."""
    return source.resolve().name if holds(source.is_dir) else source.stem


def refuse_links(path: Path, folder: Path) -> Path:
    """Return the path, or raise OutputError if it, or what is on the way to it from the folder, is a link.

    A path that the user gave is followed, as `cp` does; a name that this program chose may be a stranger's link.
    """
    for part in (path, *path.parents):
        if part == folder:
            break
        if holds(part.is_symlink):
            raise OutputError(
                f"{part.name!r} is a link to {str(part.readlink())!r}; only a link that -o names is followed.",
                code="PTC4026",
                where=str(part),
                fix="Remove the link, or give another -o; to write where it leads, give that path as -o.",
            )
    return path


def output_path(
    source: Path, format: str, output: str | Path | None, several: bool, quantize: str | None = None
) -> Path:
    """Return the path of an artifact.

    Args:
        source: the checkpoint.
        format: a key of `SUFFIXES`.
        output: the value of `-o`: the artifact itself, or the folder for `several` models or formats. As for `cp`, a
            folder that is not an artifact, or a path that ends in a slash, gets the artifact under its default name.
        several: whether this call writes more than one artifact.
        quantize: the value of `--quantize`, which is a part of a LiteRT file's default name.

    Raises:
        UsageError: `output` has the suffix of another format, or is a file where a folder is needed.
        OutputError: a name chosen here is a link.
    """
    ends_as_folder = str(output).endswith(("/", os.sep))
    output = None if output is None else Path(output)
    is_folder = ends_as_folder or (
        output is not None and holds(output.is_dir) and holds(lambda: recognize(output) is None)
    )
    if output is None or several or is_folder:
        if output is not None and holds(output.is_file):
            raise UsageError(
                f"{output} is a file; several artifacts need a folder.",
                code="PTC4027",
                where="-o",
                fix="Name a folder, which is made if it does not exist.",
            )
        folder = output or Path()
        return refuse_links(folder / (artifact_name(source) + default_suffix(format, quantize)), folder)
    other = {ending for ending in SUFFIXES.values() if ending.startswith(".")} - {SUFFIXES[format]}
    stem = output.with_suffix("") if output.suffix in other else output
    # Keras opens only files with the suffix .keras.
    if stem != output or (format == "keras" and output.suffix != ".keras"):
        name = stem if not SUFFIXES[format].startswith(".") else f"{stem}{SUFFIXES[format]}"
        raise UsageError(
            f"{output} is not a valid name for --to {format}.", code="PTC4007", where="-o", fix=f"Name it {name}."
        )
    return output


def output_paths(
    sources: Sequence[Path], formats: Sequence[str], output: str | Path | None, quantize: str | None = None
) -> dict[tuple[Path, str], Path]:
    """Return the path of every artifact of a call.

    Raises:
        UsageError: two checkpoints would be written to the same path, or `output` has the suffix of another format.
    """
    several = len(sources) * len(formats) > 1
    taken: dict[Path, Path] = {}
    paths = {}
    for source in sources:
        for format in formats:
            path = output_path(source, format, output, several, quantize)
            if path in taken:
                raise UsageError(
                    f"{taken[path]} and {source} would both be written to {path}.",
                    code="PTC4008",
                    fix="Convert them in two calls with different -o.",
                )
            taken[path] = source
            paths[source, format] = path
    return paths


def parse_formats(to: str | Sequence[str]) -> list[str]:
    """Return the given formats without repetition, or raise UsageError for an unknown one."""
    wanted = [to] if isinstance(to, str) else list(dict.fromkeys(to))
    unknown = [f for f in wanted if f not in SUFFIXES]
    if unknown:
        raise UsageError(
            f"Unknown format: {', '.join(unknown)}.", code="PTC4009", fix=f"Choose from {', '.join(SUFFIXES)}."
        )
    return wanted
