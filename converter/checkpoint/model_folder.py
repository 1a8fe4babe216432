"""Models of several files: a folder with weights and config.json, or an index of shards. Detection needs no torch."""

import json
from pathlib import Path

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
CONFIG = "config.json"
LARGEST_JSON = 1 << 26
LONGEST_NAME = 200


def has_config(folder: Path) -> bool:
    """Return whether the folder has a config.json, which names its architecture."""
    return folder.is_dir() and (folder / CONFIG).is_file()


def weights_in(folder: Path) -> Path | None:
    """Return the file of the folder's weights, or the index of several; None if there is neither."""
    return next((folder / name for name in WEIGHTS if (folder / name).exists()), None)


def is_index(path: Path) -> bool:
    """Return whether this is the index of a sharded checkpoint, by its content."""
    try:
        if not path.is_file() or path.stat().st_size > LARGEST_JSON:
            return False
        with path.open("rb") as file:
            if file.read(64).lstrip()[:1] != b"{":
                return False
        return isinstance(json.loads(path.read_bytes()).get("weight_map"), dict)
    except (OSError, ValueError, RecursionError):  # reading it in another format reports the error
        return False


def is_model(folder: Path) -> bool:
    """Return whether the folder is one checkpoint, not several: weights with a config.json, or their index."""
    weights = weights_in(folder) if folder.is_dir() else None
    return weights is not None and (has_config(folder) or weights.suffix == ".json")


def files_of(path: Path) -> list[Path]:
    """Return the files of a model in a folder or behind an index; for a single file, the file itself."""
    if path.is_dir():
        return _beside(path, {".json", ".safetensors", ".bin"})
    return [path, *_beside(path.parent, {".safetensors", ".bin"})] if is_index(path) else [path]


def _beside(folder: Path, endings: set[str]) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.suffix in endings and stays(folder, f.name) and f.is_file())


def homes(folder: Path) -> list[Path]:
    """Return the folder, and the `blobs` of the Hugging Face hub cache that it is in, next to its `snapshots`."""
    real = folder.resolve()
    return [real, real.parent.parent / "blobs"] if real.parent.name == "snapshots" else [real]


def stays(folder: Path, name: str) -> bool:
    """Return whether a name stays in the folder, or links to the hub cache that the folder is in."""
    if not 0 < len(name) <= LONGEST_NAME or name.startswith(".") or any(letter in name for letter in "/\\:\0"):
        return False
    return (folder / name).resolve().parent in homes(folder)
