"""Weights in a folder: one file, or several that an index names."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from converter.checkpoint.model_folder import LARGEST_JSON, stays
from converter.errors import CheckpointError

MOST_FILES, DEEPEST = 10_000, 100

Weights = Mapping[str, torch.Tensor]


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        CheckpointError: the file is missing, too large, damaged, or holds something else.
    """
    fix = "Copy or download it again."
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise CheckpointError(f"{path.name} is larger than in any model.", code="PTC1055", where=str(path), fix=fix)
        content = json.loads(path.read_bytes())
        _check_nesting(content)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path.name} cannot be read: {error}", code="PTC1056", where=str(path), fix=fix
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path.name} is not a JSON object.", code="PTC1057", where=str(path), fix=fix)
    return content


def _check_nesting(content: Any) -> None:
    """Raise ValueError if values are nested deeper than the functions that walk them may call themselves."""
    level, depth = [content], 0
    while level := [
        value
        for part in level
        if isinstance(part, dict | list)
        for value in (part.values() if isinstance(part, dict) else part)
    ]:
        depth += 1
        if depth > DEEPEST:
            raise ValueError(f"its values are nested more than {DEEPEST} deep")


def refuse_links(*files: Path) -> None:
    """Refuse files that are links out of their folder.

    Raises:
        CheckpointError: one of them is.
    """
    for file in files:
        if file.is_symlink() and not stays(file.parent, file.name):
            fix = "Copy the file itself into the folder, or do not trust this folder."
            raise CheckpointError(
                "A link points outside of the model's folder.", code="PTC1092", where=str(file), fix=fix
            )


def load_shards(index: Path, read: Callable[[Path], Weights]) -> Weights:
    """Return the weights of all files that an index names, which must match the index.

    Args:
        read: returns the state dict of one file.

    Raises:
        CheckpointError: the index leads out of its folder, names files that do not exist, or is wrong about them.
    """
    table = read_json(index).get("weight_map")
    fix = "Copy or download the folder again."
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
        raise CheckpointError("The index does not have a table of weights.", code="PTC1058", where=str(index), fix=fix)
    files = sorted(set(table.values()))
    if not files or len(files) > MOST_FILES:
        raise CheckpointError(f"The index names {len(files)} files.", code="PTC1059", where=str(index), fix=fix)
    elsewhere = [name for name in files if not stays(index.parent, name)]
    if elsewhere:
        what = f"The index points outside of its folder: {', '.join(elsewhere[:5])}."
        raise CheckpointError(
            what,
            code="PTC1060",
            where=str(index),
            fix="Do not trust this folder: libraries do not write such an index.",
        )
    missing = [name for name in files if not (index.parent / name).is_file()]
    if missing:
        what = f"{len(missing)} of {len(files)} weight files are missing: {', '.join(missing[:5])}."
        raise CheckpointError(what, code="PTC1061", where=str(index), fix="Download them into the same folder.")
    weights: dict[str, torch.Tensor] = {}
    for name in files:
        part = read(index.parent / name)
        said = {key for key, file in table.items() if file == name}
        if said != set(part):
            odd = sorted(said ^ set(part))
            what = f"The index is wrong about {name}: {', '.join(map(str, odd[:5]))}."
            raise CheckpointError(what, code="PTC1062", where=str(index), fix=fix)
        weights.update(part)
    return weights
