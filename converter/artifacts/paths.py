"""Choose where artifacts go."""

from collections.abc import Sequence
from pathlib import Path

from ..errors import UsageError

SUFFIXES = {"tf": "_saved_model", "keras": ".keras", "onnx": ".onnx", "tflite": ".tflite"}


def artifact_name(source: Path) -> str:
    """Return the base name of a checkpoint's artifacts: a file's name without suffix, or a folder's name."""
    return source.resolve().name if source.is_dir() else source.stem


def output_path(source: Path, format: str, output: Path | None, several: bool) -> Path:
    """Return the path of an artifact.

    Args:
        source: the checkpoint.
        format: a key of `SUFFIXES`.
        output: the value of `-o`: the artifact itself, or the folder for `several` models or formats.
        several: whether this call writes more than one artifact.

    Raises:
        UsageError: `output` has the suffix of another format.
    """
    if output is None:
        return Path(artifact_name(source) + SUFFIXES[format])
    if several:
        return output / (artifact_name(source) + SUFFIXES[format])
    other = {ending for ending in SUFFIXES.values() if ending.startswith(".")} - {SUFFIXES[format]}
    stem = output.with_suffix("") if output.suffix in other else output
    # Keras opens only files with the suffix .keras.
    if stem != output or (format == "keras" and output.suffix != ".keras"):
        name = stem if format == "tf" else f"{stem}{SUFFIXES[format]}"
        raise UsageError(
            f"{output} is not a valid name for --to {format}.", code="PTC4007", where="-o", fix=f"Name it {name}."
        )
    return output


def output_paths(sources: Sequence[Path], formats: Sequence[str], output: Path | None) -> dict[tuple[Path, str], Path]:
    """Return the path of every artifact of a call.

    Raises:
        UsageError: two checkpoints would be written to the same path, or `output` has the suffix of another format.
    """
    several = len(sources) * len(formats) > 1
    taken: dict[Path, Path] = {}
    paths = {}
    for source in sources:
        for format in formats:
            path = output_path(source, format, output, several)
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
