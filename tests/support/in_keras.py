"""Run in a process of its own, without `converter`: opens Keras files under the backend that KERAS_BACKEND names.

    KERAS_BACKEND=torch python -P in_keras.py FOLDER...

Each folder holds `network.keras` and `inputs_BATCH.npz`; results go to `results_BATCH.npz`, and to `answer.json` which
step failed, if one did, and why.
"""

import json
import sys
from pathlib import Path

import keras
import numpy as np


def answer(folder: Path) -> dict[str, str | None]:
    step = "load"
    try:
        model = keras.saving.load_model(folder / "network.keras")
        names = model.output_names
        step = "run"
        for file in folder.glob("inputs_*.npz"):
            with np.load(file) as inputs:
                given = dict(inputs)
            results = model(given if len(given) > 1 else next(iter(given.values())))
            if not isinstance(results, dict):
                results = {names[0]: results}
            arrays = {name: keras.ops.convert_to_numpy(result) for name, result in results.items()}
            np.savez(folder / file.name.replace("inputs", "results"), **arrays)
    except Exception as error:
        return {"failed": step, "error": str(error)}
    return {"failed": None, "error": ""}


for argument in sys.argv[1:]:
    (Path(argument) / "answer.json").write_text(json.dumps(answer(Path(argument))))
