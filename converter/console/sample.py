"""Write the trained sample model into a folder, so that the first example runs from any installation."""

from dataclasses import dataclass
from pathlib import Path

from converter.compat.shipped import shipped
from converter.errors import OutputError
from converter.report.failures import Report

PACKAGE = "sample_models"  # the checkpoint's classes are pickled under this name
FILES = ("__init__.py", "blocks.py", "digits_focus.py", "digits_focus.pt", "digits_holdback.npz")


@dataclass(frozen=True)
class WrittenSample(Report):
    """The sample in a folder.

    Attributes:
        written: the files that were written; the others were there.
        command: what converts it, run in that folder.
    """

    folder: str
    written: tuple[str, ...]
    command: str = (
        f"pt-convert {PACKAGE}/digits_focus.pt --to tf --to keras --to onnx "
        f"--trust {PACKAGE} --input-shape 1,1,16,16 --inputs {PACKAGE}/digits_holdback.npz"
    )


def write_sample(folder: Path) -> WrittenSample:
    """Write the checkpoint, its code and held-back images to `folder/sample_models`; a file with that content stays.

    Raises:
        OutputError: a file there has other content, in which case nothing is written, or writing fails.
    """
    home = folder / PACKAGE
    contents = {home / name: shipped(f"{PACKAGE}/{name}").read_bytes() for name in FILES}
    try:
        missing = [path for path in contents if not path.exists() and not path.is_symlink()]
        other = [path for path, content in contents.items() if path not in missing and path.read_bytes() != content]
        if not other:
            home.mkdir(parents=True, exist_ok=True)
            for path in missing:
                with path.open("xb") as file:
                    file.write(contents[path])
    except OSError as error:
        raise OutputError(
            f"The sample cannot be written: {error.strerror}.",
            code="PTC6045",
            where=str(error.filename or home),
            fix="Give a folder that you may write to: pt-convert sample FOLDER.",
        ) from error
    if other:
        raise OutputError(
            f"These files have other content: {', '.join(map(str, other))}.",
            code="PTC6043",
            where=str(home),
            fix="Move them away, or give another folder: pt-convert sample FOLDER.",
        )
    return WrittenSample(str(folder), tuple(map(str, missing)))
