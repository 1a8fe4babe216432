"""What other tools find in artifacts: runs `reopened.py`."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass
class Reopened:
    """Artifacts opened in a process that cannot import `converter`.

    Attributes:
        facts: of each format's graph.
        results: FORMAT/ROUND/OUTPUT to what it computed.
    """

    facts: dict[str, dict[str, Any]]
    results: dict[str, np.ndarray]

    def outputs(self, format: str, round: str) -> dict[str, np.ndarray]:
        start = f"{format}/{round}/"
        return {name.removeprefix(start): array for name, array in self.results.items() if name.startswith(start)}

    def counts(self, format: str) -> Counter[str]:
        return Counter(self.facts[format]["operators"])


def reopen(folder: Path, artifacts: Mapping[str, Path], rounds: Mapping[str, Mapping[str, np.ndarray]]) -> Reopened:
    """Opens the artifacts from disk, and runs each on the arrays of every round; `folder` must be the caller's own."""
    files = {name: folder / f"given-{name}.npz" for name in rounds}
    for name, arrays in rounds.items():
        np.savez(files[name], **arrays)  # type: ignore[arg-type]
    case, written = folder / "case.json", folder / "computed.npz"
    paths = {format: str(path) for format, path in artifacts.items()}
    arrays_of = {name: str(file) for name, file in files.items()}
    case.write_text(json.dumps({"arrays": arrays_of, "to": str(written), "artifacts": paths}))
    run = subprocess.run(
        [sys.executable, "-P", Path(__file__).with_name("reopened.py"), case],
        cwd=folder, env=os.environ | {"KERAS_BACKEND": "tensorflow"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    with np.load(written) as archive:
        return Reopened(json.loads(run.stdout), dict(archive))
