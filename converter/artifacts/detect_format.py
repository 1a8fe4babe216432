"""Tell the format of an artifact from its content."""

from pathlib import Path

from converter.artifacts.runtime.formats import TORCH_FILES, Format, recognize

from ..errors import CheckpointError, ConversionError


def detect_format(path: Path) -> Format:
    """Return the format of an artifact.

    Raises:
        ConversionError: it does not exist, cannot be read or has no known format.
    """
    try:
        if not path.exists():
            raise ConversionError(
                "There is no such artifact.",
                code="PTC4001",
                fix="Give the path that `convert` reported as written.",
                where=str(path),
            )
        found = recognize(path)
        for name in {"tf": ("saved_model.pb",), "torch": TORCH_FILES}.get(found or "", ()):
            (path / name).open("rb").close()
    except OSError as error:
        what = f"The artifact cannot be read: {error.strerror}."
        fix = "Check the permissions of its files and the disk."
        raise CheckpointError(what, code="PTC4031", where=error.filename or str(path), fix=fix) from error
    if found is None:
        raise ConversionError(
            "This is not an artifact of a known format.",
            code="PTC4002",
            where=str(path),
            fix="Give a SavedModel folder, a .keras file of Keras 3, an .onnx or a .tflite file, or a folder that "
            "--to torch wrote.",
        )
    return found
