"""Run in a process of its own, without `converter`: TensorFlow's own converter makes TFLite files of SavedModels.

    python -P in_tflite.py FOLDER...

Each folder holds a SavedModel `network` and `inputs_BATCH.npz`; results go to `results_BATCH.npz`, and to `answer.json`
which step failed, if one did, and why.
"""

import json
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter


def answer(folder: Path) -> dict[str, str | None]:
    try:
        content = tf.lite.TFLiteConverter.from_saved_model(str(folder / "network")).convert()
    except Exception as error:
        return {"failed": "convert", "error": str(error)}
    try:
        runner = Interpreter(model_content=content).get_signature_runner("serving_default")
        for file in folder.glob("inputs_*.npz"):
            with np.load(file) as inputs:
                results = runner(**inputs)
            np.savez(folder / file.name.replace("inputs", "results"), **results)
    except (RuntimeError, ValueError) as error:
        return {"failed": "run", "error": str(error)}
    return {"failed": None, "error": ""}


for argument in sys.argv[1:]:
    (Path(argument) / "answer.json").write_text(json.dumps(answer(Path(argument))))
