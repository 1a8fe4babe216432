"""Tell the format of an artifact from its content."""

from pathlib import Path

from converter.artifacts.runtime.formats import Format, recognise


def detect_format(path: Path) -> Format:
    """Raises ConversionError when there is nothing, or nothing that is known."""
    from ..errors import ConversionError

    if not path.exists():
        raise ConversionError("There is no such artefact.", where=str(path))
    found = recognise(path)
    if found is None:
        raise ConversionError(
            "This is not an artefact of a known format.",
            where=str(path),
            cure="Give a SavedModel folder, a .keras file of Keras 3, an .onnx or a .tflite file.",
        )
    return found
