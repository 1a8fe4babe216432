"""docs/notebook.ipynb runs from its first cell to its last, and says what it shows."""

import os
import re
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs/notebook.ipynb"


def texts(notebook) -> str:
    """Return what the cells printed and showed, without figures and times."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    shown = []
    for output in outputs:
        if output.get("name") != "stderr":
            shown += [output.get("text", ""), *(text for _, text in sorted(output.get("data", {}).items()))]
    said = [line for line in "".join(shown).splitlines() if not line.startswith("INFO:")]  # TensorFlow's
    return re.sub(r"\d\.?\d*e-\d+|\d+\.\d(?=x)", "N", "\n".join(said)).strip()


@pytest.mark.slow
def test_the_notebook_runs_and_shows_what_it_has(tmp_path, monkeypatch):
    if "CI" not in os.environ:
        pytest.importorskip("ipykernel", reason='pip install -e ".[test]"')
        pytest.importorskip("nbclient", reason='pip install -e ".[test]"')
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    kept = nbformat.read(NOTEBOOK, as_version=4)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert texts(notebook) == texts(kept)
    for part in ("tf verified moves: 0", "onnx verified", "disagrees", "it differs first in block"):
        assert part in texts(notebook)
    assert {path.name for path in (tmp_path / "artifacts").iterdir()} >= {
        "model_saved_model",
        "model.keras",
        "model.onnx",
    }
