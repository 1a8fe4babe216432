"""Tell the format of an artifact from its content."""

from pathlib import Path

from converter.artifacts.runtime.formats import Format, recognize


def detect_format(path: Path) -> Format:
    """Return the format of an artifact, or raise ConversionError if `path` does not exist or has no known format."""
    from ..errors import ConversionError

    if not path.exists():
        raise ConversionError(
            "There is no such artifact.",
            code="PTC4001",
            fix="Give the path that `convert` reported as written.",
            where=str(path),
        )
    found = recognize(path)
    if found is None:
        raise ConversionError(
            "This is not an artifact of a known format.",
            code="PTC4002",
            where=str(path),
            fix="Give a SavedModel folder, a .keras file of Keras 3, an .onnx or a .tflite file, or a folder that "
            "--to torch wrote.",
        )
    return found
