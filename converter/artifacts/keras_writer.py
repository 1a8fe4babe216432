"""Write the `.keras` file, so that stock Keras opens it and the same model gives the same bytes."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .runtime import graph_digest as digests
from .runtime import stamp as stamps
from .runtime.keras import _CONFIG, _METADATA, _canonical_config

if TYPE_CHECKING:
    import keras

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest a zip can hold


def write(model: keras.Model, path: Path, stamp: Mapping[str, Any]) -> None:
    """Write `model` to the file `path`; meanwhile, the folder also holds the file that Keras writes."""
    import keras

    unsettled = path.with_name(f".{path.name}.unsettled.keras")
    try:
        config = json.dumps(keras.saving.serialize_keras_object(model)).encode()
        stamp = digests.stamped(stamp, digests.config_digest(json.loads(_canonical_config(config))))
        keras.saving.save_model(model, unsettled)
        with zipfile.ZipFile(unsettled) as source, zipfile.ZipFile(path, "w") as target:
            members = sorted(name for name in source.namelist() if not name.endswith("/"))
            for name in members:
                with source.open(name) as content, _open_member(target, name) as settled:
                    if name == _CONFIG:
                        settled.write(_canonical_config(content.read()))
                    elif name == _METADATA:
                        settled.write(json.dumps({"keras_version": keras.__version__, "date_saved": ""}).encode())
                    else:
                        shutil.copyfileobj(content, settled, 1 << 20)
            with _open_member(target, stamps.ZIP_MEMBER) as member:
                member.write(stamps.stamp_text(stamp).encode())
    finally:
        unsettled.unlink(missing_ok=True)


def write_again(source: Path, path: Path, members: Mapping[str, bytes], stamp: Mapping[str, Any]) -> None:
    """Write a file that `write` wrote with some of its members and the stamp replaced."""
    members = {**members, stamps.ZIP_MEMBER: stamps.stamp_text(stamp).encode()}
    with zipfile.ZipFile(source) as held, zipfile.ZipFile(path, "w") as target:
        for name in held.namelist():
            with _open_member(target, name) as settled:
                settled.write(members[name] if name in members else held.read(name))


def _open_member(archive: zipfile.ZipFile, name: str) -> Any:
    return archive.open(zipfile.ZipInfo(name, _EPOCH), "w", force_zip64=True)
