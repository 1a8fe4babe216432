"""Find the files that an installation has besides its code: the sample, and the tested versions."""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from converter.errors import ConversionError

REPOSITORY = Path(__file__).resolve().parents[2]
INSTALLED = "share/pt-convert"  # where `tool.setuptools.data-files` in pyproject.toml puts them


def shipped(name: str) -> Path:
    """Return a file by its path in the repository: there, or where the wheel has installed it.

    Raises:
        ConversionError: it is in neither place.
    """
    if (REPOSITORY / name).is_file():
        return REPOSITORY / name
    try:
        files = distribution("pt-convert").files or []
    except PackageNotFoundError:
        files = []
    for file in files:
        if file.as_posix().endswith(f"{INSTALLED}/{name}") and Path(str(file.locate())).is_file():
            return Path(str(file.locate())).resolve()
    raise ConversionError(
        f"{name} is missing from this installation.", code="PTC6044", fix="Install it again: pip install pt-convert."
    )
